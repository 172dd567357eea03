//! What control asks of ssh-proxy: which sessions live, to end one, and for which VMs clients wait.
//!
//! One request and one or more replies per packet over the socket of [`model::config::Places::ssh_socket`], for root and
//! control's user alone.

use feed::wire::{Wire, WireError};
use model::id::{SshSessionId, VmId};
use model::ssh::{LinuxUser, Principal};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

/// Longest that a caller waits for each reply.
const WAIT: Duration = Duration::from_secs(5);
/// Sessions in one reply: some 400 bytes each, and a message has a bound.
pub const SESSIONS_A_REPLY: usize = 128;

/// All that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum SshRequest {
    /// The sessions to one VM, or all.
    Sessions {
        /// The VM.
        vm: Option<VmId>,
    },
    /// End a session.
    End {
        /// Which one.
        session: SshSessionId,
    },
    /// From now on this connection tells, with one [`SshReply::Wanted`] each, for which stopped VMs somebody who may
    /// log in waits: those for which somebody waits already first.
    Wants,
}

/// What ssh-proxy answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum SshReply {
    /// Some of the sessions, at most [`SESSIONS_A_REPLY`].
    Sessions {
        /// These.
        sessions: Vec<SessionStatus>,
        /// Another reply follows.
        more: bool,
    },
    /// It is ended, or was not there.
    Ended {
        /// Whether it was there.
        was_there: bool,
    },
    /// Somebody waits for a stopped VM.
    Wanted {
        /// The VM.
        vm: VmId,
    },
    /// No.
    Refused {
        /// What a person reads.
        message: String,
    },
}

/// A session: one connection of a client, logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Which one.
    pub id: SshSessionId,
    /// To which VM.
    pub vm: VmId,
    /// As which of its users.
    pub user: LinuxUser,
    /// Who.
    pub principal: Principal,
    /// From where.
    pub client: IpAddr,
    /// Seconds since the login.
    pub seconds: u64,
    /// Open channels.
    pub channels: u32,
    /// Bytes of channels from the client.
    pub received_bytes: u64,
    /// Bytes of channels to it.
    pub sent_bytes: u64,
}

/// Why ssh-proxy did not answer.
#[derive(Debug, Error)]
pub enum SshError {
    /// It is not there, or went away.
    #[error("the SSH process cannot be reached: {0}")]
    Unreachable(#[from] WireError),
    /// It did not answer in time.
    #[error("the SSH process did not answer within {WAIT:?}")]
    NoAnswer,
    /// It said no.
    #[error("{0}")]
    Refused(String),
    /// It answered something else.
    #[error("the SSH process gave an answer that does not fit")]
    Misfit,
}

/// The client half. Cheap to clone; each request has its own connection.
#[derive(Clone, Debug)]
pub struct SshClient {
    socket: PathBuf,
}

/// For which stopped VMs clients wait.
#[derive(Debug)]
pub struct Wants(Wire);

impl Wants {
    /// The next one.
    ///
    /// # Errors
    /// When ssh-proxy is gone; ask [`SshClient::wants`] again.
    pub async fn next(&mut self) -> Result<VmId, SshError> {
        match self.0.receive().await?.0 {
            SshReply::Wanted { vm } => Ok(vm),
            SshReply::Refused { message } => Err(SshError::Refused(message)),
            SshReply::Sessions { .. } | SshReply::Ended { .. } => Err(SshError::Misfit),
        }
    }
}

impl SshClient {
    /// A client of the ssh-proxy that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The sessions to one VM, or all.
    ///
    /// # Errors
    /// See [`SshError`].
    pub async fn sessions(&self, vm: Option<&VmId>) -> Result<Vec<SessionStatus>, SshError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(&SshRequest::Sessions { vm: vm.cloned() }, &[]).await?;
        let mut all = Vec::new();
        loop {
            match reply(&wire).await? {
                SshReply::Sessions { sessions, more } => {
                    all.extend(sessions);
                    if !more {
                        return Ok(all);
                    }
                }
                SshReply::Refused { message } => return Err(SshError::Refused(message)),
                SshReply::Ended { .. } | SshReply::Wanted { .. } => return Err(SshError::Misfit),
            }
        }
    }

    /// Ends a session; says whether there was one.
    ///
    /// # Errors
    /// See [`SshError`].
    pub async fn end(&self, session: &SshSessionId) -> Result<bool, SshError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(&SshRequest::End { session: session.clone() }, &[]).await?;
        match reply(&wire).await? {
            SshReply::Ended { was_there } => Ok(was_there),
            SshReply::Refused { message } => Err(SshError::Refused(message)),
            SshReply::Sessions { .. } | SshReply::Wanted { .. } => Err(SshError::Misfit),
        }
    }

    /// Hears for which stopped VMs clients wait.
    ///
    /// # Errors
    /// When ssh-proxy is not there.
    pub async fn wants(&self) -> Result<Wants, SshError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(&SshRequest::Wants, &[]).await?;
        Ok(Wants(wire))
    }
}

async fn reply(wire: &Wire) -> Result<SshReply, SshError> {
    Ok(timeout(WAIT, wire.receive()).await.map_err(|_| SshError::NoAnswer)??.0)
}
