//! Segments of one TCP connection that came out of a tunnel one after another go into their network as one frame: the
//! kernel walks its stack once for it. The rules are those of the kernel's own receive offload (net/ipv4/tcp_offload.c).
//!
//! ```text
//!   Empty ─ any packet ─► Open(1) ─ next of the same connection ─► Open(n) ─ shorter one or PSH ─► Closed(n)
//!     ▲                      │ other packet                          │ other packet                   │ any packet
//!     └──── written alone ───┴───────── written as one frame ────────┴───────────────◄────────────────┘
//! ```

use super::ipv4::{self, set_word, word};
use super::offload::{MAX_FRAME_BYTES, VNET_BYTES, announce};
use super::table::NetworkId;
use super::tcp::{self, ACK, CHECKSUM_AT, FLAGS_AT, PSH};

/// Connections whose frames are being made at once, of all networks. What comes out of one batch of datagrams is seldom
/// of more; each has 64 KiB.
const FRAMES: usize = 16;

/// Which connection a segment is of: its network, addresses and ports.
type Flow = (NetworkId, [u8; 12]);

/// The frames that are being made. Packets of a connection stay in order; those of others may pass them.
#[derive(Debug, Default)]
pub struct Frames {
    flows: [Option<Flow>; FRAMES],
    coalescers: [Coalescer; FRAMES],
    /// Whose place is taken next when there is none.
    next: usize,
}

impl Frames {
    /// Takes a packet, and hands out what is complete, or gives place: a frame and of how many packets it is.
    pub fn push(
        &mut self,
        network: NetworkId,
        packet: &[u8],
        mut write: impl FnMut(NetworkId, &[u8], usize),
    ) {
        let Some(flow) = flow(network, packet) else {
            // No segment: it goes at once, through a place that is free or made so.
            let place = self.place(&mut write);
            let alone = self.coalescers[place].push(packet);
            debug_assert!(alone, "an empty one takes anything");
            hand_out(network, &mut self.coalescers[place], &mut write);
            return;
        };
        let known = self.flows.iter().position(|held| *held == Some(flow));
        let place = known.unwrap_or_else(|| self.place(&mut write));
        self.flows[place] = Some(flow);
        if !self.coalescers[place].push(packet) {
            hand_out(network, &mut self.coalescers[place], &mut write);
            let taken = self.coalescers[place].push(packet);
            debug_assert!(taken, "an empty one takes anything");
        }
    }

    /// Hands out all that is left.
    pub fn flush(&mut self, mut write: impl FnMut(NetworkId, &[u8], usize)) {
        for (held, coalescer) in self.flows.iter_mut().zip(&mut self.coalescers) {
            if let Some((network, _)) = held.take() {
                hand_out(network, coalescer, &mut write);
            }
        }
    }

    /// A place without a connection.
    fn place(&mut self, write: &mut impl FnMut(NetworkId, &[u8], usize)) -> usize {
        if let Some(free) = self.flows.iter().position(Option::is_none) {
            return free;
        }
        let place = self.next;
        self.next = (self.next + 1) % FRAMES;
        if let Some((network, _)) = self.flows[place].take() {
            hand_out(network, &mut self.coalescers[place], write);
        }
        place
    }
}

fn hand_out(network: NetworkId, coalescer: &mut Coalescer, write: &mut impl FnMut(NetworkId, &[u8], usize)) {
    if let Some((frame, packets)) = coalescer.take() {
        write(network, frame, packets);
    }
}

/// Of which connection a packet is; none when it is no whole segment.
fn flow(network: NetworkId, packet: &[u8]) -> Option<Flow> {
    let header = ipv4::parse(packet).ok()?;
    tcp::header_bytes(packet, &header)?;
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&packet[12..20]);
    bytes[8..].copy_from_slice(&packet[header.bytes..header.bytes + 4]);
    Some((network, bytes))
}

/// The frame that is being made for one connection.
#[derive(Debug)]
pub struct Coalescer {
    /// Header for the TUN, and the frame.
    bytes: Box<[u8]>,
    /// Bytes in use, [`VNET_BYTES`] when it is empty.
    used: usize,
    open: Option<Open>,
    segments: usize,
}

/// What the next segment must continue.
#[derive(Clone, Copy, Debug)]
struct Open {
    headers: usize,
    start: usize,
    size: usize,
    next: u32,
}

impl Default for Coalescer {
    fn default() -> Self {
        let bytes = vec![0; VNET_BYTES + MAX_FRAME_BYTES].into();
        Self { bytes, used: VNET_BYTES, open: None, segments: 0 }
    }
}

