//! Digests of what goes into a step.

use super::{ImageError, failed};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Hexadecimal digits in a cached result's name.
const SHORT_DIGITS: usize = 16;

/// A SHA-256.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest(String);

impl Digest {
    /// Of some named texts, in order. The lengths are in it, so that no two lists look the same.
    pub fn of_texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut hash = Sha256::new();
        for text in texts {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        Self(hex(hash))
    }

    /// Of a file's content.
    pub fn of_file(path: &Path) -> Result<Self, ImageError> {
        let mut hash = Sha256::new();
        let mut file = File::open(path).map_err(failed("open", path))?;
        io::copy(&mut file, &mut hash).map_err(failed("read", path))?;
        Ok(Self(hex(hash)))
    }

    /// Of a folder's files: names, contents, and whether they are programs.
    pub fn of_folder(path: &Path) -> Result<Self, ImageError> {
        let mut lines = Vec::new();
        collect(path, path, &mut lines)?;
        lines.sort();
        Ok(Self::of_texts(lines.iter().map(String::as_str)))
    }

    /// All digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Enough of it for a file name.
    pub fn short(&self) -> &str {
        &self.0[..SHORT_DIGITS]
    }
}

fn collect(root: &Path, folder: &Path, lines: &mut Vec<String>) -> Result<(), ImageError> {
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        if path.is_dir() {
            collect(root, &path, lines)?;
            continue;
        }
        let mode = fs::metadata(&path).map_err(failed("look at", &path))?.permissions().mode();
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        lines.push(format!("{name} {} {}", mode & 0o111 != 0, Digest::of_file(&path)?.as_str()));
    }
    Ok(())
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_has_another_digest() {
        assert_ne!(Digest::of_texts(["ab", "c"]), Digest::of_texts(["a", "bc"]));
        let place = tempfile::tempdir().expect("directory");
        let file = place.path().join("sub/file");
        fs::create_dir(place.path().join("sub")).expect("folder");
        fs::write(&file, "x").expect("file");
        let before = Digest::of_folder(place.path()).expect("digest");
        assert_eq!(Digest::of_folder(place.path()).expect("digest"), before);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("mode");
        assert_ne!(Digest::of_folder(place.path()).expect("digest"), before);
    }
}
