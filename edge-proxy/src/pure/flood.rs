//! What a client of HTTP/2 may make the gateway do without asking for anything: budgets over kinds of frames.
//!
//! Resets, pings, settings, priorities, empty data and windows cost a client some bytes and the gateway work, and no
//! flow control bounds them (RFC 9113 section 10.5). Each kind has a bucket of tokens that fills with time. Frames that
//! honest clients send in answer to ours (windows, and pings that measure the path) also earn theirs by what we sent,
//! so that a fast download is never taken for a flood. The scanner reads frame headers alone (section 4.1) and holds
//! none of their content. Times count from any one start.

use std::time::Duration;
use thiserror::Error;

/// Bytes that a client begins with (RFC 9113 section 3.4).
pub const PREFACE_BYTES: usize = 24;
/// Bytes of a frame's header (RFC 9113 section 4.1).
const HEADER_BYTES: usize = 9;
/// Most CONTINUATION frames of one header block that do not end it: what the engine takes for 64 KiB of fields. It is
/// not more, so that a flood is counted here before the engine ends the connection without a word.
const MAX_CONTINUATIONS: u32 = 5;
/// Data of so few bytes may be padding alone (RFC 9113 section 6.1).
const MAX_PADDING_BYTES: u64 = 256;
/// Windows that a client may open for each frame of data or headers that it got: its stream's and its connection's,
/// twice over.
const WINDOWS_PER_FRAME: u64 = 4;

/// Which budget is used up.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FloodFault {
    /// RST_STREAM: requests that are begun and given up (rapid reset).
    #[error("too many requests are given up")]
    Resets,
    /// CONTINUATION: a header block without an end.
    #[error("a header block does not end")]
    Continuations,
    /// SETTINGS, acknowledgements included.
    #[error("too many settings")]
    Settings,
    /// PING.
    #[error("too many pings")]
    Pings,
    /// DATA without data that does not end its stream.
    #[error("too many empty frames of data")]
    EmptyData,
    /// PRIORITY, and its successor PRIORITY_UPDATE (RFC 9218 section 7.1).
    #[error("too many priorities")]
    Priorities,
    /// WINDOW_UPDATE.
    #[error("too many window updates")]
    Windows,
    /// Frames of types that nobody knows here.
    #[error("too many unknown frames")]
    Unknown,
}

/// A bucket's size, and what flows in per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Budget {
    fault: FloodFault,
    burst: u64,
    per_second: u64,
}

/// Twice what a browser gives up when a page with all its streams open is left, and then one stream after the other.
const RESETS: Budget = Budget { fault: FloodFault::Resets, burst: 200, per_second: 50 };
/// One at the start and one acknowledgement is the rule.
const SETTINGS: Budget = Budget { fault: FloodFault::Settings, burst: 32, per_second: 1 };
/// Keep-alives come every few seconds. Those that measure the path earn theirs.
const PINGS: Budget = Budget { fault: FloodFault::Pings, burst: 256, per_second: 20 };
/// Some libraries flush so, now and then.
const EMPTY_DATA: Budget = Budget { fault: FloodFault::EmptyData, burst: 100, per_second: 10 };
/// Clients that build trees send a few per stream.
const PRIORITIES: Budget = Budget { fault: FloodFault::Priorities, burst: 500, per_second: 100 };
/// The rest is earned.
const WINDOWS: Budget = Budget { fault: FloodFault::Windows, burst: 2000, per_second: 200 };
/// Clients grease with some (RFC 9113 section 5.5).
const UNKNOWN: Budget = Budget { fault: FloodFault::Unknown, burst: 100, per_second: 10 };
/// A bucket for each kind.
const BUDGETS: [Budget; 7] = [RESETS, SETTINGS, PINGS, EMPTY_DATA, PRIORITIES, WINDOWS, UNKNOWN];

/// Kinds of frames, by their numbers (RFC 9113 section 11.2).
mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
    pub const PRIORITY_UPDATE: u8 = 0x10;
}

