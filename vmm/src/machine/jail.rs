//! The jail of a VM's process: what is left of the host when the guest's first instruction runs.
//!
//! ```text
//! root, the host's files ──enter──► root, an empty root directory ──settle──► a user of its own, nothing but calls of
//!                                   (waits for its order)                     [`seccomp`]'s lists (the VM runs)
//! ```
//! - Its root directory is empty and read-only, its namespaces (mounts, network, IPC, host name, cgroups) are its own.
//! - It works in the VM's folder, which it is handed, and all names that it uses are relative to it. The folder of all
//!   VMs is root's alone, so that the way up from its own leads nowhere.
//! - It has no capability, no way to get one, and writes no core.
//! - Of `/proc` it keeps one descriptor, for its own page map: processes of other users are not shown there.
//! - Its calls are those of [`seccomp`], fewer for each of its threads. Any other one kills it.
//!
//! A fork is a copy of a process that is in its jail already, so it shares its parent's user and namespaces; what it works
//! with is its own VM's. There is no PID namespace: the end of its first process would end the forks too.

use super::sys;
use crate::seccomp::{self, SeccompError};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use thiserror::Error;

/// Why there is no jail.
#[derive(Debug, Error)]
pub enum JailError {
    /// A step.
    #[error("cannot {step} the jail; VMs are started by root")]
    Step {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The system calls.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// What is opened on the way in, and serves for the life of the process and of its copies.
#[derive(Debug)]
pub struct Kit {
    /// `/dev/kvm`; its absence is told when a machine is made.
    pub kvm: io::Result<OwnedFd>,
    /// A folder of the proc file system.
    pub proc: OwnedFd,
}

impl Kit {
    /// Outside of a jail.
    ///
    /// # Errors
    /// Without a proc file system.
    pub fn open() -> io::Result<Self> {
        let kvm = rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { kvm: kvm.map_err(Into::into), proc: rustix::fs::open("/proc", flags, Mode::empty())? })
    }

    /// For another holder.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let kvm = match &self.kvm {
            Ok(kvm) => Ok(kvm.try_clone()?),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        };
        Ok(Self { kvm, proc: self.proc.try_clone()? })
    }

    /// The descriptors, to keep them open.
    pub fn descriptors(&self) -> impl Iterator<Item = std::os::fd::BorrowedFd<'_>> {
        self.kvm.iter().map(AsFd::as_fd).chain([self.proc.as_fd()])
    }
}

/// Leaves the host's files and namespaces. Only at the very start of a process of root's, while it has one thread.
///
/// # Errors
/// See [`JailError`].
pub fn enter() -> Result<Kit, JailError> {
    let failed = |step| move |source| JailError::Step { step, source };
    sys::enter_namespaces().map_err(failed("make the namespaces of"))?;
    let bare = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // Processes that this one may not trace are not shown.
    let options = c"hidepid=ptraceable,subset=pid";
    sys::mount(c"proc", c"/proc", Some(c"proc"), bare, Some(options)).map_err(failed("mount the proc of"))?;
    let kit = Kit::open().map_err(failed("open the proc of"))?;
    // Any folder would do; this one is there for sure.
    let options = c"size=4k,nr_inodes=1,mode=555";
    sys::mount(c"none", c"/proc", Some(c"tmpfs"), bare | libc::MS_RDONLY, Some(options))
        .map_err(failed("mount the root of"))?;
    // The new root goes over the old one, which then lies beneath and is let go of (pivot_root(2), NOTES).
    std::env::set_current_dir("/proc").map_err(failed("enter the root of"))?;
    rustix::process::pivot_root(".", ".").map_err(|e| failed("change to the root of")(e.into()))?;
    sys::detach(c".").map_err(failed("leave the host's root for"))?;
    std::env::set_current_dir("/").map_err(failed("enter the root of"))?;
    Ok(kit)
}

/// Gives up being root, for good. Nothing of the guest's was read before.
///
/// # Errors
/// See [`JailError`].
pub fn settle(user: u32) -> Result<(), JailError> {
    let failed = |step| move |source| JailError::Step { step, source };
    for capability in rustix::thread::CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A kernel that is older than the capability.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(failed("bound the capabilities of")(error.into())),
        }
    }
    sys::become_user(user).map_err(failed("become the user of"))?;
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    rustix::process::setrlimit(Resource::Core, none).map_err(|e| failed("limit")(e.into()))?;
    // So that it may read its own page map. Forks have the same user, nobody else.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)
        .map_err(|e| failed("show to itself")(e.into()))?;
    rustix::thread::set_no_new_privs(true).map_err(|e| failed("close")(e.into()))?;
    Ok(seccomp::enter()?)
}
