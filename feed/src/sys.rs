#![expect(
    unsafe_code,
    reason = "tokio asks the caller to vouch that a registered descriptor stays open, and the service manager names inherited descriptors by number"
)]
//! The unsafe calls of this crate: registering an owned descriptor with tokio's reactor, and taking over the
//! descriptors that the starting process left open.

use rustix::fd::{FromRawFd, OwnedFd, RawFd};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::unix::AsyncFd;

/// First inherited descriptor (sd_listen_fds(3)).
const FIRST: RawFd = 3;

/// Set once the descriptors have an owner.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Registers a descriptor, which must be non-blocking. Must be called inside a tokio runtime.
///
/// # Errors
/// When the kernel cannot poll the descriptor (a regular file) or is out of watches.
pub fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, owned by the AsyncFd from here on, and gives the same number each time; nobody
    // can close it without taking it out of the AsyncFd.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

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
