//! Which layers a disk has: the file `disk.json` in its folder, replaced whole.

use super::backend::{DiskError, Medium, read_all, write_all};
use super::directory::Directory;
use super::folder::MAX_LAYERS;
use serde::{Deserialize, Serialize};
use std::io;
use thiserror::Error;
use vm_memory::VolatileSlice;

/// Name of the manifest.
pub const MANIFEST: &str = "disk.json";
/// Name of the next manifest until it is durable.
const STAGED: &str = "disk.json.new";
/// Longest manifest in bytes: all layers' names are 2 KiB.
const MAX_BYTES: u64 = 16 * 1024;
const VERSION: u32 = 1;
const PREFIX: &str = "layer-";
const MAP_SUFFIX: &str = ".map";
/// Hexadecimal digits of a layer's name: so many that no two are ever the same.
const DIGITS: usize = 32;

/// Why there is no usable manifest.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// An operation on its file or folder.
    #[error("cannot {operation} the disk's manifest")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Its file could not be read or written.
    #[error("cannot {operation} the disk's manifest")]
    Bytes {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: DiskError,
    },
    /// It is not JSON of this form.
    #[error("the disk's manifest is damaged or of another version")]
    Form(#[source] serde_json::Error),
    /// It contradicts itself.
    #[error("the disk's manifest is damaged: {0}")]
    Damaged(&'static str),
}

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub(super) version: u32,
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Length of the base in bytes; 0: none.
    pub base_bytes: u64,
    /// Sealed layers, bottom to top. The uppermost may not be settled yet when there is a top.
    pub layers: Vec<String>,
    /// The writable layer; none in a copy.
    pub top: Option<String>,
    /// CRC-32 of this with 0 here.
    pub(super) crc32: u32,
}

impl Manifest {
    /// One of no layers.
    #[must_use]
    pub fn new(capacity: u64, base_bytes: u64) -> Self {
        Self { version: VERSION, capacity, base_bytes, layers: Vec::new(), top: None, crc32: 0 }
    }

    /// Reads it; `None` when there is none.
    ///
    /// # Errors
    /// A [`ManifestError`].
    pub fn read<D: Directory>(directory: &D) -> Result<Option<Self>, ManifestError> {
        let file = match directory.open(MANIFEST, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|source| ManifestError::Io { operation: "open", source })?,
        };
        let len = file.len().map_err(|source| ManifestError::Io { operation: "measure", source })?;
        if len > MAX_BYTES {
            return Err(ManifestError::Damaged("it is too long"));
        }
        let mut bytes = vec![0u8; len as usize];
        let read = read_all(&file, 0, &[VolatileSlice::from(bytes.as_mut_slice())]);
        read.map_err(|source| ManifestError::Bytes { operation: "read", source })?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(ManifestError::Form)?;
        manifest.check()?;
        Ok(Some(manifest))
    }

    /// Writes it beside the one that counts, durably.
    ///
    /// # Errors
    /// A [`ManifestError`]; the one that counts is untouched.
    pub fn stage<D: Directory>(&self, directory: &D) -> Result<(), ManifestError> {
        let failed = |operation| move |source| ManifestError::Io { operation, source };
        let mut bytes = self.bytes(self.crc());
        directory.remove(STAGED).map_err(failed("make room for"))?;
        let file = directory.create(STAGED).map_err(failed("make"))?;
        let written = write_all(&file, 0, &[VolatileSlice::from(bytes.as_mut_slice())]);
        written.map_err(|source| ManifestError::Bytes { operation: "write", source })?;
        file.sync().map_err(failed("sync"))?;
        // The names that it names, too: only then it may count.
        directory.sync().map_err(failed("sync the names of"))
    }

    /// Makes the staged one count, durably.
    ///
    /// # Errors
    /// A [`ManifestError`]; either may count then.
    pub fn publish<D: Directory>(directory: &D) -> Result<(), ManifestError> {
        let failed = |operation| move |source| ManifestError::Io { operation, source };
        directory.rename(STAGED, MANIFEST).map_err(failed("replace"))?;
        directory.sync().map_err(failed("sync the replacement of"))
    }

    /// All layers' names, the top's last.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.layers.iter().chain(&self.top)
    }

    /// Whether a name in the folder is of the form of a layer's file that this does not name.
    #[must_use]
    pub fn is_leftover(&self, file: &str) -> bool {
        layer_of(file).is_some_and(|layer| !self.names().any(|name| name == layer))
    }

    fn check(&self) -> Result<(), ManifestError> {
        if self.version != VERSION {
            return Err(ManifestError::Damaged("it is of another version"));
        }
        if self.crc32 != self.crc() {
            return Err(ManifestError::Damaged("its checksum is wrong"));
        }
        if self.layers.len() > MAX_LAYERS {
            return Err(ManifestError::Damaged("it names too many layers"));
        }
        if !self.names().all(|name| is_layer(name)) {
            return Err(ManifestError::Damaged("it names a file that is no layer"));
        }
        let mut names: Vec<_> = self.names().collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(ManifestError::Damaged("it names a layer twice"));
        }
        Ok(())
    }

    fn crc(&self) -> u32 {
        crc32fast::hash(&self.bytes(0))
    }

    fn bytes(&self, crc32: u32) -> Vec<u8> {
        let manifest = Self { crc32, ..self.clone() };
        serde_json::to_vec_pretty(&manifest).expect("numbers and texts are JSON")
    }
}

/// A new layer's name.
///
/// # Errors
/// Of getrandom(2).
pub fn fresh_name() -> io::Result<String> {
    let mut random = [0u8; DIGITS / 2];
    // So few bytes are never given in part.
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    Ok(format!("{PREFIX}{:0DIGITS$x}", u128::from_le_bytes(random)))
}

/// Name of the map of a layer.
#[must_use]
pub fn map_of(layer: &str) -> String {
    format!("{layer}{MAP_SUFFIX}")
}

/// The layer to which a file belongs by its name.
#[must_use]
pub fn layer_of(file: &str) -> Option<&str> {
    Some(file.strip_suffix(MAP_SUFFIX).unwrap_or(file)).filter(|name| is_layer(name))
}

fn is_layer(name: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    name.strip_prefix(PREFIX).is_some_and(|digits| digits.len() == DIGITS && digits.bytes().all(hex))
}
