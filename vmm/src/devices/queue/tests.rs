//! When the driver is interrupted, and what it sees of a batch.

use super::*;

const SIZE: u16 = 8;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;

fn queue(event_idx: bool) -> (GuestRam, DeviceQueue) {
    let mem = GuestRam::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap();
    let state = QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        event_idx,
        desc_table: 0x800,
        avail_ring: AVAIL,
        used_ring: USED,
        ..QueueState::default()
    };
    let queue = DeviceQueue::new(&mem, state).unwrap();
    (mem, queue)
}

fn use_some(mem: &GuestRam, queue: &mut DeviceQueue, count: u16) {
    for head in 0..count {
        queue.push_used(mem, head, 1).unwrap();
    }
    queue.publish(mem).unwrap();
}

fn used_index(mem: &GuestRam) -> u16 {
    mem.read_obj(GuestAddress(USED + RING_INDEX)).unwrap()
}

#[test]
fn a_batch_appears_at_once() {
    let (mem, mut queue) = queue(true);
    queue.push_used(&mem, 3, 10).unwrap();
    queue.push_used(&mem, 5, 20).unwrap();
    assert_eq!(used_index(&mem), 0);
    queue.publish(&mem).unwrap();
    assert_eq!(used_index(&mem), 2);
    let entry: u64 = mem.read_obj(GuestAddress(USED + RING_HEADER + USED_ENTRY)).unwrap();
    assert_eq!(entry, 5 | 20 << 32);
    assert_eq!(queue.save().next_used, 2);
}

#[test]
fn the_driver_is_interrupted_only_when_it_asked_for_that_entry() {
    let (mem, mut queue) = queue(true);
    let ask = |index: u16| {
        let addr = GuestAddress(AVAIL + RING_HEADER + AVAIL_ENTRY * u64::from(SIZE));
        mem.write_obj(index, addr).unwrap();
    };
    ask(2);
    use_some(&mem, &mut queue, 2);
    assert!(!queue.needs_interrupt(&mem).unwrap());
    use_some(&mem, &mut queue, 2);
    assert!(queue.needs_interrupt(&mem).unwrap());
    // Nothing new, no interrupt.
    assert!(!queue.needs_interrupt(&mem).unwrap());
    use_some(&mem, &mut queue, 2);
    assert!(!queue.needs_interrupt(&mem).unwrap());
}

#[test]
fn without_event_indices_the_flag_of_the_driver_counts() {
    let (mem, mut queue) = queue(false);
    use_some(&mem, &mut queue, 1);
    assert!(queue.needs_interrupt(&mem).unwrap());
    mem.write_obj(NO_INTERRUPT, GuestAddress(AVAIL)).unwrap();
    use_some(&mem, &mut queue, 1);
    assert!(!queue.needs_interrupt(&mem).unwrap());
}

#[test]
fn rings_that_reach_out_of_memory_or_wrap_are_refused() {
    let (mem, queue) = queue(true);
    let good = queue.save();
    for bad in [
        QueueState { desc_table: 0x4000 - 16, ..good },
        QueueState { desc_table: 0, ..good },
        QueueState { avail_ring: u64::MAX - 1, ..good },
        QueueState { used_ring: u64::MAX - 3, ..good },
        QueueState { size: 16, ..good },
        QueueState { size: 3, ..good },
        QueueState { size: 0, ..good },
        QueueState { ready: false, ..good },
    ] {
        assert!(DeviceQueue::new(&mem, bad).is_err(), "{bad:?}");
    }
}
