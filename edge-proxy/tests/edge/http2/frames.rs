//! RFC 9113 section 6: each kind of frame, its length, its stream, its padding and its flags.

use super::Must::{Answered, Connection, Ignored, Stream};
use super::{
    ACK, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, HELD, PADDED, PROTOCOL_ERROR, Row, WITH_PRIORITY, hold, row,
};
use crate::raw_h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PING, POST, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, block, frame, headers,
};

const PUSH_PROMISE: u8 = 5;
const ORIGIN: u8 = 0xc;
const PRIORITY_UPDATE: u8 = 0x10;
/// The largest window (section 6.9.1).
const MAX_WINDOW: u32 = 0x7fff_ffff;

/// A request whose body is still to come, and then these frames.
fn after_post(frames: &[Vec<u8>]) -> Vec<u8> {
    [headers(1, &POST, false), frames.concat()].concat()
}

/// A request that the VM holds, and then these frames.
fn after_held(frames: &[Vec<u8>]) -> Vec<u8> {
    [headers(1, &HELD, true), frames.concat()].concat()
}

/// A setting.
fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

fn set(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &setting(id, value))
}

fn data() -> Vec<Row> {
    let padded =
        |length: u8, rest: &[u8]| frame(DATA, END_STREAM | PADDED, 1, &[&[length][..], rest].concat());
    vec![
        row("6.1", "data on stream 0", frame(DATA, 0, 0, b"abc"), Connection(PROTOCOL_ERROR)),
        row("6.1", "data with padding", after_post(&[padded(3, b"abc\0\0\0")]), Answered(1, 200)),
        row("6.1", "data of padding alone", after_post(&[padded(3, b"\0\0\0")]), Answered(1, 200)),
        row("6.1", "a padding of none", after_post(&[padded(0, b"abc")]), Answered(1, 200)),
        row(
            "6.1",
            "as much padding as payload",
            after_post(&[padded(3, b"\0\0")]),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.1",
            "more padding than payload",
            after_post(&[padded(255, b"abc")]),
            Connection(PROTOCOL_ERROR),
        ),
        row("6.1", "padding that is not zero", after_post(&[padded(3, b"abcxyz")]), Answered(1, 200)),
        row(
            "6.1",
            "padding without its length",
            after_post(&[frame(DATA, END_STREAM | PADDED, 1, b"")]),
            Connection(FRAME_SIZE_ERROR),
        )
        .but(
            Connection(PROTOCOL_ERROR),
            "the engine looks at paddings before lengths; the connection ends all the same",
        ),
        row(
            "6.1",
            "data whose end is an empty frame",
            after_post(&[frame(DATA, 0, 1, b"abc"), frame(DATA, END_STREAM, 1, b"")]),
            Answered(1, 200),
        ),
        row(
            "6.1",
            "flags that data has not",
            after_post(&[frame(DATA, END_STREAM | 0xf6, 1, b"abc")]),
            Answered(1, 200),
        ),
    ]
}

