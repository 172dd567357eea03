//! The receiving half: from the TAP straight into the buffers that the driver lent.
//!
//! A TAP cuts a frame silently when the buffers are shorter than it. So frames are read into the driver's
//! buffers only when these hold the longest frame; otherwise into one buffer here, from which the frame is
//! copied as soon as there is room. No frame is ever cut.

use super::Activity;
use super::frame::{self, ETHERNET_HEADER, LONGEST_FRAME, PEEK, VNET_HEADER};
use crate::devices::chain::Chain;
use crate::devices::queue::DeviceQueue;
use crate::devices::{Counter, Counters, Fault, GuestRam, sys};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// Offset of `num_buffers` in the virtio-net header.
const NUM_BUFFERS: usize = 10;

/// What came of one attempt to receive.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A frame for the guest.
    Frame,
    /// A frame that was dropped; its reason is counted.
    Dropped,
    /// The network has nothing.
    Nothing,
    /// The driver must lend more buffers first.
    NoRoom,
}

/// Buffers lent by the driver, and at most one frame that waits for more.
#[derive(Debug, Default)]
pub(super) struct Receiver {
    mergeable: bool,
    /// Longest frame that may come, with its header.
    longest: usize,
    lent: VecDeque<Chain>,
    capacity: usize,
    spare: Vec<Chain>,
    /// With its virtio-net header; empty when none waits.
    held: Vec<u8>,
    activity: Arc<Activity>,
}

impl Receiver {
    /// One that counts what the guest gets.
    pub fn new(activity: Arc<Activity>) -> Self {
        Self { activity, ..Self::default() }
    }

    /// What the driver agreed to: several buffers for a frame, and frames of at most `longest` bytes.
    pub fn configure(&mut self, mergeable: bool, longest: usize) {
        self.mergeable = mergeable;
        self.longest = VNET_HEADER + longest.min(LONGEST_FRAME);
    }

    /// Forgets lent buffers and the waiting frame.
    pub fn clear(&mut self) {
        self.forget_lent();
        self.held.clear();
    }

    /// Gives lent buffers back to the queue, from which they are taken again later.
    pub fn give_back(&mut self, queue: &mut DeviceQueue) {
        // No more are lent than the queue has entries.
        queue.undo_pop(self.lent.len() as u16);
        self.forget_lent();
    }

    pub fn held(&self) -> &[u8] {
        &self.held
    }

    pub fn hold(&mut self, frame: Vec<u8>) {
        self.held = frame;
    }

    /// Receives one frame, from `wire` or the one that waits.
    pub fn receive(
        &mut self,
        wire: BorrowedFd<'_>,
        mem: &GuestRam,
        queue: &mut DeviceQueue,
        counters: &Counters,
    ) -> Result<Received, Fault> {
        self.borrow(mem, queue)?;
        if !self.held.is_empty() {
            return self.deliver_held(mem, queue, counters);
        }
        if self.lent.is_empty() {
            return Ok(Received::NoRoom);
        }
        if self.usable() >= self.longest {
            self.read_direct(wire, mem, queue, counters)
        } else {
            self.read_held(wire, mem, queue, counters)
        }
    }

