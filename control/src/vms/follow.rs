//! Follows the supervisor: takes in what runs, repairs what does not agree with what is stored, and goes on with
//! what an earlier control began.

use super::Machines;
use super::error::OpError;
use super::notes::Notes;
use crate::pure::phase::{Event, Phase, Seen};
use crate::pure::request::DEFAULT_READY_WAIT;
use crate::store::VmRecord;
use model::id::{SnapshotId, VmId, VmInstanceId};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};
use vmm::client::{Events, ExitReason, VmmError, VmmEvent};

/// Wait between tries to reach the supervisor.
const RECONNECT: Duration = Duration::from_millis(200);
/// VMs that are repaired at once; each may boot a machine.
const REPAIRS: usize = 16;
/// What an effect's failure left open is taken up again so often.
const RETRY: Duration = Duration::from_secs(30);

/// Follows the supervisor for ever, through every absence of it.
pub async fn follow(machines: Machines) {
    let mut told = false;
    loop {
        let before = machines.0.observed.up();
        let ended = match machines.0.vmm.subscribe().await {
            Ok(events) => session(&machines, events, before, &mut told).await,
            Err(error) => error,
        };
        machines.0.observed.set_synced(false);
        if !told {
            warn!(error = %ended, "the supervisor of the VMs is not there; waiting for it");
            told = true;
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

async fn session(
    machines: &Machines,
    mut events: Events,
    before: HashMap<VmId, VmInstanceId>,
    told: &mut bool,
) -> VmmError {
    if let Err(error) = synced(machines, &mut events, before).await {
        return error;
    }
    *told = false;
    info!("the supervisor of the VMs has told what runs");
    machines.0.observed.set_synced(true);
    let repairs = Arc::new(Semaphore::new(REPAIRS));
    repair(machines, &repairs, true).await;
    let mut again = tokio::time::interval(RETRY);
    again.tick().await;
    loop {
        tokio::select! {
            event = events.next() => match event {
                Ok(event) => take(machines, event),
                Err(error) => return error,
            },
            _ = again.tick() => repair(machines, &repairs, false).await,
        }
    }
}

/// Takes in what runs. A machine that was up before the question, and is not in the answer, is down.
async fn synced(
    machines: &Machines,
    events: &mut Events,
    mut before: HashMap<VmId, VmInstanceId>,
) -> Result<(), VmmError> {
    loop {
        match events.next().await? {
            VmmEvent::Synced => break,
            VmmEvent::Machine { vm, instance, agent_ready, .. } => {
                machines.0.observed.set_ready(&vm, &instance, agent_ready);
                before.remove(&vm);
            }
            other @ (VmmEvent::AgentReady { .. }
            | VmmEvent::Rebooting { .. }
            | VmmEvent::Idle { .. }
            | VmmEvent::Wake { .. }
            | VmmEvent::Exited { .. }) => {
                take(machines, other);
            }
        }
    }
    for (vm, instance) in before {
        let message = "its supervisor ended with it".to_owned();
        machines.0.observed.is_down(&vm, &instance, ExitReason::ProcessDied { message });
    }
    Ok(())
}

fn take(machines: &Machines, event: VmmEvent) {
    debug!(?event, "machine");
    match event {
        VmmEvent::Machine { vm, instance, agent_ready, .. } => {
            machines.0.observed.set_ready(&vm, &instance, agent_ready);
        }
        VmmEvent::Synced => {}
        VmmEvent::AgentReady { vm, instance } => machines.0.observed.set_ready(&vm, &instance, true),
        VmmEvent::Rebooting { vm, instance } => {
            machines.0.observed.set_ready(&vm, &instance, false);
            tokio::spawn(rebooted(machines.clone(), vm));
        }
        VmmEvent::Idle { vm, instance } => {
            let machines = machines.clone();
            tokio::spawn(async move { log(&vm, machines.idle(&vm, &instance).await) });
        }
        VmmEvent::Wake { vm } => machines.wake(vm),
        VmmEvent::Exited { vm, instance, reason } => {
            info!(%vm, ?reason, "a machine is down");
            machines.0.observed.is_down(&vm, &instance, reason);
            let machines = machines.clone();
            tokio::spawn(async move { log(&vm, settle(&machines, &vm).await) });
        }
    }
}

/// Pooled connections to a VM that reboots are worth nothing: its next ones have another run.
async fn rebooted(machines: Machines, vm: VmId) {
    let counted = async {
        machines.0.store.bump_run(&vm).await?;
        machines.0.planner.publish().await?;
        Ok::<(), OpError>(())
    };
    log(&vm, counted.await);
}

/// Brings all VMs that owe something to rest; at the first look also those that are not what they seem, and removes
/// machines that nobody knows.
async fn repair(machines: &Machines, repairs: &Arc<Semaphore>, first: bool) {
    // Looked at first: what is launched meanwhile was written down before, and is not taken for unknown.
    let mut unknown = if first { machines.0.observed.up() } else { HashMap::new() };
    let vms = match machines.0.store.vms().await {
        Ok(vms) => vms,
        Err(error) => {
            warn!(%error, "VMs cannot be repaired");
            return;
        }
    };
    let dead = repair_copies(machines, &vms).await;
    for vm in vms {
        unknown.remove(&vm.id);
        if vm.origin.as_ref().is_some_and(|origin| dead.contains(origin)) {
            continue;
        }
        if first && !agrees(machines, &vm) || !vm.phase.at_rest() {
            let (machines, repairs) = (machines.clone(), Arc::clone(repairs));
            tokio::spawn(async move {
                // The semaphore is never closed.
                let _permit = repairs.acquire_owned().await;
                log(&vm.id, settle(&machines, &vm.id).await);
            });
        }
    }
    for vm in unknown.into_keys() {
        warn!(%vm, "a machine that nobody knows is removed");
        let machines = machines.clone();
        tokio::spawn(async move {
            let removed = machines.0.vmm.remove(&vm).await;
            machines.0.observed.forget(&vm);
            log(&vm, removed.map_err(OpError::from));
        });
    }
}

/// Goes on with what is owed of snapshots and forks. Returns the forks whose children are being deleted.
async fn repair_copies(machines: &Machines, vms: &[VmRecord]) -> Vec<SnapshotId> {
    let cleaning = machines.clone();
    tokio::spawn(async move { cleaning.clean().await });
    let dead = match machines.0.store.dead_forks(&machines.0.me).await {
        Ok(dead) => dead,
        Err(error) => {
            warn!(%error, "forks cannot be repaired");
            return Vec::new();
        }
    };
    for fork in dead.clone() {
        let children = vms.iter().filter(|vm| vm.origin.as_ref() == Some(&fork));
        let children: Vec<VmId> = children.map(|vm| vm.id.clone()).collect();
        warn!(%fork, ?children, "a fork that was not done is given up");
        let machines = machines.clone();
        tokio::spawn(async move { machines.give_up(&fork, &children).await });
    }
    dead
}

fn agrees(machines: &Machines, vm: &VmRecord) -> bool {
    let seen = machines.0.observed.seen(&vm.id, &vm.instance);
    match vm.phase {
        Phase::Running => seen == Seen::Ours,
        Phase::Suspended | Phase::Stopped | Phase::Lost => seen == Seen::Absent,
        Phase::Building
        | Phase::Starting
        | Phase::Resuming
        | Phase::Suspending
        | Phase::Stopping
        | Phase::Killing
        | Phase::Deleting => false,
    }
}

/// Takes a VM's turn, compares what is stored with what is seen, and drives it to rest.
async fn settle(machines: &Machines, vm: &VmId) -> Result<(), OpError> {
    let mut turn = machines.0.slots.turn(vm).await?;
    let Some(record) = machines.0.store.vm(vm).await? else { return Ok(()) };
    let event = machines.0.resumption(&record);
    let notes = Notes::default();
    let before = record.clone();
    let mut drive = machines.0.drive(record, &mut turn, DEFAULT_READY_WAIT, &notes);
    let there = drive.run(event).await?;
    let now = drive.record;
    if there {
        machines.restart_if_crashed(&before, &now);
    }
    drop(turn);
    Ok(())
}

impl super::Inner {
    /// How a VM is to be taken up again. A boot whose machine went down in the meantime is over.
    pub(super) fn resumption(&self, record: &VmRecord) -> Event {
        let exit = self
            .observed
            .get(&record.id)
            .filter(|machine| machine.instance == record.instance)
            .and_then(|machine| machine.exit);
        match (record.phase, exit) {
            (Phase::Running | Phase::Suspending, Some(ExitReason::Suspended)) => Event::Suspended,
            (Phase::Resuming, Some(ExitReason::Suspended)) => Event::Resumed(Seen::Absent),
            (Phase::Building | Phase::Starting | Phase::Resuming, Some(_)) => Event::Down,
            // A process that died while it slept in may have been done before: its next start finds out.
            (Phase::Suspending, Some(ExitReason::ProcessDied { .. })) => Event::Resumed(Seen::Absent),
            (Phase::Suspending, Some(_)) => Event::Down,
            (
                Phase::Building
                | Phase::Starting
                | Phase::Resuming
                | Phase::Running
                | Phase::Suspending
                | Phase::Suspended
                | Phase::Stopping
                | Phase::Killing
                | Phase::Stopped
                | Phase::Lost
                | Phase::Deleting,
                _,
            ) => Event::Resumed(self.observed.seen(&record.id, &record.instance)),
        }
    }
}

fn log(vm: &VmId, outcome: Result<(), OpError>) {
    if let Err(error) = outcome {
        warn!(%vm, %error, "VM not repaired yet");
    }
}
