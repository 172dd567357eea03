#![expect(unsafe_code, reason = "the service manager names inherited descriptors by number")]
//! The one unsafe call of this crate: taking over the descriptors that the starting process left open.

use rustix::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// First inherited descriptor (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Set once the descriptors have an owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes over `count` inherited descriptors, from number 3 on, and sets close-on-exec. Only the first call gets them.
/// It must come before the process opens anything else; those that are not open are left out.
#[must_use]
pub fn inherited(count: usize) -> Vec<OwnedFd> {
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Vec::new();
    }
    (FIRST..).take(count).filter_map(take).collect()
}

fn take(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl on a number that is not open gives EBADF and touches nothing; the borrow ends with the call.
    let borrowed = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC).ok()?;
    // SAFETY: the descriptor is open, was left to this process by the one that started it (LISTEN_FDS), and TAKEN
    // makes sure that nobody in this process owns it besides the value made here.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
