#![expect(unsafe_code, reason = "tokio asks the caller to vouch that a registered descriptor stays open")]
//! The one unsafe call of this crate: registering an owned descriptor with tokio's reactor.

use rustix::fd::OwnedFd;
use std::io;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor, which must be non-blocking. Must be called inside a tokio runtime.
///
/// # Errors
/// When the kernel cannot poll the descriptor (a regular file) or is out of watches.
pub fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, owned by the AsyncFd from here on, and gives the same number each time; nobody
    // can close it without taking it out of the AsyncFd.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}