/// Of GOAWAY without words: the last stream that was looked at, and a code (RFC 9113 section 6.8).
const GOAWAY_PAYLOAD_BYTES: u8 = 8;
/// The same with its header.
const GOAWAY_BYTES: usize = HEADER_BYTES + GOAWAY_PAYLOAD_BYTES as usize;
/// The peer makes too much work (RFC 9113 section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// Follows one connection, both directions of it.
#[derive(Clone, Debug)]
pub struct Flood {
    preface_left: usize,
    received: Scanner,
    sent: Scanner,
    buckets: [Bucket; BUDGETS.len()],
    block: Option<Block>,
    last_stream: u32,
    opened: u64,
}

/// A header block that has begun and not ended.
#[derive(Clone, Copy, Debug)]
struct Block {
    since: Duration,
    frames: u32,
}

impl Flood {
    /// A connection that has sent nothing yet, its preface neither.
    #[must_use]
    pub fn new(now: Duration) -> Self {
        Self {
            preface_left: PREFACE_BYTES,
            received: Scanner::default(),
            sent: Scanner::default(),
            buckets: BUDGETS.map(|budget| Bucket::full(budget, now)),
            block: None,
            last_stream: 0,
            opened: 0,
        }
    }

    /// Takes note of bytes from the client.
    ///
    /// # Errors
    /// When a budget is used up; the connection is to be closed then.
    pub fn received(&mut self, bytes: &[u8], now: Duration) -> Result<(), FloodFault> {
        let preface = bytes.len().min(self.preface_left);
        self.preface_left -= preface;
        let mut rest = &bytes[preface..];
        while let Some(frame) = self.received.next(&mut rest) {
            self.judge(&frame, now)?;
        }
        Ok(())
    }

    /// Takes note of bytes to the client.
    pub fn sent(&mut self, mut bytes: &[u8]) {
        while let Some(frame) = self.sent.next(&mut bytes) {
            if matches!(frame.kind, kind::DATA | kind::HEADERS) {
                self.bucket(FloodFault::Windows).earn(WINDOWS_PER_FRAME);
                self.bucket(FloodFault::Pings).earn(1);
            }
            if frame.kind == kind::HEADERS {
                self.bucket(FloodFault::Resets).earn(1);
            }
        }
    }

    /// Since when a header block has been waited for.
    #[must_use]
    pub fn block_since(&self) -> Option<Duration> {
        self.block.map(|block| block.since)
    }

    /// What to say before the connection is closed: GOAWAY with ENHANCE_YOUR_CALM (RFC 9113 sections 6.8 and 7).
    /// Nothing where what was sent so far ends in the middle of a frame.
    #[must_use]
    pub fn farewell(&self) -> Option<[u8; GOAWAY_BYTES]> {
        let mut frame = [0; GOAWAY_BYTES];
        frame[2] = GOAWAY_PAYLOAD_BYTES;
        frame[3] = kind::GOAWAY;
        frame[HEADER_BYTES..][..4].copy_from_slice(&self.last_stream.to_be_bytes());
        frame[HEADER_BYTES + 4..].copy_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
        self.sent.between_frames().then_some(frame)
    }

    /// Requests that the client has begun.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened
    }

    fn judge(&mut self, frame: &Frame, now: Duration) -> Result<(), FloodFault> {
        match frame.kind {
            kind::DATA => {
                let padding = frame.flags & PADDED != 0 && frame.length <= MAX_PADDING_BYTES;
                if frame.flags & END_STREAM == 0 && (frame.length == 0 || padding) {
                    self.take(FloodFault::EmptyData, now)?;
                }
                Ok(())
            }
            kind::HEADERS => {
                if frame.stream > self.last_stream {
                    self.last_stream = frame.stream;
                    self.opened += 1;
                }
                self.block = Some(Block { since: now, frames: 0 });
                self.continue_block(frame)
            }
            kind::CONTINUATION => {
                if let Some(block) = &mut self.block {
                    block.frames += u32::from(frame.flags & END_HEADERS == 0);
                }
                self.continue_block(frame)
            }
            kind::RST_STREAM => self.take(FloodFault::Resets, now),
            kind::SETTINGS => self.take(FloodFault::Settings, now),
            kind::PING => self.take(FloodFault::Pings, now),
            kind::PRIORITY | kind::PRIORITY_UPDATE => self.take(FloodFault::Priorities, now),
            kind::WINDOW_UPDATE => self.take(FloodFault::Windows, now),
            // The engine ends the connection by itself.
            kind::PUSH_PROMISE | kind::GOAWAY => Ok(()),
            _ => self.take(FloodFault::Unknown, now),
        }
    }

    fn continue_block(&mut self, frame: &Frame) -> Result<(), FloodFault> {
        if self.block.is_some_and(|block| block.frames > MAX_CONTINUATIONS) {
            return Err(FloodFault::Continuations);
        }
        if frame.flags & END_HEADERS != 0 {
            self.block = None;
        }
        Ok(())
    }

    fn take(&mut self, fault: FloodFault, now: Duration) -> Result<(), FloodFault> {
        if self.bucket(fault).take(now) { Ok(()) } else { Err(fault) }
    }

    fn bucket(&mut self, fault: FloodFault) -> &mut Bucket {
        let place = match fault {
            FloodFault::Resets => 0,
            FloodFault::Settings => 1,
            FloodFault::Pings => 2,
            FloodFault::EmptyData => 3,
            FloodFault::Priorities => 4,
            FloodFault::Windows => 5,
            // Blocks are counted by themselves, and have no bucket.
            FloodFault::Unknown | FloodFault::Continuations => 6,
        };
        &mut self.buckets[place]
    }
}

