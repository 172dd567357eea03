//! Requests that two servers could read in two ways, each with its verdict, against a server that records every byte.
//!
//! After each vector an honest request is made over a connection of its own, which may use the same pooled connection
//! to the VM: whatever a vector has left behind there would come out as its answer.

use crate::recorder::{Came, PATH, Recorder, Verdicts, each_once, path};
use crate::world::{Behind, PATIENCE, World};
use edge_proxy::metrics::Count;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// What must become of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Answered with this status and closed; the VM sees nothing.
    Refused(u16),
    /// The head is good and the body is not: the VM sees this one request at most, whose answer may be the quicker one,
    /// and then the connection ends.
    Broken,
    /// Passed on as one request, answered with 200.
    One,
}

use Verdict::{Broken, One, Refused};

const EVIL: &str = "GET /evil HTTP/1.1\r\nHost: a.style.dev\r\n\r\n";

/// A POST with these fields and this body.
fn post(fields: &str, body: &str) -> String {
    format!("POST /v000 HTTP/1.1\r\nHost: a.style.dev\r\n{fields}\r\n{body}")
}

/// A GET with these fields, and something behind it.
fn get(fields: &str) -> String {
    format!("GET /v000 HTTP/1.1\r\nHost: a.style.dev\r\n{fields}\r\n{EVIL}")
}

fn chunked(body: &str) -> String {
    post("Transfer-Encoding: chunked\r\n", body)
}

