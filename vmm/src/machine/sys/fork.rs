//! Copies of the process: the heart of a fork.
#![expect(unsafe_code, reason = "fork, close_range and madvise have no safe form")]

use kvm_ioctls::VcpuFd;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Which of the two processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that called; the other has this process number.
    Parent(i32),
    /// The copy. It has one thread, and must end by [`leave`] or by becoming something else.
    Child,
}

/// Copies the process. The copy has the calling thread alone: whatever the others held is held for ever there, so
/// they must hold nothing. That is so while the machine is paused: the vCPUs' threads wait at their orders, the
/// devices' threads wait for events, and neither holds a lock while it waits; glibc sees to its allocator's own.
///
/// # Errors
/// Of fork(2).
pub fn fork() -> io::Result<Side> {
    // SAFETY: the child goes on with one thread and its own copy of all memory; see above for the locks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(pid)),
    }
}

/// Ends a copy at once: no destructors run, since they would wait for threads that are not there.
pub fn leave(code: i32) -> ! {
    // SAFETY: ends the process; nothing runs after it.
    unsafe { libc::_exit(code) }
}

/// In a copy: closes all descriptors above standard error but these, so that nothing of the original's stays alive
/// because of it: KVM's machine, its TAP, its disk, its sockets.
///
/// # Errors
/// When the kernel refuses.
pub fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> =
        kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).filter(|fd| *fd > 2).collect();
    kept.sort_unstable();
    let mut first = 3;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: in a copy, the values that own these descriptors are never used or dropped again (see `leave`).
            if unsafe { libc::close_range(first, last, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}

/// Keeps the page that a vCPU shares with KVM out of copies of the process: it would keep the original's machine
/// alive in them.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_out_of_copies(vcpu: &mut VcpuFd, run_bytes: usize) -> io::Result<()> {
    let page: *mut kvm_bindings::kvm_run = vcpu.get_kvm_run();
    // SAFETY: the mapping begins there, has `run_bytes` bytes (KVM_GET_VCPU_MMAP_SIZE) and lives as long as the vCPU;
    // the advice changes nothing in this process.
    if unsafe { libc::madvise(page.cast(), run_bytes, libc::MADV_DONTFORK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the kernel reap children by itself, or again keep them for whoever waits.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore_children(ignore: bool) -> io::Result<()> {
    let action = if ignore { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: no handler is installed, only one of the two dispositions that need none.
    if unsafe { libc::signal(libc::SIGCHLD, action) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