/// Tokens that come with time, and by merit.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    budget: Budget,
    tokens: u64,
    since: Duration,
}

impl Bucket {
    fn full(budget: Budget, now: Duration) -> Self {
        Self { budget, tokens: budget.burst, since: now }
    }

    fn take(&mut self, now: Duration) -> bool {
        if self.tokens < self.budget.burst {
            let step = Duration::from_secs(1) / u32::try_from(self.budget.per_second).unwrap_or(u32::MAX);
            let passed = now.saturating_sub(self.since);
            let came = u64::try_from(passed.as_nanos() / step.as_nanos().max(1)).unwrap_or(u64::MAX);
            self.tokens = self.tokens.saturating_add(came).min(self.budget.burst);
            // What is left of a step is kept for the next time.
            self.since += step * u32::try_from(came).unwrap_or(u32::MAX);
        } else {
            self.since = now;
        }
        let there = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        there
    }

    fn earn(&mut self, tokens: u64) {
        self.tokens = (self.tokens + tokens).min(self.budget.burst);
    }
}

/// What a frame's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    length: u64,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the frames of one direction.
#[derive(Clone, Debug, Default)]
struct Scanner {
    header: [u8; HEADER_BYTES],
    have: usize,
    payload_left: u64,
}

impl Scanner {
    fn between_frames(&self) -> bool {
        self.have == 0 && self.payload_left == 0
    }

