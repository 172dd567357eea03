//! The virtio devices of a machine: block, net, vsock, rng and balloon, each behind a virtio-mmio transport.
//!
//! A device is a state machine without a thread of its own ([`VirtioDevice`]); [`MmioTransport`] gives it one
//! worker thread for life, which alone touches the device and its queues. The thread is made when the
//! transport is made, never at a guest's request. Whatever a guest does wrong ends in `DEVICE_NEEDS_RESET`
//! and a counted reason ([`Counter`]), never in a panic or in an access outside of guest memory.
//!
//! Sources: Virtual I/O Device (VIRTIO) version 1.2, OASIS, 1 July 2022 ("virtio 1.2" in this folder).

pub mod balloon;
pub mod block;
pub mod chain;
pub mod counters;
pub mod device;
#[cfg(any(test, feature = "fuzz"))]
pub mod harness;
pub mod mmio;
pub mod net;
pub mod queue;
pub mod rng;
pub mod state;
pub(crate) mod sys;
pub mod vsock;
mod worker;

pub use counters::{Counter, Counters};
pub use device::{Context, DeviceError, DeviceKind, Fault, Interrupt, Source, VirtioDevice};
pub use mmio::{MmioTransport, TransportError};
pub use state::{DeviceState, TransportState};

/// Guest memory as the devices see it. A clone shares the same mappings.
pub type GuestRam = vm_memory::GuestMemoryMmap<()>;
