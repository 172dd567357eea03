//! What the NIC looks at in a frame: the sender, and whether the frame means activity.

/// Bytes of `struct virtio_net_hdr_v1`, which precedes each frame (virtio 1.2 section 5.1.6).
pub const VNET_HEADER: usize = 12;
/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Longest frame without the virtio-net header: an IP packet of 65535 bytes behind an Ethernet header with a
/// VLAN tag, which is what a TAP with offloads hands over.
pub const LONGEST_FRAME: usize = 65535 + ETHERNET_HEADER + 4;
/// How much of a frame is enough for [`is_activity`] and [`source`]: the headers up to the ICMPv6 type.
pub const PEEK: usize = ETHERNET_HEADER + IPV6_HEADER + 1;

const IPV6_HEADER: usize = 40;
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const NEXT_HEADER_ICMPV6: u8 = 58;
/// Router solicitation to redirect (RFC 4861 section 4).
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;

/// The sender's address, when the frame is as long as an Ethernet header.
#[must_use]
pub fn source(frame: &[u8]) -> Option<[u8; 6]> {
    if frame.len() < ETHERNET_HEADER { None } else { frame[6..12].try_into().ok() }
}

/// Whether the frame is more than the network keeping itself informed: not ARP and not IPv6 neighbour
/// discovery. Such frames do not keep a machine awake.
#[must_use]
pub fn is_activity(frame: &[u8]) -> bool {
    let Some(ethertype) = frame.get(12..14) else { return false };
    if ethertype == ETHERTYPE_ARP {
        return false;
    }
    let next_header = frame.get(ETHERNET_HEADER + 6);
    let icmp_type = frame.get(ETHERNET_HEADER + IPV6_HEADER);
    let discovery = ethertype == ETHERTYPE_IPV6
        && next_header == Some(&NEXT_HEADER_ICMPV6)
        && icmp_type.is_some_and(|t| NEIGHBOUR_DISCOVERY.contains(t));
    !discovery
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(ethertype: [u8; 2], rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1]);
        frame.extend(ethertype);
        frame.extend(rest);
        frame
    }

    fn ipv6(next_header: u8, icmp_type: u8) -> Vec<u8> {
        let mut packet = vec![0u8; 41];
        packet[6] = next_header;
        packet[40] = icmp_type;
        packet
    }

    #[test]
    fn arp_and_neighbour_discovery_are_no_activity_and_the_rest_is() {
        assert!(!is_activity(&frame(ETHERTYPE_ARP, &[0; 28])));
        assert!(!is_activity(&frame(ETHERTYPE_IPV6, &ipv6(58, 135))));
        assert!(is_activity(&frame(ETHERTYPE_IPV6, &ipv6(58, 128))));
        assert!(is_activity(&frame(ETHERTYPE_IPV6, &ipv6(6, 135))));
        assert!(is_activity(&frame([0x08, 0x00], &[0x45])));
        assert!(!is_activity(&[0; 13]));
    }

    #[test]
    fn a_frame_shorter_than_its_header_has_no_source() {
        assert_eq!(source(&frame(ETHERTYPE_ARP, &[])), Some([2, 0, 0, 0, 0, 1]));
        assert_eq!(source(&[0; 13]), None);
    }
}
