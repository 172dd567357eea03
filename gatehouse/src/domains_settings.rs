//! The domains' part of the settings: flags `--domains-…`, and the table `[domains]` of the file.

use crate::settings::{SettingsError, value};
use clap::Args;
use model::config::DomainProof;
use model::host::HostName;
use serde::Deserialize;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// Longest time between two looks at a proof, in hours: a year. Over it the setting means nothing.
const MAX_RECHECK_HOURS: u32 = 24 * 366;

/// What the command line says of customers' domains.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct DomainWishes {
    /// Label before a domain under which the TXT record stands that proves it [default: _freestyle_custom_hostname]
    #[arg(id = "domains_label", long = "domains-label", value_name = "LABEL")]
    pub label: Option<HostName>,
    /// Name servers of the DNS root where the search for a domain's own begins; the Internet's when none is given. May
    /// be repeated
    #[arg(id = "domains_roots", long = "domains-root", value_name = "ADDRESS")]
    pub roots: Vec<IpAddr>,
    /// The port on which name servers are asked [default: 53]
    #[arg(id = "domains_dns_port", long = "domains-dns-port", value_name = "PORT")]
    pub dns_port: Option<u16>,
    /// Ask name servers at private, loopback and other special addresses too, for a network with its own DNS
    /// [default: false]
    #[arg(id = "domains_any_address", long = "domains-any-address", value_name = "BOOL")]
    pub any_address: Option<bool>,
    /// Hours between two looks whether a proof still stands [default: it is not looked at again]
    #[arg(id = "domains_recheck_hours", long = "domains-recheck-hours", value_name = "HOURS")]
    pub recheck_hours: Option<NonZeroU32>,
}

impl DomainWishes {
    /// Joins two sources: what `self` says wins.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            label: self.label.or(below.label),
            roots: if self.roots.is_empty() { below.roots } else { self.roots },
            dns_port: self.dns_port.or(below.dns_port),
            any_address: self.any_address.or(below.any_address),
            recheck_hours: self.recheck_hours.or(below.recheck_hours),
        }
    }

    /// Checks all of it.
    ///
    /// # Errors
    /// [`SettingsError::Value`] for the first value that cannot be.
    pub fn settle(self) -> Result<DomainProof, SettingsError> {
        if let Some(label) = self.label.as_ref().filter(|label| label.as_str().contains('.')) {
            return Err(value("domains.label", label.to_string(), "it must be one label".to_owned()));
        }
        if self.dns_port == Some(0) {
            return Err(value("domains.dns-port", 0, "it must be within 1 and 65535".to_owned()));
        }
        if let Some(hours) = self.recheck_hours.filter(|hours| hours.get() > MAX_RECHECK_HOURS) {
            let why = format!("it must be within 1 and {MAX_RECHECK_HOURS}");
            return Err(value("domains.recheck-hours", hours, why));
        }
        Ok(DomainProof {
            label: self.label,
            roots: self.roots,
            port: self.dns_port,
            any_address: self.any_address.unwrap_or(false),
            recheck_hours: self.recheck_hours,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(text: &str) -> Result<DomainProof, SettingsError> {
        toml::from_str::<DomainWishes>(text).expect("wishes").settle()
    }

    #[test]
    fn what_is_said_is_taken_and_bad_values_are_named() {
        assert_eq!(settle("").expect("defaults"), DomainProof::default());
        let said = "label = \"_proof\"\nroots = [\"10.0.0.53\"]\ndns-port = 5353\nany-address = true";
        let settled = settle(said).expect("good");
        assert_eq!((settled.port, settled.any_address, settled.roots.len()), (Some(5353), true, 1));
        for (text, name) in [
            ("label = \"a.b\"", "domains.label = a.b"),
            ("dns-port = 0", "domains.dns-port = 0"),
            ("recheck-hours = 100000", "domains.recheck-hours = 100000"),
        ] {
            let error = settle(text).expect_err(text).to_string();
            assert!(error.starts_with(name), "{text}: {error}");
        }
        for misspelt in ["root = 1", "recheck-hours = 0", "roots = [\"ns.example\"]"] {
            assert!(toml::from_str::<DomainWishes>(misspelt).is_err(), "{misspelt}");
        }
    }
}
