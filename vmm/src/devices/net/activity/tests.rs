//! Crafted frames of each kind, and any bytes.

use super::*;
use proptest::prelude::*;

const GUEST: [u8; 4] = [10, 0, 0, 2];
const PEER: [u8; 4] = [192, 0, 2, 7];
const ACK: u8 = 0x10;

fn ethernet(ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1], &ethertype, packet].concat()
}

/// An IPv4 frame; `fragment` is the field with flags and offset.
fn v4(protocol: u8, to: [u8; 4], fragment: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(GUEST);
    packet.extend(to);
    packet.extend(payload);
    ethernet(ETHERTYPE_IPV4, &packet)
}

fn v6(next: u8, group: bool, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 255]);
    packet.extend([0xfd; 16]);
    packet.extend([if group { 0xff } else { 0xfd }; 16]);
    packet.extend(payload);
    ethernet(ETHERTYPE_IPV6, &packet)
}

/// A TCP segment with 12 bytes of options.
fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let mut segment = vec![0; 32 + payload];
    segment[12] = 8 << 4;
    segment[13] = flags;
    segment
}

fn udp(port: u16) -> Vec<u8> {
    let mut datagram = vec![0xc0, 0];
    datagram.extend(port.to_be_bytes());
    datagram.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    datagram
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    frame.resize(frame.len().max(100), 0);
    frame
}

/// Whether it counts, whole and cut to what is looked at.
fn counts(frame: &[u8]) -> bool {
    let whole = is_activity(frame);
    assert_eq!(whole, is_activity(&frame[..frame.len().min(HEADERS)]), "{frame:02x?}");
    whole
}

#[test]
fn what_the_network_says_of_itself_does_not_count() {
    assert!(!counts(&ethernet([0x08, 0x06], &[0; 28])));
    assert!(!counts(&ethernet([0x88, 0xcc], &[0; 60])));
    assert!(!counts(&v4(IGMP, [224, 0, 0, 22], 0, &[0x22; 8])));
    for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
        assert!(!counts(&v6(ICMPV6, true, &[kind, 0, 0, 0])), "type {kind}");
    }
    // A report of listeners comes behind a router alert (RFC 3810 section 5).
    assert!(!counts(&v6(HOP_BY_HOP, true, &[ICMPV6, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0])));
    assert!(!counts(&v4(UDP, [255; 4], 0, &udp(67))));
    assert!(!counts(&v4(UDP, PEER, 0, &udp(68))));
    assert!(!counts(&v6(UDP, true, &udp(547))));
    for port in [5353, 5355, 1900] {
        assert!(!counts(&v4(UDP, [239, 255, 255, 250], 0, &udp(port))));
        assert!(!counts(&v6(UDP, true, &udp(port))));
    }
    assert!(!counts(&v6(NOTHING, false, &[])));
}

#[test]
fn what_somebody_says_counts() {
    assert!(counts(&v4(1, PEER, 0, &[8, 0, 0, 0])));
    assert!(counts(&v6(ICMPV6, false, &[128, 0, 0, 0])));
    assert!(counts(&v4(UDP, PEER, 0, &udp(53))));
    // The ports of multicast DNS and its like mean nothing between two.
    assert!(counts(&v4(UDP, PEER, 0, &udp(5353))));
    assert!(counts(&v4(47, PEER, 0, &[0; 4])));
    assert!(counts(&v6(6, false, &tcp(ACK, 1))));
}

#[test]
fn a_connection_that_only_stays_open_does_not_count() {
    for flags in [0, ACK, ACK | 0x08, ACK | 0x40] {
        assert!(!counts(&v4(TCP, PEER, 0, &tcp(flags, 0))));
        // Ethernet pads short frames; padding is no payload.
        assert!(!counts(&padded(v4(TCP, PEER, 0, &tcp(flags, 0)))));
        assert!(!counts(&padded(v6(TCP, false, &tcp(flags, 0)))));
        assert!(counts(&v4(TCP, PEER, 0, &tcp(flags, 1))));
    }
    for flags in [0x01, 0x02, 0x04, ACK | 0x01, ACK | 0x02, ACK | 0x04] {
        assert!(counts(&v4(TCP, PEER, 0, &tcp(flags, 0))));
        assert!(counts(&v6(TCP, false, &tcp(flags, 0))));
    }
    let mut large = v4(TCP, PEER, 0, &tcp(ACK, 60_000));
    assert!(counts(&large));
    large[16..18].copy_from_slice(&[0, 0]);
    assert!(counts(&large), "a sender may leave the length to its NIC");
}

