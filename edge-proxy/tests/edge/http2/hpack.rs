//! RFC 7541: header blocks that do not decode, and those that only look as if they did not.

use super::Must::{Answered, Connection};
use super::{COMPRESSION_ERROR, Row, hold, row};
use crate::raw_h2::{END_HEADERS, END_STREAM, GET, HEADERS, block, frame};

/// A request, and then these bytes of the same block.
fn after(bytes: &[u8]) -> Vec<u8> {
    head(&[block(&GET), bytes.to_vec()].concat())
}

fn head(block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, block)
}

fn good() -> Vec<Row> {
    let indexed_authority = [0x41, 11].iter().copied().chain(*b"a.style.dev").collect::<Vec<u8>>();
    // `/v` by Huffman's code: 011000 1110111, and ones to the byte's end.
    let huffman_path = [0x44, 0x82, 0b0110_0011, 0b1011_1111];
    let short = [&[0x82, 0x87][..], &indexed_authority, &huffman_path].concat();
    let never = [&[0x82, 0x87][..], &indexed_authority, &[0x14, 2, b'/', b'v']].concat();
    // The table is emptied and made as large again: entry 62 is the one that came after.
    let resized = [&[0x20, 0x3f, 0xe1, 0x1f][..], &block(&GET), &[0x40, 1, b'x', 1, b'y', 0xbe]].concat();
    vec![
        row("6.1", "fields of the static table", head(&short), Answered(1, 200)),
        row(
            "6.2.1",
            "a field that is added and then referred to",
            after(&[0x40, 1, b'x', 1, b'y', 0xbe]),
            Answered(1, 200),
        ),
        row("6.2.3", "a field that is never to be indexed", head(&never), Answered(1, 200)),
        row("4.2", "no table, then one of the largest size", head(&resized), Answered(1, 200)),
        row(
            "5.1",
            "an integer with zeros in front",
            after(
                &[0x00, 1, b'x', 0x7f, 0x80, 0x80, 0x00]
                    .iter()
                    .copied()
                    .chain([b'y'; 127])
                    .collect::<Vec<u8>>(),
            ),
            Answered(1, 200),
        ),
        row("5.2", "an empty value by Huffman's code", after(&[0x00, 1, b'x', 0x80]), Answered(1, 200)),
        row(
            "2.3.2",
            "a field that is larger than the table empties it",
            after(
                &[0x40, 1, b'x', 0x7f, 0xa1, 0x1f].iter().copied().chain([b'y'; 4128]).collect::<Vec<u8>>(),
            ),
            Answered(1, 200),
        ),
    ]
}

fn bad() -> Vec<Row> {
    let error = Connection(COMPRESSION_ERROR);
    vec![
        row("6.1", "index 0", after(&[0x80]), error),
        row("2.3.3", "the first index over both tables", after(&[0xbe]), error),
        row("2.3.3", "an index far over them", after(&[0xff, 0xff, 0xff, 0x03]), error),
        row("2.3.3", "a name's index over the tables", after(&[0x7f, 0xff, 0x01, 1, b'y']), error),
        row(
            "2.3.3",
            "a field that the table has no longer",
            head(&[&block(&GET)[..], &[0x40, 1, b'x', 1, b'y', 0xbf]].concat()),
            error,
        ),
        row(
            "4.2",
            "a table larger than was agreed",
            head(&[&[0x3f, 0xe2, 0x1f][..], &block(&GET)].concat()),
            error,
        ),
        row("4.2", "a table's size behind a field", after(&[0x20]), error),
        row(
            "4.3",
            "an emptied table is referred to",
            [
                after(&[0x40, 1, b'x', 1, b'y']),
                frame(HEADERS, END_STREAM | END_HEADERS, 3, &[&[0x20][..], &block(&GET), &[0xbe]].concat()),
            ]
            .concat(),
            error,
        ),
        row(
            "5.1",
            "an integer of more than four bytes",
            after(&[0x00, 1, b'x', 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f]),
            error,
        ),
        row("5.1", "an integer that does not end", after(&[0x00, 1, b'x', 0x7f, 0x80]), error),
        row(
            "5.1",
            "an index of ten zeros",
            after(&[0xff, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]),
            error,
        ),
        row("5.2", "a name longer than the block", after(&[0x00, 9, b'x']), error),
        row("5.2", "a value longer than the block", after(&[0x00, 1, b'x', 9, b'y']), error),
        row("5.2", "a name without a value", after(&[0x00, 1, b'x']), error),
        row(
            "5.2",
            "Huffman's code with eight bits of padding",
            after(&[0x00, 1, b'x', 0x82, 0x1f, 0xff]),
            error,
        ),
        row("5.2", "Huffman's code with a padding of zeros", after(&[0x00, 1, b'x', 0x81, 0x18]), error),
        row(
            "5.2",
            "Huffman's code with its end in it",
            after(&[0x00, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff]),
            error,
        ),
        row("5.2", "Huffman's code that stops in a letter", after(&[0x00, 1, b'x', 0x81, 0xfe]), error),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn header_blocks() {
    let bad = bad().into_iter().map(Row::unreadable);
    hold(25, good().into_iter().chain(bad).collect()).await;
}
