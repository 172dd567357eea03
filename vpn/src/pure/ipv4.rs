//! IPv4 headers (RFC 791), the Internet checksum (RFC 1071), and "fragmentation needed" (RFC 792, RFC 1191).

use std::net::Ipv4Addr;

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Bytes of the "fragmentation needed" that [`too_big`] writes: two headers, and the lost packet's header with the
/// most options and 8 bytes behind it.
pub const TOO_BIG_BYTES: usize = HEADER_BYTES + 8 + 60 + 8;

/// Why bytes are no packet that is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is IPv6.
    Ipv6,
    /// It is not whole, or not IP at all.
    Malformed,
}

/// What is read of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its length with options, 20..=60.
    pub bytes: usize,
    /// Length of the packet, at least [`Self::bytes`] and at most what was there.
    pub total: usize,
    /// What is inside.
    pub protocol: u8,
    /// From whom.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// It is a piece of a larger packet.
    pub fragment: bool,
    /// It must not be cut.
    pub whole: bool,
}

/// Reads a header and checks its lengths against what is there.
///
/// # Errors
/// See [`Fault`].
pub fn parse(packet: &[u8]) -> Result<Header, Fault> {
    let first = *packet.first().ok_or(Fault::Malformed)?;
    match first >> 4 {
        4 => {}
        6 => return Err(Fault::Ipv6),
        _ => return Err(Fault::Malformed),
    }
    if packet.len() < HEADER_BYTES {
        return Err(Fault::Malformed);
    }
    let bytes = usize::from(first & 0x0f) * 4;
    let total = usize::from(word(packet, 2));
    if bytes < HEADER_BYTES || total < bytes || total > packet.len() {
        return Err(Fault::Malformed);
    }
    let pieces = word(packet, 6);
    Ok(Header {
        bytes,
        total,
        protocol: packet[9],
        source: address(packet, 12),
        destination: address(packet, 16),
        // More fragments follow, or some came before.
        fragment: pieces & 0x3fff != 0,
        whole: pieces & 0x4000 != 0,
    })
}

/// Reads two bytes as a number. The caller has checked that they are there.
#[must_use]
pub fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes two bytes.
pub fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn address(bytes: &[u8], at: usize) -> Ipv4Addr {
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

/// The ones' complement sum of 16-bit words, not yet complemented; an odd last byte counts as the upper one.
#[must_use]
pub fn sum(bytes: &[u8]) -> u16 {
    // In the machine's own byte order, which only swaps the bytes of the result (RFC 1071, section 2 B), and four
    // bytes at a time: 65,535 bytes cannot overflow 64 bits.
    let mut chunks = bytes.chunks_exact(4);
    let mut total: u64 = 0;
    for chunk in chunks.by_ref() {
        total += u64::from(u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let mut rest = [0; 4];
    rest[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    total += u64::from(u32::from_ne_bytes(rest));
    u16::from_be_bytes(fold(total).to_ne_bytes())
}

/// The sum of two sums.
#[must_use]
pub fn add(one: u16, other: u16) -> u16 {
    let (value, carried) = one.overflowing_add(other);
    value + u16::from(carried)
}

#[expect(clippy::cast_possible_truncation, reason = "after three foldings 16 bits are left")]
fn fold(mut total: u64) -> u16 {
    total = (total >> 32) + (total & 0xffff_ffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    total = (total >> 16) + (total & 0xffff);
    total as u16
}

/// The sum over the pseudo header (RFC 9293, section 3.1) of a packet whose content has so many bytes.
#[must_use]
pub fn pseudo_sum(packet: &[u8], protocol: u8, content: usize) -> u16 {
    let length = u16::try_from(content).unwrap_or(u16::MAX);
    add(sum(&packet[12..20]), add(u16::from(protocol), length))
}

/// Sets the header's checksum. The caller has parsed it.
pub fn seal_header(packet: &mut [u8], bytes: usize) {
    set_word(packet, 10, 0);
    let value = !sum(&packet[..bytes]);
    set_word(packet, 10, value);
}

/// A checksum after one word under it changed (RFC 1624, equation 3).
#[must_use]
pub fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    !add(add(!checksum, !old), new)
}

/// Writes "fragmentation needed" about a packet, and gives its length. It seems to come from the packet's destination:
/// that address is routed to where the answer comes from, so filters of the reverse path let it through.
#[must_use]
pub fn too_big(packet: &[u8], header: &Header, mtu: u16, out: &mut [u8; TOO_BIG_BYTES]) -> usize {
    let quoted = (header.bytes + 8).min(header.total);
    let total = HEADER_BYTES + 8 + quoted;
    out.fill(0);
    out[0] = 0x45;
    set_word(out, 2, u16::try_from(total).unwrap_or(u16::MAX));
    out[8] = 64;
    out[9] = 1;
    out[12..16].copy_from_slice(&header.destination.octets());
    out[16..20].copy_from_slice(&header.source.octets());
    seal_header(out, HEADER_BYTES);
    out[20] = 3;
    out[21] = 4;
    set_word(out, 26, mtu);
    out[28..total].copy_from_slice(&packet[..quoted]);
    let value = !sum(&out[HEADER_BYTES..total]);
    set_word(out, 22, value);
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 as it is written there.
    fn slow_sum(bytes: &[u8]) -> u16 {
        let mut total: u32 = 0;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    proptest! {
        #[test]
        fn the_sum_is_that_of_the_rfc(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(sum(&bytes), slow_sum(&bytes));
        }

        #[test]
        fn an_update_is_as_good_as_a_new_sum(mut bytes in proptest::collection::vec(any::<u8>(), 4..80), new: u16) {
            let before = !sum(&bytes[2..]);
            let old = word(&bytes, 2);
            set_word(&mut bytes, 2, new);
            let (after, fresh) = (updated(before, old, new), !sum(&bytes[2..]));
            // Both zeros of the ones' complement mean the same.
            prop_assert!(after == fresh || (after ^ fresh) == 0xffff && (after == 0 || fresh == 0));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(header) = parse(&bytes) {
                prop_assert!(header.bytes >= 20 && header.bytes <= header.total && header.total <= bytes.len());
                let mut out = [0; TOO_BIG_BYTES];
                let length = too_big(&bytes, &header, 1280, &mut out);
                prop_assert_eq!(sum(&out[..20]), 0xffff);
                prop_assert_eq!(sum(&out[20..length]), 0xffff);
            }
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut packet = [0u8; 28];
        packet[0] = 0x45;
        for (total, good) in [(0, false), (19, false), (20, true), (28, true), (29, false)] {
            set_word(&mut packet, 2, total);
            assert_eq!(parse(&packet).is_ok(), good, "{total}");
        }
        packet[0] = 0x44;
        assert_eq!(parse(&packet), Err(Fault::Malformed));
        packet[0] = 0x60;
        assert_eq!(parse(&packet), Err(Fault::Ipv6));
        assert_eq!(parse(&[]), Err(Fault::Malformed));
    }
}