/// Two framings, or one that is written oddly.
fn framings() -> Vec<(&'static str, String, Verdict)> {
    let hidden = format!("0\r\n\r\n{EVIL}");
    let length = |value: &str| post(&format!("Content-Length: {value}\r\n"), &format!("abc{EVIL}"));
    let coding = |value: &str| post(&format!("Transfer-Encoding: {value}\r\n"), &hidden);
    vec![
        ("CL.TE", post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", &hidden), Refused(400)),
        ("TE.CL", post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", &hidden), Refused(400)),
        ("CL 0 and TE", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &hidden), Refused(400)),
        (
            "TE twice",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", &hidden),
            Refused(400),
        ),
        (
            "TE twice, equal",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &hidden),
            Refused(400),
        ),
        ("TE identity, chunked", coding("identity, chunked"), Refused(400)),
        ("TE chunked, identity", coding("chunked, identity"), Refused(400)),
        ("TE identity", coding("identity"), Refused(400)),
        ("TE xchunked", coding("xchunked"), Refused(400)),
        ("TE chunkedx", coding("chunked;q=1"), Refused(400)),
        ("TE quoted", coding("\"chunked\""), Refused(400)),
        ("TE vertical tab", coding("\x0bchunked"), Refused(400)),
        ("TE empty", coding(""), Refused(400)),
        ("TE with a comma", coding(",chunked"), Refused(400)),
        ("TE space before the colon", post("Transfer-Encoding : chunked\r\n", &hidden), Refused(400)),
        ("TE tab before the colon", post("Transfer-Encoding\t: chunked\r\n", &hidden), Refused(400)),
        ("TE with an underscore", post("Transfer_Encoding: chunked\r\n", &hidden), Refused(400)),
        ("TE folded", post("Transfer-Encoding:\r\n chunked\r\n", &hidden), Refused(400)),
        ("TE behind a bare LF", post("X: y\nTransfer-Encoding: chunked\r\n", &hidden), Refused(400)),
        ("TE behind a bare CR", post("X: y\rTransfer-Encoding: chunked\r\n", &hidden), Refused(400)),
        ("TE in HTTP/1.0", coding("chunked").replace("/v000 HTTP/1.1", "/v000 HTTP/1.0"), Refused(400)),
        ("CL twice, unequal", post("Content-Length: 3\r\nContent-Length: 4\r\n", "abc"), Refused(400)),
        ("CL twice, equal", post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc"), Refused(400)),
        ("CL a list", length("3, 3"), Refused(400)),
        ("CL plus", length("+3"), Refused(400)),
        ("CL minus", length("-3"), Refused(400)),
        ("CL hexadecimal", length("0x3"), Refused(400)),
        ("CL with a space", length("3 3"), Refused(400)),
        ("CL with a point", length("3.0"), Refused(400)),
        ("CL empty", length(""), Refused(400)),
        ("CL too large", length("99999999999999999999999"), Refused(400)),
        ("CL NUL", length("3\0"), Refused(400)),
    ]
}

/// Chunks that are written oddly.
fn chunks() -> Vec<(&'static str, String, Verdict)> {
    vec![
        ("chunk without a size", chunked(&format!("\r\n\r\n{EVIL}")), Broken),
        ("chunk with an extension alone", chunked(&format!(";x\r\n\r\n{EVIL}")), Broken),
        ("chunk size of spaces", chunked(&format!("  \r\n\r\n{EVIL}")), Broken),
        ("chunk size plus", chunked(&format!("+3\r\nabc\r\n0\r\n\r\n{EVIL}")), Broken),
        ("chunk size minus", chunked(&format!("-0\r\n\r\n{EVIL}")), Broken),
        ("chunk size 0x", chunked(&format!("0x0\r\n\r\n{EVIL}")), Broken),
        ("chunk size with an underscore", chunked(&format!("0_0\r\n\r\n{EVIL}")), Broken),
        ("chunk size with a space", chunked(&format!("3 \r\nabc\r\n0\r\n\r\n{EVIL}")), Broken),
        ("chunk size that wraps", chunked(&format!("10000000000000000\r\n\r\n{EVIL}")), Broken),
        ("chunk size bare LF", chunked(&format!("3\nabc\r\n0\r\n\r\n{EVIL}")), Broken),
        ("chunk size bare CR", chunked(&format!("3\rabc\r\n0\r\n\r\n{EVIL}")), Broken),
        ("chunk longer than its size", chunked(&format!("3\r\nabcd\r\n0\r\n\r\n{EVIL}")), Broken),
        ("chunk ends with LF", chunked(&format!("3\r\nabc\n0\r\n\r\n{EVIL}")), Broken),
        ("extension with LF", chunked(&format!("3;a\nb\r\nabc\r\n0\r\n\r\n{EVIL}")), Broken),
        ("extension with NUL", chunked(&format!("3;\0\r\nabc\r\n0\r\n\r\n{EVIL}")), Broken),
        ("extension too long", chunked(&format!("3;{}\r\nabc\r\n0\r\n\r\n{EVIL}", "x".repeat(5000))), Broken),
        ("trailer without a colon", chunked(&format!("0\r\nevil\r\n\r\n{EVIL}")), Broken),
        ("trailer with a space", chunked(&format!("0\r\nX : y\r\n\r\n{EVIL}")), Broken),
        ("trailer bare LF", chunked(&format!("0\r\nX: y\n\r\n{EVIL}")), Broken),
        ("last line bare LF", chunked(&format!("0\r\n\n{EVIL}")), Broken),
        ("extension that is well formed", chunked("3;a=b\r\nabc\r\n0\r\n\r\n"), One),
        ("trailer that would frame", chunked("3\r\nabc\r\n0\r\nContent-Length: 50\r\n\r\n"), One),
        ("trailer that would route", chunked("0\r\nHost: b.style.dev\r\n\r\n"), One),
    ]
}

/// Lines and names.
fn lines() -> Vec<(&'static str, String, Verdict)> {
    let line = |line: &str| format!("{line}\r\nHost: a.style.dev\r\n\r\n{EVIL}");
    let host = |host: &str| format!("GET /v000 HTTP/1.1\r\nHost: {host}\r\n\r\n{EVIL}");
    vec![
        (
            "bare LF after the line",
            format!("GET /v000 HTTP/1.1\nHost: a.style.dev\r\n\r\n{EVIL}"),
            Refused(400),
        ),
        ("bare LF all over", "GET /v000 HTTP/1.1\nHost: a.style.dev\n\n".to_owned(), Refused(400)),
        ("folded", get("X: a\r\n b\r\n"), Refused(400)),
        (
            "folded before the first",
            format!("GET /v000 HTTP/1.1\r\n X: y\r\nHost: a.style.dev\r\n\r\n{EVIL}"),
            Refused(400),
        ),
        ("NUL in a value", get("X: a\0b\r\n"), Refused(400)),
        ("NUL in a name", get("X\0: b\r\n"), Refused(400)),
        ("control byte in a value", get("X: a\x01b\r\n"), Refused(400)),
        ("space in a name", get("X Y: b\r\n"), Refused(400)),
        ("name empty", get(": b\r\n"), Refused(400)),
        ("line without a colon", get("evil\r\n"), Refused(400)),
        ("NUL in the target", line("GET /v000\0 HTTP/1.1"), Refused(400)),
        ("control byte in the target", line("GET /\x01 HTTP/1.1"), Refused(400)),
        ("space in the target", line("GET /v000 /w HTTP/1.1"), Refused(400)),
        ("tab in the line", line("GET\t/v000\tHTTP/1.1"), Refused(400)),
        ("two spaces", line("GET  /v000 HTTP/1.1"), Refused(400)),
        ("target without a slash", line("GET v HTTP/1.1"), Refused(400)),
        ("fragment", line("GET /v000#x HTTP/1.1"), Refused(400)),
        ("HTTP/0.9", "GET /v000\r\n\r\n".to_owned(), Refused(400)),
        ("HTTP/1.2", line("GET /v000 HTTP/1.2"), Refused(505)),
        ("HTTP/2.0", line("GET /v000 HTTP/2.0"), Refused(505)),
        ("HTTP/01.1", line("GET /v000 HTTP/01.1"), Refused(505)),
        ("small letters", line("GET /v000 http/1.1"), Refused(400)),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), Refused(505)),
        ("CONNECT", line("CONNECT a.style.dev:443 HTTP/1.1"), Refused(405)),
        ("TRACE", line("TRACE /v000 HTTP/1.1"), Refused(405)),
        ("method junk", line("G{ET} /v000 HTTP/1.1"), Refused(400)),
        ("no Host", format!("GET /v000 HTTP/1.1\r\n\r\n{EVIL}"), Refused(400)),
        ("two Hosts", get("Host: a.style.dev\r\n"), Refused(400)),
        ("Host with a user", host("me@a.style.dev"), Refused(400)),
        ("Host with a list", host("a.style.dev, b.style.dev"), Refused(400)),
        ("Host with a bad port", host("a.style.dev:80x"), Refused(400)),
        ("Host with two ports", host("a.style.dev:80:80"), Refused(400)),
        ("Host with a path", host("a.style.dev/x"), Refused(400)),
        ("Host empty", host(""), Refused(400)),
        ("Host with a space", host("a.style.dev b"), Refused(400)),
        ("another authority", line("GET https://b.style.dev/v000 HTTP/1.1"), Refused(400)),
        ("a user in the target", line("GET https://me@a.style.dev/v000 HTTP/1.1"), Refused(400)),
        ("101 fields", get(&"X: y\r\n".repeat(101)), Refused(431)),
        ("70 KB of fields", get(&format!("X: {}\r\n", "x".repeat(70_000))), Refused(431)),
        ("a long target", line(&format!("GET /{} HTTP/1.1", "x".repeat(70_000))), Refused(431)),
        ("unknown expectation", post("Expect: 200-maybe\r\nContent-Length: 3\r\n", "abc"), Refused(417)),
    ]
}

