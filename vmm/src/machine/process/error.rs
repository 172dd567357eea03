//! Why a VM's process does not run its machine, and what is told of that.

use super::super::jail::JailError;
use super::super::load::LoadError;
use super::super::memory::MemoryError;
use super::super::parts::PartsError;
use super::super::state::{StateError, StateFileError};
use super::super::vm::MachineError;
use crate::client::Refusal;
use crate::devices::block::{DiskError, FolderError};
use feed::wire::WireError;
use std::io;
use thiserror::Error;

/// Why the process ends without a machine having run.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The supervisor is gone before it asked for anything, or said something else.
    #[error("no order to start came")]
    NoOrder(#[source] WireError),
    /// The first message was not [`super::MachineRequest::Start`].
    #[error("the first message was not an order to start")]
    NotStart,
    /// The order came without what belongs to it.
    #[error("the order to start came without its files")]
    NothingHanded,
    /// The jail cannot be entered.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The kernel does not let children be.
    #[error("cannot say that nobody waits for children")]
    Children(#[source] io::Error),
    /// The VM's folder cannot be used.
    #[error("cannot use the VM's folder")]
    Folder(#[source] io::Error),
    /// Another process has this VM.
    #[error("another process runs this VM")]
    Locked,
    /// A part is missing.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// There is no state to go on from.
    #[error("there is no saved state")]
    NoState,
    /// The saved state cannot be used.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// The saved memory cannot be used.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The saved state is of a machine of another size.
    #[error(
        "the saved state is of a machine with {vcpus} vCPUs and {memory_mib} MiB; a running system cannot be resized"
    )]
    OtherSize {
        /// Its memory.
        memory_mib: u32,
        /// Its vCPUs.
        vcpus: usize,
    },
    /// The disk cannot be sealed, linked or merged.
    #[error(transparent)]
    Disk(#[from] FolderError),
    /// The disk cannot be made durable.
    #[error("cannot make the disk durable")]
    Flush(#[source] DiskError),
    /// The loop cannot wait.
    #[error("cannot wait for events")]
    Epoll(#[source] io::Error),
    /// The supervisor did not live to hear that the machine runs.
    #[error("the supervisor is gone before the machine ran")]
    Abandoned(#[source] WireError),
    /// A copy of the process cannot be made or told anything.
    #[error("a copy of the process failed at {step}")]
    Copy {
        /// What was tried.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A frozen copy was told something without a socket for the answer.
    #[error("an order came without its socket")]
    NoSocket,
}

/// Which kind of no an error is.
#[must_use]
pub fn refusal(error: &ProcessError) -> Refusal {
    match error {
        ProcessError::Parts(PartsError::Disk(_)) | ProcessError::Disk(_) | ProcessError::Flush(_) => {
            Refusal::Disk
        }
        ProcessError::Parts(PartsError::Nic(_)) => Refusal::Network,
        ProcessError::Machine(MachineError::Load(
            LoadError::Read { .. }
            | LoadError::Kernel { .. }
            | LoadError::Initramfs { .. }
            | LoadError::NoRoom { .. },
        )) => Refusal::Image,
        ProcessError::Machine(
            MachineError::Kvm { .. }
            | MachineError::NoKvm(_)
            | MachineError::Lacks(_)
            | MachineError::Msrs { .. },
        ) => Refusal::Kvm,
        ProcessError::Machine(MachineError::Load(LoadError::CommandLine { .. })) => Refusal::BadSpec,
        ProcessError::Locked => Refusal::Busy,
        ProcessError::NoState => Refusal::NoState,
        ProcessError::State(
            StateFileError::Damaged(_) | StateFileError::Version { .. } | StateFileError::Decode(_),
        )
        | ProcessError::Memory(MemoryError::Length { .. })
        | ProcessError::OtherSize { .. }
        | ProcessError::Machine(MachineError::State(
            StateError::OtherCpu { .. }
            | StateError::OtherClock { .. }
            | StateError::Unfit(_)
            | StateError::Msr { .. },
        )) => Refusal::StateUnfit,
        ProcessError::NoOrder(_)
        | ProcessError::NotStart
        | ProcessError::NothingHanded
        | ProcessError::Jail(_)
        | ProcessError::Children(_)
        | ProcessError::Folder(_)
        | ProcessError::Epoll(_)
        | ProcessError::Abandoned(_)
        | ProcessError::Copy { .. }
        | ProcessError::NoSocket
        | ProcessError::State(_)
        | ProcessError::Memory(_)
        | ProcessError::Parts(_)
        | ProcessError::Machine(_) => Refusal::Internal,
    }
}

/// An error with all its causes, for a person.
#[must_use]
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
