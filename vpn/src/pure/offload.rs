//! Frames of a TUN with offload: what the kernel left undone is done here, so that what is sealed is whole.
//!
//! In front of each frame stands `struct virtio_net_hdr_v1` (virtio 1.2, section 5.1.6) in the machine's byte order.
//! A frame may be up to 64 KiB of one TCP connection, to be split into segments, or lack its checksum.

use super::ipv4::{self, Fault, Header, set_word, word};
use super::tcp::{self, CWR, FIN, FLAGS_AT, PSH};

/// Bytes in front of each frame.
pub const VNET_BYTES: usize = 12;
/// Largest frame behind them (RFC 791: total length).
pub const MAX_FRAME_BYTES: usize = 65_535;

const NEEDS_CHECKSUM: u8 = 1;
const KIND_NONE: u8 = 0;
const KIND_TCP4: u8 = 1;
/// Beside the kind: the sender understands congestion marks.
const KIND_ECN: u8 = 0x80;

/// One packet or several in one.
#[derive(Debug)]
pub struct Frame<'a> {
    bytes: &'a mut [u8],
    /// Its IPv4 header.
    pub header: Header,
    /// IP and TCP header, and payload of each segment; none when it is one packet.
    split: Option<(usize, usize)>,
    /// Payload that has been given out.
    done: usize,
}

impl<'a> Frame<'a> {
    /// Reads what a TUN gave, and completes the checksum of a single packet.
    ///
    /// # Errors
    /// When it is not IPv4, or something that was not asked of the TUN.
    pub fn read(given: &'a mut [u8]) -> Result<Self, Fault> {
        let (vnet, bytes) = given.split_at_mut_checked(VNET_BYTES).ok_or(Fault::Malformed)?;
        let header = ipv4::parse(bytes)?;
        let bytes = &mut bytes[..header.total];
        let field = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
        let split = match vnet[1] & !KIND_ECN {
            KIND_NONE => {
                if vnet[0] & NEEDS_CHECKSUM != 0 {
                    complete(bytes, &header, field(6), field(8))?;
                }
                None
            }
            KIND_TCP4 => {
                let tcp = tcp::header_bytes(bytes, &header).ok_or(Fault::Malformed)?;
                match field(4) {
                    0 => return Err(Fault::Malformed),
                    size => Some((header.bytes + tcp, size)),
                }
            }
            _ => return Err(Fault::Malformed),
        };
        Ok(Self { bytes, header, split, done: 0 })
    }

    /// All of it, as the header says.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// Bytes of its largest packet.
    #[must_use]
    pub fn largest(&self) -> usize {
        match self.split {
            None => self.bytes.len(),
            Some((headers, size)) => self.bytes.len().min(headers + size),
        }
    }

    /// Writes the next packet, with right checksums, and gives its length; none when all have been written. `out` has
    /// at least [`Self::largest`] bytes.
    pub fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        let Some((headers, size)) = self.split else {
            if self.done > 0 {
                return None;
            }
            self.done = self.bytes.len();
            out[..self.bytes.len()].copy_from_slice(self.bytes);
            return Some(self.bytes.len());
        };
        let payload = self.bytes.len() - headers;
        // One without payload is one packet all the same.
        if self.done >= payload.max(1) {
            return None;
        }
        let size = size.min(payload - self.done);
        let from = headers + self.done;
        let out = &mut out[..headers + size];
        out[..headers].copy_from_slice(&self.bytes[..headers]);
        out[headers..].copy_from_slice(&self.bytes[from..from + size]);
        self.number(out, size == payload - self.done);
        self.done += size.max(1);
        Some(out.len())
    }

    /// Gives a segment its length, numbers, flags and checksums.
    fn number(&self, out: &mut [u8], last: bool) {
        let (start, done) = (self.header.bytes, u32::try_from(self.done).unwrap_or(u32::MAX));
        let (_, size) = self.split.unwrap_or((0, 1));
        let place = u16::try_from(self.done / size).unwrap_or(u16::MAX);
        set_word(out, 2, u16::try_from(out.len()).unwrap_or(u16::MAX));
        let identification = word(out, 4).wrapping_add(place);
        set_word(out, 4, identification);
        ipv4::seal_header(out, start);
        let at = start + 4;
        let sequence = u32::from_be_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        out[at..at + 4].copy_from_slice(&sequence.wrapping_add(done).to_be_bytes());
        if done > 0 {
            out[start + FLAGS_AT] &= !CWR;
        }
        if !last {
            out[start + FLAGS_AT] &= !(FIN | PSH);
        }
        tcp::seal(out, start);
    }
}

