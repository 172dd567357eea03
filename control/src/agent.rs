//! One operation with the agent inside a VM, over one stream: see [`model::agent`] for what is said.
//!
//! The guest is not trusted: what it sends is bounded, and it may end at any point.

use bytes::Bytes;
use model::agent::{
    AgentErrorKind, AgentReply, AgentRequest, DirectoryEntry, FrameError, FrameKind, HEADER_BYTES,
    MAX_DATA_BYTES, MAX_FILE_BYTES,
};
use std::io;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Why the operation came to nothing.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The stream broke: the VM went down, or its agent did.
    #[error("the connection to the VM's agent broke: {0}")]
    Stream(#[from] io::Error),
    /// A frame is against the rules.
    #[error("the VM's agent sent a bad frame: {0}")]
    Frame(#[from] FrameError),
    /// A message cannot be read.
    #[error("the VM's agent sent a message that cannot be read: {0}")]
    Malformed(#[source] serde_json::Error),
    /// A frame or reply that does not belong here, or more than was announced.
    #[error("the VM's agent answered out of order")]
    Unexpected,
    /// The agent says no.
    #[error("{message}")]
    Refused {
        /// Which kind of no.
        kind: AgentErrorKind,
        /// What a person reads.
        message: String,
    },
}

/// How a command ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutcome {
    /// At most the asked bytes.
    pub stdout: Vec<u8>,
    /// At most the asked bytes.
    pub stderr: Vec<u8>,
    /// Absent when the timeout ended it.
    pub status: Option<i32>,
    /// The timeout ended it.
    pub timed_out: bool,
    /// Some output is lost.
    pub truncated: bool,
}

/// What stands at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file's bytes.
    File(Vec<u8>),
    /// A directory's entries.
    Directory(Vec<DirectoryEntry>),
}

/// Runs a command. Output goes into `outcome` as it comes, so that a caller who gives up has what there was.
///
/// # Errors
/// See [`AgentError`].
pub async fn exec<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    command: &str,
    user: Option<&str>,
    timeout_milliseconds: Option<u64>,
    output_bytes: u64,
    outcome: &mut ExecOutcome,
) -> Result<(), AgentError> {
    let request = AgentRequest::Exec {
        command: command.to_owned(),
        user: user.map(str::to_owned),
        timeout_milliseconds,
        output_bytes,
    };
    ask(stream, &request).await?;
    loop {
        let (kind, payload) = receive(stream).await?;
        match kind {
            FrameKind::Stdout => keep(&mut outcome.stdout, &payload, output_bytes, &mut outcome.truncated),
            FrameKind::Stderr => keep(&mut outcome.stderr, &payload, output_bytes, &mut outcome.truncated),
            FrameKind::Message => {
                let AgentReply::ExecDone { status, timed_out, truncated } = reply(&payload)? else {
                    return Err(AgentError::Unexpected);
                };
                outcome.status = status;
                outcome.timed_out = timed_out;
                outcome.truncated |= truncated;
                return Ok(());
            }
            FrameKind::Data | FrameKind::End => return Err(AgentError::Unexpected),
        }
    }
}

/// Reads a file whole, or lists a directory.
///
/// # Errors
/// See [`AgentError`].
pub async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    path: &str,
    user: Option<&str>,
) -> Result<Content, AgentError> {
    let request = AgentRequest::Read { path: path.to_owned(), user: user.map(str::to_owned) };
    ask(stream, &request).await?;
    let (FrameKind::Message, payload) = receive(stream).await? else { return Err(AgentError::Unexpected) };
    match reply(&payload)? {
        AgentReply::Directory { entries } => return Ok(Content::Directory(entries)),
        AgentReply::File { .. } => {}
        _ => return Err(AgentError::Unexpected),
    }
    let mut content = Vec::new();
    loop {
        let (kind, payload) = receive(stream).await?;
        match kind {
            FrameKind::Data if (content.len() + payload.len()) as u64 <= MAX_FILE_BYTES => {
                content.extend_from_slice(&payload);
            }
            FrameKind::End => return Ok(Content::File(content)),
            // It failed half way.
            FrameKind::Message => {
                reply(&payload)?;
                return Err(AgentError::Unexpected);
            }
            FrameKind::Data | FrameKind::Stdout | FrameKind::Stderr => return Err(AgentError::Unexpected),
        }
    }
}

/// Writes a file whole.
///
/// # Errors
/// See [`AgentError`].
pub async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    path: &str,
    user: Option<&str>,
    mode: Option<u32>,
    content: &[u8],
) -> Result<(), AgentError> {
    let request = AgentRequest::Write {
        path: path.to_owned(),
        user: user.map(str::to_owned),
        mode,
        size: content.len() as u64,
    };
    // An agent that refuses answers before it has everything, and may close; its answer says more than our broken
    // pipe does.
    let sent = send_file(stream, &request, content).await;
    match (receive(stream).await, sent) {
        (Ok((FrameKind::Message, payload)), _) => match reply(&payload)? {
            AgentReply::Done => Ok(()),
            _ => Err(AgentError::Unexpected),
        },
        (Ok(_), _) => Err(AgentError::Unexpected),
        (Err(_), Err(sending)) => Err(sending),
        (Err(receiving), Ok(())) => Err(receiving),
    }
}

