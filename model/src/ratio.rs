//! A part of a whole, as settings write it: `0.01`.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

const MILLION: u32 = 1_000_000;

/// From 0 to 1, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio(u32);

/// It is no such number.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("a number from 0 to 1 is wanted, 0.01 for one of a hundred")]
pub struct RatioError;

impl Ratio {
    /// All.
    pub const ALL: Self = Self(MILLION);

    /// Whether something is among this part, `random` being as likely as any other number.
    #[must_use]
    pub fn takes(self, random: u64) -> bool {
        (u128::from(random) * u128::from(MILLION)) >> u64::BITS < u128::from(self.0)
    }

    fn of(number: f64) -> Result<Self, RatioError> {
        if !(0.0..=1.0).contains(&number) {
            return Err(RatioError);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is within 0 and 1")]
        let millionths = (number * f64::from(MILLION)).round() as u32;
        Ok(Self(millionths))
    }

    fn number(self) -> f64 {
        f64::from(self.0) / f64::from(MILLION)
    }
}

impl FromStr for Ratio {
    type Err = RatioError;

    fn from_str(text: &str) -> Result<Self, RatioError> {
        Self::of(text.parse().map_err(|_| RatioError)?)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

impl Serialize for Ratio {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.number())
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::of(f64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_what_they_say_and_nothing_else_is_one() {
        let part = |text: &str| text.parse::<Ratio>().expect("a ratio");
        assert!(!part("0").takes(0) && !part("0").takes(u64::MAX));
        assert!(part("1").takes(0) && part("1").takes(u64::MAX) && part("1.0") == Ratio::ALL);
        assert!(part("0.25").takes(u64::MAX / 5) && !part("0.25").takes(u64::MAX / 3));
        assert_eq!(part("0.01").to_string(), "0.01");
        for bad in ["", "x", "-0.1", "1.1", "NaN", "inf", "1%"] {
            assert_eq!(bad.parse::<Ratio>(), Err(RatioError), "{bad}");
        }
        for number in ["0.5", "1", "0.000001"] {
            let json: Ratio = serde_json::from_str(number).expect("a number");
            let again: Ratio =
                serde_json::from_str(&serde_json::to_string(&json).expect("json")).expect("json");
            assert_eq!((json, again), (part(number), part(number)));
        }
        assert!(
            serde_json::from_str::<Ratio>("2").is_err() && serde_json::from_str::<Ratio>("\"0.5\"").is_err()
        );
    }
}
