//! Acting as a Linux user: a child process wholly, a thread of ours for its file accesses only.
#![expect(unsafe_code, reason = "pre_exec and setfsuid(2) have no safe wrapper")]

use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Numbers of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// All groups.
    pub groups: Vec<u32>,
}

impl Identity {
    fn groups(&self) -> Vec<Gid> {
        self.groups.iter().copied().map(Gid::from_raw).collect()
    }
}

/// Lets the command run as the user, and lets the kernel kill it before the agent when memory is short.
pub fn run_as(command: &mut Command, identity: &Identity) {
    let groups = identity.groups();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    let child = move || -> io::Result<()> {
        // The agent itself is exempt, and children inherit that.
        let score = open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&score, b"0")?;
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes plain system calls on memory that was made before the fork;
    // it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(child);
    }
}

/// Gives the calling thread the user's rights to files. Not the user's other identities: then the user could send
/// signals to this process. There is no way back, so the thread must end with the operation.
///
/// # Errors
/// When the kernel refuses; then the thread must not touch files for the user.
pub fn take_file_rights(identity: &Identity) -> io::Result<()> {
    set_thread_groups(&identity.groups())?;
    // SAFETY: both calls take an integer and touch no memory; they change the calling thread alone.
    let now = unsafe {
        libc::setfsgid(identity.gid);
        libc::setfsuid(identity.uid);
        // An impossible id changes nothing, and tells what is set (setfsuid(2)).
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    let as_number = |id: i32| id.cast_unsigned();
    if (as_number(now.0), as_number(now.1)) == (identity.uid, identity.gid) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "the kernel refused the user's file rights"))
}
