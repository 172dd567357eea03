//! The virtio-vsock device (virtio 1.2 section 5.10): three queues around the muxer.

use super::connection::MAX_PACKET;
use super::muxer::Muxer;
use super::packet::{HEADER, Header};
use crate::devices::chain::Chain;
use crate::devices::device::{Progress, Source};
use crate::devices::state::VsockState;
use crate::devices::{Context, Counter, DeviceError, DeviceKind, DeviceState, Fault, VirtioDevice};
use rustix::event::epoll::EventFlags;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;
use thiserror::Error;

/// Queue of packets to the guest.
const RX: usize = 0;
/// Queue of packets from the guest.
const TX: usize = 1;
/// Queue of events to the guest.
const EVENT: usize = 2;
const QUEUE_SIZES: &[u16] = &[256, 256, 64];
/// Packets moved in one direction for one event.
const PACKETS_AT_ONCE: u32 = 64;
/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone and the context id may be another.
const TRANSPORT_RESET: u32 = 0;
/// Context ids 0 to 2 have a meaning of their own, and the upper half is reserved (section 5.10.4).
const GUEST_CIDS: std::ops::Range<u64> = 3..0xffff_ffff;

/// The descriptors that wake the device.
const MUXER: usize = 0;

/// Why the device cannot be made.
#[derive(Debug, Error)]
pub enum VsockError {
    /// A context id that a guest cannot have.
    #[error("{0} cannot be the context id of a guest")]
    Cid(u64),
    /// The Unix socket could not be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The descriptors could not be watched.
    #[error("cannot watch the sockets of the guest")]
    Watch(#[source] io::Error),
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    muxer: Muxer,
    timer: OwnedFd,
    timer_at: Option<Instant>,
    /// The guest must be told that its connections are gone.
    reset_pending: bool,
    chain: Chain,
    data: Vec<u8>,
}

impl Vsock {
    /// A device whose host side listens on a new Unix socket at `path`, which must not exist; the guest's own
    /// connections go to `<path>_<port>`.
    ///
    /// # Errors
    /// When the context id is reserved, or the socket cannot be made.
    pub fn bind(guest_cid: u64, path: &Path) -> Result<Self, VsockError> {
        let listener = UnixListener::bind(path)
            .map_err(|source| VsockError::Listen { path: path.to_owned(), source })?;
        Self::new(guest_cid, listener, path)
    }

    /// A device whose host side is a listening socket that was handed in; the guest's own connections go to
    /// `<base>_<port>`.
    ///
    /// # Errors
    /// When the context id is reserved, or the descriptors cannot be watched.
    pub fn new(guest_cid: u64, listener: UnixListener, base: &Path) -> Result<Self, VsockError> {
        if !GUEST_CIDS.contains(&guest_cid) {
            return Err(VsockError::Cid(guest_cid));
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags);
        Ok(Self {
            muxer: Muxer::new(guest_cid, listener, base.to_owned()).map_err(VsockError::Watch)?,
            timer: timer.map_err(|error| VsockError::Watch(error.into()))?,
            timer_at: None,
            reset_pending: false,
            chain: Chain::default(),
            data: Vec::with_capacity(MAX_PACKET),
        })
    }

    /// Moves packets from the guest to the muxer.
    fn take_packets(&mut self, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let mut progress = Progress::More;
        for _ in 0..PACKETS_AT_ONCE {
            let Some(queue) = ctx.queues[TX].as_mut() else { return Ok(Progress::Done) };
            queue.disable_notification(ctx.mem)?;
            if !queue.pop(ctx.mem, &mut self.chain)? {
                if queue.enable_notification(ctx.mem)? {
                    continue;
                }
                progress = Progress::Done;
                break;
            }
            self.take_packet(ctx)?;
            if let Some(queue) = ctx.queues[TX].as_mut() {
                queue.push_used(ctx.mem, self.chain.head, 0)?;
            }
        }
        ctx.signal(TX)?;
        Ok(progress)
    }

    fn take_packet(&mut self, ctx: &Context<'_>) -> Result<(), Fault> {
        let packet = &self.chain.readable;
        let unreachable = |_| Fault::Guest(Counter::BadBuffer);
        let mut header = [0u8; HEADER];
        let got = packet.read(ctx.mem, 0, &mut header).map_err(unreachable)?;
        if self.chain.writable.bytes() != 0 {
            return Err(Fault::Guest(Counter::BadDirection));
        }
        let header = Header::parse(&header);
        let len = header.len as usize;
        if got != HEADER || len > MAX_PACKET || len > packet.bytes() - HEADER {
            ctx.counters.count(Counter::VsockBadPacket);
            return Ok(());
        }
        self.data.resize(len, 0);
        packet.read(ctx.mem, HEADER, &mut self.data).map_err(unreachable)?;
        self.muxer.receive(&header, &self.data, Instant::now(), ctx.counters);
        Ok(())
    }