#[test]
fn talk_with_the_metadata_address_does_not_count() {
    let metadata = METADATA_IPV4.octets();
    assert!(!counts(&v4(TCP, metadata, 0, &tcp(ACK, 100))));
    let mut answer = v4(TCP, PEER, 0, &tcp(ACK, 100));
    answer[26..30].copy_from_slice(&metadata);
    assert!(!counts(&answer));
}

#[test]
fn later_fragments_count_and_first_ones_are_looked_into() {
    let more = 0x2000;
    assert!(counts(&v4(UDP, [255; 4], 185, &udp(67))));
    assert!(counts(&v4(IGMP, [255; 4], 1, &[])));
    assert!(!counts(&v4(UDP, [255; 4], more, &udp(67))));
    assert!(counts(&v4(TCP, PEER, more, &tcp(ACK, 8)[..8])), "too short to tell");
    let fragment = |offset: u16| {
        let [high, low] = (offset << 3 | 1).to_be_bytes();
        v6(FRAGMENT, true, &[&[UDP, 0, high, low, 0, 0, 0, 1][..], &udp(5353)].concat())
    };
    assert!(!counts(&fragment(0)));
    assert!(counts(&fragment(185)));
}

#[test]
fn extension_headers_are_skipped_within_a_bound() {
    let chain = |headers: usize| {
        let mut payload = Vec::new();
        for n in 1..=headers {
            payload.extend([if n == headers { TCP } else { DESTINATION_OPTIONS }, 0, 1, 4, 0, 0, 0, 0]);
        }
        payload.extend(&tcp(ACK, 0)[..20]);
        let at = payload.len() - 8;
        payload[at] = 5 << 4;
        v6(DESTINATION_OPTIONS, false, &payload)
    };
    assert!(!counts(&chain(1)));
    assert!(!counts(&chain(MAX_EXTENSIONS)));
    assert!(counts(&chain(MAX_EXTENSIONS + 1)));
    let authenticated = [&[TCP, 4, 0, 0][..], &[0; 20], &tcp(ACK, 0)].concat();
    assert!(!counts(&v6(AUTHENTICATION, false, &authenticated)));
    // One header that claims to be longer than what is looked at.
    assert!(counts(&v6(ROUTING, false, &[&[TCP, 40][..], &[0; 400]].concat())));
}

#[test]
fn short_and_senseless_frames_do_not_count() {
    let frame = v4(TCP, PEER, 0, &tcp(0x02, 0));
    for len in 0..ETHERNET_HEADER + IPV4_HEADER {
        assert!(!is_activity(&frame[..len]));
    }
    assert!(is_activity(&frame[..ETHERNET_HEADER + IPV4_HEADER]), "its segment may be anything");
    let mut wrong = frame.clone();
    wrong[14] = 0x65;
    assert!(!is_activity(&wrong));
    wrong[14] = 0x44;
    assert!(!is_activity(&wrong));
}

#[test]
fn the_count_is_of_whole_frames() {
    let activity = Activity::default();
    activity.count(&v4(TCP, PEER, 0, &tcp(ACK, 9)), 65_000);
    activity.count(&v4(TCP, PEER, 0, &tcp(ACK, 0)), 66);
    activity.count(&v6(UDP, false, &udp(443)), 100);
    assert_eq!(activity.bytes(), 65_100);
}

proptest! {
    #[test]
    fn any_bytes_are_looked_at_within_the_bound(
        kind in 0usize..3,
        frame in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let mut frame = frame;
        let beginning: &[u8] = [&[][..], &[0x08, 0x00, 0x45], &[0x86, 0xdd, 0x60]][kind];
        if frame.len() >= 15 {
            frame[12..12 + beginning.len()].copy_from_slice(beginning);
        }
        counts(&frame);
    }

    /// Neither length, padding nor ports make a bare acknowledgement count; one byte of payload does.
    #[test]
    fn payload_decides(ports in any::<[u8; 4]>(), payload in 0usize..1000, padding in 0usize..60, six in any::<bool>()) {
        let mut segment = tcp(ACK, payload);
        segment[..4].copy_from_slice(&ports);
        let mut frame = if six { v6(TCP, false, &segment) } else { v4(TCP, PEER, 0, &segment) };
        frame.resize(frame.len() + padding, 0);
        prop_assert_eq!(counts(&frame), payload > 0);
    }
}
