//! Where a body in chunks ends (RFC 9112 section 7.1), read strictly.
//!
//! Chunk lines are where two servers most easily disagree: a missing size that one takes for zero, an extension that
//! hides a line end, a size with a sign. Here a line is hexadecimal digits, then perhaps extensions of visible
//! characters, then CR LF; everything else ends the connection. Extensions are checked and go no further: what the VM
//! gets is framed anew. Trailers are checked here, and sifted by [`super::trailers`].

use super::head::MAX_FIELDS;
use super::trailers::MAX_REQUEST_BYTES;
use thiserror::Error;

/// Most digits of a size: 60 bits, and no body is longer.
const MAX_DIGITS: u8 = 15;
/// Longest chunk line. Extensions are rare and short; a long one is a way to make work.
const MAX_LINE_BYTES: u32 = 256;
/// Extensions of one body together, for the same reason.
const MAX_EXTENSION_BYTES: u32 = 16 << 10;

/// Why a body in chunks is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChunkFault {
    /// A chunk line without a size, or with something that is no hexadecimal digit.
    #[error("a chunk's size is not a hexadecimal number")]
    Size,
    /// A size, a line or all extensions together are over their bound.
    #[error("a chunk line is too large")]
    TooLarge,
    /// An extension has a control character.
    #[error("a chunk extension is malformed")]
    Extension,
    /// A line, or a chunk, does not end with CR LF.
    #[error("a chunk does not end with CR LF")]
    LineEnd,
    /// A trailer is not `name: value`, is folded, or trailers are over their bound.
    #[error("a trailer field is malformed")]
    Trailer,
}

/// Follows one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    place: Place,
    /// The size so far, then what is left of the chunk.
    left: u64,
    digits: u8,
    line: u32,
    extensions: u32,
    trailers: usize,
    fields: usize,
}

/// What the next byte must be a part of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    Extension,
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    LastLf,
    Whole,
}

