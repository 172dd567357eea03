//! What puts VMs to sleep and wakes them without anybody asking through the API: idle NICs and packets.

use super::Machines;
use super::error::OpError;
use super::notes::Notes;
use super::slots::Turn;
use crate::figures::Operation;
use crate::pure::phase::{Ask, Event, Phase};
use crate::pure::request::DEFAULT_READY_WAIT;
use crate::pure::retry;
use crate::store::VmRecord;
use model::id::{VmId, VmInstanceId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

/// VMs that are being woken by packets, and whether that was asked again meanwhile.
#[derive(Debug, Default)]
pub(super) struct Wakes(Mutex<HashMap<VmId, bool>>);

impl Wakes {
    /// False: somebody is at it already, and will look again.
    pub(super) fn begin(&self, vm: &VmId) -> bool {
        let mut wakes = self.lock();
        if let Some(again) = wakes.get_mut(vm) {
            *again = true;
            return false;
        }
        wakes.insert(vm.clone(), false);
        true
    }

    /// False: it was asked again.
    pub(super) fn end(&self, vm: &VmId) -> bool {
        let mut wakes = self.lock();
        if let Some(again) = wakes.get_mut(vm)
            && *again
        {
            *again = false;
            return false;
        }
        wakes.remove(vm);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Machines {
    /// Packets wait for a VM: one that sleeps is woken, however long that takes. vpc tells it once for each sleep, so a
    /// wake that fails is tried again for as long as the VM sleeps.
    pub(super) fn wake(&self, vm: VmId) {
        if !self.0.wakes.begin(&vm) {
            return;
        }
        let machines = self.clone();
        tokio::spawn(async move {
            let mut failed = 0;
            loop {
                match machines.nudge(&vm, Ask::Start, |record| record.phase == Phase::Suspended).await {
                    Ok(_) if machines.0.wakes.end(&vm) => return,
                    Ok(_) => failed = 0,
                    Err(error) => {
                        let wait = retry::wait(failed);
                        warn!(%vm, %error, ?wait, "a VM for which packets wait cannot be woken yet");
                        tokio::time::sleep(wait).await;
                        failed = failed.saturating_add(1);
                    }
                }
            }
        });
    }

    /// A NIC was idle for a whole period: its VM sleeps, or does so when its last command ends.
    pub(super) async fn idle(&self, vm: &VmId, instance: &VmInstanceId) -> Result<(), OpError> {
        let Some(record) = self.0.store.vm(vm).await? else { return Ok(()) };
        let Some(seconds) = idles(&record, instance) else { return Ok(()) };
        if self.0.busy.idle(vm, instance, Duration::from_secs(seconds.max(1))) {
            debug!(%vm, "it is idle, but for a command");
            return Ok(());
        }
        match self.nudge(vm, Ask::Suspend, |record| idles(record, instance).is_some()).await {
            // Traffic came first. Its next idle period is told again.
            Err(error @ OpError::Vmm(vmm::client::VmmError::Refused { .. })) => {
                debug!(%vm, %error, "no sleep")
            }
            // Told again with each idle period, and tried again.
            Err(error @ OpError::NoStorage(..)) => warn!(%vm, %error, "it is idle, and stays awake"),
            Err(error) => return Err(error),
            Ok(Some(_)) => info!(%vm, "it was idle, and sleeps"),
            Ok(None) => {}
        }
        Ok(())
    }

    /// Puts VMs to sleep whose last command has ended.
    pub(super) async fn put_to_sleep(self, mut told: mpsc::Receiver<(VmId, VmInstanceId)>) {
        while let Some((vm, instance)) = told.recv().await {
            let machines = self.clone();
            tokio::spawn(async move {
                if let Err(error) = machines.idle(&vm, &instance).await {
                    warn!(%vm, %error, "an idle VM does not sleep yet");
                }
            });
        }
    }

    /// Does something to a VM that nobody asked for through the API, if it still fits when its turn has come. None: it
    /// did not, or nothing is left of the VM.
    pub(super) async fn nudge(
        &self,
        vm: &VmId,
        ask: Ask,
        fits: impl Fn(&VmRecord) -> bool,
    ) -> Result<Option<VmRecord>, OpError> {
        self.supervisor().await?;
        let mut turn = self.0.slots.turn(vm).await?;
        let Some(mut record) = self.0.store.vm(vm).await? else { return Ok(None) };
        let notes = Notes::default();
        if !record.phase.at_rest() && ask != Ask::Delete {
            let event = self.0.resumption(&record);
            let mut drive = self.0.drive(record, &mut turn, DEFAULT_READY_WAIT, &notes);
            if !drive.run(event).await? {
                return Ok(None);
            }
            record = drive.record;
        }
        if !fits(&record) {
            return Ok(None);
        }
        let closed = (ask == Ask::Suspend).then(|| self.0.busy.close_if_free(vm));
        if matches!(closed, Some(None)) {
            return Ok(None);
        }
        let (there, record) = self.perform(record, &mut turn, DEFAULT_READY_WAIT, &notes, ask).await?;
        drop((turn, closed));
        if !there {
            self.0.slots.sweep();
        }
        Ok(Some(record))
    }

    /// Drives a VM that is at rest to what is asked, making room on the host if it must. True: it is still there.
    pub(super) async fn perform(
        &self,
        record: VmRecord,
        turn: &mut Turn,
        ready_wait: Duration,
        notes: &Notes,
        ask: Ask,
    ) -> Result<(bool, VmRecord), OpError> {
        let (begun, operation) = (Instant::now(), operation(ask, record.phase));
        let mut drive = self.0.drive(record, turn, ready_wait, notes);
        let done = match ask {
            Ask::Start => self.start(&mut drive).await,
            Ask::Suspend => self.suspend(&mut drive).await,
            Ask::Stop | Ask::Kill | Ask::Delete => drive.run(Event::Asked(ask)).await,
        };
        if let Some(operation) = operation {
            self.0.ledger.operation(operation, done.is_ok(), begun.elapsed());
        }
        Ok((done?, drive.record))
    }
}

/// What it is to ask this of a VM that is at rest; none: nothing is to be done.
fn operation(ask: Ask, phase: Phase) -> Option<Operation> {
    let runs = phase == Phase::Running;
    match ask {
        Ask::Start if phase == Phase::Suspended => Some(Operation::Wake),
        Ask::Start => (!runs).then_some(Operation::Start),
        Ask::Suspend => runs.then_some(Operation::Suspend),
        Ask::Stop | Ask::Kill => runs.then_some(Operation::Stop),
        Ask::Delete => Some(Operation::Delete),
    }
}

/// The idle period of a VM that runs as this instance and may sleep.
fn idles(record: &VmRecord, instance: &VmInstanceId) -> Option<u64> {
    let runs = record.phase == Phase::Running && record.instance == *instance;
    record.idle_timeout_seconds.filter(|_| runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_that_comes_during_another_is_not_lost() {
        let wakes = Wakes::default();
        let vm = VmId::from_random([1; 20]);
        assert!(wakes.begin(&vm));
        assert!(!wakes.begin(&vm) && !wakes.begin(&vm));
        assert!(!wakes.end(&vm), "look again");
        assert!(wakes.end(&vm));
        assert!(wakes.begin(&vm));
    }
}
