//! The certificates that edge-proxy serves. The house's own and those that the operator supplies are pairs
//! `<name>.chain.pem` and `<name>.key.pem` in one folder, read again when the folder changes; those of the authority are
//! in the store. All are published as files of their own, which a view names.

pub mod issued;
mod published;

pub use published::Published;

use crate::pure::certificate::Supplied;
use feed::sys::register;
use model::digest::Digest;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

/// Largest file: a chain of a few certificates.
const MAX_PEM_BYTES: u64 = 256 << 10;
/// Pairs in the folder; what edge-proxy's view can hold.
const MAX_PAIRS: usize = 10_000;
const CHAIN_SUFFIX: &str = ".chain.pem";
const KEY_SUFFIX: &str = ".key.pem";
/// The pair that the house makes for itself, of which clients must be told. All others come from somebody else.
const OWN_STEM: &str = "preview";

/// Why a pair is left out.
#[derive(Debug, Error)]
pub enum CertError {
    /// A file cannot be read.
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    /// A file is over [`MAX_PEM_BYTES`].
    #[error("it is larger than {MAX_PEM_BYTES} bytes")]
    TooLarge,
    /// It is not PEM.
    #[error("it is no PEM file: {0}")]
    Pem(String),
    /// It is not a certificate.
    #[error("its first block is no certificate: {0}")]
    Certificate(String),
    /// No DNS name stands in it.
    #[error("it has no subjectAltName with a DNS name")]
    NoNames,
}

/// Tells when the folder changes.
#[derive(Debug)]
pub struct Watch {
    descriptor: AsyncFd<rustix::fd::OwnedFd>,
}

impl Watch {
    /// Watches a folder, which must be there. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the kernel will not watch it.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes =
            WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MOVED_FROM | WatchFlags::DELETE;
        inotify::add_watch(&descriptor, folder, changes)?;
        Ok(Self { descriptor: register(descriptor)? })
    }

    /// Waits for a change. Several at once are told as one.
    ///
    /// # Errors
    /// When the kernel's queue cannot be read.
    pub async fn changed(&self) -> io::Result<()> {
        self.descriptor
            .async_io(Interest::READABLE, |descriptor| {
                let mut space = [MaybeUninit::<u8>::uninit(); 16 << 10];
                Ok(rustix::io::read(descriptor, &mut space).map(|_| ())?)
            })
            .await
    }
}

/// A pair of the folder.
#[derive(Debug)]
pub struct Pair {
    /// What its files are called.
    stem: String,
    /// The names in it, lower case.
    pub names: Vec<String>,
    /// When it ends, since the Unix epoch.
    not_after_ms: i64,
    /// What edge-proxy is given.
    pub file: Zeroizing<Vec<u8>>,
    /// Names that.
    pub digest: Digest,
}

impl Pair {
    /// Whether it goes before what the authority gave: the operator wants it, and it is not over.
    #[must_use]
    pub fn is_preferred(&self, now_ms: i64) -> bool {
        self.stem != OWN_STEM && self.not_after_ms > now_ms
    }
}

/// The folder. What was read of it is kept while its files stay the same. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Folder {
    path: Arc<Path>,
    known: Arc<Mutex<BTreeMap<String, Known>>>,
}

/// What is known of a pair: none of a bad one, which was told of.
type Known = (Stamps, Option<Arc<Pair>>);
/// Of both files: inode, size, and the times of the last changes of content and of all else.
type Stamps = [(u64, u64, i64, i64, i64, i64); 2];

impl Folder {
    /// Nothing is read yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.into(), known: Arc::default() }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All pairs, sorted by name. A bad one is logged and left out; the others serve. Blocks on the disk.
    #[must_use]
    pub fn pairs(&self) -> Vec<Arc<Pair>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut *known);
        for stem in stems(&self.path) {
            let Some(stamps) = stamps(&self.path, &stem) else { continue };
            let kept = before.remove(&stem).filter(|(kept, _)| *kept == stamps);
            let found = kept.unwrap_or_else(|| (stamps, one(&self.path, &stem).map(Arc::new)));
            known.insert(stem, found);
        }
        known.values().filter_map(|(_, pair)| pair.clone()).collect()
    }

    /// What the operator put there. Blocks on the disk.
    #[must_use]
    pub fn supplied(&self) -> Vec<Supplied> {
        let pairs = self.pairs().into_iter().filter(|pair| pair.stem != OWN_STEM);
        pairs.map(|pair| Supplied { names: pair.names.clone(), not_after_ms: pair.not_after_ms }).collect()
    }
}

/// What edge-proxy is given of a certificate, see [`model::view::CertificateEntry`].
#[must_use]
pub fn file(key_pem: &[u8], chain_pem: &str) -> Zeroizing<Vec<u8>> {
    let mut file = Zeroizing::new(Vec::with_capacity(key_pem.len() + chain_pem.len() + 1));
    file.extend_from_slice(key_pem);
    if !key_pem.ends_with(b"\n") {
        file.push(b'\n');
    }
    file.extend_from_slice(chain_pem.as_bytes());
    file
}

