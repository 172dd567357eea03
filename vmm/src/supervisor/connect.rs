//! Streams to the guest's vsock ports, and the requests that the supervisor itself has for the agent.

use crate::machine::control::VSOCK;
use model::agent::{
    AGENT_PORT, AgentReply, AgentRequest, FrameKind, HEADER_BYTES, MAX_HOST_KEY_BYTES, MAX_HOST_KEYS,
};
use std::io;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest wait for the guest to accept: its kernel answers, or nobody listens.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// Longest line with which the vsock device answers: "OK " and a port number.
const MAX_LINE: usize = 32;
/// Largest reply of the agent that is read here: all host keys, in quotes.
const MAX_REPLY: usize = MAX_HOST_KEYS * (MAX_HOST_KEY_BYTES + 16);
/// Longest wait for host keys, which are some small files.
const HOST_KEYS_WAIT: Duration = Duration::from_secs(10);

/// Why there is no stream.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The vsock device is not there (yet).
    #[error("the VM's vsock device cannot be reached")]
    Device(#[source] io::Error),
    /// Somebody else answers in its name.
    #[error("what answers is not the VM's process")]
    Stranger,
    /// The guest refused or nobody listens.
    #[error("nobody in the guest listens on vsock port {0}")]
    NoListener(u32),
    /// No answer in time.
    #[error("the guest did not answer on vsock port {0} within {CONNECT_WAIT:?}")]
    NoAnswer(u32),
}

/// Why the agent did not do it.
#[derive(Debug, Error)]
pub enum AgentError {
    /// No stream to it.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The stream broke.
    #[error("the agent's connection broke")]
    Io(#[source] io::Error),
    /// It answered something that does not fit.
    #[error("the agent gave an answer that does not fit")]
    Unexpected,
    /// It refused.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// No answer in time.
    #[error("the agent did not answer within {HOST_KEYS_WAIT:?}")]
    Late,
}

/// A stream to a port of the guest of the VM with this folder and process.
///
/// # Errors
/// See [`ConnectError`].
pub async fn to_port(folder: &Path, pid: i32, port: u32) -> Result<UnixStream, ConnectError> {
    timeout(CONNECT_WAIT, handshake(folder, pid, port)).await.map_err(|_| ConnectError::NoAnswer(port))?
}

/// Asks the agent to power the guest off; returns when it has agreed.
///
/// # Errors
/// See [`AgentError`].
pub async fn power_off(folder: &Path, pid: i32) -> Result<(), AgentError> {
    match ask(folder, pid, &AgentRequest::PowerOff).await? {
        AgentReply::Done => Ok(()),
        other => Err(unfit(other)),
    }
}

/// Asks the agent for the SSH host keys of the guest, which tells what it likes: no more than it could show in its sshd.
///
/// # Errors
/// See [`AgentError`].
pub async fn host_keys(folder: &Path, pid: i32) -> Result<Vec<String>, AgentError> {
    let asking = ask(folder, pid, &AgentRequest::HostKeys);
    match timeout(HOST_KEYS_WAIT, asking).await.map_err(|_| AgentError::Late)?? {
        AgentReply::HostKeys { keys } if keys.len() <= MAX_HOST_KEYS => Ok(keys),
        other => Err(unfit(other)),
    }
}

fn unfit(reply: AgentReply) -> AgentError {
    match reply {
        AgentReply::Error { message, .. } => AgentError::Refused(message),
        AgentReply::Health { .. }
        | AgentReply::ExecDone { .. }
        | AgentReply::File { .. }
        | AgentReply::Directory { .. }
        | AgentReply::HostKeys { .. }
        | AgentReply::Done
        | AgentReply::Stat(_) => AgentError::Unexpected,
    }
}

async fn ask(folder: &Path, pid: i32, request: &AgentRequest) -> Result<AgentReply, AgentError> {
    let mut stream = to_port(folder, pid, AGENT_PORT).await?;
    let payload = serde_json::to_vec(request).map_err(|_| AgentError::Unexpected)?;
    let header = FrameKind::Message.header(payload.len()).map_err(|_| AgentError::Unexpected)?;
    stream.write_all(&[header.as_slice(), &payload].concat()).await.map_err(AgentError::Io)?;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await.map_err(AgentError::Io)?;
    let (kind, length) = FrameKind::parse(header).map_err(|_| AgentError::Unexpected)?;
    if kind != FrameKind::Message || length > MAX_REPLY {
        return Err(AgentError::Unexpected);
    }
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.map_err(AgentError::Io)?;
    serde_json::from_slice(&payload).map_err(|_| AgentError::Unexpected)
}

async fn handshake(folder: &Path, pid: i32, port: u32) -> Result<UnixStream, ConnectError> {
    let mut stream = UnixStream::connect(folder.join(VSOCK)).await.map_err(ConnectError::Device)?;
    // The socket is where the VM's process put it; it must not lead to another VM's.
    if stream.peer_cred().map_err(ConnectError::Device)?.pid() != Some(pid) {
        return Err(ConnectError::Stranger);
    }
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await.map_err(ConnectError::Device)?;
    let mut line = Vec::new();
    // Byte by byte: what follows the line belongs to the caller.
    while line.last() != Some(&b'\n') && line.len() < MAX_LINE {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(_) => return Err(ConnectError::NoListener(port)),
        }
    }
    if line.starts_with(b"OK ") { Ok(stream) } else { Err(ConnectError::NoListener(port)) }
}
