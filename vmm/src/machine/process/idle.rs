//! The idle watch: a timer, and the bytes that the NIC had moved when it last went off.

use super::Process;
use crate::client::IdleWatch;
use crate::machine::control::MachineMessage;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A watch, which may be off.
#[derive(Debug)]
pub struct Idle {
    timer: OwnedFd,
    watch: Option<IdleWatch>,
    /// Bytes at the beginning of the period.
    bytes: u64,
}

impl Idle {
    /// A watch that has not begun.
    ///
    /// # Errors
    /// When there is no timer.
    pub fn new(watch: Option<IdleWatch>) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self { timer: timerfd_create(TimerfdClockId::Monotonic, flags)?, watch, bytes: 0 })
    }

    /// Readable when a period is over.
    pub fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Begins a period.
    ///
    /// # Errors
    /// When the timer cannot be set.
    pub fn begin(&self) -> io::Result<()> {
        // All zeros switch it off.
        let seconds = self.watch.map_or(0, |watch| watch.seconds.max(1));
        let period = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(i64::MAX), tv_nsec: 0 };
        let setting = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }

    /// A period is over: whether it was idle, when the NIC has moved so many bytes in its life.
    fn over(&mut self, bytes: u64) -> bool {
        let mut count = [0; 8];
        match rustix::io::read(&self.timer, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "cannot read the idle timer"),
        }
        let moved = bytes.saturating_sub(std::mem::replace(&mut self.bytes, bytes));
        self.watch.is_some_and(|watch| moved < watch.threshold_bytes.max(1))
    }
}

impl Process {
    pub(super) fn look_whether_idle(&mut self) {
        let bytes = self.host.moved_bytes();
        if self.idle.over(bytes) && self.suspending.is_none() {
            self.tell(&MachineMessage::Idle);
        }
    }

    pub(super) fn watch_idle(&mut self, watch: Option<IdleWatch>) -> io::Result<()> {
        self.idle.watch = watch;
        self.idle.bytes = self.host.moved_bytes();
        self.idle.begin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_is_judged_by_its_own_bytes() {
        let mut idle = Idle::new(Some(IdleWatch { seconds: 1, threshold_bytes: 100 })).expect("timer");
        assert!(!idle.over(100), "as many as the threshold are traffic");
        assert!(idle.over(199));
        assert!(idle.over(199), "told again");
        assert!(!idle.over(400));
        idle.watch = None;
        assert!(!idle.over(400), "never");
    }
}
