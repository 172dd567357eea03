//! Requests of HTTP/2 that would be two, or another one, when they are written as HTTP/1 for the VM.

use crate::raw_h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, Outcome, POST, RawH2, block, frame, headers,
};
use crate::recorder::{Came, PATH, Recorder, Verdicts, each_once, path};
use crate::world::{Behind, World};

/// What must become of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Answered by the gateway with this status; the VM sees nothing.
    Answered(u16),
    /// Not answered with success: a status of 4xx, a reset, or the connection's end. The VM sees nothing.
    Refused,
    /// The head is good and the body is not: the VM sees this one request at most.
    Broken,
    /// Passed on as one request, answered with 200.
    One,
}

use Verdict::{Answered, Broken, One, Refused};

/// Data of a body that looks like a request.
const HIDDEN: &str = "GET /hidden HTTP/1.0";

type Fields<'a> = Vec<(&'a str, &'a str)>;

/// A request with one pseudo header changed.
fn with<'a>(name: &str, value: &'a str) -> Fields<'a> {
    GET.iter().map(|(key, old)| (*key, if *key == name { value } else { *old })).collect()
}

/// A request without one of them.
fn without(name: &str) -> Fields<'static> {
    GET.iter().copied().filter(|(key, _)| *key != name).collect()
}

/// A request with one field more.
fn plus<'a>(name: &'a str, value: &'a str) -> Fields<'a> {
    GET.iter().copied().chain([(name, value)]).collect()
}

fn pseudo_headers() -> Vec<(&'static str, Fields<'static>, Verdict)> {
    let late = GET[..3].iter().copied().chain([("x", "y"), GET[3]]).collect();
    vec![
        ("two methods", plus(":method", "POST"), Refused),
        ("two paths", plus(":path", "/evil"), Refused),
        ("two authorities", plus(":authority", "b.style.dev"), Refused),
        ("two schemes", plus(":scheme", "http"), Refused),
        ("a late pseudo header", late, Refused),
        ("an unknown pseudo header", plus(":evil", "y"), Refused),
        ("an answer's pseudo header", plus(":status", "200"), Refused),
        ("no method", without(":method"), Refused),
        ("no path", without(":path"), Refused),
        ("no scheme", without(":scheme"), Refused),
        ("no authority and no host", without(":authority"), Answered(400)),
        ("an empty path", with(":path", ""), Refused),
        ("a path without a slash", with(":path", "evil"), Refused),
        ("a path with a space", with(":path", "/v000 HTTP/1.1"), Refused),
        ("a path with a line end", with(":path", "/v000 HTTP/1.1\r\nX: evil"), Refused),
        ("a path with NUL", with(":path", "/v000\0"), Refused),
        ("a path with a whole URL", with(":path", "http://b.style.dev/evil"), Refused),
        ("a method with a space", with(":method", "GET /evil"), Refused),
        ("a method with a line end", with(":method", "GET\r\n"), Refused),
        ("an empty method", with(":method", ""), Refused),
        ("TRACE", with(":method", "TRACE"), Answered(405)),
        ("CONNECT", with(":method", "CONNECT"), Refused),
        ("an authority with a user", with(":authority", "me@a.style.dev"), Refused),
        ("an authority with a path", with(":authority", "a.style.dev/evil"), Refused),
        ("an authority with a line end", with(":authority", "a.style.dev\r\nX: evil"), Refused),
        ("an authority with a bad port", with(":authority", "a.style.dev:80x"), Refused),
        ("an authority of another certificate", with(":authority", "www.example.org"), Answered(421)),
        ("an authority that leads nowhere", with(":authority", "b.style.dev"), Answered(404)),
        ("a host that differs", plus("host", "b.style.dev"), Answered(400)),
        ("a host that agrees", plus("host", "a.style.dev"), One),
        ("a host alone", without(":authority").into_iter().chain([("host", "a.style.dev")]).collect(), One),
    ]
}

fn fields() -> Vec<(&'static str, Fields<'static>, Verdict)> {
    vec![
        (
            "two hosts",
            without(":authority")
                .into_iter()
                .chain([("host", "a.style.dev"), ("host", "a.style.dev")])
                .collect(),
            Answered(400),
        ),
        ("a value with a line end", plus("x", "a\r\nX-Evil: evil"), Refused),
        ("a value with LF", plus("x", "a\nevil"), Refused),
        ("a value with CR", plus("x", "a\revil"), Refused),
        ("a value with NUL", plus("x", "a\0b"), Refused),
        ("a name with a colon", plus("x: evil", "y"), Refused),
        ("a name with a line end", plus("x\r\nevil", "y"), Refused),
        ("a name with a space", plus("x ", "y"), Refused),
        ("a name in capitals", plus("X-Evil", "y"), Refused),
        ("an empty name", plus("", "y"), Refused),
        ("a name with an underscore", plus("x_y", "z"), Answered(400)),
        ("connection", plus("connection", "close"), Refused),
        ("keep-alive", plus("keep-alive", "5"), Refused),
        ("proxy-connection", plus("proxy-connection", "close"), Refused),
        ("upgrade", plus("upgrade", "websocket"), Refused),
        ("transfer-encoding", plus("transfer-encoding", "chunked"), Refused),
        ("te with a coding", plus("te", "chunked"), Refused),
        ("te with trailers", plus("te", "trailers"), One),
        ("101 fields", GET.iter().copied().chain([("x", "y"); 101]).collect(), Answered(431)),
    ]
}

