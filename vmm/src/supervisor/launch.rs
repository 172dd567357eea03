//! Starts a VM's process, or adopts one that an earlier supervisor started.

use super::cgroup::Cgroups;
use super::copies::{self, Copies, CopyError, Spawner};
use super::folder::{self, FolderError};
use super::registry::{MAX_MACHINES, Registry, Running};
use super::users::{self, Users};
use super::warm::{Shell, Shells};
use super::watch::Followed;
use crate::client::{LAUNCH_WAIT, MachineSpec, Origin, Refusal};
use crate::machine::control::{MachineMessage, MachinePlan, MachineRequest, SOCKET, SUSPENDED};
use crate::machine::handed::{HandError, Handed};
use feed::wire::{Peer, Wire, WireError, pair};
use model::agent::Identity;
use model::config::VmmConfig;
use model::id::{VmId, VmInstanceId};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;
use vpc::client::VpcError;

/// Longest that a process may take to say that it is there when it is adopted: it may be making its machine.
const ADOPT_WAIT: Duration = LAUNCH_WAIT;
/// Orders that wait for a process; each is one of a handful of kinds, and doubles have no effect.
const ORDERS_WAITING: usize = 8;

/// Why a VM does not run.
#[derive(Debug, Error)]
pub enum LaunchError {
    /// The specification or the folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Another run of the VM is up.
    #[error("another run of this VM, {0}, is still up")]
    OtherRun(VmInstanceId),
    /// Too many machines.
    #[error("{MAX_MACHINES} machines run already")]
    Full,
    /// The copy that it is to be made of.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The image or the folder cannot be handed over.
    #[error(transparent)]
    Hand(#[from] HandError),
    /// The network process gave no TAP.
    #[error("no TAP for the NIC")]
    Tap(#[source] VpcError),
    /// The folder does not become the VM's user's.
    #[error("cannot give the VM's folder to its user")]
    User(#[source] io::Error),
    /// The process cannot be bounded.
    #[error("cannot bound the VM's process by a cgroup")]
    Bound(#[source] io::Error),
    /// Somebody else answers in the name of the VM's process.
    #[error("what answers is not the VM's process")]
    Stranger,
    /// A task ended.
    #[error("the work was cut short")]
    Task(#[from] tokio::task::JoinError),
    /// The process could not be started.
    #[error("cannot start the VM's process")]
    Spawn(#[source] io::Error),
    /// The process could not be told or heard.
    #[error("the VM's process does not speak")]
    Wire(#[source] WireError),
    /// The process did not run the machine in time.
    #[error("the VM's process did not start the machine within {LAUNCH_WAIT:?}")]
    TimedOut,
    /// The process refused.
    #[error("{message}")]
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// Why.
        message: String,
    },
    /// The process said something that does not fit.
    #[error("the VM's process gave an answer that does not fit")]
    Unexpected,
}

impl LaunchError {
    /// Which kind of no this is.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Folder(error) => error.refusal(),
            Self::Copy(error) => error.refusal(),
            Self::OtherRun(_) | Self::Full => Refusal::Busy,
            Self::Refused { reason, .. } => *reason,
            Self::Hand(HandError::Image { .. }) => Refusal::Image,
            Self::Hand(HandError::Folder { .. }) | Self::User(_) => Refusal::Disk,
            Self::Tap(_) => Refusal::Network,
            Self::Spawn(_)
            | Self::Wire(_)
            | Self::TimedOut
            | Self::Unexpected
            | Self::Bound(_)
            | Self::Stranger
            | Self::Task(_) => Refusal::Internal,
        }
    }
}

/// What launches need.
#[derive(Clone, Copy, Debug)]
pub struct Makers<'a> {
    /// The settings.
    pub config: &'a VmmConfig,
    /// What runs.
    pub registry: &'a Registry,
    /// What machines are made of.
    pub copies: &'a Copies,
    /// Whom their folders belong to.
    pub users: &'a Arc<Users>,
    /// Processes that wait.
    pub shells: &'a Shells,
    /// What bounds them.
    pub cgroups: &'a Cgroups,
}

/// Starts a machine, unless the same run of it is up already. The caller has the VM's turn.
///
/// # Errors
/// See [`LaunchError`]; no process is left then.
pub async fn launch(makers: Makers<'_>, spec: MachineSpec) -> Result<i32, LaunchError> {
    let Makers { config, registry, copies, cgroups, .. } = makers;
    if let Some(running) = registry.running(&spec.vm) {
        let same = running.instance == spec.instance;
        return if same { Ok(running.pid) } else { Err(LaunchError::OtherRun(running.instance.clone())) };
    }
    if registry.count() >= MAX_MACHINES {
        return Err(LaunchError::Full);
    }
    let mut plan = folder::plan(config, spec)?;
    if let Some(spawner) = furnish(config, copies, &mut plan).await? {
        return spawn_copy(makers, &spawner, plan).await;
    }
    let Makers { users, shells, .. } = makers;
    let (users, shells, socket) = (Arc::clone(users), shells.clone(), config.places.vpc_socket());
    let made = move || -> Result<_, LaunchError> {
        folder::prepare(&plan)?;
        let handed = Handed::open(&plan, taps(&socket, &plan)?)?;
        plan.user = Some(users.settle(&plan.folder).map_err(LaunchError::User)?);
        Ok((plan, handed, shells.take().map_err(LaunchError::Spawn)?))
    };
    let (plan, handed, Shell { mut child, near }) = tokio::task::spawn_blocking(made).await??;
    let (vm, instance) = (plan.spec.vm.clone(), plan.spec.instance.clone());
    let pid = child.id().cast_signed();
    let started = async {
        cgroups.hold(&plan.spec, pid).map_err(LaunchError::Bound)?;
        timeout(LAUNCH_WAIT, order_start(near, pid, plan, handed)).await.unwrap_or(Err(LaunchError::TimedOut))
    };
    match started.await {
        Ok((wire, pidfd)) => {
            let process = Process { pid, pidfd, wire, child: Some(child) };
            follow(registry, cgroups, &vm, instance, process, false).map_err(LaunchError::Spawn)?;
            Ok(pid)
        }
        Err(error) => {
            end(&mut child);
            Err(error)
        }
    }
}

/// Brings the VM's folder to what the machine begins from, and says so in the plan. A spawner, when it is made of a
/// frozen copy.
async fn furnish(
    config: &VmmConfig,
    copies: &Copies,
    plan: &mut MachinePlan,
) -> Result<Option<Spawner>, LaunchError> {
    let suspended = plan.folder.join(SUSPENDED);
    // What a machine went on from is of no more use, whatever it begins from now.
    folder::tidy(&plan.folder)?;
    match &plan.spec.origin {
        Origin::Boot => folder::remove(&suspended)?,
        Origin::Suspended => plan.restore = Some(Identity::Same),
        Origin::Snapshot { snapshot } => {
            folder::remove(&plan.folder)?;
            match copies.settle_in(config, snapshot, &plan.folder).await? {
                copies::Origin::Frozen(spawner) => {
                    folder::prepare(plan)?;
                    return Ok(Some(spawner));
                }
                copies::Origin::Saved => plan.restore = Some(Identity::New),
                copies::Origin::Disk => {}
            }
        }
    }
    Ok(None)
}

/// Has a frozen copy make the machine. Its process is nobody's child here, so that it is followed like an adopted one.
/// It runs as the user of the VM that was copied.
async fn spawn_copy(
    Makers { config, registry, cgroups, .. }: Makers<'_>,
    spawner: &Spawner,
    plan: MachinePlan,
) -> Result<i32, LaunchError> {
    let (spec, folder) = (plan.spec.clone(), plan.folder.clone());
    let (near, far) = pair().map_err(LaunchError::Spawn)?;
    let (user, socket) = (spawner.user(), config.places.vpc_socket());
    let made = move || -> Result<_, LaunchError> {
        users::give(&plan.folder, user).map_err(LaunchError::User)?;
        let handed = Handed::open(&plan, taps(&socket, &plan)?)?;
        Ok((plan, handed))
    };
    let (plan, handed) = tokio::task::spawn_blocking(made).await??;
    spawner.spawn(plan, far, &handed).await?;
    let wire = Wire::of(near).map_err(LaunchError::Spawn)?;
    let begun = async {
        match wire.receive::<MachineMessage>().await.map_err(LaunchError::Wire)?.0 {
            MachineMessage::Running { .. } => {}
            MachineMessage::Refused { reason, message } => {
                return Err(LaunchError::Refused { reason, message });
            }
            MachineMessage::Done
            | MachineMessage::AgentReady
            | MachineMessage::Idle
            | MachineMessage::Rebooting
            | MachineMessage::Exited { .. } => return Err(LaunchError::Unexpected),
        }
        let pid = adopt(registry, cgroups, &spec.vm, folder).await?.ok_or(LaunchError::Unexpected)?;
        cgroups.hold(&spec, pid).map_err(LaunchError::Bound)?;
        Ok(pid)
    };
    timeout(LAUNCH_WAIT, begun).await.unwrap_or(Err(LaunchError::TimedOut))
}

/// Adopts every VM's process that is there.
pub async fn adopt_all(config: &VmmConfig, registry: &Registry, cgroups: &Cgroups) -> io::Result<()> {
    let folder = config.places.vms();
    folder::make_private(&folder)?;
    for entry in std::fs::read_dir(&folder)? {
        let entry = entry?;
        let Some(vm) = entry.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()) else {
            tracing::warn!(name = ?entry.file_name(), "not a VM's folder; left alone");
            continue;
        };
        let adopted = timeout(ADOPT_WAIT, adopt(registry, cgroups, &vm, entry.path())).await;
        if matches!(adopted, Ok(Ok(None)))
            && let Err(error) = folder::tidy(&entry.path())
        {
            tracing::warn!(%vm, %error, "a leftover stays");
        }
        match adopted {
            Ok(Ok(Some(pid))) => tracing::info!(%vm, pid, "adopted"),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(%vm, %error, "a VM's process could not be adopted"),
            Err(_) => tracing::warn!(%vm, "a VM's process does not answer; not adopted"),
        }
    }
    Ok(())
}

async fn adopt(
    registry: &Registry,
    cgroups: &Cgroups,
    vm: &VmId,
    folder: PathBuf,
) -> Result<Option<i32>, LaunchError> {
    // Nobody listens: no process.
    let Ok(wire) = Wire::connect(&folder.join(SOCKET)) else { return Ok(None) };
    let Peer { pid, uid, .. } = wire.peer().map_err(LaunchError::Spawn)?;
    // The socket is where the VM's process put it, and that may have gone over to the guest's side.
    if uid != users::owner(&folder).map_err(LaunchError::User)? {
        return Err(LaunchError::Stranger);
    }
    let pidfd = open_pidfd(pid).map_err(LaunchError::Spawn)?;
    wire.send(&MachineRequest::Subscribe, &[]).await.map_err(LaunchError::Wire)?;
    let (message, _) = wire.receive::<MachineMessage>().await.map_err(LaunchError::Wire)?;
    let MachineMessage::Running { vm: said, instance, agent_ready } = message else {
        return Err(LaunchError::Unexpected);
    };
    if said != *vm {
        return Err(LaunchError::Unexpected);
    }
    follow(registry, cgroups, vm, instance, Process { pid, pidfd, wire, child: None }, agent_ready)
        .map_err(LaunchError::Spawn)?;
    Ok(Some(pid))
}

struct Process {
    pid: i32,
    pidfd: OwnedFd,
    wire: Wire,
    child: Option<Child>,
}

/// Enters a process into the registry and follows it from now on.
fn follow(
    registry: &Registry,
    cgroups: &Cgroups,
    vm: &VmId,
    instance: VmInstanceId,
    process: Process,
    agent_ready: bool,
) -> io::Result<()> {
    let Process { pid, pidfd, wire, child } = process;
    let (sender, orders) = mpsc::channel(ORDERS_WAITING);
    let watched = match pidfd.try_clone().and_then(feed::sys::register) {
        Ok(watched) => watched,
        Err(error) => {
            // What cannot be followed must not run.
            rustix::process::pidfd_send_signal(&pidfd, Signal::KILL)?;
            return Err(error);
        }
    };
    let running = Arc::new(Running::new(instance, pid, pidfd, sender, agent_ready));
    registry.began(vm, Arc::clone(&running));
    let followed =
        Followed { vm: vm.clone(), running, wire, pidfd: watched, child, orders, cgroups: cgroups.clone() };
    tokio::spawn(followed.follow(registry.clone()));
    Ok(())
}

/// The queues of the VM's TAP. Blocks until vpc answers.
fn taps(socket: &Path, plan: &MachinePlan) -> Result<Vec<OwnedFd>, LaunchError> {
    match &plan.spec.nic {
        Some(nic) => vpc::client::tap(socket, &plan.spec.vm, nic.generation).map_err(LaunchError::Tap),
        None => Ok(Vec::new()),
    }
}

async fn order_start(
    near: OwnedFd,
    pid: i32,
    plan: MachinePlan,
    handed: Handed,
) -> Result<(Wire, OwnedFd), LaunchError> {
    let pidfd = open_pidfd(pid).map_err(LaunchError::Spawn)?;
    let wire = Wire::of(near).map_err(LaunchError::Spawn)?;
    let order = MachineRequest::Start(Box::new(plan));
    wire.send(&order, &handed.descriptors()).await.map_err(LaunchError::Wire)?;
    match wire.receive::<MachineMessage>().await.map_err(LaunchError::Wire)?.0 {
        MachineMessage::Running { .. } => Ok((wire, pidfd)),
        MachineMessage::Refused { reason, message } => Err(LaunchError::Refused { reason, message }),
        MachineMessage::Done
        | MachineMessage::AgentReady
        | MachineMessage::Idle
        | MachineMessage::Rebooting
        | MachineMessage::Exited { .. } => Err(LaunchError::Unexpected),
    }
}

/// Ends a process that did not become a machine.
fn end(child: &mut Child) {
    if let Err(error) = child.kill().and_then(|()| child.wait()) {
        tracing::error!(%error, "cannot end a VM's process");
    }
}

fn open_pidfd(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
    // tokio's reactor wants it non-blocking.
    Ok(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}
