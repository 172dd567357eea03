//! What runs. Each change and its event are one step, so that a subscriber who is told the present misses nothing.

use super::wakes::Woken;
use crate::client::{ExitReason, VmmEvent};
use crate::machine::control::MachineRequest;
use model::id::{VmId, VmInstanceId};
use rustix::process::Signal;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, mpsc, watch};

/// Events that a slow subscriber may be behind; over it, it is cut off and must subscribe again.
const EVENTS_BEHIND: usize = 4096;
/// Machines at once on a host. Each is a process with threads and some MiB beside its memory.
pub const MAX_MACHINES: usize = 1024;

/// Why a machine is on its way down, if somebody asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Intent {
    /// Nobody asked.
    None,
    /// A clean stop.
    Stop,
    /// At once, or the grace was over.
    Kill,
}

/// A VM's process.
#[derive(Debug)]
pub struct Running {
    /// Which run of the VM.
    pub instance: VmInstanceId,
    /// Its process.
    pub pid: i32,
    /// The same, not reused while this is open.
    pub pidfd: OwnedFd,
    /// Requests for it.
    pub orders: mpsc::Sender<MachineRequest>,
    down: watch::Sender<bool>,
    facts: Mutex<Facts>,
}

#[derive(Debug)]
struct Facts {
    agent_ready: bool,
    intent: Intent,
}

impl Running {
    /// A process that was just started or adopted.
    #[must_use]
    pub fn new(
        instance: VmInstanceId,
        pid: i32,
        pidfd: OwnedFd,
        orders: mpsc::Sender<MachineRequest>,
        agent_ready: bool,
    ) -> Self {
        let facts = Mutex::new(Facts { agent_ready, intent: Intent::None });
        Self { instance, pid, pidfd, orders, down: watch::Sender::new(false), facts }
    }

    /// Notes that somebody wants it down. A stop does not take back a kill.
    pub fn intend(&self, intent: Intent) {
        let mut facts = lock(&self.facts);
        facts.intent = facts.intent.max(intent);
    }

    /// Why it is going down.
    #[must_use]
    pub fn intent(&self) -> Intent {
        lock(&self.facts).intent
    }

    /// Kills the process. One that is gone already is as good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> std::io::Result<()> {
        self.intend(Intent::Kill);
        match rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until it is down.
    pub async fn wait_down(&self) {
        // The sender is in self, so the wait cannot fail.
        let mut changes = self.down.subscribe();
        let waited = changes.wait_for(|down| *down).await.is_ok();
        debug_assert!(waited);
    }
}

/// All that runs, and who is told of changes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    slots: HashMap<VmId, Slot>,
    woken: Woken,
    events: broadcast::Sender<VmmEvent>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Held by the one operation that changes whether the VM runs.
    turn: Arc<tokio::sync::Mutex<()>>,
    running: Option<Arc<Running>>,
}

impl Default for Registry {
    fn default() -> Self {
        let events = broadcast::Sender::new(EVENTS_BEHIND);
        let inner = Inner { slots: HashMap::new(), woken: Woken::default(), events };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl Registry {
    /// The turn of operations on a VM.
    #[must_use]
    pub fn turn(&self, vm: &VmId) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&lock(&self.inner).slots.entry(vm.clone()).or_default().turn)
    }

    /// The VM's process, if it has one.
    #[must_use]
    pub fn running(&self, vm: &VmId) -> Option<Arc<Running>> {
        lock(&self.inner).slots.get(vm)?.running.clone()
    }

    /// How many machines run.
    #[must_use]
    pub fn count(&self) -> usize {
        lock(&self.inner).slots.values().filter(|slot| slot.running.is_some()).count()
    }

    /// A process began.
    pub fn began(&self, vm: &VmId, running: Arc<Running>) {
        let mut inner = lock(&self.inner);
        inner.tell(present(vm, &running));
        inner.woken.remove(vm);
        inner.slots.entry(vm.clone()).or_default().running = Some(running);
    }

    /// Packets wait for a VM. Told when it has no process; otherwise its process is given back.
    pub fn wake(&self, vm: &VmId) -> Option<Arc<Running>> {
        let mut inner = lock(&self.inner);
        if let Some(running) = inner.slots.get(vm).and_then(|slot| slot.running.clone()) {
            return Some(running);
        }
        inner.woken.insert(vm);
        inner.tell(VmmEvent::Wake { vm: vm.clone() });
        None
    }

    /// The wakes that were told of VMs which had no process since. Asked for after [`Self::subscribe`], some may be
    /// among the events, too.
    #[must_use]
    pub fn pending_wakes(&self) -> Vec<VmmEvent> {
        lock(&self.inner).woken.iter().map(|vm| VmmEvent::Wake { vm: vm.clone() }).collect()
    }

    /// The agent is ready.
    pub fn agent_ready(&self, vm: &VmId, running: &Running) {
        let inner = lock(&self.inner);
        lock(&running.facts).agent_ready = true;
        inner.tell(VmmEvent::AgentReady { vm: vm.clone(), instance: running.instance.clone() });
    }

    /// The NIC was idle for its period.
    pub fn idle(&self, vm: &VmId, running: &Running) {
        lock(&self.inner).tell(VmmEvent::Idle { vm: vm.clone(), instance: running.instance.clone() });
    }

    /// The guest restarts.
    pub fn rebooting(&self, vm: &VmId, running: &Running) {
        let inner = lock(&self.inner);
        lock(&running.facts).agent_ready = false;
        inner.tell(VmmEvent::Rebooting { vm: vm.clone(), instance: running.instance.clone() });
    }

    /// The process ended.
    pub fn ended(&self, vm: &VmId, running: &Running, reason: ExitReason) {
        let mut inner = lock(&self.inner);
        if let Some(slot) = inner.slots.get_mut(vm) {
            slot.running = None;
        }
        inner.tell(VmmEvent::Exited { vm: vm.clone(), instance: running.instance.clone(), reason });
        running.down.send_replace(true);
    }

    /// Forgets a VM that does not run and for which nobody waits.
    pub fn forget(&self, vm: &VmId) {
        let mut inner = lock(&self.inner);
        inner.woken.remove(vm);
        // One count is the slot's own, one is the caller's turn.
        let idle = |slot: &Slot| slot.running.is_none() && Arc::strong_count(&slot.turn) <= 2;
        if inner.slots.get(vm).is_some_and(idle) {
            inner.slots.remove(vm);
        }
    }

    /// What runs now, and the events after that.
    #[must_use]
    pub fn subscribe(&self) -> (Vec<VmmEvent>, broadcast::Receiver<VmmEvent>) {
        let inner = lock(&self.inner);
        let runs = inner.slots.iter().filter_map(|(vm, slot)| Some(present(vm, slot.running.as_ref()?)));
        (runs.collect(), inner.events.subscribe())
    }
}

impl Inner {
    fn tell(&self, event: VmmEvent) {
        // Without a subscriber nobody needs to know: the next one is told the present first.
        drop(self.events.send(event));
    }
}

fn present(vm: &VmId, running: &Running) -> VmmEvent {
    VmmEvent::Machine {
        vm: vm.clone(),
        instance: running.instance.clone(),
        pid: running.pid,
        agent_ready: lock(&running.facts).agent_ready,
    }
}

/// No code under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
