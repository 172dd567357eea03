//! Commands and files that are under way in each VM. They are no traffic, but a VM does not fall asleep under them.
//!
//! ```text
//! enter ──► counted ──► (idle is told: remembered) ──► the last one leaves ──► sleep now
//! close ──► newcomers wait for their turn instead of talking to a machine that falls asleep
//! ```

use model::id::{VmId, VmInstanceId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Whom idle VMs are told to when their last command ends.
type Sleepers = mpsc::Sender<(VmId, VmInstanceId)>;

/// All VMs in which something is under way, or which fall asleep.
#[derive(Debug)]
pub(super) struct Busy {
    vms: Arc<Mutex<HashMap<VmId, Entry>>>,
    sleepers: Sleepers,
}

#[derive(Debug, Default)]
struct Entry {
    under_way: usize,
    /// It falls asleep.
    closing: usize,
    /// The idle period that was told last.
    idle: Option<Idle>,
}

#[derive(Debug)]
struct Idle {
    instance: VmInstanceId,
    told: Instant,
    /// How long one period lasts. A word that is older says nothing: there was traffic since, or it would have been
    /// told again.
    period: Duration,
}

/// Something is under way in a VM until this is dropped.
#[derive(Debug)]
pub struct UnderWay {
    vms: Arc<Mutex<HashMap<VmId, Entry>>>,
    sleepers: Sleepers,
    vm: VmId,
    /// The VM falls asleep at this moment: wait for your turn.
    pub falls_asleep: bool,
}

/// A VM falls asleep until this is dropped.
#[derive(Debug)]
pub(super) struct Closed {
    vms: Arc<Mutex<HashMap<VmId, Entry>>>,
    vm: VmId,
}

impl Busy {
    /// `sleepers` is told of VMs that were idle while their last command ended. One that finds no place there is told
    /// after its next idle period.
    pub(super) fn new(sleepers: Sleepers) -> Self {
        Self { vms: Arc::default(), sleepers }
    }

    /// Something begins in a VM.
    pub(super) fn enter(&self, vm: &VmId) -> UnderWay {
        let mut vms = lock(&self.vms);
        let entry = vms.entry(vm.clone()).or_default();
        entry.under_way += 1;
        UnderWay {
            vms: Arc::clone(&self.vms),
            sleepers: self.sleepers.clone(),
            vm: vm.clone(),
            falls_asleep: entry.closing > 0,
        }
    }

    /// A VM falls asleep, whatever is under way.
    pub(super) fn close(&self, vm: &VmId) -> Closed {
        lock(&self.vms).entry(vm.clone()).or_default().closing += 1;
        Closed { vms: Arc::clone(&self.vms), vm: vm.clone() }
    }

    /// A VM falls asleep if nothing is under way.
    pub(super) fn close_if_free(&self, vm: &VmId) -> Option<Closed> {
        let mut vms = lock(&self.vms);
        if vms.get(vm).is_some_and(|entry| entry.under_way > 0) {
            return None;
        }
        vms.entry(vm.clone()).or_default().closing += 1;
        Some(Closed { vms: Arc::clone(&self.vms), vm: vm.clone() })
    }

    /// Its NIC was idle for a whole period. True: something is under way, and it is told when that ends.
    pub(super) fn idle(&self, vm: &VmId, instance: &VmInstanceId, period: Duration) -> bool {
        let mut vms = lock(&self.vms);
        let Some(entry) = vms.get_mut(vm).filter(|entry| entry.under_way > 0) else { return false };
        entry.idle = Some(Idle { instance: instance.clone(), told: Instant::now(), period });
        true
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut vms = lock(&self.vms);
        let Some(entry) = vms.get_mut(&self.vm) else { return };
        entry.under_way -= 1;
        if entry.under_way > 0 {
            return;
        }
        let idle = entry.idle.take().filter(|idle| idle.told.elapsed() < idle.period);
        if entry.closing == 0 {
            vms.remove(&self.vm);
        }
        if let Some(idle) = idle {
            // When the queue is full, or nobody listens any more, the next idle period tells it again.
            drop(self.sleepers.try_send((self.vm.clone(), idle.instance)));
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        let mut vms = lock(&self.vms);
        let Some(entry) = vms.get_mut(&self.vm) else { return };
        entry.closing -= 1;
        if entry.closing == 0 && entry.under_way == 0 {
            vms.remove(&self.vm);
        }
    }
}

fn lock(vms: &Mutex<HashMap<VmId, Entry>>) -> MutexGuard<'_, HashMap<VmId, Entry>> {
    vms.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_vm_sleeps_when_the_last_command_ends_if_it_was_idle_until_then() {
        let (sleepers, mut told) = mpsc::channel(4);
        let busy = Busy::new(sleepers);
        let (vm, instance) = (VmId::from_random([1; 20]), VmInstanceId::from_random([1; 20]));
        assert!(!busy.idle(&vm, &instance, LONG), "nothing is under way: sleep now");
        let (one, two) = (busy.enter(&vm), busy.enter(&vm));
        assert!(busy.idle(&vm, &instance, LONG) && busy.close_if_free(&vm).is_none());
        drop(one);
        assert!(told.try_recv().is_err(), "one goes on");
        drop(two);
        assert_eq!(told.try_recv(), Ok((vm.clone(), instance.clone())));
        let three = busy.enter(&vm);
        assert!(busy.idle(&vm, &instance, Duration::ZERO));
        drop(three);
        assert!(told.try_recv().is_err(), "the word is older than a period: there was traffic");
        assert!(lock(&busy.vms).is_empty());
    }

    #[test]
    fn who_comes_while_a_vm_falls_asleep_is_told_so() {
        let busy = Busy::new(mpsc::channel(4).0);
        let vm = VmId::from_random([1; 20]);
        let closed = busy.close_if_free(&vm).expect("free");
        let late = busy.enter(&vm);
        assert!(late.falls_asleep);
        drop(closed);
        assert!(!busy.enter(&vm).falls_asleep);
        let forced = busy.close(&vm);
        drop((late, forced));
        assert!(lock(&busy.vms).is_empty());
    }
}
