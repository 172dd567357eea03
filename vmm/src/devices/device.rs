//! What a device is to its transport and its worker.

use super::GuestRam;
use super::counters::{Counter, Counters};
use super::queue::DeviceQueue;
use super::state::DeviceState;
use rustix::event::epoll::EventFlags;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use thiserror::Error;
use vmm_sys_util::eventfd::EventFd;

/// Interrupt status bit: a queue has used buffers (virtio 1.2 section 4.2.2).
pub(super) const INTERRUPT_USED: u32 = 1;
/// Interrupt status bit: the configuration or the device status changed.
pub(super) const INTERRUPT_CONFIG: u32 = 2;

/// The kinds of devices (virtio 1.2 section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A NIC.
    Net,
    /// A disk.
    Block,
    /// A source of random numbers.
    Rng,
    /// What takes memory back that the guest does not use.
    Balloon,
    /// A socket device.
    Vsock,
}

impl DeviceKind {
    /// The device id (virtio 1.2 section 5, table of device ids).
    #[must_use]
    pub fn id(self) -> u32 {
        match self {
            Self::Net => 1,
            Self::Block => 2,
            Self::Rng => 4,
            Self::Balloon => 5,
            Self::Vsock => 19,
        }
    }

    /// Name of the device's thread.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "virtio-net",
            Self::Block => "virtio-blk",
            Self::Rng => "virtio-rng",
            Self::Balloon => "virtio-balloon",
            Self::Vsock => "virtio-vsock",
        }
    }
}

/// Why a device stops until the driver resets it.
#[derive(Debug, Error)]
pub enum Fault {
    /// The guest broke the rules; the counter says which.
    #[error("the guest broke the protocol: {}", .0.name())]
    Guest(Counter),
    /// The host failed.
    #[error("the host failed to serve the device")]
    Host(#[source] io::Error),
}

/// Why a device could not be made, activated, saved or restored.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// A system call on one of the device's descriptors failed.
    #[error("cannot set up the device: {operation}")]
    Setup {
        /// The call.
        operation: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The saved state is of another kind of device.
    #[error("the saved state belongs to another kind of device")]
    WrongKind,
    /// The saved state does not fit this device.
    #[error("the saved state does not fit the device: {0}")]
    Mismatch(&'static str),
}

/// A descriptor of the host that wakes the device.
#[derive(Debug)]
pub struct Source<'a> {
    /// What is watched while the device is active.
    pub fd: BorrowedFd<'a>,
    /// What to watch for; edge-triggered unless the device always empties it.
    pub interest: EventFlags,
}

/// The interrupt line of one device.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    pub(super) status: AtomicU32,
    counters: Arc<Counters>,
}

impl Interrupt {
    /// Raises interrupts by writing to `line`, which is an irqfd of the machine.
    #[must_use]
    pub fn new(line: EventFd, counters: Arc<Counters>) -> Self {
        Self { line, status: AtomicU32::new(0), counters }
    }

    /// Tells the driver that a queue has used buffers.
    pub fn used(&self) {
        self.raise(INTERRUPT_USED);
    }

    /// Tells the driver that the configuration or the status changed.
    pub fn config(&self) {
        self.raise(INTERRUPT_CONFIG);
    }

    fn raise(&self, bit: u32) {
        self.status.fetch_or(bit, Ordering::SeqCst);
        self.counters.count(Counter::Interrupts);
        if let Err(error) = self.line.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            // A full counter is an interrupt that is already on its way; anything else is a broken line.
            tracing::error!(%error, "cannot raise an interrupt");
        }
    }
}

/// What a device works on while it serves an event.
#[derive(Debug)]
pub struct Context<'a> {
    /// Guest memory.
    pub mem: &'a GuestRam,
    /// The active queues; `None` for one that the driver left out.
    pub queues: &'a mut [Option<DeviceQueue>],
    /// The device's interrupt line.
    pub interrupt: &'a Interrupt,
    /// Where reasons are counted.
    pub counters: &'a Counters,
}

impl Context<'_> {
    /// Shows the used buffers of a queue to the driver and interrupts it if it wants that.
    ///
    /// # Errors
    /// When a ring cannot be reached.
    pub fn signal(&mut self, queue: usize) -> Result<(), Fault> {
        if let Some(queue) = self.queues[queue].as_mut() {
            queue.publish(self.mem)?;
            if queue.needs_interrupt(self.mem)? {
                self.interrupt.used();
            }
        }
        Ok(())
    }
}

/// What the worker is to do after an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Wait for the next event.
    Done,
    /// The device stopped at its bound of work for one event; call it again after the other events.
    More,
}

/// A virtio device. All calls come from its worker thread, save those of the first four functions that come before
/// the worker starts.
pub trait VirtioDevice: Send {
    /// Which kind it is.
    fn kind(&self) -> DeviceKind;
    /// Largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// Features offered beside those of the transport.
    fn features(&self) -> u64;
    /// The configuration space, little-endian. What changes it calls
    /// [`refresh_config`](super::MmioTransport::refresh_config).
    fn config(&self) -> Vec<u8>;
    /// The host's descriptors to watch while active. Their order is their index in [`Self::source_event`].
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }
    /// The driver accepted these features and is ready.
    ///
    /// # Errors
    /// When the host refuses what the features need.
    fn activate(&mut self, features: u64) -> Result<(), DeviceError>;
    /// The driver notified of a queue.
    ///
    /// # Errors
    /// A [`Fault`] stops the device until a reset.
    fn queue_event(&mut self, queue: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault>;
    /// A descriptor of [`Self::sources`] is ready.
    ///
    /// # Errors
    /// A [`Fault`] stops the device until a reset.
    fn source_event(&mut self, source: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let _ = (source, ctx);
        Ok(Progress::Done)
    }
    /// Before a pause: finish what is in flight and give back every chain that is not used.
    ///
    /// # Errors
    /// A [`Fault`] when a ring cannot be reached.
    fn drain(&mut self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        let _ = ctx;
        Ok(())
    }
    /// The driver reset the device: forget everything of it.
    fn reset(&mut self);
    /// What to save beside the queues. Only after [`Self::drain`].
    fn save(&self) -> DeviceState;
    /// Takes a saved state over. Only before [`Self::activate`].
    ///
    /// # Errors
    /// When the state does not belong to this device.
    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError>;
}
