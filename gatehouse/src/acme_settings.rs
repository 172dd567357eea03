//! The certificate authority's part of the settings: flags `--acme-…` and `--dns-…`, and the table `[acme]` of the
//! file.

use crate::settings::{SettingsError, value};
use clap::Args;
use model::config::{AcmeConfig, ChallengeKind, ExternalAccount};
use model::host::HostName;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Short names of directories.
const DIRECTORIES: [(&str, &str); 2] = [
    ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
    ("letsencrypt-staging", "https://acme-staging-v02.api.letsencrypt.org/directory"),
];
/// Orders in three hours: below the 300 that Let's Encrypt takes from an account, so that a second house may share it.
const ORDERS: u32 = 250;
/// Longest URL of a directory.
const MAX_URL_BYTES: usize = 1024;

/// What the command line says of the authority.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct AcmeWishes {
    /// Who certifies mapped names: letsencrypt, letsencrypt-staging, or the URL of an ACME directory [default: nobody]
    #[arg(id = "acme_directory", long = "acme-directory", value_name = "URL")]
    pub directory: Option<String>,
    /// Where the authority may write to. May be repeated
    #[arg(id = "acme_email", long = "acme-email", value_name = "ADDRESS")]
    #[serde(default)]
    pub email: Vec<String>,
    /// You agree to the authority's terms of service; needed to have certificates from it
    #[arg(id = "acme_agree_terms", long = "acme-agree-terms", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub agree_terms: Option<bool>,
    /// Have *. of the domain certified too; needs --dns-listen, and _acme-challenge of the domain delegated to this host
    #[arg(id = "acme_preview", long = "acme-preview", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub preview: Option<bool>,
    /// Where questions about delegated _acme-challenge names are answered, UDP and TCP (for example 0.0.0.0:53)
    #[arg(id = "dns_listen", long = "dns-listen", value_name = "ADDRESS:PORT")]
    pub dns_listen: Option<SocketAddr>,
    /// The name of that name server [default: dns. of the domain]
    #[arg(id = "dns_host", long = "dns-host", value_name = "NAME")]
    pub dns_host: Option<HostName>,
    /// The account's key at the authority that this house's account is to belong to, in the file alone.
    #[arg(skip)]
    pub external_key_id: Option<String>,
    /// The file that has its secret.
    #[arg(skip)]
    pub external_key_file: Option<PathBuf>,
    /// Certificates to trust when the authority is asked, in place of the system's.
    #[arg(skip)]
    pub ca_file: Option<PathBuf>,
    /// Ways to prove a name, the preferred one first.
    #[arg(skip)]
    pub challenges: Option<Vec<ChallengeKind>>,
    /// Orders in three hours, at most.
    #[arg(skip)]
    pub orders: Option<u32>,
}

/// What is true of the authority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AcmeSettings {
    /// For control; none when nobody certifies.
    pub authority: Option<AcmeConfig>,
    /// Where the name server listens.
    pub dns_listen: Option<SocketAddr>,
    /// What it is called.
    pub dns_host: Option<HostName>,
}

impl AcmeWishes {
    /// Joins two sources: what `self` says wins.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            directory: self.directory.or(below.directory),
            email: if self.email.is_empty() { below.email } else { self.email },
            agree_terms: self.agree_terms.or(below.agree_terms),
            preview: self.preview.or(below.preview),
            dns_listen: self.dns_listen.or(below.dns_listen),
            dns_host: self.dns_host.or(below.dns_host),
            external_key_id: self.external_key_id.or(below.external_key_id),
            external_key_file: self.external_key_file.or(below.external_key_file),
            ca_file: self.ca_file.or(below.ca_file),
            challenges: self.challenges.or(below.challenges),
            orders: self.orders.or(below.orders),
        }
    }

    /// Fills in what nobody said, and checks all of it.
    ///
    /// # Errors
    /// [`SettingsError::Value`] for the first value that cannot be.
    pub fn settle(self, domain: &HostName) -> Result<AcmeSettings, SettingsError> {
        let dns_listen = self.dns_listen;
        let default_host = || format!("dns.{domain}").parse().ok();
        let dns_host = dns_listen.and(self.dns_host.clone().or_else(default_host));
        let Some(directory) = &self.directory else {
            if self.preview == Some(true) {
                let why = "nobody is named who would certify it: acme-directory is missing".to_owned();
                return Err(value("acme-preview", true, why));
            }
            return Ok(AcmeSettings { authority: None, dns_listen, dns_host });
        };
        let authority = AcmeConfig {
            directory: directory_url(directory)?,
            contact: self.email.iter().map(|email| contact(email)).collect::<Result<_, _>>()?,
            external_account: self.external()?,
            ca_file: self.ca_file.clone(),
            challenges: self.challenges()?,
            preview: self.preview()?,
            orders: self.orders.unwrap_or(ORDERS),
        };
        if self.agree_terms != Some(true) {
            let why = format!("read the terms of service of {directory}, then say acme-agree-terms = true");
            return Err(value("acme-agree-terms", false, why));
        }
        if authority.orders == 0 {
            return Err(value("acme.orders", 0, "it must be at least 1, or nothing is certified".to_owned()));
        }
        Ok(AcmeSettings { authority: Some(authority), dns_listen, dns_host })
    }

    fn external(&self) -> Result<Option<ExternalAccount>, SettingsError> {
        match (&self.external_key_id, &self.external_key_file) {
            (None, None) => Ok(None),
            (Some(key_id), Some(key_file)) if key_file.is_absolute() => {
                Ok(Some(ExternalAccount { key_id: key_id.clone(), key_file: key_file.clone() }))
            }
            (Some(_), Some(file)) => {
                let why = "the path must begin with /".to_owned();
                Err(value("acme.external-key-file", file.display(), why))
            }
            (id, _) => {
                let why = "external-key-id and external-key-file go together".to_owned();
                Err(value("acme.external-key-id", id.as_deref().unwrap_or("(missing)"), why))
            }
        }
    }

    fn challenges(&self) -> Result<Vec<ChallengeKind>, SettingsError> {
        let dns = self.dns_listen.is_some();
        let Some(wanted) = &self.challenges else {
            let usual = [ChallengeKind::TlsAlpn, ChallengeKind::Http];
            return Ok(usual.into_iter().chain(dns.then_some(ChallengeKind::Dns)).collect());
        };
        if wanted.is_empty() {
            let why = "name at least one of tls-alpn-01, http-01 and dns-01".to_owned();
            return Err(value("acme.challenges", "[]", why));
        }
        if wanted.contains(&ChallengeKind::Dns) && !dns {
            let why = "this host answers no questions: dns-listen is missing".to_owned();
            return Err(value("acme.challenges", "dns-01", why));
        }
        Ok(wanted.clone())
    }

    fn preview(&self) -> Result<bool, SettingsError> {
        let preview = self.preview.unwrap_or(false);
        if preview && self.dns_listen.is_none() {
            let why = "a wildcard is proved by DNS, and dns-listen is missing".to_owned();
            return Err(value("acme-preview", true, why));
        }
        Ok(preview)
    }
}