/// Fields that are for one hop, and upgrades.
fn hops() -> Vec<(&'static str, String, Verdict)> {
    let alone = |fields: &str| format!("GET /v000 HTTP/1.1\r\nHost: a.style.dev\r\n{fields}\r\n");
    let websocket = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
    vec![
        ("lines before the request", format!("\r\n\r\n{}", alone("")), One),
        (
            "upgrade to h2c",
            alone("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"),
            One,
        ),
        ("upgrade to an unknown protocol", alone("Upgrade: evil\r\nConnection: Upgrade\r\n"), One),
        ("WebSocket with a body", post(&format!("{websocket}Content-Length: 3\r\n"), "abc"), Refused(400)),
        ("WebSocket by POST", post(websocket, ""), Refused(400)),
        (
            "the same host twice over",
            "GET https://a.style.dev/v000 HTTP/1.1\r\nHost: a.style.dev\r\n\r\n".to_owned(),
            One,
        ),
        ("Keep-Alive", alone("Keep-Alive: timeout=5\r\nConnection: keep-alive, Keep-Alive\r\n"), One),
        ("TE", alone("TE: trailers\r\n"), One),
        ("HTTP/1.0", "GET /v000 HTTP/1.0\r\nHost: a.style.dev\r\n\r\n".to_owned(), One),
    ]
}

async fn exchange(world: &World, protocol: &str, bytes: &[u8]) -> String {
    let mut tls = world.tls("a.style.dev", &[protocol]).await.expect("tls");
    // It may be closed while we still write: what it answered is still to be read.
    let _either_way = tls.write_all(bytes).await;
    let _either_way = tls.flush().await;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match timeout(PATIENCE, tls.read(&mut piece)).await.expect("it answers and closes") {
            Ok(count @ 1..) => answer.extend_from_slice(&piece[..count]),
            Ok(0) | Err(_) => return String::from_utf8_lossy(&answer).into_owned(),
        }
    }
}

async fn recorded() -> (World, Recorder) {
    let world = World::with(|settings| {
        settings.keepalive = std::time::Duration::from_millis(300);
    })
    .await;
    let (address, recorder) = Recorder::start().await;
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
    (world, recorder)
}

