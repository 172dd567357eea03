//! RFC 9113 sections 3.4, 4.1, 4.2, 5.4 and 5.5: how a connection begins, and what frames look like.

use super::Must::{Answered, Closed, Connection, Ignored, Last, Stream};
use super::{
    CANCEL, COMPRESSION_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, HELD, PROTOCOL_ERROR, Row, Step, hold,
    row, steps,
};
use crate::raw_h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PING, POST, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, headers,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// One byte more than a frame may have until SETTINGS_MAX_FRAME_SIZE says otherwise, which ours does not.
const TOO_LONG: usize = 16_385;

fn beginnings() -> Vec<Row> {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let whole = [PREFACE, &settings, &headers(1, &GET, true)].concat();
    let byte_by_byte = whole.iter().map(|byte| Step::Send(vec![*byte])).collect();
    vec![
        row("3.4", "preface, settings and a request in one piece", whole, Answered(1, 200)).bare(),
        steps("3.4", "the same byte by byte", byte_by_byte, Answered(1, 200)).bare(),
        row(
            "3.4",
            "another preface of the same length",
            [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".as_slice(), &settings].concat(),
            Connection(PROTOCOL_ERROR),
        )
        .bare()
        .but(Closed, "GOAWAY may be left out: this is no client of HTTP/2"),
        row(
            "3.4",
            "a request of HTTP/1.1",
            b"GET / HTTP/1.1\r\nHost: a.style.dev\r\n\r\n".to_vec(),
            Connection(1),
        )
        .bare()
        .but(Closed, "GOAWAY may be left out: this is no client of HTTP/2"),
        row(
            "3.4",
            "a request before settings",
            [PREFACE, &headers(1, &GET, true)].concat(),
            Connection(PROTOCOL_ERROR),
        )
        .bare()
        .but(Answered(1, 200), "the engine does not wait for settings, and what they would say is a choice"),
        row("3.4", "a ping before settings", [PREFACE, &frame(PING, 0, 0, &[0; 8])].concat(), Connection(1))
            .bare()
            .but(Ignored, "likewise"),
        row("3.4", "a second preface", PREFACE.to_vec(), Connection(FRAME_SIZE_ERROR)),
    ]
}

fn shapes() -> Vec<Row> {
    let reserved = |mut bytes: Vec<u8>| {
        bytes[5] |= 0x80;
        bytes
    };
    let long_block = [block(&GET), block(&[("x", &"y".repeat(TOO_LONG))])].concat();
    vec![
        row("4.1", "a stream's reserved bit", reserved(headers(1, &GET, true)), Answered(1, 200)),
        row("4.1", "the reserved bit of a ping's stream", reserved(frame(PING, 0, 0, &[0; 8])), Ignored),
        row("4.1", "flags that a ping has not", frame(PING, 0xfe, 0, &[0; 8]), Ignored),
        row("4.1", "a type that nobody knows", frame(0x5f, 0, 0, b"what?"), Ignored),
        row("4.1", "the same with flags, on a stream", frame(0x5f, 0xff, 7, b"what?"), Ignored),
        row(
            "5.5",
            "the same in a request",
            [headers(1, &POST, false), frame(0x5f, 0xff, 1, b"what?"), frame(DATA, END_STREAM, 1, b"abc")]
                .concat(),
            Answered(1, 200),
        ),
        row(
            "5.5",
            "the same in a header block",
            [
                frame(HEADERS, END_STREAM, 1, &block(&GET)),
                frame(0x5f, 0, 0, b"what?"),
                frame(CONTINUATION, END_HEADERS, 1, b""),
            ]
            .concat(),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "4.2",
            "data as long as a frame may be",
            [headers(1, &POST, false), frame(DATA, END_STREAM, 1, &[7; TOO_LONG - 1])].concat(),
            Answered(1, 200),
        ),
        row(
            "4.2",
            "data that is longer",
            [headers(1, &POST, false), frame(DATA, END_STREAM, 1, &[7; TOO_LONG])].concat(),
            Connection(FRAME_SIZE_ERROR),
        ),
        row(
            "4.2",
            "a head that is longer",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &long_block),
            Connection(FRAME_SIZE_ERROR),
        ),
        row(
            "4.2",
            "settings that are longer",
            frame(SETTINGS, 0, 0, &[0; 16_386]),
            Connection(FRAME_SIZE_ERROR),
        ),
        row(
            "4.2",
            "an unknown frame that is longer",
            frame(0x5f, 0, 0, &[0; TOO_LONG]),
            Connection(FRAME_SIZE_ERROR),
        ),
    ]
}

