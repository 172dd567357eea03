//! WebSockets through the gateway, frame by frame, against the same server spoken to directly: what comes back must be the
//! same to the last byte, whatever is sent. The server is `websockets` of PyPI, which knows RFC 6455 and RFC 7692 well.

use crate::python::{here, programs};
use crate::recorder::Verdicts;
use crate::world::{Behind, PATIENCE, World};
use edge_proxy::pure::frames::FrameTracker;
use std::net::SocketAddr;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const DEFLATE: &str = "Sec-WebSocket-Extensions: permessage-deflate\r\n";

/// What is sent, and how many frames are waited for before the next is sent.
type Turn = (Vec<u8>, usize);

struct Vector {
    name: String,
    /// Fields of the request to upgrade, besides those that all have.
    fields: &'static str,
    turns: Vec<Turn>,
}

/// A masked frame with a length as long as it must be.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..126 => bytes.push(0x80 | u8::try_from(length).expect("small")),
        length @ 126..65_536 => {
            bytes.push(0x80 | 126);
            bytes.extend(u16::try_from(length).expect("small").to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    mask(bytes, payload)
}

/// Adds a mask and what is masked with it.
fn mask(mut head: Vec<u8>, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x12, 0x9a, 0x34, 0xfe];
    head.extend(MASK);
    head.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    head
}

fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes()[..], reason].concat())
}

/// What the server gives up at by itself, or answers; the client's goodbye comes after it where there is an answer.
fn vector(name: impl Into<String>, turns: Vec<Turn>) -> Vector {
    Vector { name: name.into(), fields: "", turns }
}

/// Is answered with so many frames, and then the client says goodbye.
fn answered(name: impl Into<String>, bytes: Vec<u8>, frames: usize) -> Vector {
    vector(name, vec![(bytes, frames), (close(1000, b""), 0)])
}

/// Ends the connection, by the server's judgement.
fn fatal(name: impl Into<String>, bytes: Vec<u8>) -> Vector {
    vector(name, vec![(bytes, 0)])
}

fn sizes() -> Vec<Vector> {
    let mut all = Vec::new();
    for size in [0, 1, 125, 126, 127, 128, 4095, 65_535, 65_536, 1_000_000] {
        for (kind, name) in [(TEXT, "text"), (BINARY, "binary")] {
            let fill = if kind == TEXT { b'*' } else { 0xfe };
            all.push(answered(format!("{name} of {size}"), frame(FIN | kind, &vec![fill; size]), 1));
        }
    }
    for size in [0, 1, 125] {
        all.push(answered(format!("ping of {size}"), frame(FIN | PING, &vec![0xfe; size]), 1));
        all.push(answered(format!("pong of {size}"), frame(FIN | PONG, &vec![0xfe; size]), 0));
    }
    all.push(fatal("ping of 126", frame(FIN | PING, &[0; 126])));
    all.push(fatal("ping that is not whole", frame(PING, b"x")));
    let pings: Vec<u8> = (0..10).flat_map(|n| frame(FIN | PING, &[n])).collect();
    all.push(answered("ten pings", pings, 10));
    // The longest lengths are not sent: the server gives up when it has read them.
    all.push(fatal(
        "more than the server takes",
        vec![FIN | BINARY, 0xff, 0, 0, 0, 0, 0, 0x20, 0, 0, 1, 2, 3, 4],
    ));
    all.push(fatal("the largest length", [&[FIN | BINARY, 0xff, 0x7f][..], &[0xff; 7], &[0; 4]].concat()));
    all.push(fatal(
        "a length with its highest bit",
        [&[FIN | BINARY, 0xff][..], &[0xff; 8], &[0; 4]].concat(),
    ));
    all.push(answered("a length longer than it must be", mask(vec![FIN | TEXT, 0xfe, 0, 5], b"hello"), 1));
    all
}

fn bits() -> Vec<Vector> {
    let mut all = Vec::new();
    for rsv in 1..8u8 {
        all.push(fatal(format!("reserved bits {rsv}"), frame(FIN | (rsv << 4) | TEXT, b"hello")));
        all.push(fatal(format!("reserved bits {rsv} of a ping"), frame(FIN | (rsv << 4) | PING, b"hello")));
    }
    for opcode in (3..8).chain(11..16) {
        all.push(fatal(format!("opcode {opcode}"), frame(FIN | opcode, b"hello")));
    }
    all.push(fatal("a frame that is not masked", [&[FIN | TEXT, 5][..], b"hello"].concat()));
    all
}

