//! Which addresses a name server may have: only such as the whole Internet reaches.
//!
//! The answer to a stranger's DNS question must not make the house talk to itself or to its operator's network.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Whether an address may be asked (IANA's special-purpose registries, RFC 6890, and multicast are left out).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        // Shared by carriers (RFC 6598); protocol assignments (RFC 6890); the 6to4 relay (RFC 7526); benchmarks
        // (RFC 2544); reserved, and the broadcast (RFC 1112).
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Global unicast alone (RFC 4291), without documentation (RFC 3849, RFC 9637), the assignments of 2001::/23 with
    // Teredo among them (RFC 2928), and 6to4, which would lead to any IPv4 address (RFC 3056).
    segments[0] & 0xe000 == 0x2000
        && !(segments[0] == 0x2001 && (segments[1] < 0x200 || segments[1] == 0xdb8))
        && segments[0] != 0x2002
        && !(segments[0] == 0x3fff && segments[1] < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_internet_reaches_is_asked() {
        for good in ["198.41.0.4", "8.8.8.8", "100.128.0.1", "2001:503:ba3e::2:30", "2606:4700::1111"] {
            assert!(is_public(good.parse().expect("address")), "{good}");
        }
        let bad = [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::7f00:1",
            "fc00::1",
            "fe80::1",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "3fff::1",
        ];
        for bad in bad {
            assert!(!is_public(bad.parse().expect("address")), "{bad}");
        }
    }
}
