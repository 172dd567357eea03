//! virtio-balloon as far as free page reporting goes (virtio 1.2 section 5.5, `VIRTIO_BALLOON_F_REPORTING`): the guest
//! tells which memory it does not use, and the host takes that back until the guest touches it again.
//!
//! The guest does so by itself and at any time; Linux two seconds after memory became free, in blocks of 2 MiB and
//! more. Reported memory may have any content afterwards (section 5.5.6.7); here it is zeros, so none of it is written
//! when the machine is saved. The host never asks for pages: the size of the balloon is always 0, and whatever is put
//! into it all the same stays where it is.

use super::chain::{Chain, Segment};
use super::device::Progress;
use super::{Context, Counter, DeviceError, DeviceKind, DeviceState, Fault, VirtioDevice, sys};
use vm_memory::Address;

/// Inflate, deflate, reporting: queues of features that are not offered are left out (section 5.5.2). Linux wants room
/// for a report of 32 ranges.
const QUEUE_SIZES: &[u16] = &[64, 64, 64];
/// The queue of reports.
const REPORTING: usize = 2;
/// Feature bit `VIRTIO_BALLOON_F_REPORTING`, which virtio-bindings does not have.
const F_REPORTING: u64 = 1 << 5;
/// Bytes of the configuration space: pages that the host wants, pages that it has; both always 0.
const CONFIG_BYTES: usize = 8;
/// Only whole blocks of so many bytes are given back: a huge page is not broken up for less, and memory over a file
/// falls into at most 32768 mappings for 64 GiB, where a process may have 65530 (`vm.max_map_count`).
const BLOCK: u64 = 2 << 20;
/// Chains served for one event, so that a command of the transport waits for no more of them.
const CHAINS_AT_ONCE: usize = 16;

/// The device.
#[derive(Debug, Default)]
pub struct Balloon {
    chain: Chain,
    reporting: bool,
}

impl Balloon {
    /// A balloon that stays empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn serve(&self, queue: usize, ctx: &Context<'_>) -> Result<(), Fault> {
        if queue != REPORTING || !self.reporting {
            ctx.counters.count(Counter::BalloonUnasked);
            return Ok(());
        }
        if self.chain.readable.bytes() != 0 || self.chain.writable.bytes() == 0 {
            return Err(Fault::Guest(Counter::BadDirection));
        }
        for segment in self.chain.writable.iter() {
            give_back(*segment, ctx);
        }
        Ok(())
    }
}

/// Gives the whole blocks of a segment back, which lies inside of memory.
fn give_back(segment: Segment, ctx: &Context<'_>) {
    let start = segment.addr.raw_value();
    let end = (start + u64::from(segment.len)) / BLOCK * BLOCK;
    let first = start.next_multiple_of(BLOCK);
    if first >= end {
        return ctx.counters.count(Counter::BalloonFragment);
    }
    match sys::discard(ctx.mem, first, end - first) {
        Ok(()) => ctx.counters.add(Counter::BalloonBlocks, (end - first) / BLOCK),
        Err(error) => {
            ctx.counters.count(Counter::BalloonNotFreed);
            if ctx.counters.get(Counter::BalloonNotFreed).is_power_of_two() {
                // What fails once fails often: the 1st, 2nd, 4th, 8th … time is enough to be told.
                tracing::warn!(%error, "memory that the guest does not use cannot be given back");
            }
        }
    }
}

