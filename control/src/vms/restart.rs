//! VMs that crash are started again, later and later, and not for ever.

use super::Machines;
use super::observed::Machine;
use crate::pure::phase::{Ask, Phase};
use crate::pure::retry;
use crate::store::VmRecord;
use model::api::vm::Persistence;
use model::id::VmId;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use vmm::client::ExitReason;

/// VMs that crashed lately. A restart of control forgets them: they are left as they are then.
#[derive(Debug, Default)]
pub(super) struct Restarts(Mutex<HashMap<VmId, Crashes>>);

#[derive(Debug)]
struct Crashes {
    restarts: u32,
    /// When the last restart began.
    begun: Option<Instant>,
    /// The next one is waited for.
    due: bool,
}

impl Crashes {
    fn again(&mut self) -> Option<Duration> {
        let (restarts, wait) = retry::restart(self.restarts, self.begun.map(|begun| begun.elapsed()))?;
        (self.restarts, self.due) = (restarts, true);
        Some(wait)
    }
}

impl Restarts {
    /// A VM crashed. The wait before it is started again, if it is.
    fn crashed(&self, vm: &VmId) -> Option<Duration> {
        let mut vms = self.lock();
        vms.entry(vm.clone()).or_insert(Crashes { restarts: 0, begun: None, due: false }).again()
    }

    /// A restart failed. The wait before the next one, if there is one; none at all when it is not wanted any more.
    fn failed(&self, vm: &VmId) -> Option<Option<Duration>> {
        let mut vms = self.lock();
        let crashes = vms.get_mut(vm)?;
        Some(crashes.again())
    }

    fn waits(&self, vm: &VmId) -> bool {
        self.lock().get(vm).is_some_and(|crashes| crashes.due)
    }

    /// The wait is over, and the VM's turn is had: who had it before may have cancelled. False: it is not wanted any more.
    fn begin(&self, vm: &VmId) -> bool {
        let mut vms = self.lock();
        let Some(crashes) = vms.get_mut(vm).filter(|crashes| crashes.due) else { return false };
        (crashes.begun, crashes.due) = (Some(Instant::now()), false);
        true
    }

    /// Somebody asks something of the VM, or it is gone.
    pub(super) fn cancel(&self, vm: &VmId) {
        self.lock().remove(vm);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Crashes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machines {
    /// A VM that was meant to run is down: starts it again after a while if it crashed. To be called in the VM's turn, so
    /// that whoever has the next one can cancel it.
    pub(super) fn restart_if_crashed(&self, before: &VmRecord, now: &VmRecord) {
        let machine = self.0.observed.get(&now.id).filter(|machine| machine.instance == before.instance);
        // One that waits for its restart already has its task.
        let waits = self.0.restarts.waits(&now.id);
        let ephemeral = matches!(now.persistence, Persistence::Ephemeral { .. });
        if before.phase == Phase::Running
            && now.phase == Phase::Stopped
            && !ephemeral
            && !waits
            && crashed(machine)
        {
            let wait = self.0.restarts.crashed(&now.id);
            tokio::spawn(self.clone().restart(now.id.clone(), wait));
        }
    }

    async fn restart(self, vm: VmId, mut next: Option<Duration>) {
        let restarts = &self.0.restarts;
        while let Some(wait) = next {
            info!(%vm, ?wait, "it crashed, and is started again");
            tokio::time::sleep(wait).await;
            let fits = |record: &VmRecord| record.phase == Phase::Stopped && restarts.begin(&vm);
            match self.nudge(&vm, Ask::Start, fits).await {
                Ok(_) => return,
                Err(error) => warn!(%vm, %error, "it crashed, and cannot be started"),
            }
            let Some(again) = restarts.failed(&vm) else { return };
            next = again;
        }
        warn!(%vm, most = retry::MAX_RESTARTS, "it crashed too often, and is left alone");
    }
}

fn crashed(machine: Option<Machine>) -> bool {
    machine.and_then(|machine| machine.exit).is_some_and(|reason| match reason {
        ExitReason::Panicked { .. } | ExitReason::Kvm { .. } | ExitReason::ProcessDied { .. } => true,
        ExitReason::Stopped | ExitReason::Killed | ExitReason::Suspended | ExitReason::PoweredOff => false,
    })
}