fn stems(folder: &Path) -> Vec<String> {
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) => {
            warn!(folder = %folder.display(), %error, "no certificates: their folder cannot be read");
            return Vec::new();
        }
    };
    let mut stems: Vec<String> = listing
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(CHAIN_SUFFIX).map(str::to_owned))
        .collect();
    stems.sort();
    if stems.len() > MAX_PAIRS {
        warn!(pairs = stems.len(), kept = MAX_PAIRS, "too many certificates; the last ones are left out");
        stems.truncate(MAX_PAIRS);
    }
    stems
}

/// None while one of the files is not there: a pair comes file by file.
fn stamps(folder: &Path, stem: &str) -> Option<Stamps> {
    let stamp = |suffix| {
        let file = fs::metadata(folder.join(format!("{stem}{suffix}"))).ok()?;
        Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()))
    };
    Some([stamp(CHAIN_SUFFIX)?, stamp(KEY_SUFFIX)?])
}

fn one(folder: &Path, stem: &str) -> Option<Pair> {
    match pair(folder, stem) {
        Ok(entry) => Some(entry),
        Err(error) => {
            warn!(certificate = stem, %error, "certificate left out");
            None
        }
    }
}

fn pair(folder: &Path, stem: &str) -> Result<Pair, CertError> {
    let chain_pem = text(&folder.join(format!("{stem}{CHAIN_SUFFIX}")))?;
    let key_pem = Zeroizing::new(text(&folder.join(format!("{stem}{KEY_SUFFIX}")))?);
    let (names, not_after_ms) = leaf(&chain_pem)?;
    let file = file(key_pem.as_bytes(), &chain_pem);
    let digest = Digest::of(&file);
    Ok(Pair { stem: stem.to_owned(), names, not_after_ms, file, digest })
}

fn text(path: &Path) -> Result<String, CertError> {
    if fs::metadata(path)?.len() > MAX_PEM_BYTES {
        return Err(CertError::TooLarge);
    }
    Ok(fs::read_to_string(path)?)
}

/// The DNS names of the first certificate (RFC 5280 section 4.2.1.6), and when it ends.
fn leaf(chain_pem: &str) -> Result<(Vec<String>, i64), CertError> {
    let first = Pem::iter_from_buffer(chain_pem.as_bytes())
        .next()
        .ok_or_else(|| CertError::Pem("it is empty".to_owned()))?
        .map_err(|error| CertError::Pem(error.to_string()))?;
    let certificate = first.parse_x509().map_err(|error| CertError::Certificate(error.to_string()))?;
    let extension =
        certificate.subject_alternative_name().map_err(|error| CertError::Certificate(error.to_string()))?;
    let names: Vec<String> = extension
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| {
            if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }
        })
        .collect();
    let ends_ms = certificate.validity().not_after.timestamp().saturating_mul(1000);
    if names.is_empty() { Err(CertError::NoNames) } else { Ok((names, ends_ms)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::now_ms;
    use std::process::Command;

    fn make(folder: &Path, stem: &str, names: &str) {
        let status = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "1", "-subj", "/CN=test", "-addext", &format!("subjectAltName={names}")])
            .args(["-keyout", &format!("{stem}.key.pem"), "-out", &format!("{stem}.chain.pem")])
            .current_dir(folder)
            .output()
            .expect("openssl is installed");
        assert!(status.status.success(), "{status:?}");
    }

    #[tokio::test]
    async fn pairs_are_read_bad_ones_left_out_and_changes_told() {
        let folder = tempfile::tempdir().expect("folder");
        let watch = Watch::new(folder.path()).expect("watch");
        make(folder.path(), "good", "DNS:*.Style.dev,DNS:style.dev");
        watch.changed().await.expect("a change");
        fs::write(folder.path().join("noise.chain.pem"), "noise").expect("write");
        fs::write(folder.path().join("noise.key.pem"), "noise").expect("write");
        fs::write(folder.path().join("keyless.chain.pem"), "noise").expect("write");
        make(folder.path(), "nameless", "IP:10.0.0.1");
        let pairs = Folder::new(folder.path());
        let found = pairs.pairs();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].names, ["*.style.dev", "style.dev"]);
        assert!(found[0].file.starts_with(b"-----BEGIN PRIVATE KEY-----"));
        assert_eq!(found[0].digest, Digest::of(&found[0].file));
        assert!(found[0].is_preferred(now_ms()) && !found[0].is_preferred(i64::MAX));
        assert!(Folder::new(&folder.path().join("missing")).pairs().is_empty());
        assert_eq!(pairs.supplied()[0].names, ["*.style.dev", "style.dev"]);
        assert!(Arc::ptr_eq(&found[0], &pairs.pairs()[0]), "nothing is read twice");
        make(folder.path(), "good", "DNS:new.dev");
        assert_eq!(pairs.pairs()[0].names, ["new.dev"], "but what changed");
        make(folder.path(), OWN_STEM, "DNS:own.dev");
        assert_eq!(pairs.supplied().len(), 1, "the house's own is nobody's wish");
        assert!(!pairs.pairs()[1].is_preferred(now_ms()), "nor does it go before the authority's");
        fs::remove_file(folder.path().join("good.key.pem")).expect("removed");
        assert_eq!(pairs.pairs().len(), 1, "without its key it serves no more");
    }
}