/// Makes the root file system as large as its disk.
///
/// # Errors
/// See [`AgentError`].
pub async fn grow_disk<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), AgentError> {
    done(stream, &AgentRequest::GrowDisk).await
}

/// Makes memory free that only caches files.
///
/// # Errors
/// See [`AgentError`].
pub async fn release_memory<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> Result<(), AgentError> {
    done(stream, &AgentRequest::ReleaseMemory).await
}

async fn done<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    request: &AgentRequest,
) -> Result<(), AgentError> {
    ask(stream, request).await?;
    match receive(stream).await? {
        (FrameKind::Message, payload) => match reply(&payload)? {
            AgentReply::Done => Ok(()),
            _ => Err(AgentError::Unexpected),
        },
        _ => Err(AgentError::Unexpected),
    }
}

async fn send_file<S: AsyncWrite + Unpin>(
    stream: &mut S,
    request: &AgentRequest,
    content: &[u8],
) -> Result<(), AgentError> {
    ask(stream, request).await?;
    for piece in content.chunks(MAX_DATA_BYTES) {
        send(stream, FrameKind::Data, piece).await?;
    }
    send(stream, FrameKind::End, &[]).await
}

async fn ask<S: AsyncWrite + Unpin>(stream: &mut S, request: &AgentRequest) -> Result<(), AgentError> {
    let bytes = serde_json::to_vec(request).map_err(AgentError::Malformed)?;
    send(stream, FrameKind::Message, &bytes).await
}

async fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    kind: FrameKind,
    payload: &[u8],
) -> Result<(), AgentError> {
    stream.write_all(&kind.header(payload.len())?).await?;
    Ok(stream.write_all(payload).await?)
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(FrameKind, Bytes), AgentError> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let (kind, length) = FrameKind::parse(header)?;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok((kind, payload.into()))
}

fn reply(payload: &[u8]) -> Result<AgentReply, AgentError> {
    match serde_json::from_slice(payload).map_err(AgentError::Malformed)? {
        AgentReply::Error { kind, message } => Err(AgentError::Refused { kind, message }),
        other => Ok(other),
    }
}

fn keep(output: &mut Vec<u8>, piece: &[u8], bound: u64, truncated: &mut bool) {
    let room = usize::try_from(bound).unwrap_or(usize::MAX).saturating_sub(output.len());
    *truncated |= piece.len() > room;
    output.extend_from_slice(&piece[..piece.len().min(room)]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::duplex;

    async fn script(far: &mut (impl AsyncWrite + Unpin), frames: &[(FrameKind, &[u8])]) {
        for (kind, payload) in frames {
            send(far, *kind, payload).await.expect("send");
        }
    }

    fn json(reply: &AgentReply) -> Vec<u8> {
        serde_json::to_vec(reply).expect("json")
    }

    #[tokio::test]
    async fn output_is_kept_apart_and_bounded() {
        let (mut near, mut far) = duplex(1 << 20);
        let done = json(&AgentReply::ExecDone { status: Some(3), timed_out: false, truncated: false });
        let frames = [
            (FrameKind::Stdout, b"12345".as_slice()),
            (FrameKind::Stderr, b"err"),
            (FrameKind::Stdout, b"678"),
            (FrameKind::Message, &done),
        ];
        script(&mut far, &frames).await;
        let mut outcome = ExecOutcome::default();
        exec(&mut near, "x", None, None, 6, &mut outcome).await.expect("done");
        assert_eq!((outcome.stdout.as_slice(), outcome.stderr.as_slice()), (&b"123456"[..], &b"err"[..]));
        assert_eq!((outcome.status, outcome.truncated), (Some(3), true));
    }

    #[tokio::test]
    async fn a_refusal_is_heard_although_the_stream_closes() {
        let (mut near, mut far) = duplex(64);
        let refusal =
            json(&AgentReply::Error { kind: AgentErrorKind::TooLarge, message: "too large".to_owned() });
        let agent = tokio::spawn(async move {
            receive(&mut far).await.expect("the request");
            send(&mut far, FrameKind::Message, &refusal).await.expect("answer");
        });
        let answer = write(&mut near, "/a", None, None, &[0; 100_000]).await;
        agent.await.expect("agent");
        assert!(
            matches!(answer, Err(AgentError::Refused { kind: AgentErrorKind::TooLarge, .. })),
            "{answer:?}"
        );
    }

    #[tokio::test]
    async fn a_lying_agent_is_an_error() {
        for frames in [
            vec![(FrameKind::End, b"".as_slice())],
            vec![(FrameKind::Message, b"{not json")],
            vec![(FrameKind::Message, br#"{"reply":"done"}"#)],
            vec![(FrameKind::Message, br#"{"reply":"file","size":3}"#), (FrameKind::Data, b"ab")],
        ] {
            let (mut near, mut far) = duplex(1 << 20);
            script(&mut far, &frames).await;
            drop(far);
            assert!(read(&mut near, "/a", None).await.is_err(), "{frames:?}");
        }
        let (mut near, mut far) = duplex(1 << 10);
        far.write_all(&[0, 0xff, 0xff, 0xff, 0xff]).await.expect("write");
        assert!(matches!(read(&mut near, "/a", None).await, Err(AgentError::Frame(_))));
    }
}
