//! Clients that mean ill, or do not know better.

use crate::world::{Behind, PATIENCE, World, text};
use edge_proxy::metrics::Count;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// Sends bytes over a new TLS connection and reads until the end; an end without TLS' goodbye is one too.
async fn send(world: &World, bytes: &[u8]) -> String {
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    tls.write_all(bytes).await.expect("write");
    tls.flush().await.expect("flush");
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, tls.read_to_end(&mut answer)).await.expect("it answers and closes");
    if let Err(error) = read {
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn ambiguous_requests_are_refused_and_never_reach_the_vm() {
    let world = World::new().await;
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reached);
    world
        .serve("a.style.dev", 3000, move |_| {
            counter.fetch_add(1, Ordering::SeqCst);
            async { text("ok") }
        })
        .await;
    let post = "POST / HTTP/1.1\r\nHost: a.style.dev\r\n";
    let vectors = [
        format!("{post}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n"),
        format!("{post}Content-Length: 3, 3\r\n\r\nabc"),
        format!("{post}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc"),
        format!("{post}Content-Length: +3\r\n\r\nabc"),
        format!("{post}Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("{post}Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n"),
        "POST / HTTP/1.0\r\nHost: a.style.dev\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "GET / HTTP/1.1\nHost: a.style.dev\n\n".into(),
        "GET /a b HTTP/1.1\r\nHost: a.style.dev\r\n\r\n".into(),
        "GET / HTTP/1.1\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a.style.dev\r\nHost: a.style.dev\r\n\r\n".into(),
        "GET / HTTP/1.1\r\nHost: a.style.dev\r\nX: a\r\n b\r\n\r\n".into(),
        "GET https://b.style.dev/ HTTP/1.1\r\nHost: a.style.dev\r\n\r\n".into(),
        "TRACE / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n".into(),
        "CONNECT a.style.dev:443 HTTP/1.1\r\nHost: a.style.dev\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        format!("GET / HTTP/1.1\r\nHost: a.style.dev\r\nX: {}\r\n\r\n", "x".repeat(70_000)),
    ];
    for vector in vectors {
        let answer = send(&world, vector.as_bytes()).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(
            matches!(status, "400" | "405" | "431" | "505"),
            "{:?}: {answer:?}",
            &vector[..vector.len().min(90)]
        );
        assert!(answer.contains("connection: close") || answer.contains("Connection: close"), "{answer}");
        assert_eq!(answer.to_lowercase().matches("content-length: ").count(), 1, "one answer only: {answer}");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    let good =
        send(&world, b"GET https://a.style.dev/x HTTP/1.1\r\nHost: a.style.dev\r\nConnection: close\r\n\r\n")
            .await;
    assert!(good.ends_with("ok"), "{good}");
}

/// Bodies whose framing is broken reach the VM only as far as they were whole, and never as a second request.
#[tokio::test(flavor = "multi_thread")]
async fn broken_chunks_end_the_exchange() {
    let world = World::new().await;
    let (address, seen) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
    for body in [
        "zz\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\n",
        "3 \t x\r\nabc\r\n0\r\n\r\nGET /evil HTTP/1.1\r\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: a.style.dev\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let answer = send(&world, request.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.1 200"),
            "{answer}"
        );
    }
    assert!(!String::from_utf8_lossy(&seen.lock().expect("lock")).contains("evil"));
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_pass_the_gate_one_by_one() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |request| async move { text(format!("<{}>", request.uri())) }).await;
    let good = "GET /1 HTTP/1.1\r\nHost: a.style.dev\r\n\r\n\
        POST /2 HTTP/1.1\r\nHost: a.style.dev\r\nContent-Length: 3\r\n\r\nabc\
        GET /3 HTTP/1.1\r\nHost: a.style.dev\r\n\r\n\
        GET /4 HTTP/1.1\nHost: a.style.dev\r\n\r\n";
    let answers = send(&world, good.as_bytes()).await;
    let places: Vec<_> = ["</1>", "</2>", "</3>", "HTTP/1.1 400"].map(|part| answers.find(part)).to_vec();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_silent_clients_are_cut_in_time() {
    let wait = Duration::from_millis(700);
    let world = World::with(|settings| {
        settings.head_wait = wait;
        settings.keepalive = Duration::from_millis(900);
    })
    .await;
    world.serve("a.style.dev", 3000, |_| async { text("ok") }).await;
    let before = world.count(Count::HeadLate);
    let began = Instant::now();
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let dripping = async {
        tls.write_all(b"GET / HTTP/1.1\r\nHost: a.style.dev\r\n").await?;
        loop {
            tls.write_all(b"X: y\r\n").await?;
            tls.flush().await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let end: std::io::Result<()> = timeout(PATIENCE, dripping).await.expect("it is cut");
    assert!(end.is_err() && began.elapsed() >= wait);
    let silent = tokio::net::TcpStream::connect(world.https).await.expect("connect");
    let half = tokio::net::TcpStream::connect(world.https).await.expect("connect");
    for (mut tcp, first) in [(silent, &b""[..]), (half, &b"\x16\x03\x01\x02\x00\x01"[..])] {
        tcp.write_all(first).await.expect("write");
        let mut bytes = Vec::new();
        let _either_way = timeout(PATIENCE, tcp.read_to_end(&mut bytes)).await.expect("it is closed");
    }
    // A connection that has had its answer may wait longer, and then ends without a count.
    let mut tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
    let mut bytes = Vec::new();
    let _either_way = timeout(PATIENCE, tls.read_to_end(&mut bytes)).await.expect("no preface comes");
    world.counted(Count::HeadLate, before + 4).await;
    assert_eq!(world.count(Count::HeadLate) - before, 4);
    let idle = send(&world, b"GET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n").await;
    assert!(idle.ends_with("ok"));
    assert_eq!(world.count(Count::HeadLate) - before, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_over_the_bound_are_closed_at_once() {
    let world = World::with(|settings| settings.max_connections = 3).await;
    let mut open = Vec::new();
    while let Ok(tls) = world.tls("a.style.dev", &[]).await {
        open.push(tls);
        assert!(open.len() <= 3, "the bound holds");
    }
    world.counted(Count::OverConnections, 1).await;
    drop(open);
    world.until(|| async { world.tls("a.style.dev", &[]).await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_says_the_same_of_bad_names_and_hosts() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |_| async { text("ok") }).await;
    let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
    let (mut sender, connection) = h2::client::handshake(tls).await.expect("handshake");
    let driving = tokio::spawn(connection);
    let mut ask = async |request: http::Request<()>| {
        sender = sender.clone().ready().await.expect("ready");
        let (answer, _) = sender.send_request(request, true).expect("send");
        answer.await.map(|answer| answer.status().as_u16())
    };
    let request = |uri: &str| http::Request::builder().uri(uri);
    assert_eq!(ask(request("https://a.style.dev/").body(()).expect("r")).await.expect("answer"), 200);
    let other = request("https://a.style.dev/").header("host", "b.style.dev").body(()).expect("r");
    assert!(matches!(ask(other).await, Ok(400) | Err(_)));
    let name = request("https://a.style.dev/").header("x_forwarded_for", "1").body(()).expect("r");
    assert_eq!(ask(name).await.expect("answer"), 400);
    let trace = request("https://a.style.dev/").method("TRACE").body(()).expect("r");
    assert_eq!(ask(trace).await.expect("answer"), 405);
    assert_eq!(ask(request("https://a.style.dev/").body(()).expect("r")).await.expect("answer"), 200);
    driving.abort();
}

/// A body that ends with an empty frame must not end twice in chunks: the VM would answer a request nobody sent.
#[tokio::test(flavor = "multi_thread")]
async fn an_empty_last_frame_of_http2_ends_the_body_once() {
    let world = World::new().await;
    let (address, seen) = recorder(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    world.behind(3000, Behind::Server(address));
    world.map("a.style.dev", 3000).await;
    let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
    let (mut sender, connection) = h2::client::handshake(tls).await.expect("handshake");
    let driving = tokio::spawn(connection);
    let request = http::Request::post("https://a.style.dev/").body(()).expect("request");
    let (answer, mut body) = sender.send_request(request, false).expect("send");
    body.send_data("hello".into(), false).expect("data");
    body.send_data("".into(), true).expect("end");
    assert_eq!(answer.await.expect("answer").status(), 200);
    world.until(|| async { seen.lock().expect("lock").ends_with(b"0\r\n\r\n") }).await;
    let bytes = String::from_utf8_lossy(&seen.lock().expect("lock")).into_owned();
    assert_eq!(bytes.matches("0\r\n\r\n").count(), 1, "{bytes}");
    driving.abort();
}

/// Answers each connection once, at its first bytes, and records all that comes.
async fn recorder(answer: &'static [u8]) -> (std::net::SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let recorded = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let recorded = Arc::clone(&recorded);
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                let mut answered = false;
                while let Ok(count @ 1..) = tcp.read(&mut bytes).await {
                    recorded.lock().expect("lock").extend_from_slice(&bytes[..count]);
                    let whole = recorded.lock().expect("lock").ends_with(b"0\r\n\r\n");
                    if whole && !answered {
                        tcp.write_all(answer).await.expect("write");
                        answered = true;
                    }
                }
            });
        }
    });
    (address, seen)
}
