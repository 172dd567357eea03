//! HTTP/2 by its documents, section by section: what a client sends as raw frames over TLS, and what must come back.
//!
//! A row is what RFC 9113 or RFC 7541 says, not what the engine happens to do. Where the gateway does otherwise, the row
//! says so with the reason ([`Row::but`]), and holds it to that. Where the document leaves a choice (section 5.4.1 lets
//! every stream error be a connection error), the row names the one that is made.

mod connection;
mod frames;
mod hpack;
mod messages;
mod streams;
mod windows;

use crate::raw_h2::{DATA, GET, GOAWAY, HEADERS, PING, RST_STREAM, RawH2, SETTINGS, frame, headers, status};
use crate::world::{Behind, PATIENCE, World, http_server, text};
use Must::Connection;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub const NO_ERROR: u32 = 0;
pub const PROTOCOL_ERROR: u32 = 1;
pub const FLOW_CONTROL_ERROR: u32 = 3;
pub const STREAM_CLOSED: u32 = 5;
pub const FRAME_SIZE_ERROR: u32 = 6;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;
pub const COMPRESSION_ERROR: u32 = 9;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const WITH_PRIORITY: u8 = 0x20;

/// The stream of the request that tells whether a connection still serves. Higher than those of the rows.
const LAST: u32 = 0x1001;

/// A request that the VM holds for ever.
pub const HELD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "a.style.dev"), (":path", "/held")];

/// What must come of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// The stream is reset with this code, and the connection serves on (section 5.4.2).
    Stream(u32, u32),
    /// GOAWAY with this code, and the connection ends (section 5.4.1).
    Connection(u32),
    /// The connection ends without a word.
    Closed,
    /// The stream has an answer with this status, whole, and the connection serves on.
    Answered(u32, u16),
    /// The stream has an answer with this status, and then the connection ends, with NO_ERROR.
    Last(u32, u16),
    /// Nothing comes of it, and the connection serves on.
    Ignored,
}

/// A step of the client's.
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Waits until a stream's answer is whole.
    Whole(u32),
}

pub struct Row {
    /// Where it is written.
    section: &'static str,
    /// What is sent.
    what: &'static str,
    steps: Vec<Step>,
    must: Must,
    /// What comes instead, and why that is so.
    instead: Option<(Must, &'static str)>,
    /// What may come as well, where it depends on what else goes on.
    or: Option<Must>,
    /// How the client begins: as it should, unless the row is about that.
    begins: bool,
}

/// All that came from the gateway: what each row is judged by.
#[derive(Debug, Default)]
pub struct Seen {
    /// Streams and statuses of heads.
    heads: Vec<(u32, u16)>,
    /// Streams whose answers are whole.
    whole: Vec<u32>,
    /// Streams and codes of resets.
    resets: Vec<(u32, u32)>,
    /// The code of GOAWAY.
    goaway: Option<u32>,
    closed: bool,
    /// Nothing more came for a long time, though something should have.
    stalled: bool,
    pongs: usize,
}

/// A row in which all is sent at once.
pub fn row(section: &'static str, what: &'static str, bytes: Vec<u8>, must: Must) -> Row {
    steps(section, what, vec![Step::Send(bytes)], must)
}

pub fn steps(section: &'static str, what: &'static str, steps: Vec<Step>, must: Must) -> Row {
    Row { section, what, steps, must, instead: None, or: None, begins: true }
}

impl Row {
    /// The gateway does otherwise, for this reason.
    pub fn but(mut self, instead: Must, reason: &'static str) -> Self {
        self.instead = Some((instead, reason));
        self
    }

    /// The gateway ends the connection, where the document has it reset the stream.
    pub fn but_all(self) -> Self {
        self.but(
            Connection(PROTOCOL_ERROR),
            "section 5.4.1 allows it, and the engine does not tell them apart",
        )
    }

    /// The engine cannot read a frame or a header block.
    pub fn unreadable(self) -> Self {
        let reason = "the engine has one code for all that it cannot read; the connection ends all the same";
        self.but(Connection(PROTOCOL_ERROR), reason)
    }

    /// Data comes for a stream that is over: the engine may have forgotten it by then, or not.
    pub fn over(self, stream: u32) -> Self {
        let reason = "the engine does not remember how a stream ended";
        let row = self.but(Must::Stream(stream, STREAM_CLOSED), reason);
        Self { or: Some(Connection(PROTOCOL_ERROR)), ..row }
    }

    fn expected(&self) -> Must {
        self.instead.map_or(self.must, |(instead, _)| instead)
    }

    /// The client says neither preface nor settings of its own accord.
    pub fn bare(mut self) -> Self {
        self.begins = false;
        self
    }

