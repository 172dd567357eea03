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

/// Makes a TAP of this name with `IFF_NO_PI | IFF_VNET_HDR`, as the switch does for a machine, in a new
/// network namespace for the calling thread.
#[cfg(test)]
pub fn open_tap_apart(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    // SAFETY: a new network namespace changes no memory and no descriptor of this process.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let tap = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all bytes zero are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(tap.into()) }
}
