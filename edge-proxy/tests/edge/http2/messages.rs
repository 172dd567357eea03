//! RFC 9113 section 8: what a request is made of. What must not reach the VM is in [`crate::smuggling_h2`] too.

use super::Must::{Answered, Connection, Stream};
use super::{ENHANCE_YOUR_CALM, PROTOCOL_ERROR, Row, STREAM_CLOSED, hold, row};
use crate::raw_h2::{DATA, END_STREAM, GET, HEADERS, Outcome, POST, RawH2, frame, headers};
use crate::recorder::Recorder;
use crate::world::{Behind, World};

type Field = (&'static str, &'static str);

/// What is said of a malformed request (section 8.1.1).
const MALFORMED: super::Must = Stream(1, PROTOCOL_ERROR);

fn plus(name: &'static str, value: &'static str) -> Vec<u8> {
    ask(&[&GET[..], &[(name, value)]].concat())
}

fn with(name: &str, value: &'static str) -> Vec<u8> {
    ask(&GET.map(|(key, old)| (key, if key == name { value } else { old })))
}

fn without(name: &str) -> Vec<u8> {
    let rest: Vec<Field> = GET.into_iter().filter(|(key, _)| *key != name).collect();
    ask(&rest)
}

fn ask(fields: &[Field]) -> Vec<u8> {
    headers(1, fields, true)
}

/// A request with a body, and what comes after its head.
fn post(more: &[Field], rest: &[Vec<u8>]) -> Vec<u8> {
    [headers(1, &[&POST[..], more].concat(), false), rest.concat()].concat()
}

fn abc(flags: u8) -> Vec<u8> {
    frame(DATA, flags, 1, b"abc")
}

fn framing() -> Vec<Row> {
    let trailers = |fields: &[Field], end| headers(1, fields, end);
    vec![
        row("8.1", "a body in three frames", post(&[], &[abc(0), abc(0), abc(END_STREAM)]), Answered(1, 200)),
        row(
            "8.1",
            "a body and trailers",
            post(&[], &[abc(0), trailers(&[("x", "y")], true)]),
            Answered(1, 200),
        ),
        row("8.1", "trailers without a body", post(&[], &[trailers(&[("x", "y")], true)]), Answered(1, 200)),
        row(
            "8.1",
            "trailers that do not end the request",
            post(&[], &[abc(0), trailers(&[("x", "y")], false)]),
            MALFORMED,
        ),
        row(
            "8.1",
            "a second head that does not end the request",
            post(&[], &[headers(1, &POST, false)]),
            MALFORMED,
        ),
        row(
            "8.1",
            "data after trailers",
            post(&[], &[abc(0), trailers(&[("x", "y")], true), abc(END_STREAM)]),
            Stream(1, STREAM_CLOSED),
        )
        .but_all(),
        row(
            "8.1.1",
            "more data than was said",
            post(&[("content-length", "2")], &[abc(END_STREAM)]),
            MALFORMED,
        ),
        row(
            "8.1.1",
            "less data than was said",
            post(&[("content-length", "4")], &[abc(END_STREAM)]),
            MALFORMED,
        ),
        row(
            "8.1.1",
            "data where none was said",
            post(&[("content-length", "0")], &[abc(END_STREAM)]),
            MALFORMED,
        ),
        row("8.1.1", "no data where some was said", plus("content-length", "3"), MALFORMED),
        row(
            "8.1.1",
            "less data, and then trailers",
            post(&[("content-length", "4")], &[abc(0), trailers(&[("x", "y")], true)]),
            MALFORMED,
        ),
        row(
            "8.1.1",
            "as much data as was said, in two frames",
            post(&[("content-length", "6")], &[abc(0), abc(END_STREAM)]),
            Answered(1, 200),
        ),
        row(
            "8.1.1",
            "padding does not count",
            post(&[("content-length", "3")], &[frame(DATA, END_STREAM | super::PADDED, 1, b"\x02abc\0\0")]),
            Answered(1, 200),
        ),
    ]
}

fn fields() -> Vec<Row> {
    let name = |what, name| row("8.2.1", what, plus(name, "y"), MALFORMED).but_all();
    let value = |what, value| row("8.2.1", what, plus("x", value), MALFORMED);
    let hop = |name, value| row("8.2.2", name, plus(name, value), MALFORMED);
    let space = "the engine takes it; the gateway answers, as section 8.1.1 allows";
    vec![
        name("a name in capitals", "X-Y"),
        name("an empty name", ""),
        name("a name with a space", "x y"),
        name("a name with a control character", "x\u{1}"),
        name("a name with DEL", "x\u{7f}"),
        name("a name beyond ASCII", "xé"),
        name("a name with a colon", "x:y"),
        value("a value with NUL", "a\0b").but_all(),
        value("a value with CR", "a\rb").but_all(),
        value("a value with LF", "a\nb").but_all(),
        value("a value that begins with a space", " a").but(Answered(1, 400), space),
        value("a value that ends with a space", "a ").but(Answered(1, 400), space),
        value("a value that begins with a tab", "\ta").but(Answered(1, 400), space),
        value("a value that ends with a tab", "a\t").but(Answered(1, 400), space),
        row("8.2.1", "a value with a space in it", plus("x", "a b\tc"), Answered(1, 200)),
        row("8.2.1", "an empty value", plus("x", ""), Answered(1, 200)),
        row("8.2.1", "a value beyond ASCII", plus("x", "é"), Answered(1, 200)),
        hop("connection", "x"),
        hop("keep-alive", "timeout=5"),
        hop("proxy-connection", "keep-alive"),
        hop("transfer-encoding", "chunked"),
        hop("upgrade", "websocket"),
        hop("te", "gzip"),
        hop("te", "trailers, gzip"),
        row("8.2.2", "te of trailers", plus("te", "trailers"), Answered(1, 200)),
    ]
}