fn fragments() -> Vec<Vector> {
    let start = |bytes: &[u8]| frame(TEXT, bytes);
    let more = |bytes: &[u8]| frame(CONTINUATION, bytes);
    let last = |bytes: &[u8]| frame(FIN | CONTINUATION, bytes);
    let ping = || frame(FIN | PING, b"ping");
    let many: Vec<u8> = (0..1000).flat_map(|_| more(b"xyz")).collect();
    let byte_by_byte = |bytes: Vec<u8>| bytes.into_iter().map(|byte| (vec![byte], 0)).collect::<Vec<Turn>>();
    let hello = byte_by_byte([frame(FIN | TEXT, b"hello"), close(1000, b"bye")].concat());
    vec![
        answered("two fragments", [start(b"a"), last(b"b")].concat(), 1),
        answered("empty fragments", [start(b""), more(b""), last(b"")].concat(), 1),
        answered("a thousand fragments", [start(b"a"), many, last(b"b")].concat(), 1),
        vector(
            "a ping between fragments",
            vec![([start(b"a"), ping()].concat(), 1), (last(b"b"), 1), (close(1000, b""), 0)],
        ),
        fatal("a text between fragments", [start(b"a"), frame(FIN | TEXT, b"b")].concat()),
        fatal("a continuation of nothing", last(b"a")),
        fatal("an open continuation of nothing", more(b"a")),
        vector(
            "a continuation after the last",
            vec![([start(b"a"), last(b"b")].concat(), 1), (last(b"c"), 0)],
        ),
        fatal("a goodbye between fragments", [start(b"a"), close(1000, b"bye")].concat()),
        vector("byte by byte", hello),
        vector(
            "a frame and its goodbye in one piece",
            vec![(frame(FIN | PING, b"x"), 1), (close(1000, b"bye"), 0)],
        ),
    ]
}

fn letters() -> Vec<Vector> {
    let good = ["κόσμε", "𐍈 and ퟿ and ", "\u{0}", "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}\u{10ffff}"];
    let bad: [&[u8]; 11] = [
        b"\xff",
        b"\x80",
        b"\xc0\x80",
        b"\xc3",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"\xed\xb0\x80",
        b"\xf4\x90\x80\x80",
        b"\xf8\x88\x80\x80\x80",
        b"ab\xfe",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",
    ];
    let mut all: Vec<Vector> = good
        .iter()
        .map(|text| answered(format!("letters {text:?}"), frame(FIN | TEXT, text.as_bytes()), 1))
        .collect();
    all.extend(bad.iter().map(|bytes| fatal(format!("no letters {bytes:02x?}"), frame(FIN | TEXT, bytes))));
    let letter = "€".as_bytes();
    all.push(answered(
        "a letter over two fragments",
        [frame(TEXT, &letter[..1]), frame(FIN | CONTINUATION, &letter[1..])].concat(),
        1,
    ));
    all.push(fatal(
        "half a letter, and then another one",
        [frame(TEXT, &letter[..1]), frame(FIN | CONTINUATION, b"a")].concat(),
    ));
    all.push(answered("no letters as binary", frame(FIN | BINARY, b"\xff\xfe"), 1));
    all
}

fn goodbyes() -> Vec<Vector> {
    let mut all = vec![
        fatal("no code", frame(FIN | CLOSE, b"")),
        fatal("half a code", frame(FIN | CLOSE, &[3])),
        fatal("a reason", close(1000, b"for a reason")),
        fatal("the longest reason", close(1000, &[b'*'; 123])),
        fatal("a longer reason", close(1000, &[b'*'; 124])),
        fatal("a reason that is no text", close(1000, b"\xff\xfe")),
        fatal("a goodbye that is not whole", frame(CLOSE, &[3, 0xe8])),
        fatal("a word after the goodbye", [close(1000, b"bye"), frame(FIN | TEXT, b"and")].concat()),
        fatal("a ping after the goodbye", [close(1000, b"bye"), frame(FIN | PING, b"and")].concat()),
        fatal("two goodbyes", [close(1000, b"bye"), close(1001, b"bye")].concat()),
    ];
    let codes = [
        0, 1, 999, 1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014,
        1015, 1016, 1100, 2000, 2999, 3000, 3999, 4000, 4999, 5000, 65_535,
    ];
    all.extend(codes.iter().map(|code| fatal(format!("code {code}"), close(*code, b""))));
    all
}