    async fn seen(&self, world: &World) -> Seen {
        let mut client = RawH2::bare(world).await;
        let mut seen = Seen::default();
        if self.begins {
            client.begin().await;
        }
        for step in &self.steps {
            match step {
                // Who is cut while it sends looks at what it was told.
                Step::Send(bytes) => drop(client.send(bytes).await),
                Step::Whole(stream) => {
                    seen.read(&mut client, |seen| seen.whole.contains(stream)).await;
                }
            }
        }
        match self.expected() {
            Connection(_) | Must::Closed | Must::Last(..) => seen.read(&mut client, |_| false).await,
            Must::Stream(stream, _) => {
                seen.read(&mut client, |seen| seen.resets.iter().any(|(id, _)| *id == stream)).await;
                seen.serves_on(&mut client).await;
            }
            Must::Answered(stream, _) => {
                seen.read(&mut client, |seen| seen.whole.contains(&stream)).await;
                seen.serves_on(&mut client).await;
            }
            Must::Ignored => seen.serves_on(&mut client).await,
        }
        seen
    }
}

impl Seen {
    /// Reads until it is so, or the connection has ended.
    pub async fn read(&mut self, client: &mut RawH2, so: impl Fn(&Self) -> bool) {
        while !so(self) && !self.closed && !self.stalled {
            let Ok(next) = timeout(PATIENCE / 2, client.next()).await else {
                self.stalled = true;
                return;
            };
            let Some((kind, flags, stream, payload)) = next else {
                self.closed = true;
                return;
            };
            match kind {
                HEADERS if flags & END_HEADERS != 0 && !self.heads.iter().any(|(id, _)| *id == stream) => {
                    self.heads.push((stream, status(&payload)));
                }
                RST_STREAM => self.resets.push((stream, word(&payload, 0))),
                GOAWAY => self.goaway = Some(word(&payload, 4)),
                PING if flags & ACK != 0 => self.pongs += 1,
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                self.whole.push(stream);
            }
        }
    }

    /// A PING is answered, and then a request: what was to be said before has been said by then.
    async fn serves_on(&mut self, client: &mut RawH2) {
        let pongs = self.pongs;
        drop(client.send(&frame(PING, 0, 0, b"are you?")).await);
        self.read(client, |seen| seen.pongs > pongs).await;
        drop(client.send(&headers(LAST, &GET, true)).await);
        self.read(client, |seen| seen.whole.contains(&LAST)).await;
    }

    /// What came, in a row's words.
    fn verdict(&self, about: Must) -> Option<Must> {
        let serves = self.heads.contains(&(LAST, 200)) && self.whole.contains(&LAST);
        let first = self.resets.first();
        match (self.goaway, self.closed, first) {
            (Some(NO_ERROR), true, None) if matches!(about, Must::Last(..)) => {
                let (stream, status) = self.heads.iter().find(|(id, _)| self.whole.contains(id))?;
                Some(Must::Last(*stream, *status))
            }
            (Some(code), true, _) => Some(Connection(code)),
            (None, true, _) => Some(Must::Closed),
            (None, false, Some((stream, code))) if serves && self.resets.len() == 1 => {
                Some(Must::Stream(*stream, *code))
            }
            (None, false, None) if serves => match about {
                Must::Answered(stream, _) => {
                    let (_, status) = self.heads.iter().find(|(id, _)| *id == stream)?;
                    Some(Must::Answered(stream, *status))
                }
                Must::Ignored | Must::Stream(..) | Must::Last(..) | Connection(_) | Must::Closed => {
                    Some(Must::Ignored)
                }
            },
            _ => None,
        }
    }
}

/// Four bytes of a frame's payload.
pub fn word(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"))
}

/// A server that answers `ok` when it has the whole body; `/held` it never answers; `/echo` says the body back.
pub async fn world() -> World {
    let world = World::new().await;
    let server = http_server(|request| async move {
        let path = request.uri().path().to_owned();
        if path == "/held" {
            std::future::pending::<()>().await;
        }
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        match body {
            Ok(body) if path == "/echo" => text(body),
            Ok(_) | Err(_) => text("ok"),
        }
    });
    world.behind(3000, Behind::Server(server.await));
    world.map("a.style.dev", 3000).await;
    world
}

/// Runs every row, and tells of all that went wrong.
pub async fn hold(least: usize, rows: Vec<Row>) {
    assert!(rows.len() >= least, "the table has shrunk to {}", rows.len());
    let world = world().await;
    let mut wrong = Vec::new();
    // A few at once: most of a row is waiting.
    let turns = Semaphore::new(4);
    let (to, turn) = (&world, &turns);
    let judged = rows.iter().map(|row| async move {
        let _turn = turn.acquire().await.expect("never closed");
        (row, row.seen(to).await)
    });
    for (row, seen) in futures_util::future::join_all(judged).await {
        let expected = row.expected();
        let verdict = seen.verdict(expected);
        if verdict.is_none() || (verdict != Some(expected) && verdict != row.or) {
            wrong.push(format!("{} {}: {expected:?}, not {seen:?}", row.section, row.what));
        }
        if let Some((instead, reason)) = row.instead {
            assert_ne!(instead, row.must, "{} {}: no deviation", row.section, row.what);
            assert!(!reason.is_empty(), "{} {}: a deviation has a reason", row.section, row.what);
        }
    }
    assert!(wrong.is_empty(), "{} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    let asked = world.curl("https://a.style.dev/", &["--http2"]).await;
    assert_eq!((asked.code, asked.out.as_str()), (0, "ok"), "{asked:?}");
}

impl RawH2 {
    /// Says the preface and empty settings, and waits until each side has the other's.
    pub async fn begin(&mut self) {
        let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        start.extend(frame(SETTINGS, 0, 0, &[]));
        self.send(&start).await.expect("the preface");
        let (mut theirs, mut acknowledged) = (false, false);
        while !(theirs && acknowledged) {
            let (kind, flags, _, _) = self.next().await.expect("settings");
            theirs |= kind == SETTINGS && flags & ACK == 0;
            acknowledged |= kind == SETTINGS && flags & ACK != 0;
        }
        self.send(&frame(SETTINGS, ACK, 0, &[])).await.expect("acknowledged");
    }
}
