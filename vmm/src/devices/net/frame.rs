//! What the NIC looks at in a frame: the sender, and whether the frame is for the link-local addresses that never
//! reach the wire.

use super::activity::HEADERS;
use model::net::{GATEWAY_IPV4, METADATA_IPV4};
use std::net::Ipv4Addr;

/// Bytes of `struct virtio_net_hdr_v1`, which precedes each frame (virtio 1.2 section 5.1.6).
pub const VNET_HEADER: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Longest frame without the virtio-net header: an IP packet of 65535 bytes behind an Ethernet header with a
/// VLAN tag, which is what a TAP with offloads hands over.
pub const LONGEST_FRAME: usize = 65535 + ETHERNET_HEADER + 4;
/// How much of a frame is enough for all that is looked at.
pub const PEEK: usize = HEADERS;

/// Bytes of an IPv4 header without options.
pub(super) const IPV4_HEADER: usize = 20;
/// Bytes of an ARP packet for IPv4 on Ethernet (RFC 826).
pub(super) const ARP_PACKET: usize = 28;
pub(super) const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
pub(super) const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
pub(super) const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
/// Operation of an ARP packet: who has this address?
pub(super) const ARP_REQUEST: [u8; 2] = [0, 1];

/// Where a frame of the guest goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To the network.
    Wire,
    /// To the metadata address: a packet, or the question who has it.
    Metadata,
    /// To a link-local address that nobody has.
    Nobody,
}

/// The sender's address, when the frame is as long as an Ethernet header.
#[must_use]
pub fn source(frame: &[u8]) -> Option<[u8; 6]> {
    if frame.len() < ETHERNET_HEADER { None } else { frame[6..12].try_into().ok() }
}

/// Where a frame goes, of which `frame` is the beginning. Of 169.254.0.0/16 (RFC 3927) only the gateway is on the
/// wire. An answer to an ARP request goes to whoever asked.
#[must_use]
pub fn destination(frame: &[u8]) -> Destination {
    let Some((ethernet, packet)) = frame.split_at_checked(ETHERNET_HEADER) else { return Destination::Wire };
    let target = match ([ethernet[12], ethernet[13]], packet) {
        (ETHERTYPE_IPV4, packet) => packet.get(16..IPV4_HEADER),
        (ETHERTYPE_ARP, [_, _, _, _, _, _, high, low, ..]) if [*high, *low] == ARP_REQUEST => {
            packet.get(24..ARP_PACKET)
        }
        _ => None,
    };
    let target = target.and_then(|octets| <[u8; 4]>::try_from(octets).ok()).map(Ipv4Addr::from);
    match target {
        Some(METADATA_IPV4) => Destination::Metadata,
        Some(address) if address.is_link_local() && address != GATEWAY_IPV4 => Destination::Nobody,
        Some(_) | None => Destination::Wire,
    }
}

/// Whether a frame says that it comes from the metadata address, which on the wire can only be a lie.
#[must_use]
pub fn claims_metadata(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE_IPV4) && frame.get(26..30) == Some(&METADATA_IPV4.octets())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(ethertype: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1]);
        frame.extend(ethertype);
        frame.extend(rest);
        frame
    }

    fn packet_to(address: [u8; 4]) -> Vec<u8> {
        frame(ETHERTYPE_IPV4, &[&[0x45; 16][..], &address].concat())
    }

    fn arp(operation: u8, target: [u8; 4]) -> Vec<u8> {
        frame(ETHERTYPE_ARP, &[&[0, 1, 8, 0, 6, 4, 0, operation][..], &[0; 16], &target].concat())
    }

    #[test]
    fn a_frame_shorter_than_its_header_has_no_source() {
        assert_eq!(source(&frame(ETHERTYPE_ARP, &[])), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(source(&[0; 13]), None);
    }

    #[test]
    fn of_the_link_local_addresses_only_the_gateway_is_on_the_wire() {
        for (address, expected) in [
            ([169, 254, 169, 254], Destination::Metadata),
            ([169, 254, 1, 1], Destination::Wire),
            ([169, 254, 1, 2], Destination::Nobody),
            ([169, 254, 255, 255], Destination::Nobody),
            ([169, 253, 169, 254], Destination::Wire),
            ([10, 0, 0, 1], Destination::Wire),
        ] {
            assert_eq!(destination(&packet_to(address)), expected);
            assert_eq!(destination(&arp(1, address)), expected);
            assert_eq!(destination(&arp(2, address)), Destination::Wire);
        }
        let packet = packet_to([169, 254, 169, 254]);
        assert_eq!(destination(&packet[..packet.len() - 1]), Destination::Wire);
    }

    #[test]
    fn who_claims_the_metadata_address_is_seen() {
        let from = |address: [u8; 4]| frame(ETHERTYPE_IPV4, &[&[0x45; 12][..], &address, &[10; 4]].concat());
        assert!(claims_metadata(&from([169, 254, 169, 254])));
        assert!(!claims_metadata(&from([169, 254, 1, 1])));
        assert!(!claims_metadata(&from([169, 254, 169, 254])[..29]));
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_destination(frame in prop::collection::vec(any::<u8>(), 0..100)) {
            let seen = destination(&frame);
            prop_assert_eq!(seen, destination(&frame[..frame.len().min(PEEK)]));
            prop_assert_eq!(claims_metadata(&frame), claims_metadata(&frame[..frame.len().min(PEEK)]));
        }
    }
}
