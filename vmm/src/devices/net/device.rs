//! The virtio-net device (virtio 1.2 section 5.1): one pair of queues over a descriptor that carries frames.

use super::frame::{self, Destination, ETHERNET_HEADER, LONGEST_FRAME, PEEK, VNET_HEADER};
use super::metadata::{FRAME_MAX, Responder};
use super::receive::{Received, Receiver};
use super::{Activity, MetadataStore};
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

/// What the NIC shares with the rest of the VM's process. A clone shares the same.
#[derive(Clone, Debug, Default)]
pub struct NetShared {
    /// What the NIC counts.
    pub activity: Arc<Activity>,
    /// What the guest is told at the metadata address.
    pub metadata: Arc<MetadataStore>,
}

/// What carries the frames, each with its virtio-net header.
#[derive(Debug)]
enum Wire {
    /// A TAP of the kernel.
    Tap(OwnedFd),
    /// A socket that keeps message boundaries.
    Socket(OwnedFd),
}

/// The descriptors that wake the device: the wire, and the timer of the metadata address.
const WIRE: usize = 0;

/// The device.
#[derive(Debug)]
pub struct Net {
    wire: Wire,
    config: NetConfig,
    activity: Arc<Activity>,
    receiver: Receiver,
    responder: Responder,
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
    /// When the descriptor is not a TAP, or the host gives no timer.
    pub fn over_tap(tap: OwnedFd, config: NetConfig, shared: &NetShared) -> Result<Self, DeviceError> {
        sys::set_vnet_header_size(tap.as_fd(), VNET_HEADER as i32)
            .map_err(|source| DeviceError::Setup { operation: "TUNSETVNETHDRSZ", source })?;
        Self::new(Wire::Tap(tap), config, shared)
    }

    /// A NIC over a Unix datagram or seqpacket socket, whose messages are frames behind a header of
    /// [`VNET_HEADER`] bytes. The peer must take all offloads.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking, or the host gives no timer.
    pub fn over_socket(socket: OwnedFd, config: NetConfig, shared: &NetShared) -> Result<Self, DeviceError> {
        Self::new(Wire::Socket(socket), config, shared)
    }

    fn new(wire: Wire, config: NetConfig, shared: &NetShared) -> Result<Self, DeviceError> {
        let fd = wire.fd();
        fcntl_getfl(fd)
            .and_then(|flags| fcntl_setfl(fd, flags | OFlags::NONBLOCK))
            .map_err(|error| DeviceError::Setup { operation: "fcntl", source: error.into() })?;
        Ok(Self {
            responder: Responder::new(config.mac, config.mtu, Arc::clone(&shared.metadata))?,
            wire,
            config,
            activity: Arc::clone(&shared.activity),
            receiver: Receiver::new(Arc::clone(&shared.activity)),
            chain: Chain::default(),
        })
    }

    /// Moves frames to the guest until there are none, there is no room, or the bound is reached.
    fn receive(&mut self, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let mut progress = Progress::More;
        for _ in 0..FRAMES_AT_ONCE {
            let Some(queue) = ctx.queues[RX].as_mut() else { return Ok(Progress::Done) };
            queue.disable_notification(ctx.mem)?;
            if self.responder.has_replies() && self.receiver.held().is_empty() {
                let reply = self.responder.next_reply(ctx.counters)?;
                self.receiver.hold(reply.unwrap_or_default());
            }
            match self.receiver.receive(self.wire.fd(), ctx.mem, queue, ctx.counters)? {
                Received::Frame | Received::Dropped => {}
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
        match frame::destination(&head[VNET_HEADER..]) {
            Destination::Wire => {}
            Destination::Metadata => return self.ask_metadata(ctx),
            Destination::Nobody => {
                ctx.counters.count(Counter::NetLinkLocal);
                return Ok(Sent::Used);
            }
        }
        let mut rest: Vec<VolatileSlice<'_>> = Vec::new();
        frame.slices(ctx.mem, copied, usize::MAX, &mut rest).map_err(unreachable)?;
        match sys::writev(self.wire.fd(), head, &rest) {
            Ok(_) => {
                self.activity.count(&head[VNET_HEADER..], frame.bytes() - VNET_HEADER);
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

    /// Gives the frame of the chain that was taken to the metadata address. The guest may change it meanwhile; what
    /// is copied here is looked at anew.
    fn ask_metadata(&mut self, ctx: &Context<'_>) -> Result<Sent, Fault> {
        let frame = &self.chain.readable;
        // One byte more than the service takes tells it that there is too much.
        let mut bytes = vec![0; (frame.bytes() - VNET_HEADER).min(FRAME_MAX + 1)];
        let read = frame.read(ctx.mem, VNET_HEADER, &mut bytes);
        read.map_err(|_| Fault::Guest(Counter::BadBuffer))?;
        self.responder.take(bytes, ctx.counters)?;
        Ok(Sent::Used)
    }

    /// Gives the guest what the metadata address has for it, after `progress` was made.
    fn give_replies(&mut self, progress: Progress, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        if !self.responder.has_replies() {
            return Ok(progress);
        }
        let received = self.receive(ctx)?;
        Ok(if received == Progress::More { received } else { progress })
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
        vec![
            // Edges: frames wait in the TAP, not here, while the guest has no room for them.
            Source { fd: self.wire.fd(), interest: EventFlags::IN | EventFlags::OUT | EventFlags::ET },
            Source { fd: self.responder.timer(), interest: EventFlags::IN | EventFlags::ET },
        ]
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
        if queue == RX {
            return self.receive(ctx);
        }
        let sent = self.send(ctx)?;
        self.give_replies(sent, ctx)
    }

    fn source_event(&mut self, source: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        if source != WIRE {
            self.responder.expire(ctx.counters)?;
            return self.give_replies(Progress::Done, ctx);
        }
        // One edge stands for both directions.
        let received = self.receive(ctx)?;
        let sent = self.send(ctx)?;
        let sent = self.give_replies(sent, ctx)?;
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
        self.responder.clear();
    }

    /// Connections to the metadata address are not saved: a guest that goes on elsewhere is told with a reset.
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
