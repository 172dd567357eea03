//! A driver that speaks through the registers, and the worker behind them.

use super::*;
use crate::devices::block::{Block, DiskFolder, LayeredDisk};
use crate::devices::rng::Rng;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 1 << 20;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFER: u64 = 0x8000;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;

struct Machine {
    transport: MmioTransport,
    mem: GuestRam,
    irq: EventFd,
}

impl Machine {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self::with_memory(device, GuestRam::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
    }

    fn with_memory(device: Box<dyn VirtioDevice>, mem: GuestRam) -> Self {
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(mem.clone(), device, irq.try_clone().unwrap()).unwrap();
        Self { transport, mem, irq }
    }

    fn set(&self, register: u32, value: u32) {
        self.transport.write(u64::from(register), &value.to_le_bytes());
    }

    fn register(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn negotiate(&self, features: u64) {
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE);
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, (features >> 32) as u32);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, features as u32);
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    }

    fn start(&self) {
        self.negotiate(VERSION_1);
        for page in [DESC, AVAIL, USED] {
            self.mem.write_slice(&[0; 0x1000], GuestAddress(page)).unwrap();
        }
        self.set(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, 16);
        self.set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, DESC as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, USED as u32);
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(self.register(reg::VIRTIO_MMIO_QUEUE_READY), 1);
        self.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Lends one writable buffer as the `n`th chain.
    fn lend(&self, n: u16, addr: u64, len: u32) {
        let mut descriptor = addr.to_le_bytes().to_vec();
        descriptor.extend(len.to_le_bytes());
        descriptor.extend([2, 0, 0, 0]);
        self.mem.write_slice(&descriptor, GuestAddress(DESC)).unwrap();
        self.mem.write_obj(0u16, GuestAddress(AVAIL + 4 + 2 * u64::from(n % 16))).unwrap();
        self.mem.write_obj(n + 1, GuestAddress(AVAIL + 2)).unwrap();
    }

    fn used_index(&self) -> u16 {
        self.mem.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    /// Waits for an interrupt and acknowledges it; returns its causes.
    fn interrupt(&self) -> u32 {
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        let fd = crate::devices::sys::borrow(&self.irq);
        let ready = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&patience)).unwrap();
        assert_eq!(ready, 1, "no interrupt came");
        self.irq.read().unwrap();
        let status = self.register(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.set(reg::VIRTIO_MMIO_INTERRUPT_ACK, status);
        assert_eq!(self.register(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        status
    }

    fn count(&self, counter: Counter) -> u64 {
        self.transport.counters().get(counter)
    }
}

#[test]
fn a_request_is_served_through_registers_and_through_the_event_counter() {
    let machine = Machine::new(Box::new(Rng::new()));
    assert_eq!(machine.register(reg::VIRTIO_MMIO_MAGIC_VALUE), MAGIC);
    assert_eq!(machine.register(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(machine.register(reg::VIRTIO_MMIO_DEVICE_ID), 4);
    machine.start();
    machine.lend(0, BUFFER, 64);
    machine.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(machine.interrupt(), 1);
    assert_eq!(machine.used_index(), 1);
    let mut bytes = [0u8; 64];
    machine.mem.read_slice(&mut bytes, GuestAddress(BUFFER)).unwrap();
    assert_ne!(bytes, [0; 64]);
    machine.lend(1, BUFFER, 64);
    machine.transport.queue_events()[0].write(1).unwrap();
    assert_eq!(machine.interrupt(), 1);
    assert_eq!(machine.used_index(), 2);
}

#[test]
fn nothing_of_a_queue_changes_after_it_is_ready_or_the_driver_is() {
    let machine = Machine::new(Box::new(Rng::new()));
    machine.start();
    let before = machine.transport.save().unwrap().queues;
    for register in [
        reg::VIRTIO_MMIO_QUEUE_NUM,
        reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
        reg::VIRTIO_MMIO_QUEUE_DESC_HIGH,
        reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
        reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
        reg::VIRTIO_MMIO_QUEUE_USED_LOW,
        reg::VIRTIO_MMIO_QUEUE_USED_HIGH,
        reg::VIRTIO_MMIO_QUEUE_READY,
    ] {
        machine.set(register, 0x40);
        machine.set(register, 0);
    }
    assert_eq!(machine.count(Counter::WriteRefused), 16);
    assert_eq!(machine.transport.save().unwrap().queues, before);
    machine.lend(0, BUFFER, 8);
    machine.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(machine.interrupt(), 1);
}

#[test]
fn a_queue_that_is_not_in_memory_is_not_made_ready() {
    let machine = Machine::new(Box::new(Rng::new()));
    machine.negotiate(VERSION_1);
    for (num, desc, high) in [(16, MEMORY as u32 - 16, 0), (16, 0, 0), (3, 0x1000, 0), (16, 0x1000, u32::MAX)]
    {
        machine.set(reg::VIRTIO_MMIO_QUEUE_NUM, num);
        machine.set(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, desc);
        machine.set(reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, high);
        machine.set(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAIL as u32);
        machine.set(reg::VIRTIO_MMIO_QUEUE_USED_LOW, USED as u32);
        machine.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(machine.register(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    assert_eq!(machine.count(Counter::QueueRefused), 4);
    machine.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert!(machine.transport.needs_reset());
}

#[test]
fn features_without_version_1_or_not_offered_are_refused() {
    for features in [0, EVENT_IDX, VERSION_1 | 1 << 40, VERSION_1 | 1 << 5] {
        let machine = Machine::new(Box::new(Rng::new()));
        machine.negotiate(features);
        assert_eq!(machine.register(reg::VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
        machine.set(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | DRIVER_OK);
        assert_eq!(machine.register(reg::VIRTIO_MMIO_STATUS), ACKNOWLEDGE | DRIVER);
    }
}

#[test]
fn a_bad_chain_stops_the_device_until_a_reset() {
    let machine = Machine::new(Box::new(Rng::new()));
    machine.start();
    machine.lend(0, MEMORY as u64 - 4, 8);
    machine.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(machine.interrupt(), 2);
    assert!(machine.transport.needs_reset());
    assert_eq!(machine.count(Counter::BadBuffer), 1);
    assert_eq!(machine.used_index(), 0);
    machine.set(reg::VIRTIO_MMIO_STATUS, 0);
    assert_eq!(machine.register(reg::VIRTIO_MMIO_STATUS), 0);
    machine.start();
    machine.lend(0, BUFFER, 8);
    machine.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(machine.interrupt(), 1);
    assert_eq!(machine.used_index(), 1);
}

#[test]
fn an_index_that_jumps_stops_the_device() {
    let machine = Machine::new(Box::new(Rng::new()));
    machine.start();
    machine.mem.write_obj(17u16, GuestAddress(AVAIL + 2)).unwrap();
    machine.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    assert_eq!(machine.interrupt(), 2);
    assert_eq!(machine.count(Counter::AvailIndexJump), 1);
}

#[test]
fn a_paused_device_waits_and_a_restored_one_serves_what_was_lent() {
    let machine = Machine::new(Box::new(Rng::new()));
    machine.start();
    machine.transport.pause().unwrap();
    machine.lend(0, BUFFER, 8);
    machine.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
    let state = machine.transport.save().unwrap();
    assert_eq!(machine.used_index(), 0);
    let bytes = serde_json::to_vec(&state).unwrap();
    let copy = Machine::with_memory(Box::new(Rng::new()), machine.mem.clone());
    drop(machine);
    copy.transport.restore(&serde_json::from_slice(&bytes).unwrap()).unwrap();
    assert_eq!(copy.transport.save().unwrap(), state);
    copy.transport.resume().unwrap();
    // One interrupt comes in any case, the other from the chain; they may have become one.
    copy.interrupt();
    while copy.used_index() == 0 {
        copy.interrupt();
    }
    assert_eq!(copy.used_index(), 1);
}

#[test]
fn a_state_of_another_device_is_refused() {
    let machine = Machine::new(Box::new(Rng::new()));
    let state = machine.transport.save().unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(8192).unwrap();
    let disk = Block::new(Box::new(LayeredDisk::read_only(file).unwrap()), "disk");
    let other = Machine::new(Box::new(disk));
    assert!(matches!(other.transport.restore(&state), Err(TransportError::Mismatch(_))));
}

#[test]
fn the_configuration_can_be_read_in_any_way_and_not_beyond() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1234 * 512).unwrap();
    let disk = Block::new(Box::new(LayeredDisk::read_only(file).unwrap()), "disk");
    let machine = Machine::new(Box::new(disk));
    let mut byte = [0xff];
    machine.transport.read(CONFIG + 1, &mut byte);
    assert_eq!(byte, [0x12]);
    let mut odd = [0xff; 7];
    machine.transport.read(CONFIG, &mut odd);
    assert_eq!(odd, [0x34, 0x12, 0, 0, 0, 0, 0]);
    let mut end = [0xff; 16];
    machine.transport.read(CONFIG + 56, &mut end);
    assert_eq!(end[4..], [0; 12]);
    for offset in [CONFIG + 60, 0xfff, u64::MAX] {
        machine.transport.read(offset, &mut end);
        assert_eq!(end, [0; 16]);
    }
    machine.transport.write(CONFIG, &[1]);
    machine.transport.write(2, &[1; 4]);
    machine.transport.write(u64::MAX, &[1; 4]);
    assert_eq!(machine.count(Counter::BadAccess), 6);
}

/// Sectors as a driver reads them: again when the configuration changed in between.
fn sectors(machine: &Machine) -> (u64, u32) {
    loop {
        let before = machine.register(reg::VIRTIO_MMIO_CONFIG_GENERATION);
        let half = |at| u64::from(machine.register(CONFIG as u32 + at));
        let sectors = half(0) | half(4) << 32;
        if machine.register(reg::VIRTIO_MMIO_CONFIG_GENERATION) == before {
            return (sectors, before);
        }
    }
}

fn disk_in(folder: &std::path::Path, mib: u64) -> (DiskFolder, Box<dyn VirtioDevice>) {
    let disk = DiskFolder::open(folder, None, mib << 20).unwrap();
    let device = Box::new(Block::new(Box::new(disk.disk()), "disk"));
    (disk, device)
}

#[test]
fn a_disk_that_grows_is_a_new_generation_and_an_interrupt_and_told_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, device) = disk_in(folder.path(), 1);
    let machine = Machine::new(device);
    machine.transport.refresh_config().unwrap();
    machine.start();
    assert_eq!(sectors(&machine), (2048, 0));
    disk.grow(3 << 20).unwrap();
    assert_eq!(sectors(&machine), (2048, 0), "what was told holds until the driver is told otherwise");
    machine.transport.refresh_config().unwrap();
    assert_eq!(machine.interrupt(), 2);
    assert_eq!(sectors(&machine), (6144, 1));
    let interrupts = machine.count(Counter::Interrupts);
    machine.transport.refresh_config().unwrap();
    assert_eq!((machine.count(Counter::Interrupts), sectors(&machine)), (interrupts, (6144, 1)));
    machine.set(reg::VIRTIO_MMIO_STATUS, 0);
    disk.grow(4 << 20).unwrap();
    machine.transport.refresh_config().unwrap();
    assert_eq!(machine.count(Counter::Interrupts), interrupts, "nobody is there to be interrupted");
    assert_eq!(sectors(&machine), (8192, 2));
}

#[test]
fn a_disk_that_grew_while_its_machine_was_saved_is_told_at_the_resume() {
    let folder = tempfile::tempdir().unwrap();
    let (mut disk, device) = disk_in(folder.path(), 1);
    let machine = Machine::new(device);
    machine.start();
    machine.transport.pause().unwrap();
    let state = machine.transport.save().unwrap();
    let mem = machine.mem.clone();
    drop(machine);
    disk.grow(2 << 20).unwrap();
    drop(disk);
    let (_disk, device) = disk_in(folder.path(), 2);
    let larger = Machine::with_memory(device, mem.clone());
    larger.transport.restore(&state).unwrap();
    larger.transport.resume().unwrap();
    assert_eq!(larger.interrupt(), 3, "the size, and what may be used");
    assert_eq!(sectors(&larger), (4096, 1));
    let smaller = tempfile::tempdir().unwrap();
    let (_disk, device) = disk_in(smaller.path(), 1);
    let state = larger.transport.save().unwrap();
    let refused = Machine::with_memory(device, mem).transport.restore(&state);
    assert!(matches!(refused, Err(TransportError::Worker(_))), "{refused:?}");
}
