//! The start of a VM's process.
#![expect(unsafe_code, reason = "close_range has no safe form")]

use std::io;

/// Closes every descriptor but standard input, output and error. Only at the very start of a process, before
/// anything was opened: a descriptor that some value owns must not be closed under it.
///
/// # Errors
/// When the kernel refuses.
pub fn close_inherited() -> io::Result<()> {
    // SAFETY: called first in main, when no value owns a descriptor above 2.
    let code = unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
