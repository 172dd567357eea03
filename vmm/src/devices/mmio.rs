//! The virtio-mmio transport, version 2 (virtio 1.2 section 4.2): one page of registers for one device.
//!
//! The machine calls [`MmioTransport::read`] and [`MmioTransport::write`] for exits in the page, registers
//! each of [`MmioTransport::queue_events`] as an ioeventfd at [`QUEUE_NOTIFY`] with the queue's index as data
//! match, and the `irq` it gave as an irqfd (edge-triggered). Queue registers can be written only between
//! `FEATURES_OK` and `DRIVER_OK` and while the queue is not ready; what the worker serves is a copy that was
//! checked at `DRIVER_OK` (the class of CVE-2026-5747).

use super::counters::{Counter, Counters};
use super::device::{INTERRUPT_CONFIG, Interrupt, VirtioDevice};
use super::queue::DeviceQueue;
use super::state::{QueueState, TransportState};
use super::worker::{STATUS_NEEDS_RESET, Shared, Worker, WorkerError};
use super::{DeviceKind, GuestRam};
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio as reg;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of the register page.
pub const MMIO_SIZE: u64 = 0x1000;
/// Offset of the register to which the driver writes a queue's index.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Version of the transport; 1 is the legacy one, which is not offered.
const VERSION: u32 = 2;
/// "GTHS": no vendor ids are assigned for this transport; drivers do not look at it.
const VENDOR: u32 = 0x5348_5447;
/// First byte of the configuration space.
const CONFIG: u64 = 0x100;
/// Registers without a meaning here read as this: shared memory regions do not exist (section 4.2.2).
const NO_REGION: u32 = u32::MAX;

/// Device status bits (section 2.1).
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const FAILED: u32 = 128;
const DRIVER_BITS: u32 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED;

/// Features of every device here.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Why a transport cannot be made, paused, saved or restored.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No event counter for a queue.
    #[error("cannot make the event counter of a queue")]
    QueueEvent(#[source] io::Error),
    /// The device's thread.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The saved state does not fit the device.
    #[error("the saved state does not fit the device: {0}")]
    Mismatch(&'static str),
}

/// One device behind its registers. Shared by all vCPU threads.
#[derive(Debug)]
pub struct MmioTransport {
    kind: DeviceKind,
    features: u64,
    mem: GuestRam,
    queue_events: Vec<EventFd>,
    shared: Arc<Shared>,
    registers: Mutex<Registers>,
}

/// What the driver wrote.
#[derive(Debug)]
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    queues: Vec<QueueState>,
    /// The configuration space, which the driver reads in pieces: it is whole when the generation before and after is
    /// one (section 2.5).
    config: Vec<u8>,
    config_generation: u32,
    worker: Worker,
}

impl MmioTransport {
    /// Puts a device behind a transport and starts its thread, idle. `irq` is written to for each interrupt;
    /// it must not block.
    ///
    /// # Errors
    /// When the host lacks descriptors or threads.
    pub fn new(mem: GuestRam, device: Box<dyn VirtioDevice>, irq: EventFd) -> Result<Self, TransportError> {
        let counters = Arc::new(Counters::default());
        let interrupt = Interrupt::new(irq, Arc::clone(&counters));
        let shared = Arc::new(Shared { status: AtomicU32::new(0), interrupt, counters });
        let sizes = device.queue_sizes();
        let events = sizes.iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<Vec<_>, _>>();
        let queue_events = events.map_err(TransportError::QueueEvent)?;
        let copies = queue_events.iter().map(EventFd::try_clone).collect::<Result<Vec<_>, _>>();
        let copies = copies.map_err(TransportError::QueueEvent)?;
        let queues = sizes.iter().map(|max| unused_queue(*max)).collect();
        Ok(Self {
            kind: device.kind(),
            features: device.features() | TRANSPORT_FEATURES,
            mem: mem.clone(),
            queue_events,
            shared: Arc::clone(&shared),
            registers: Mutex::new(Registers {
                device_features_sel: 0,
                driver_features_sel: 0,
                driver_features: 0,
                queue_sel: 0,
                queues,
                config: device.config(),
                config_generation: 0,
                worker: Worker::start(mem, device, copies, shared)?,
            }),
        })
    }