fn heads() -> Vec<Row> {
    let whole = block(&GET);
    let with = |flags: u8, before: &[u8], after: &[u8]| {
        frame(HEADERS, END_STREAM | END_HEADERS | flags, 1, &[before, &whole, after].concat())
    };
    let depends = |stream: u32| [&stream.to_be_bytes()[..], &[200]].concat();
    vec![
        row("6.2", "a head on stream 0", headers(0, &GET, true), Connection(PROTOCOL_ERROR)),
        row("6.2", "a head with padding", with(PADDED, &[4], &[0; 4]), Answered(1, 200)),
        row("6.2", "more padding than payload", with(PADDED, &[255], &[]), Connection(PROTOCOL_ERROR)),
        row("6.2", "a head with a priority", with(WITH_PRIORITY, &depends(0), &[]), Answered(1, 200)),
        row("6.2", "the same, exclusive", with(WITH_PRIORITY, &depends(0x8000_0000), &[]), Answered(1, 200)),
        row(
            "6.2",
            "priority and padding",
            with(WITH_PRIORITY | PADDED, &[&[2][..], &depends(3)].concat(), &[0; 2]),
            Answered(1, 200),
        ),
        row("6.2", "a head that depends on itself", with(WITH_PRIORITY, &depends(1), &[]), Answered(1, 200))
            .but(
                Stream(1, PROTOCOL_ERROR),
                "as RFC 7540 section 5.3.1 asked; no client has a reason to do it",
            ),
        row(
            "6.2",
            "a priority that is not whole",
            frame(HEADERS, END_STREAM | END_HEADERS | WITH_PRIORITY, 1, &[0, 0, 0]),
            Connection(FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row("6.2", "flags that a head has not", with(0x52, &[], &[]), Answered(1, 200)),
        row(
            "6.2",
            "another stream's head in a block",
            [frame(HEADERS, END_STREAM, 1, &whole), headers(3, &GET, true)].concat(),
            Connection(PROTOCOL_ERROR),
        ),
    ]
}

fn continuations() -> Vec<Row> {
    let whole = block(&GET);
    vec![
        row(
            "6.10",
            "CONTINUATION on stream 0",
            frame(CONTINUATION, END_HEADERS, 0, &whole),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.10",
            "CONTINUATION after nothing",
            frame(CONTINUATION, END_HEADERS, 1, &whole),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.10",
            "CONTINUATION after a whole block",
            after_post(&[frame(CONTINUATION, END_HEADERS, 1, &whole)]),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.10",
            "CONTINUATION after data",
            after_post(&[frame(DATA, 0, 1, b"abc"), frame(CONTINUATION, END_HEADERS, 1, &whole)]),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.10",
            "CONTINUATION of another stream",
            [frame(HEADERS, END_STREAM, 1, &whole), frame(CONTINUATION, END_HEADERS, 3, b"")].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.10",
            "a block that a ping interrupts",
            [
                frame(HEADERS, END_STREAM, 1, &whole),
                frame(PING, 0, 0, &[0; 8]),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ]
            .concat(),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.10",
            "a block that data interrupts",
            [frame(HEADERS, 0, 1, &block(&POST)), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            Connection(PROTOCOL_ERROR),
        ),
    ]
}

fn priorities_and_resets() -> Vec<Row> {
    vec![
        row(
            "6.3",
            "PRIORITY on stream 0",
            frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 9]),
            Connection(PROTOCOL_ERROR),
        ),
        row("6.3", "PRIORITY of a stream not yet begun", frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 9]), Ignored),
        row(
            "6.3",
            "PRIORITY of four bytes",
            after_held(&[frame(PRIORITY, 0, 1, &[0; 4])]),
            Stream(1, FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row(
            "6.3",
            "PRIORITY of six bytes",
            after_held(&[frame(PRIORITY, 0, 1, &[0; 6])]),
            Stream(1, FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row(
            "6.4",
            "RST_STREAM on stream 0",
            frame(RST_STREAM, 0, 0, &[0, 0, 0, 8]),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.4",
            "RST_STREAM of a stream not yet begun",
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "6.4",
            "RST_STREAM of three bytes",
            after_held(&[frame(RST_STREAM, 0, 1, &[0; 3])]),
            Connection(FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row(
            "6.4",
            "RST_STREAM of five bytes",
            after_held(&[frame(RST_STREAM, 0, 1, &[0; 5])]),
            Connection(FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row(
            "6.4",
            "RST_STREAM with flags",
            after_held(&[frame(RST_STREAM, 0xff, 1, &[0, 0, 0, 8])]),
            Ignored,
        ),
        row("RFC 9218 7.1", "PRIORITY_UPDATE", frame(PRIORITY_UPDATE, 0, 0, b"\0\0\0\x01u=1"), Ignored),
        row("RFC 8336 2", "ORIGIN from a client", frame(ORIGIN, 0, 0, b"\0\x02hi"), Ignored),
    ]
}

fn settings() -> Vec<Row> {
    let bad = Connection(PROTOCOL_ERROR);
    vec![
        row("6.5", "SETTINGS on a stream", frame(SETTINGS, 0, 1, &[]), bad),
        row(
            "6.5",
            "an acknowledgement with settings",
            frame(SETTINGS, ACK, 0, &setting(3, 9)),
            Connection(FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row("6.5", "five bytes of settings", frame(SETTINGS, 0, 0, &[0; 5]), Connection(FRAME_SIZE_ERROR))
            .unreadable(),
        row("6.5", "seven bytes of settings", frame(SETTINGS, 0, 0, &[0; 7]), Connection(FRAME_SIZE_ERROR))
            .unreadable(),
        row("6.5", "flags that settings have not", frame(SETTINGS, 0xfe, 0, &setting(3, 9)), Ignored),
        row("6.5", "an acknowledgement of nothing", frame(SETTINGS, ACK, 0, &[]), Ignored)
            .but(Connection(PROTOCOL_ERROR), "the document is silent; no client has a reason to do it"),
        row("6.5.2", "an id that nobody knows", set(0xf0f0, 7), Ignored),
        row("6.5.2", "id 0", set(0, 7), Ignored),
        row("6.5.2", "no table", set(1, 0), Ignored),
        row("6.5.2", "the largest table", set(1, u32::MAX), Ignored),
        row("6.5.2", "ENABLE_PUSH of 0", set(2, 0), Ignored),
        row("6.5.2", "ENABLE_PUSH of 1", set(2, 1), Ignored),
        row("6.5.2", "ENABLE_PUSH of 2", set(2, 2), bad),
        row("6.5.2", "no streams for pushes", set(3, 0), Ignored),
        row("6.5.2", "the largest window", set(4, MAX_WINDOW), Ignored),
        row("6.5.2", "a larger window", set(4, MAX_WINDOW + 1), Connection(FLOW_CONTROL_ERROR)).unreadable(),
        row("6.5.2", "the largest number as a window", set(4, u32::MAX), Connection(FLOW_CONTROL_ERROR))
            .unreadable(),
        row("6.5.2", "the smallest frames", set(5, 16_384), Ignored),
        row("6.5.2", "the largest frames", set(5, 0xff_ffff), Ignored),
        row("6.5.2", "smaller frames", set(5, 16_383), bad),
        row("6.5.2", "larger frames", set(5, 0x100_0000), bad),
        row("6.5.2", "frames of none", set(5, 0), bad),
        row("6.5.2", "a small list of fields", set(6, 4096), Ignored),
        row(
            "6.5.3",
            "the same id twice, the first too large",
            frame(SETTINGS, 0, 0, &[setting(5, 1), setting(5, 16_384)].concat()),
            bad,
        ),
        row(
            "6.5.3",
            "settings in a request",
            after_post(&[set(4, 70_000), frame(DATA, END_STREAM, 1, b"abc")]),
            Answered(1, 200),
        ),
    ]
}

fn pushes_pings_and_goodbyes() -> Vec<Row> {
    let bad = Connection(PROTOCOL_ERROR);
    let promised = [&2u32.to_be_bytes()[..], &block(&GET)].concat();
    vec![
        row(
            "6.6",
            "PUSH_PROMISE from a client",
            after_held(&[frame(PUSH_PROMISE, END_HEADERS, 1, &promised)]),
            bad,
        ),
        row("6.6", "PUSH_PROMISE on stream 0", frame(PUSH_PROMISE, END_HEADERS, 0, &promised), bad),
        row("6.7", "PING on a stream", frame(PING, 0, 1, &[0; 8]), bad),
        row("6.7", "PING of seven bytes", frame(PING, 0, 0, &[0; 7]), Connection(FRAME_SIZE_ERROR))
            .unreadable(),
        row("6.7", "PING of nine bytes", frame(PING, 0, 0, &[0; 9]), Connection(FRAME_SIZE_ERROR))
            .unreadable(),
        row("6.7", "an answer that nobody asked for", frame(PING, ACK, 0, &[0; 8]), Ignored),
        row("6.8", "GOAWAY on a stream", frame(GOAWAY, 0, 1, &[0; 8]), bad),
        row("6.8", "GOAWAY of seven bytes", frame(GOAWAY, 0, 0, &[0; 7]), Connection(FRAME_SIZE_ERROR))
            .unreadable(),
    ]
}

fn window_updates() -> Vec<Row> {
    let bad = Connection(PROTOCOL_ERROR);
    vec![
        row(
            "6.9",
            "WINDOW_UPDATE of three bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            Connection(FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row(
            "6.9",
            "WINDOW_UPDATE of five bytes",
            frame(WINDOW_UPDATE, 0, 0, &[0; 5]),
            Connection(FRAME_SIZE_ERROR),
        )
        .unreadable(),
        row("6.9", "a connection's window by none", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), bad),
        row("6.9", "the same with the reserved bit", frame(WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 0]), bad),
        row(
            "6.9",
            "a stream's window by none",
            after_held(&[frame(WINDOW_UPDATE, 0, 1, &[0; 4])]),
            Stream(1, PROTOCOL_ERROR),
        )
        .but_all(),
        row(
            "6.9",
            "a window by one, with the reserved bit",
            frame(WINDOW_UPDATE, 0, 0, &[0x80, 0, 0, 1]),
            Ignored,
        ),
        row(
            "6.9.1",
            "a connection's window over the largest",
            frame(WINDOW_UPDATE, 0, 0, &MAX_WINDOW.to_be_bytes()),
            Connection(FLOW_CONTROL_ERROR),
        ),
        row(
            "6.9.1",
            "a stream's window over the largest",
            after_held(&[frame(WINDOW_UPDATE, 0, 1, &MAX_WINDOW.to_be_bytes())]),
            Stream(1, FLOW_CONTROL_ERROR),
        ),
        row(
            "6.9.1",
            "the same in two steps",
            after_held(&[
                frame(WINDOW_UPDATE, 0, 1, &0x7000_0000u32.to_be_bytes()),
                frame(WINDOW_UPDATE, 0, 1, &0x1000_0000u32.to_be_bytes()),
            ]),
            Stream(1, FLOW_CONTROL_ERROR),
        ),
        row(
            "6.9.2",
            "a stream's window over the largest by settings",
            after_held(&[frame(WINDOW_UPDATE, 0, 1, &1u32.to_be_bytes()), set(4, MAX_WINDOW)]),
            Connection(FLOW_CONTROL_ERROR),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_frame() {
    let streams = [data(), heads(), continuations(), priorities_and_resets()];
    let connections = [settings(), pushes_pings_and_goodbyes(), window_updates()];
    hold(80, streams.into_iter().chain(connections).flatten().collect()).await;
}
