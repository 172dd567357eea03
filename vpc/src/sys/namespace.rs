#![expect(
    unsafe_code,
    reason = "unshare can break I/O safety when file descriptors are unshared; they are not here"
)]
//! A thread's network namespace (namespaces(7), setns(2), unshare(2)).

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::io;

/// Moves the calling thread into a new, empty network namespace.
///
/// # Errors
/// When the process lacks `CAP_SYS_ADMIN`.
pub fn enter_new() -> io::Result<()> {
    // SAFETY: only the network namespace is unshared; the descriptor table stays shared by all threads.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Moves the calling thread into the network namespace that the descriptor refers to.
///
/// # Errors
/// When it refers to something else, or the process lacks `CAP_SYS_ADMIN`.
pub fn enter(namespace: impl AsFd) -> io::Result<()> {
    let network = Some(LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), network)?)
}

/// The calling thread's network namespace.
///
/// # Errors
/// When `/proc` is not mounted.
pub fn current() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
