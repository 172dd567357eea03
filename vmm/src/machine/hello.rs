//! The agent's report at boot: it says hello, is told who the VM is, applies that and says so.
//!
//! ```text
//! AwaitHello ──AgentHello──► AwaitDone ──Done──► Ready ──end──► gone
//!      └── anything else, an error, the end ──► gone
//! ```

use model::agent::{
    AgentHello, AgentReply, BootConfig, ENTROPY_BYTES, FrameError, FrameKind, HEADER_BYTES, Identity,
    Restored,
};
use rustix::rand::{GetRandomFlags, getrandom};
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Largest message that is taken here; hellos and replies have a few hundred bytes.
const MAX_BYTES: usize = 16 << 10;

/// Why the conversation ends.
#[derive(Debug, Error)]
pub enum HelloError {
    /// The agent closed.
    #[error("the agent closed the connection")]
    Closed,
    /// The connection broke.
    #[error("the agent's connection broke")]
    Io(#[source] io::Error),
    /// A frame with a bad header.
    #[error("the agent sent a bad frame")]
    Frame(#[source] FrameError),
    /// A frame that has no place here.
    #[error("the agent sent a frame of kind {0:?} and {1} bytes where none is expected")]
    Unexpected(FrameKind, usize),
    /// A message that cannot be read, or written.
    #[error("the agent's message cannot be read")]
    Message(#[source] serde_json::Error),
    /// No entropy for a restored guest.
    #[error("the host gives no random numbers")]
    Random(#[source] io::Error),
    /// The agent could not apply its configuration.
    #[error("the agent could not apply its configuration: {0}")]
    Refused(String),
}

/// What an agent is answered.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Who the VM is.
    pub config: &'a BootConfig,
    /// Whose state the machine went on from, if it did not boot.
    pub restored: Option<Identity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    AwaitHello,
    AwaitDone,
    Ready,
}

/// One connection of the agent. The stream is non-blocking.
#[derive(Debug)]
pub struct Hello {
    stream: UnixStream,
    stage: Stage,
    bytes: Vec<u8>,
}

impl Hello {
    /// A connection that was just accepted.
    ///
    /// # Errors
    /// When it cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, stage: Stage::AwaitHello, bytes: Vec::new() })
    }

    /// The connection.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Takes what has come; true when the agent became ready by it.
    ///
    /// # Errors
    /// See [`HelloError`]; the connection is then of no more use.
    pub fn advance(&mut self, boot: &Answer<'_>) -> Result<bool, HelloError> {
        let closed = self.fill()?;
        let was_ready = self.stage == Stage::Ready;
        while let Some(message) = self.take_message()? {
            self.step(&message, boot)?;
        }
        if closed { Err(HelloError::Closed) } else { Ok(!was_ready && self.stage == Stage::Ready) }
    }

    fn step(&mut self, message: &[u8], boot: &Answer<'_>) -> Result<(), HelloError> {
        match self.stage {
            Stage::AwaitHello => {
                let hello: AgentHello = parse(message)?;
                tracing::info!(version = hello.version, boot_id = hello.boot_id, "the agent reports");
                self.stage = Stage::AwaitDone;
                self.answer(boot)
            }
            Stage::AwaitDone => match parse(message)? {
                AgentReply::Done => {
                    self.stage = Stage::Ready;
                    Ok(())
                }
                AgentReply::Error { message, .. } => Err(HelloError::Refused(message)),
                AgentReply::Health { .. }
                | AgentReply::ExecDone { .. }
                | AgentReply::File { .. }
                | AgentReply::Directory { .. }
                | AgentReply::HostKeys { .. }
                | AgentReply::Stat(_) => Err(HelloError::Unexpected(FrameKind::Message, message.len())),
            },
            Stage::Ready => Err(HelloError::Unexpected(FrameKind::Message, message.len())),
        }
    }

    fn answer(&mut self, boot: &Answer<'_>) -> Result<(), HelloError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(0);
        let restored = boot.restored.map(restored).transpose()?;
        let boot = BootConfig { unix_nanoseconds, restored, ..boot.config.clone() };
        let payload = serde_json::to_vec(&boot).map_err(HelloError::Message)?;
        let header = FrameKind::Message.header(payload.len()).map_err(HelloError::Frame)?;
        // A new connection's buffer takes this whole; a peer for whom it does not is dropped.
        self.stream.write_all(&[header.as_slice(), &payload].concat()).map_err(HelloError::Io)
    }

    /// Reads what is there; true at the end of the stream.
    fn fill(&mut self) -> Result<bool, HelloError> {
        let mut piece = [0; 4096];
        while self.bytes.len() <= HEADER_BYTES + MAX_BYTES {
            match self.stream.read(&mut piece) {
                Ok(0) => return Ok(true),
                Ok(count) => self.bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HelloError::Io(error)),
            }
        }
        Ok(false)
    }

    fn take_message(&mut self) -> Result<Option<Vec<u8>>, HelloError> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let (kind, length) = FrameKind::parse(*header).map_err(HelloError::Frame)?;
        if kind != FrameKind::Message || length > MAX_BYTES {
            return Err(HelloError::Unexpected(kind, length));
        }
        let Some(message) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.bytes.drain(..HEADER_BYTES + length);
        Ok(Some(message))
    }
}

