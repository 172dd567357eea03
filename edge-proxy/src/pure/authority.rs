//! The host that a request names: `Host` or `:authority` (RFC 9110 section 7.2), as a name of the route table.

use http::{HeaderMap, Uri, header};
use model::host::{HostError, HostName};
use thiserror::Error;

/// Why a request does not say which host it means.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AuthorityFault {
    /// Neither `Host` nor `:authority`.
    #[error("the request names no host")]
    Missing,
    /// More than one `Host`, or `Host` and `:authority` (or an absolute target) that differ.
    #[error("the request names more than one host")]
    Ambiguous,
    /// The port is not a number of 0..=65535.
    #[error("the port of the host is not a port")]
    BadPort,
    /// Not a host name.
    #[error("the host is not a host name: {0}")]
    BadName(#[from] HostError),
}

/// Splits `name[:port]`, as it stands in `Host`.
///
/// # Errors
/// When it is not a name with an optional port; user information and IPv6 literals are not names here.
pub fn parse(text: &str) -> Result<HostName, AuthorityFault> {
    let name = match text.split_once(':') {
        None => text,
        Some((name, port)) => {
            let digits = port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit());
            if !digits || (!port.is_empty() && port.parse::<u16>().is_err()) {
                return Err(AuthorityFault::BadPort);
            }
            name
        }
    };
    Ok(name.parse()?)
}

/// The one host that a request names.
///
/// # Errors
/// When it names none, several that differ, or something that is no host name.
pub fn of_request(uri: &Uri, headers: &HeaderMap) -> Result<HostName, AuthorityFault> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let header = match (hosts.next(), hosts.next()) {
        (_, Some(_)) => return Err(AuthorityFault::Ambiguous),
        (Some(host), None) => {
            let text = host.to_str().map_err(|_| AuthorityFault::BadName(HostError::BadCharacter))?;
            Some(parse(text)?)
        }
        (None, None) => None,
    };
    let target = uri.authority().map(|authority| parse(authority.as_str())).transpose()?;
    match (header, target) {
        (Some(header), Some(target)) if header != target => Err(AuthorityFault::Ambiguous),
        (Some(name), _) | (None, Some(name)) => Ok(name),
        (None, None) => Err(AuthorityFault::Missing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(uri: &str, hosts: &[&str]) -> Result<String, AuthorityFault> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().expect("value"));
        }
        of_request(&uri.parse().expect("uri"), &headers).map(|name| name.as_str().to_owned())
    }

    #[test]
    fn one_host_whatever_its_place_case_port_or_dot() {
        assert_eq!(request("/", &["A.Style.dev:443"]).as_deref(), Ok("a.style.dev"));
        assert_eq!(request("https://a.style.dev/x", &[]).as_deref(), Ok("a.style.dev"));
        assert_eq!(request("https://a.style.dev:8443/", &["a.style.dev."]).as_deref(), Ok("a.style.dev"));
    }

    #[test]
    fn none_or_several_are_faults() {
        assert_eq!(request("/", &[]), Err(AuthorityFault::Missing));
        assert_eq!(request("/", &["a.dev", "a.dev"]), Err(AuthorityFault::Ambiguous));
        assert_eq!(request("https://a.dev/", &["b.dev"]), Err(AuthorityFault::Ambiguous));
        assert_eq!(parse("a.dev:99999"), Err(AuthorityFault::BadPort));
        assert_eq!(parse("a.dev:8x"), Err(AuthorityFault::BadPort));
        assert!(parse("me@a.dev").is_err() && parse("[::1]").is_err() && parse("").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in ".{0,300}") {
            let _either_way = parse(&text);
        }
    }
}