/// RFC 7692: the gateway has no part in it.
fn deflated() -> Vec<Vector> {
    const HELLO: [u8; 7] = [0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00];
    let mut all = vec![
        answered("deflated", frame(FIN | RSV1 | TEXT, &HELLO), 1),
        vector(
            "deflated twice, with what was before",
            vec![
                (frame(FIN | RSV1 | TEXT, &HELLO), 1),
                (frame(FIN | RSV1 | TEXT, &[0xf2, 0x00, 0x11, 0x00, 0x00]), 1),
                (close(1000, b""), 0),
            ],
        ),
        answered(
            "deflated over two fragments",
            [frame(RSV1 | TEXT, &HELLO[..3]), frame(FIN | CONTINUATION, &HELLO[3..])].concat(),
            1,
        ),
        answered("not deflated though it might be", frame(FIN | TEXT, b"hello"), 1),
        answered("a deflated nothing", frame(FIN | RSV1 | TEXT, &[0]), 1),
        fatal(
            "the bit on a continuation",
            [frame(RSV1 | TEXT, &HELLO[..3]), frame(FIN | RSV1, &HELLO[3..])].concat(),
        ),
        fatal("the bit on a ping", frame(FIN | RSV1 | PING, b"x")),
        fatal("what does not inflate", frame(FIN | RSV1 | TEXT, &[0xff; 9])),
        answered("much text of one letter", frame(FIN | TEXT, &[b'*'; 500_000]), 1),
    ];
    for vector in &mut all {
        vector.fields = DEFLATE;
    }
    let offers = [
        "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; client_max_window_bits\r\n",
        "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=9, permessage-deflate\r\n",
        "Sec-WebSocket-Extensions: x-unknown\r\n",
        "Sec-WebSocket-Protocol: chat, superchat\r\n",
    ];
    for fields in offers {
        let mut offered = answered(fields.trim_end(), frame(FIN | TEXT, b"hello hello hello"), 1);
        offered.fields = fields;
        all.push(offered);
    }
    all
}

/// The answer's head without its date, sorted and in small letters, as far as it may change; and every byte after it.
async fn conversation(stream: impl AsyncRead + AsyncWrite, vector: &Vector) -> (Vec<String>, Vec<u8>) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::new(reader);
    let ask = format!(
        "GET /chat HTTP/1.1\r\nHost: a.style.dev\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{}\r\n",
        vector.fields
    );
    writer.write_all(ask.as_bytes()).await.expect("asked");
    writer.flush().await.expect("asked");
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).await.expect("a head");
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_ascii_lowercase()),
        }
    }
    head.retain(|line| !line.starts_with("date:"));
    head.sort();
    let mut heard = Vec::new();
    let mut frames = Frames::default();
    for (bytes, wanted) in &vector.turns {
        // Who has been told goodbye may not be listening any more.
        drop(writer.write_all(bytes).await);
        drop(writer.flush().await);
        let until = frames.count + wanted;
        while frames.count < until {
            let before = heard.len();
            if !matches!(reader.read_buf(&mut heard).await, Ok(1..)) {
                return (head, heard);
            }
            frames.passed(&heard[before..]);
        }
    }
    while matches!(reader.read_buf(&mut heard).await, Ok(1..)) {}
    (head, heard)
}

/// Counts the frames that have come whole.
#[derive(Default)]
struct Frames {
    tracker: FrameTracker,
    count: usize,
}

impl Frames {
    fn passed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.tracker.passed(std::slice::from_ref(byte));
            self.count += usize::from(self.tracker.between_frames());
        }
    }
}

async fn server() -> (Child, SocketAddr) {
    let mut server = Command::new(programs().await.join("python3"))
        .arg(here("echo.py"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("python");
    let mut lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let port =
        timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("readable").expect("a port");
    (server, ([127, 0, 0, 1], port.parse().expect("a port")).into())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_byte_is_as_without_the_gateway() {
    let world = World::new().await;
    let (_server, address) = server().await;
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
    let vectors: Vec<Vector> =
        [sizes(), bits(), fragments(), letters(), goodbyes(), deflated()].into_iter().flatten().collect();
    assert!(vectors.len() >= 135, "the table has shrunk to {}", vectors.len());
    let mut verdicts = Verdicts::new();
    for vector in &vectors {
        let judged = async {
            let tcp = TcpStream::connect(address).await.expect("connect");
            let direct = timeout(PATIENCE, conversation(tcp, vector)).await.expect("in time");
            let tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
            let through = timeout(PATIENCE, conversation(tls, vector)).await.expect("in time");
            assert!(direct.0[0].starts_with("connection: upgrade"), "{}: {:?}", vector.name, direct.0);
            assert_eq!(direct.0, through.0, "{}", vector.name);
            assert!(
                direct.1 == through.1,
                "{}: {} bytes and {}",
                vector.name,
                direct.1.len(),
                through.1.len()
            );
            assert!(!direct.1.is_empty(), "{}: the server says nothing", vector.name);
        };
        verdicts.note(judged).await;
    }
    verdicts.all_good();
}
