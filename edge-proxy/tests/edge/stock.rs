//! What a front has to do that Pingora, used as it comes, does not. `EDGE_FRONT` names another program to judge in the
//! gateway's place: `tests/stock/edge/run` has one of stock Pingora, and there each of these tests fails.

use crate::raw_h2::{DATA, END_STREAM, POST, RawH2, frame, headers};
use crate::recorder::{Recorder, heads};
use crate::streams::echo;
use crate::world::{Behind, PATIENCE, World};
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

/// The gateway, or what stands in its place, before one server.
struct Front {
    world: World,
    _other: Option<Child>,
}

impl Front {
    async fn before(server: SocketAddr) -> Self {
        let Some(program) = std::env::var_os("EDGE_FRONT") else {
            let world = World::new().await;
            world.behind(3000, Behind::Server(server));
            world.map("a.style.dev", 3000).await;
            return Self { world, _other: None };
        };
        let (world, listeners) = World::prepare();
        let certificate = world.folder.path().join("stock.pem");
        std::fs::write(&certificate, world.issue(&["*.style.dev"])).expect("written");
        drop(listeners);
        let other = Command::new(program)
            .args([world.https.to_string(), server.to_string()])
            .arg(&certificate)
            .kill_on_drop(true)
            .spawn()
            .expect("EDGE_FRONT names a program");
        world.until(|| async { world.tls("a.style.dev", &[]).await.is_ok() }).await;
        Self { world, _other: Some(other) }
    }
}

/// Sends what may be refused before it is whole, and gives the status of the answer, if one comes.
async fn asked(world: &World, bytes: &[u8]) -> Option<u16> {
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let mut answer = [0; 12];
    let asking = async {
        // Who refuses early may close before all is written, and the answer is there all the same.
        drop(tls.write_all(bytes).await);
        drop(tls.flush().await);
        tls.read_exact(&mut answer).await.is_ok()
    };
    let answered = timeout(PATIENCE, asking).await.expect("in time");
    answered.then(|| String::from_utf8_lossy(&answer[9..]).parse().expect("a status"))
}

/// A head that nobody may pass on is refused, and the server sees nothing.
async fn refused(name: &str, bytes: &[u8]) {
    let (server, recorder) = Recorder::start().await;
    let front = Front::before(server).await;
    let status = asked(&front.world, bytes).await;
    let came: Vec<String> = recorder.take().iter().flat_map(|bytes| heads(bytes)).collect();
    assert!(came.is_empty(), "{name} was passed on: {came:?}");
    assert!(status.is_none_or(|status| (400..500).contains(&status)), "{name}: {status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_framings_are_refused() {
    let head = b"POST / HTTP/1.1\r\nHost: a.style.dev\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    refused("CL and TE", head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bare_line_feeds_are_refused() {
    refused("bare LF", b"GET / HTTP/1.1\nHost: a.style.dev\n\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_host_is_refused() {
    refused("no Host", b"GET / HTTP/1.1\r\nAccept: */*\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_equal_lengths_are_refused() {
    let head = b"POST / HTTP/1.1\r\nHost: a.style.dev\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc";
    refused("two lengths", head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nine_hundred_kilobytes_of_head_are_refused() {
    let field = format!("X-Large: {}\r\n", "y".repeat(9000));
    let head = format!("GET / HTTP/1.1\r\nHost: a.style.dev\r\n{}\r\n", field.repeat(100));
    refused("900 KB", head.as_bytes()).await;
}

/// Pingora issue 935.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_ends_with_an_empty_frame_ends_once() {
    let (server, recorder) = Recorder::start().await;
    let front = Front::before(server).await;
    let mut client = RawH2::connect(&front.world, &[]).await;
    for round in 0..10 {
        let id = 2 * round + 1;
        let frames =
            [headers(id, &POST, false), frame(DATA, 0, id, b"abc"), frame(DATA, END_STREAM, id, b"")];
        client.send(&frames.concat()).await.expect("sent");
        client.outcome(id).await;
    }
    // What is left of a request comes before the next one's answer, over the same connection or over another.
    let came: String = recorder.take().concat();
    assert_eq!(heads(&came).len(), 10, "{came}");
    assert!(!came.contains("0\r\n\r\n0\r\n\r\n"), "a body has two ends: {came}");
}

/// One line of a head every second keeps a connection for as long as one likes, unless the whole head has a deadline.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_cut() {
    /// Twice what the gateway allows.
    const LONGEST: Duration = Duration::from_secs(30);
    let (server, _recorder) = Recorder::start().await;
    let front = Front::before(server).await;
    let mut tls = front.world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    tls.write_all(b"GET / HTTP/1.1\r\nHost: a.style.dev\r\n").await.expect("begun");
    let start = Instant::now();
    let mut drips = tokio::time::interval(Duration::from_secs(1));
    let mut byte = [0];
    while start.elapsed() < LONGEST {
        tokio::select! {
            _ = drips.tick() => {
                let sent = tls.write_all(b"X: y\r\n").await;
                if sent.is_err() || tls.flush().await.is_err() {
                    return;
                }
            }
            read = tls.read(&mut byte) => {
                assert!(!matches!(read, Ok(1..)), "there is nothing to answer");
                return;
            }
        }
    }
    panic!("the head has dripped for {LONGEST:?}");
}

/// A server that gives every connection the same answer once.
async fn says(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") && matches!(tcp.read_buf(&mut bytes).await, Ok(1..)) {}
            tcp.write_all(answer.as_bytes()).await.expect("written");
        }
    });
    address
}

/// What patches/pingora-core and patches/pingora-proxy are for.
#[tokio::test(flavor = "multi_thread")]
async fn a_vms_trailers_reach_the_client() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n";
    let front = Front::before(says(answer).await).await;
    for version in ["--http1.1", "--http2"] {
        let got = front.world.curl("https://a.style.dev/", &[version, "-D", "-"]).await;
        assert!(got.out.contains("hello") && got.out.contains("x-sum: 42"), "{version}: {got:?}");
    }
}

/// The same.
#[tokio::test(flavor = "multi_thread")]
async fn hints_reach_a_client_of_http2() {
    let answer =
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let front = Front::before(says(answer).await).await;
    let got = front.world.curl("https://a.style.dev/", &["--http2", "-i"]).await;
    assert!(got.out.contains("HTTP/2 103") && got.out.contains("HTTP/2 200"), "{got:?}");
}

/// Pingora issue 946.
#[tokio::test(flavor = "multi_thread")]
async fn no_websocket_is_cut_right_after_its_upgrade() {
    const UPGRADES: usize = 3000;
    const AT_ONCE: usize = 200;
    let front = Arc::new(Front::before(echo().await).await);
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..UPGRADES {
        let (front, turns) = (Arc::clone(&front), Arc::clone(&turns));
        tasks.spawn(async move {
            let _turn = turns.acquire().await.expect("never closed");
            let tls = front.world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
            let Ok((mut socket, _)) = tokio_tungstenite::client_async("wss://a.style.dev/", tls).await else {
                return false;
            };
            let said = Message::text(number.to_string());
            let sent = socket.send(said.clone()).await.is_ok();
            let heard = timeout(PATIENCE, socket.next()).await.expect("in time");
            sent && heard.is_some_and(|heard| heard.is_ok_and(|heard| heard == said))
        });
    }
    let whole = tasks.join_all().await.into_iter().filter(|whole| *whole).count();
    assert_eq!(whole, UPGRADES, "{} were cut", UPGRADES - whole);
}
