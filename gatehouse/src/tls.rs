//! The local certificate authority, and the certificate for the preview domain that it signs.
//!
//! A browser or a client must be told to trust `ca.pem`. The authority can sign for the preview domain alone (RFC
//! 5280 section 4.2.1.10), so that whoever trusts it trusts it for nothing else. Its key never leaves the folder.

use model::host::HostName;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use thiserror::Error;
use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The authority's certificate, for people to trust.
pub const CA_FILE: &str = "ca.pem";
/// The authority's key.
const CA_KEY_FILE: &str = "ca.key.pem";
/// The certificate that the doors show, and the authority's behind it.
const CHAIN_FILE: &str = "preview.chain.pem";
/// Its key.
const KEY_FILE: &str = "preview.key.pem";
/// How long the authority lives: longer than an installation, since its end would need all clients to be told.
const CA_LIFE: Duration = Duration::days(10 * 365);
/// How long a certificate lives; Apple's clients refuse more than 825 days, and a short life proves the renewal.
const LEAF_LIFE: Duration = Duration::days(90);
/// Clocks of clients may be behind ours by this much.
const CLOCK_SLACK: Duration = Duration::hours(1);

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("{path} cannot be {verb}: {source}")]
    File {
        /// Of the file.
        path: PathBuf,
        /// What was tried.
        verb: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A key or certificate cannot be made.
    #[error("a certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// The authority's files do not hold what they should.
    #[error(
        "{path} is damaged ({why}); move it away to have a new authority made, which clients must be told of"
    )]
    Damaged {
        /// Of the file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// What [`ensure`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A new authority was made: clients must be told of it.
    pub new_authority: bool,
    /// A new certificate was made.
    pub new_certificate: bool,
    /// When the next one is due.
    pub renew_at: OffsetDateTime,
}

/// Makes what is missing, of another domain, or past two thirds of its life. Good files are left as they are.
///
/// # Errors
/// When a file cannot be read or written, or the authority's is damaged.
pub fn ensure(folder: &Path, domain: &HostName, now: OffsetDateTime) -> Result<Outcome, TlsError> {
    let (issuer, ca_pem, new_authority) = match load_authority(folder, domain, now)? {
        Some((issuer, pem)) => (issuer, pem, false),
        None => {
            let (issuer, pem) = make_authority(folder, domain, now)?;
            (issuer, pem, true)
        }
    };
    if !new_authority && let Some(renew_at) = good_until(folder, domain, now)? {
        return Ok(Outcome { new_authority, new_certificate: false, renew_at });
    }
    let renew_at = make_leaf(folder, domain, now, &issuer, &ca_pem)?;
    Ok(Outcome { new_authority, new_certificate: true, renew_at })
}

type Authority = Issuer<'static, KeyPair>;

/// The stored authority, unless there is none, or it is for another domain or near its end.
fn load_authority(
    folder: &Path,
    domain: &HostName,
    now: OffsetDateTime,
) -> Result<Option<(Authority, String)>, TlsError> {
    let (path, key_path) = (folder.join(CA_FILE), folder.join(CA_KEY_FILE));
    let (Some(pem), Some(key)) = (read(&path)?, read(&key_path)?) else { return Ok(None) };
    let key = KeyPair::from_pem(&key)
        .map_err(|error| TlsError::Damaged { path: key_path, why: error.to_string() })?;
    let damaged = |why: String| TlsError::Damaged { path: path.clone(), why };
    let facts = facts(&pem).map_err(damaged)?;
    if facts.permitted != [domain.as_str()] || facts.not_after < now + LEAF_LIFE {
        return Ok(None);
    }
    if facts.public_key != rcgen::PublicKeyData::der_bytes(&key) {
        return Err(damaged(format!("its key is not the one of {CA_KEY_FILE}")));
    }
    let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|error| damaged(error.to_string()))?;
    Ok(Some((issuer, pem)))
}

fn make_authority(
    folder: &Path,
    domain: &HostName,
    now: OffsetDateTime,
) -> Result<(Authority, String), TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name(&format!("Gatehouse local CA for {domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName(domain.as_str().to_owned())],
        excluded_subtrees: Vec::new(),
    });
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + CA_LIFE;
    let certificate = params.self_signed(&key)?;
    // The key first: a certificate without its key would be a damaged authority.
    write(&folder.join(CA_KEY_FILE), &key.serialize_pem(), 0o600)?;
    write(&folder.join(CA_FILE), &certificate.pem(), 0o644)?;
    Ok((Issuer::new(params, key), certificate.pem()))
}

fn make_leaf(
    folder: &Path,
    domain: &HostName,
    now: OffsetDateTime,
    issuer: &Authority,
    ca_pem: &str,
) -> Result<OffsetDateTime, TlsError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.subject_alt_names = names(domain)
        .into_iter()
        .map(|name| Ok(SanType::DnsName(name.try_into()?)))
        .collect::<Result<_, rcgen::Error>>()?;
    params.distinguished_name = name(domain.as_str());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - CLOCK_SLACK;
    params.not_after = now + LEAF_LIFE;
    let certificate = params.signed_by(&key, issuer)?;
    write(&folder.join(KEY_FILE), &key.serialize_pem(), 0o600)?;
    write(&folder.join(CHAIN_FILE), &format!("{}{ca_pem}", certificate.pem()), 0o644)?;
    Ok(renewal(now - CLOCK_SLACK, now + LEAF_LIFE))
}

