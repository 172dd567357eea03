//! Growth of the disk under a machine that runs: first the disk's folder says so, then the disk, then the guest is told.

use super::{Process, ProcessError, chain_text, refusal};
use crate::client::Refusal;
use crate::machine::control::MachineMessage;
use crate::machine::parts::MIB;
use crate::machine::vm::Machine;

impl Process {
    /// Makes the disk larger. May be repeated: whatever of it is not done yet is done then.
    pub(super) fn grow_disk(&mut self, disk_mib: u32, machine: &Machine) -> MachineMessage {
        if self.suspending.is_some() {
            // The state that is being written has the old size.
            let message = "the VM is being suspended".to_owned();
            return MachineMessage::Refused { reason: Refusal::Busy, message };
        }
        match self.grow(disk_mib, machine) {
            Ok(()) => MachineMessage::Done,
            Err(error) => MachineMessage::Refused { reason: refusal(&error), message: chain_text(&error) },
        }
    }

    fn grow(&mut self, disk_mib: u32, machine: &Machine) -> Result<(), ProcessError> {
        self.host.disk().grow(u64::from(disk_mib) * MIB)?;
        self.plan.spec.disk_mib = disk_mib;
        machine.tell_disk_size()?;
        tracing::info!(disk_mib, "the disk has grown");
        Ok(())
    }
}
