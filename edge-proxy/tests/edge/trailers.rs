//! What comes around a message: trailers of all four pairs of protocols, and answers of 1xx before the one that counts.

use crate::world::{Behind, PATIENCE, World};
use bytes::Bytes;
use edge_proxy::metrics::Count;
use h2::client::{ResponseFuture, SendRequest};
use http::{HeaderMap, Method, Request, StatusCode};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

/// Fields that may be no trailers, and one that may. `{}` is `Connection`'s in the head.
const TRAILERS: &str = "X-Sum: 42\r\nHost: evil.style.dev\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\n\
                        Authorization: evil\r\nCookie: evil=1\r\nSet-Cookie: evil=1\r\nX-Forwarded-For: 192.0.2.1\r\n\
                        Forwarded: for=evil\r\nConnection: evil\r\nX-Hop: evil\r\nContent-Type: evil/evil\r\n\
                        Cache-Control: evil\r\nProxy-Authorization: evil\r\nTE: evil\r\nTraceparent: evil\r\n\
                        Location: https://evil.dev/\r\nX-SUM: 43\r\nETag: \"x\"\r\n";
/// How many of them must not pass.
const FORBIDDEN: u64 = 16;

/// A VM that gives every request the same answer, in pieces, and tells its test what it was asked.
struct Vm {
    asked: mpsc::UnboundedReceiver<String>,
    /// A permit lets the next piece of an answer be written, but for the first.
    go_on: Arc<Semaphore>,
}

impl Vm {
    async fn behind(world: &World, pieces: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
        world.map("a.style.dev", 3000).await;
        let (tell, asked) = mpsc::unbounded_channel();
        let go_on = Arc::new(Semaphore::new(0));
        let pieces: Vec<String> = pieces.iter().map(ToString::to_string).collect();
        let gate = Arc::clone(&go_on);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(serve(tcp, pieces.clone(), tell.clone(), Arc::clone(&gate)));
            }
        });
        Self { asked, go_on }
    }

    /// The next request, head and body as they came, or what came of one that was broken off.
    async fn asked(&mut self) -> String {
        timeout(PATIENCE, self.asked.recv()).await.expect("in time").expect("it serves")
    }
}

async fn serve(
    mut tcp: TcpStream,
    pieces: Vec<String>,
    tell: mpsc::UnboundedSender<String>,
    go_on: Arc<Semaphore>,
) {
    let mut bytes = Vec::new();
    loop {
        let request = String::from_utf8_lossy(&bytes).into_owned();
        if let Some(end) = end(&request) {
            bytes.drain(..end);
            // The test may have seen enough.
            let _either_way = tell.send(request[..end].to_owned());
            for (number, piece) in pieces.iter().enumerate() {
                if number > 0 {
                    go_on.acquire().await.expect("never closed").forget();
                }
                if tcp.write_all(piece.as_bytes()).await.is_err() {
                    return;
                }
            }
        } else if !matches!(tcp.read_buf(&mut bytes).await, Ok(1..)) {
            if !request.is_empty() {
                let _either_way = tell.send(format!("BROKEN {request}"));
            }
            return;
        }
    }
}

/// Where a request ends. None of the tests has chunks that look like the last one.
fn end(request: &str) -> Option<usize> {
    let body = request.find("\r\n\r\n")? + 4;
    let head = request[..body].to_lowercase();
    if head.contains("transfer-encoding: chunked") {
        let last = request[body - 2..].find("\r\n0\r\n")? + body + 1;
        let trailers = request[last..].find("\r\n\r\n")?;
        return Some(last + trailers + 4);
    }
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let end = body + length.map_or(0, |length| length.parse::<usize>().expect("a length"));
    (request.len() >= end).then_some(end)
}

/// A client of HTTP/1.
struct Old {
    tls: TlsStream<TcpStream>,
    bytes: Vec<u8>,
}

impl Old {
    async fn new(world: &World) -> Self {
        let tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
        Self { tls, bytes: Vec::new() }
    }

    async fn say(&mut self, text: &str) {
        self.tls.write_all(text.as_bytes()).await.expect("write");
        self.tls.flush().await.expect("flush");
    }

