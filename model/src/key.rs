//! WireGuard's keys as text: 32 bytes, base64 with padding, as `wg` writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of a key (RFC 7748, section 6.1).
pub const KEY_BYTES: usize = 32;

/// Why a text is not a key. It does not repeat the text, which may be a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a key is 44 characters of base64 that mean 32 bytes")]
pub struct KeyError;

/// Who somebody is; may be shown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(pub [u8; KEY_BYTES]);

/// A private or preshared key: never shown, and wiped when it goes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(try_from = "String", into = "String")]
pub struct SecretKey([u8; KEY_BYTES]);

impl SecretKey {
    /// Takes bytes that the caller drew.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, for whoever computes with them.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        decode(text).map(Self)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for SecretKey {
    type Error = KeyError;
    fn try_from(mut text: String) -> Result<Self, KeyError> {
        let decoded = decode(&text);
        text.zeroize();
        decoded.map(Self)
    }
}

impl From<SecretKey> for String {
    fn from(key: SecretKey) -> Self {
        STANDARD.encode(key.0)
    }
}

fn decode(text: &str) -> Result<[u8; KEY_BYTES], KeyError> {
    let mut bytes = STANDARD.decode(text).map_err(|_| KeyError)?;
    let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| KeyError);
    bytes.zeroize();
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_survive_text_and_secrets_do_not_print(bytes: [u8; 32]) {
            let public = PublicKey(bytes);
            prop_assert_eq!(public.to_string().parse::<PublicKey>(), Ok(public));
            let secret = SecretKey::new(bytes);
            prop_assert_eq!(SecretKey::try_from(String::from(secret.clone())), Ok(secret.clone()));
            prop_assert_eq!(format!("{secret:?}"), "***");
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            prop_assert!(text.parse::<PublicKey>().is_err() || text.len() == 44);
        }
    }

    #[test]
    fn what_wg_refuses_is_refused() {
        for bad in [
            "",
            "AAAA",
            "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE",
            "!UFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=",
        ] {
            assert_eq!(bad.parse::<PublicKey>(), Err(KeyError), "{bad}");
        }
    }
}