impl VirtioDevice for Balloon {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Balloon
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_REPORTING
    }

    fn config(&self) -> Vec<u8> {
        vec![0; CONFIG_BYTES]
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceError> {
        self.reporting = features & F_REPORTING != 0;
        Ok(())
    }

    fn queue_event(&mut self, index: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        for _ in 0..CHAINS_AT_ONCE {
            let Some(queue) = ctx.queues[index].as_mut() else { return Ok(Progress::Done) };
            if !queue.pop(ctx.mem, &mut self.chain)? {
                if queue.enable_notification(ctx.mem)? {
                    continue;
                }
                ctx.signal(index)?;
                return Ok(Progress::Done);
            }
            self.serve(index, ctx)?;
            if let Some(queue) = ctx.queues[index].as_mut() {
                queue.push_used(ctx.mem, self.chain.head, 0)?;
            }
        }
        ctx.signal(index)?;
        Ok(Progress::More)
    }

    fn reset(&mut self) {
        self.reporting = false;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Balloon
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        if *state == DeviceState::Balloon { Ok(()) } else { Err(DeviceError::WrongKind) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::GuestRam;
    use crate::devices::harness::{DATA, HIGH, LOW_BYTES, Rig, readable, writable};
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

    fn filled(rig: &Rig<Balloon>) {
        rig.put(HIGH, &vec![7; LOW_BYTES as usize]);
    }

    #[test]
    fn reported_blocks_read_as_zeros_and_can_be_used_again() {
        let mut rig = Rig::new(Balloon::new());
        filled(&rig);
        let head = rig.lend(REPORTING, &[writable(HIGH, BLOCK as u32)]);
        rig.kick(REPORTING).unwrap();
        assert_eq!(rig.used(REPORTING), [(head, 0)]);
        assert_eq!(rig.counters.nonzero().first(), Some(&("interrupts", 1)));
        assert_eq!(rig.counters.get(Counter::BalloonBlocks), 1);
        assert_eq!(rig.get(HIGH, BLOCK as usize), vec![0; BLOCK as usize]);
        filled(&rig);
        assert_eq!(rig.get(HIGH, 3), [7; 3]);
    }

    #[test]
    fn parts_of_blocks_stay() {
        let mut rig = Rig::new(Balloon::new());
        filled(&rig);
        let half = (BLOCK / 2) as u32;
        rig.lend(
            REPORTING,
            &[writable(HIGH, half), writable(HIGH + BLOCK / 2, half), writable(HIGH + 1, half)],
        );
        rig.kick(REPORTING).unwrap();
        assert_eq!(rig.counters.get(Counter::BalloonFragment), 3);
        assert_eq!(rig.get(HIGH, BLOCK as usize), vec![7; BLOCK as usize]);
    }

    #[test]
    fn what_lies_outside_of_memory_or_is_to_be_read_stops_the_device() {
        for (buffers, counter) in [
            (vec![writable(HIGH + BLOCK / 2, BLOCK as u32)], Counter::BadBuffer),
            (vec![writable(LOW_BYTES, BLOCK as u32)], Counter::BadBuffer),
            (vec![writable(u64::MAX - BLOCK + 1, BLOCK as u32)], Counter::BadBuffer),
            (vec![writable(0, u32::MAX)], Counter::BadBuffer),
            (vec![readable(HIGH, BLOCK as u32)], Counter::BadDirection),
            (vec![readable(DATA, 16), writable(HIGH, BLOCK as u32)], Counter::BadDirection),
        ] {
            let mut rig = Rig::new(Balloon::new());
            filled(&rig);
            rig.lend(REPORTING, &buffers);
            let fault = rig.kick(REPORTING);
            assert!(matches!(fault, Err(Fault::Guest(found)) if found == counter), "{buffers:?}: {fault:?}");
            assert_eq!(rig.get(HIGH, BLOCK as usize), vec![7; BLOCK as usize], "{buffers:?}");
            rig.reset();
            rig.lend(REPORTING, &[writable(HIGH, BLOCK as u32)]);
            rig.kick(REPORTING).unwrap();
            assert_eq!(rig.get(HIGH, 1), [0]);
        }
    }

    #[test]
    fn pages_that_nobody_asked_for_stay_with_the_guest() {
        let mut rig = Rig::new(Balloon::new());
        filled(&rig);
        rig.put(DATA, &((HIGH / 4096) as u32).to_le_bytes());
        for queue in [0, 1] {
            rig.lend(queue, &[readable(DATA, 4)]);
            rig.kick(queue).unwrap();
            assert_eq!(rig.used(queue).len(), 1);
        }
        let mut silent = Rig::with_features(Balloon::new(), 0);
        filled(&silent);
        silent.lend(REPORTING, &[writable(HIGH, BLOCK as u32)]);
        silent.kick(REPORTING).unwrap();
        for (rig, unasked) in [(rig, 2), (silent, 1)] {
            assert_eq!(rig.counters.get(Counter::BalloonUnasked), unasked);
            assert_eq!(rig.get(HIGH, 1), [7]);
        }
    }

    /// Memory that a machine goes on with: over a file, privately.
    fn over_file(file: &File, bytes: usize) -> GuestRam {
        let part = FileOffset::new(file.try_clone().unwrap(), 0);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        let mapping = MmapRegion::build(Some(part), bytes, prot, flags).unwrap();
        GuestRam::from_regions(vec![GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap()]).unwrap()
    }

    #[test]
    fn memory_over_a_file_shows_zeros_and_not_the_file() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![9; 3 * BLOCK as usize], 0).unwrap();
        let mem = over_file(&file, 3 * BLOCK as usize);
        mem.write_slice(&[7; 100], GuestAddress(BLOCK)).unwrap();
        sys::discard(&mem, BLOCK, BLOCK).unwrap();
        let mut bytes = vec![1; 3 * BLOCK as usize];
        mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let block = BLOCK as usize;
        let expected = [vec![9; block], vec![0; block], vec![9; block]].concat();
        assert!(bytes == expected);
        mem.write_slice(&[5; 3], GuestAddress(2 * BLOCK - 1)).unwrap();
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 9), "the file is as it was");
    }

    #[test]
    fn only_whole_pages_of_one_region_are_given_back() {
        let rig = Rig::new(Balloon::new());
        for (start, bytes) in
            [(1, 4096), (0, 1), (0, 0), (0, LOW_BYTES + 4096), (LOW_BYTES, 4096), (0, u64::MAX - 4095)]
        {
            let refused = sys::discard(&rig.mem, start, bytes).expect_err("refused");
            assert_eq!(refused.kind(), std::io::ErrorKind::InvalidInput, "{start} {bytes}");
        }
    }
}
