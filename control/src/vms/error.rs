//! Why an operation on a VM came to nothing, and what the caller is told.

use super::observed::describe;
use crate::agent::AgentError;
use crate::fault::Fault;
use crate::publish::PlanError;
use crate::pure::evict::Storage;
use crate::pure::phase::{Ask, Event, Misfit, Phase};
use crate::pure::room::Shortage;
use crate::pure::vpc::NicRefusal;
use crate::store::StoreError;
use model::agent::AgentErrorKind;
use model::api::vm::VmState;
use model::host::MappedName;
use model::id::{SnapshotId, VmId, VpcId};
use std::net::Ipv4Addr;
use std::time::Duration;
use thiserror::Error;
use vmm::client::{ExitReason, Refusal, VmmError};

/// Why an operation on a VM came to nothing.
#[derive(Debug, Error)]
pub enum OpError {
    /// No such VM, or another account's.
    #[error("there is no VM {0:?}")]
    NoVm(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The decision could not be published.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The supervisor failed or refused.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The supervisor is away.
    #[error("the supervisor of the VMs is not there; it is waited for, try again")]
    NoSupervisor,
    /// The event does not fit the VM's phase.
    #[error(transparent)]
    Misfit(#[from] Misfit),
    /// Too many operations wait for this VM.
    #[error("too many operations wait for this VM")]
    Crowded,
    /// The account has as many VMs as it may have.
    #[error("the account has {current} VMs, and may have {limit}")]
    TooMany {
        /// So many.
        limit: u64,
        /// It has so many.
        current: u64,
    },
    /// The host's memory is promised to others, and those of them that may sleep are not enough.
    #[error(
        "the host has no memory left: {} MiB are asked for, and of {} MiB that may be promised VMs that run or come up \
         have {} MiB; stop or suspend one, give one an idle timeout so that it may sleep, or raise vm-memory-mib",
        .0.requested, .0.limit, .0.current
    )]
    NoMemory(Shortage),
    /// The host's disk is promised to others, and those of them that may be given up are not enough.
    #[error("{}", full_disk(*.0, *.1))]
    NoStorage(Storage, Shortage),
    /// A name is another account's, or nobody's that has proved it.
    #[error("{0} is mapped by another account, or this account has not proved that it owns it")]
    Taken(MappedName),
    /// The VM cannot have the NIC that was asked for.
    #[error(transparent)]
    Nic(#[from] NicRefusal),
    /// A VM with a NIC in a VPC is not forked.
    #[error(
        "a VM in a VPC cannot be forked, and this one is in {0}; make a snapshot of it, and VMs from that with a NIC each"
    )]
    ForkInVpc(VpcId),
    /// Only a VM that is down changes its network.
    #[error("the VM is {0}, and changes its network when it is stopped; stop it first")]
    NotDown(VmState),
    /// It is in a VPC already.
    #[error("the VM is in {vpc} as {ipv4} already; detach it first")]
    InVpc {
        /// Which.
        vpc: VpcId,
        /// Its address there.
        ipv4: Ipv4Addr,
    },
    /// It is not in that VPC.
    #[error("the VM is not in {0}")]
    NotInVpc(VpcId),
    /// The agent did not report in time.
    #[error("the VM was not ready within {0:?}")]
    NotReady(Duration),
    /// Somebody wanted the VM gone in the meantime.
    #[error("the VM was stopped or deleted while it started")]
    Interrupted,
    /// The machine went down in the meantime.
    #[error("the VM went down while it started: {}", describe(reason))]
    WentDown {
        /// Why.
        reason: ExitReason,
    },
    /// The VM is not up, and does not come up.
    #[error("the VM is not running")]
    NotRunning,
    /// The agent failed or refused.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent did not answer in time.
    #[error("the VM's agent did not answer within {0:?}")]
    AgentSilent(Duration),
    /// A file could not be put into a new VM.
    #[error("the new VM could not be set up: {0}")]
    Setup(#[source] Box<OpError>),
    /// The VM could not be suspended, and runs on.
    #[error("the VM could not be suspended and runs on: {0}")]
    SuspendFailed(#[source] VmmError),
    /// The disk did not grow under the VM, which runs on.
    #[error("the VM runs on, and its disk grows at its next start or when that is asked for again: {0}")]
    GrowFailed(#[source] Box<OpError>),
    /// Too many VMs are kept that do not run, and none of them may be given up.
    #[error(
        "{current} VMs are kept that do not run, {limit} may be, and none of them may be given up; delete some"
    )]
    TooManyKept {
        /// So many.
        limit: u64,
        /// There are so many.
        current: u64,
    },
    /// No such snapshot, or another account's.
    #[error("there is no snapshot {0}")]
    NoSnapshot(SnapshotId),
    /// It is being made.
    #[error("the snapshot {0} is being made; try again later")]
    SnapshotBuilding(SnapshotId),
    /// Somebody was faster.
    #[error("the snapshot {0} is deleted already")]
    SnapshotDeleted(SnapshotId),
    /// The account has as many snapshots as it may have.
    #[error("the account has {current} snapshots, and may have {limit}")]
    TooManySnapshots {
        /// So many.
        limit: u64,
        /// It has so many.
        current: u64,
    },
    /// A VM whose disk is lost has nothing that could be copied.
    #[error("the VM's disk is lost, there is nothing to copy")]
    NothingToCopy,
    /// No such VM to be forked.
    #[error("there is no VM {0:?}")]
    NoForkVm(String),
    /// A copy could not be made, so there is none.
    #[error("the VM could not be forked: {0}")]
    ForkFailed(#[source] Box<OpError>),
    /// The request makes no sense for this VM.
    #[error("{0}")]
    Wrong(Fault),
    /// The task that did it ended early.
    #[error("the operation was cut short: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl OpError {
    /// What the caller is told.
    #[must_use]
    pub fn fault(&self, vm: Option<&VmId>) -> Fault {
        match self {
            Self::Wrong(fault) => return fault.clone(),
            Self::Nic(refusal) => return refusal.of_creation(),
            _ => {}
        }
        let (status, code) = self.word();
        let fault = Fault::new(status, code, self.to_string());
        let fault = match self {
            Self::TooMany { limit, current }
            | Self::TooManyKept { limit, current }
            | Self::TooManySnapshots { limit, current } => {
                fault.with("limit", *limit).with("current", *current)
            }
            Self::NoStorage(_, Shortage { limit, current, requested }) => {
                fault.with("limit", *limit).with("current", *current).with("requested", *requested)
            }
            Self::Taken(host) => fault.with("domain", host.to_string()),
            Self::Setup(inner) => fault.with("failedReason", inner.to_string()),
            Self::NoSnapshot(id) | Self::SnapshotBuilding(id) | Self::SnapshotDeleted(id) => {
                return fault.with("snapshotId", id.as_str());
            }
            Self::ForkInVpc(vpc) | Self::InVpc { vpc, .. } | Self::NotInVpc(vpc) => {
                fault.with("vpcId", vpc.as_str())
            }
            Self::NoForkVm(id) => return fault.with("forkVmId", id.as_str()),
            _ => fault,
        };
        match (vm, self) {
            (_, Self::NoVm(id)) => fault.with("vmId", id.as_str()),
            (Some(vm), _) => fault.with("vmId", vm.as_str()),
            (None, _) => fault,
        }
    }

    fn word(&self) -> (u16, &'static str) {
        match self {
            Self::NoVm(_) => (404, "VM_NOT_FOUND"),
            Self::Vmm(error) => vmm_word(error),
            Self::Agent(error) => agent_word(error),
            Self::NoSupervisor | Self::Crowded => (503, "INTERNAL_ERROR"),
            Self::Store(StoreError::NoAddress) => (503, "NO_LOCAL_STORAGE_CAPACITY"),
            Self::Store(_) | Self::Plan(_) | Self::Task(_) => (500, "INTERNAL_ERROR"),
            Self::Misfit(misfit) => misfit_word(misfit),
            Self::GrowFailed(_) => (500, "RESIZE_FAILED"),
            Self::SuspendFailed(_) => (500, "SUSPEND_FAILED_VM_RESUMED"),
            Self::TooManyKept { .. } => (403, "TOTAL_VM_LIMIT_EXCEEDED"),
            Self::NoSnapshot(_) => (404, "SNAPSHOT_NOT_FOUND"),
            Self::SnapshotBuilding(_) => (409, "SOURCE_SNAPSHOT_BUILDING"),
            Self::SnapshotDeleted(_) => (409, "SNAPSHOT_ALREADY_DELETED"),
            Self::TooManySnapshots { .. } => (403, "SNAPSHOT_LIMIT_EXCEEDED"),
            Self::NothingToCopy => (400, "SNAPSHOT_VM_BAD_REQUEST"),
            Self::NoForkVm(_) => (404, "FORK_VM_NOT_FOUND"),
            Self::ForkFailed(_) => (500, "INTERNAL_ERROR"),
            Self::Wrong(fault) => (fault.status, fault.code),
            Self::Nic(_) => (400, "CREATE_VM_BAD_REQUEST"),
            Self::ForkInVpc(_) => (400, "VPC_FORK_UNSUPPORTED"),
            Self::NotDown(_) => (409, "VM_NOT_STOPPED"),
            Self::InVpc { .. } => (409, "VM_IN_VPC"),
            Self::NotInVpc(_) => (404, "NOT_FOUND"),
            Self::TooMany { .. } => (403, "TOTAL_VM_LIMIT_EXCEEDED"),
            Self::NoStorage(Storage::Memory, _) => (403, "MEMORY_STORAGE_QUOTA_EXCEEDED"),
            Self::NoStorage(Storage::Disks, _) => (403, "ROOTFS_STORAGE_QUOTA_EXCEEDED"),
            Self::NoMemory(_) => (503, "NO_LOCAL_STORAGE_CAPACITY"),
            Self::Taken(_) => (401, "DOMAIN_OWNERSHIP_NOT_VERIFIED"),
            Self::NotReady(_) => (504, "VM_START_TIMEOUT"),
            Self::Interrupted => (500, "VM_EXIT_DURING_START"),
            Self::WentDown { reason: ExitReason::Panicked { .. } } => (500, "KERNEL_PANIC"),
            Self::WentDown { .. } => (500, "VM_EXIT_DURING_START"),
            Self::NotRunning => (400, "VM_NOT_RUNNING"),
            Self::AgentSilent(_) => (504, "VM_START_TIMEOUT"),
            Self::Setup(_) => (500, "VM_SETUP_FAILED"),
        }
    }
}

fn full_disk(storage: Storage, short: Shortage) -> String {
    let Shortage { limit, current, requested } = short;
    match storage {
        Storage::Memory => format!(
            "there is no place for the memory of one more VM that sleeps: {requested} MiB are asked for, and of {limit} \
             MiB {current} MiB are taken; delete, stop or wake one that sleeps, stop this one, or raise memory-storage"
        ),
        Storage::Disks => format!(
            "there is no place for so large a disk: {requested} MiB are asked for, and of {limit} MiB {current} MiB are \
             promised to VMs; delete one, ask for a smaller disk, or raise rootfs-storage"
        ),
    }
}

fn misfit_word(misfit: &Misfit) -> (u16, &'static str) {
    match (misfit.event, misfit.phase) {
        (Event::Asked(Ask::Suspend), Phase::Stopped | Phase::Lost) => (400, "VM_NOT_RUNNING"),
        (_, Phase::Suspending) => (409, "VM_IS_SUSPENDING"),
        _ => (409, "STILL_CREATING"),
    }
}

fn vmm_word(error: &VmmError) -> (u16, &'static str) {
    match error {
        VmmError::Refused { reason, .. } => match reason {
            Refusal::NotRunning => (400, "VM_NOT_RUNNING"),
            Refusal::BadSpec => (400, "CREATE_VM_BAD_REQUEST"),
            Refusal::Disk => (406, "VM_NOT_FOUND_IN_FS"),
            Refusal::NoListener => (504, "VM_START_TIMEOUT"),
            Refusal::Woken => (409, "VM_REACTIVATED"),
            Refusal::NoState | Refusal::StateUnfit => (500, "SNAPSHOT_LOAD_TIMEOUT"),
            Refusal::Busy => (503, "NO_LOCAL_STORAGE_CAPACITY"),
            Refusal::Image | Refusal::Network | Refusal::Kvm => (500, "VM_SPAWN_PROCESS"),
            Refusal::NotAllowed | Refusal::Internal => (500, "INTERNAL_ERROR"),
        },
        VmmError::Unreachable(_) | VmmError::NoAnswer(_) => (503, "INTERNAL_ERROR"),
        VmmError::Unexpected | VmmError::Stream(_) => (500, "INTERNAL_ERROR"),
    }
}

fn agent_word(error: &AgentError) -> (u16, &'static str) {
    match error {
        AgentError::Refused { kind, .. } => match kind {
            AgentErrorKind::NotFound => (404, "FILE_NOT_FOUND"),
            AgentErrorKind::PermissionDenied => (403, "ACCESS_DENIED"),
            AgentErrorKind::Invalid | AgentErrorKind::TooLarge => (400, "FILES_BAD_REQUEST"),
            AgentErrorKind::UserNotFound => (404, "USER_NOT_FOUND"),
            AgentErrorKind::Busy => (503, "INTERNAL_ERROR"),
            AgentErrorKind::Internal => (500, "INTERNAL_ERROR"),
        },
        AgentError::Stream(_) => (400, "VM_NOT_RUNNING"),
        AgentError::Frame(_) | AgentError::Malformed(_) | AgentError::Unexpected => (500, "INTERNAL_ERROR"),
    }
}
