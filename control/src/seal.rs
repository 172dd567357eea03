//! Keeps secrets that must survive, so that a copy of the database alone tells none of them.
//!
//! Each is sealed with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) under the house's key, a file beside the
//! database. Its nonces are long enough to be drawn.

use crate::random;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};
use model::key::{KEY_BYTES, SecretKey};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use zeroize::{Zeroize, Zeroizing};

/// The file of the house's key, below the data directory.
pub const KEY_FILE: &str = "house.key";
/// It is its owner's alone.
const PRIVATE_MODE: u32 = 0o600;
/// Bytes of a nonce.
const NONCE_BYTES: usize = 24;

/// Why there is no house's key, or a secret stays closed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The key's file cannot be read.
    #[error("the house's key {path} cannot be read: {source}")]
    Read {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not a key.
    #[error(
        "{path} has {length} bytes and is no house's key, which has 32; restore it from a copy, or remove it: all \
             VPN sessions end then, and the SSH front gets new keys"
    )]
    Length {
        /// Of the file.
        path: PathBuf,
        /// So many.
        length: usize,
    },
    /// A new one cannot be written.
    #[error("the house's key {path} cannot be made: {source}")]
    Write {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Sealed under another key, for another name, or damaged.
    #[error("a secret was not sealed under this house's key")]
    Closed,
}

/// The house's key, in use.
pub struct Seal(XChaCha20Poly1305);

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(***)")
    }
}

impl Seal {
    /// Reads the house's key, and makes it when there is none. Blocks on the disk.
    ///
    /// # Errors
    /// See [`SealError`].
    pub fn of_house(data: &Path) -> Result<Self, SealError> {
        let path = data.join(KEY_FILE);
        let mut bytes = Zeroizing::new(Vec::new());
        // One byte more than a key has, so that a longer file is not taken for one.
        let read = File::open(&path).and_then(|file| file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::make(path),
            Err(source) => return Err(SealError::Read { path, source }),
        }
        if bytes.len() != KEY_BYTES {
            return Err(SealError::Length { path, length: bytes.len() });
        }
        Ok(Self(XChaCha20Poly1305::new(Key::from_slice(&bytes))))
    }

    fn make(path: PathBuf) -> Result<Self, SealError> {
        let mut bytes = random::bytes::<KEY_BYTES>();
        let written = write_durably(&path, &bytes);
        let seal = Self(XChaCha20Poly1305::new(Key::from_slice(&bytes)));
        bytes.zeroize();
        written.map_err(|source| SealError::Write { path, source })?;
        Ok(seal)
    }

    /// Seals a secret for what `name` says, and nothing else.
    #[must_use]
    pub fn close(&self, name: &str, secret: &SecretKey) -> String {
        self.close_bytes(name, secret.expose())
    }

    /// The same for a secret of another form.
    ///
    /// # Panics
    /// Never: what we seal is shorter than what the cipher can take, which is 256 GiB.
    #[must_use]
    pub fn close_bytes(&self, name: &str, secret: &[u8]) -> String {
        let nonce = random::bytes::<NONCE_BYTES>();
        let payload = Payload { msg: secret, aad: name.as_bytes() };
        let sealed = self.0.encrypt(XNonce::from_slice(&nonce), payload).expect("it is short enough");
        STANDARD.encode([&nonce[..], &sealed].concat())
    }

    /// Opens what was sealed for the same name.
    ///
    /// # Errors
    /// [`SealError::Closed`].
    pub fn open(&self, name: &str, sealed: &str) -> Result<SecretKey, SealError> {
        let opened = self.open_bytes(name, sealed)?;
        opened.as_slice().try_into().map(SecretKey::new).map_err(|_| SealError::Closed)
    }

    /// The same for a secret of another form.
    ///
    /// # Errors
    /// [`SealError::Closed`].
    pub fn open_bytes(&self, name: &str, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let bytes = STANDARD.decode(sealed).map_err(|_| SealError::Closed)?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_BYTES).ok_or(SealError::Closed)?;
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        let opened = self.0.decrypt(XNonce::from_slice(nonce), payload).map_err(|_| SealError::Closed)?;
        Ok(Zeroizing::new(opened))
    }
}

/// The file is complete before it has its name, and has it before anything is sealed under it.
fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_MODE).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&staged, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_opens_under_its_key_and_name_alone() {
        let folder = tempfile::tempdir().expect("folder");
        let seal = Seal::of_house(folder.path()).expect("made");
        let file = folder.path().join(KEY_FILE);
        let kept = std::fs::metadata(&file).expect("kept");
        assert_eq!((kept.permissions().mode() & 0o777, kept.len()), (0o600, 32));
        let secret = SecretKey::new([7; KEY_BYTES]);
        let sealed = seal.close("a", &secret);
        assert_ne!(sealed, seal.close("a", &secret), "each with a nonce of its own");
        let again = Seal::of_house(folder.path()).expect("read");
        assert_eq!(again.open("a", &sealed).expect("opens"), secret);
        assert!(matches!(again.open("b", &sealed), Err(SealError::Closed)));
        for bad in ["", "AAAA", "!", &sealed[4..]] {
            assert!(matches!(again.open("a", bad), Err(SealError::Closed)), "{bad}");
        }
        std::fs::remove_file(&file).expect("removed");
        let other = Seal::of_house(folder.path()).expect("made");
        assert!(matches!(other.open("a", &sealed), Err(SealError::Closed)));
        std::fs::write(&file, [1; 33]).expect("written");
        assert!(matches!(Seal::of_house(folder.path()), Err(SealError::Length { length: 33, .. })));
    }
}
