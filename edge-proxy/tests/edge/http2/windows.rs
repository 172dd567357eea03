//! RFC 9113 sections 5.2, 6.5.3, 6.7 and 6.9: windows are kept to in both directions, and settings are followed.

use super::{ACK, END_HEADERS, FLOW_CONTROL_ERROR, Seen, world};
use crate::raw_h2::{
    DATA, END_STREAM, GET, HEADERS, PING, POST, RawH2, SETTINGS, WINDOW_UPDATE, frame, headers,
};
use crate::world::{Behind, World, text};
use tokio::sync::Semaphore;

/// What a stream, and all streams together, may send ahead.
const STREAM_WINDOW: usize = 256 << 10;
const CONNECTION_WINDOW: usize = 1 << 20;
/// Bytes of a connection to the client before it opens the window (section 6.9.2).
const FIRST_WINDOW: usize = 65_535;
/// A full frame.
const FULL: usize = 16_384;

fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

fn initial_window(size: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&[0, 4][..], &size.to_be_bytes()].concat())
}

/// The payloads of a stream's data up to the answer to this PING, which the gateway sends after what it may send.
async fn data_until_ping(client: &mut RawH2, stream: u32, mark: u8) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    // What stands ready is sent with the answer of the first PING at the latest, and that of the second comes after it.
    for round in 0..2 {
        let mark = [mark, round, 0, 0, 0, 0, 0, 0];
        client.send(&frame(PING, 0, 0, &mark)).await.expect("ping");
        loop {
            let (kind, flags, id, payload) = client.next().await.expect("open");
            match kind {
                DATA if id == stream => pieces.push(payload),
                PING if flags & ACK != 0 && payload == mark => break,
                _ => {}
            }
        }
    }
    pieces
}

