//! What the initramfs does: kernel modules, root disk, switch of the root, and then the system's own first process.
//!
//! Debian's cloud kernels have the virtio drivers as modules and do not mount devtmpfs by themselves.

mod parameters;
mod root_disk;

use parameters::Parameters;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};
use thiserror::Error;

/// The kernel modules of this initramfs, in the order in which they are loaded.
const MODULE_LIST: &str = "/modules/order";
/// Where the root disk is mounted before it becomes `/`.
const NEW_ROOT: &str = "/root";
/// File systems that are made in the initramfs and moved along.
const KERNEL_MOUNTS: [&str; 3] = ["dev", "proc", "sys"];

/// Why the guest cannot start.
#[derive(Debug, Error)]
pub enum InitError {
    /// A kernel file system cannot be mounted.
    #[error("cannot mount {kind} on {place}")]
    KernelMount {
        /// Type of the file system.
        kind: &'static str,
        /// Where.
        place: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A file of the initramfs, or a kernel file, cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// A module is refused by the kernel.
    #[error("cannot load the kernel module {path}")]
    Module {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The root disk does not come up.
    #[error("no root disk")]
    RootDisk(#[from] root_disk::RootDiskError),
    /// The root of the system cannot be switched.
    #[error("cannot switch to the new root: {step}")]
    SwitchRoot {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The system's first process cannot be started.
    #[error("cannot run {path}")]
    Exec {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Starts the system. Comes back only when that fails.
#[must_use]
pub fn run() -> InitError {
    let init = match prepare() {
        Ok(parameters) => parameters.init,
        Err(error) => return error,
    };
    let cause = Command::new(&init).exec();
    InitError::Exec { path: init, cause }
}

fn prepare() -> Result<Parameters, InitError> {
    mount_kernel_file_systems()?;
    let parameters = Parameters::of(&read_text(Path::new("/proc/cmdline"))?);
    // Listens before the drivers are loaded, so that no disk can appear unseen.
    let disks = root_disk::Watch::new()?;
    load_modules()?;
    disks.wait_for(&parameters.root)?;
    root_disk::mount_and_grow(&parameters.root, Path::new(NEW_ROOT))?;
    free_initramfs();
    switch_root()?;
    Ok(parameters)
}

fn mount_kernel_file_systems() -> Result<(), InitError> {
    let nosuid = MountFlags::NOSUID;
    let plain = nosuid | MountFlags::NODEV | MountFlags::NOEXEC;
    let table: [(&'static str, &'static str, MountFlags, &CStr); 3] = [
        ("devtmpfs", "/dev", nosuid, c"mode=0755"),
        ("proc", "/proc", plain, c""),
        ("sysfs", "/sys", plain, c""),
    ];
    for (kind, place, flags, data) in table {
        mount(kind, place, kind, flags, data).map_err(|errno| InitError::KernelMount {
            kind,
            place,
            cause: errno.into(),
        })?;
    }
    Ok(())
}

fn load_modules() -> Result<(), InitError> {
    for name in read_text(Path::new(MODULE_LIST))?.lines().filter(|line| !line.is_empty()) {
        let path = Path::new("/modules").join(name);
        let file = fs::File::open(&path).map_err(|cause| InitError::Read { path: path.clone(), cause })?;
        match rustix::system::finit_module(&file, c"", 0) {
            // Loaded already: built in, or asked for by the kernel itself.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(InitError::Module { path, cause: errno.into() }),
        }
    }
    Ok(())
}

/// The modules are in the kernel now; their files would hold memory for the life of the guest.
fn free_initramfs() {
    for path in ["/modules", "/init"] {
        let path = Path::new(path);
        let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        if let Err(error) = removed {
            eprintln!("gatehouse-init: {} stays in memory: {error}", path.display());
        }
    }
}

/// As switch_root(8) does: an initramfs cannot be unmounted or pivoted away, only covered.
fn switch_root() -> Result<(), InitError> {
    let failed = |step| move |cause: io::Error| InitError::SwitchRoot { step, cause };
    for name in KERNEL_MOUNTS {
        mount_move(format!("/{name}"), format!("{NEW_ROOT}/{name}"))
            .map_err(io::Error::from)
            .map_err(failed("move the kernel's file systems"))?;
    }
    std::env::set_current_dir(NEW_ROOT).map_err(failed("enter it"))?;
    mount_move(".", "/").map_err(io::Error::from).map_err(failed("move it to /"))?;
    rustix::process::chroot(".").map_err(io::Error::from).map_err(failed("change the root"))?;
    std::env::set_current_dir("/").map_err(failed("enter /"))?;
    // The initramfs has no terminal of its own but the console that the kernel opened before /dev was there.
    rustix::fs::accessat(CWD, "dev/console", rustix::fs::Access::READ_OK, rustix::fs::AtFlags::empty())
        .map_err(io::Error::from)
        .map_err(failed("find /dev/console in it"))
}

fn read_text(path: &Path) -> Result<String, InitError> {
    fs::read_to_string(path).map_err(|cause| InitError::Read { path: path.to_owned(), cause })
}
