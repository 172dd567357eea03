//! What lasts: WebSockets, events, gRPC, large bodies, and the end of all of them.

use crate::bodies::until;
use crate::world::{Behind, PATIENCE, World, text};
use edge_proxy::Order;
use edge_proxy::metrics::Count;
use futures_util::{SinkExt, StreamExt};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// Says back what it hears.
pub async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(tcp).await.expect("upgrade");
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        let _gone = socket.send(message).await;
                    }
                }
            });
        }
    });
    address
}

async fn websocket(
    world: &World,
) -> tokio_tungstenite::WebSocketStream<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let upgraded = tokio_tungstenite::client_async("wss://a.style.dev/chat", tls).await;
    upgraded.expect("upgrade").0
}

/// `UPGRADES` (500) are how many there are, `UPGRADES_AT_ONCE` (50) how many at once.
#[tokio::test(flavor = "multi_thread")]
async fn many_quick_upgrades_at_once_and_none_is_cut() {
    let number_of =
        |name: &str, usual| std::env::var(name).map_or(usual, |text| text.parse().expect("a number"));
    let (all, at_once) = (number_of("UPGRADES", 500), number_of("UPGRADES_AT_ONCE", 50));
    let world = Arc::new(World::new().await);
    world.behind(3000, Behind::Server(echo().await));
    world.map("a.style.dev", 3000).await;
    let turns = Arc::new(Semaphore::new(at_once));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..all {
        let (world, turns) = (Arc::clone(&world), Arc::clone(&turns));
        tasks.spawn(async move {
            let _turn = turns.acquire().await.expect("open");
            let mut socket = websocket(&world).await;
            for round in 0..3 {
                let said = Message::text(format!("{number}-{round}"));
                socket.send(said.clone()).await.expect("send");
                let heard = timeout(PATIENCE, socket.next()).await.expect("in time");
                assert_eq!(heard.expect("not cut").expect("whole"), said);
            }
            socket.close(None).await.expect("close");
            while let Some(Ok(_)) = socket.next().await {}
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("none is cut");
    }
    assert_eq!(world.count(Count::Tunnels), u64::try_from(all).expect("small"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_passes_both_ways() {
    let world = World::new().await;
    world.behind(3000, Behind::Server(echo().await));
    world.map("a.style.dev", 3000).await;
    let socket = websocket(&world).await;
    let large = Message::binary((0..2_000_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let (mut say, mut hear) = socket.split();
    let (said, heard) = tokio::join!(say.send(large.clone()), timeout(PATIENCE, hear.next()));
    said.expect("sent");
    assert!(heard.expect("in time").expect("not cut").expect("whole") == large);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_passed_on_as_an_answer() {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |_| async { text("no sockets here") }).await;
    let upgrade = ["-i", "--http1.1", "-H", "Connection: Upgrade", "-H", "Upgrade: websocket"];
    let refused = world.curl("https://a.style.dev/", &upgrade).await;
    assert!(refused.code == 0 && refused.out.ends_with("no sockets here"), "{refused:?}");
    assert!(refused.out.starts_with("HTTP/1.1 200 OK"), "{refused:?}");
    let nobody = world.curl("https://nobody.style.dev/", &upgrade).await;
    assert!(nobody.out.starts_with("HTTP/1.1 404 "), "{nobody:?}");
    world.map("gone.style.dev", 3999).await;
    let gone = world.curl("https://gone.style.dev/", &upgrade).await;
    assert!(gone.out.starts_with("HTTP/1.1 502 "), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_when_they_are_sent() {
    let world = World::with(|settings| settings.answer_wait = Duration::from_millis(200)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    world.map("a.style.dev", 3000).await;
    let (next, mut asked) = tokio::sync::mpsc::channel::<()>(1);
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accept");
        let mut bytes = [0; 4096];
        let _read = tcp.read(&mut bytes).await.expect("read");
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.expect("write");
        let mut number = 0;
        while asked.recv().await.is_some() {
            let event = format!("data: {number}\n\n");
            let chunk = format!("{:x}\r\n{event}\r\n", event.len());
            tcp.write_all(chunk.as_bytes()).await.expect("write");
            number += 1;
        }
        tcp.write_all(b"0\r\n\r\n").await.expect("write");
    });
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let request = "GET / HTTP/1.1\r\nHost: a.style.dev\r\nAccept: text/event-stream\r\n\r\n";
    tls.write_all(request.as_bytes()).await.expect("write");
    let mut got = String::new();
    for number in 0..5 {
        next.send(()).await.expect("send");
        let wanted = format!("data: {number}\n\n");
        let mut bytes = [0; 1024];
        while !got.contains(&wanted) {
            let count = timeout(PATIENCE, tls.read(&mut bytes)).await.expect("in time").expect("read");
            got.push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
        // Longer than an ordinary answer may pause.
        tokio::time::sleep(Duration::from_millis(100 * number)).await;
    }
    drop(next);
    let mut rest = Vec::new();
    while !rest.ends_with(b"0\r\n\r\n") {
        timeout(PATIENCE, tls.read_buf(&mut rest)).await.expect("in time").expect("read");
    }
}

/// A known length is no reason to keep what there is: the engine would until the message is whole.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_messages_of_known_length_arrive_when_they_are_sent() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    world.map("a.style.dev", 3000).await;
    let mut tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let request = "POST / HTTP/1.1\r\nHost: a.style.dev\r\nContent-Length: 10\r\n\r\n";
    tls.write_all(request.as_bytes()).await.expect("write");
    let (mut vm, _) = timeout(PATIENCE, listener.accept()).await.expect("in time").expect("accept");
    until(&mut vm, "\r\n\r\n").await;
    for part in ["first", "again"] {
        tls.write_all(part.as_bytes()).await.expect("write");
        until(&mut vm, part).await;
    }
    // Twice: a connection that goes on begins anew.
    for round in 0..2 {
        for part in ["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "early", "later"] {
            vm.write_all(part.as_bytes()).await.expect("write");
            until(&mut tls, if part.len() > 5 { "\r\n\r\n" } else { part }).await;
        }
        if round == 0 {
            tls.write_all(b"GET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n").await.expect("write");
            until(&mut vm, "\r\n\r\n").await;
        }
    }
}

/// Most that may be on the way between a sender and one who takes nothing: socket buffers, and little of ours.
const ON_THE_WAY: u64 = 24 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_waits_for_a_vm_that_does_not_read() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    world.map("a.style.dev", 3000).await;
    const SIZE: u64 = 256 << 20;
    let (go, may_read) = tokio::sync::oneshot::channel::<()>();
    let reading = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accept");
        may_read.await.expect("go");
        let mut bytes = vec![0; 1 << 16];
        let mut total = 0;
        while total < SIZE {
            total += tcp.read(&mut bytes).await.expect("read") as u64;
        }
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.expect("write");
        tcp
    });
    let tls = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let (mut hear, mut say) = tokio::io::split(tls);
    let sent = Arc::new(AtomicU64::new(0));
    let counting = Arc::clone(&sent);
    tokio::spawn(async move {
        let head = format!("PUT / HTTP/1.1\r\nHost: a.style.dev\r\nContent-Length: {SIZE}\r\n\r\n");
        say.write_all(head.as_bytes()).await.expect("write");
        let piece = vec![7; 1 << 16];
        for _ in 0..SIZE / piece.len() as u64 {
            say.write_all(&piece).await.expect("write");
            counting.fetch_add(piece.len() as u64, Ordering::SeqCst);
        }
        say.flush().await.expect("flush");
    });
    let still = settled(&sent).await;
    assert!(still < ON_THE_WAY, "{still} bytes were taken from the client");
    go.send(()).expect("the server waits");
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        timeout(PATIENCE, hear.read_buf(&mut answer)).await.expect("in time").expect("read");
    }
    drop(reading.await.expect("the VM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_waits_for_a_client_that_does_not_read_and_cuts_it_in_the_end() {
    let world = World::with(|settings| settings.write_stall = Duration::from_secs(2)).await;
    for protocol in ["http/1.1", "h2"] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
        world.map("a.style.dev", 3000).await;
        let sent = Arc::new(AtomicU64::new(0));
        let counting = Arc::clone(&sent);
        let writing = tokio::spawn(async move {
            let (mut tcp, _) = listener.accept().await.expect("accept");
            let mut bytes = [0; 4096];
            let _read = tcp.read(&mut bytes).await.expect("read");
            tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n").await.expect("write");
            let piece = vec![7; 1 << 16];
            while tcp.write_all(&piece).await.is_ok() {
                counting.fetch_add(piece.len() as u64, Ordering::SeqCst);
            }
        });
        let mut tls = world.tls("a.style.dev", &[protocol]).await.expect("tls");
        if protocol == "h2" {
            let (mut sender, connection) = h2::client::handshake(tls).await.expect("handshake");
            let driving = tokio::spawn(connection);
            let request = http::Request::get("https://a.style.dev/").body(()).expect("request");
            let (answer, _) = sender.send_request(request, true).expect("send");
            let body = answer.await.expect("answer").into_body();
            assert!(settled(&sent).await < ON_THE_WAY);
            timeout(PATIENCE, writing).await.expect("it is cut").expect("writer");
            drop(body);
            driving.abort();
        } else {
            tls.write_all(b"GET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n").await.expect("write");
            tls.flush().await.expect("flush");
            assert!(settled(&sent).await < ON_THE_WAY);
            timeout(PATIENCE, writing).await.expect("it is cut").expect("writer");
        }
    }
    world.counted(Count::WriteStalled, 1).await;
}

/// A count that has stopped to grow.
async fn settled(count: &AtomicU64) -> u64 {
    loop {
        let before = count.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(400)).await;
        let after = count.load(Ordering::SeqCst);
        if before == after && after > 0 {
            return after;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_requests_end_and_says_goodbye_to_websockets() {
    let world = World::with(|settings| settings.drain = Duration::from_millis(800)).await;
    world.behind(3000, Behind::Server(echo().await));
    world.map("a.style.dev", 3000).await;
    let (begun, mut beginning) = tokio::sync::mpsc::channel::<()>(1);
    world
        .serve("b.style.dev", 3001, move |_| {
            let begun = begun.clone();
            async move {
                begun.send(()).await.expect("told");
                tokio::time::sleep(Duration::from_millis(300)).await;
                text("whole")
            }
        })
        .await;
    let mut socket = websocket(&world).await;
    socket.send(Message::text("hello")).await.expect("send");
    assert_eq!(socket.next().await.expect("open").expect("message"), Message::text("hello"));
    let idle = world.tls("a.style.dev", &["http/1.1"]).await.expect("tls");
    let (asked, ()) = tokio::join!(world.curl("https://b.style.dev/", &[]), async {
        beginning.recv().await.expect("begun");
        world.order(Order::Stop);
    });
    assert_eq!((asked.code, asked.out.as_str()), (0, "whole"));
    let Some(Ok(Message::Close(Some(frame)))) = timeout(PATIENCE, socket.next()).await.expect("in time")
    else {
        panic!("no goodbye")
    };
    assert_eq!(frame.code, CloseCode::Away);
    let running = world.running.lock().expect("lock").take().expect("it ran");
    timeout(PATIENCE, running).await.expect("in time").expect("it ends well");
    drop(idle);
    assert!(tokio::net::TcpStream::connect(world.https).await.is_err(), "nobody listens any more");
}