/// Entropy that no other guest gets.
fn restored(identity: Identity) -> Result<Restored, HelloError> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    // So few bytes come whole (getrandom(2)).
    getrandom(entropy.as_mut_slice(), GetRandomFlags::empty()).map_err(|e| HelloError::Random(e.into()))?;
    Ok(Restored { entropy, identity })
}

fn parse<T: DeserializeOwned>(message: &[u8]) -> Result<T, HelloError> {
    serde_json::from_slice(message).map_err(HelloError::Message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static BOOT: BootConfig =
        BootConfig { hostname: String::new(), network: None, unix_nanoseconds: 0, restored: None };

    fn boot() -> Answer<'static> {
        Answer { config: &BOOT, restored: Some(Identity::New) }
    }

    fn frame<T: serde::Serialize>(message: &T) -> Vec<u8> {
        let payload = serde_json::to_vec(message).expect("json");
        [FrameKind::Message.header(payload.len()).expect("short").as_slice(), &payload].concat()
    }

    fn pair() -> (UnixStream, Hello) {
        let (agent, host) = UnixStream::pair().expect("pair");
        (agent, Hello::new(host).expect("hello"))
    }

    #[test]
    fn an_agent_becomes_ready_and_is_told_the_time() {
        let (mut agent, mut hello) = pair();
        let bytes = frame(&AgentHello { version: "1".into(), boot_id: "b".into() });
        agent.write_all(&bytes[..7]).expect("half");
        assert!(!hello.advance(&boot()).expect("waits"));
        agent.write_all(&bytes[7..]).expect("rest");
        assert!(!hello.advance(&boot()).expect("answers"));
        let mut header = [0; HEADER_BYTES];
        agent.read_exact(&mut header).expect("header");
        let (_, length) = FrameKind::parse(header).expect("good");
        let mut payload = vec![0; length];
        agent.read_exact(&mut payload).expect("payload");
        let told: BootConfig = serde_json::from_slice(&payload).expect("boot");
        assert!(told.unix_nanoseconds > 1_600_000_000_000_000_000);
        let restored = told.restored.expect("it is told that it is restored");
        assert_eq!((restored.entropy.len(), restored.identity), (ENTROPY_BYTES, Identity::New));
        assert_ne!(restored.entropy, vec![0; ENTROPY_BYTES]);
        agent.write_all(&frame(&AgentReply::Done)).expect("done");
        assert!(hello.advance(&boot()).expect("ready"));
        assert!(!hello.advance(&boot()).expect("ready only once"));
        drop(agent);
        assert!(matches!(hello.advance(&boot()), Err(HelloError::Closed)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_an_agent_ready(bytes in proptest::collection::vec(any::<u8>(), 0..60_000)) {
            let (mut agent, mut hello) = pair();
            agent.set_nonblocking(true).expect("non-blocking");
            for piece in bytes.chunks(9_000) {
                if agent.write_all(piece).is_err() {
                    break;
                }
                match hello.advance(&boot()) {
                    Ok(ready) => prop_assert!(!ready),
                    Err(_) => break,
                }
                prop_assert!(hello.bytes.len() <= HEADER_BYTES + MAX_BYTES + 4096);
            }
        }
    }
}