impl Chunks {
    /// Whether the body's end has passed.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.place == Place::Whole
    }

    /// Takes note of bytes that have come; says how many of them belong to the body.
    ///
    /// # Errors
    /// At the first byte that cannot stand where it does.
    pub fn passed(&mut self, bytes: &[u8]) -> Result<usize, ChunkFault> {
        let mut at = 0;
        while at < bytes.len() && self.place != Place::Whole {
            if self.place == Place::Data {
                let step = (bytes.len() - at).min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= step as u64;
                at += step;
                if self.left == 0 {
                    self.place = Place::DataCr;
                }
            } else {
                self.place = self.next(bytes[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn next(&mut self, byte: u8) -> Result<Place, ChunkFault> {
        match self.place {
            Place::Size => self.size(byte),
            Place::Extension => self.extension(byte),
            Place::SizeEnd => {
                expect(byte, b'\n', Place::Size)?;
                let last = self.left == 0;
                self.digits = 0;
                self.line = 0;
                Ok(if last { Place::TrailerStart } else { Place::Data })
            }
            Place::DataCr => expect(byte, b'\r', Place::DataLf),
            Place::DataLf => expect(byte, b'\n', Place::Size),
            Place::TrailerStart | Place::TrailerName | Place::TrailerValue | Place::TrailerEnd => {
                self.trailer(byte)
            }
            Place::LastLf => expect(byte, b'\n', Place::Whole),
            // Not reached: data is skipped as a whole, and nothing follows the end.
            Place::Data | Place::Whole => Ok(self.place),
        }
    }

    fn size(&mut self, byte: u8) -> Result<Place, ChunkFault> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            if self.digits == MAX_DIGITS {
                return Err(ChunkFault::TooLarge);
            }
            self.digits += 1;
            self.left = (self.left << 4) | u64::from(digit);
            return Ok(Place::Size);
        }
        match byte {
            _ if self.digits == 0 => Err(ChunkFault::Size),
            b'\r' => Ok(Place::SizeEnd),
            b';' => Ok(Place::Extension),
            b'\n' => Err(ChunkFault::LineEnd),
            _ => Err(ChunkFault::Size),
        }
    }

    fn extension(&mut self, byte: u8) -> Result<Place, ChunkFault> {
        self.line += 1;
        self.extensions += 1;
        if self.line > MAX_LINE_BYTES || self.extensions > MAX_EXTENSION_BYTES {
            return Err(ChunkFault::TooLarge);
        }
        match byte {
            b'\r' => Ok(Place::SizeEnd),
            b'\n' => Err(ChunkFault::LineEnd),
            b'\t' | 0x20..=0x7e => Ok(Place::Extension),
            _ => Err(ChunkFault::Extension),
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<Place, ChunkFault> {
        self.trailers += 1;
        if self.place == Place::TrailerEnd {
            self.fields += 1;
        }
        if self.trailers > MAX_REQUEST_BYTES || self.fields > MAX_FIELDS {
            return Err(ChunkFault::Trailer);
        }
        match (self.place, byte) {
            (Place::TrailerStart, b'\r') => Ok(Place::LastLf),
            (Place::TrailerName, b':') => Ok(Place::TrailerValue),
            (Place::TrailerStart | Place::TrailerName, _) if super::head::is_token(byte) => {
                Ok(Place::TrailerName)
            }
            (Place::TrailerValue, b'\r') => Ok(Place::TrailerEnd),
            (Place::TrailerValue, b'\t' | 0x20..=0x7e | 0x80..) => Ok(Place::TrailerValue),
            (Place::TrailerEnd, b'\n') => Ok(Place::TrailerStart),
            _ => Err(ChunkFault::Trailer),
        }
    }
}

fn expect(byte: u8, wanted: u8, then: Place) -> Result<Place, ChunkFault> {
    if byte == wanted { Ok(then) } else { Err(ChunkFault::LineEnd) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Result<Option<usize>, ChunkFault> {
        let mut chunks = Chunks::default();
        let count = chunks.passed(text)?;
        Ok(chunks.is_whole().then_some(count))
    }

    #[test]
    fn good_bodies_end_where_they_end() {
        for body in [
            &b"0\r\n\r\n"[..],
            b"3\r\nabc\r\n0\r\n\r\n",
            b"00A;x=\"y z\"\r\n0123456789\r\n0;last\r\n\r\n",
            b"1\r\n\n\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n",
        ] {
            let more = [body, b"GET / HTTP/1.1\r\n"].concat();
            assert_eq!(read(&more), Ok(Some(body.len())), "{}", String::from_utf8_lossy(body));
        }
        assert_eq!(read(b"3\r\nab"), Ok(None));
    }

    #[test]
    fn every_way_to_be_ambiguous_is_refused() {
        let long = format!("1;{}\r\n", "x".repeat(300));
        let many = format!("{}0\r\n\r\n", format!("1;{}\r\na\r\n", "x".repeat(200)).repeat(90));
        let table: [(&[u8], ChunkFault); 24] = [
            (b"\r\nGET /", ChunkFault::Size),
            (b";x\r\n\r\n", ChunkFault::Size),
            (b" 3\r\nabc", ChunkFault::Size),
            (b"3 \r\nabc", ChunkFault::Size),
            (b"+3\r\nabc", ChunkFault::Size),
            (b"-1\r\n", ChunkFault::Size),
            (b"0x3\r\nabc", ChunkFault::Size),
            (b"3_\r\nabc", ChunkFault::Size),
            (b"zz\r\n", ChunkFault::Size),
            (b"3\0\r\n", ChunkFault::Size),
            (b"3\nabc", ChunkFault::LineEnd),
            (b"3\r\rabc", ChunkFault::LineEnd),
            (b"3\r\nabcX\r\n", ChunkFault::LineEnd),
            (b"3\r\nabc\n0\r\n", ChunkFault::LineEnd),
            (b"3;a\nb\r\n", ChunkFault::LineEnd),
            (b"3;a\0\r\n", ChunkFault::Extension),
            (b"1000000000000000\r\n", ChunkFault::TooLarge),
            (long.as_bytes(), ChunkFault::TooLarge),
            (many.as_bytes(), ChunkFault::TooLarge),
            (b"0\r\n\rX", ChunkFault::LineEnd),
            (b"0\r\nX : y\r\n\r\n", ChunkFault::Trailer),
            (b"0\r\nX: y\n\r\n", ChunkFault::Trailer),
            (b"0\r\nX: y\r\n z\r\n\r\n", ChunkFault::Trailer),
            (b"0\r\n\n", ChunkFault::Trailer),
        ];
        for (body, fault) in table {
            assert_eq!(read(body), Err(fault), "{}", String::from_utf8_lossy(&body[..body.len().min(60)]));
        }
        let trailers = |field: &str, count| read(format!("0\r\n{}\r\n", field.repeat(count)).as_bytes());
        let long = format!("X: {}\r\n", "y".repeat(1000));
        assert!(trailers("X: y\r\n", 100).is_ok() && trailers(&long, 16).is_ok());
        assert_eq!(trailers("X: y\r\n", 101), Err(ChunkFault::Trailer));
        assert_eq!(trailers(&long, 17), Err(ChunkFault::Trailer));
    }

    proptest! {
        #[test]
        fn the_end_is_the_same_however_the_bytes_arrive(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..400), 0..6),
            step in 1usize..97,
        ) {
            let mut body = Vec::new();
            for chunk in chunks {
                body.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                body.extend(chunk);
                body.extend(b"\r\n");
            }
            body.extend(b"0\r\n\r\n");
            let end = body.len();
            body.extend(b"5\r\nmore");
            let mut scanner = Chunks::default();
            let mut passed = 0;
            for piece in body.chunks(step) {
                passed += scanner.passed(piece).expect("good");
                if scanner.is_whole() {
                    break;
                }
            }
            prop_assert_eq!((passed, scanner.is_whole()), (end, true));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _either_way = Chunks::default().passed(&bytes);
        }
    }
}
