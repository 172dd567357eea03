//! RFC 9113 section 5.1: what may come in each state of a stream.

use super::Must::{Answered, Connection, Ignored, Stream};
use super::{CANCEL, HELD, PROTOCOL_ERROR, Row, STREAM_CLOSED, Step, hold, row, steps};
use crate::raw_h2::{
    DATA, END_STREAM, GET, Outcome, POST, PRIORITY, RST_STREAM, RawH2, WINDOW_UPDATE, frame, headers,
};

fn data() -> Vec<u8> {
    frame(DATA, END_STREAM, 1, b"abc")
}

fn reset() -> Vec<u8> {
    frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())
}

fn window() -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1])
}

fn priority() -> Vec<u8> {
    frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])
}

/// A reset of ours, and what else may be on its way from a client that does not know of it yet.
const MALFORMED: [(&str, &str); 5] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "a.style.dev"),
    (":path", "/v"),
    ("connection", "close"),
];

fn idle() -> Vec<Row> {
    let bad = Connection(PROTOCOL_ERROR);
    vec![
        row("5.1 idle", "data", data(), bad),
        row("5.1 idle", "a reset", reset(), bad),
        row("5.1 idle", "a window", window(), bad),
        row("5.1 idle", "a priority", priority(), Ignored),
        row(
            "5.1 idle",
            "a priority, and then the request",
            [priority(), headers(1, &GET, true)].concat(),
            Answered(1, 200),
        ),
        row("5.1 reserved", "data on a stream of ours", frame(DATA, END_STREAM, 2, b"abc"), bad),
        row("5.1 reserved", "a reset of a stream of ours", frame(RST_STREAM, 0, 2, &[0; 4]), bad),
        row("5.1 reserved", "a window for a stream of ours", frame(WINDOW_UPDATE, 0, 2, &[0, 0, 0, 1]), bad),
    ]
}

fn open() -> Vec<Row> {
    let after = |bytes: &[Vec<u8>]| [headers(1, &POST, false), bytes.concat()].concat();
    vec![
        row(
            "5.1 open",
            "a priority, a window and data",
            after(&[priority(), window(), data()]),
            Answered(1, 200),
        ),
        row("5.1 open", "a reset", after(&[reset()]), Ignored),
        row("5.1 open", "a second reset", after(&[reset(), reset()]), Ignored),
    ]
}

fn half_closed() -> Vec<Row> {
    let after = |bytes: Vec<u8>| [headers(1, &HELD, true), bytes].concat();
    vec![
        row("5.1 half-closed", "data", after(data()), Stream(1, STREAM_CLOSED)).but_all(),
        row(
            "5.1 half-closed",
            "data without an end",
            after(frame(DATA, 0, 1, b"abc")),
            Stream(1, STREAM_CLOSED),
        )
        .but_all(),
        row("5.1 half-closed", "a head", after(headers(1, &GET, true)), Stream(1, STREAM_CLOSED)).but_all(),
        row("5.1 half-closed", "trailers", after(headers(1, &[("x", "y")], true)), Stream(1, STREAM_CLOSED))
            .but_all(),
        row("5.1 half-closed", "a window", after(window()), Ignored),
        row("5.1 half-closed", "a priority", after(priority()), Ignored),
        row("5.1 half-closed", "a reset", after(reset()), Ignored),
    ]
}

/// A stream whose answer the client has.
fn closed() -> Vec<Row> {
    let after = |what, bytes, must| {
        let ask = Step::Send(headers(1, &GET, true));
        steps("5.1 closed", what, vec![ask, Step::Whole(1), Step::Send(bytes)], must)
    };
    let bad = Connection(STREAM_CLOSED);
    vec![
        after("data", data(), bad).over(1),
        after("a head", headers(1, &GET, true), bad).but_all(),
        after("trailers", headers(1, &[("x", "y")], true), bad).but_all(),
        after("a window", window(), Ignored),
        after("a reset", reset(), Ignored),
        after("a priority", priority(), Ignored),
    ]
}

