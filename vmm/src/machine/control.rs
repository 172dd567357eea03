//! What is said between the supervisor and a VM's process: one closed set of requests over a `SOCK_SEQPACKET`
//! socket, and the events that come back on the same connection.

use crate::client::{ExitReason, IdleWatch, MachineSpec, Refusal};
use model::agent::Identity;
use model::id::{VmId, VmInstanceId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the process listens, in the VM's folder.
pub const SOCKET: &str = "control.sock";
/// Where the vsock device meets the host, in the VM's folder; guest ports are at `<this>_<port>`.
pub const VSOCK: &str = "vsock.sock";
/// What is running or ran last, in the VM's folder.
pub const SPEC: &str = "spec.json";

/// The suspended state, in the VM's folder: [`MEMORY`] and [`STATE`].
pub const SUSPENDED: &str = "suspended";
/// The same while it is being written.
pub const SUSPENDING: &str = "suspended.new";
/// A state that a machine went on from, and that is of no more use.
pub const USED: &str = "suspended.used";
/// Guest memory, in the folder of a suspended state or a snapshot.
pub const MEMORY: &str = "memory";
/// All else of the machine.
pub const STATE: &str = "state";

/// A machine with the places of all its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePlan {
    /// What control asked for.
    pub spec: MachineSpec,
    /// An uncompressed 64-bit ELF file.
    pub kernel: PathBuf,
    /// A cpio archive.
    pub initramfs: PathBuf,
    /// The immutable base of the disk, a raw image.
    pub rootfs: PathBuf,
    /// The VM's folder: sockets, log, the disk's top.
    pub folder: PathBuf,
    /// Bytes of the console's log that are kept.
    pub console_bytes: u64,
    /// The user that the process becomes, which is nobody else's; as it is when it is absent, for machines that are
    /// run by hand.
    #[serde(default)]
    pub user: Option<u32>,
    /// Added to the kernel's command line.
    #[serde(default)]
    pub command_line: String,
    /// The machine goes on from the state in [`SUSPENDED`] of its folder, which is of no more use then; and whose
    /// state that is.
    #[serde(default)]
    pub restore: Option<Identity>,
}

/// All that a VM's process can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum MachineRequest {
    /// Make the machine and run it. The first message, on the inherited socket, and only there. What rides with it is
    /// [`super::handed::Handed`].
    Start(Box<MachinePlan>),
    /// What is there; from then on this connection is told events.
    Subscribe,
    /// Press the power button.
    PowerButton,
    /// End at once.
    Kill,
    /// Write the state down and end. Refused as [`Refusal::Woken`] when traffic comes first.
    Suspend,
    /// Seal the disk, and leave a copy of this process behind that speaks [`ZygoteRequest`] over the socket which
    /// rides with this message.
    Freeze,
    /// Merge the layers of the disk.
    Optimize,
    /// Make the disk larger, durably, and tell the guest so.
    GrowDisk {
        /// Its size in MiB. No disk shrinks; one that has this size is done.
        disk_mib: u32,
    },
    /// From now on the NIC counts as idle after this; never, when absent.
    WatchIdle {
        /// The period.
        idle: Option<IdleWatch>,
    },
}

/// What a frozen copy of a VM's process can be asked. It ends with its connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum ZygoteRequest {
    /// Become a machine of this plan in a copy of the copy, which has the socket that rides with this message for its
    /// control connection, and says there what follows [`MachineRequest::Start`]. Behind the socket rides
    /// [`super::handed::Handed`].
    Spawn(Box<MachinePlan>),
    /// Write the memory and the rest of the state, durably, in another copy. A socket for its answer,
    /// [`MachineMessage::Done`] or [`MachineMessage::Refused`], and the two empty files ride with this message.
    Write,
}

/// What a VM's process says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
pub enum MachineMessage {
    /// Answer to [`MachineRequest::Start`] and [`MachineRequest::Subscribe`]: it runs.
    Running {
        /// Which VM.
        vm: VmId,
        /// Which run of it.
        instance: VmInstanceId,
        /// The agent has reported and applied its configuration.
        agent_ready: bool,
    },
    /// Answer to the other requests: done.
    Done,
    /// Answer: no. After a refused start the process ends.
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// What a person reads.
        message: String,
    },
    /// Event: the agent has reported and applied its configuration.
    AgentReady,
    /// Event: the NIC was idle for the watched period.
    Idle,
    /// Event: the guest restarts; the machine is made anew in the same process.
    Rebooting,
    /// Event: the machine is down, and the process ends.
    Exited {
        /// Why, as far as the guest and KVM tell.
        reason: ExitReason,
    },
}
