//! What control asks of the supervisor of the VMs, and what it is told.
//!
//! One request and one reply per packet over the socket of [`model::config::Places::vmm_socket`]; requests on one
//! connection are answered in order, so a caller that waits for a long one (a stop) uses a connection of its own.
//! All requests may be repeated: launching a VM that runs, stopping one that is down, removing one that is gone
//! are answered as done.

use feed::wire::{Wire, WireError};
use model::agent::BootConfig;
use model::id::{Generation, SnapshotId, VmId, VmInstanceId};
use model::net::MacAddress;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Longest that the supervisor takes to start a VM's process, up to the first instruction of the guest.
pub const LAUNCH_WAIT: Duration = Duration::from_secs(30);
/// Longest that writing a VM's memory may take: 64 GiB at 200 MB/s, and as much again.
pub const WRITE_WAIT: Duration = Duration::from_secs(600);
/// Longest that a frozen copy in memory lasts after the last machine was made of it: the next of a hundred children
/// waits for the boots of eight before it, on a busy host.
pub const FORK_LIFE: Duration = Duration::from_secs(120);
/// Longest that the agent of a guest takes to tell its host keys, and the way to it.
const HOST_KEYS_WAIT: Duration = Duration::from_secs(15);
/// Added to a request's own time for the way there and back.
const MARGIN: Duration = Duration::from_secs(10);

/// A machine to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSpec {
    /// Which VM.
    pub vm: VmId,
    /// Which run of it.
    pub instance: VmInstanceId,
    /// The folder below `images` with `kernel`, `initramfs` and `rootfs.img`.
    pub image: String,
    /// Virtual CPUs, 1..=8.
    pub vcpus: u8,
    /// Memory in MiB, 64..=65536.
    pub memory_mib: u32,
    /// Size of the disk in MiB; at least the base image's. What is beyond the base reads as zeros.
    pub disk_mib: u32,
    /// The NIC, for which the VM's process asks vpc.
    pub nic: Option<NicSpec>,
    /// What the agent is told when it reports. `unix_nanoseconds` and `restored` are filled in by the VM's process.
    pub boot: BootConfig,
    /// What it begins from.
    #[serde(default)]
    pub origin: Origin,
    /// When its NIC counts as idle; `None`: never.
    #[serde(default)]
    pub idle: Option<IdleWatch>,
    /// What 169.254.169.254 answers to the guest.
    #[serde(default)]
    pub metadata: Metadata,
}

/// What a machine begins from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "snake_case")]
pub enum Origin {
    /// Its disk, which is made from the image when there is none. A suspended state that is there is given up.
    #[default]
    Boot,
    /// Its suspended state. [`Refusal::NoState`] when there is none.
    Suspended,
    /// A snapshot, or a copy that a fork froze, of another VM: this one's disk must not exist yet. A snapshot without
    /// memory boots. [`Refusal::NoState`] when there is no such snapshot. When the launch is repeated after the disk
    /// was made from it, the disk is made anew.
    Snapshot {
        /// Which.
        snapshot: SnapshotId,
    },
}

/// When a NIC counts as idle: ARP, neighbour discovery and TCP keep-alives never count as traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleWatch {
    /// Length of the period, in seconds, 1 or more.
    pub seconds: u64,
    /// Bytes, both ways together, that a period needs to count as busy; at least 1.
    pub threshold_bytes: u64,
}

/// What the guest is told at 169.254.169.254.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Public keys, one line of `authorized_keys` each, that sshd accepts for every account with a login shell.
    pub ssh_keys: Vec<String>,
    /// Text of the user's own, at most 16 KiB.
    pub user_data: Option<String>,
}

/// A NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicSpec {
    /// The guest's Ethernet address.
    pub mac: MacAddress,
    /// The decision that has the port.
    pub generation: Generation,
}

