//! What certificate authorities ask to see of a name before they certify it (RFC 8555 section 8). The doors show what
//! control published, and make nothing of their own.

use crate::certificates::CertificateError;
use model::host::HostName;
use model::view::ChallengeEntry;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use std::collections::HashMap;
use std::sync::Arc;

/// The protocol of an authority's TLS client (RFC 8737 section 6.2).
pub const ACME_TLS: &[u8] = b"acme-tls/1";

/// All challenges of a view, by name.
#[derive(Debug, Default)]
pub struct Challenges {
    tls: HashMap<HostName, Arc<ServerConfig>>,
    http: HashMap<HostName, HashMap<String, String>>,
    dns: HashMap<HostName, Vec<String>>,
}

impl Challenges {
    /// Makes them ready. Also gives what could not be read: those names are not proved, and the others are.
    #[must_use]
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a ChallengeEntry>) -> (Self, Vec<CertificateError>) {
        let (mut made, mut faults) = (Self::default(), Vec::new());
        for entry in entries {
            match entry {
                ChallengeEntry::TlsAlpn { name, chain_pem, key_pem } => match tls(chain_pem, key_pem) {
                    Ok(config) => drop(made.tls.insert(name.clone(), Arc::new(config))),
                    Err(fault) => faults.push(fault),
                },
                ChallengeEntry::Http { name, token, answer } => {
                    made.http.entry(name.clone()).or_default().insert(token.clone(), answer.clone());
                }
                ChallengeEntry::Dns { name, answer } => {
                    made.dns.entry(name.clone()).or_default().push(answer.clone());
                }
            }
        }
        (made, faults)
    }

    /// How to shake hands with an authority that asks for this name.
    #[must_use]
    pub fn tls(&self, name: &HostName) -> Option<Arc<ServerConfig>> {
        self.tls.get(name).cloned()
    }

    /// What stands in the file of this name and token.
    #[must_use]
    pub fn http(&self, name: &HostName, token: &str) -> Option<&str> {
        self.http.get(name)?.get(token).map(String::as_str)
    }

    /// The TXT records at `_acme-challenge.` of this name.
    #[must_use]
    pub fn dns(&self, name: &HostName) -> &[String] {
        self.dns.get(name).map_or(&[], Vec::as_slice)
    }
}

/// Whether the client is an authority's: it speaks that protocol and no other.
#[must_use]
pub fn is_authority(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| offered.next() == Some(ACME_TLS) && offered.next().is_none())
}

/// A configuration that shows one certificate to an authority. rustls' own check of certificates refuses it, since an
/// extension of it that must be understood is not (RFC 8737 section 3); so the pair is taken as it is.
fn tls(chain_pem: &str, key_pem: &str) -> Result<ServerConfig, CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(CertificateError::Chain)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(CertificateError::Key)?;
    let key = aws_lc_rs::sign::any_supported_type(&key).map_err(CertificateError::Pair)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(CertificateError::Pair)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Shown(Arc::new(CertifiedKey::new(chain, key)))));
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    // Nobody comes back to such a session.
    config.send_tls13_tickets = 0;
    Ok(config)
}

#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_found_by_name_and_a_bad_one_is_left_out_alone() {
        let name = |text: &str| text.parse::<HostName>().expect("name");
        let made = rcgen::generate_simple_self_signed(["a.dev".to_owned()]).expect("certificate");
        let shown = |host: &str, key_pem: String| ChallengeEntry::TlsAlpn {
            name: name(host),
            chain_pem: made.cert.pem(),
            key_pem,
        };
        let file = |host: &str, token: &str| ChallengeEntry::Http {
            name: name(host),
            token: token.to_owned(),
            answer: format!("{token} of {host}"),
        };
        let text = |answer: &str| ChallengeEntry::Dns { name: name("w.dev"), answer: answer.to_owned() };
        let entries = [
            shown("a.dev", made.signing_key.serialize_pem()),
            shown("b.dev", "nothing".to_owned()),
            file("h.dev", "one"),
            file("h.dev", "two"),
            text("first"),
            text("second"),
        ];
        let (challenges, faults) = Challenges::of(&entries);
        assert_eq!(faults.len(), 1);
        assert!(challenges.tls(&name("A.dev")).is_some() && challenges.tls(&name("b.dev")).is_none());
        assert_eq!(challenges.http(&name("h.dev"), "two"), Some("two of h.dev"));
        assert_eq!(challenges.http(&name("h.dev"), "three"), None);
        assert_eq!(challenges.http(&name("a.dev"), "one"), None);
        assert_eq!(challenges.dns(&name("w.dev")), ["first", "second"]);
        assert!(challenges.dns(&name("h.dev")).is_empty());
    }
}