    /// Takes buffers from the queue until the longest frame fits or there are no more.
    fn borrow(&mut self, mem: &GuestRam, queue: &mut DeviceQueue) -> Result<(), Fault> {
        while self.usable() < self.longest && self.lent.len() < usize::from(queue.size()) {
            if !self.mergeable && !self.lent.is_empty() {
                return Ok(());
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            if !queue.pop(mem, &mut chain)? {
                self.spare.push(chain);
                return Ok(());
            }
            if chain.readable.bytes() != 0 || chain.writable.bytes() < VNET_HEADER {
                return Err(Fault::Guest(Counter::BadDirection));
            }
            self.capacity += chain.writable.bytes();
            self.lent.push_back(chain);
        }
        Ok(())
    }

    /// Room for one frame.
    fn usable(&self) -> usize {
        if self.mergeable { self.capacity } else { self.lent.front().map_or(0, |c| c.writable.bytes()) }
    }

    fn read_direct(
        &mut self,
        wire: BorrowedFd<'_>,
        mem: &GuestRam,
        queue: &mut DeviceQueue,
        counters: &Counters,
    ) -> Result<Received, Fault> {
        let mut slices: Vec<VolatileSlice<'_>> = Vec::new();
        for chain in &self.lent {
            let room = chain.writable.slices(mem, 0, usize::MAX, &mut slices);
            room.map_err(|_| Fault::Guest(Counter::BadBuffer))?;
            if !self.mergeable {
                break;
            }
        }
        if slices.len() > sys::MAX_VECTORS {
            // One call cannot reach all of so many small buffers.
            return self.read_held(wire, mem, queue, counters);
        }
        let Some(len) = count(sys::readv(wire, &slices))? else { return Ok(Received::Nothing) };
        if len < VNET_HEADER + ETHERNET_HEADER {
            counters.count(Counter::NetRxBadFrame);
            return Ok(Received::Dropped);
        }
        let mut head = [0u8; VNET_HEADER + PEEK];
        let first = self.lent.front().map(|c| c.writable.read(mem, 0, &mut head));
        let peeked = first.transpose().map_err(|_| Fault::Guest(Counter::BadBuffer))?.unwrap_or(0);
        let head = &head[VNET_HEADER..peeked.min(len).max(VNET_HEADER)];
        if frame::claims_metadata(head) {
            // The buffers stay lent for the next frame.
            counters.count(Counter::NetRxMetadataSource);
            return Ok(Received::Dropped);
        }
        self.activity.count(head, len - VNET_HEADER);
        self.hand_over(mem, queue, len)?;
        Ok(Received::Frame)
    }

    fn read_held(
        &mut self,
        wire: BorrowedFd<'_>,
        mem: &GuestRam,
        queue: &mut DeviceQueue,
        counters: &Counters,
    ) -> Result<Received, Fault> {
        let mut frame = vec![0u8; VNET_HEADER + LONGEST_FRAME];
        let read = sys::readv(wire, &[VolatileSlice::from(frame.as_mut_slice())]);
        let Some(len) = count(read)? else { return Ok(Received::Nothing) };
        if len < VNET_HEADER + ETHERNET_HEADER {
            counters.count(Counter::NetRxBadFrame);
            return Ok(Received::Dropped);
        }
        frame.truncate(len);
        if frame::claims_metadata(&frame[VNET_HEADER..]) {
            counters.count(Counter::NetRxMetadataSource);
            return Ok(Received::Dropped);
        }
        self.held = frame;
        self.deliver_held(mem, queue, counters)
    }

    fn deliver_held(
        &mut self,
        mem: &GuestRam,
        queue: &mut DeviceQueue,
        counters: &Counters,
    ) -> Result<Received, Fault> {
        if self.usable() < self.held.len() {
            let all = self.lent.len() == usize::from(queue.size()) || !self.mergeable;
            if self.lent.is_empty() || !all {
                return Ok(Received::NoRoom);
            }
            // The driver can lend no more than this.
            counters.count(Counter::NetRxTooLong);
            self.held.clear();
            return Ok(Received::Dropped);
        }
        let mut done = 0;
        for chain in &self.lent {
            let written = chain.writable.write(mem, 0, &self.held[done..]);
            done += written.map_err(|_| Fault::Guest(Counter::BadBuffer))?;
            if done == self.held.len() {
                break;
            }
        }
        let len = self.held.len();
        self.activity.count(&self.held[VNET_HEADER..], len - VNET_HEADER);
        self.held.clear();
        self.hand_over(mem, queue, len)?;
        Ok(Received::Frame)
    }

    /// Shows the driver a frame of `len` bytes, with its header, in the first lent buffers: all at once.
    fn hand_over(&mut self, mem: &GuestRam, queue: &mut DeviceQueue, len: usize) -> Result<(), Fault> {
        let mut left = len;
        let mut buffers = 0u16;
        for chain in &self.lent {
            buffers += 1;
            left -= left.min(chain.writable.bytes());
            if left == 0 {
                break;
            }
        }
        if let Some(first) = self.lent.front() {
            let written = first.writable.write(mem, NUM_BUFFERS, &buffers.to_le_bytes());
            written.map_err(|_| Fault::Guest(Counter::BadBuffer))?;
        }
        let mut left = len;
        for _ in 0..buffers {
            let Some(chain) = self.lent.pop_front() else { break };
            let used = left.min(chain.writable.bytes());
            left -= used;
            self.capacity -= chain.writable.bytes();
            queue.push_used(mem, chain.head, used as u32)?;
            self.spare.push(chain);
        }
        queue.publish(mem)
    }

    fn forget_lent(&mut self) {
        self.capacity = 0;
        self.spare.extend(self.lent.drain(..));
    }
}

/// `None` when there is nothing to read now.
fn count(read: io::Result<usize>) -> Result<Option<usize>, Fault> {
    match read {
        Ok(len) => Ok(Some(len)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(Fault::Host(error)),
    }
}