/// All that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum VmmRequest {
    /// Start the machine. Answered when the guest runs its first instruction.
    Launch(Box<MachineSpec>),
    /// Stop it cleanly: the agent is asked, then the power button is pressed, then it is killed. Answered when the
    /// machine is down.
    Stop {
        /// Which VM.
        vm: VmId,
        /// For the agent and the power button together, before it is killed.
        grace_seconds: u32,
    },
    /// End it at once. Answered when the machine is down.
    Kill {
        /// Which VM.
        vm: VmId,
    },
    /// End it if it runs, and remove its disk and log.
    Remove {
        /// Which VM.
        vm: VmId,
    },
    /// Write its memory down and end its process. Answered when that is durable and the process is gone;
    /// [`Refusal::Woken`] when traffic came first and the VM runs on. One that is suspended already is done.
    Suspend {
        /// Which VM.
        vm: VmId,
    },
    /// Copy it, durably: its disk, and its memory when it runs or is suspended. It runs on meanwhile. Answered with
    /// [`VmmReply::Copied`] when the copy is durable; machines can be launched from it before that.
    Snapshot {
        /// Which VM.
        vm: VmId,
        /// The copy's name. When it exists, it is answered as done.
        snapshot: SnapshotId,
    },
    /// The same of a running VM, but in memory alone and at once: for forks. It lasts until it is removed, until
    /// nothing was made of it for [`FORK_LIFE`], or until the supervisor ends.
    Freeze {
        /// Which VM.
        vm: VmId,
        /// The copy's name.
        snapshot: SnapshotId,
    },
    /// Remove a copy, durable or not. Machines that were made from it do not mind.
    RemoveSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// Changes when the NIC of a running VM counts as idle. The period begins anew.
    WatchIdle {
        /// Which VM.
        vm: VmId,
        /// `None`: never.
        idle: Option<IdleWatch>,
    },
    /// Merge the layers of its disk. Memory that the guest does not use it gives back by itself.
    Optimize {
        /// Which VM.
        vm: VmId,
    },
    /// Make the disk of a running VM larger. Answered when that is durable and the guest is told; its file system is
    /// as it was until its agent is asked. No disk shrinks; one that has this size is done.
    GrowDisk {
        /// Which VM.
        vm: VmId,
        /// Size of the disk in MiB.
        disk_mib: u32,
    },
    /// A connected stream to the VM's vsock port rides with the answer.
    Connect {
        /// Which VM.
        vm: VmId,
        /// The guest's vsock port.
        port: u32,
    },
    /// The SSH host keys that the guest shows, asked of its agent now. ssh-proxy may ask this and nothing else.
    HostKeys {
        /// Which VM.
        vm: VmId,
    },
    /// The last lines of the console log.
    Console {
        /// Which VM.
        vm: VmId,
        /// At most this many bytes, from the end; bounded by the size of a message.
        bytes: u32,
    },
    /// From now on this connection tells events: first one [`VmmEvent::Machine`] for each VM that has a process,
    /// then [`VmmEvent::Synced`], then what happens.
    Subscribe,
}

/// What the supervisor answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum VmmReply {
    /// It runs.
    Launched {
        /// The VM's process.
        pid: i32,
    },
    /// It is down, or removed.
    Done,
    /// The copy stands.
    Copied {
        /// It has the memory, so machines made from it do not boot.
        memory: bool,
    },
    /// The connected stream rides with this message.
    Connected,
    /// The guest's SSH host keys, as its agent tells them.
    HostKeys {
        /// Type and base64, as in `known_hosts`; at most [`model::agent::MAX_HOST_KEYS`].
        keys: Vec<String>,
    },
    /// The end of the console log; bytes that are not UTF-8 are replaced.
    Console {
        /// The text.
        text: String,
    },
    /// No.
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// What a person reads.
        message: String,
    },
}

/// Kinds of no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No process of that VM.
    NotRunning,
    /// The specification makes no sense.
    BadSpec,
    /// No such image, or it is damaged.
    Image,
    /// The disk cannot be made, opened or trusted.
    Disk,
    /// The network process gave no TAP.
    Network,
    /// `/dev/kvm` is missing or refuses.
    Kvm,
    /// The guest does not listen on that vsock port, or not yet.
    NoListener,
    /// Traffic came while the VM was being suspended; it runs on.
    Woken,
    /// There is no suspended state, or no such snapshot.
    NoState,
    /// The saved state is damaged, or of another version, CPU or size.
    StateUnfit,
    /// The caller's user may not ask.
    NotAllowed,
    /// The supervisor is at its bound of requests or machines.
    Busy,
    /// Anything else.
    Internal,
}

/// What happens to machines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum VmmEvent {
    /// A VM has a process.
    Machine {
        /// Which VM.
        vm: VmId,
        /// Which run of it.
        instance: VmInstanceId,
        /// Its process.
        pid: i32,
        /// The agent has reported and applied its configuration.
        agent_ready: bool,
    },
    /// All that runs has been told.
    Synced,
    /// The agent has reported and applied its configuration.
    AgentReady {
        /// Which VM.
        vm: VmId,
        /// Which run of it.
        instance: VmInstanceId,
    },
    /// The guest restarts by its own wish; its process goes on or is replaced.
    Rebooting {
        /// Which VM.
        vm: VmId,
        /// Which run of it.
        instance: VmInstanceId,
    },
    /// Its NIC was idle for the watched period. Told again after each further one.
    Idle {
        /// Which VM.
        vm: VmId,
        /// Which run of it.
        instance: VmInstanceId,
    },
    /// Packets wait for a VM that has no process.
    Wake {
        /// Which VM.
        vm: VmId,
    },
    /// The machine is down.
    Exited {
        /// Which VM.
        vm: VmId,
        /// Which run of it.
        instance: VmInstanceId,
        /// Why.
        reason: ExitReason,
    },
}