fn directory_url(text: &str) -> Result<String, SettingsError> {
    if let Some((_, url)) = DIRECTORIES.iter().find(|(name, _)| *name == text) {
        return Ok((*url).to_owned());
    }
    let good = text.starts_with("https://")
        && text.len() <= MAX_URL_BYTES
        && text.bytes().all(|byte| byte.is_ascii_graphic());
    let why = || "it must be letsencrypt, letsencrypt-staging or a URL that begins with https://".to_owned();
    if good { Ok(text.to_owned()) } else { Err(value("acme-directory", text, why())) }
}

fn contact(email: &str) -> Result<String, SettingsError> {
    let good = email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.'))
        && email.len() <= 254
        && email.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b','));
    if good {
        return Ok(format!("mailto:{email}"));
    }
    Err(value("acme-email", email, "it must be one e-mail address".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(text: &str) -> Result<AcmeSettings, SettingsError> {
        let domain = "style.dev".parse().expect("domain");
        toml::from_str::<AcmeWishes>(text).expect("wishes").settle(&domain)
    }

    const AGREED: &str = "directory = \"letsencrypt\"\nagree-terms = true\n";

    #[test]
    fn nobody_certifies_unless_it_is_said() {
        assert_eq!(settle("").expect("defaults"), AcmeSettings::default());
        let some = settle(AGREED).expect("good").authority.expect("an authority");
        assert_eq!(some.directory, "https://acme-v02.api.letsencrypt.org/directory");
        assert_eq!(some.challenges, [ChallengeKind::TlsAlpn, ChallengeKind::Http]);
        assert_eq!((some.preview, some.orders), (false, ORDERS));
    }

    #[test]
    fn dns_comes_with_its_listener() {
        let text =
            format!("{AGREED}dns-listen = \"0.0.0.0:53\"\npreview = true\nemail = [\"me@example.com\"]");
        let settings = settle(&text).expect("good");
        assert_eq!(settings.dns_host, Some("dns.style.dev".parse().expect("name")));
        let authority = settings.authority.expect("an authority");
        assert_eq!(authority.challenges.last(), Some(&ChallengeKind::Dns));
        assert_eq!(authority.contact, ["mailto:me@example.com"]);
        assert!(authority.preview);
    }

    #[test]
    fn bad_values_are_named() {
        for (text, name) in [
            ("directory = \"letsencrypt\"", "acme-agree-terms = false"),
            ("directory = \"http://ca\"\nagree-terms = true", "acme-directory = http://ca"),
            (&format!("{AGREED}email = [\"nobody\"]"), "acme-email = nobody"),
            (&format!("{AGREED}email = [\"a@b.c?cc=d@e.f\"]"), "acme-email = a@b.c?cc=d@e.f"),
            (&format!("{AGREED}preview = true"), "acme-preview = true"),
            ("preview = true", "acme-preview = true"),
            (&format!("{AGREED}challenges = []"), "acme.challenges = []"),
            (&format!("{AGREED}challenges = [\"dns-01\"]"), "acme.challenges = dns-01"),
            (&format!("{AGREED}orders = 0"), "acme.orders = 0"),
            (&format!("{AGREED}external-key-id = \"a\""), "acme.external-key-id = a"),
            (
                &format!("{AGREED}external-key-id = \"a\"\nexternal-key-file = \"key\""),
                "acme.external-key-file = key",
            ),
        ] {
            let error = settle(text).expect_err(text).to_string();
            assert!(error.starts_with(name), "{text}: {error}");
        }
        for misspelt in ["directori = 1", "challenges = [\"tls\"]", "dns-listen = \"53\""] {
            assert!(toml::from_str::<AcmeWishes>(misspelt).is_err(), "{misspelt}");
        }
    }
}