impl Coalescer {
    /// Takes a packet into the frame; false when it does not belong there, and the frame must be taken first. An empty
    /// one takes any packet of up to [`MAX_FRAME_BYTES`].
    pub fn push(&mut self, packet: &[u8]) -> bool {
        if self.segments == 0 {
            self.used = VNET_BYTES + packet.len();
            self.bytes[VNET_BYTES..self.used].copy_from_slice(packet);
            self.open = first(packet);
            self.segments = 1;
            return true;
        }
        let Some(open) = self.open else { return false };
        let frame = &self.bytes[VNET_BYTES..self.used];
        if !continues(frame, &open, packet) || self.used - VNET_BYTES + packet.len() > MAX_FRAME_BYTES {
            return false;
        }
        let payload = &packet[open.headers..];
        self.bytes[self.used..self.used + payload.len()].copy_from_slice(payload);
        self.used += payload.len();
        self.segments += 1;
        let flags = packet[open.start + FLAGS_AT];
        self.bytes[VNET_BYTES + open.start + FLAGS_AT] |= flags & PSH;
        let next = open.next.wrapping_add(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        let more = payload.len() == open.size && flags & PSH == 0;
        self.open = Some(Open { next, ..open });
        if !more {
            self.close(&open);
        }
        true
    }

    /// What is to be written to the TUN, and of how many packets it is made; none when it is empty. It is empty
    /// afterwards.
    pub fn take(&mut self) -> Option<(&[u8], usize)> {
        let segments = std::mem::take(&mut self.segments);
        if segments == 0 {
            return None;
        }
        match self.open.take() {
            Some(open) if segments > 1 => self.close(&open),
            // One packet has its own checksums.
            Some(_) => self.bytes[..VNET_BYTES].fill(0),
            None if segments == 1 => self.bytes[..VNET_BYTES].fill(0),
            // Closed already.
            None => {}
        }
        Some((&self.bytes[..self.used], segments))
    }

    fn close(&mut self, open: &Open) {
        self.open = None;
        let (vnet, frame) = self.bytes[..self.used].split_at_mut(VNET_BYTES);
        if let Ok(vnet) = vnet.try_into() {
            announce(vnet, open.headers, open.start, open.size);
        }
        set_word(frame, 2, u16::try_from(frame.len()).unwrap_or(u16::MAX));
        ipv4::seal_header(frame, open.start);
        let pseudo = ipv4::pseudo_sum(frame, ipv4::TCP, frame.len() - open.start);
        set_word(frame, open.start + CHECKSUM_AT, pseudo);
    }
}

/// What continues this packet, if anything may.
fn first(packet: &[u8]) -> Option<Open> {
    let header = ipv4::parse(packet).ok()?;
    let tcp = tcp::header_bytes(packet, &header)?;
    let (start, headers) = (header.bytes, header.bytes + tcp);
    let plain = start == ipv4::HEADER_BYTES && header.total == packet.len() && header.whole;
    let size = packet.len() - headers;
    // A pushed one may be the last of several, but not the first.
    if !plain || size == 0 || packet[start + FLAGS_AT] != ACK || !tcp::is_sound(packet, start) {
        return None;
    }
    let next = sequence(packet, start).wrapping_add(u32::try_from(size).unwrap_or(u32::MAX));
    Some(Open { headers, start, size, next })
}

fn continues(frame: &[u8], open: &Open, packet: &[u8]) -> bool {
    let (start, headers) = (open.start, open.headers);
    let plain = packet.len() > headers
        && packet.len() - headers <= open.size
        && usize::from(word(packet, 2)) == packet.len();
    plain
        // Version, length and class; not total length and identification, which has no meaning in whole packets (RFC 6864).
        && packet[..2] == frame[..2]
        && packet[6..10] == frame[6..10]
        && packet[12..start + 4] == frame[12..start + 4]
        && sequence(packet, start) == open.next
        // Acknowledgement and header length.
        && packet[start + 8..start + 13] == frame[start + 8..start + 13]
        && packet[start + FLAGS_AT] & !PSH == ACK
        && word(packet, start + 14) == word(frame, start + 14)
        && packet[start + 18..headers] == frame[start + 18..headers]
        && tcp::is_sound(packet, start)
}

fn sequence(packet: &[u8], start: usize) -> u32 {
    u32::from_be_bytes([packet[start + 4], packet[start + 5], packet[start + 6], packet[start + 7]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::offload::Frame;
    use crate::pure::tcp::tests::segment;
    use proptest::prelude::*;

    const OPTIONS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];

    /// What comes out of a TUN's other end: each frame split again.
    fn through(packets: &[Vec<u8>]) -> (Vec<Vec<u8>>, usize) {
        let mut coalescer = Coalescer::default();
        let mut frames = Vec::new();
        for packet in packets {
            if !coalescer.push(packet) {
                frames.push(coalescer.take().expect("not empty").0.to_vec());
                assert!(coalescer.push(packet), "an empty one takes anything");
            }
        }
        frames.extend(coalescer.take().map(|(frame, _)| frame.to_vec()));
        assert!(coalescer.take().is_none());
        let count = frames.len();
        let mut out = Vec::new();
        for mut given in frames {
            let mut frame = Frame::read(&mut given).expect("good");
            let mut piece = vec![0; frame.largest()];
            while let Some(length) = frame.next(&mut piece) {
                out.push(piece[..length].to_vec());
            }
        }
        (out, count)
    }

    proptest! {
        #[test]
        fn coalesced_and_split_again_nothing_has_changed(
            plan in proptest::collection::vec((0usize..5, 0usize..8, any::<bool>()), 1..80), sequence: u32
        ) {
            let sizes = [1200, 1200, 1200, 300, 0];
            let (mut at, mut packets) = (sequence, Vec::new());
            for (size, odd, push) in plan {
                let payload = vec![size as u8; sizes[size]];
                let flags = if push { ACK | PSH } else { ACK };
                let mut packet = segment(at, flags, &OPTIONS, &payload);
                match odd {
                    0 => packet[33] |= tcp::FIN,
                    1 => packet[16] ^= 1,
                    2 => *packet.last_mut().expect("not empty") ^= 1,
                    3 => at = at.wrapping_add(1),
                    _ => {}
                }
                at = at.wrapping_add(u32::try_from(payload.len()).expect("short"));
                packets.push(packet);
            }
            let (out, _) = through(&packets);
            prop_assert_eq!(out.len(), packets.len());
            for (out, packet) in out.iter().zip(&packets) {
                // Identification counts up in split segments; it has no meaning in whole packets.
                let mut out = out.clone();
                if out[4..6] != packet[4..6] {
                    let same = word(packet, 4);
                    set_word(&mut out, 4, same);
                    ipv4::seal_header(&mut out, 20);
                }
                prop_assert_eq!(&out, packet);
            }
        }
    }

    proptest! {
        #[test]
        fn each_connections_packets_stay_in_order(plan in proptest::collection::vec((0u16..24, 0usize..6), 1..300)) {
            let mut frames = Frames::default();
            let (mut sent, mut got) = (Vec::new(), Vec::new());
            let mut sequences = [0u32; 24];
            let mut write = |network, given: &[u8], packets: usize| {
                let mut given = given.to_vec();
                let mut frame = Frame::read(&mut given).expect("good");
                let mut piece = vec![0; frame.largest()];
                let before = got.len();
                while let Some(length) = frame.next(&mut piece) {
                    got.push((network, piece[..length].to_vec()));
                }
                assert_eq!(got.len() - before, packets);
            };
            for (connection, kind) in plan {
                let sequence = &mut sequences[usize::from(connection)];
                let flags = if kind == 0 { ACK | PSH } else { ACK };
                let size = if kind == 1 { 100 } else { 1000 };
                let mut packet = segment(*sequence, flags, &[], &vec![kind as u8; size]);
                *sequence += u32::try_from(size).expect("short");
                set_word(&mut packet, 22, connection / 2);
                packet[9] = if kind == 2 { 17 } else { ipv4::TCP };
                ipv4::seal_header(&mut packet, 20);
                tcp::seal(&mut packet, 20);
                let network = NetworkId(u32::from(connection % 2));
                frames.push(network, &packet, &mut write);
                sent.push((network, packet));
            }
            frames.flush(&mut write);
            frames.flush(|_, _, _| panic!("nothing is left"));
            let of = |all: &[(NetworkId, Vec<u8>)], network: u32, port: u16, protocol: u8| -> Vec<Vec<u8>> {
                let wanted = |(held, packet): &&(NetworkId, Vec<u8>)| {
                    held.0 == network && word(packet, 22) == port && packet[9] == protocol
                };
                all.iter().filter(wanted).map(|(_, packet)| packet[20..].to_vec()).collect()
            };
            prop_assert_eq!(sent.len(), got.len());
            for connection in 0..24u16 {
                for protocol in [6, 17] {
                    let (network, port) = (u32::from(connection % 2), connection / 2);
                    prop_assert_eq!(of(&sent, network, port, protocol), of(&got, network, port, protocol));
                }
            }
        }
    }

    #[test]
    fn connections_that_take_turns_are_joined_each() {
        let mut frames = Frames::default();
        let mut written = Vec::new();
        for number in 0..30u32 {
            for port in 0..4u16 {
                let mut packet = segment(number * 1000, ACK, &[], &[7; 1000]);
                set_word(&mut packet, 22, port);
                tcp::seal(&mut packet, 20);
                frames.push(NetworkId(1), &packet, |_, _, packets| written.push(packets));
            }
        }
        frames.flush(|_, _, packets| written.push(packets));
        assert_eq!(written, [30; 4]);
    }

    #[test]
    fn a_run_becomes_one_frame() {
        let packets: Vec<_> = (0..40u32).map(|n| segment(n * 1200, ACK, &OPTIONS, &[7; 1200])).collect();
        assert_eq!(through(&packets).1, 1);
        let packets: Vec<_> = (0..60u32).map(|n| segment(n * 1200, ACK, &OPTIONS, &[7; 1200])).collect();
        assert_eq!(through(&packets).1, 2, "64 KiB are full");
    }
}
