//! What the supervisor has told about machines, and waiting for it to change.

use crate::pure::phase::Seen;
use model::id::{VmId, VmInstanceId};
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use vmm::client::ExitReason;

/// One machine: the newest run of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Which run.
    pub instance: VmInstanceId,
    /// It has a process.
    pub up: bool,
    /// Its agent has reported since it booted.
    pub ready: bool,
    /// Why it is down.
    pub exit: Option<ExitReason>,
}

/// All machines that are known of.
#[derive(Debug)]
pub struct Observed {
    machines: Mutex<HashMap<VmId, Machine>>,
    /// Changes with each change of the table.
    version: watch::Sender<u64>,
    /// The supervisor is there and has told all that runs.
    synced: watch::Sender<bool>,
}

impl Default for Observed {
    fn default() -> Self {
        Self { machines: Mutex::default(), version: watch::Sender::new(0), synced: watch::Sender::new(false) }
    }
}

impl Observed {
    /// The newest run of a VM.
    #[must_use]
    pub fn get(&self, vm: &VmId) -> Option<Machine> {
        self.lock().get(vm).cloned()
    }

    /// What there is of a VM, beside the run that control knows.
    #[must_use]
    pub fn seen(&self, vm: &VmId, instance: &VmInstanceId) -> Seen {
        match self.lock().get(vm) {
            Some(machine) if machine.up && machine.instance == *instance => Seen::Ours,
            Some(machine) if machine.up => Seen::Other,
            Some(_) | None => Seen::Absent,
        }
    }

    /// VMs that have a process.
    #[must_use]
    pub fn up(&self) -> HashMap<VmId, VmInstanceId> {
        let machines = self.lock();
        let up = machines.iter().filter(|(_, machine)| machine.up);
        up.map(|(vm, machine)| (vm.clone(), machine.instance.clone())).collect()
    }

    /// The machine runs: it was launched, or the supervisor says so. What is known of the same run stays.
    pub fn is_up(&self, vm: &VmId, instance: &VmInstanceId) {
        self.change(vm, instance, |_| {});
    }

    /// The agent has reported, or has gone for a reboot.
    pub fn set_ready(&self, vm: &VmId, instance: &VmInstanceId, ready: bool) {
        self.change(vm, instance, |machine| machine.ready = ready);
    }

    /// The machine is down.
    pub fn is_down(&self, vm: &VmId, instance: &VmInstanceId, reason: ExitReason) {
        self.change(vm, instance, |machine| {
            machine.up = false;
            machine.ready = false;
            machine.exit = Some(reason);
        });
    }

    /// Nothing is left of the VM.
    pub fn forget(&self, vm: &VmId) {
        self.lock().remove(vm);
        self.told();
    }

    /// Whether the supervisor is there and has told all that runs.
    pub fn set_synced(&self, synced: bool) {
        self.synced.send_replace(synced);
    }

    /// See [`Observed::set_synced`].
    #[must_use]
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Tells of each change of the table. Subscribe first, then look.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn change(&self, vm: &VmId, instance: &VmInstanceId, change: impl FnOnce(&mut Machine)) {
        let mut machines = self.lock();
        let fresh = || Machine { instance: instance.clone(), up: true, ready: false, exit: None };
        let machine = machines.entry(vm.clone()).or_insert_with(fresh);
        if machine.instance != *instance {
            *machine = fresh();
        }
        change(machine);
        drop(machines);
        self.told();
    }

    fn told(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a person reads about a machine that is down.
#[must_use]
pub fn describe(reason: &ExitReason) -> String {
    match reason {
        ExitReason::Stopped => "stopped".to_owned(),
        ExitReason::Killed => "killed".to_owned(),
        ExitReason::Suspended => "suspended".to_owned(),
        ExitReason::PoweredOff => "powered off by the guest".to_owned(),
        ExitReason::Panicked { message } => format!("kernel panic: {message}"),
        ExitReason::Kvm { message } => format!("KVM could not go on: {message}"),
        ExitReason::ProcessDied { message } => format!("the VM's process died: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_word_about_the_same_run_changes_nothing_that_came_before() {
        let observed = Observed::default();
        let vm = VmId::from_random([1; 20]);
        let (one, other) = (VmInstanceId::from_random([1; 20]), VmInstanceId::from_random([2; 20]));
        observed.is_down(&vm, &one, ExitReason::PoweredOff);
        observed.is_up(&vm, &one);
        assert_eq!(observed.seen(&vm, &one), Seen::Absent, "it exited before its launch was answered");
        observed.is_up(&vm, &other);
        assert_eq!((observed.seen(&vm, &one), observed.seen(&vm, &other)), (Seen::Other, Seen::Ours));
        observed.set_ready(&vm, &other, true);
        assert!(observed.get(&vm).expect("known").ready);
        observed.forget(&vm);
        assert_eq!(observed.get(&vm), None);
    }
}
