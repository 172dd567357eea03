//! The service with the host's clock and timer, as the NIC's thread uses it.

use super::{MetadataStore, Service};
use crate::devices::{Counters, DeviceError, Fault};
use model::net::MacAddress;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use rustix::time::{timerfd_create, timerfd_settime};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Answers for one NIC.
#[derive(Debug)]
pub struct Responder {
    service: Service,
    store: Arc<MetadataStore>,
    /// The service counts time from here.
    epoch: Instant,
    timer: OwnedFd,
    /// What the timer is set to.
    timer_at: Option<Duration>,
}

impl Responder {
    /// Answers the guest with the Ethernet address `guest`, in IP packets of at most `mtu` bytes.
    ///
    /// # Errors
    /// When the host gives no timer or no random numbers.
    pub fn new(guest: MacAddress, mtu: u16, store: Arc<MetadataStore>) -> Result<Self, DeviceError> {
        let failed = |operation| {
            move |error: rustix::io::Errno| DeviceError::Setup { operation, source: error.into() }
        };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let mut seed = [0u8; 8];
        // So few bytes come at once or not at all (getrandom(2)).
        let got = getrandom(&mut seed, GetRandomFlags::empty()).map_err(failed("getrandom"))?;
        if got != seed.len() {
            let source = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(DeviceError::Setup { operation: "getrandom", source });
        }
        Ok(Self {
            service: Service::new(guest, mtu, u64::from_ne_bytes(seed)),
            store,
            epoch: Instant::now(),
            timer: timerfd_create(TimerfdClockId::Monotonic, flags).map_err(failed("timerfd_create"))?,
            timer_at: None,
        })
    }

    /// Becomes readable when [`Self::expire`] has something to do. An edge for each time it runs out; it is set anew
    /// instead of read.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// A frame of the guest, from its Ethernet header on.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn take(&mut self, frame: Vec<u8>, counters: &Counters) -> Result<(), Fault> {
        self.service.take(frame, self.epoch.elapsed(), &self.store, counters);
        self.set_timer()
    }

    /// The timer ran out.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn expire(&mut self, counters: &Counters) -> Result<(), Fault> {
        self.timer_at = None;
        self.service.poll(self.epoch.elapsed(), &self.store, counters);
        self.set_timer()
    }

    /// Whether frames wait for the guest.
    pub fn has_replies(&self) -> bool {
        self.service.has_replies()
    }

    /// The next frame for the guest, with its virtio-net header.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn next_reply(&mut self, counters: &Counters) -> Result<Option<Vec<u8>>, Fault> {
        let was_full = self.service.is_full();
        let reply = self.service.next_reply();
        if was_full {
            self.service.poll(self.epoch.elapsed(), &self.store, counters);
            self.set_timer()?;
        }
        Ok(reply)
    }

    /// The driver is gone, and its connections with it.
    pub fn clear(&mut self) {
        self.service.clear();
    }

    fn set_timer(&mut self) -> Result<(), Fault> {
        let now = self.epoch.elapsed();
        let next = self.service.next_deadline(now);
        if next == self.timer_at {
            return Ok(());
        }
        // All zeros would switch the timer off, so a deadline that has passed is a nanosecond away.
        let wait = next.map_or(Duration::ZERO, |at| at.saturating_sub(now).max(Duration::from_nanos(1)));
        let value = Timespec { tv_sec: wait.as_secs().cast_signed(), tv_nsec: wait.subsec_nanos().into() };
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)
            .map_err(|error| Fault::Host(error.into()))?;
        self.timer_at = next;
        Ok(())
    }
}
