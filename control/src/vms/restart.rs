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

impl Restarts {
    /// A VM crashed. The wait before it is started again, if it is.
    fn crashed(&self, vm: &VmId) -> Option<Duration> {
        let mut vms = self.lock();
        let crashes = vms.entry(vm.clone()).or_insert(Crashes { restarts: 0, begun: None, due: false });
        let (restarts, wait) = retry::restart(crashes.restarts, crashes.begun.map(|begun| begun.elapsed()))?;
        (crashes.restarts, crashes.due) = (restarts, true);
        Some(wait)
    }

    fn waits(&self, vm: &VmId) -> bool {
        self.lock().get(vm).is_some_and(|crashes| crashes.due)
    }

    /// The wait is over. False: it is not wanted any more.
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
    /// A VM that was meant to run is down: starts it again after a while if it crashed.
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
            tokio::spawn(self.clone().restart(now.id.clone()));
        }
    }

    async fn restart(self, vm: VmId) {
        while let Some(wait) = self.0.restarts.crashed(&vm) {
            info!(%vm, ?wait, "it crashed, and is started again");
            tokio::time::sleep(wait).await;
            if !self.0.restarts.begin(&vm) {
                return;
            }
            match self.nudge(&vm, Ask::Start, |record| record.phase == Phase::Stopped).await {
                Ok(_) => return,
                Err(error) => warn!(%vm, %error, "it crashed, and cannot be started"),
            }
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
