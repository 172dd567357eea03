//! W3C Trace Context, Level 1 (<https://www.w3.org/TR/trace-context-1/>): which trace a request belongs to.
//!
//! A client's own trace goes on to the VM unchanged. Where there is none, or none that can be read, one begins here.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::fmt;

/// Section 3.2.
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Section 3.3.
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// `00-<32>-<16>-<2>`.
const VERSION_0_BYTES: usize = 55;

/// A trace's id, 32 lower-case hexadecimal digits as text (section 3.2.2.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceNumber([u8; 16]);

impl fmt::Display for TraceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex_of(&self.0))
    }
}

impl fmt::Debug for TraceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What the VM is to be told of the trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// What the client said, as it is.
    Clients(TraceNumber),
    /// A trace that begins here. What the client said of one cannot be read, and goes.
    Ours(TraceNumber, HeaderValue),
}

impl Told {
    /// Of these fields of a request; `random` makes the trace that begins here, if one does.
    #[must_use]
    pub fn of(headers: &HeaderMap, random: [u8; 24]) -> Self {
        let mut said = headers.get_all(TRACEPARENT).iter();
        // One field alone: which of several would it be (section 3.2.1)?
        match (said.next().and_then(|value| parse(value.as_bytes())), said.next()) {
            (Some(number), None) => Self::Clients(number),
            _ => Self::begun(random),
        }
    }

    /// The trace's id.
    #[must_use]
    pub fn number(&self) -> TraceNumber {
        match self {
            Self::Clients(number) | Self::Ours(number, _) => *number,
        }
    }

    /// The field that is to stand in the request instead of what stands there; none when that stays.
    #[must_use]
    pub fn replacement(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Clients(_) => None,
            Self::Ours(_, value) => Some((TRACEPARENT, value.clone())),
        }
    }

    /// The field that goes with a replaced one (section 3.3).
    #[must_use]
    pub fn companion() -> HeaderName {
        TRACESTATE
    }

    fn begun(random: [u8; 24]) -> Self {
        let mut bytes = random;
        // Ids of zeros are none (sections 3.2.2.3 and 3.2.2.4).
        bytes[0] |= 1;
        bytes[16] |= 1;
        let (trace, span) = bytes.split_at(16);
        let mut number = TraceNumber([0; 16]);
        number.0.copy_from_slice(trace);
        // Sampled: whoever records traces decides by itself, and would drop all without this.
        let text = ["00-", &hex_of(trace), "-", &hex_of(span), "-01"].concat();
        let value = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        Self::Ours(number, value)
    }
}

/// The trace's id in a `traceparent` (section 3.2.2); none where it is not valid. Later versions may have more after the
/// flags (section 3.2.4).
fn parse(value: &[u8]) -> Option<TraceNumber> {
    let known = value.get(..VERSION_0_BYTES)?;
    let version = hex(&known[..2])?;
    let rest = &value[VERSION_0_BYTES..];
    let follows = rest.is_empty() || (version != 0 && rest[0] == b'-');
    if version == 0xff || !follows || known[2] != b'-' || known[35] != b'-' || known[52] != b'-' {
        return None;
    }
    let mut trace = [0; 16];
    for (byte, digits) in trace.iter_mut().zip(known[3..35].chunks_exact(2)) {
        *byte = hex(digits)?;
    }
    let mut span = 0;
    for digits in known[36..52].chunks_exact(2) {
        span |= hex(digits)?;
    }
    hex(&known[53..])?;
    (trace != [0; 16] && span != 0).then_some(TraceNumber(trace))
}

/// By hand, since each request has some and `format!` takes ten times as long.
fn hex_of(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// Two lower-case digits: upper-case ones are not valid (section 3.2.1).
fn hex(digits: &[u8]) -> Option<u8> {
    digits.iter().try_fold(0, |byte: u8, digit| {
        let nibble = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(byte << 4 | nibble)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn of(values: &[&[u8]]) -> Told {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TRACEPARENT, HeaderValue::from_bytes(value).expect("a value"));
        }
        Told::of(&headers, [7; 24])
    }

    #[test]
    fn a_clients_trace_goes_on_and_what_is_none_begins_anew() {
        let told = of(&[GOOD.as_bytes()]);
        assert_eq!(told.number().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(told.replacement(), None);
        let later = GOOD.replacen("00", "cc", 1) + "-more";
        assert!(matches!(of(&[later.as_bytes()]), Told::Clients(_)), "a later version says more");
        for bad in [
            String::new(),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            format!("{GOOD}-more"),
            format!("{GOOD}0"),
            GOOD.replacen("00", "cc", 1) + "x",
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            GOOD.replace('-', "_"),
            GOOD[..54].to_owned(),
            GOOD.replace("01", "0g"),
        ] {
            assert!(matches!(of(&[bad.as_bytes()]), Told::Ours(..)), "{bad}");
        }
        assert!(matches!(of(&[]), Told::Ours(..)));
        assert!(matches!(of(&[GOOD.as_bytes(), GOOD.as_bytes()]), Told::Ours(..)), "which of the two?");
    }

    proptest! {
        #[test]
        fn what_begins_here_can_be_read_and_any_bytes_are_judged(
            random in any::<[u8; 24]>(),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let begun = Told::of(&HeaderMap::new(), random);
            let (_, value) = begun.replacement().expect("one begins");
            prop_assert_eq!(parse(value.as_bytes()), Some(begun.number()));
            if let Some(number) = parse(&bytes) {
                let text = number.to_string();
                prop_assert_eq!(text.as_bytes(), &bytes[3..35]);
            }
        }

        #[test]
        fn near_misses_of_a_good_one_are_judged(place in 0_usize..55, byte in any::<u8>()) {
            let mut near = GOOD.as_bytes().to_vec();
            near[place] = byte;
            let judged = parse(&near).is_some();
            let digit = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
            prop_assert!(!judged || digit || byte == b'-');
        }
    }
}
