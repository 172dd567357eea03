//! What the guest reaches by ports and by memory-mapped registers: serial line, power and virtio devices.
//!
//! Shared by all vCPU threads; each device has its own lock.

use super::console::Console;
use super::pure::layout::{COM1, COM1_PORTS, EVENTS_GSI, virtio_at};
use super::pure::power::{Power, Wish};
use super::state::SerialRegisters;
use crate::devices::MmioTransport;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vm_superio::Serial;
use vm_superio::Trigger;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::EventFd;

/// What a bus without a device reads as.
const NOBODY: u8 = 0xff;

/// An interrupt line as an irqfd.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// All devices but those in KVM.
#[derive(Debug)]
pub struct Bus {
    serial: Mutex<Serial<Line, NoEvents, Console>>,
    power: Mutex<Power>,
    power_line: Line,
    virtio: Vec<MmioTransport>,
    unclaimed: AtomicU64,
}

impl Bus {
    /// The bus of a machine. `power_line` is the irqfd of [`EVENTS_GSI`].
    #[must_use]
    pub fn new(serial_line: Line, console: Console, power_line: Line, virtio: Vec<MmioTransport>) -> Self {
        Self {
            serial: Mutex::new(Serial::new(serial_line, console)),
            power: Mutex::default(),
            power_line,
            virtio,
            unclaimed: AtomicU64::new(0),
        }
    }

    /// The bus of a machine that goes on from a saved state.
    ///
    /// # Errors
    /// When the serial line's registers make no sense.
    pub fn restored(
        serial_line: Line,
        console: Console,
        power_line: Line,
        virtio: Vec<MmioTransport>,
        (registers, events): (SerialRegisters, u8),
    ) -> Option<Self> {
        let serial = Serial::from_state(&registers.into(), serial_line, NoEvents, console).ok()?;
        let mut power = Power::default();
        power.raise(events);
        Some(Self {
            serial: Mutex::new(serial),
            power: Mutex::new(power),
            power_line,
            virtio,
            unclaimed: AtomicU64::new(0),
        })
    }

    /// The serial line's registers and the events that the guest has not read.
    #[must_use]
    pub fn save(&self) -> (SerialRegisters, u8) {
        (lock(&self.serial).state().into(), lock(&self.power).pending())
    }

    /// Interrupts that were on their way when the state was saved are not part of it: raises the serial line's once
    /// more, which is harmless.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub fn nudge_serial(&self) -> io::Result<()> {
        lock(&self.serial).interrupt_evt().trigger()
    }

    /// The virtio devices in the order of their addresses.
    #[must_use]
    pub fn virtio(&self) -> &[MmioTransport] {
        &self.virtio
    }

    /// Accesses that no device claimed.
    #[must_use]
    pub fn unclaimed(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// What the guest's kernel said of its panic.
    #[must_use]
    pub fn panic_line(&self) -> Option<String> {
        lock(&self.serial).writer().panic_line().map(str::to_owned)
    }

    /// Tells the guest of an event of the generic event device.
    ///
    /// # Errors
    /// When the interrupt cannot be raised.
    pub fn raise(&self, event: u8) -> io::Result<()> {
        lock(&self.power).raise(event);
        tracing::debug!(event, line = EVENTS_GSI, "event raised");
        self.power_line.trigger()
    }

    /// The guest reads a port.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        if let Some(register) = serial_register(port) {
            let mut serial = lock(&self.serial);
            data.iter_mut().for_each(|byte| *byte = serial.read(register));
        } else if Power::has(port) {
            let mut power = lock(&self.power);
            data.iter_mut().for_each(|byte| *byte = power.read(port));
        } else {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
            data.fill(NOBODY);
        }
    }

    /// The guest writes a port.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Wish> {
        if let Some(register) = serial_register(port) {
            let mut serial = lock(&self.serial);
            for byte in data {
                if let Err(error) = serial.write(register, *byte) {
                    tracing::error!(?error, "the serial line cannot interrupt");
                }
            }
            None
        } else if Power::has(port) {
            data.iter().find_map(|byte| Power::write(port, *byte))
        } else {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }

    /// The guest reads memory that is not RAM.
    pub fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.device_at(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(NOBODY),
        }
    }

    /// The guest writes memory that is not RAM.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device_at(address) {
            device.write(offset, data);
        }
    }

    fn device_at(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let found = virtio_at(address).and_then(|(index, offset)| Some((self.virtio.get(index)?, offset)));
        if found.is_none() {
            self.unclaimed.fetch_add(1, Ordering::Relaxed);
        }
        found
    }
}

fn serial_register(port: u16) -> Option<u8> {
    port.checked_sub(COM1).filter(|register| *register < COM1_PORTS).map(|register| register as u8)
}

/// No code under these locks leaves a device half written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