fn blocks() -> Vec<Row> {
    let whole = block(&GET);
    let pieces = |cut: &[usize]| {
        let mut bytes = Vec::new();
        let mut from = 0;
        for (number, to) in cut.iter().copied().chain([whole.len()]).enumerate() {
            let kind = if number == 0 { HEADERS } else { CONTINUATION };
            let flags =
                if number == 0 { END_STREAM } else { 0 } | if to == whole.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(kind, flags, 1, &whole[from..to]));
            from = to;
        }
        bytes
    };
    // The first request is refused, and yet its field is in the table that the second one refers to (0xbe is entry 62).
    let refused = [block(&GET), vec![0x40, 1, b'x', 1, b'y'], block(&[("upgrade", "x")])].concat();
    let refers = [block(&GET), vec![0xbe]].concat();
    vec![
        row("4.3", "a block in two pieces, cut in a name", pieces(&[3]), Answered(1, 200)),
        row("4.3", "a block in four pieces", pieces(&[1, 9, 20]), Answered(1, 200)),
        row(
            "4.3",
            "a block whose last piece is empty",
            [frame(HEADERS, END_STREAM, 1, &whole), frame(CONTINUATION, END_HEADERS, 1, b"")].concat(),
            Answered(1, 200),
        ),
        row(
            "4.3",
            "a block that is not whole",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &whole[..whole.len() - 2]),
            Connection(COMPRESSION_ERROR),
        )
        .unreadable(),
        steps(
            "4.3",
            "the block of a refused request counts for the table",
            vec![
                Step::Send(frame(HEADERS, END_STREAM | END_HEADERS, 1, &refused)),
                Step::Send(frame(HEADERS, END_STREAM | END_HEADERS, 3, &refers)),
                Step::Whole(3),
            ],
            Stream(1, PROTOCOL_ERROR),
        ),
        row(
            "4.3",
            "the block of a request that is given up counts for the table",
            [
                frame(
                    HEADERS,
                    END_STREAM | END_HEADERS,
                    1,
                    &[block(&HELD), vec![0x40, 1, b'x', 1, b'y']].concat(),
                ),
                frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes()),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, &refers),
            ]
            .concat(),
            Answered(3, 200),
        ),
    ]
}

fn errors() -> Vec<Row> {
    let code = |code: u32| [vec![0; 4], code.to_be_bytes().to_vec()].concat();
    vec![
        row(
            "5.4.1",
            "after GOAWAY nothing more is served",
            [frame(PING, 0, 9, &[0; 8]), headers(1, &GET, true)].concat(),
            Connection(PROTOCOL_ERROR),
        ),
        row(
            "5.4.2",
            "a reset stream leaves the others",
            [
                headers(1, &HELD, true),
                headers(3, &POST, false),
                frame(WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff]),
                frame(DATA, END_STREAM, 3, b"abc"),
            ]
            .concat(),
            Stream(1, FLOW_CONTROL_ERROR),
        ),
        row(
            "5.4.2",
            "a reset is not answered with a reset",
            [headers(1, &HELD, true), frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())].concat(),
            Ignored,
        ),
        row(
            "7",
            "a reset with a code that nobody knows",
            [headers(1, &HELD, true), frame(RST_STREAM, 0, 1, &[0xfe; 4])].concat(),
            Ignored,
        ),
        row(
            "7",
            "GOAWAY with a code that nobody knows, and a request in hand",
            [
                headers(1, &POST, false),
                frame(crate::raw_h2::GOAWAY, 0, 0, &code(0xfefe_fefe)),
                frame(DATA, END_STREAM, 1, b"abc"),
            ]
            .concat(),
            Last(1, 200),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_connection_begins_and_what_frames_look_like() {
    hold(30, [beginnings(), shapes(), blocks(), errors()].into_iter().flatten().collect()).await;
}
