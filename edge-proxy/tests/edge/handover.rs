//! The handover: a further process of the binary serves the same listeners, and the one before ends what it has in hand.
//! Under load nothing is refused and nothing breaks.

use crate::process;
use crate::streams::echo;
use crate::world::{Behind, PATIENCE, World, http_server, text};
use edge_proxy::Order;
use edge_proxy::settings::Settings;
use futures_util::{SinkExt, StreamExt};
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use model::config::{EdgeConfig, EdgeGuard};
use rustix::process::Signal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;

/// Clients of each kind at once.
const CLIENTS: usize = 6;
/// Good answers between two handovers.
const BETWEEN: u64 = 200;
/// A piece of the long download.
const PIECE: usize = 1 << 20;
const HANDOVERS: usize = 3;

/// What the load has met.
#[derive(Default)]
struct Tally {
    good: AtomicU64,
    refused: AtomicU64,
    broken: AtomicU64,
    connections: AtomicU64,
    over: AtomicBool,
}

impl Tally {
    fn get(count: &AtomicU64) -> u64 {
        count.load(Ordering::SeqCst)
    }

    fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }
}

/// How a client uses its connections.
#[derive(Clone, Copy, Debug)]
enum Client {
    /// HTTP/1.1, as many requests over each as it may.
    Kept,
    /// HTTP/1.1, one request over each.
    Fresh,
    /// HTTP/2, as many as it may.
    Http2,
}

/// Asks again and again until it is over.
async fn client(world: Arc<World>, tally: Arc<Tally>, kind: Client) {
    while !tally.is_over() {
        Tally::add(&tally.connections);
        let protocol = if matches!(kind, Client::Http2) { "h2" } else { "http/1.1" };
        let tls = match world.tls("a.style.dev", &[protocol]).await {
            Ok(tls) => TokioIo::new(tls),
            Err(error) => {
                eprintln!("{kind:?}: no connection: {error}");
                Tally::add(&tally.refused);
                continue;
            }
        };
        let asked = match kind {
            Client::Kept => over_http1(tls, &tally, u64::MAX).await,
            Client::Fresh => over_http1(tls, &tally, 1).await,
            Client::Http2 => over_http2(tls, &tally).await,
        };
        if let Err(error) = asked {
            eprintln!("{kind:?}: {error:?}");
            Tally::add(&tally.broken);
        }
    }
}

type Tls = TokioIo<tokio_rustls::client::TlsStream<TcpStream>>;

/// Until the gateway says that an answer was the last, or `most` were had.
async fn over_http1(tls: Tls, tally: &Tally, most: u64) -> hyper::Result<()> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(tls).await?;
    let driving = tokio::spawn(connection);
    for _ in 0..most {
        let request = Request::get("/").header("host", "a.style.dev").body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.expect("request")).await?;
        let last = answer.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
        let body = answer.into_body().collect().await?.to_bytes();
        assert_eq!(body, "small");
        Tally::add(&tally.good);
        if last || tally.is_over() {
            break;
        }
        sender.ready().await?;
    }
    driving.abort();
    Ok(())
}

/// Until the gateway says that no further request is taken.
async fn over_http2(tls: Tls, tally: &Tally) -> hyper::Result<()> {
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), tls).await?;
    let driving = tokio::spawn(connection);
    // An error here means that the connection takes no more, and that nothing was asked.
    while !tally.is_over() && sender.ready().await.is_ok() {
        let request = Request::get("https://a.style.dev/").body(Empty::<Bytes>::new()).expect("request");
        let answer = match sender.send_request(request).await {
            // It was closed for new requests in between, so this one has not left, or was not taken.
            Err(error) if error.is_canceled() || not_taken(&error) => break,
            answer => answer?,
        };
        assert_eq!(answer.into_body().collect().await?.to_bytes(), "small");
        Tally::add(&tally.good);
    }
    driving.abort();
    Ok(())
}

/// The request left after the gateway had said which one was the last, and may be asked again (RFC 9113 section 6.8).
fn not_taken(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<h2::Error>());
    cause.is_some_and(|cause| {
        cause.is_go_away() && cause.is_remote() && cause.reason() == Some(h2::Reason::NO_ERROR)
    })
}

/// A server whose answer has one piece for each permit, and ends with the last.
async fn slow_pieces(pieces: usize, permits: &'static Semaphore) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accept");
        let _head = tcp.read(&mut [0; 4096]).await.expect("read");
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", pieces * PIECE);
        tcp.write_all(head.as_bytes()).await.expect("head");
        for piece in 0..pieces {
            permits.acquire().await.expect("open").forget();
            tcp.write_all(&vec![b'a' + u8::try_from(piece).expect("few"); PIECE]).await.expect("piece");
        }
    });
    address
}

/// Downloads all of it, as one request over HTTP/1.1.
async fn download(world: Arc<World>) -> Bytes {
    let tls = world.tls("long.style.dev", &["http/1.1"]).await.expect("tls");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.expect("h1");
    let driving = tokio::spawn(connection);
    let request = Request::get("/").header("host", "long.style.dev").body(Empty::<Bytes>::new());
    let answer = sender.send_request(request.expect("request")).await.expect("answer");
    let body = answer.into_body().collect().await.expect("whole").to_bytes();
    driving.abort();
    body
}