/// Why a machine is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum ExitReason {
    /// Somebody asked for a stop, and the guest shut down.
    Stopped,
    /// Somebody asked for it to be killed, or the grace was over.
    Killed,
    /// Somebody asked for a suspend; its state is durable.
    Suspended,
    /// The guest powered itself off.
    PoweredOff,
    /// The guest's kernel panicked.
    Panicked {
        /// The line that says so on the console, if there was one.
        message: String,
    },
    /// KVM could not go on (`KVM_EXIT_INTERNAL_ERROR`, `KVM_EXIT_FAIL_ENTRY`, a triple fault).
    Kvm {
        /// With the vCPU, rip and the bytes there.
        message: String,
    },
    /// The VM's process died.
    ProcessDied {
        /// With its status or signal.
        message: String,
    },
}

/// Why a request to the supervisor came to nothing.
#[derive(Debug, Error)]
pub enum VmmError {
    /// The supervisor is not there, or went away.
    #[error("the supervisor of the VMs cannot be reached: {0}")]
    Unreachable(#[from] WireError),
    /// It did not answer in time.
    #[error("the supervisor of the VMs did not answer within {0:?}")]
    NoAnswer(Duration),
    /// It said no.
    #[error("{message}")]
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// What a person reads.
        message: String,
    },
    /// The answer does not fit the request.
    #[error("the supervisor of the VMs gave an answer that does not fit")]
    Unexpected,
    /// The handed-out stream cannot be used.
    #[error("the handed-out stream cannot be used: {0}")]
    Stream(#[source] io::Error),
}

/// The client half. Cheap to clone; each request has its own connection.
#[derive(Clone, Debug)]
pub struct VmmClient {
    socket: PathBuf,
}

impl VmmClient {
    /// A client of the supervisor that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Starts a machine; returns its process id.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn launch(&self, spec: MachineSpec) -> Result<i32, VmmError> {
        match self.ask(&VmmRequest::Launch(Box::new(spec)), LAUNCH_WAIT).await?.0 {
            VmmReply::Launched { pid } => Ok(pid),
            other => Err(refusal(other)),
        }
    }

