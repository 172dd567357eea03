//! Certificates by name: exact first, then a wildcard of one label (RFC 6125 section 6.4.3).

use feed::blobs::{BlobError, Blobs};
use model::host::HostName;
use model::names::part_of;
use model::view::CertificateEntry;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use thiserror::Error;

/// Most new certificates that are read when a view is taken over, so that a bad one is told at once and the first client
/// need not wait. Of more, which come with a start, each is read when it is first asked for.
const READ_AHEAD: usize = 256;

/// Why a certificate cannot be used. Its names are then without one; the others go on.
#[derive(Debug, Error)]
pub enum CertificateError {
    /// Its file is of no use.
    #[error(transparent)]
    File(#[from] BlobError),
    /// The chain is not PEM.
    #[error("the chain cannot be read")]
    Chain(#[source] pem::Error),
    /// The key is not PEM.
    #[error("the key cannot be read")]
    Key(#[source] pem::Error),
    /// There is no certificate in the chain, the key is of an unknown kind, or the two do not belong together.
    #[error("chain and key cannot be used together")]
    Pair(#[source] rustls::Error),
}

/// A certificate.
#[derive(Debug)]
pub struct Certificate {
    source: CertificateEntry,
    exact: Vec<HostName>,
    wildcard_of: Vec<HostName>,
    blobs: Blobs,
    key: OnceLock<Arc<CertifiedKey>>,
}

impl Certificate {
    fn new(source: &CertificateEntry, blobs: &Blobs) -> Self {
        let (wild, exact): (Vec<_>, Vec<_>) = source.names.iter().partition(|name| name.starts_with("*."));
        let parse = |name: &str| name.parse::<HostName>().ok();
        Self {
            source: source.clone(),
            exact: exact.into_iter().filter_map(|name| parse(name)).collect(),
            wildcard_of: wild.into_iter().filter_map(|name| parse(&name[2..])).collect(),
            blobs: blobs.clone(),
            key: OnceLock::new(),
        }
    }

    /// What rustls shows to clients. Blocks on the disk the first time, for a file of some kilobytes.
    ///
    /// # Errors
    /// See [`CertificateError`]. The next call tries again.
    pub fn key(&self) -> Result<Arc<CertifiedKey>, CertificateError> {
        if let Some(key) = self.key.get() {
            return Ok(Arc::clone(key));
        }
        let key = Arc::new(read(&self.blobs.read(self.source.file)?)?);
        Ok(Arc::clone(self.key.get_or_init(|| key)))
    }

    /// What it is for, as in the certificate.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.source.names
    }

    /// Whether a client that checked this certificate may ask for `name` over the same connection.
    #[must_use]
    pub fn covers(&self, name: &HostName) -> bool {
        self.exact.contains(name) || self.wildcard_of.iter().any(|parent| name.is_direct_child_of(parent))
    }
}

fn read(file: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(file).collect::<Result<_, _>>().map_err(CertificateError::Chain)?;
    let key = PrivateKeyDer::from_pem_slice(file).map_err(CertificateError::Key)?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider()).map_err(CertificateError::Pair)
}

/// Certificates of one list. Of two for a name the later one counts.
#[derive(Debug, Default)]
pub struct Layer {
    exact: HashMap<HostName, Arc<Certificate>>,
    wildcard: HashMap<HostName, Arc<Certificate>>,
    all: Vec<Arc<Certificate>>,
}

/// How many more certificates are read ahead, and what could not be read.
#[derive(Debug)]
pub struct Reading {
    ahead: usize,
    /// Why some are left out.
    pub faults: Vec<CertificateError>,
}

impl Default for Reading {
    fn default() -> Self {
        Self { ahead: READ_AHEAD, faults: Vec::new() }
    }
}

impl Layer {
    /// The certificates of a list, whose files are among `blobs`. Those that one of `earlier` has are taken from it, since
    /// reading costs and routes change more often.
    #[must_use]
    pub fn of<'a>(
        entries: impl IntoIterator<Item = &'a CertificateEntry>,
        blobs: &Blobs,
        earlier: &[&Layer],
        reading: &mut Reading,
    ) -> Self {
        let known: HashMap<_, &Arc<Certificate>> =
            earlier.iter().flat_map(|layer| &layer.all).map(|one| (one.source.file, one)).collect();
        let mut made = Self::default();
        for entry in entries {
            let kept = known.get(&entry.file).filter(|known| known.source == *entry);
            let certificate =
                kept.map_or_else(|| Arc::new(Certificate::new(entry, blobs)), |one| Arc::clone(one));
            if kept.is_none() && reading.ahead > 0 {
                reading.ahead -= 1;
                if let Err(fault) = certificate.key() {
                    reading.faults.push(fault);
                    continue;
                }
            }
            made.add(certificate);
        }
        made
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    fn add(&mut self, certificate: Arc<Certificate>) {
        for name in &certificate.exact {
            self.exact.insert(name.clone(), Arc::clone(&certificate));
        }
        for parent in &certificate.wildcard_of {
            self.wildcard.insert(parent.clone(), Arc::clone(&certificate));
        }
        self.all.push(certificate);
    }
}

/// All certificates of a view: its own, with those of its parts between them.
#[derive(Debug, Default)]
pub struct Certificates {
    /// They count less than those of the parts.
    pub before: Layer,
    /// By part: none, or [`model::names::PARTS`].
    pub parts: Vec<Arc<Layer>>,
    /// They count more.
    pub after: Layer,
}

impl Certificates {
    /// The certificate for a name.
    #[must_use]
    pub fn find(&self, name: &HostName) -> Option<&Arc<Certificate>> {
        self.latest(name, |layer| &layer.exact).or_else(|| {
            let (_, parent) = name.as_str().split_once('.')?;
            self.latest(&parent.parse().ok()?, |layer| &layer.wildcard)
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.before.len() + self.parts.iter().map(|part| part.len()).sum::<usize>() + self.after.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn latest(
        &self,
        name: &HostName,
        among: impl Fn(&Layer) -> &HashMap<HostName, Arc<Certificate>>,
    ) -> Option<&Arc<Certificate>> {
        let in_part = || among(self.parts.get(part_of(name))?).get(name);
        among(&self.after).get(name).or_else(in_part).or_else(|| among(&self.before).get(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blobs() -> (tempfile::TempDir, Blobs) {
        let folder = tempfile::tempdir().expect("folder");
        let blobs = Blobs::make(folder.path().join("certificates"), None).expect("blobs");
        (folder, blobs)
    }

    fn made(names: &[&str]) -> (Vec<String>, String, String) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).expect("certificate");
        (names, made.signing_key.serialize_pem(), made.cert.pem())
    }

    fn entry(blobs: &Blobs, names: &[&str]) -> CertificateEntry {
        let (names, key, chain) = made(names);
        CertificateEntry { names, file: blobs.put((key + &chain).as_bytes(), None).expect("put") }
    }

    /// Of a view without parts.
    fn of(entries: &[&CertificateEntry], blobs: &Blobs, earlier: &Certificates) -> (Certificates, usize) {
        let mut reading = Reading::default();
        let after = Layer::of(entries.iter().copied(), blobs, &[&earlier.after], &mut reading);
        (Certificates { after, ..Certificates::default() }, reading.faults.len())
    }

    fn name(text: &str) -> HostName {
        text.parse().expect("name")
    }

    #[test]
    fn exact_before_wildcard_and_one_label_only() {
        let (_folder, blobs) = blobs();
        let (wild, one) =
            (entry(&blobs, &["*.style.dev"]), entry(&blobs, &["a.style.dev", "www.example.org"]));
        let (certificates, faults) = of(&[&wild, &one], &blobs, &Certificates::default());
        assert_eq!(faults, 0);
        let found = |text: &str| certificates.find(&name(text)).map(|one| one.source.names[0].clone());
        assert_eq!(found("a.style.dev").as_deref(), Some("a.style.dev"));
        assert_eq!(found("B.style.dev").as_deref(), Some("*.style.dev"));
        assert_eq!(found("c.b.style.dev"), None);
        assert_eq!(found("style.dev"), None);
        let wild = certificates.find(&name("b.style.dev")).expect("found");
        assert!(wild.covers(&name("c.style.dev")) && !wild.covers(&name("www.example.org")));
    }

    #[test]
    fn a_bad_one_is_left_out_alone_and_known_ones_are_not_read_again() {
        let (_folder, blobs) = blobs();
        let good = entry(&blobs, &["a.dev"]);
        let put = |text: String| blobs.put(text.as_bytes(), None).expect("put");
        let bad = CertificateEntry { names: vec!["b.dev".to_owned()], file: put("nothing".to_owned()) };
        let (names, _, chain) = made(&["c.dev"]);
        let mixed = CertificateEntry { names, file: put(made(&["a.dev"]).1 + &chain) };
        let (first, faults) = of(&[&good, &bad, &mixed], &blobs, &Certificates::default());
        assert_eq!((first.len(), faults), (1, 2));
        let (second, _) = of(&[&good], &blobs, &first);
        assert!(Arc::ptr_eq(&first.after.all[0], &second.after.all[0]));
        let renewed = entry(&blobs, &["a.dev"]);
        let (third, _) = of(&[&renewed], &blobs, &second);
        assert!(!Arc::ptr_eq(&second.after.all[0], &third.after.all[0]));
    }

    #[test]
    fn of_many_those_asked_for_are_read_and_a_missing_file_is_told_until_it_is_there() {
        let (_folder, blobs) = blobs();
        let (names, key, chain) = made(&["late.dev"]);
        let file = key + &chain;
        let late = CertificateEntry { names, file: blobs.put(file.as_bytes(), None).expect("put") };
        blobs.remove(late.file).expect("removed");
        let good = entry(&blobs, &["a.dev"]);
        let many: Vec<_> = std::iter::repeat_n(&good, READ_AHEAD).chain([&late]).collect();
        let (certificates, faults) = of(&many, &blobs, &Certificates::default());
        assert_eq!(faults, 0, "nobody asked for it yet");
        let late = certificates.find(&name("late.dev")).expect("listed");
        assert!(matches!(late.key(), Err(CertificateError::File(_))));
        blobs.put(file.as_bytes(), None).expect("put");
        let key = late.key().expect("read");
        assert!(Arc::ptr_eq(&key, &late.key().expect("kept")));
    }
}
