//! One request to a VM's process, over a connection of its own.

use crate::client::Refusal;
use crate::machine::control::{MachineMessage, MachineRequest, SOCKET};
use feed::wire::{Wire, WireError};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

/// Why it came to nothing.
#[derive(Debug, Error)]
pub enum TalkError {
    /// The process could not be told or heard.
    #[error("the VM's process does not speak")]
    Wire(#[source] WireError),
    /// Somebody else answers in its name.
    #[error("what answers is not the VM's process")]
    Stranger,
    /// It did not answer in time.
    #[error("the VM's process did not answer within {0:?}")]
    TimedOut(Duration),
    /// It refused.
    #[error("{message}")]
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// Why.
        message: String,
    },
    /// It said something that does not fit.
    #[error("the VM's process gave an answer that does not fit")]
    Unexpected,
}

impl TalkError {
    /// Which kind of no this is.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Refused { reason, .. } => *reason,
            Self::Wire(_) | Self::Stranger | Self::TimedOut(_) | Self::Unexpected => Refusal::Internal,
        }
    }
}

/// Asks the process of the VM with this folder and this number, and waits until it is done.
///
/// # Errors
/// See [`TalkError`].
pub async fn ask(
    folder: &Path,
    pid: i32,
    request: &MachineRequest,
    descriptors: &[BorrowedFd<'_>],
    patience: Duration,
) -> Result<(), TalkError> {
    let asked = async {
        let wire = Wire::connect(&folder.join(SOCKET)).map_err(TalkError::Wire)?;
        if wire.peer().is_ok_and(|peer| peer.pid != pid) {
            return Err(TalkError::Stranger);
        }
        wire.send(request, descriptors).await.map_err(TalkError::Wire)?;
        Ok(wire.receive::<MachineMessage>().await.map_err(TalkError::Wire)?.0)
    };
    done(timeout(patience, asked).await.map_err(|_| TalkError::TimedOut(patience))??)
}

/// Whether an answer says that it is done.
///
/// # Errors
/// [`TalkError::Refused`], [`TalkError::Unexpected`].
pub fn done(answer: MachineMessage) -> Result<(), TalkError> {
    match answer {
        MachineMessage::Done => Ok(()),
        MachineMessage::Refused { reason, message } => Err(TalkError::Refused { reason, message }),
        MachineMessage::Running { .. }
        | MachineMessage::AgentReady
        | MachineMessage::Idle
        | MachineMessage::Rebooting
        | MachineMessage::Exited { .. } => Err(TalkError::Unexpected),
    }
}
