//! A network of its own for a test's thread.
#![expect(unsafe_code, reason = "unshare(2) has no safe wrapper, since some of its flags are dangerous")]

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and what it starts, into a new and empty network namespace.
pub fn new_network() -> Result<(), Errno> {
    // SAFETY: a network namespace changes no memory and no descriptor of this process.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}
