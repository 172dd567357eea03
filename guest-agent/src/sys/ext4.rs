//! Growing a mounted ext4 file system.
#![expect(unsafe_code, reason = "EXT4_IOC_RESIZE_FS has no safe wrapper")]

use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};
use std::os::fd::AsFd;

/// `EXT4_IOC_RESIZE_FS`, `_IOW('f', 16, __u64)` (linux/fs/ext4/ext4.h).
const RESIZE_FS: u32 = opcode::write::<u64>(b'f', 16);

/// Grows the file system that `root`, an open directory of it, is on.
///
/// # Errors
/// What the kernel answers: `EPERM` without `CAP_SYS_RESOURCE`, `EINVAL` for a size it cannot have.
pub fn resize(root: impl AsFd, blocks: u64) -> Result<(), Errno> {
    // SAFETY: the opcode takes a pointer to one u64, which the kernel only reads.
    unsafe { ioctl(root, Setter::<RESIZE_FS, u64>::new(blocks)) }
}
