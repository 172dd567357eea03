//! Clients of HTTP/2 that make work and ask for nothing, and honest ones at full speed beside them.

use crate::raw_h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, Outcome, PING, POST, PRIORITY, RST_STREAM,
    RawH2, SETTINGS, WINDOW_UPDATE, block, frame, headers,
};
use crate::world::{Behind, PATIENCE, World, text};
use edge_proxy::metrics::Count;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

/// Far more than any budget allows while a test runs.
const FAR_TOO_MANY: usize = 20_000;
/// What a client is told that makes too much work: ENHANCE_YOUR_CALM (RFC 9113 section 7).
const CALM: Option<u32> = Some(11);

async fn world() -> World {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |_| async { text("ok") }).await;
    world
}

/// Someone else is served as before.
async fn honest(world: &World) {
    let asked = world.curl("https://a.style.dev/", &["--http2"]).await;
    assert_eq!((asked.code, asked.out.as_str()), (0, "ok"), "{asked:?}");
}

/// Frames that belong to no request, many to a write.
async fn flood(world: &World, count: Count, piece: Vec<u8>) {
    let mut client = RawH2::connect(world, &[]).await;
    client.send(&headers(1, &POST, false)).await.expect("a request");
    let many = piece.repeat(64);
    assert_eq!(client.flood(FAR_TOO_MANY / 64, |_| many.clone()).await, CALM, "{count:?}");
    world.counted(count, 1).await;
    honest(world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_flood_is_cut_and_counted_by_its_kind() {
    let world = world().await;
    flood(&world, Count::FloodPings, frame(PING, 0, 0, &[7; 8])).await;
    flood(&world, Count::FloodSettings, frame(SETTINGS, 0, 0, &[])).await;
    flood(&world, Count::FloodEmptyData, frame(DATA, 0, 1, &[])).await;
    flood(&world, Count::FloodPriorities, frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])).await;
    flood(&world, Count::FloodWindows, frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await;
    flood(&world, Count::FloodUnknown, frame(0xbb, 0, 0, &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rapid_reset_is_cut() {
    let world = world().await;
    let mut client = RawH2::connect(&world, &[]).await;
    let reset = |number: usize| {
        let id = u32::try_from(2 * number + 1).expect("small");
        [headers(id, &GET, true), frame(RST_STREAM, 0, id, &[0, 0, 0, 8])].concat()
    };
    let many = |n| (0..32).flat_map(|place| reset(32 * n + place)).collect();
    assert_eq!(client.flood(FAR_TOO_MANY / 32, many).await, CALM);
    world.counted(Count::FloodResets, 1).await;
    honest(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_block_that_does_not_end_is_cut() {
    let world = World::with(|settings| settings.head_wait = Duration::from_millis(700)).await;
    world.serve("a.style.dev", 3000, |_| async { text("ok") }).await;
    let mut client = RawH2::connect(&world, &[]).await;
    client.send(&frame(HEADERS, END_STREAM, 1, &block(&GET))).await.expect("begun");
    assert_eq!(client.flood(FAR_TOO_MANY, |_| frame(CONTINUATION, 0, 1, &[])).await, CALM);
    world.counted(Count::FloodContinuations, 1).await;
    // One that sends nothing more is cut by the clock.
    let before = world.count(Count::HeadLate);
    let mut client = RawH2::connect(&world, &[]).await;
    client.send(&frame(HEADERS, END_STREAM, 1, &block(&GET))).await.expect("begun");
    assert_eq!(client.end().await, CALM);
    world.counted(Count::HeadLate, before + 1).await;
    honest(&world).await;
}

/// One long field in the table, and 12,000 references to it: 50 MB of fields in 16 KB.
#[tokio::test(flavor = "multi_thread")]
async fn a_bomb_of_references_is_refused() {
    let world = world().await;
    let mut bomb = block(&GET);
    bomb.extend([0x40, 1, b'x', 127]);
    let length = 4000usize - 127;
    bomb.extend([
        u8::try_from(length % 128).expect("small") | 128,
        u8::try_from(length / 128).expect("small"),
    ]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let mut client = RawH2::connect(&world, &[]).await;
    client.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb)).await.expect("sent");
    let outcome = client.outcome(1).await;
    assert!(matches!(outcome, Outcome::Status(431) | Outcome::Reset | Outcome::Gone), "{outcome:?}");
    drop(client);
    world.counted(Count::Untaken, 1).await;
    honest(&world).await;
}

/// A client that opens no window holds what the VM has sent, for a bounded time.
#[tokio::test(flavor = "multi_thread")]
async fn a_closed_window_is_waited_for_and_then_cut() {
    let world = World::with(|settings| settings.write_stall = Duration::from_secs(1)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    world.behind(3000, Behind::Server(listener.local_addr().expect("address")));
    world.map("a.style.dev", 3000).await;
    let server = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.expect("accept");
        let mut bytes = [0; 4096];
        let _read = tcp.read(&mut bytes).await.expect("read");
        tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n").await.expect("write");
        while tcp.write_all(&[7; 4096]).await.is_ok() {}
    });
    // SETTINGS_INITIAL_WINDOW_SIZE is zero.
    let mut client = RawH2::connect(&world, &[0, 4, 0, 0, 0, 0]).await;
    client.send(&headers(1, &GET, true)).await.expect("asked");
    assert_eq!(client.outcome(1).await, Outcome::Status(200));
    timeout(PATIENCE, server).await.expect("the VM's connection is given up").expect("server");
    world.counted(Count::WriteStalled, 1).await;
}

/// Load as h2load makes it: full speed, all streams of a connection, windows opened as data comes.
#[tokio::test(flavor = "multi_thread")]
async fn honest_clients_at_full_speed_are_not_hurt() {
    let world = World::new().await;
    let large = "x".repeat(1 << 20);
    world
        .serve("a.style.dev", 3000, move |request| {
            let answer = if request.uri().path() == "/large" { large.clone() } else { "ok".to_owned() };
            async { text(answer) }
        })
        .await;
    let tls = world.tls("a.style.dev", &["h2"]).await.expect("tls");
    // Small windows, so that many updates are sent.
    let built = h2::client::Builder::new()
        .initial_window_size(16_384)
        .initial_connection_window_size(65_535)
        .handshake::<_, bytes::Bytes>(tls);
    let (sender, connection) = built.await.expect("handshake");
    let driving = tokio::spawn(connection);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let mut sender = sender.clone();
        tasks.spawn(async move {
            for round in 0..60 {
                sender = sender.ready().await.expect("ready");
                let path = if (number + round) % 60 == 0 { "large" } else { "small" };
                let request =
                    http::Request::get(format!("https://a.style.dev/{path}")).body(()).expect("request");
                let (answer, _) = sender.send_request(request, true).expect("send");
                let answer = answer.await.expect("answered");
                assert_eq!(answer.status(), 200);
                let mut body = answer.into_body();
                let mut length = 0;
                while let Some(piece) = body.data().await {
                    let piece = piece.expect("data");
                    length += piece.len();
                    body.flow_control().release_capacity(piece.len()).expect("window");
                }
                assert_eq!(length, if path == "large" { 1 << 20 } else { 2 });
            }
        });
    }
    while let Some(done) = timeout(PATIENCE, tasks.join_next()).await.expect("in time") {
        done.expect("none is cut");
    }
    assert!(!driving.is_finished(), "one connection carried all of it");
    let cut: Vec<_> = world.metrics.snapshot().into_keys().filter(|name| name.starts_with("cut_")).collect();
    assert!(cut.is_empty(), "{cut:?}");
}
