//! What is said between the supervisor and a VM's process: one closed set of requests over a `SOCK_SEQPACKET`
//! socket, and the events that come back on the same connection.

use crate::client::{ExitReason, MachineSpec, Refusal};
use model::id::{VmId, VmInstanceId};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the process listens, in the VM's folder.
pub const SOCKET: &str = "control.sock";
/// Where the vsock device meets the host, in the VM's folder; guest ports are at `<this>_<port>`.
pub const VSOCK: &str = "vsock.sock";
/// The writable top of the disk, in the VM's folder.
pub const DISK: &str = "disk";
/// What is running or ran last, in the VM's folder.
pub const SPEC: &str = "spec.json";

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
    /// Where vpc listens.
    pub vpc_socket: PathBuf,
    /// Bytes of the console's log that are kept.
    pub console_bytes: u64,
    /// Added to the kernel's command line.
    #[serde(default)]
    pub command_line: String,
}

/// All that a VM's process can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum MachineRequest {
    /// Make the machine and run it. The first message, on the inherited socket, and only there.
    Start(Box<MachinePlan>),
    /// What is there; from then on this connection is told events.
    Subscribe,
    /// Press the power button.
    PowerButton,
    /// End at once.
    Kill,
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
    /// Event: the guest restarts; the machine is made anew in the same process.
    Rebooting,
    /// Event: the machine is down, and the process ends.
    Exited {
        /// Why, as far as the guest and KVM tell.
        reason: ExitReason,
    },
}