/// A stream that the client has given up, or we have.
fn given_up() -> Vec<Row> {
    let after = |bytes: Vec<u8>| [headers(1, &HELD, true), reset(), bytes].concat();
    let refused = |bytes: Vec<u8>| [headers(1, &MALFORMED, false), bytes].concat();
    vec![
        row("5.1 given up", "data", after(data()), Connection(STREAM_CLOSED)).over(1),
        row("5.1 given up", "a head", after(headers(1, &GET, true)), Connection(STREAM_CLOSED)).but_all(),
        row("5.1 given up", "a window", after(window()), Ignored),
        row("5.1 given up", "a priority", after(priority()), Ignored),
        row("5.1 given up", "a reset", after(reset()), Ignored),
        row("5.1 refused", "data", refused(frame(DATA, 0, 1, b"abc")), Stream(1, PROTOCOL_ERROR)),
        row(
            "5.1 refused",
            "data and trailers",
            refused([frame(DATA, 0, 1, b"abc"), headers(1, &[("x", "y")], true)].concat()),
            Stream(1, PROTOCOL_ERROR),
        ),
        row("5.1 refused", "a window", refused(window()), Stream(1, PROTOCOL_ERROR)),
        row("5.1 refused", "a priority", refused(priority()), Stream(1, PROTOCOL_ERROR)),
    ]
}

fn numbers() -> Vec<Row> {
    let bad = Connection(PROTOCOL_ERROR);
    vec![
        row("5.1.1", "an even number", headers(2, &GET, true), bad),
        row("5.1.1", "a number that is left out", headers(5, &GET, true), Answered(5, 200)),
        row(
            "5.1.1",
            "the one left out, later",
            [headers(5, &HELD, true), headers(3, &GET, true)].concat(),
            bad,
        ),
        row(
            "5.1.1",
            "data for the one left out",
            [headers(5, &HELD, true), frame(DATA, END_STREAM, 3, b"abc")].concat(),
            Connection(STREAM_CLOSED),
        )
        .over(3),
        row(
            "5.1.1",
            "a window for the one left out",
            [headers(5, &HELD, true), frame(WINDOW_UPDATE, 0, 3, &[0, 0, 0, 1])].concat(),
            Ignored,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_of_a_stream() {
    let rows = [idle(), open(), half_closed(), closed(), given_up(), numbers()];
    hold(35, rows.into_iter().flatten().collect()).await;
}

/// Section 5.1.1: there is no higher number.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_number_of_all_is_served() {
    let world = super::world().await;
    let mut client = RawH2::connect(&world, &[]).await;
    client.send(&headers(0x7fff_ffff, &GET, true)).await.expect("asked");
    assert_eq!(client.outcome(0x7fff_ffff).await, Outcome::Status(200));
}

/// Section 5.1.2: a request over the bound is refused, those under way are not, and who ends makes room.
#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_agreed_are_refused_one_by_one() {
    let world = super::world().await;
    let mut client = RawH2::bare(&world).await;
    client.begin().await;
    let held: Vec<u8> = (0..100).flat_map(|number| headers(2 * number + 1, &HELD, true)).collect();
    client.send(&held).await.expect("asked");
    client.send(&headers(201, &GET, true)).await.expect("asked");
    let mut seen = super::Seen::default();
    seen.read(&mut client, |seen| !seen.resets.is_empty()).await;
    assert_eq!(seen.resets, [(201, super::REFUSED_STREAM)], "{seen:?}");
    client.send(&[reset(), headers(203, &GET, true)].concat()).await.expect("asked");
    seen.read(&mut client, |seen| seen.whole.contains(&203)).await;
    assert_eq!((seen.heads.as_slice(), seen.resets.len()), ([(203, 200)].as_slice(), 1), "{seen:?}");
}
