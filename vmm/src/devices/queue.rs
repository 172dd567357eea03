//! A split virtqueue as the devices use it: batches of used buffers and few interrupts.
//!
//! The driver's half (available ring, chains) is `virtio_queue::Queue`. The used half is here, because a frame
//! that fills several buffers must become visible at once (virtio 1.2 section 5.1.6.4), and because the flag
//! that asks for no interrupts is honoured.

use super::chain::Chain;
use super::state::QueueState;
use super::{Counter, Fault, GuestRam};
use std::sync::atomic::{Ordering, fence};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

/// `VRING_AVAIL_F_NO_INTERRUPT` (virtio 1.2 section 2.7.6).
const NO_INTERRUPT: u16 = 1;
/// Bytes of the flags and the index in front of either ring.
const RING_HEADER: u64 = 4;
/// Offset of the index in either ring.
const RING_INDEX: u64 = 2;
/// Bytes of one entry of the used ring.
const USED_ENTRY: u64 = 8;
/// Bytes of one entry of the available ring.
const AVAIL_ENTRY: u64 = 2;

/// An active queue. Belongs to the worker of its device.
#[derive(Debug)]
pub struct DeviceQueue {
    queue: Queue,
    /// Used entries written behind `next_used` and not yet shown to the driver.
    unpublished: u16,
    /// Entries shown since the last decision about an interrupt.
    unsignalled: u16,
}

impl DeviceQueue {
    /// Takes a queue over from what the driver configured, or from a saved state.
    ///
    /// # Errors
    /// When its size or alignment is not allowed, or a ring lies outside of memory.
    pub fn new(mem: &GuestRam, state: QueueState) -> Result<Self, Fault> {
        let queue = Queue::try_from(virtio_queue::QueueState::from(state))
            .map_err(|_| Fault::Guest(Counter::QueueRefused))?;
        if !in_range(&state) || !queue.is_valid(mem) {
            return Err(Fault::Guest(Counter::QueueRefused));
        }
        Ok(Self { queue, unpublished: 0, unsignalled: 0 })
    }

    /// What a restore needs. Used buffers that were not published yet are not part of it.
    #[must_use]
    pub fn save(&self) -> QueueState {
        self.queue.state().into()
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the next chain, if the driver has made one available.
    ///
    /// # Errors
    /// A [`Fault`] when the ring or the chain is wrong.
    pub fn pop(&mut self, mem: &GuestRam, chain: &mut Chain) -> Result<bool, Fault> {
        let mut available = self.queue.iter(mem).map_err(|e| ring_fault(&e))?;
        match available.next() {
            None => Ok(false),
            Some(descriptors) => chain.parse(descriptors).map(|()| true),
        }
    }

    /// Gives back the last `count` chains that were taken, so that they are taken again later.
    pub fn undo_pop(&mut self, count: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(count));
    }

    /// Writes a used entry that the driver does not see before [`Self::publish`].
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn push_used(&mut self, mem: &GuestRam, head: u16, written: u32) -> Result<(), Fault> {
        let index = self.queue.next_used().wrapping_add(self.unpublished) % self.queue.size();
        let at = RING_HEADER + USED_ENTRY * u64::from(index);
        let entry = u64::from(head) | u64::from(written) << 32;
        let addr = ring_address(self.queue.used_ring(), at)?;
        mem.write_obj(entry.to_le(), addr).map_err(|_| Fault::Guest(Counter::RingUnreachable))?;
        self.unpublished = self.unpublished.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver all used entries written so far.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn publish(&mut self, mem: &GuestRam) -> Result<(), Fault> {
        if self.unpublished == 0 {
            return Ok(());
        }
        let next = self.queue.next_used().wrapping_add(self.unpublished);
        let addr = ring_address(self.queue.used_ring(), RING_INDEX)?;
        mem.store(next.to_le(), addr, Ordering::Release)
            .map_err(|_| Fault::Guest(Counter::RingUnreachable))?;
        self.queue.set_next_used(next);
        self.unsignalled = self.unsignalled.saturating_add(self.unpublished);
        self.unpublished = 0;
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since the last call.
    ///
    /// # Errors
    /// When the ring cannot be read.
    pub fn needs_interrupt(&mut self, mem: &GuestRam) -> Result<bool, Fault> {
        if self.unsignalled == 0 {
            return Ok(false);
        }
        let added = std::mem::take(&mut self.unsignalled);
        // The index must be visible before the driver's wish is read, else both sides may wait.
        fence(Ordering::SeqCst);
        let at = if self.queue.event_idx_enabled() {
            RING_HEADER + AVAIL_ENTRY * u64::from(self.queue.size())
        } else {
            0
        };
        let addr = ring_address(self.queue.avail_ring(), at)?;
        let word: u16 =
            mem.load(addr, Ordering::Relaxed).map_err(|_| Fault::Guest(Counter::RingUnreachable))?;
        let word = u16::from_le(word);
        if !self.queue.event_idx_enabled() {
            return Ok(word & NO_INTERRUPT == 0);
        }
        // virtio 1.2 section 2.7.7.2: the driver's index lies among the entries that were added.
        let new = self.queue.next_used();
        Ok(new.wrapping_sub(word).wrapping_sub(1) < added)
    }

    /// Asks the driver to notify of new chains; true when some came in the meantime, so look again.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn enable_notification(&mut self, mem: &GuestRam) -> Result<bool, Fault> {
        self.queue.enable_notification(mem).map_err(|e| ring_fault(&e))
    }

    /// Tells the driver that it need not notify while the queue is being worked on.
    ///
    /// # Errors
    /// When the ring cannot be written.
    pub fn disable_notification(&mut self, mem: &GuestRam) -> Result<(), Fault> {
        self.queue.disable_notification(mem).map_err(|e| ring_fault(&e))
    }
}

/// Whether each ring ends before the end of the address space.
fn in_range(state: &QueueState) -> bool {
    let size = u64::from(state.size);
    [(state.desc_table, 16 * size), (state.avail_ring, 6 + 2 * size), (state.used_ring, 6 + 8 * size)]
        .iter()
        .all(|(start, len)| *start != 0 && start.checked_add(*len).is_some())
}

fn ring_address(ring: u64, offset: u64) -> Result<GuestAddress, Fault> {
    GuestAddress(ring).checked_add(offset).ok_or(Fault::Guest(Counter::RingUnreachable))
}

fn ring_fault(error: &Error) -> Fault {
    Fault::Guest(match error {
        Error::InvalidAvailRingIndex => Counter::AvailIndexJump,
        Error::QueueNotReady => Counter::QueueRefused,
        // Everything else is an address that could not be reached.
        _ => Counter::RingUnreachable,
    })
}

#[cfg(test)]
mod tests;
