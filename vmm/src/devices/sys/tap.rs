//! The two ioctls that a TAP needs of the process that reads it (linux/if_tun.h).
#![expect(unsafe_code, reason = "ioctl(2) has no typed form for TUNSETOFFLOAD and TUNSETVNETHDRSZ")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sets how many bytes of virtio-net header precede each frame.
///
/// # Errors
/// When the descriptor is not a TAP.
pub fn set_vnet_header_size(tap: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets which offloads the reader of the TAP can take (`TUN_F_*`).
///
/// # Errors
/// When the descriptor is not a TAP or the kernel does not know one of the offloads.
pub fn set_offload(tap: BorrowedFd<'_>, offload: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value and touches no memory of ours.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
