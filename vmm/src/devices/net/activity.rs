//! Which frames are somebody's traffic, and how many bytes of them went through the NIC.
//!
//! A machine sleeps when nobody uses it, so what a network says to keep itself informed must not keep it awake,
//! and a connection that only stays open must not either. What cannot be told from the bytes that are looked at
//! counts: a machine that stays awake too long is the smaller harm.
//!
//! The looking costs a bounded handful of comparisons on bytes that are in the cache already, no memory access
//! beyond [`HEADERS`], no copy and no allocation; the count is one relaxed addition for each frame, which may
//! carry 64 KiB.

use super::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, IPV4_HEADER};
use model::net::METADATA_IPV4;
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};

/// How much of a frame is looked at, without its virtio-net header: Ethernet, IPv6, [`EXTENSION_BYTES`], and TCP up to
/// its end without options. IPv4 with all its options is shorter.
pub const HEADERS: usize = ETHERNET_HEADER + IPV6_HEADER + EXTENSION_BYTES + TCP_HEADER;

const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
/// Room for the extension headers of an honest packet: a router alert, a fragment header, and some options.
const EXTENSION_BYTES: usize = 64;
/// Most extension headers that are skipped; each has 8 bytes or more.
const MAX_EXTENSIONS: usize = EXTENSION_BYTES / 8;

// Protocol numbers of IANA.
const HOP_BY_HOP: u8 = 0;
const IGMP: u8 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const NOTHING: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

/// FIN, SYN and RST (RFC 9293 section 3.1): they begin or end a connection.
const BEGIN_OR_END: u8 = 0b111;
/// Router solicitation to redirect (RFC 4861 section 4).
const NEIGHBOUR_DISCOVERY: RangeInclusive<u8> = 133..=137;
/// Query, report and done of the first version (RFC 2710 section 3).
const MULTICAST_LISTENER: RangeInclusive<u8> = 130..=132;
/// Report of the second version (RFC 3810 section 5.2).
const MULTICAST_REPORT: u8 = 143;
/// Servers and clients of DHCP (RFC 2131 section 4.1, RFC 8415 section 7.2).
const DHCP_PORTS: [u16; 4] = [67, 68, 546, 547];
/// Multicast DNS (RFC 6762), LLMNR (RFC 4795) and SSDP (UPnP device architecture), when they go to a group.
const GROUP_PORTS: [u16; 3] = [5353, 5355, 1900];

/// Bytes through one NIC that were somebody's traffic.
#[derive(Debug, Default)]
pub struct Activity(AtomicU64);

impl Activity {
    /// Bytes of such frames since the process began, both ways together, with their Ethernet headers. Only grows;
    /// one that compares two readings knows how much there was between them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts a frame of `len` bytes that begins with `head`, if it is somebody's traffic.
    pub(super) fn count(&self, head: &[u8], len: usize) {
        if is_activity(head) {
            self.0.fetch_add(len as u64, Ordering::Relaxed);
        }
    }
}

/// Whether a frame is somebody's traffic. `frame` is the frame from its Ethernet header on, or its first [`HEADERS`]
/// bytes.
///
/// Not traffic: all but IPv4 and IPv6 (ARP among it), neighbour discovery and router solicitations, IGMP and MLD, DHCP,
/// multicast DNS, LLMNR and SSDP, talk with the metadata address, and TCP segments without payload that neither begin
/// nor end a connection, which are keep-alives and acknowledgements.
#[must_use]
pub fn is_activity(frame: &[u8]) -> bool {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET_HEADER) else { return false };
    match [ethernet[12], ethernet[13]] {
        ETHERTYPE_IPV4 => ipv4(packet),
        ETHERTYPE_IPV6 => ipv6(packet),
        _ => false,
    }
}

fn ipv4(packet: &[u8]) -> bool {
    let Some(header) = packet.first_chunk::<IPV4_HEADER>() else { return false };
    let header_bytes = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_bytes < IPV4_HEADER {
        // No host takes it.
        return false;
    }
    let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
    let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
    if source == METADATA_IPV4 || destination == METADATA_IPV4 {
        return false;
    }
    let later_fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff != 0;
    if later_fragment {
        return true;
    }
    // Some senders leave the length of a large segment to their NIC.
    let len = if total == 0 { usize::MAX } else { total.saturating_sub(header_bytes) };
    let group = destination.is_multicast() || destination.is_broadcast();
    transport(header[9], packet.get(header_bytes..).unwrap_or_default(), len, group)
}

fn ipv6(packet: &[u8]) -> bool {
    let Some((header, mut rest)) = packet.split_at_checked(IPV6_HEADER) else { return false };
    if header[0] >> 4 != 6 {
        return false;
    }
    let group = header[24] == 0xff;
    let mut len = match u16::from_be_bytes([header[4], header[5]]) {
        // A jumbogram (RFC 2675).
        0 => usize::MAX,
        len => usize::from(len),
    };
    let mut kind = header[6];
    for _ in 0..=MAX_EXTENSIONS {
        let bytes = match (kind, rest) {
            (HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS, [_, units, ..]) => usize::from(*units) * 8 + 8,
            (AUTHENTICATION, [_, units, ..]) => usize::from(*units) * 4 + 8,
            (FRAGMENT, [_, _, high, low, ..]) => {
                if u16::from_be_bytes([*high, *low]) >> 3 != 0 {
                    return true;
                }
                8
            }
            _ => return transport(kind, rest, len, group),
        };
        kind = rest[0];
        rest = rest.get(bytes..).unwrap_or_default();
        len = len.saturating_sub(bytes);
    }
    true
}

/// `segment` is what is seen of `len` bytes behind the IP headers; `group`: they go to many.
fn transport(protocol: u8, segment: &[u8], len: usize, group: bool) -> bool {
    match (protocol, segment) {
        (TCP, [_, _, _, _, _, _, _, _, _, _, _, _, offset, flags, ..]) => {
            flags & BEGIN_OR_END != 0 || len > usize::from(offset >> 4) * 4
        }
        (UDP, [_, _, high, low, ..]) => {
            let port = u16::from_be_bytes([*high, *low]);
            let chatter = DHCP_PORTS.contains(&port) || (group && GROUP_PORTS.contains(&port));
            !chatter
        }
        (ICMPV6, [kind, ..]) => {
            let informs = NEIGHBOUR_DISCOVERY.contains(kind) || MULTICAST_LISTENER.contains(kind);
            !informs && *kind != MULTICAST_REPORT
        }
        (IGMP | NOTHING, _) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests;
