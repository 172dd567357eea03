//! What a VM is told about the client: `X-Forwarded-*` and `Forwarded` (RFC 7239), of this hop alone.
//!
//! A client can write any of these names itself, and applications believe them. So all of them are taken out first,
//! and only what this process has seen is put in.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::net::IpAddr;

/// Names besides `x-forwarded-*` and `forwarded` by which applications learn the client's address, and `proxy`,
/// which CGI programs take for a setting (CVE-2016-5385).
const SPOOFABLE: [&str; 6] =
    ["x-real-ip", "x-client-ip", "client-ip", "true-client-ip", "x-cluster-client-ip", "proxy"];

/// What is known of the client.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Its address as the listener saw it.
    pub address: IpAddr,
    /// `Host` as the client wrote it.
    pub host: &'a str,
    /// The public HTTPS port.
    pub port: u16,
}

/// Whether a name is one that only the gateway may write.
#[must_use]
pub fn is_reserved(name: &HeaderName) -> bool {
    let name = name.as_str();
    name == "forwarded" || name.starts_with("x-forwarded-") || SPOOFABLE.contains(&name)
}

/// The names in a request that only the gateway may write.
#[must_use]
pub fn spoofed(headers: &HeaderMap) -> Vec<HeaderName> {
    headers.keys().filter(|name| is_reserved(name)).cloned().collect()
}

/// What is put in instead.
#[must_use]
pub fn values(client: &Client<'_>) -> Vec<(HeaderName, HeaderValue)> {
    let name = HeaderName::from_static;
    let address = canonical(client.address);
    let plain = address.to_string();
    let (open, close) = if address.is_ipv6() { ("\"[", "]\"") } else { ("", "") };
    let forwarded = ["for=", open, &plain, close, ";host=\"", client.host, "\";proto=https"].concat();
    let port = HeaderValue::from(client.port);
    let mut made = vec![
        (name("x-forwarded-proto"), HeaderValue::from_static("https")),
        (name("x-forwarded-port"), port),
    ];
    let mut add = |names: &[&'static str], text: Result<HeaderValue, _>| {
        if let Ok(value) = text {
            made.extend(names.iter().map(|one| (name(one), value.clone())));
        }
    };
    add(&["x-forwarded-for", "x-real-ip"], HeaderValue::try_from(plain));
    add(&["x-forwarded-host"], HeaderValue::from_str(client.host));
    add(&["forwarded"], HeaderValue::try_from(forwarded));
    made
}

/// An IPv4 client of a dual-stack listener is an IPv4 client.
fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_clients_claim_is_found() {
        let mut headers = HeaderMap::new();
        for name in ["X-Forwarded-For", "x-forwarded-anything", "Forwarded", "X-Real-IP", "Proxy", "accept"] {
            headers.append(name.parse::<HeaderName>().expect("name"), HeaderValue::from_static("1"));
        }
        let mut found: Vec<_> = spoofed(&headers).iter().map(ToString::to_string).collect();
        found.sort();
        assert_eq!(found, ["forwarded", "proxy", "x-forwarded-anything", "x-forwarded-for", "x-real-ip"]);
    }

    #[test]
    fn rfc_7239_quotes_ipv6_and_a_mapped_address_is_ipv4() {
        let told = |address: &str| {
            let client =
                Client { address: address.parse().expect("address"), host: "a.style.dev:8443", port: 8443 };
            let values = values(&client);
            let of = |name: &str| {
                let value = values.iter().find(|(n, _)| *n == name).expect("there").1.clone();
                value.to_str().expect("text").to_owned()
            };
            (of("x-forwarded-for"), of("forwarded"), of("x-forwarded-port"), of("x-forwarded-proto"))
        };
        let (xff, forwarded, port, proto) = told("2001:db8::1");
        assert_eq!(xff, "2001:db8::1");
        assert_eq!(forwarded, "for=\"[2001:db8::1]\";host=\"a.style.dev:8443\";proto=https");
        assert_eq!((port.as_str(), proto.as_str()), ("8443", "https"));
        assert_eq!(told("::ffff:192.0.2.7").0, "192.0.2.7");
    }
}
