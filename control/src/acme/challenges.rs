//! What the authority asked to see, while it asks. It is not written down: an order that is taken up again shows it
//! again.

use model::config::ChallengeKind;
use model::host::HostName;
use model::view::ChallengeEntry;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// Why a challenge cannot be shown.
#[derive(Debug, Error)]
pub enum ShowError {
    /// No certificate can be made for `acme-tls/1`.
    #[error("the certificate that the authority asks to see cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The digest has another length than SHA-256's.
    #[error("the authority asks for a digest of {0} bytes, and it has 32")]
    Digest(usize),
}

/// The table of what is asked for now. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Challenges(Arc<Mutex<BTreeMap<u64, ChallengeEntry>>>);

/// Keeps a challenge in the table; it goes with this value.
#[derive(Debug)]
pub struct Shown {
    table: Challenges,
    place: u64,
}

/// What stands behind a challenge (RFC 8555 section 8.1).
#[derive(Clone, Debug)]
pub struct Proof {
    /// The name that is proved.
    pub name: HostName,
    /// Of the challenge.
    pub token: String,
    /// The key authorization.
    pub authorization: String,
    /// Its SHA-256.
    pub digest: Vec<u8>,
    /// The same as it stands in a TXT record.
    pub text: String,
}

impl Challenges {
    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<ChallengeEntry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Puts one in. It reaches the doors with the next decision.
    ///
    /// # Errors
    /// See [`ShowError`].
    pub fn show(&self, kind: ChallengeKind, proof: Proof) -> Result<Shown, ShowError> {
        let Proof { name, token, authorization, digest, text } = proof;
        let entry = match kind {
            ChallengeKind::TlsAlpn => certificate(name, &digest)?,
            ChallengeKind::Http => ChallengeEntry::Http { name, token, answer: authorization },
            ChallengeKind::Dns => ChallengeEntry::Dns { name, answer: text },
        };
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = table.last_key_value().map_or(0, |(last, _)| last + 1);
        table.insert(place, entry);
        Ok(Shown { table: self.clone(), place })
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.table.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.place);
    }
}

/// The certificate of RFC 8737 section 3: for the name alone, with the digest in an extension.
fn certificate(name: HostName, digest: &[u8]) -> Result<ChallengeEntry, ShowError> {
    if digest.len() != 32 {
        return Err(ShowError::Digest(digest.len()));
    }
    let mut params = CertificateParams::new(vec![name.as_str().to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(ChallengeEntry::TlsAlpn { name, chain_pem: certificate.pem(), key_pem: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proof() -> Proof {
        Proof {
            name: "a.example.com".parse().expect("name"),
            token: "token".to_owned(),
            authorization: "token.thumb".to_owned(),
            digest: vec![7; 32],
            text: "BwcH".to_owned(),
        }
    }

    #[test]
    fn what_is_shown_goes_with_its_value() {
        let table = Challenges::default();
        let kinds = [ChallengeKind::TlsAlpn, ChallengeKind::Http, ChallengeKind::Dns];
        let mut shown: Vec<_> = kinds.map(|kind| table.show(kind, proof()).expect("shown")).into();
        assert_eq!(table.all().len(), 3);
        shown.remove(0);
        let again = table.show(ChallengeKind::Http, proof()).expect("shown");
        assert_eq!(table.all().len(), 3);
        drop((shown, again));
        assert!(table.all().is_empty());
        let short = Proof { digest: vec![1; 31], ..proof() };
        assert!(matches!(table.show(ChallengeKind::TlsAlpn, short), Err(ShowError::Digest(31))));
    }

    #[test]
    fn the_certificate_has_the_name_and_a_critical_extension() {
        let ChallengeEntry::TlsAlpn { chain_pem, .. } =
            certificate("a.example.com".parse().expect("name"), &[7; 32]).expect("made")
        else {
            panic!("of that kind")
        };
        let pem =
            x509_parser::pem::Pem::iter_from_buffer(chain_pem.as_bytes()).next().expect("one").expect("pem");
        let certificate = pem.parse_x509().expect("certificate");
        let extension = certificate
            .extensions()
            .iter()
            .find(|extension| extension.oid.to_id_string() == "1.3.6.1.5.5.7.1.31")
            .expect("the extension of RFC 8737");
        assert!(extension.critical);
        assert_eq!(extension.value, [&[4, 32][..], &[7; 32]].concat());
    }
}
