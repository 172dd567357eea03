//! TCP headers (RFC 9293): what splitting, coalescing and clamping need of them.

use super::ipv4::{self, Header, set_word, updated, word};

/// Bytes of a header without options.
pub const HEADER_BYTES: usize = 20;
/// Where the checksum stands in it.
pub const CHECKSUM_AT: usize = 16;
/// Where the flags stand in it.
pub const FLAGS_AT: usize = 13;
/// The last of a sender.
pub const FIN: u8 = 0x01;
/// The first of a connection.
pub const SYN: u8 = 0x02;
/// Hand it on at once.
pub const PSH: u8 = 0x08;
/// It acknowledges.
pub const ACK: u8 = 0x10;
/// The sender has slowed down (RFC 3168); only once.
pub const CWR: u8 = 0x80;

const OPTION_END: u8 = 0;
const OPTION_NOTHING: u8 = 1;
const OPTION_SEGMENT_SIZE: u8 = 2;

/// Length of the TCP header with its options, 20..=60; none when the packet has not a whole one.
#[must_use]
pub fn header_bytes(packet: &[u8], header: &Header) -> Option<usize> {
    if header.protocol != ipv4::TCP || header.fragment || header.total < header.bytes + HEADER_BYTES {
        return None;
    }
    let bytes = usize::from(packet[header.bytes + 12] >> 4) * 4;
    (bytes >= HEADER_BYTES && header.bytes + bytes <= header.total).then_some(bytes)
}

/// Lowers the segment size that a new connection offers to what a tunnel of this MTU carries, and its checksum with
/// it. Never raises it (RFC 9293, section 3.7.1). Says whether it did.
pub fn clamp(packet: &mut [u8], header: &Header, mtu: u16) -> bool {
    let Some(bytes) = header_bytes(packet, header) else { return false };
    let start = header.bytes;
    if packet[start + FLAGS_AT] & SYN == 0 {
        return false;
    }
    let most = mtu - 40;
    let mut at = start + HEADER_BYTES;
    let end = start + bytes;
    while at < end {
        match packet[at] {
            OPTION_END => return false,
            OPTION_NOTHING => at += 1,
            kind => {
                let Some(length) = packet[..end].get(at + 1).map(|length| usize::from(*length)) else {
                    return false;
                };
                if length < 2 || at + length > end {
                    return false;
                }
                if kind == OPTION_SEGMENT_SIZE && length == 4 {
                    return lower(packet, start, at + 2, most);
                }
                at += length;
            }
        }
    }
    false
}

fn lower(packet: &mut [u8], start: usize, at: usize, most: u16) -> bool {
    let offered = word(packet, at);
    if offered <= most {
        return false;
    }
    let (mut old, mut new) = (offered, most);
    if !(at - start).is_multiple_of(2) {
        // On an odd place its bytes belong to two words; swapping them in the sum is the same (RFC 1071, 2 B).
        (old, new) = (old.swap_bytes(), new.swap_bytes());
    }
    let checksum = word(packet, start + CHECKSUM_AT);
    set_word(packet, at, most);
    set_word(packet, start + CHECKSUM_AT, updated(checksum, old, new));
    true
}

/// Sets the checksum over all of it. The caller has parsed both headers.
pub fn seal(packet: &mut [u8], start: usize) {
    set_word(packet, start + CHECKSUM_AT, 0);
    let content = packet.len() - start;
    let value = !ipv4::add(ipv4::pseudo_sum(packet, ipv4::TCP, content), ipv4::sum(&packet[start..]));
    set_word(packet, start + CHECKSUM_AT, value);
}

/// Whether both checksums are right. The caller has parsed both headers.
#[must_use]
pub fn is_sound(packet: &[u8], start: usize) -> bool {
    let content = packet.len() - start;
    ipv4::sum(&packet[..start]) == 0xffff
        && ipv4::add(ipv4::pseudo_sum(packet, ipv4::TCP, content), ipv4::sum(&packet[start..])) == 0xffff
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A sound packet with these flags, options (padded) and payload.
    pub(crate) fn segment(sequence: u32, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let tcp = 20 + options.len().next_multiple_of(4);
        let mut packet = vec![0; 20 + tcp];
        packet[0] = 0x45;
        packet[6] = 0x40;
        packet[8] = 64;
        packet[9] = ipv4::TCP;
        packet[12..20].copy_from_slice(&[10, 0, 0, 5, 100, 96, 0, 2]);
        packet[20..24].copy_from_slice(&[0x1f, 0x90, 0xc0, 0x01]);
        packet[24..28].copy_from_slice(&sequence.to_be_bytes());
        packet[32] = u8::try_from(tcp / 4).expect("short") << 4;
        packet[33] = flags;
        packet[40..40 + options.len()].copy_from_slice(options);
        packet.extend(payload);
        let total = u16::try_from(packet.len()).expect("short");
        set_word(&mut packet, 2, total);
        ipv4::seal_header(&mut packet, 20);
        seal(&mut packet, 20);
        packet
    }

    proptest! {
        #[test]
        fn clamping_only_lowers_and_keeps_the_checksum(
            offered: u16, mtu in 576u16..9000, nothings in 0usize..6, behind in proptest::collection::vec(any::<u8>(), 0..9)
        ) {
            let mut options = vec![OPTION_NOTHING; nothings];
            options.extend([OPTION_SEGMENT_SIZE, 4]);
            options.extend(offered.to_be_bytes());
            let mut packet = segment(1, SYN, &options, &behind);
            let header = ipv4::parse(&packet).expect("good");
            let done = clamp(&mut packet, &header, mtu);
            prop_assert_eq!(done, offered > mtu - 40);
            prop_assert_eq!(word(&packet, 42 + nothings), offered.min(mtu - 40));
            prop_assert!(is_sound(&packet, 20));
        }

        #[test]
        fn no_options_make_it_panic(options in proptest::collection::vec(0u8..6, 0..40), flags: u8) {
            let mut packet = segment(1, flags, &options, &[]);
            let header = ipv4::parse(&packet).expect("good");
            clamp(&mut packet, &header, 1280);
            prop_assert!(is_sound(&packet, 20));
        }
    }

    #[test]
    fn later_segments_are_left_alone() {
        let mut packet = segment(1, ACK, &[2, 4, 0xff, 0xff], b"x");
        let before = packet.clone();
        let header = ipv4::parse(&packet).expect("good");
        assert!(!clamp(&mut packet, &header, 1280));
        assert_eq!(packet, before);
    }
}
