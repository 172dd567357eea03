//! The header that a load balancer puts before a connection, versions 1 and 2 (the PROXY protocol's specification,
//! sections 2.1 and 2.2), so that the client's own address is known.
//!
//! It is read to its last byte and no further, since what follows is the client's: [`step`] says how many bytes may be
//! read without reading too many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use thiserror::Error;

/// Longest header of version 1, its line end included.
const MAX_V1_BYTES: usize = 107;
/// The shortest of any version, `PROXY UNKNOWN` and its line end.
const MIN_BYTES: usize = 15;
/// Bytes of version 2 before the addresses.
const V2_FIXED_BYTES: usize = 16;
/// Longest header of version 2 that is read: addresses of Unix sockets and all usual extensions fit, while the format
/// allows 64 KiB.
const MAX_V2_BYTES: usize = 4096;
/// Begins version 2.
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Begins version 1.
const V1_SIGNATURE: &[u8; 6] = b"PROXY ";

/// Why a header is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProxyFault {
    /// Neither version's signature.
    #[error("the connection does not begin with a PROXY header")]
    NoHeader,
    /// Version 1 that is not as specified.
    #[error("the PROXY line is malformed")]
    Line,
    /// Version 2 of an unknown version, command, family or transport, or too short for its addresses.
    #[error("the PROXY header is malformed")]
    Binary,
    /// Over its bound.
    #[error("the PROXY header is too long")]
    TooLong,
}

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes more are the header's for sure.
    Read(usize),
    /// The header is whole. Without an address the connection is the balancer's own: a health check, or a client that
    /// it does not tell.
    Done(Option<SocketAddr>),
}

/// Looks at the header's bytes so far.
///
/// # Errors
/// As soon as they cannot begin a header.
pub fn step(bytes: &[u8]) -> Result<Step, ProxyFault> {
    let begins = |signature: &[u8]| {
        let common = bytes.len().min(signature.len());
        bytes[..common] == signature[..common]
    };
    if begins(V1_SIGNATURE) {
        if bytes.len() < MIN_BYTES { Ok(Step::Read(MIN_BYTES - bytes.len())) } else { version_1(bytes) }
    } else if begins(V2_SIGNATURE) {
        version_2(bytes)
    } else {
        Err(ProxyFault::NoHeader)
    }
}

fn version_1(bytes: &[u8]) -> Result<Step, ProxyFault> {
    if let Some(line) = bytes.strip_suffix(b"\r\n") {
        let line = std::str::from_utf8(line).map_err(|_| ProxyFault::Line)?;
        return Ok(Step::Done(parse_line(line)?));
    }
    if bytes.contains(&b'\n') {
        return Err(ProxyFault::Line);
    }
    let more = if bytes.ends_with(b"\r") { 1 } else { 2 };
    if bytes.len() + more > MAX_V1_BYTES { Err(ProxyFault::TooLong) } else { Ok(Step::Read(more)) }
}

fn parse_line(line: &str) -> Result<Option<SocketAddr>, ProxyFault> {
    let rest = line.strip_prefix("PROXY ").ok_or(ProxyFault::Line)?;
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Ok(None);
    }
    let parts: Vec<&str> = rest.split(' ').collect();
    let [family, source, target, source_port, target_port] = parts[..] else {
        return Err(ProxyFault::Line);
    };
    let address = |text: &str| -> Result<IpAddr, ProxyFault> {
        match family {
            "TCP4" => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| ProxyFault::Line),
            "TCP6" => text.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| ProxyFault::Line),
            _ => Err(ProxyFault::Line),
        }
    };
    let source = SocketAddr::new(address(source)?, port(source_port)?);
    address(target)?;
    port(target_port)?;
    Ok(Some(source))
}

/// Decimal, without a sign or zeros before it.
fn port(text: &str) -> Result<u16, ProxyFault> {
    let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit()));
    if plain { text.parse().map_err(|_| ProxyFault::Line) } else { Err(ProxyFault::Line) }
}

fn version_2(bytes: &[u8]) -> Result<Step, ProxyFault> {
    if bytes.len() < V2_FIXED_BYTES {
        return Ok(Step::Read(if bytes.is_empty() { MIN_BYTES } else { V2_FIXED_BYTES - bytes.len() }));
    }
    let length = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > MAX_V2_BYTES {
        return Err(ProxyFault::TooLong);
    }
    if bytes.len() < length {
        return Ok(Step::Read(length - bytes.len()));
    }
    let local = match bytes[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyFault::Binary),
    };
    let source = binary_source(bytes[13], &bytes[V2_FIXED_BYTES..length])?;
    Ok(Step::Done(source.filter(|_| !local)))
}

