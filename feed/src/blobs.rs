//! Files that are named by their content: what is large, secret and seldom new goes beside the views, and a view names
//! it. A file never changes; a reader takes none whose content is not what its name says.

use model::digest::Digest;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Largest file, unless something else is said: a chain of a few certificates with a key.
pub const MAX_BLOB_BYTES: u64 = 512 << 10;
/// What a file ends with that is not whole yet.
const STAGED: &str = ".new";

/// Why a file is of no use.
#[derive(Debug, Error)]
pub enum BlobError {
    /// It is not there, or cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is over what is read.
    #[error("{path} is larger than {most} bytes")]
    TooLarge {
        /// Of the file.
        path: PathBuf,
        /// So much is read.
        most: u64,
    },
    /// Its content is not what its name says.
    #[error("{path} does not hold what its name says")]
    Content {
        /// Of the file.
        path: PathBuf,
    },
}

/// A folder of such files.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: PathBuf,
    most: u64,
}

impl Blobs {
    /// For a reader. Nothing is looked at yet.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self { folder, most: MAX_BLOB_BYTES }
    }

    /// The same with another bound of each file.
    #[must_use]
    pub fn up_to(self, most: u64) -> Self {
        Self { most, ..self }
    }

    /// For the writer: makes the folder when it is missing, for its owner and `group`, if any, to pass through. Blocks on
    /// the disk, as all of this does.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn make(folder: PathBuf, group: Option<u32>) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        if group.is_some() {
            std::os::unix::fs::chown(&folder, None, group)?;
            fs::set_permissions(&folder, Permissions::from_mode(0o710))?;
        }
        Ok(Self::at(folder))
    }

    /// What is there. What an earlier process left half done is removed.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> io::Result<BTreeSet<Digest>> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.folder)? {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(STAGED) {
                fs::remove_file(self.folder.join(name))?;
            } else if let Ok(digest) = name.parse() {
                found.insert(digest);
            }
        }
        Ok(found)
    }

    /// Keeps these bytes for the owner and `group`, if any. They are durable after [`Blobs::sync`].
    ///
    /// # Errors
    /// When the disk is full, for one. Nothing is there then.
    pub fn put(&self, bytes: &[u8], group: Option<u32>) -> io::Result<Digest> {
        if bytes.len() as u64 > self.most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let digest = Digest::of(bytes);
        let path = self.path(digest);
        let staged = self.folder.join(format!("{digest}{STAGED}"));
        let mode = if group.is_some() { 0o640 } else { 0o600 };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged)?;
        if group.is_some() {
            fchown(&file, None, group)?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&staged, &path)?;
        Ok(digest)
    }

    /// Makes the names of all that was put durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }

    /// The bytes of this digest.
    ///
    /// # Errors
    /// See [`BlobError`].
    pub fn read(&self, digest: Digest) -> Result<Vec<u8>, BlobError> {
        let path = self.path(digest);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(self.most.saturating_add(1)).read_to_end(&mut bytes));
        if let Err(source) = read {
            return Err(BlobError::Read { path, source });
        }
        if bytes.len() as u64 > self.most {
            return Err(BlobError::TooLarge { path, most: self.most });
        }
        if Digest::of(&bytes) != digest {
            return Err(BlobError::Content { path });
        }
        Ok(bytes)
    }

    /// Removes a file; one that is not there is no fault.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove(&self, digest: Digest) -> io::Result<()> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_is_read_until_it_is_removed() {
        let place = tempfile::tempdir().expect("folder");
        let blobs = Blobs::make(place.path().join("deep/blobs"), None).expect("made");
        let digest = blobs.put(b"something", None).expect("put");
        assert_eq!(blobs.put(b"something", None).expect("again"), digest);
        blobs.sync().expect("synced");
        assert_eq!(blobs.read(digest).expect("read"), b"something");
        let mode = fs::metadata(blobs.path(digest)).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::write(blobs.folder().join(format!("{digest}{STAGED}")), "half").expect("write");
        fs::write(blobs.folder().join("something else"), "noise").expect("write");
        assert_eq!(blobs.list().expect("list"), BTreeSet::from([digest]));
        assert!(!blobs.folder().join(format!("{digest}{STAGED}")).exists(), "half a file is of no use");
        blobs.remove(digest).expect("removed");
        blobs.remove(digest).expect("nothing to remove");
        assert!(matches!(blobs.read(digest), Err(BlobError::Read { .. })));
    }

    #[test]
    fn a_file_with_another_content_is_refused() {
        let place = tempfile::tempdir().expect("folder");
        let blobs = Blobs::make(place.path().to_owned(), None).expect("made");
        let digest = blobs.put(b"something", None).expect("put");
        fs::write(blobs.path(digest), b"somethinG").expect("write");
        assert!(matches!(blobs.read(digest), Err(BlobError::Content { .. })));
        let large = vec![0; usize::try_from(MAX_BLOB_BYTES).expect("small") + 1];
        assert!(blobs.put(&large, None).is_err());
        fs::write(blobs.path(digest), large).expect("write");
        assert!(matches!(blobs.read(digest), Err(BlobError::TooLarge { .. })));
        assert_eq!(blobs.list().expect("list").len(), 1, "nothing else is left");
    }
}