/// The next client's request gets the next client's answer, and the VM sees one request, its own.
async fn honest(world: &World, recorder: &Recorder, name: &str) -> Vec<String> {
    let asked = b"GET /honest HTTP/1.1\r\nHost: a.style.dev\r\nConnection: close\r\n\r\n";
    let answer = exchange(world, "http/1.1", asked).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{name}: {answer}");
    let came = Came::take(recorder, name, "/honest");
    assert_eq!(came.own, ["GET /honest HTTP/1.1"], "{name}");
    came.late
}

async fn judge(
    world: &World,
    recorder: &Recorder,
    vector: &(&str, String, Verdict),
    path: &str,
    late: &mut Vec<String>,
) {
    let (name, bytes, verdict) = vector;
    let bad_before = world.count(Count::BadChunks);
    let answer = exchange(world, "http/1.1", bytes.replace(PATH, path).as_bytes()).await;
    let answers = answer.to_lowercase().matches("\r\ncontent-length: ").count();
    let status = answer.get(9..12).unwrap_or_default();
    let came = Came::take(recorder, name, path);
    let lines = &came.own;
    late.extend(came.late);
    match verdict {
        Refused(wanted) => {
            assert_eq!((status, answers), (wanted.to_string().as_str(), 1), "{name}: {answer}");
            assert!(lines.is_empty(), "{name}: {lines:?}");
        }
        Broken => {
            let told = matches!(status, "400" | "200") && answers == 1;
            assert!(answer.is_empty() || told, "{name}: {answer}");
            // Found here, and not left to the engine, which takes some of these for good.
            world.counted(Count::BadChunks, bad_before + 1).await;
            let head = format!("POST {path} HTTP/1.1");
            assert!(lines.iter().all(|line| *line == head) && lines.len() < 2, "{name}: {lines:?}");
        }
        One => {
            assert_eq!((status, answers), ("200", 1), "{name}: {answer}");
            assert_eq!(lines.len(), 1, "{name}: {lines:?}");
        }
    }
    late.extend(honest(world, recorder, name).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_http1() {
    let (world, recorder) = recorded().await;
    let table: Vec<_> = [framings(), chunks(), lines(), hops()].concat();
    assert!(table.len() >= 100, "the table has shrunk to {}", table.len());
    let (mut verdicts, mut late) = (Verdicts::new(), Vec::new());
    for (vector, place) in table.iter().zip(1..) {
        verdicts.note(judge(&world, &recorder, vector, &path(place), &mut late)).await;
    }
    verdicts.all_good();
    let broken = table.iter().zip(1..).filter(|(vector, _)| vector.2 == Broken);
    each_once(late, &broken.map(|(_, place)| path(place)).collect::<Vec<_>>());
}

/// What the VM gets of fields for one hop: none of them, and no framing but the gateway's own.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_for_one_hop_stays_there() {
    let (world, recorder) = recorded().await;
    let fields = "Connection: close, X-Secret\r\nX-Secret: a\r\nKeep-Alive: 5\r\nTE: trailers\r\nUpgrade: h2c\r\n\
                  Proxy-Connection: keep-alive\r\nProxy-Authorization: b\r\n";
    let asked = format!("GET /v000 HTTP/1.1\r\nHost: a.style.dev\r\n{fields}\r\n");
    let answer = exchange(&world, "http/1.1", asked.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let bytes = recorder.take().concat().to_lowercase();
    for name in ["x-secret", "keep-alive", "upgrade", "proxy-connection", "proxy-authorization"] {
        assert!(!bytes.contains(&format!("\r\n{name}:")), "{name} in {bytes}");
    }
    // A client cannot have the fields taken out by which a request is framed and routed.
    for named in ["content-length", "host", "transfer-encoding", "x-forwarded-for"] {
        let asked = format!(
            "POST /v000 HTTP/1.1\r\nHost: a.style.dev\r\nConnection: close, {named}\r\nContent-Length: 3\r\n\r\nabc"
        );
        let answer = exchange(&world, "http/1.1", asked.as_bytes()).await;
        let bytes = recorder.take().concat().to_lowercase();
        let whole = ["host: a.style.dev\r\n", "content-length: 3\r\n", "x-forwarded-for: 127.0.0.1\r\n"];
        let refused = answer.starts_with("HTTP/1.1 4") && bytes.is_empty();
        assert!(refused || whole.iter().all(|field| bytes.contains(field)), "{named}: {answer}\n{bytes}");
    }
}
