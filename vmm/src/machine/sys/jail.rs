//! The ways out of the host: mounts, namespaces, users.
#![expect(
    unsafe_code,
    reason = "unshare, mount and the changes of users have no safe form for a whole process"
)]

use kvm_ioctls::Kvm;
use std::ffi::CStr;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::raw::{c_int, c_ulong};

/// Namespaces of a VM's process. PIDs are not among them: in one, the end of the first process ends all others, and
/// forks live on when the VM that they were made of ends.
const NAMESPACES: c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Gives the process namespaces of its own, whose mounts nobody else sees. Only while it has one thread.
///
/// # Errors
/// Without the capability for it.
pub fn enter_namespaces() -> io::Result<()> {
    // SAFETY: the process has one thread, so no other keeps the old ones.
    check(unsafe { libc::unshare(NAMESPACES) })?;
    mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE, None)
}

/// Mounts.
///
/// # Errors
/// Of mount(2).
pub fn mount(
    source: &CStr,
    target: &CStr,
    kind: Option<&CStr>,
    flags: c_ulong,
    options: Option<&CStr>,
) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: all strings end with a zero and live until the call returns.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), pointer(kind), flags, pointer(options).cast())
    })
}

/// Lets a mount go that is not needed any more, as soon as nobody uses it.
///
/// # Errors
/// Of umount2(2).
pub fn detach(target: &CStr) -> io::Result<()> {
    // SAFETY: the string ends with a zero.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) })
}

/// Becomes a user with its group, without others and without capabilities. For all threads.
///
/// # Errors
/// Without the capability for it.
pub fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: these take numbers, and glibc makes all threads take part.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id))
    }
}

/// What `/dev/kvm` is to the wrapper of its calls.
#[must_use]
pub fn kvm_of(device: OwnedFd) -> Kvm {
    // SAFETY: the descriptor is owned, so nobody else closes it.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(device.into_raw_fd()) }
}

fn check(code: c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
