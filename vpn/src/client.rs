//! What other processes ask of vpn: which sessions live.
//!
//! One request and one or more replies per packet over the socket of [`model::config::Places::vpn_socket`], for root
//! alone.

use feed::wire::{Wire, WireError};
use model::id::{VpcId, WireGuardSessionId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

/// Longest that a caller waits for each reply; the loop answers between two batches of packets.
const WAIT: Duration = Duration::from_secs(5);
/// Sessions in one reply: some 200 bytes each, and a message has a bound.
pub const SESSIONS_A_REPLY: usize = 256;

/// All that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum VpnRequest {
    /// The sessions of one network, or of all.
    Sessions {
        /// The network.
        vpc: Option<VpcId>,
    },
}

/// What vpn answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum VpnReply {
    /// Some of the sessions, at most [`SESSIONS_A_REPLY`].
    Sessions {
        /// These.
        sessions: Vec<SessionStatus>,
        /// Another reply follows.
        more: bool,
    },
    /// No.
    Refused {
        /// What a person reads.
        message: String,
    },
}

/// A session, as the server has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Which one.
    pub id: WireGuardSessionId,
    /// What its client is doing.
    pub state: SessionState,
    /// Where its client was last, while it is live.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since something authentic came, or since the server knows the session.
    pub silent_seconds: u64,
    /// Seconds since the last handshake, while it is live.
    pub handshake_seconds: Option<u64>,
    /// Bytes of packets from the client since it came last.
    pub received_bytes: u64,
    /// Bytes of packets to it.
    pub sent_bytes: u64,
}

/// What a session's client is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// It is not there.
    Registered,
    /// It has keys.
    Live,
    /// It was silent for too long, and is let in no more.
    Idled,
}

/// Why vpn did not answer.
#[derive(Debug, Error)]
pub enum VpnError {
    /// It is not there, or went away.
    #[error("the WireGuard process cannot be reached: {0}")]
    Unreachable(#[from] WireError),
    /// It did not answer in time.
    #[error("the WireGuard process did not answer within {WAIT:?}")]
    NoAnswer,
    /// It said no.
    #[error("{0}")]
    Refused(String),
}

/// The client half. Cheap to clone; each request has its own connection.
#[derive(Clone, Debug)]
pub struct VpnClient {
    socket: PathBuf,
}

impl VpnClient {
    /// A client of the vpn that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The sessions of one network, or of all. Asks once: whoever wants to know asks again anyway.
    ///
    /// # Errors
    /// See [`VpnError`].
    pub async fn sessions(&self, vpc: Option<&VpcId>) -> Result<Vec<SessionStatus>, VpnError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(&VpnRequest::Sessions { vpc: vpc.cloned() }, &[]).await?;
        let mut all = Vec::new();
        loop {
            let received = timeout(WAIT, wire.receive()).await.map_err(|_| VpnError::NoAnswer)?;
            match received?.0 {
                VpnReply::Sessions { sessions, more } => {
                    all.extend(sessions);
                    if !more {
                        return Ok(all);
                    }
                }
                VpnReply::Refused { message } => return Err(VpnError::Refused(message)),
            }
        }
    }
}