    /// Moves packets from the muxer to the guest.
    fn give_packets(&mut self, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let mut progress = Progress::More;
        for _ in 0..PACKETS_AT_ONCE {
            let Some(queue) = ctx.queues[RX].as_mut() else { return Ok(Progress::Done) };
            if !self.muxer.has_packets() {
                progress = Progress::Done;
                break;
            }
            queue.disable_notification(ctx.mem)?;
            if !queue.pop(ctx.mem, &mut self.chain)? {
                if queue.enable_notification(ctx.mem)? {
                    continue;
                }
                progress = Progress::Done;
                break;
            }
            let room = &self.chain.writable;
            if self.chain.readable.bytes() != 0 || room.bytes() < HEADER {
                return Err(Fault::Guest(Counter::BadDirection));
            }
            let Some(header) = self.muxer.next_packet(room.bytes() - HEADER, &mut self.data, Instant::now())
            else {
                queue.undo_pop(1);
                progress = Progress::Done;
                break;
            };
            let unreachable = |_| Fault::Guest(Counter::BadBuffer);
            room.write(ctx.mem, 0, &header.to_bytes()).map_err(unreachable)?;
            room.write(ctx.mem, HEADER, &self.data).map_err(unreachable)?;
            queue.push_used(ctx.mem, self.chain.head, (HEADER + self.data.len()) as u32)?;
        }
        ctx.signal(RX)?;
        Ok(progress)
    }

    /// Tells the guest that its connections are gone, as soon as it has lent a buffer for that.
    fn give_events(&mut self, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let Some(queue) = ctx.queues[EVENT].as_mut() else { return Ok(Progress::Done) };
        if !self.reset_pending || !queue.pop(ctx.mem, &mut self.chain)? {
            return Ok(Progress::Done);
        }
        let event = TRANSPORT_RESET.to_le_bytes();
        let written = self.chain.writable.write(ctx.mem, 0, &event);
        if written.map_err(|_| Fault::Guest(Counter::BadBuffer))? != event.len() {
            return Err(Fault::Guest(Counter::BadDirection));
        }
        queue.push_used(ctx.mem, self.chain.head, event.len() as u32)?;
        self.reset_pending = false;
        ctx.signal(EVENT)?;
        Ok(Progress::Done)
    }

    /// Sets the timer to the earliest deadline.
    fn set_timer(&mut self) -> Result<(), Fault> {
        let next = self.muxer.next_deadline();
        if next == self.timer_at {
            return Ok(());
        }
        // All zeros would switch the timer off, so a deadline that has passed is a nanosecond away.
        let wait = next.map(|at| at.saturating_duration_since(Instant::now()).max(NANOSECOND));
        let value = wait.map_or(Timespec { tv_sec: 0, tv_nsec: 0 }, |w| Timespec {
            tv_sec: w.as_secs().cast_signed(),
            tv_nsec: w.subsec_nanos().into(),
        });
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)
            .map_err(|error| Fault::Host(error.into()))?;
        self.timer_at = next;
        Ok(())
    }
}

const NANOSECOND: std::time::Duration = std::time::Duration::from_nanos(1);

impl VirtioDevice for Vsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self) -> Vec<u8> {
        self.muxer.guest_cid().to_le_bytes().to_vec()
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![
            Source { fd: self.muxer.fd(), interest: EventFlags::IN },
            // An edge for each time it runs out; it is set anew instead of read.
            Source { fd: self.timer.as_fd(), interest: EventFlags::IN | EventFlags::ET },
        ]
    }

    fn activate(&mut self, _features: u64) -> Result<(), DeviceError> {
        Ok(())
    }

    fn queue_event(&mut self, queue: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let progress = match queue {
            TX => self.take_packets(ctx)?,
            EVENT => self.give_events(ctx)?,
            _ => Progress::Done,
        };
        let given = self.give_packets(ctx)?;
        self.set_timer()?;
        Ok(if given == Progress::More { given } else { progress })
    }

    fn source_event(&mut self, source: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        let now = Instant::now();
        if source == MUXER {
            self.muxer.events(now, ctx.counters).map_err(Fault::Host)?;
        } else {
            self.timer_at = None;
            self.muxer.expire(now, ctx.counters);
        }
        let progress = self.give_packets(ctx)?;
        self.set_timer()?;
        Ok(progress)
    }

    fn reset(&mut self) {
        self.muxer.clear();
        self.reset_pending = false;
    }

    fn save(&self) -> DeviceState {
        // A restored guest has connections that only its copy of the state remembers.
        DeviceState::Vsock(VsockState { guest_cid: self.muxer.guest_cid(), reset_pending: true })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Vsock(state) = state else { return Err(DeviceError::WrongKind) };
        if state.guest_cid != self.muxer.guest_cid() {
            return Err(DeviceError::Mismatch("the guest has another context id"));
        }
        self.muxer.clear();
        self.reset_pending = state.reset_pending;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