fn pseudo() -> Vec<Row> {
    let bad = |what, bytes| row("8.3", what, bytes, MALFORMED);
    let late = [GET[0], GET[1], GET[2], ("x", "y"), GET[3]];
    let trailers = headers(1, &[(":path", "/v")], true);
    let dropped = "the engine drops it, and the rest of the trailers goes on without";
    vec![
        bad("an unknown one", plus(":x", "y")).but_all(),
        bad("an answer's", plus(":status", "200")),
        bad("one after a field", ask(&late)),
        bad("one in trailers", post(&[], &[abc(0), trailers])).but(Answered(1, 200), dropped),
        bad("an answer's in trailers", post(&[], &[abc(0), headers(1, &[(":status", "200")], true)]))
            .but(Answered(1, 200), dropped),
        bad("two methods", plus(":method", "GET")),
        bad("two schemes", plus(":scheme", "https")),
        bad("two paths", plus(":path", "/v")),
        bad("two authorities", plus(":authority", "a.style.dev")),
        bad("no method", without(":method")),
        bad("no scheme", without(":scheme")),
        bad("no path", without(":path")),
        bad("an empty path", with(":path", "")),
        bad("no fields at all", frame(HEADERS, END_STREAM | super::END_HEADERS, 1, b"")),
        row(
            "8.3.1",
            "no authority but a host",
            ask(&[GET[0], GET[1], GET[3], ("host", "a.style.dev")]),
            Answered(1, 200),
        ),
        row("8.3.1", "a host that differs", plus("host", "b.style.dev"), MALFORMED)
            .but(Answered(1, 400), "section 8.1.1 allows an answer"),
        row("8.3.1", "an authority with a user", with(":authority", "me@a.style.dev"), MALFORMED)
            .but(Answered(1, 400), "section 8.1.1 allows an answer"),
        row(
            "8.3.1",
            "OPTIONS of all",
            ask(&[(":method", "OPTIONS"), GET[1], GET[2], (":path", "*")]),
            Answered(1, 200),
        ),
        row("8.3.1", "HEAD", with(":method", "HEAD"), Answered(1, 200)),
        row("8.3.1", "a method that nobody knows", with(":method", "BREW"), Answered(1, 200)),
        row(
            "8.5",
            "CONNECT",
            ask(&[(":method", "CONNECT"), (":authority", "a.style.dev:443")]),
            Answered(1, 405),
        ),
        row("8.5", "CONNECT with a path and a scheme", with(":method", "CONNECT"), MALFORMED),
        row("8.5", "CONNECT without an authority", ask(&[(":method", "CONNECT")]), MALFORMED)
            .but(Answered(1, 400), "section 8.1.1 allows an answer"),
        row(
            "RFC 8441 3",
            "a protocol that was not offered",
            ask(&[&[(":method", "CONNECT"), (":protocol", "websocket")][..], &GET[1..]].concat()),
            MALFORMED,
        ),
        row("RFC 8441 3", "a protocol without CONNECT", plus(":protocol", "websocket"), MALFORMED),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_is_made_of() {
    hold(60, [framing(), fields(), pseudo()].into_iter().flatten().collect()).await;
}

/// Section 8.2.3: a cookie may come in crumbs over HTTP/2; a server of HTTP/1.1 must get it whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_in_crumbs_reaches_the_vm_as_one() {
    let world = World::new().await;
    let (address, recorder) = Recorder::start().await;
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
    let crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")];
    let mut client = RawH2::connect(&world, &[]).await;
    client.send(&headers(1, &[&GET[..], &crumbs].concat(), true)).await.expect("asked");
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    let said: String = recorder.take().iter().map(|bytes| bytes.to_lowercase()).collect();
    let cookies: Vec<&str> = said.lines().filter(|line| line.starts_with("cookie:")).collect();
    assert_eq!(cookies, ["cookie: a=1; b=2; c=3"], "{said}");
}

/// Section 10.5: who sends one malformed request after the other is cut, with a word.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_malformed_requests_are_too_many() {
    let malformed = [&GET[..], &[("upgrade", "x")]].concat();
    let many = (0..1100).flat_map(|number| headers(2 * number + 1, &malformed, true)).collect();
    hold(
        1,
        vec![row("10.5", "more than a thousand malformed requests", many, Connection(ENHANCE_YOUR_CALM))],
    )
    .await;
}

/// RFC 9113 section 9.1.1 and RFC 9110 section 15.5.20: one connection serves all names of its certificate, and no
/// other one, for which the client is to make another connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_the_names_of_its_certificate_alone() {
    let world = super::world().await;
    world.map("b.style.dev", 3000).await;
    world.map("www.example.org", 3000).await;
    // Without a table of fields, each answer says its status.
    let mut client = RawH2::connect(&world, &[0, 1, 0, 0, 0, 0]).await;
    let hosts = [
        ("a.style.dev", 200),
        ("b.style.dev", 200),
        ("www.example.org", 421),
        ("a.style.dev:8443", 200),
        ("www.example.org:443", 421),
        ("a.b.style.dev", 421),
        ("style.dev", 421),
        ("b.style.dev", 200),
    ];
    for (number, (host, status)) in (0..).zip(hosts) {
        let id = 2 * number + 1;
        let fields = GET.map(|(name, old)| (name, if name == ":authority" { host } else { old }));
        client.send(&headers(id, &fields, true)).await.expect("asked");
        assert_eq!(client.outcome(id).await, Outcome::Status(status), "{host}");
    }
}
