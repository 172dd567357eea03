//! Frames of [`model::agent`] on a byte stream.

use model::agent::{AgentErrorKind, AgentReply, FrameError, FrameKind, HEADER_BYTES};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use thiserror::Error;

/// Why a frame cannot be had or sent. The connection is of no more use.
#[derive(Debug, Error)]
pub enum WireError {
    /// The stream broke, or its time was over.
    #[error("cannot read a frame")]
    Read(#[source] io::Error),
    /// The stream broke, or the other side takes nothing.
    #[error("cannot send a frame")]
    Write(#[source] io::Error),
    /// The header makes no sense.
    #[error("bad frame header")]
    Header(#[from] FrameError),
    /// The stream ended in the middle of a frame.
    #[error("the stream ended in the middle of a frame")]
    Short,
    /// Another kind of frame than the protocol has here.
    #[error("unexpected {0:?} frame")]
    Unexpected(FrameKind),
    /// The message is not the expected JSON.
    #[error("cannot understand a message")]
    Decode(#[source] serde_json::Error),
    /// The message cannot be written as JSON.
    #[error("cannot encode a message")]
    Encode(#[source] serde_json::Error),
}

/// Reads one frame into `payload`; nothing when the stream ended between frames.
///
/// # Errors
/// See [`WireError`].
pub fn read_frame(stream: &mut impl Read, payload: &mut Vec<u8>) -> Result<Option<FrameKind>, WireError> {
    payload.clear();
    let mut header = Vec::with_capacity(HEADER_BYTES);
    stream.take(HEADER_BYTES as u64).read_to_end(&mut header).map_err(WireError::Read)?;
    if header.is_empty() {
        return Ok(None);
    }
    let header: [u8; HEADER_BYTES] = header.try_into().map_err(|_| WireError::Short)?;
    let (kind, length) = FrameKind::parse(header)?;
    // The buffer grows with what really comes, not with what the header promises.
    stream.take(length as u64).read_to_end(payload).map_err(WireError::Read)?;
    if payload.len() == length { Ok(Some(kind)) } else { Err(WireError::Short) }
}

/// Reads one message; nothing when the stream ended before it.
///
/// # Errors
/// See [`WireError`].
pub fn read_message<M: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<M>, WireError> {
    let mut payload = Vec::new();
    match read_frame(stream, &mut payload)? {
        None => Ok(None),
        Some(FrameKind::Message) => serde_json::from_slice(&payload).map(Some).map_err(WireError::Decode),
        Some(other @ (FrameKind::Data | FrameKind::Stdout | FrameKind::Stderr | FrameKind::End)) => {
            Err(WireError::Unexpected(other))
        }
    }
}

/// A frame as bytes.
///
/// # Errors
/// When the payload is longer than its kind allows.
pub fn encode(kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&kind.header(payload.len())?);
    frame.extend_from_slice(payload);
    Ok(frame)
}

/// Sends one frame.
///
/// # Errors
/// See [`WireError`].
pub fn write_frame(stream: &mut impl Write, kind: FrameKind, payload: &[u8]) -> Result<(), WireError> {
    stream.write_all(&encode(kind, payload)?).map_err(WireError::Write)
}

/// Sends one message.
///
/// # Errors
/// See [`WireError`].
pub fn write_message(stream: &mut impl Write, message: &impl Serialize) -> Result<(), WireError> {
    let text = serde_json::to_vec(message).map_err(WireError::Encode)?;
    write_frame(stream, FrameKind::Message, &text)
}

/// Sends the closing reply; one that is too long is replaced by an error that says so.
///
/// # Errors
/// See [`WireError`].
pub fn write_reply(stream: &mut impl Write, reply: &AgentReply) -> Result<(), WireError> {
    match write_message(stream, reply) {
        Err(WireError::Header(FrameError::TooLong { got, allowed })) => {
            let message = format!("the answer has {got} bytes; {allowed} are allowed");
            write_message(stream, &AgentReply::Error { kind: AgentErrorKind::TooLarge, message })
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::agent::{AgentRequest, MAX_MESSAGE_BYTES};
    use proptest::prelude::*;

    #[test]
    fn frames_survive_and_an_end_between_them_is_no_error() {
        let mut bytes = encode(FrameKind::Stdout, b"hello").expect("frame");
        bytes.extend(encode(FrameKind::End, b"").expect("frame"));
        let (mut stream, mut payload) = (&bytes[..], Vec::new());
        assert_eq!(read_frame(&mut stream, &mut payload).expect("first"), Some(FrameKind::Stdout));
        assert_eq!(payload, b"hello");
        assert_eq!(read_frame(&mut stream, &mut payload).expect("second"), Some(FrameKind::End));
        assert_eq!(read_frame(&mut stream, &mut payload).expect("end"), None);
    }

    #[test]
    fn a_reply_over_the_bound_says_so() {
        let mut bytes = Vec::new();
        let message = "x".repeat(MAX_MESSAGE_BYTES);
        write_reply(&mut bytes, &AgentReply::Error { kind: AgentErrorKind::Internal, message })
            .expect("sent");
        let reply: Option<AgentReply> = read_message(&mut &bytes[..]).expect("read");
        assert!(matches!(reply, Some(AgentReply::Error { kind: AgentErrorKind::TooLarge, .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_hoard(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut payload = Vec::new();
            let mut stream = &bytes[..];
            while let Ok(Some(_)) = read_frame(&mut stream, &mut payload) {}
            prop_assert!(payload.capacity() <= 1024);
            prop_assert!(read_message::<AgentRequest>(&mut &bytes[..]).is_err() || bytes.is_empty());
        }

        #[test]
        fn a_cut_frame_is_short(payload in proptest::collection::vec(any::<u8>(), 1..200), cut in 1usize..205) {
            let frame = encode(FrameKind::Data, &payload).expect("frame");
            let cut = cut.min(frame.len() - 1);
            let got = read_frame(&mut &frame[..cut], &mut Vec::new());
            prop_assert!(matches!(got, Err(WireError::Short)));
        }
    }
}