    /// Reads until these bytes have come, and gives all up to them.
    async fn until(&mut self, wanted: &str) -> String {
        loop {
            let text = String::from_utf8_lossy(&self.bytes).into_owned();
            if let Some(at) = text.find(wanted) {
                self.bytes.drain(..at + wanted.len());
                return text[..at + wanted.len()].to_owned();
            }
            let read = timeout(PATIENCE, self.tls.read_buf(&mut self.bytes)).await.expect("in time");
            assert!(matches!(read, Ok(1..)), "no '{wanted}' in {text}: {read:?}");
        }
    }

    /// A chunked answer, trailers and all.
    async fn chunked(&mut self) -> String {
        let body = self.until("\r\n0\r\n").await;
        let mut rest = self.until("\r\n").await;
        if rest != "\r\n" {
            rest += &self.until("\r\n\r\n").await;
        }
        body + &rest
    }

    /// All that comes until the connection is closed or broken.
    async fn rest(mut self) -> String {
        while let Ok(1..) = timeout(PATIENCE, self.tls.read_buf(&mut self.bytes)).await.expect("in time") {}
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// A client of HTTP/2.
struct New {
    sender: SendRequest<Bytes>,
    driving: JoinHandle<Result<(), h2::Error>>,
}

impl Drop for New {
    fn drop(&mut self) {
        self.driving.abort();
    }
}

impl New {
    async fn new(world: &World) -> Self {
        let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
        let (sender, connection) = h2::client::handshake(tls).await.expect("handshake");
        Self { sender, driving: tokio::spawn(connection) }
    }

    async fn ask(
        &mut self,
        method: Method,
        fields: &[(&str, &str)],
        end: bool,
    ) -> (ResponseFuture, h2::SendStream<Bytes>) {
        let mut sender = self.sender.clone().ready().await.expect("ready");
        let mut request = Request::builder().method(method).uri("https://a.style.dev/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        sender.send_request(request.body(()).expect("request"), end).expect("send")
    }

    /// The whole answer to a plain GET.
    async fn get(&mut self) -> Result<(StatusCode, String, Option<HeaderMap>), h2::Error> {
        let (answer, _) = self.ask(Method::GET, &[("te", "trailers")], true).await;
        whole(answer).await
    }
}

async fn whole(answer: ResponseFuture) -> Result<(StatusCode, String, Option<HeaderMap>), h2::Error> {
    let (head, mut body) = timeout(PATIENCE, answer).await.expect("in time")?.into_parts();
    let mut heard = Vec::new();
    while let Some(piece) = timeout(PATIENCE, body.data()).await.expect("in time") {
        heard.extend_from_slice(&piece?);
    }
    let trailers = timeout(PATIENCE, body.trailers()).await.expect("in time")?;
    Ok((head.status, String::from_utf8_lossy(&heard).into_owned(), trailers))
}

fn chunked(trailers: &str) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: keep-alive, X-Hop\r\n\r\n\
         5\r\nhello\r\n0\r\n{trailers}\r\n"
    )
}

fn trailers(list: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in list {
        map.append(*name, value.parse().expect("value"));
    }
    map
}

/// The VM's connection served another request. Not each did: the next one may be there before the last one's connection is
/// back.
fn reused(world: &World, requests: u64) {
    let dials = world.count(Count::Dials);
    assert!(dials < requests, "{dials} connections for {requests} requests");
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a.style.dev\r\nTE: trailers\r\nConnection: TE\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a.style.dev\r\nTransfer-Encoding: chunked\r\nTE: trailers\r\n\
                    Connection: TE, X-Hop\r\nTrailer: X-Sum, Host\r\n\r\n3\r\nabc\r\n0\r\n";
/// What is left of [`TRAILERS`].
const LEFT: &str = "\r\n0\r\nx-sum: 42\r\nx-sum: 43\r\netag: \"x\"\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_vms_trailers_reach_clients_of_both_protocols() {
    let world = World::new().await;
    let mut vm = Vm::behind(&world, &[&chunked(TRAILERS)]).await;
    let mut old = Old::new(&world).await;
    for _ in 0..3 {
        old.say(GET).await;
        let answer = old.chunked().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(LEFT), "{answer}");
        assert!(!answer.contains("evil"), "{answer}");
        let asked = vm.asked().await.to_lowercase();
        assert!(
            asked.contains("\r\nte: trailers\r\n") && asked.contains("\r\nconnection: te\r\n"),
            "{asked}"
        );
    }
    let mut new = New::new(&world).await;
    let left = trailers(&[("x-sum", "42"), ("x-sum", "43"), ("etag", "\"x\"")]);
    for _ in 0..3 {
        let (status, body, trailers) = new.get().await.expect("whole");
        assert_eq!((status.as_u16(), body.as_str(), trailers.as_ref()), (200, "hello", Some(&left)));
    }
    // After trailers the VM's connection is as good as before.
    reused(&world, 6);
    world.counted(Count::TrailersRemoved, 6 * FORBIDDEN).await;
    assert_eq!(world.count(Count::TrailersRemoved), 6 * FORBIDDEN);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_left_there_are_no_trailers() {
    let world = World::new().await;
    let mut vm = Vm::behind(&world, &[&chunked("Host: evil\r\nX-Hop: evil\r\n")]).await;
    let mut old = Old::new(&world).await;
    old.say("GET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n").await;
    let answer = old.chunked().await;
    assert!(answer.ends_with("hello\r\n0\r\n\r\n"), "{answer}");
    let asked = vm.asked().await.to_lowercase();
    assert!(!asked.contains("\r\nte:") && !asked.contains("\r\nconnection:"), "{asked}");
    let (_, body, trailers) = New::new(&world).await.get().await.expect("whole");
    assert_eq!((body.as_str(), trailers), ("hello", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_may_come_in_pieces() {
    let whole = chunked("X-Sum: 42\r\n");
    let cut = |place: &str, more: usize| whole.find(place).expect("there") + more;
    for at in
        [cut("\r\n0\r\n", 2), cut("\r\n0\r\n", 5), cut("X-Sum: 42", 2), cut("42\r\n", 3), whole.len() - 1]
    {
        // Of its own, so that no connection to the last one's VM is left.
        let world = World::new().await;
        let vm = Vm::behind(&world, &[&whole[..at], &whole[at..]]).await;
        let (mut old, mut new) = (Old::new(&world).await, New::new(&world).await);
        old.say("GET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n").await;
        let begun = old.until("hello\r\n").await;
        assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
        vm.go_on.add_permits(1);
        assert_eq!(old.until("\r\n\r\n").await, "0\r\nx-sum: 42\r\n\r\n", "cut at {at}");
        vm.go_on.add_permits(1);
        let (_, body, trailers) = new.get().await.expect("whole");
        assert_eq!(
            (body.as_str(), trailers),
            ("hello", Some(self::trailers(&[("x-sum", "42")]))),
            "cut at {at}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_sees_trailers_over_both_protocols() {
    let world = World::new().await;
    let _vm = Vm::behind(&world, &[&chunked(TRAILERS)]).await;
    for version in ["--http1.1", "--http2"] {
        let asked = world.curl("https://a.style.dev/", &[version, "-D", "-"]).await;
        let told = asked.out.to_lowercase();
        assert!(told.contains("x-sum: 42\r\n") && told.contains("hello"), "{asked:?}");
        assert!(asked.code == 0 && !told.contains("evil"), "{asked:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clients_trailers_reach_the_vm() {
    let world = World::new().await;
    let mut vm = Vm::behind(&world, &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
    let mut old = Old::new(&world).await;
    for _ in 0..3 {
        old.say(&format!("{POST}{TRAILERS}\r\n")).await;
        old.until("\r\n\r\nok").await;
        let asked = vm.asked().await;
        assert!(asked.starts_with("POST / HTTP/1.1\r\n") && asked.ends_with(LEFT), "{asked}");
        let head = asked.to_lowercase();
        assert!(!head.contains("evil") && head.contains("\r\ntrailer: x-sum\r\n"), "{asked}");
        assert!(head.contains("\r\nhost: a.style.dev\r\n"), "{asked}");
    }
    let mut new = New::new(&world).await;
    let fields = [("te", "trailers"), ("trailer", "x-sum, host")];
    for _ in 0..3 {
        let (answer, mut say) = new.ask(Method::POST, &fields, false).await;
        say.send_data("abc".into(), false).expect("data");
        let list = [
            ("x-sum", "42"),
            ("host", "evil"),
            ("x_sum", "evil"),
            ("authorization", "evil"),
            ("x-forwarded-for", "evil"),
            ("content-type", "evil"),
            ("x-sum", "43"),
            ("etag", "\"x\""),
        ];
        say.send_trailers(trailers(&list)).expect("trailers");
        assert_eq!(whole(answer).await.expect("whole").1, "ok");
        let asked = vm.asked().await;
        assert!(asked.ends_with(LEFT) && asked.contains("\r\nabc\r\n0\r\n"), "{asked}");
        assert!(!asked.contains("evil") && asked.contains("\r\ntrailer: x-sum\r\n"), "{asked}");
    }
    // Trailers with no data before them, and with nothing left of them.
    for (list, ends) in
        [(trailers(&[("x-sum", "1")]), "0\r\nx-sum: 1\r\n\r\n"), (trailers(&[("host", "evil")]), "0\r\n\r\n")]
    {
        let (answer, mut say) = new.ask(Method::POST, &[], false).await;
        say.send_trailers(list).expect("trailers");
        assert_eq!(whole(answer).await.expect("whole").1, "ok");
        let asked = vm.asked().await;
        assert!(asked.ends_with(&format!("\r\n\r\n{ends}")), "{asked}");
    }
    reused(&world, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_leaves_no_room_for_trailers() {
    let world = World::new().await;
    let mut vm =
        Vm::behind(&world, &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTrailer: X-Sum\r\n\r\nok"]).await;
    let mut new = New::new(&world).await;
    for _ in 0..4 {
        let (answer, mut say) = new.ask(Method::POST, &[("content-length", "3")], false).await;
        say.send_data("abc".into(), false).expect("data");
        say.send_trailers(trailers(&[("x-sum", "42")])).expect("trailers");
        let (_, body, trailers) = whole(answer).await.expect("whole");
        assert_eq!((body.as_str(), trailers), ("ok", None));
        let asked = vm.asked().await;
        assert!(asked.ends_with("\r\n\r\nabc") && !asked.to_lowercase().contains("chunked"), "{asked}");
    }
    reused(&world, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_request_that_are_too_large_break_it_off() {
    let world = World::new().await;
    let mut vm = Vm::behind(&world, &["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]).await;
    let long = format!("X-Long: {}\r\n", "x".repeat(1 << 10));
    for (number, bad) in [long.repeat(17), "X: y\r\n".repeat(101)].iter().enumerate() {
        let mut old = Old::new(&world).await;
        old.say(&format!("{POST}{bad}\r\n")).await;
        let answer = old.rest().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        world.counted(Count::BadChunks, number as u64 + 1).await;
        let asked = vm.asked().await;
        assert!(asked.starts_with("BROKEN POST / ") && !asked.contains("\r\n0\r\n"), "{asked}");
    }
    let mut new = New::new(&world).await;
    let (long, mut many) = ("x".repeat(1 << 10), HeaderMap::new());
    for _ in 0..101 {
        many.append("x", "y".parse().expect("value"));
    }
    for (number, bad) in [trailers(&[("x-long", long.as_str()); 17]), many].into_iter().enumerate() {
        let (answer, mut say) = new.ask(Method::POST, &[], false).await;
        say.send_data("abc".into(), false).expect("data");
        say.send_trailers(bad).expect("trailers");
        let (status, _, _) = whole(answer).await.expect("an answer");
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(world.count(Count::TrailersTooLarge), number as u64 + 1);
        let asked = vm.asked().await;
        assert!(asked.starts_with("BROKEN POST / ") && !asked.contains("\r\n0\r\n"), "{asked}");
    }
    // 16 of them are not too large.
    let (answer, mut say) = new.ask(Method::POST, &[], false).await;
    say.send_trailers(trailers(&[("x-long", &long[..900]); 16])).expect("trailers");
    assert_eq!(whole(answer).await.expect("whole").1, "ok");
    assert_eq!(vm.asked().await.matches(&long[..900]).count(), 16);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_trailers_of_an_answer_break_it_off() {
    let world = World::new().await;
    let long = format!("X-Long: {}\r\n", "x".repeat(1 << 10));
    let table = [
        long.repeat(70),
        "X: y\r\n".repeat(257),
        "X-Sum\r\n".into(),
        "X-Sum : 42\r\n".into(),
        " X-Sum: 42\r\n".into(),
        "X-Sum: 42\r\n 43\r\n".into(),
        "X-Sum: 4\0\r\n".into(),
        "X-Sum: 42\nX: y\r\n".into(),
        ": 42\r\n".into(),
    ];
    for bad in &table {
        let name = &bad[..bad.len().min(20)];
        let _vm = Vm::behind(&world, &[&chunked(bad)]).await;
        let mut old = Old::new(&world).await;
        old.say(GET).await;
        let answer = old.rest().await;
        // With all of it there before the answer has begun, it is none.
        let broken = answer.starts_with("HTTP/1.1 502 ") || !answer.contains("\r\n0\r\n");
        assert!(broken && !answer.contains("x-sum:") && !answer.contains("xx"), "{name}: {answer}");
        let got = New::new(&world).await.get().await;
        assert!(got.is_err() || got.as_ref().is_ok_and(|(status, ..)| *status == 502), "{name}: {got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn head_has_no_trailers() {
    let world = World::new().await;
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    let mut vm = Vm::behind(&world, &[head]).await;
    let mut old = Old::new(&world).await;
    let mut new = New::new(&world).await;
    for _ in 0..2 {
        old.say("HEAD / HTTP/1.1\r\nHost: a.style.dev\r\nTE: trailers\r\nConnection: TE\r\n\r\n").await;
        let answer = old.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && old.bytes.is_empty(), "{answer}");
        assert!(vm.asked().await.starts_with("HEAD / "));
        let (answer, _) = new.ask(Method::HEAD, &[("te", "trailers")], true).await;
        let (status, body, trailers) = whole(answer).await.expect("whole");
        assert_eq!((status.as_u16(), body.as_str(), trailers), (200, "", None));
        assert!(vm.asked().await.starts_with("HEAD / "));
    }
    reused(&world, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_nothing_that_it_does_not_know() {
    let world = World::new().await;
    let answer = format!("HTTP/1.1 103 Early Hints\r\nLink: </evil>\r\n\r\n{}", chunked("X-Sum: evil\r\n"));
    let mut vm = Vm::behind(&world, &[&answer]).await;
    for more in ["", "Connection: keep-alive\r\n", "TE: trailers\r\nConnection: keep-alive, TE\r\n"] {
        let mut old = Old::new(&world).await;
        old.say(&format!("GET / HTTP/1.0\r\nHost: a.style.dev\r\n{more}\r\n")).await;
        let answer = old.rest().await;
        let told = answer.to_lowercase();
        assert!(told.starts_with("http/1.1 200 ok\r\n") && told.ends_with("\r\n\r\nhello"), "{answer}");
        for unknown in ["transfer-encoding", "trailer", "evil", "keep-alive"] {
            assert!(!told.contains(unknown), "{unknown}: {answer}");
        }
        let asked = vm.asked().await.to_lowercase();
        assert!(!asked.contains("\r\nte:"), "{asked}");
    }
}

/// The next answer of 1xx.
async fn interim(answer: &mut ResponseFuture) -> Option<http::Response<()>> {
    let next = std::future::poll_fn(|cx| answer.poll_informational(cx));
    timeout(PATIENCE, next).await.expect("in time").map(|one| one.expect("well-formed"))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_1xx_come_as_they_are_made_over_http2_too() {
    let world = World::new().await;
    let pieces = [
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
    ];
    let vm = Vm::behind(&world, &pieces).await;
    let mut new = New::new(&world).await;
    let (mut answer, _) = new.ask(Method::GET, &[], true).await;
    for (status, link) in
        [(103, Some("</a.css>; rel=preload")), (102, None), (103, Some("</b.css>; rel=preload"))]
    {
        let told = interim(&mut answer).await.expect("there is one more");
        let heard = told.headers().get("link").map(|value| value.to_str().expect("text"));
        assert_eq!((told.status().as_u16(), heard), (status, link));
        let others = told.headers().keys().filter(|name| *name != "link").count();
        assert_eq!(others, 0, "{told:?}");
        // The VM says the next only when this one was heard.
        vm.go_on.add_permits(1);
    }
    let (status, body, _) = whole(answer).await.expect("whole");
    assert_eq!((status.as_u16(), body.as_str()), (200, "done"));
    vm.go_on.add_permits(3);
    let asked = world.curl("https://a.style.dev/", &["--http2", "-i"]).await;
    let places = ["HTTP/2 103", "HTTP/2 102", "HTTP/2 200", "done"].map(|part| asked.out.find(part));
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_that_waits_to_continue_is_told_by_the_vm() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    world.map("a.style.dev", 3000).await;
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accept");
        let mut bytes = Vec::new();
        let mut told = false;
        loop {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if text.ends_with("hello") {
                return tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").await;
            }
            if text.to_lowercase().contains("expect: 100-continue\r\n") && text.ends_with("\r\n\r\n") && !told
            {
                told = true;
                tcp.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            if tcp.read_buf(&mut bytes).await? == 0 {
                return Ok(());
            }
        }
    });
    let mut new = New::new(&world).await;
    let fields = [("expect", "100-continue"), ("content-length", "5")];
    let (mut answer, mut say) = new.ask(Method::PUT, &fields, false).await;
    let told = interim(&mut answer).await.expect("there is one");
    assert_eq!(told.status(), StatusCode::CONTINUE);
    say.send_data("hello".into(), true).expect("data");
    assert_eq!(whole(answer).await.expect("whole").1, "done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_does_not_come_to_its_answer_is_cut() {
    let world = World::new().await;
    let hint = |bytes| format!("HTTP/1.1 103 Early Hints\r\nLink: <{}>\r\n\r\n", "x".repeat(bytes));
    for (number, many) in [hint(1).repeat(101), hint(1 << 10).repeat(64)].iter().enumerate() {
        let answer = format!("{many}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone");
        let _vm = Vm::behind(&world, &[&answer]).await;
        let mut old = Old::new(&world).await;
        old.say(GET).await;
        let answer = old.rest().await;
        assert!(answer.contains("HTTP/1.1 502 ") && !answer.contains("200 OK"), "{answer}");
        let (status, _, _) = New::new(&world).await.get().await.expect("an answer");
        assert_eq!(status, StatusCode::BAD_GATEWAY);
        assert_eq!(world.count(Count::InterimTooMany), 2 * number as u64 + 2);
    }
    // A hundred may come.
    let _vm = Vm::behind(&world, &[&format!("{}{}", hint(1).repeat(100), chunked(""))]).await;
    let (status, body, _) = New::new(&world).await.get().await.expect("whole");
    assert_eq!((status.as_u16(), body.as_str()), (200, "hello"));
}

/// A VM of HTTP/2 that is asked by a client of HTTP/1.1, as gRPC may be.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_http2_reach_a_client_of_http1() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    world.map("a.style.dev", 3000).await;
    let serving = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.expect("accept");
        let mut connection = h2::server::handshake(tcp).await.expect("handshake");
        while let Some(asked) = connection.accept().await {
            let Ok((_, mut respond)) = asked else { return };
            let head = http::Response::builder().header("content-type", "application/grpc");
            let mut say = respond.send_response(head.body(()).expect("head"), false).expect("head");
            say.send_data(Bytes::from_static(b"hello"), false).expect("data");
            let list = [("grpc-status", "0"), ("set-cookie", "evil"), ("x_details", "1")];
            say.send_trailers(trailers(&list)).expect("trailers");
        }
    });
    let mut old = Old::new(&world).await;
    for _ in 0..2 {
        let head = "POST / HTTP/1.1\r\nHost: a.style.dev\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\r\n";
        old.say(head).await;
        let answer = old.chunked().await;
        assert!(answer.ends_with("hello\r\n0\r\ngrpc-status: 0\r\nx_details: 1\r\n\r\n"), "{answer}");
        assert!(!answer.contains("evil"), "{answer}");
    }
    serving.abort();
}
