//! API keys: `gatehouse_` and 40 random characters and 6 of checksum, all of `[A-Za-z0-9_]`.
//!
//! The prefix lets secret scanners find a leaked one, the checksum lets them (and us) tell it from noise without a
//! question to the database. 40 characters of 62 hold 238 random bits, so a plain SHA-256 protects them at rest.

use crate::random;
use sha2::{Digest, Sha256};

/// What a key begins with.
pub const PREFIX: &str = "gatehouse_";
/// Random characters of a key.
const RANDOM_CHARS: usize = 40;
/// Characters of checksum.
const CHECK_CHARS: usize = 6;
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// Random bytes up to here are used; the rest would favour the first digits.
const FAIR_BELOW: u8 = 62 * 4;

/// Makes a new secret.
#[must_use]
pub fn generate() -> String {
    let mut text = PREFIX.to_owned();
    while text.len() < PREFIX.len() + RANDOM_CHARS {
        let fair = random::bytes::<64>().into_iter().filter(|byte| *byte < FAIR_BELOW);
        let room = PREFIX.len() + RANDOM_CHARS - text.len();
        text.extend(fair.take(room).map(digit));
    }
    let check = checksum(&text);
    text + &check
}

/// Whether a text can be a key at all.
#[must_use]
pub fn well_formed(text: &str) -> bool {
    text.is_ascii()
        && text.len() == PREFIX.len() + RANDOM_CHARS + CHECK_CHARS
        && text.starts_with(PREFIX)
        && text.ends_with(&checksum(&text[..PREFIX.len() + RANDOM_CHARS]))
}

/// What is stored of a secret.
#[must_use]
pub fn hash(secret: &str) -> String {
    Sha256::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
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
    fn keys_are_long_different_and_recognisable() {
        let (one, other) = (generate(), generate());
        assert_ne!(one, other);
        assert!(well_formed(&one) && well_formed(&other), "{one}");
        assert!(one.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        assert_eq!(hash(&one).len(), 64);
        let last = if one.ends_with('x') { "y" } else { "x" };
        assert!(!well_formed(&format!("{}{last}", &one[..one.len() - 1])));
    }

    proptest! {
        #[test]
        fn noise_is_no_key(text in ".{0,80}") {
            prop_assert!(!well_formed(&text));
        }
    }
}
