//! Datagrams that wait to be sent, in one buffer. Those to the same place and of the same size, of which the last may
//! be shorter, are one run: the kernel takes it in one call and walks its stack once (udp(7), `UDP_SEGMENT`).

use super::noise::MIN_ROOM;
use std::net::{IpAddr, SocketAddr};

/// Where a client is, and by which of the host's addresses it reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The client's address and port.
    pub remote: SocketAddr,
    /// The host's address, from which answers go; the routing table's choice when absent.
    pub local: Option<IpAddr>,
}

/// Datagrams in a run (include/linux/udp.h: `UDP_MAX_SEGMENTS` of older kernels).
pub const MAX_SEGMENTS: usize = 64;
/// Bytes of a run: what one UDP datagram over IPv6 may have, and some room.
const MAX_RUN_BYTES: usize = 65_000;
/// Bytes that wait at most. Two frames of 64 KiB become less than three runs; the rest is for handshakes.
const BUFFER_BYTES: usize = 256 << 10;
/// Runs that wait at most: each batch of the loop takes up to 64 datagrams in, and each may be answered.
const MAX_RUNS: usize = 128;

/// Datagrams in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where to.
    pub to: Endpoint,
    /// Bytes of each, save the last.
    pub segment: usize,
    start: usize,
    bytes: usize,
    count: usize,
}

/// All that waits.
#[derive(Debug)]
pub struct Runs {
    buffer: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
}

impl Default for Runs {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER_BYTES].into(), used: 0, runs: Vec::with_capacity(MAX_RUNS) }
    }
}

impl Runs {
    /// Where the next datagram is written: at least so many bytes and at least [`MIN_ROOM`]; none when all that waits
    /// must be sent first.
    pub fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        if self.runs.len() == MAX_RUNS {
            return None;
        }
        let end = self.used + bytes.max(MIN_ROOM);
        self.buffer.get_mut(self.used..end)
    }

    /// Takes the bytes that were written there as a datagram.
    pub fn push(&mut self, to: Endpoint, bytes: usize) {
        let start = self.used;
        self.used += bytes;
        if let Some(run) = self.runs.last_mut()
            && run.to == to
            && run.bytes == run.segment * run.count
            && bytes <= run.segment
            && run.count < MAX_SEGMENTS
            && run.bytes + bytes <= MAX_RUN_BYTES
        {
            run.bytes += bytes;
            run.count += 1;
        } else {
            self.runs.push(Run { to, segment: bytes, start, bytes, count: 1 });
        }
    }

    /// Each run with its bytes, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Run, &[u8])> {
        self.runs.iter().map(|run| (run, &self.buffer[run.start..run.start + run.bytes]))
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.used = 0;
        self.runs.clear();
    }
}

impl Run {
    /// How many datagrams it is.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_are_what_was_pushed_and_within_the_kernels_bounds(
            plan in proptest::collection::vec((0u16..3, 1usize..1500, 1usize..100), 1..40)
        ) {
            let mut runs = Runs::default();
            let mut pushed = Vec::new();
            'plan: for (to, bytes, times) in plan {
                let to = Endpoint { remote: SocketAddr::from(([192, 0, 2, 1], to)), local: None };
                for n in 0..times {
                    let Some(room) = runs.room(bytes) else { break 'plan };
                    prop_assert!(room.len() >= bytes.max(148));
                    room[..bytes].fill(n as u8);
                    runs.push(to, bytes);
                    pushed.push((to, vec![n as u8; bytes]));
                }
            }
            let mut out = Vec::new();
            for (run, bytes) in runs.iter() {
                prop_assert!(run.count() <= MAX_SEGMENTS && bytes.len() <= MAX_RUN_BYTES);
                let pieces: Vec<_> = bytes.chunks(run.segment).collect();
                prop_assert_eq!(pieces.len(), run.count());
                out.extend(pieces.into_iter().map(|piece| (run.to, piece.to_vec())));
            }
            prop_assert_eq!(out, pushed);
            runs.clear();
            prop_assert!(runs.is_empty());
        }
    }

    #[test]
    fn a_full_buffer_says_so() {
        let mut runs = Runs::default();
        let to = Endpoint { remote: SocketAddr::from(([192, 0, 2, 1], 1)), local: None };
        let mut count = 0;
        while runs.room(1312).is_some() {
            runs.push(to, 1312);
            count += 1;
        }
        assert!(count >= 150, "{count}");
    }
}
