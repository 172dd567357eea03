//! The virtio-net device (virtio 1.2 section 5.1): one pair of queues over a descriptor that carries frames.

use super::frame::{self, ETHERNET_HEADER, LONGEST_FRAME, PEEK, VNET_HEADER};
use super::receive::{Received, Receiver};
use crate::devices::chain::Chain;
use crate::devices::device::{Progress, Source};
use crate::devices::state::NetState;
use crate::devices::{Context, Counter, DeviceError, DeviceKind, DeviceState, Fault, VirtioDevice, sys};
use model::net::MacAddress;
use rustix::event::epoll::EventFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use virtio_bindings::virtio_net as abi;
use vm_memory::VolatileSlice;

/// Queue of the buffers for frames to the guest.
const RX: usize = 0;
/// Queue of the frames from the guest.
const TX: usize = 1;
/// Sizes of both; 256 buffers of Linux' usual 1.5 KiB hold several frames of 64 KiB.
const QUEUE_SIZES: &[u16] = &[256, 256];
/// Frames moved in one direction for one event, so that neither direction starves the other.
const FRAMES_AT_ONCE: u32 = 64;
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;
/// Bytes in front of an IP packet on the wire: Ethernet header and VLAN tag.
const LINK_HEADERS: usize = ETHERNET_HEADER + 4;

/// What the guest is told of its NIC.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Its address; frames from another one do not leave the NIC.
    pub mac: MacAddress,
    /// Longest IP packet without offloads, in bytes.
    pub mtu: u16,
}

/// Frames that mean activity (see [`frame::is_activity`]), counted for the life of the NIC.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// Bytes to the guest.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes from the guest.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// What carries the frames, each with its virtio-net header.
#[derive(Debug)]
enum Wire {
    /// A TAP of the kernel.
    Tap(OwnedFd),
    /// A socket that keeps message boundaries.
    Socket(OwnedFd),
}

/// The device.
#[derive(Debug)]
pub struct Net {
    wire: Wire,
    config: NetConfig,
    traffic: Arc<Traffic>,
    receiver: Receiver,
    chain: Chain,
}

/// What came of one attempt to send.
#[derive(Debug, PartialEq, Eq)]
enum Sent {
    /// Gone or dropped: the chain is used.
    Used,
    /// The wire is full.
    Full,
}

impl Net {
    /// A NIC over a TAP that was made with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`. It is set to non-blocking
    /// and to the long header; no privilege is needed for that.
    ///
    /// # Errors
    /// When the descriptor is not a TAP.
    pub fn over_tap(tap: OwnedFd, config: NetConfig) -> Result<Self, DeviceError> {
        sys::set_vnet_header_size(tap.as_fd(), VNET_HEADER as i32)
            .map_err(|source| DeviceError::Setup { operation: "TUNSETVNETHDRSZ", source })?;
        Self::new(Wire::Tap(tap), config)
    }

    /// A NIC over a Unix datagram or seqpacket socket, whose messages are frames behind a header of
    /// [`VNET_HEADER`] bytes. The peer must take all offloads.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking.
    pub fn over_socket(socket: OwnedFd, config: NetConfig) -> Result<Self, DeviceError> {
        Self::new(Wire::Socket(socket), config)
    }

