//! A client of HTTP/2 that sends any bytes as frames, and reads as little as it must.

use crate::recorder::PATH;
use crate::world::{PATIENCE, World};
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A request's pseudo headers.
pub const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "a.style.dev"), (":path", PATH)];
/// The same for a request with a body.
pub const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "https"), (":authority", "a.style.dev"), (":path", PATH)];

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Status(u16),
    /// It was reset.
    Reset,
    /// The connection ended, with or without a word.
    Gone,
}

pub struct RawH2 {
    tls: TlsStream<TcpStream>,
    bytes: Vec<u8>,
}

/// A frame, any frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as literals that are not indexed (RFC 7541 section 6.2.2), as they are, without Huffman's code.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            integer(&mut bytes, text.len());
            bytes.extend(text.as_bytes());
        }
    }
    bytes
}

/// A length of seven bits and more (RFC 7541 section 5.1).
fn integer(bytes: &mut Vec<u8>, value: usize) {
    let Some(mut rest) = value.checked_sub(127) else {
        return bytes.push(u8::try_from(value).expect("small"));
    };
    bytes.push(127);
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("small") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("small"));
}

/// A header block in as many frames as it needs.
pub fn headers(stream: u32, fields: &[(&str, &str)], end: bool) -> Vec<u8> {
    let block = block(fields);
    let pieces: Vec<&[u8]> = block.chunks(16_384).collect();
    let mut bytes = Vec::new();
    for (number, piece) in pieces.iter().enumerate() {
        let (kind, first) =
            if number == 0 { (HEADERS, if end { END_STREAM } else { 0 }) } else { (CONTINUATION, 0) };
        let last = if number + 1 == pieces.len() { END_HEADERS } else { 0 };
        bytes.extend(frame(kind, first | last, stream, piece));
    }
    bytes
}

impl RawH2 {
    /// Connects and says the preface, with these settings.
    pub async fn connect(world: &World, settings: &[u8]) -> Self {
        let mut client = Self::bare(world).await;
        let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        start.extend(frame(SETTINGS, 0, 0, settings));
        client.send(&start).await.expect("the preface");
        client
    }

    /// Connects and says nothing.
    pub async fn bare(world: &World) -> Self {
        let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
        Self { tls, bytes: Vec::new() }
    }

    pub async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let sending = async {
            self.tls.write_all(bytes).await?;
            self.tls.flush().await
        };
        timeout(PATIENCE, sending).await.expect("it is taken or closed")
    }

    /// Sends the same again and again until the connection is closed; it must be, before so many. Gives the code that
    /// the client is told why.
    pub async fn flood(&mut self, most: usize, mut piece: impl FnMut(usize) -> Vec<u8>) -> Option<u32> {
        for number in 0..most {
            if self.send(&piece(number)).await.is_err() {
                break;
            }
        }
        // The last pieces may be on their way.
        self.end().await
    }

    /// Waits until the connection ends, and gives the code of GOAWAY.
    pub async fn end(&mut self) -> Option<u32> {
        let mut code = None;
        while let Some((kind, _, _, payload)) = self.next().await {
            if kind == GOAWAY {
                code = Some(u32::from_be_bytes(payload[4..8].try_into().expect("four bytes")));
            }
        }
        code
    }

    /// The next frame: kind, flags, stream, payload; nothing when the connection has ended.
    pub async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let [a, b, c, kind, flags, d, e, f, g, rest @ ..] = &self.bytes[..] {
                let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
                if rest.len() >= length {
                    let stream = u32::from_be_bytes([*d, *e, *f, *g]);
                    let whole = (*kind, *flags, stream, rest[..length].to_vec());
                    self.bytes.drain(..9 + length);
                    return Some(whole);
                }
            }
            match timeout(PATIENCE, self.tls.read_buf(&mut self.bytes)).await.expect("in time") {
                Ok(1..) => {}
                Ok(0) | Err(_) => return None,
            }
        }
    }

    /// What becomes of a stream.
    pub async fn outcome(&mut self, wanted: u32) -> Outcome {
        while let Some((kind, _, stream, payload)) = self.next().await {
            match kind {
                HEADERS if stream == wanted => return Outcome::Status(status(&payload)),
                RST_STREAM if stream == wanted => return Outcome::Reset,
                GOAWAY => return Outcome::Gone,
                _ => {}
            }
        }
        Outcome::Gone
    }
}

/// The status, which is an answer's first field: an entry of the static table, or digits, by Huffman's code or not.
pub fn status(block: &[u8]) -> u16 {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        // A table's new size comes first (RFC 7541 section 4.2).
        [0x3f, rest @ ..] => {
            let more = rest.iter().take_while(|byte| **byte & 0x80 != 0).count();
            status(&rest[more + 1..])
        }
        [0x20..0x3f, rest @ ..] => status(rest),
        [first @ 0x88..=0x8e, ..] => STATIC[usize::from(first - 0x88)],
        [0x48 | 0x08 | 0x18, length, rest @ ..] if length & 0x80 == 0 => {
            let digits = &rest[..usize::from(*length)];
            std::str::from_utf8(digits).expect("digits").parse().expect("a status")
        }
        [0x48 | 0x08 | 0x18, length, rest @ ..] => huffman_digits(&rest[..usize::from(length & 0x7f)]),
        _ => panic!("an answer begins with its status: {block:02x?}"),
    }
}

/// Digits by Huffman's code (RFC 7541 appendix B): 0 to 2 have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> u16 {
    let bits: Vec<u16> =
        bytes.iter().flat_map(|byte| (0..8).rev().map(move |n| u16::from(byte >> n & 1))).collect();
    let take = |at: usize, count: usize| bits[at..at + count].iter().fold(0, |sum, bit| sum * 2 + bit);
    let (mut at, mut value) = (0, 0);
    while value < 100 {
        let short = take(at, 5);
        let digit = if short <= 2 { short } else { take(at, 6) - 0x16 };
        at += if short <= 2 { 5 } else { 6 };
        value = value * 10 + digit;
    }
    value
}
