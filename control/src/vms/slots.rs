//! Operations on one VM one after the other, on many VMs side by side.

use super::error::OpError;
use model::id::VmId;
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedMutexGuard, watch};

/// Operations that wait for one VM. A caller that sends more is in a loop.
const MAX_WAITING: usize = 64;

/// The turn of each VM.
#[derive(Debug, Default)]
pub struct Slots {
    slots: Mutex<HashMap<VmId, Arc<Slot>>>,
}

#[derive(Debug)]
struct Slot {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Turns taken or waited for.
    users: AtomicUsize,
    /// Counts those who want the VM down at once: a wait for it to start is of no more use.
    wanted_down: watch::Sender<u64>,
}

/// One's turn at a VM. The next one's begins when it is dropped.
#[derive(Debug)]
pub struct Turn {
    slot: Arc<Slot>,
    /// Somebody wants the VM down from now on.
    pub wanted_down: watch::Receiver<u64>,
    _held: OwnedMutexGuard<()>,
}

impl Slots {
    /// Waits for one's turn.
    ///
    /// # Errors
    /// [`OpError::Crowded`] when too many wait already.
    pub async fn turn(&self, vm: &VmId) -> Result<Turn, OpError> {
        let waiting = Waiting::new(self.slot(vm))?;
        let held = Arc::clone(&waiting.slot.turn).lock_owned().await;
        let slot = waiting.taken();
        let mut wanted_down = slot.wanted_down.subscribe();
        wanted_down.mark_unchanged();
        Ok(Turn { slot, wanted_down, _held: held })
    }

    /// One's turn, if nobody else has it.
    pub fn try_turn(&self, vm: &VmId) -> Option<Turn> {
        let waiting = Waiting::new(self.slot(vm)).ok()?;
        let held = Arc::clone(&waiting.slot.turn).try_lock_owned().ok()?;
        let slot = waiting.taken();
        let mut wanted_down = slot.wanted_down.subscribe();
        wanted_down.mark_unchanged();
        Some(Turn { slot, wanted_down, _held: held })
    }

    /// Ends the wait of whoever has the turn for the VM to start.
    pub fn want_down(&self, vm: &VmId) {
        self.slot(vm).wanted_down.send_modify(|count| *count += 1);
    }

    /// Drops what nobody uses. Called when a VM is gone.
    pub fn sweep(&self) {
        self.lock().retain(|_, slot| Arc::strong_count(slot) > 1);
    }

    fn slot(&self, vm: &VmId) -> Arc<Slot> {
        let fresh = || {
            Arc::new(Slot {
                turn: Arc::default(),
                users: AtomicUsize::new(0),
                wanted_down: watch::Sender::new(0),
            })
        };
        Arc::clone(self.lock().entry(vm.clone()).or_insert_with(fresh))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.slot.users.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in the queue; given back when the caller goes away while it waits.
struct Waiting {
    slot: Arc<Slot>,
    taken: bool,
}

impl Waiting {
    fn new(slot: Arc<Slot>) -> Result<Self, OpError> {
        if slot.users.fetch_add(1, Ordering::Relaxed) < MAX_WAITING {
            return Ok(Self { slot, taken: false });
        }
        slot.users.fetch_sub(1, Ordering::Relaxed);
        Err(OpError::Crowded)
    }

    fn taken(mut self) -> Arc<Slot> {
        self.taken = true;
        Arc::clone(&self.slot)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.taken {
            self.slot.users.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn turns_are_taken_one_after_the_other_and_the_queue_is_bounded() {
        let slots = Arc::new(Slots::default());
        let vm = VmId::from_random([1; 20]);
        let first = slots.turn(&vm).await.expect("first");
        let wait = |_| {
            let (slots, vm) = (Arc::clone(&slots), vm.clone());
            tokio::spawn(async move { slots.turn(&vm).await.map(drop) })
        };
        let waiting: Vec<_> = (1..MAX_WAITING).map(wait).collect();
        let slot = slots.slot(&vm);
        while slot.users.load(Ordering::Relaxed) < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        assert!(matches!(slots.turn(&vm).await, Err(OpError::Crowded)));
        waiting[0].abort();
        slots.want_down(&vm);
        assert!(first.wanted_down.has_changed().expect("the slot lives"));
        slots.sweep();
        assert_eq!(slots.lock().len(), 1, "it is in use");
        drop((first, slot));
        for (number, waiting) in waiting.into_iter().enumerate() {
            assert_eq!(waiting.await.is_ok(), number != 0);
        }
        slots.sweep();
        assert!(slots.lock().is_empty());
    }
}