    /// Which device it is.
    #[must_use]
    pub fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// One event counter for each queue, in order, for ioeventfds at [`QUEUE_NOTIFY`].
    #[must_use]
    pub fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    /// Counted reasons and interrupts of the device.
    #[must_use]
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Whether a fault stopped the device until its driver resets it.
    #[must_use]
    pub fn needs_reset(&self) -> bool {
        self.shared.status.load(Ordering::SeqCst) & STATUS_NEEDS_RESET != 0
    }

    /// Serves a read of the guest at `offset` in the page. What is not a register reads as zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            self.read_config(offset - CONFIG, data);
        } else if offset.is_multiple_of(4)
            && let Ok(word) = <&mut [u8; 4]>::try_from(data)
        {
            *word = self.read_register(offset as u32).to_le_bytes();
        } else {
            self.shared.counters.count(Counter::BadAccess);
        }
    }

    /// Serves a write of the guest at `offset` in the page. A write that is not allowed does nothing.
    pub fn write(&self, offset: u64, data: &[u8]) {
        match (<[u8; 4]>::try_from(data), u32::try_from(offset)) {
            (Ok(word), Ok(offset)) if offset < CONFIG as u32 && offset.is_multiple_of(4) => {
                self.write_register(offset, u32::from_le_bytes(word));
            }
            // No device here has a field that the driver may write.
            _ => self.shared.counters.count(Counter::BadAccess),
        }
    }

    /// Brings the device to rest: nothing is in flight and no chain is held. Chains that come wait.
    ///
    /// # Errors
    /// When the worker does not answer or the device cannot be drained.
    pub fn pause(&self) -> Result<(), TransportError> {
        Ok(self.registers().worker.pause()?)
    }

    /// Goes on after a pause or a restore: looks at every queue, and raises one interrupt, since those that
    /// were on their way are not part of a saved state.
    ///
    /// # Errors
    /// When the worker does not answer.
    pub fn resume(&self) -> Result<(), TransportError> {
        self.registers().worker.resume()?;
        if self.shared.status.load(Ordering::SeqCst) & DRIVER_OK != 0 {
            self.shared.interrupt.used();
        }
        Ok(())
    }

    /// Shows the driver the device's configuration space as it is now, and interrupts it when that differs from what it
    /// was shown (sections 2.3 and 4.2.2).
    ///
    /// # Errors
    /// When the worker does not answer.
    pub fn refresh_config(&self) -> Result<(), TransportError> {
        let mut registers = self.registers();
        let config = registers.worker.config()?;
        if config == registers.config {
            return Ok(());
        }
        registers.config = config;
        registers.config_generation = registers.config_generation.wrapping_add(1);
        if self.status() & DRIVER != 0 {
            // Also before DRIVER_OK: by then a driver has read the space already.
            self.shared.interrupt.config();
        }
        Ok(())
    }

    /// Copies the state out. Call [`Self::pause`] first.
    ///
    /// # Errors
    /// When the worker does not answer.
    pub fn save(&self) -> Result<TransportState, TransportError> {
        let mut registers = self.registers();
        let saved = registers.worker.save()?;
        let mut queues = registers.queues.clone();
        for (queue, active) in queues.iter_mut().zip(saved.queues) {
            if let Some(active) = active {
                *queue = active;
            }
        }
        Ok(TransportState {
            status: self.shared.status.load(Ordering::SeqCst),
            interrupt_status: self.shared.interrupt.status.load(Ordering::SeqCst),
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            config_generation: registers.config_generation,
            config: registers.config.clone(),
            queues,
            device: saved.device,
        })
    }

    /// Takes a saved state over and stays paused; [`Self::resume`] goes on. Only right after [`Self::new`]. A
    /// configuration space that is not the one of the state, as of a disk that has grown since, is a change of it.
    ///
    /// # Errors
    /// When the state is of another device or its queues are not usable.
    pub fn restore(&self, state: &TransportState) -> Result<(), TransportError> {
        let mut registers = self.registers();
        let fits = state.queues.len() == registers.queues.len()
            && state.queues.iter().zip(&registers.queues).all(|(s, q)| s.max_size == q.max_size);
        if !fits {
            return Err(TransportError::Mismatch("its queues are others"));
        }
        if state.driver_features & !self.features != 0 {
            return Err(TransportError::Mismatch("it uses features that are not offered"));
        }
        registers.worker.restore(state.device.clone())?;
        registers.device_features_sel = state.device_features_sel;
        registers.driver_features_sel = state.driver_features_sel;
        registers.driver_features = state.driver_features;
        registers.queue_sel = state.queue_sel;
        registers.queues.clone_from(&state.queues);
        let active = state.status & (DRIVER_OK | STATUS_NEEDS_RESET) == DRIVER_OK;
        if active {
            let queues = self.device_queues(&registers);
            let queues = queues.ok_or(TransportError::Mismatch("its queues are not in memory"))?;
            registers.worker.activate(queues, state.driver_features, false)?;
        }
        self.shared.status.store(state.status, Ordering::SeqCst);
        let changed = registers.config != state.config;
        registers.config_generation = state.config_generation.wrapping_add(u32::from(changed));
        let told = if changed && state.status & DRIVER != 0 { INTERRUPT_CONFIG } else { 0 };
        self.shared.interrupt.status.store(state.interrupt_status | told, Ordering::SeqCst);
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        // No code under the lock leaves the registers half written.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let registers = self.registers();
        let Some(field) = registers.config.get(start..).filter(|f| !f.is_empty()) else {
            return self.shared.counters.count(Counter::BadAccess);
        };
        let len = field.len().min(data.len());
        data[..len].copy_from_slice(&field[..len]);
    }

    fn read_register(&self, offset: u32) -> u32 {
        let registers = self.registers();
        let queue = registers.queues.get(registers.queue_sel as usize);
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.kind.id(),
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_DEVICE_FEATURES => half(self.features, registers.device_features_sel),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => queue.map_or(0, |q| u32::from(q.max_size)),
            reg::VIRTIO_MMIO_QUEUE_READY => queue.map_or(0, |q| u32::from(q.ready)),
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.shared.interrupt.status.load(Ordering::SeqCst),
            reg::VIRTIO_MMIO_STATUS => self.shared.status.load(Ordering::SeqCst),
            reg::VIRTIO_MMIO_CONFIG_GENERATION => registers.config_generation,
            reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH => NO_REGION,
            _ => {
                self.shared.counters.count(Counter::BadAccess);
                0
            }
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        let mut registers = self.registers();
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES => self.accept_features(&mut registers, value),
            reg::VIRTIO_MMIO_QUEUE_SEL => registers.queue_sel = value,
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => {
                // The lock is not needed for the worker's own event.
                drop(registers);
                self.notify(value);
            }
            reg::VIRTIO_MMIO_INTERRUPT_ACK => {
                self.shared.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            reg::VIRTIO_MMIO_STATUS => self.set_status(&mut registers, value),
            reg::VIRTIO_MMIO_QUEUE_READY
            | reg::VIRTIO_MMIO_QUEUE_NUM
            | reg::VIRTIO_MMIO_QUEUE_DESC_LOW
            | reg::VIRTIO_MMIO_QUEUE_DESC_HIGH
            | reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | reg::VIRTIO_MMIO_QUEUE_USED_LOW
            | reg::VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_queue(&mut registers, offset, value),
            _ => self.shared.counters.count(Counter::BadAccess),
        }
    }

    fn notify(&self, queue: u32) {
        let Some(event) = self.queue_events.get(queue as usize) else {
            return self.shared.counters.count(Counter::BadAccess);
        };
        if let Err(error) = event.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::error!(%error, "cannot notify a device's thread");
        }
    }

    fn accept_features(&self, registers: &mut Registers, value: u32) {
        if self.status() & (DRIVER | FEATURES_OK) != DRIVER {
            return self.shared.counters.count(Counter::WriteRefused);
        }
        match registers.driver_features_sel {
            0 => registers.driver_features = registers.driver_features & !0xffff_ffff | u64::from(value),
            1 => registers.driver_features = registers.driver_features & 0xffff_ffff | u64::from(value) << 32,
            _ if value == 0 => {}
            _ => self.shared.counters.count(Counter::FeaturesRefused),
        }
    }

    fn write_queue(&self, registers: &mut Registers, offset: u32, value: u32) {
        let window = self.status() & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let event_idx = registers.driver_features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let selected = registers.queue_sel as usize;
        let Some(queue) = registers.queues.get_mut(selected).filter(|q| window && !q.ready) else {
            return self.shared.counters.count(Counter::WriteRefused);
        };
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.avail_ring, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.avail_ring, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used_ring, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used_ring, value),
            // QUEUE_READY
            _ => {
                let ready = QueueState { ready: value == 1, event_idx, ..*queue };
                if ready.ready && DeviceQueue::new(&self.mem, ready).is_err() {
                    self.shared.counters.count(Counter::QueueRefused);
                } else {
                    *queue = ready;
                }
            }
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        let old = self.status();
        if value == 0 {
            return self.reset(registers);
        }
        // Bits are only added, and the device's own bit is not the driver's (section 2.1.1).
        let added = value & DRIVER_BITS & !old;
        if old & DRIVER_BITS & !value != 0 || old & STATUS_NEEDS_RESET != 0 {
            return self.shared.counters.count(Counter::WriteRefused);
        }
        if added & FEATURES_OK != 0 && !self.features_acceptable(registers) {
            self.shared.status.fetch_or(added & !FEATURES_OK, Ordering::SeqCst);
            return self.shared.counters.count(Counter::FeaturesRefused);
        }
        if added & DRIVER_OK != 0 && (old | added) & FEATURES_OK == 0 {
            return self.shared.counters.count(Counter::WriteRefused);
        }
        self.shared.status.fetch_or(added, Ordering::SeqCst);
        if added & DRIVER_OK != 0 {
            self.activate(registers);
        }
    }

    fn features_acceptable(&self, registers: &Registers) -> bool {
        let accepted = registers.driver_features;
        accepted & !self.features == 0 && accepted >> VIRTIO_F_VERSION_1 & 1 == 1
    }

    fn activate(&self, registers: &mut Registers) {
        let Some(queues) = self.device_queues(registers) else {
            self.shared.counters.count(Counter::QueueRefused);
            return self.shared.needs_reset();
        };
        if let Err(error) = registers.worker.activate(queues, registers.driver_features, true) {
            tracing::error!(device = self.kind.name(), %error, cause = ?error, "cannot activate the device");
            self.shared.counters.count(Counter::HostFailure);
            self.shared.needs_reset();
        }
    }

    /// The queues for the worker; `None` when a ready one is not usable or none is ready.
    fn device_queues(&self, registers: &Registers) -> Option<Vec<Option<DeviceQueue>>> {
        let queue = |q: &QueueState| {
            let queue = q.ready.then(|| DeviceQueue::new(&self.mem, *q));
            queue.transpose().ok()
        };
        let queues: Vec<_> = registers.queues.iter().map(queue).collect::<Option<_>>()?;
        queues.iter().any(Option::is_some).then_some(queues)
    }

    fn reset(&self, registers: &mut Registers) {
        if let Err(error) = registers.worker.reset() {
            // A worker that still may touch the queues must not be given new ones: the device stays off.
            tracing::error!(device = self.kind.name(), %error, "cannot reset the device");
            self.shared.counters.count(Counter::WorkerStuck);
            return self.shared.needs_reset();
        }
        registers.device_features_sel = 0;
        registers.driver_features_sel = 0;
        registers.driver_features = 0;
        registers.queue_sel = 0;
        for queue in &mut registers.queues {
            *queue = unused_queue(queue.max_size);
        }
        self.shared.interrupt.status.store(0, Ordering::SeqCst);
        self.shared.status.store(0, Ordering::SeqCst);
    }

    fn status(&self) -> u32 {
        self.shared.status.load(Ordering::SeqCst)
    }
}

fn unused_queue(max_size: u16) -> QueueState {
    QueueState { max_size, size: max_size, ..QueueState::default() }
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !0xffff_ffff | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