fn binary_source(family: u8, addresses: &[u8]) -> Result<Option<SocketAddr>, ProxyFault> {
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    match family {
        // TCP and UDP over IPv4: two addresses of four bytes, two ports.
        0x11 | 0x12 => {
            let source = addresses.get(..12).and_then(|all| <[u8; 4]>::try_from(&all[..4]).ok());
            let source = source.ok_or(ProxyFault::Binary)?;
            Ok(Some(SocketAddr::new(Ipv4Addr::from(source).into(), port(8))))
        }
        // The same over IPv6.
        0x21 | 0x22 => {
            let source = addresses.get(..36).and_then(|all| <[u8; 16]>::try_from(&all[..16]).ok());
            let source = source.ok_or(ProxyFault::Binary)?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(source).into(), port(32))))
        }
        // Unspecified, and Unix sockets: no address that could be told.
        0x00 | 0x31 | 0x32 => Ok(None),
        _ => Err(ProxyFault::Binary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads as the process does: never more than it is told.
    fn read(bytes: &[u8]) -> Result<(Option<SocketAddr>, usize), ProxyFault> {
        let mut have = 0;
        loop {
            match step(&bytes[..have])? {
                Step::Done(source) => return Ok((source, have)),
                Step::Read(more) if have + more <= bytes.len() => have += more,
                Step::Read(_) => return Err(ProxyFault::NoHeader),
            }
        }
    }

    fn binary(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend(u16::try_from(addresses.len()).expect("short").to_be_bytes());
        bytes.extend(addresses);
        bytes
    }

    #[test]
    fn both_versions_say_who_it_is() {
        let line = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";
        let rest = [&line[..], b"\x16\x03\x01"].concat();
        assert_eq!(read(&rest), Ok((Some("192.0.2.7:56324".parse().expect("address")), line.len())));
        let six = b"PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n";
        assert_eq!(read(six).expect("good").0, Some("[2001:db8::7]:1".parse().expect("address")));
        for unknown in [&b"PROXY UNKNOWN\r\n"[..], b"PROXY UNKNOWN ffff:: ffff:: 1 2\r\n"] {
            assert_eq!(read(unknown), Ok((None, unknown.len())));
        }
        let four = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 4, 1, 187, 3, 0, 1, 9];
        assert_eq!(read(&binary(0x21, 0x11, &four)).expect("good").0.map(|a| a.port()), Some(0xdc04));
        assert_eq!(read(&binary(0x20, 0x11, &four)), Ok((None, 32)), "a health check");
        assert_eq!(read(&binary(0x20, 0x00, &[])), Ok((None, 16)));
        assert_eq!(read(&binary(0x21, 0x31, &[0; 216])), Ok((None, 232)));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(100));
        for (bytes, fault) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], ProxyFault::NoHeader),
            (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\0\0\0\0\0", ProxyFault::NoHeader),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324\r\n", ProxyFault::Line),
            (b"PROXY TCP4 2001:db8::7 198.51.100.1 1 2\r\n", ProxyFault::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 99999 2\r\n", ProxyFault::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n", ProxyFault::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", ProxyFault::Line),
            (b"PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", ProxyFault::Line),
            (b"PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", ProxyFault::Line),
            (b"PROXY UNKNOWN\nabc", ProxyFault::Line),
            (long.as_bytes(), ProxyFault::TooLong),
            (&binary(0x31, 0x11, &[0; 12]), ProxyFault::Binary),
            (&binary(0x22, 0x11, &[0; 12]), ProxyFault::Binary),
            (&binary(0x21, 0x11, &[0; 11]), ProxyFault::Binary),
            (&binary(0x21, 0x21, &[0; 35]), ProxyFault::Binary),
            (&binary(0x21, 0x41, &[0; 36]), ProxyFault::Binary),
            (&binary(0x21, 0x11, &[0; 5000]), ProxyFault::TooLong),
        ] {
            assert_eq!(read(bytes), Err(fault), "{}", String::from_utf8_lossy(bytes));
        }
    }

    proptest! {
        #[test]
        fn a_written_address_is_read_back(source: SocketAddr, target: SocketAddr, rest: Vec<u8>) {
            let (family, wide) = match (source, target) {
                (SocketAddr::V4(_), SocketAddr::V4(_)) => ("TCP4", false),
                (SocketAddr::V6(_), SocketAddr::V6(_)) => ("TCP6", true),
                _ => return Ok(()),
            };
            let told = SocketAddr::new(source.ip(), source.port());
            let line = format!(
                "PROXY {family} {} {} {} {}\r\n", source.ip(), target.ip(), source.port(), target.port()
            );
            let bytes = [line.as_bytes(), &rest].concat();
            prop_assert_eq!(read(&bytes), Ok((Some(told), line.len())));
            let octets = |ip: IpAddr| match ip { IpAddr::V4(ip) => ip.octets().to_vec(), IpAddr::V6(ip) => ip.octets().to_vec() };
            let mut addresses = [octets(source.ip()), octets(target.ip())].concat();
            addresses.extend(source.port().to_be_bytes());
            addresses.extend(target.port().to_be_bytes());
            let header = binary(0x21, if wide { 0x21 } else { 0x11 }, &addresses);
            let bytes = [&header[..], &rest].concat();
            prop_assert_eq!(read(&bytes), Ok((Some(told), header.len())));
        }

        #[test]
        fn no_bytes_make_it_panic_or_read_nothing(
            version in 0usize..3,
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = match version {
                0 => bytes,
                1 => [&V1_SIGNATURE[..], &bytes].concat(),
                _ => [&V2_SIGNATURE[..], &bytes].concat(),
            };
            for end in 0..bytes.len() {
                if let Ok(Step::Read(more)) = step(&bytes[..end]) {
                    prop_assert!(more > 0 && end + more <= MAX_V2_BYTES);
                }
            }
        }
    }
}
