//! Public keys of people, as `ssh-keygen` writes them: those that OpenSSH takes today, and no others.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use ssh_key::public::KeyData;
use ssh_key::{EcdsaCurve, HashAlg, PublicKey};
use thiserror::Error;

/// Longest line: an RSA key of the largest size has some 2,800 characters.
pub const MAX_KEY_CHARS: usize = 8192;
/// Characters of a key's name.
pub const MAX_KEY_NAME_CHARS: usize = 128;
/// Bits of the smallest and largest RSA key. OpenSSH's limits are 1024 and 16384; NIST SP 800-131A has 2048 as the least.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=16_384;

/// Why a text is no public key that can be used.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyRefusal {
    /// Somebody sent the other half.
    #[error("this is a private key, and nobody else's business; register the file that ends in .pub")]
    Private,
    /// It cannot be read.
    #[error("it is no public key as in id_ed25519.pub: one line of a type, base64 and a comment")]
    Unreadable,
    /// A kind that is not taken.
    #[error("{0} is not taken; make another key: ssh-keygen -t ed25519")]
    Kind(String),
    /// An RSA key that is too small or too large.
    #[error("an RSA key has 2048 to 16384 bits, this one has {0}; make another key: ssh-keygen -t ed25519")]
    Bits(usize),
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Type and base64.
    pub line: String,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// What stood behind it.
    pub comment: Option<String>,
}

/// Reads a line as in `id_ed25519.pub`.
///
/// # Errors
/// See [`KeyRefusal`].
pub fn read(text: &str) -> Result<Key, KeyRefusal> {
    let text = text.trim();
    if text.contains("PRIVATE KEY") {
        return Err(KeyRefusal::Private);
    }
    if text.len() > MAX_KEY_CHARS || text.chars().any(char::is_control) {
        return Err(KeyRefusal::Unreadable);
    }
    let mut key = PublicKey::from_openssh(text).map_err(|_| KeyRefusal::Unreadable)?;
    let taken = match key.key_data() {
        KeyData::Ed25519(_) | KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => true,
        KeyData::Ecdsa(key) => match key.curve() {
            EcdsaCurve::NistP256 | EcdsaCurve::NistP384 | EcdsaCurve::NistP521 => true,
        },
        KeyData::Rsa(key) => {
            let number = key.n.as_positive_bytes().unwrap_or_default();
            let bits = number.first().map_or(0, |first| number.len() * 8 - first.leading_zeros() as usize);
            if !RSA_BITS.contains(&bits) {
                return Err(KeyRefusal::Bits(bits));
            }
            true
        }
        // The library's enum may grow; what is new is not taken before somebody has looked at it.
        _ => false,
    };
    if !taken {
        return Err(KeyRefusal::Kind(key.algorithm().as_str().to_owned()));
    }
    let comment: String = key.comment().chars().take(MAX_KEY_NAME_CHARS).collect();
    key.set_comment("");
    let line = key.to_openssh().map_err(|_| KeyRefusal::Unreadable)?.trim().to_owned();
    let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
    Ok(Key { line, fingerprint, comment: Some(comment).filter(|comment| !comment.is_empty()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    /// What this machine's ssh-keygen makes.
    #[expect(clippy::disallowed_methods, reason = "the test reads what ssh-keygen wrote")]
    fn made(arguments: &[&str]) -> String {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        let made = Command::new("ssh-keygen")
            .args(["-q", "-N", "", "-C", "me at home", "-f"])
            .arg(&path)
            .args(arguments)
            .output()
            .expect("ssh-keygen runs");
        assert!(made.status.success(), "{made:?}");
        std::fs::read_to_string(path.with_extension("pub")).expect("public key")
    }

    #[test]
    fn what_openssh_makes_is_taken_but_for_small_rsa() {
        for arguments in [
            &["-t", "ed25519"][..],
            &["-t", "ecdsa", "-b", "256"],
            &["-t", "ecdsa", "-b", "384"],
            &["-t", "ecdsa", "-b", "521"],
            &["-t", "rsa", "-b", "2048"],
        ] {
            let text = made(arguments);
            let key = read(&text).expect("taken");
            assert_eq!(format!("{} me at home", key.line), text.trim(), "{arguments:?}");
            assert_eq!(key.comment.as_deref(), Some("me at home"));
            assert!(key.fingerprint.starts_with("SHA256:"), "{}", key.fingerprint);
        }
        assert_eq!(read(&made(&["-t", "rsa", "-b", "1024"])), Err(KeyRefusal::Bits(1024)));
    }

    #[test]
    fn a_security_key_is_taken_and_dsa_is_not() {
        let hardware = "sk-ssh-ed25519@openssh.com AAAAGnNrLXNzaC1lZDI1NTE5QG9wZW5zc2guY29tAAAAICFo/k5LU8863u66\
                        YC9eUO2170QduohPURkQnbLa/dczAAAABHNzaDo= user@example.com";
        assert_eq!(read(hardware).expect("taken").comment.as_deref(), Some("user@example.com"));
        assert_eq!(read("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA"), Err(KeyRefusal::Private));
        let good = made(&["-t", "ed25519"]);
        for bad in [
            String::new(),
            "ssh-ed25519".to_owned(),
            format!("command=\"x\" {good}"),
            format!("{good}{good}"),
            good.replace("ssh-ed25519", "ssh-rsa"),
            "x".repeat(MAX_KEY_CHARS + 1),
        ] {
            assert_eq!(read(&bad), Err(KeyRefusal::Unreadable), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,200}") {
            prop_assert!(read(&text).is_err());
        }
    }
}