    fn new(wire: Wire, config: NetConfig) -> Result<Self, DeviceError> {
        let fd = wire.fd();
        fcntl_getfl(fd)
            .and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK))
            .map_err(|error| DeviceError::Setup { operation: "fcntl", source: error.into() })?;
        Ok(Self {
            wire,
            config,
            traffic: Arc::default(),
            receiver: Receiver::default(),
            chain: Chain::default(),
        })
    }

    /// The counts of this NIC, for whoever decides whether the machine is idle.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// Moves frames to the guest until there are none, there is no room, or the bound is reached.
    fn receive(&mut self, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let mut progress = Progress::More;
        for _ in 0..FRAMES_AT_ONCE {
            let Some(queue) = ctx.queues[RX].as_mut() else { return Ok(Progress::Done) };
            queue.disable_notification(ctx.mem)?;
            match self.receiver.receive(self.wire.fd(), ctx.mem, queue, ctx.counters)? {
                Received::Frame(active) => {
                    self.traffic.received.fetch_add(active as u64, Ordering::Relaxed);
                }
                Received::Dropped => {}
                Received::NoRoom if queue.enable_notification(ctx.mem)? => {}
                Received::Nothing | Received::NoRoom => {
                    progress = Progress::Done;
                    break;
                }
            }
        }
        ctx.signal(RX)?;
        Ok(progress)
    }

    /// Moves frames from the guest until there are none, the wire is full, or the bound is reached.
    fn send(&mut self, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let mut progress = Progress::More;
        for _ in 0..FRAMES_AT_ONCE {
            let Some(queue) = ctx.queues[TX].as_mut() else { return Ok(Progress::Done) };
            queue.disable_notification(ctx.mem)?;
            if !queue.pop(ctx.mem, &mut self.chain)? {
                if queue.enable_notification(ctx.mem)? {
                    continue;
                }
                progress = Progress::Done;
                break;
            }
            if self.send_chain(ctx)? == Sent::Full {
                if let Some(queue) = ctx.queues[TX].as_mut() {
                    queue.undo_pop(1);
                }
                // The wire's edge of being writable brings us back.
                progress = Progress::Done;
                break;
            }
            if let Some(queue) = ctx.queues[TX].as_mut() {
                queue.push_used(ctx.mem, self.chain.head, 0)?;
            }
        }
        ctx.signal(TX)?;
        Ok(progress)
    }

    /// Sends the frame of the chain that was taken, or drops it and counts why.
    fn send_chain(&mut self, ctx: &Context<'_>) -> Result<Sent, Fault> {
        let frame = &self.chain.readable;
        if self.chain.writable.bytes() != 0 {
            return Err(Fault::Guest(Counter::BadDirection));
        }
        if !(VNET_HEADER + ETHERNET_HEADER..=VNET_HEADER + LONGEST_FRAME).contains(&frame.bytes()) {
            ctx.counters.count(Counter::NetBadFrame);
            return Ok(Sent::Used);
        }
        // The headers are copied, so that what is sent is what was checked, whatever another vCPU writes.
        let mut head = [0u8; VNET_HEADER + PEEK];
        let unreachable = |_| Fault::Guest(Counter::BadBuffer);
        let copied = frame.read(ctx.mem, 0, &mut head).map_err(unreachable)?;
        let head = &head[..copied];
        if frame::source(&head[VNET_HEADER..]) != Some(self.config.mac.0) {
            ctx.counters.count(Counter::NetSourceMac);
            return Ok(Sent::Used);
        }
        let mut rest: Vec<VolatileSlice<'_>> = Vec::new();
        frame.slices(ctx.mem, copied, usize::MAX, &mut rest).map_err(unreachable)?;
        match sys::writev(self.wire.fd(), head, &rest) {
            Ok(_) => {
                if frame::is_activity(&head[VNET_HEADER..]) {
                    let bytes = frame.bytes() - VNET_HEADER;
                    self.traffic.sent.fetch_add(bytes as u64, Ordering::Relaxed);
                }
                Ok(Sent::Used)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Sent::Full),
            Err(error) => {
                // An offload header that makes no sense, or an interface that is down: the frame is lost as
                // on any wire.
                tracing::debug!(%error, "the host refused a frame");
                ctx.counters.count(Counter::NetTxRefused);
                Ok(Sent::Used)
            }
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        1 << abi::VIRTIO_NET_F_CSUM
            | 1 << abi::VIRTIO_NET_F_GUEST_CSUM
            | 1 << abi::VIRTIO_NET_F_MTU
            | 1 << abi::VIRTIO_NET_F_MAC
            | 1 << abi::VIRTIO_NET_F_GUEST_TSO4
            | 1 << abi::VIRTIO_NET_F_GUEST_TSO6
            | 1 << abi::VIRTIO_NET_F_HOST_TSO4
            | 1 << abi::VIRTIO_NET_F_HOST_TSO6
            | 1 << abi::VIRTIO_NET_F_MRG_RXBUF
            | 1 << abi::VIRTIO_NET_F_STATUS
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.config.mac.0.to_vec();
        config.extend(LINK_UP.to_le_bytes());
        // One pair of queues.
        config.extend(1u16.to_le_bytes());
        config.extend(self.config.mtu.to_le_bytes());
        config
    }

    fn sources(&self) -> Vec<Source<'_>> {
        // Edges: frames wait in the TAP, not here, while the guest has no room for them.
        vec![Source { fd: self.wire.fd(), interest: EventFlags::IN | EventFlags::OUT | EventFlags::ET }]
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceError> {
        let has = |bit: u32| features >> bit & 1 == 1;
        let csum = has(abi::VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = csum && has(abi::VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = csum && has(abi::VIRTIO_NET_F_GUEST_TSO6);
        match &self.wire {
            Wire::Tap(tap) => {
                let flag = |on, flag| if on { flag } else { 0 };
                let offload = flag(csum, libc::TUN_F_CSUM)
                    | flag(tso4, libc::TUN_F_TSO4)
                    | flag(tso6, libc::TUN_F_TSO6);
                sys::set_offload(tap.as_fd(), offload)
                    .map_err(|source| DeviceError::Setup { operation: "TUNSETOFFLOAD", source })?;
            }
            Wire::Socket(_) => {}
        }
        let whole_packets = tso4 || tso6 || matches!(self.wire, Wire::Socket(_));
        let longest = if whole_packets { LONGEST_FRAME } else { LINK_HEADERS + usize::from(self.config.mtu) };
        self.receiver.configure(has(abi::VIRTIO_NET_F_MRG_RXBUF), longest);
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        if queue == RX { self.receive(ctx) } else { self.send(ctx) }
    }

    fn source_event(&mut self, _source: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        // One edge stands for both directions.
        let received = self.receive(ctx)?;
        let sent = self.send(ctx)?;
        let more = received == Progress::More || sent == Progress::More;
        Ok(if more { Progress::More } else { Progress::Done })
    }

    fn drain(&mut self, ctx: &mut Context<'_>) -> Result<(), Fault> {
        if let Some(queue) = ctx.queues[RX].as_mut() {
            self.receiver.give_back(queue);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.receiver.clear();
    }

    fn save(&self) -> DeviceState {
        DeviceState::Net(NetState { held_frame: self.receiver.held().to_vec() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Net(state) = state else { return Err(DeviceError::WrongKind) };
        let len = state.held_frame.len();
        let whole = VNET_HEADER + ETHERNET_HEADER..=VNET_HEADER + LONGEST_FRAME;
        if len != 0 && !whole.contains(&len) {
            return Err(DeviceError::Mismatch("the frame that waits has an impossible length"));
        }
        self.receiver.hold(state.held_frame.clone());
        Ok(())
    }
}

impl Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(fd) | Self::Socket(fd) => fd.as_fd(),
        }
    }
}

#[cfg(test)]
mod tests;