/// The answer's head, whose data may not come yet.
async fn head(client: &mut RawH2, stream: u32) {
    while client.next().await.expect("open").2 != stream {}
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_keeps_to_the_window_of_its_stream() {
    let world = world().await;
    let mut client = RawH2::connect(&world, &[0, 4, 0, 0, 0, 0]).await;
    let echo = [POST[0], POST[1], POST[2], (":path", "/echo")];
    let ask = [headers(1, &echo, false), frame(DATA, END_STREAM, 1, b"abcdefgh")].concat();
    client.send(&ask).await.expect("asked");
    head(&mut client, 1).await;
    assert!(data_until_ping(&mut client, 1, 1).await.is_empty(), "a window of none");
    // It opens for streams that are under way (section 6.9.2).
    client.send(&initial_window(3)).await.expect("sent");
    assert_eq!(data_until_ping(&mut client, 1, 2).await.concat(), b"abc");
    // It may fall below zero, and then opens by as much later.
    client.send(&initial_window(1)).await.expect("sent");
    client.send(&window(1, 2)).await.expect("sent");
    assert!(data_until_ping(&mut client, 1, 3).await.concat().is_empty(), "a window of zero");
    client.send(&window(1, 1)).await.expect("sent");
    assert_eq!(data_until_ping(&mut client, 1, 4).await.concat(), b"d");
    client.send(&window(1, 100)).await.expect("sent");
    assert_eq!(data_until_ping(&mut client, 1, 5).await.concat(), b"efgh");
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_keep_to_the_window_of_the_connection_and_to_the_length_of_frames() {
    let world = World::new().await;
    let large = "x".repeat(100_000);
    world.serve("a.style.dev", 3000, move |_| std::future::ready(text(large.clone()))).await;
    // The stream's window is the largest, and the client would take frames of 65,536 bytes.
    let settings = [&[0, 4, 0x7f, 0xff, 0xff, 0xff][..], &[0, 5, 0, 1, 0, 0]].concat();
    let mut client = RawH2::connect(&world, &settings).await;
    client.send(&headers(1, &GET, true)).await.expect("asked");
    let (mut total, mut longest) = (0, 0);
    while total < FIRST_WINDOW {
        let (kind, _, _, payload) = client.next().await.expect("open");
        if kind == DATA {
            total += payload.len();
            longest = longest.max(payload.len());
        }
    }
    let more: usize = data_until_ping(&mut client, 1, 1).await.iter().map(Vec::len).sum();
    assert_eq!((total, more), (FIRST_WINDOW, 0));
    assert!(longest <= 65_536, "{longest}");
    client.send(&window(0, 10)).await.expect("sent");
    assert_eq!(data_until_ping(&mut client, 1, 2).await.concat().len(), 10);
}

/// A world whose VM never wakes, so that what is sent ahead stays in our hands.
async fn asleep() -> World {
    let world = World::new().await;
    let never: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let dialled: &'static Semaphore = Box::leak(Box::new(Semaphore::new(0)));
    let server = "127.0.0.1:9".parse().expect("address");
    world.behind(3000, Behind::Sleeps { dialled, woken: never, server });
    world.map("a.style.dev", 3000).await;
    world
}

/// So much data on a stream.
fn much(stream: u32, bytes: usize) -> Vec<u8> {
    let zeros = [0; FULL];
    let mut frames = Vec::new();
    let mut left = bytes;
    while left > 0 {
        let step = left.min(FULL);
        frames.extend(frame(DATA, 0, stream, &zeros[..step]));
        left -= step;
    }
    frames
}

#[tokio::test(flavor = "multi_thread")]
async fn more_data_than_a_streams_window_is_an_error() {
    let world = asleep().await;
    let mut client = RawH2::bare(&world).await;
    client.begin().await;
    let ask = [headers(1, &POST, false), much(1, STREAM_WINDOW)].concat();
    client.send(&ask).await.expect("asked");
    assert!(data_until_ping(&mut client, 1, 1).await.is_empty(), "it is within the window");
    client.send(&frame(DATA, 0, 1, b"x")).await.expect("sent");
    let mut seen = Seen::default();
    seen.read(&mut client, |seen| !seen.resets.is_empty()).await;
    assert_eq!((seen.resets, seen.goaway), (vec![(1, FLOW_CONTROL_ERROR)], None));
}

#[tokio::test(flavor = "multi_thread")]
async fn more_data_than_the_connections_window_is_an_error() {
    let world = asleep().await;
    let mut client = RawH2::bare(&world).await;
    client.begin().await;
    for number in 0..u32::try_from(CONNECTION_WINDOW / STREAM_WINDOW).expect("few") {
        let id = 2 * number + 1;
        client.send(&[headers(id, &POST, false), much(id, STREAM_WINDOW)].concat()).await.expect("asked");
    }
    assert!(data_until_ping(&mut client, 1, 1).await.is_empty(), "it is within the window");
    // Padding counts too (section 6.1).
    let padding = frame(DATA, super::PADDED, 99, &[0]);
    client.send(&[headers(99, &POST, false), padding].concat()).await.expect("sent");
    let mut seen = Seen::default();
    seen.read(&mut client, |_| false).await;
    assert_eq!((seen.resets, seen.goaway), (vec![], Some(FLOW_CONTROL_ERROR)));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_setting_is_acknowledged_and_each_ping_answered_with_its_bytes() {
    let world = world().await;
    let mut client = RawH2::bare(&world).await;
    client.begin().await;
    let sent: Vec<u8> = (1..=5u8)
        .flat_map(|n| [frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, n]), frame(PING, 0, 0, &[n; 8])].concat())
        .collect();
    client.send(&sent).await.expect("sent");
    let (mut acknowledged, mut pongs) = (0, Vec::new());
    while acknowledged < 5 || pongs.len() < 5 {
        match client.next().await.expect("open") {
            (SETTINGS, ACK, 0, payload) if payload.is_empty() => acknowledged += 1,
            (PING, ACK, 0, payload) => pongs.push(payload),
            (kind, flags, stream, payload) => {
                assert!(kind == WINDOW_UPDATE, "{kind} {flags} {stream} {payload:?}");
            }
        }
    }
    assert_eq!(pongs, (1..=5u8).map(|n| vec![n; 8]).collect::<Vec<_>>());
}

/// RFC 7541 section 4.2: a client that has no table gets answers that need none.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_a_table_of_fields_gets_none() {
    let world = world().await;
    let mut client = RawH2::connect(&world, &[0, 1, 0, 0, 0, 0]).await;
    for id in [1, 3] {
        client.send(&headers(id, &GET, true)).await.expect("asked");
        let block = loop {
            let (kind, flags, stream, payload) = client.next().await.expect("open");
            if kind == HEADERS && stream == id {
                assert_ne!(flags & END_HEADERS, 0);
                break payload;
            }
        };
        if id == 1 {
            assert_eq!(block[0], 0x20, "the table's size is said to be zero: {block:02x?}");
        }
        let fields = if id == 1 { &block[1..] } else { &block[..] };
        assert_eq!(fields[0], 0x88, "the status: {block:02x?}");
    }
}