/// Whole frames, for what is in the body.
fn bodies() -> Vec<(&'static str, Vec<u8>, Verdict)> {
    let post = |fields: &[(&'static str, &'static str)], body: &[u8]| {
        let all: Fields<'_> = POST.iter().chain(fields).copied().collect();
        [headers(1, &all, false), frame(DATA, END_STREAM, 1, body)].concat()
    };
    let trailers = |fields: &[(&str, &str)]| {
        [headers(1, &POST, false), frame(DATA, 0, 1, b"abc"), headers(1, fields, true)].concat()
    };
    let evil = b"0\r\n\r\nGET /evil HTTP/1.1\r\nHost: a.style.dev\r\n\r\n";
    vec![
        ("a length that is less", post(&[("content-length", "3")], b"abcGET /evil HTTP/1.1\r\n\r\n"), Broken),
        ("a length that is more", post(&[("content-length", "50")], b"abc"), Broken),
        ("a length of zero with data", post(&[("content-length", "0")], evil), Broken),
        ("two lengths", post(&[("content-length", "3"), ("content-length", "4")], b"abc"), Refused),
        ("a length that is no number", post(&[("content-length", "+3")], b"abc"), Refused),
        ("a length that is a list", post(&[("content-length", "3, 3")], b"abc"), Refused),
        ("trailers with a pseudo header", trailers(&[(":path", "/evil")]), Broken),
        ("trailers with a length", trailers(&[("content-length", "50")]), Broken),
        ("trailers with a line end", trailers(&[("x", "a\r\nevil")]), Broken),
        ("data that looks like a request", post(&[], HIDDEN.as_bytes()), Broken),
        ("data after the end", [headers(1, &GET, true), frame(DATA, END_STREAM, 1, evil)].concat(), Broken),
        (
            "a block that another frame interrupts",
            [
                frame(HEADERS, END_STREAM, 1, &block(&GET)),
                frame(DATA, 0, 1, b"x"),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ]
            .concat(),
            Refused,
        ),
        ("a body with its length", post(&[("content-length", "3")], b"abc"), One),
        ("a body without a length", post(&[], b"abc"), One),
    ]
}

/// The bytes with the vector's own path, which is as long as the table's.
fn on_path(mut bytes: Vec<u8>, path: &str) -> Vec<u8> {
    for place in 0..bytes.len().saturating_sub(PATH.len() - 1) {
        if bytes[place..].starts_with(PATH.as_bytes()) {
            bytes[place..place + PATH.len()].copy_from_slice(path.as_bytes());
        }
    }
    bytes
}

async fn judge(
    world: &World,
    recorder: &Recorder,
    (name, bytes, verdict): (&str, Vec<u8>, Verdict),
    path: &str,
    late: &mut Vec<String>,
) {
    let mut client = RawH2::connect(world, &[]).await;
    let sent = client.send(&on_path(bytes, path)).await;
    let outcome = if sent.is_ok() { client.outcome(1).await } else { Outcome::Gone };
    drop(client);
    let came = take(recorder, name, path);
    let lines = &came.own;
    late.extend(came.late);
    match verdict {
        Answered(status) => {
            assert_eq!((outcome, lines.len()), (Outcome::Status(status), 0), "{name}: {lines:?}");
        }
        Refused => {
            let refused = match outcome {
                Outcome::Status(status) => (400..500).contains(&status),
                Outcome::Reset | Outcome::Gone => true,
            };
            assert!(refused && lines.is_empty(), "{name}: {outcome:?} {lines:?}");
        }
        Broken => {
            let head = format!("{path} HTTP/1.1");
            assert!(lines.iter().all(|line| line.ends_with(&head)) && lines.len() < 2, "{name}: {lines:?}");
        }
        One => assert_eq!((outcome, lines.len()), (Outcome::Status(200), 1), "{name}: {lines:?}"),
    }
    late.extend(honest(world, recorder, name).await);
}

async fn honest(world: &World, recorder: &Recorder, name: &str) -> Vec<String> {
    let asked = world.curl("https://a.style.dev/honest", &["--http1.1"]).await;
    assert_eq!((asked.code, asked.out.as_str()), (0, "ok"), "{name}: {asked:?}");
    let came = take(recorder, name, "/honest");
    assert_eq!(came.own, ["GET /honest HTTP/1.1"], "{name}");
    came.late
}

/// What came, without the data of one vector that looks like a request and is none.
fn take(recorder: &Recorder, name: &str, path: &str) -> Came {
    let mut came = Came::take(recorder, name, path);
    came.own.retain(|line| line != HIDDEN);
    came
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_of_http2() {
    let world = World::new().await;
    let (address, recorder) = Recorder::start().await;
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
    let of_heads: Vec<_> = [pseudo_headers(), fields()].concat();
    assert!(of_heads.len() >= 50, "the table has shrunk to {}", of_heads.len());
    let of_heads = of_heads.iter().map(|(name, fields, verdict)| (*name, headers(1, fields, true), *verdict));
    let (mut verdicts, mut late, mut broken) = (Verdicts::new(), Vec::new(), Vec::new());
    for (vector, place) in of_heads.chain(bodies()).zip(1..) {
        let path = path(place);
        broken.extend((vector.2 == Broken).then(|| path.clone()));
        verdicts.note(judge(&world, &recorder, vector, &path, &mut late)).await;
    }
    verdicts.all_good();
    each_once(late, &broken);
}