    /// The next frame whose header is whole; takes from `bytes` what was looked at.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skip = bytes.len().min(usize::try_from(self.payload_left).unwrap_or(usize::MAX));
        self.payload_left -= skip as u64;
        let rest = &bytes[skip..];
        let step = rest.len().min(HEADER_BYTES - self.have);
        self.header[self.have..self.have + step].copy_from_slice(&rest[..step]);
        self.have += step;
        *bytes = &rest[step..];
        if self.have < HEADER_BYTES {
            return None;
        }
        self.have = 0;
        let [a, b, c, kind, flags, d, e, f, g] = self.header;
        let length = u64::from(u32::from_be_bytes([0, a, b, c]));
        self.payload_left = length;
        Some(Frame { length, kind, flags, stream: u32::from_be_bytes([d & 0x7f, e, f, g]) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn started(now: Duration) -> Flood {
        let mut flood = Flood::new(now);
        flood.received(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", now).expect("the preface");
        flood
    }

    /// How many of a frame pass at once.
    fn passes(flood: &mut Flood, bytes: &[u8], now: Duration) -> (u64, FloodFault) {
        for count in 0..1_000_000 {
            // Nothing is read after a fault, so the state before it is what can go on.
            let before = flood.clone();
            if let Err(fault) = flood.received(bytes, now) {
                *flood = before;
                return (count, fault);
            }
        }
        panic!("a flood without an end");
    }

    #[test]
    fn each_kind_has_its_budget_which_fills_again() {
        let now = Duration::from_secs(5);
        let table = [
            (frame(kind::RST_STREAM, 0, 1, &[0; 4]), RESETS),
            (frame(kind::SETTINGS, 0, 0, &[]), SETTINGS),
            (frame(kind::SETTINGS, 1, 0, &[]), SETTINGS),
            (frame(kind::PING, 0, 0, &[0; 8]), PINGS),
            (frame(kind::DATA, 0, 1, &[]), EMPTY_DATA),
            (frame(kind::DATA, PADDED, 1, &[200; 201]), EMPTY_DATA),
            (frame(kind::PRIORITY, 0, 1, &[0; 5]), PRIORITIES),
            (frame(kind::PRIORITY_UPDATE, 0, 0, &[0; 4]), PRIORITIES),
            (frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]), WINDOWS),
            (frame(0xaa, 0, 0, &[]), UNKNOWN),
        ];
        for (bytes, budget) in table {
            let mut flood = started(now);
            assert_eq!(passes(&mut flood, &bytes, now), (budget.burst, budget.fault));
            let later = now + Duration::from_secs(3);
            let came = (3 * budget.per_second).min(budget.burst);
            assert_eq!(passes(&mut flood, &bytes, later), (came, budget.fault));
        }
    }

    #[test]
    fn what_is_asked_for_costs_nothing() {
        let now = Duration::from_secs(5);
        let mut flood = started(now);
        for number in 0..100_000 {
            let id = 2 * number + 1;
            flood.received(&frame(kind::HEADERS, END_HEADERS, id, &[0x82]), now).expect("a request");
            flood.received(&frame(kind::DATA, END_STREAM, id, &[]), now).expect("an empty body");
        }
        assert_eq!((flood.opened(), flood.block_since()), (100_000, None));
    }

    /// A fast download: a window of its stream, one of its connection and a ping for each frame.
    #[test]
    fn answers_to_what_we_send_are_earned() {
        let now = Duration::from_secs(5);
        let mut flood = started(now);
        let data = frame(kind::DATA, 0, 1, &[7; 100]);
        let window = frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 100]);
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        for _ in 0..100_000 {
            flood.sent(&data);
            for bytes in [&window, &window, &ping] {
                flood.received(bytes, now).expect("earned");
            }
        }
        // Answers to pings earn nothing, or a flood would feed itself.
        let mut flood = started(now);
        for _ in 0..PINGS.burst {
            flood.received(&ping, now).expect("in the budget");
            flood.sent(&frame(kind::PING, 1, 0, &[0; 8]));
        }
        assert_eq!(flood.received(&ping, now), Err(FloodFault::Pings));
    }

    #[test]
    fn a_header_block_must_end() {
        let now = Duration::from_secs(5);
        let mut flood = started(now);
        flood.received(&frame(kind::HEADERS, 0, 1, &[0x82]), now).expect("begun");
        assert_eq!(flood.block_since(), Some(now));
        let more = frame(kind::CONTINUATION, 0, 1, &[]);
        assert_eq!(passes(&mut flood, &more, now), (u64::from(MAX_CONTINUATIONS), FloodFault::Continuations));
        let mut flood = started(now);
        for number in 0..1000 {
            flood.received(&frame(kind::HEADERS, 0, 2 * number + 1, &[]), now).expect("begun");
            flood.received(&frame(kind::CONTINUATION, END_HEADERS, 2 * number + 1, &[]), now).expect("ended");
        }
    }

    proptest! {
        #[test]
        fn frames_are_found_however_the_bytes_arrive(
            lengths in proptest::collection::vec(0usize..600, 1..40),
            step in 1usize..700,
        ) {
            let now = Duration::from_secs(5);
            let mut flood = Flood::new(now);
            let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
            for (number, length) in lengths.iter().enumerate() {
                let id = u32::try_from(2 * number + 1).expect("small");
                bytes.extend(frame(kind::HEADERS, END_HEADERS, id, &vec![0; *length]));
            }
            for piece in bytes.chunks(step) {
                flood.received(piece, now).expect("no flood");
            }
            prop_assert_eq!(flood.opened(), lengths.len() as u64);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let now = Duration::from_secs(5);
            let mut flood = Flood::new(now);
            let _either_way = flood.received(&bytes, now);
            flood.sent(&bytes);
        }
    }
}