/// Completes a checksum of which only the pseudo header's part is there.
fn complete(bytes: &mut [u8], header: &Header, start: usize, offset: usize) -> Result<(), Fault> {
    let field = start + offset;
    if start < header.bytes || field + 2 > bytes.len() {
        return Err(Fault::Malformed);
    }
    let value = match !ipv4::sum(&bytes[start..]) {
        // In UDP zero means that there is none (RFC 768).
        0 if header.protocol == ipv4::UDP => 0xffff,
        value => value,
    };
    set_word(bytes, field, value);
    Ok(())
}

/// What stands in front of a frame of several TCP segments of this payload each, and what of its checksums is left to
/// the kernel: the TCP checksum field gets the pseudo header's part.
pub fn announce(vnet: &mut [u8; VNET_BYTES], headers: usize, start: usize, size: usize) {
    vnet.fill(0);
    let mut set = |at: usize, value: usize| {
        vnet[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_ne_bytes());
    };
    set(2, headers);
    set(4, size);
    set(6, start);
    set(8, tcp::CHECKSUM_AT);
    vnet[0] = NEEDS_CHECKSUM;
    vnet[1] = KIND_TCP4;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pure::tcp::tests::segment;
    use proptest::prelude::*;

    /// A frame as the kernel gives it: one large segment, its checksum begun only.
    pub(crate) fn large(packet: &[u8], size: u16) -> Vec<u8> {
        let header = ipv4::parse(packet).expect("good");
        let tcp = tcp::header_bytes(packet, &header).expect("TCP");
        let mut vnet = [0; VNET_BYTES];
        announce(&mut vnet, header.bytes + tcp, header.bytes, usize::from(size));
        let mut frame = vnet.to_vec();
        frame.extend(packet);
        let pseudo = ipv4::pseudo_sum(packet, ipv4::TCP, packet.len() - header.bytes);
        set_word(&mut frame, VNET_BYTES + header.bytes + tcp::CHECKSUM_AT, pseudo);
        frame
    }

    proptest! {
        #[test]
        fn split_segments_are_sound_and_make_the_whole(
            payload in proptest::collection::vec(any::<u8>(), 0..9000), size in 1u16..1500, flags: u8, sequence: u32
        ) {
            let packet = segment(sequence, flags & !tcp::SYN, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], &payload);
            let mut given = large(&packet, size);
            let mut frame = Frame::read(&mut given).expect("good");
            let largest = frame.largest();
            prop_assert!(largest <= 52 + usize::from(size));
            let (mut out, mut whole, mut count) = (vec![0; largest], Vec::<u8>::new(), 0);
            while let Some(length) = frame.next(&mut out) {
                let piece = &out[..length];
                let header = ipv4::parse(piece).expect("good");
                prop_assert_eq!(header.total, length);
                prop_assert!(tcp::is_sound(piece, 20));
                let at = u32::from_be_bytes([piece[24], piece[25], piece[26], piece[27]]);
                prop_assert_eq!(at, sequence.wrapping_add(u32::try_from(whole.len()).expect("short")));
                whole.extend(&piece[52..]);
                let last = whole.len() == payload.len();
                let kept = (if last { FIN | PSH } else { 0 }) | if count == 0 { CWR } else { 0 };
                let others = !(FIN | PSH | CWR);
                prop_assert_eq!(piece[33], flags & !tcp::SYN & (others | kept));
                count += 1;
            }
            prop_assert_eq!(count, payload.len().div_ceil(usize::from(size)).max(1));
            prop_assert_eq!(whole, payload);
        }

        #[test]
        fn no_frame_makes_it_panic(mut given in proptest::collection::vec(any::<u8>(), 0..200), kind in 0u8..7, odd: bool) {
            if given.len() > 32 && !odd {
                let length = u16::try_from(given.len() - 12).expect("short");
                given[1] = kind;
                given[12] = 0x45;
                given[14..16].copy_from_slice(&length.to_be_bytes());
                given[21] = ipv4::TCP;
            }
            if let Ok(mut frame) = Frame::read(&mut given) {
                let mut out = vec![0; frame.largest()];
                while frame.next(&mut out).is_some() {}
            }
        }

        #[test]
        fn a_checksum_that_was_left_to_us_is_completed(payload in proptest::collection::vec(any::<u8>(), 0..1000)) {
            let whole = segment(7, tcp::ACK, &[], &payload);
            let mut given = large(&whole, 1);
            given[1] = KIND_NONE;
            let mut frame = Frame::read(&mut given).expect("good");
            let mut out = vec![0; frame.largest()];
            prop_assert_eq!(frame.next(&mut out), Some(whole.len()));
            prop_assert_eq!(&out, &whole);
            prop_assert_eq!(frame.next(&mut out), None);
        }
    }
}
