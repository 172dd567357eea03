//! Freeze: a copy of this process that stands still, while the machine hardly notices.
//!
//! What needs a file is done before and after; while the machine stands still its state is taken, its disk's top
//! becomes a layer, and the process is copied. The sealed layers are the supervisor's to link.

use super::zygote::{self, Frozen};
use super::{Process, ProcessError, chain_text, refusal};
use crate::client::Refusal;
use crate::machine::control::MachineMessage;
use crate::machine::sys::{self, Side};
use crate::machine::vm::Machine;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Instant;

impl Process {
    /// Leaves a copy behind that listens at the socket; all that it has of the disk is sealed and durable then.
    pub(super) fn freeze(&mut self, sockets: Vec<OwnedFd>, machine: &Machine) -> MachineMessage {
        if self.suspending.is_some() {
            let message = "the VM is being suspended".to_owned();
            return MachineMessage::Refused { reason: Refusal::Busy, message };
        }
        match self.copy(sockets, machine) {
            Ok(()) => MachineMessage::Done,
            Err(error) => MachineMessage::Refused { reason: refusal(&error), message: chain_text(&error) },
        }
    }

    /// Merges the layers of the disk.
    pub(super) fn optimize(&mut self) -> MachineMessage {
        match self.host.disk().merge() {
            Ok(()) => MachineMessage::Done,
            Err(error) => MachineMessage::Refused { reason: Refusal::Disk, message: chain_text(&error) },
        }
    }

    fn copy(&mut self, sockets: Vec<OwnedFd>, machine: &Machine) -> Result<(), ProcessError> {
        let socket = sockets.into_iter().next().ok_or(ProcessError::NoSocket)?;
        self.host.disk().prepare_seal()?;
        // The copy waits until the original goes on, so that it takes no time of the CPU from it.
        let (mut wait, go) =
            std::io::pipe().map_err(|source| ProcessError::Copy { step: "make a pipe", source })?;
        let mut go = Some(go);
        let begun = Instant::now();
        machine.pause()?;
        let parked = begun.elapsed();
        let copied = machine.save().map_err(ProcessError::from).and_then(|state| {
            self.host.disk().switch()?;
            let saved = begun.elapsed();
            let failed = |source| ProcessError::Copy { step: "fork", source };
            if sys::fork().map_err(failed)? == Side::Child {
                drop(go.take());
                if let Err(error) = wait.read(&mut [0]) {
                    tracing::warn!(%error, "a copy does not wait for its original");
                }
                zygote::run(&Frozen { socket: &socket, kit: &self.kit, mem: machine.mem(), state });
            }
            Ok((saved, begun.elapsed()))
        });
        machine.unpause()?;
        let stood_still = begun.elapsed();
        drop(go.take());
        let (saved, forked) = copied?;
        // Each from the beginning.
        tracing::info!(?parked, ?saved, ?forked, ?stood_still, "copied");
        Ok(self.host.disk().settle()?)
    }
}
