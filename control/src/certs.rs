//! The certificates that edge-proxy serves: pairs `<name>.chain.pem` and `<name>.key.pem` in one folder, read again
//! when the folder changes.

use crate::pure::certificate::Supplied;
use crate::store::now_ms;
use feed::sys::register;
use model::view::CertificateEntry;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

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

/// All certificates in the order in which a later one wins: the house's own and those that are over, then the
/// authority's, then those that the operator put into the folder.
#[must_use]
pub fn all(folder: &Path, issued: Vec<CertificateEntry>) -> Vec<CertificateEntry> {
    let now = now_ms();
    let (good, poor): (Vec<_>, Vec<_>) =
        load(folder).into_iter().partition(|pair| pair.stem != OWN_STEM && pair.not_after_ms > now);
    let entries = |pairs: Vec<Pair>| pairs.into_iter().map(|pair| pair.entry);
    entries(poor).chain(issued).chain(entries(good)).collect()
}

/// What the operator put into the folder. Blocks on the disk.
#[must_use]
pub fn supplied(folder: &Path) -> Vec<Supplied> {
    let pairs = load(folder).into_iter().filter(|pair| pair.stem != OWN_STEM);
    pairs.map(|pair| Supplied { names: pair.entry.names, not_after_ms: pair.not_after_ms }).collect()
}

/// The names in all certificates of the folder, also the house's own. Blocks on the disk.
#[must_use]
pub fn names(folder: &Path) -> Vec<String> {
    load(folder).into_iter().flat_map(|pair| pair.entry.names).collect()
}

/// A pair of the folder.
#[derive(Debug)]
struct Pair {
    stem: String,
    entry: CertificateEntry,
    not_after_ms: i64,
}

/// Reads all pairs of the folder, sorted by name. A bad one is logged and left out; the others serve.
fn load(folder: &Path) -> Vec<Pair> {
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
    stems.iter().filter_map(|stem| one(folder, stem)).collect()
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
    let key_pem = text(&folder.join(format!("{stem}{KEY_SUFFIX}")))?;
    let (names, not_after_ms) = leaf(&chain_pem)?;
    let entry = CertificateEntry { names, chain_pem, key_pem };
    Ok(Pair { stem: stem.to_owned(), entry, not_after_ms })
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
        let found = load(folder.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].entry.names, ["*.style.dev", "style.dev"]);
        assert!(found[0].entry.key_pem.contains("PRIVATE KEY"));
        assert!(load(&folder.path().join("missing")).is_empty());
        assert_eq!(supplied(folder.path())[0].names, ["*.style.dev", "style.dev"]);
        make(folder.path(), OWN_STEM, "DNS:own.dev");
        assert_eq!(supplied(folder.path()).len(), 1, "the house's own is nobody's wish");
        let name = |name: &str| CertificateEntry {
            names: vec![name.to_owned()],
            chain_pem: String::new(),
            key_pem: String::new(),
        };
        let order = all(folder.path(), vec![name("issued.dev")]);
        let order: Vec<_> = order.iter().map(|entry| entry.names[0].as_str()).collect();
        assert_eq!(order, ["own.dev", "issued.dev", "*.style.dev"], "a later one wins");
    }
}