/// When the stored certificate is to be renewed, if it is good for now.
fn good_until(
    folder: &Path,
    domain: &HostName,
    now: OffsetDateTime,
) -> Result<Option<OffsetDateTime>, TlsError> {
    let (chain, key) = (read(&folder.join(CHAIN_FILE))?, read(&folder.join(KEY_FILE))?);
    let (Some(chain), Some(key)) = (chain, key) else { return Ok(None) };
    // What cannot be read is made anew: nothing hangs on the leaf.
    let (Ok(facts), Ok(key)) = (facts(&chain), KeyPair::from_pem(&key)) else { return Ok(None) };
    let renew_at = renewal(facts.not_before, facts.not_after);
    let good = facts.names == names(domain)
        && facts.public_key == rcgen::PublicKeyData::der_bytes(&key)
        && facts.not_before <= now
        && now < renew_at;
    Ok(good.then_some(renew_at))
}

fn renewal(not_before: OffsetDateTime, not_after: OffsetDateTime) -> OffsetDateTime {
    not_before + (not_after - not_before) * 2 / 3
}

fn names(domain: &HostName) -> Vec<String> {
    vec![domain.to_string(), format!("*.{domain}")]
}

fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Gatehouse");
    // RFC 5280 appendix A.1: ub-common-name is 64.
    name.push(DnType::CommonName, common.chars().take(64).collect::<String>());
    name
}

struct Facts {
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    names: Vec<String>,
    permitted: Vec<String>,
    public_key: Vec<u8>,
}

/// What the first certificate of a PEM file says.
fn facts(pem: &str) -> Result<Facts, String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|error| error.to_string())?;
    let (_, certificate) = X509Certificate::from_der(&block.contents).map_err(|error| error.to_string())?;
    let dns = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    };
    let names = certificate.subject_alternative_name().map_err(|error| error.to_string())?;
    let constraints = certificate.name_constraints().map_err(|error| error.to_string())?;
    let permitted = constraints.and_then(|found| found.value.permitted_subtrees.as_ref());
    Ok(Facts {
        not_before: certificate.validity().not_before.to_datetime(),
        not_after: certificate.validity().not_after.to_datetime(),
        names: names.iter().flat_map(|found| found.value.general_names.iter().filter_map(dns)).collect(),
        permitted: permitted.into_iter().flatten().filter_map(|subtree| dns(&subtree.base)).collect(),
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
    })
}

fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TlsError::File { path: path.to_owned(), verb: "read", source }),
    }
}

/// Writes whole or not at all; a key is never readable by others, not even for a moment.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let staged = path.with_extension("new");
    let result = (|| {
        match std::fs::remove_file(&staged) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&staged, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    result.map_err(|source| TlsError::File { path: path.to_owned(), verb: "written", source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    fn host(text: &str) -> HostName {
        text.parse().expect("host")
    }

    #[test]
    fn a_certificate_is_made_once_and_renewed_at_two_thirds() {
        let folder = tempfile::tempdir().expect("folder");
        let now = OffsetDateTime::now_utc();
        let first = ensure(folder.path(), &host("style.dev"), now).expect("made");
        assert!(first.new_authority && first.new_certificate);
        let again = ensure(folder.path(), &host("style.dev"), now).expect("kept");
        assert!(!again.new_authority && !again.new_certificate);
        assert!((again.renew_at - now).whole_days().abs_diff(60) <= 1, "{:?}", again.renew_at - now);
        let later = ensure(folder.path(), &host("style.dev"), again.renew_at).expect("renewed");
        assert!(!later.new_authority && later.new_certificate);
        let moved = ensure(folder.path(), &host("other.example"), now).expect("for another domain");
        assert!(moved.new_authority && moved.new_certificate);
        for key in [CA_KEY_FILE, KEY_FILE] {
            let mode = folder.path().join(key).metadata().expect("key").mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn openssl_trusts_it_for_the_domain_alone() {
        let folder = tempfile::tempdir().expect("folder");
        ensure(folder.path(), &host("style.dev"), OffsetDateTime::now_utc()).expect("made");
        let verify = |name: &str| {
            let output = Command::new("openssl")
                .args(["verify", "-verify_hostname", name, "-CAfile"])
                .args([folder.path().join(CA_FILE), folder.path().join(CHAIN_FILE)])
                .output()
                .expect("openssl");
            output.status.success()
        };
        assert!(verify("style.dev") && verify("api.style.dev"));
        assert!(!verify("a.b.style.dev") && !verify("example.com"));
        // Signed by the same authority, yet for a name outside its domain.
        let now = OffsetDateTime::now_utc();
        let (issuer, pem) =
            load_authority(folder.path(), &host("style.dev"), now).expect("read").expect("there");
        make_leaf(folder.path(), &host("example.com"), now, &issuer, &pem).expect("signed");
        assert!(!verify("example.com"));
    }

    #[test]
    fn a_lost_leaf_is_made_anew_and_a_damaged_authority_is_said() {
        let folder = tempfile::tempdir().expect("folder");
        let now = OffsetDateTime::now_utc();
        ensure(folder.path(), &host("style.dev"), now).expect("made");
        std::fs::write(folder.path().join(CHAIN_FILE), "rubbish").expect("spoil");
        let outcome = ensure(folder.path(), &host("style.dev"), now).expect("mended");
        assert!(!outcome.new_authority && outcome.new_certificate);
        std::fs::write(folder.path().join(CA_FILE), "rubbish").expect("spoil");
        assert!(matches!(ensure(folder.path(), &host("style.dev"), now), Err(TlsError::Damaged { .. })));
    }
}
