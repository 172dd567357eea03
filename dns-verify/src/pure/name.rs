//! Which names can be proved: a customer's own, written as A-labels.

use model::host::{HostError, HostName};
use thiserror::Error;

/// Longest text that is read as a name: 253 characters as A-labels come of no longer U-labels.
const MAX_TEXT_BYTES: usize = 1024;

/// Why a text is no domain that somebody could prove.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NameError {
    /// It cannot be written as A-labels (RFC 5891, by UTS 46).
    #[error("{0:?} is no domain name: it cannot be written as A-labels")]
    Idna(String),
    /// It is no host name.
    #[error("{text:?} is no domain name: {error}")]
    Host {
        /// What was given, cut short.
        text: String,
        /// Why.
        error: HostError,
    },
    /// One label: nobody's to give away.
    #[error("{0} is a top-level domain or a local name, which no customer owns; give a domain below it")]
    Single(HostName),
    /// Everybody registers below it.
    #[error("{0} is a public suffix, below which everybody registers; give a domain below it")]
    PublicSuffix(HostName),
    /// It looks like an address.
    #[error("{0} is an IP address and no domain name")]
    Address(HostName),
}

/// Reads a customer's domain: U-labels become A-labels, case is folded, public suffixes and bare top-level domains are
/// refused.
///
/// # Errors
/// See [`NameError`].
pub fn customer_domain(text: &str) -> Result<HostName, NameError> {
    let host = ascii(text)?;
    if host.as_str().parse::<std::net::Ipv4Addr>().is_ok() {
        return Err(NameError::Address(host));
    }
    if !host.as_str().contains('.') {
        return Err(NameError::Single(host));
    }
    match registrable(&host) {
        Some(_) => Ok(host),
        None => Err(NameError::PublicSuffix(host)),
    }
}

/// Reads any host name, with U-labels or A-labels.
///
/// # Errors
/// [`NameError::Idna`] and [`NameError::Host`].
pub fn ascii(text: &str) -> Result<HostName, NameError> {
    let short = || text.chars().take(64).collect::<String>();
    if text.len() > MAX_TEXT_BYTES {
        return Err(NameError::Host { text: short(), error: HostError::TooLong });
    }
    let ascii = if text.is_ascii() {
        text.to_owned()
    } else {
        idna::domain_to_ascii(text).map_err(|_| NameError::Idna(short()))?
    };
    let host: HostName = ascii.parse().map_err(|error| NameError::Host { text: short(), error })?;
    // What claims to be an A-label must be one, or two texts would stand for one name.
    let (_, fit) = idna::domain_to_unicode(host.as_str());
    if host.as_str().contains("xn--") && fit.is_err() {
        return Err(NameError::Idna(short()));
    }
    Ok(host)
}

/// The part of a name that somebody registered: one label below its public suffix. None for a suffix itself. A name
/// below a top-level domain that the list has not counts as registered there.
#[must_use]
pub fn registrable(host: &HostName) -> Option<HostName> {
    psl::domain(host.as_str().as_bytes())
        .and_then(|domain| std::str::from_utf8(domain.as_bytes()).ok()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_written_as_a_labels() {
        let good = |text: &str| customer_domain(text).map(|host| host.to_string());
        assert_eq!(good("Shop.Example.COM."), Ok("shop.example.com".to_owned()));
        assert_eq!(good("Bücher.example"), Ok("xn--bcher-kva.example".to_owned()));
        assert_eq!(good("xn--bcher-kva.example"), Ok("xn--bcher-kva.example".to_owned()));
        assert_eq!(good("例え。テスト"), Ok("xn--r8jz45g.xn--zckzah".to_owned()));
        assert_eq!(good("me.github.io"), Ok("me.github.io".to_owned()));
    }

    #[test]
    fn what_nobody_owns_alone_is_refused() {
        for suffix in ["co.uk", "github.io", "公司.cn"] {
            assert!(matches!(customer_domain(suffix), Err(NameError::PublicSuffix(_))), "{suffix}");
        }
        for single in ["com", "localhost", "com."] {
            assert!(matches!(customer_domain(single), Err(NameError::Single(_))), "{single}");
        }
        assert!(matches!(customer_domain("192.0.2.1"), Err(NameError::Address(_))));
        for bad in
            ["", ".", "a..com", "-a.com", "*.example.com", "a b.com", "http://example.com", "xn--a.com"]
        {
            let error = customer_domain(bad).expect_err(bad);
            assert!(matches!(error, NameError::Host { .. } | NameError::Idna(_)), "{bad}: {error}");
        }
        assert!(customer_domain(&"a.".repeat(2000)).is_err());
    }

    #[test]
    fn the_registered_part_is_found() {
        let part = |text: &str| registrable(&text.parse().expect("host")).map(|host| host.to_string());
        assert_eq!(part("a.b.example.co.uk").as_deref(), Some("example.co.uk"));
        assert_eq!(part("example.com").as_deref(), Some("example.com"));
        assert_eq!(part("a.zone.test").as_deref(), Some("zone.test"));
        assert_eq!(part("co.uk"), None);
    }

    proptest! {
        #[test]
        fn reading_is_stable(text in ".{0,80}") {
            if let Ok(host) = customer_domain(&text) {
                prop_assert_eq!(customer_domain(host.as_str()), Ok(host.clone()));
                prop_assert!(registrable(&host).is_some_and(|part| host.is_within(&part)));
            }
        }
    }
}