    /// Stops a machine cleanly; returns when it is down.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn stop(&self, vm: &VmId, grace: Duration) -> Result<(), VmmError> {
        let grace_seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
        self.done(VmmRequest::Stop { vm: vm.clone(), grace_seconds }, grace).await
    }

    /// Ends a machine at once.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn kill(&self, vm: &VmId) -> Result<(), VmmError> {
        self.done(VmmRequest::Kill { vm: vm.clone() }, Duration::ZERO).await
    }

    /// Suspends a machine; returns when its state is durable and its process is gone.
    ///
    /// # Errors
    /// See [`VmmError`]; [`Refusal::Woken`] when it runs on.
    pub async fn suspend(&self, vm: &VmId) -> Result<(), VmmError> {
        self.done(VmmRequest::Suspend { vm: vm.clone() }, WRITE_WAIT).await
    }

    /// Copies a machine durably; true: with its memory.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn snapshot(&self, vm: &VmId, snapshot: &SnapshotId) -> Result<bool, VmmError> {
        let request = VmmRequest::Snapshot { vm: vm.clone(), snapshot: snapshot.clone() };
        match self.ask(&request, WRITE_WAIT).await?.0 {
            VmmReply::Copied { memory } => Ok(memory),
            other => Err(refusal(other)),
        }
    }

    /// Freezes a copy of a running machine in memory, to make others from it.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn freeze(&self, vm: &VmId, snapshot: &SnapshotId) -> Result<(), VmmError> {
        let request = VmmRequest::Freeze { vm: vm.clone(), snapshot: snapshot.clone() };
        match self.ask(&request, LAUNCH_WAIT).await?.0 {
            VmmReply::Copied { .. } => Ok(()),
            other => Err(refusal(other)),
        }
    }

    /// Removes a copy. One that is not there is as good.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn remove_snapshot(&self, snapshot: &SnapshotId) -> Result<(), VmmError> {
        self.done(VmmRequest::RemoveSnapshot { snapshot: snapshot.clone() }, Duration::ZERO).await
    }

    /// Changes when a running machine counts as idle.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn watch_idle(&self, vm: &VmId, idle: Option<IdleWatch>) -> Result<(), VmmError> {
        self.done(VmmRequest::WatchIdle { vm: vm.clone(), idle }, Duration::ZERO).await
    }

    /// Merges the disk's layers.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn optimize(&self, vm: &VmId) -> Result<(), VmmError> {
        self.done(VmmRequest::Optimize { vm: vm.clone() }, WRITE_WAIT).await
    }

    /// Makes the disk of a running machine larger, to `disk_mib` MiB.
    ///
    /// # Errors
    /// See [`VmmError`]; [`Refusal::Disk`] when it would shrink.
    pub async fn grow_disk(&self, vm: &VmId, disk_mib: u32) -> Result<(), VmmError> {
        self.done(VmmRequest::GrowDisk { vm: vm.clone(), disk_mib }, WRITE_WAIT).await
    }

    /// Ends a machine and removes what it left.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn remove(&self, vm: &VmId) -> Result<(), VmmError> {
        self.done(VmmRequest::Remove { vm: vm.clone() }, Duration::ZERO).await
    }

    /// A stream to a vsock port of the guest.
    ///
    /// # Errors
    /// See [`VmmError`]; [`Refusal::NoListener`] while the guest does not listen yet.
    pub async fn connect(&self, vm: &VmId, port: u32) -> Result<UnixStream, VmmError> {
        let request = VmmRequest::Connect { vm: vm.clone(), port };
        let (reply, mut descriptors) = self.ask(&request, Duration::ZERO).await?;
        let VmmReply::Connected = reply else { return Err(refusal(reply)) };
        let socket = descriptors.pop().ok_or(VmmError::Unexpected)?;
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true).map_err(VmmError::Stream)?;
        UnixStream::from_std(stream).map_err(VmmError::Stream)
    }

    /// The SSH host keys of a running guest.
    ///
    /// # Errors
    /// See [`VmmError`]; [`Refusal::NoListener`] when its agent cannot be asked.
    pub async fn host_keys(&self, vm: &VmId) -> Result<Vec<String>, VmmError> {
        match self.ask(&VmmRequest::HostKeys { vm: vm.clone() }, HOST_KEYS_WAIT).await?.0 {
            VmmReply::HostKeys { keys } => Ok(keys),
            other => Err(refusal(other)),
        }
    }

    /// The end of the console log.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn console(&self, vm: &VmId, bytes: u32) -> Result<String, VmmError> {
        match self.ask(&VmmRequest::Console { vm: vm.clone(), bytes }, Duration::ZERO).await?.0 {
            VmmReply::Console { text } => Ok(text),
            other => Err(refusal(other)),
        }
    }

    /// What runs, and then what happens.
    ///
    /// # Errors
    /// See [`VmmError`].
    pub async fn subscribe(&self) -> Result<Events, VmmError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(&VmmRequest::Subscribe, &[]).await?;
        Ok(Events { wire })
    }

    async fn done(&self, request: VmmRequest, own: Duration) -> Result<(), VmmError> {
        match self.ask(&request, own).await?.0 {
            VmmReply::Done => Ok(()),
            other => Err(refusal(other)),
        }
    }

    async fn ask(&self, request: &VmmRequest, own: Duration) -> Result<(VmmReply, Vec<OwnedFd>), VmmError> {
        let wait = own + MARGIN;
        let asked = async {
            let wire = Wire::connect(&self.socket)?;
            wire.send(request, &[]).await?;
            wire.receive().await
        };
        Ok(timeout(wait, asked).await.map_err(|_| VmmError::NoAnswer(wait))??)
    }
}

/// A stream of events. Its end means that the supervisor is gone: subscribe again.
#[derive(Debug)]
pub struct Events {
    wire: Wire,
}

impl Events {
    /// Waits for the next one.
    ///
    /// # Errors
    /// When the supervisor is gone.
    pub async fn next(&mut self) -> Result<VmmEvent, VmmError> {
        Ok(self.wire.receive().await?.0)
    }
}

fn refusal(reply: VmmReply) -> VmmError {
    match reply {
        VmmReply::Refused { reason, message } => VmmError::Refused { reason, message },
        VmmReply::Launched { .. }
        | VmmReply::Done
        | VmmReply::Copied { .. }
        | VmmReply::Connected
        | VmmReply::HostKeys { .. }
        | VmmReply::Console { .. } => VmmError::Unexpected,
    }
}
