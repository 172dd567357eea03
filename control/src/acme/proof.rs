//! What the authority gave, looked at before it is trusted: the certificate must be for the name and for our key.

use instant_acme::Problem;
use model::host::MappedName;
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;

/// Longest text of an authority's that is kept.
const MAX_WORDS: usize = 1024;

/// Why a certificate cannot serve.
#[derive(Debug, Error)]
pub enum ProofError {
    /// There is none in what the authority gave.
    #[error("the authority gave something that is no certificate: {0}")]
    Unreadable(String),
    /// It is for other names.
    #[error("the authority certified {0:?}")]
    OtherName(Vec<String>),
    /// It is for another key.
    #[error("the authority certified another key than ours")]
    OtherKey,
    /// Our own key cannot be read.
    #[error("the order's own key cannot be read: {0}")]
    Key(#[from] rcgen::Error),
}

/// Checks a chain against the name and the key; gives the certificate's time, in milliseconds since the Unix epoch.
///
/// # Errors
/// See [`ProofError`].
pub fn check(name: &MappedName, chain_pem: &str, key_pem: &str) -> Result<(i64, i64), ProofError> {
    let unreadable = |error: &dyn std::fmt::Display| ProofError::Unreadable(error.to_string());
    let first = Pem::iter_from_buffer(chain_pem.as_bytes())
        .next()
        .ok_or_else(|| ProofError::Unreadable("it is empty".to_owned()))?
        .map_err(|error| unreadable(&error))?;
    let certificate = first.parse_x509().map_err(|error| unreadable(&error))?;
    let names: Vec<String> = certificate
        .subject_alternative_name()
        .map_err(|error| unreadable(&error))?
        .iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| {
            if let GeneralName::DNSName(name) = name { Some(name.to_ascii_lowercase()) } else { None }
        })
        .collect();
    if !names.contains(&name.to_string()) {
        return Err(ProofError::OtherName(names));
    }
    if KeyPair::from_pem(key_pem)?.subject_public_key_info() != certificate.public_key().raw {
        return Err(ProofError::OtherKey);
    }
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp() * 1000, validity.not_after.timestamp() * 1000))
}

/// The first certificate of a chain.
#[must_use]
pub fn leaf(chain_pem: &str) -> Option<CertificateDer<'static>> {
    let first = Pem::iter_from_buffer(chain_pem.as_bytes()).next()?.ok()?;
    Some(CertificateDer::from(first.contents))
}

/// What an authority said, in one line of bounded length.
#[must_use]
pub fn words(problem: &Problem) -> String {
    let kind =
        problem.r#type.as_deref().unwrap_or("no type").trim_start_matches("urn:ietf:params:acme:error:");
    let text = format!("{} ({kind})", problem.detail.as_deref().unwrap_or("no detail"));
    bounded(&text)
}

/// A text without line ends, of [`MAX_WORDS`] characters at most.
#[must_use]
pub fn bounded(text: &str) -> String {
    text.chars().map(|one| if one.is_control() { ' ' } else { one }).take(MAX_WORDS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_must_be_for_the_name_and_the_key() {
        let made = rcgen::generate_simple_self_signed(["*.example.com".to_owned()]).expect("made");
        let other = KeyPair::generate().expect("key").serialize_pem();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let name = |text: &str| text.parse::<MappedName>().expect("name");
        let (begin, end) = check(&name("*.example.com"), &chain, &key).expect("good");
        assert!(begin < end);
        assert!(matches!(check(&name("a.example.com"), &chain, &key), Err(ProofError::OtherName(_))));
        assert!(matches!(check(&name("*.example.com"), &chain, &other), Err(ProofError::OtherKey)));
        assert!(matches!(check(&name("*.example.com"), "", &key), Err(ProofError::Unreadable(_))));
        assert!(matches!(check(&name("*.example.com"), "noise", &key), Err(ProofError::Unreadable(_))));
        assert!(leaf(&chain).is_some() && leaf("noise").is_none());
    }

    #[test]
    fn an_authority_cannot_write_lines_of_its_own() {
        assert_eq!(bounded("a\nb\u{7}c"), "a b c");
        assert_eq!(bounded(&"x".repeat(5000)).len(), MAX_WORDS);
    }
}
