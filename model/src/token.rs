//! Identity tokens: `gti_`, 22 random characters and 6 of checksum, all of `[A-Za-z0-9_]`.
//!
//! They stand in SSH user names, and clients put those into the paths of control sockets, so they are short: 32
//! characters. 22 characters of 62 hold 131 random bits, so a plain SHA-256 protects them at rest. The prefix lets
//! secret scanners find a leaked one; the checksum tells a mistyped one from a guess without a question to a table.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What a token begins with.
pub const TOKEN_PREFIX: &str = "gti_";
/// Characters of a token.
pub const TOKEN_CHARS: usize = TOKEN_PREFIX.len() + RANDOM_CHARS + CHECK_CHARS;
/// Random bytes of which a token is made: some are not used, so that no digit is likelier than another.
pub const TOKEN_RANDOM_BYTES: usize = 64;
const RANDOM_CHARS: usize = 22;
const CHECK_CHARS: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Random bytes up to here are used; the rest would favour the first digits.
const FAIR_BELOW: u8 = 62 * 4;

/// Why a text is not a token. It does not repeat the text, which may be a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a token is '{TOKEN_PREFIX}' and 28 characters of A-Z, a-z and 0-9 whose last six are a checksum")]
pub struct TokenError;

/// A token in the clear: shown once to who made it, never logged, wiped when it goes.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct IdentityToken(String);

impl IdentityToken {
    /// Makes one of random bytes, which the caller draws. `None` when too few of them are usable: draw again (less than
    /// once in 10^20).
    #[must_use]
    pub fn from_random(bytes: &[u8; TOKEN_RANDOM_BYTES]) -> Option<Self> {
        let mut text = TOKEN_PREFIX.to_owned();
        text.extend(
            bytes.iter().filter(|byte| **byte < FAIR_BELOW).take(RANDOM_CHARS).map(|byte| digit(*byte)),
        );
        (text.len() == TOKEN_PREFIX.len() + RANDOM_CHARS).then(|| {
            text.push_str(&checksum(&text));
            Self(text)
        })
    }

    /// The text, for who is to have it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored of it.
    #[must_use]
    pub fn hash(&self) -> TokenHash {
        TokenHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl std::str::FromStr for IdentityToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let good = text.len() == TOKEN_CHARS
            && text.starts_with(TOKEN_PREFIX)
            && text[TOKEN_PREFIX.len()..].bytes().all(|byte| byte.is_ascii_alphanumeric())
            && text.ends_with(&checksum(&text[..TOKEN_CHARS - CHECK_CHARS]));
        if good { Ok(Self(text.to_owned())) } else { Err(TokenError) }
    }
}

impl fmt::Debug for IdentityToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The SHA-256 of a token, as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Whether both are the same, in the same time whatever they hold.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(other.0).fold(0, |all, (one, other)| all | (one ^ other));
        std::hint::black_box(differing) == 0
    }
}

impl TryFrom<String> for TokenHash {
    type Error = TokenError;
    fn try_from(text: String) -> Result<Self, TokenError> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError);
        }
        for (byte, place) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[place..place + 2], 16).map_err(|_| TokenError)?;
        }
        Ok(Self(bytes))
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hash.to_string()
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

fn checksum(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(CHECK_CHARS).map(|byte| digit(*byte)).collect()
}

fn digit(byte: u8) -> char {
    char::from(DIGITS[usize::from(byte) % DIGITS.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tokens_are_short_recognisable_and_do_not_print() {
        let token = IdentityToken::from_random(&[7; TOKEN_RANDOM_BYTES]).expect("usable bytes");
        assert_eq!((token.expose().len(), &token.expose()[..5]), (32, "gti_7"));
        assert_eq!(token.expose().parse::<IdentityToken>().expect("own token"), token);
        assert!(!format!("{token:?} {:?}", token.hash()).contains('7'));
        assert_eq!(IdentityToken::from_random(&[255; TOKEN_RANDOM_BYTES]), None);
        let last = if token.expose().ends_with('x') { "y" } else { "x" };
        assert!(format!("{}{last}", &token.expose()[..31]).parse::<IdentityToken>().is_err());
    }

    #[test]
    fn a_hash_is_text_and_back() {
        let hash = IdentityToken::from_random(&[9; TOKEN_RANDOM_BYTES]).expect("usable bytes").hash();
        let text = serde_json::to_string(&hash).expect("text");
        let back: TokenHash = serde_json::from_str(&text).expect("own text");
        assert!(back.is(&hash) && text.len() == 66);
        assert!(!TokenHash([0; 32]).is(&hash));
        assert!(serde_json::from_str::<TokenHash>(&text.replace(&text[1..2], "g")).is_err());
    }

    proptest! {
        #[test]
        fn noise_is_no_token(text in ".{0,40}") {
            prop_assert!(text.parse::<IdentityToken>().is_err());
        }
    }
}
