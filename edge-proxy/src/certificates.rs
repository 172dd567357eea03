//! Certificates by name: exact first, then a wildcard of one label (RFC 6125 section 6.4.3).

use model::host::HostName;
use model::view::CertificateEntry;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;
use thiserror::Error;

/// Why a certificate cannot be used. Its names are then without one; the others go on.
#[derive(Debug, Error)]
pub enum CertificateError {
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

/// A certificate that is ready to be shown.
#[derive(Debug)]
pub struct Certificate {
    source: CertificateEntry,
    exact: Vec<HostName>,
    wildcard_of: Vec<HostName>,
    key: Arc<CertifiedKey>,
}

impl Certificate {
    fn read(source: &CertificateEntry) -> Result<Self, CertificateError> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(source.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(CertificateError::Chain)?;
        let key = PrivateKeyDer::from_pem_slice(source.key_pem.as_bytes()).map_err(CertificateError::Key)?;
        let key = CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
            .map_err(CertificateError::Pair)?;
        let (wild, exact): (Vec<_>, Vec<_>) = source.names.iter().partition(|name| name.starts_with("*."));
        let parse = |name: &str| name.parse::<HostName>().ok();
        Ok(Self {
            source: source.clone(),
            exact: exact.into_iter().filter_map(|name| parse(name)).collect(),
            wildcard_of: wild.into_iter().filter_map(|name| parse(&name[2..])).collect(),
            key: Arc::new(key),
        })
    }

    /// What rustls shows to clients.
    #[must_use]
    pub fn key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.key)
    }

    /// Whether a client that checked this certificate may ask for `name` over the same connection.
    #[must_use]
    pub fn covers(&self, name: &HostName) -> bool {
        self.exact.contains(name) || self.wildcard_of.iter().any(|parent| name.is_direct_child_of(parent))
    }
}

/// All certificates of a view.
#[derive(Debug, Default)]
pub struct Certificates {
    exact: HashMap<HostName, Arc<Certificate>>,
    wildcard: HashMap<HostName, Arc<Certificate>>,
    all: Vec<Arc<Certificate>>,
}

impl Certificates {
    /// Reads the certificates of a view. Those that `earlier` has are taken from it, since reading costs and routes
    /// change more often. Also gives what could not be read.
    #[must_use]
    pub fn of<'a>(
        entries: impl IntoIterator<Item = &'a CertificateEntry>,
        earlier: &Certificates,
    ) -> (Self, Vec<CertificateError>) {
        let known: HashMap<&str, &Arc<Certificate>> =
            earlier.all.iter().map(|one| (one.source.chain_pem.as_str(), one)).collect();
        let mut made = Self::default();
        let mut faults = Vec::new();
        for entry in entries {
            let kept = known.get(entry.chain_pem.as_str()).filter(|known| known.source == *entry);
            match kept.map_or_else(|| Certificate::read(entry).map(Arc::new), |known| Ok(Arc::clone(known))) {
                Ok(certificate) => made.add(certificate),
                Err(fault) => faults.push(fault),
            }
        }
        (made, faults)
    }

    /// The certificate for a name.
    #[must_use]
    pub fn find(&self, name: &HostName) -> Option<&Arc<Certificate>> {
        self.exact.get(name).or_else(|| {
            let (_, parent) = name.as_str().split_once('.')?;
            self.wildcard.get(&parent.parse::<HostName>().ok()?)
        })
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

    /// The later of two for the same name wins: control lists the newest last.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(names: &[&str]) -> CertificateEntry {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names.clone()).expect("certificate");
        CertificateEntry { names, chain_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }

    fn name(text: &str) -> HostName {
        text.parse().expect("name")
    }

    #[test]
    fn exact_before_wildcard_and_one_label_only() {
        let (wild, one) = (entry(&["*.style.dev"]), entry(&["a.style.dev", "www.example.org"]));
        let (certificates, faults) = Certificates::of([&wild, &one], &Certificates::default());
        assert!(faults.is_empty());
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
        let (good, mut bad, mut mixed) = (entry(&["a.dev"]), entry(&["b.dev"]), entry(&["c.dev"]));
        bad.chain_pem = "nothing".into();
        mixed.key_pem.clone_from(&good.key_pem);
        let (first, faults) = Certificates::of([&good, &bad, &mixed], &Certificates::default());
        assert_eq!((first.len(), faults.len()), (1, 2));
        let (second, _) = Certificates::of([&good], &first);
        assert!(Arc::ptr_eq(&first.all[0], &second.all[0]));
        let renewed = entry(&["a.dev"]);
        let (third, _) = Certificates::of([&renewed], &second);
        assert!(!Arc::ptr_eq(&second.all[0], &third.all[0]));
    }
}