#[tokio::test(flavor = "multi_thread")]
async fn three_handovers_under_load_refuse_nothing_and_break_nothing() {
    let (world, listeners) = World::prepare();
    let world = Arc::new(world);
    let permits: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    world.behind(3000, Behind::Server(http_server(|_| async { text("small") }).await));
    world.behind(3001, Behind::Server(echo().await));
    world.behind(3002, Behind::Server(slow_pieces(HANDOVERS + 2, permits).await));
    world.routes(&[("a.style.dev", 3000), ("ws.style.dev", 3001), ("long.style.dev", 3002)]);
    let config = config(&world);
    let mut serving = process::start_and_wait(&config, &listeners, world.folder.path()).await;

    let tls = world.tls("ws.style.dev", &["http/1.1"]).await.expect("tls");
    let (mut socket, _) = tokio_tungstenite::client_async("wss://ws.style.dev/", tls).await.expect("upgrade");
    let downloading = tokio::spawn(download(Arc::clone(&world)));
    permits.add_permits(1);
    let tally = Arc::new(Tally::default());
    let load = load(&world, &tally);

    let mut old = Vec::new();
    for number in 0..=HANDOVERS {
        let wanted = Tally::get(&tally.good) + BETWEEN;
        world.until(|| async { Tally::get(&tally.good) >= wanted }).await;
        socket.send(Message::text(format!("{number}"))).await.expect("send");
        let said = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open").expect("message");
        assert_eq!(said, Message::text(format!("{number}")));
        permits.add_permits(1);
        if number < HANDOVERS {
            let new = process::start_and_wait(&config, &listeners, world.folder.path()).await;
            process::signal(&serving, Signal::USR1);
            old.push(std::mem::replace(&mut serving, new));
        }
    }
    tally.over.store(true, Ordering::SeqCst);
    for one in load {
        timeout(PATIENCE, one).await.expect("in time").expect("no panic");
    }
    let body = timeout(PATIENCE, downloading).await.expect("in time").expect("no panic");
    assert_eq!(body.len(), (HANDOVERS + 2) * PIECE);
    assert!(body.chunks(PIECE).zip(b'a'..).all(|(piece, byte)| piece.iter().all(|one| *one == byte)));
    let counts = [&tally.good, &tally.refused, &tally.broken, &tally.connections].map(Tally::get);
    println!("good, refused, broken, connections: {counts:?}");
    assert_eq!(counts[1..3], [0, 0], "refused, broken");
    // Each old process ends by itself, with the last thing that it has in hand: the first with the WebSocket.
    assert!(old[0].try_wait().expect("wait").is_none(), "it has the WebSocket still");
    socket.close(None).await.expect("close");
    while timeout(PATIENCE, socket.next()).await.expect("in time").is_some_and(|said| said.is_ok()) {}
    for mut one in old {
        ended(&mut one).await;
    }
    process::signal(&serving, Signal::TERM);
    ended(&mut serving).await;
}

fn config(world: &World) -> EdgeConfig {
    EdgeConfig {
        places: world.places.clone(),
        public_https_port: world.https.port(),
        max_connections: 1000,
        guard: EdgeGuard::default(),
        proxy_protocol_from: Vec::new(),
        dns_host: None,
        access_log_mib: 1,
        traces: None,
    }
}

fn load(world: &Arc<World>, tally: &Arc<Tally>) -> Vec<JoinHandle<()>> {
    let kinds = [Client::Kept, Client::Fresh, Client::Http2].into_iter().cycle();
    kinds
        .take(3 * CLIENTS)
        .map(|kind| tokio::spawn(client(Arc::clone(world), Arc::clone(tally), kind)))
        .collect()
}

async fn ended(child: &mut Child) {
    let status = timeout(PATIENCE, child.wait()).await.expect("in time").expect("wait");
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_handover_an_open_connection_is_answered_once_more_and_a_stop_ends_the_rest() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |_| async { text("small") }).await;
    let tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.expect("handshake");
    let driving = tokio::spawn(connection);
    let ask =
        || Request::get("/").header("host", "a.style.dev").body(Empty::<Bytes>::new()).expect("request");
    let first = sender.send_request(ask()).await.expect("answer");
    assert_eq!(first.headers()[header::CONNECTION], "keep-alive");
    let _body = first.into_body().collect().await.expect("body");
    let mut idle = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    world.order(Order::HandOver);
    // Nobody has taken the listeners here, so their end shows that the order was heard.
    world.until(|| async { TcpStream::connect(world.https).await.is_err() }).await;
    sender.ready().await.expect("still open");
    let last = sender.send_request(ask()).await.expect("answered after the order");
    assert_eq!(last.headers()[header::CONNECTION], "close");
    assert_eq!(last.into_body().collect().await.expect("body").to_bytes(), "small");
    driving.abort();
    // Far earlier than the ten minutes that the handover has.
    world.order(Order::Stop);
    let _closed = timeout(PATIENCE, idle.read(&mut [0; 1])).await.expect("closed in time");
    let running = world.running.lock().expect("lock").take().expect("it ran");
    timeout(PATIENCE, running).await.expect("in time").expect("it ends well");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_after_a_handover_is_ended() {
    let world = World::with(|settings: &mut Settings| {
        settings.handover_drain = Duration::from_millis(100);
        settings.drain = Duration::from_millis(100);
    })
    .await;
    world.behind(3000, Behind::Server(echo().await));
    world.map("a.style.dev", 3000).await;
    let tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let (mut socket, _) = tokio_tungstenite::client_async("wss://a.style.dev/", tls).await.expect("upgrade");
    let mut idle = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    world.order(Order::HandOver);
    let goodbye = timeout(PATIENCE, socket.next()).await.expect("in time");
    assert!(matches!(goodbye, Some(Ok(Message::Close(Some(_))))), "{goodbye:?}");
    let _closed = timeout(PATIENCE, idle.read(&mut [0; 1])).await.expect("closed in time");
    let running = world.running.lock().expect("lock").take().expect("it ran");
    timeout(PATIENCE, running).await.expect("in time").expect("it ends well");
}
