//! Bounds of what a VM's process takes of the host: a cgroup for each (Documentation/admin-guide/cgroup-v2.rst).
//!
//! They are no promise to the guest. They hold a process that went over to the guest's side, or leaks, away from the
//! others.

use crate::client::MachineSpec;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Where Linux distributions mount cgroups.
const MOUNT: &str = "/sys/fs/cgroup";
/// The group of all VMs, below the first: a service's own group cannot have both processes and groups.
const ALL: &str = "gatehouse";
/// What is bounded.
const CONTROLLERS: &str = "+cpu +memory +pids";
/// Memory beside the guest's, in MiB: the process itself and the page cache of its disk, which the kernel takes back
/// first when the bound is reached.
const MEMORY_BESIDE_MIB: u64 = 256;
/// The guest's memory may be there twice: a copy that is being written, or that forks are made of, keeps what the guest
/// changes meanwhile.
const MEMORY_TIMES: u64 = 2;
/// Threads and processes: a machine has at most some twenty, and each copy as many again.
const PIDS: u32 = 1024;
/// Microseconds of CPU time in which the shares below are counted.
const CPU_PERIOD: u32 = 100_000;

/// Where the groups of VMs are. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// None: the host has no cgroups of version 2, or they cannot be made.
    all: Option<PathBuf>,
    /// So that no empty group is removed that a process is about to enter.
    turn: Arc<Mutex<()>>,
}

impl Cgroups {
    /// Makes the group of all VMs. Without one, VMs run unbounded, and the log says so.
    #[must_use]
    pub fn find() -> Self {
        match make_all() {
            Ok(all) => Self { all: Some(all), turn: Arc::default() },
            Err(error) => {
                tracing::warn!(%error, "no cgroup v2 to bound VMs with: a VM's process may take all of the host");
                Self { all: None, turn: Arc::default() }
            }
        }
    }

    /// Bounds a process of a machine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold(&self, spec: &MachineSpec, pid: i32) -> io::Result<()> {
        let Some(all) = &self.all else { return Ok(()) };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let group = all.join(spec.vm.as_str());
        if let Err(error) = std::fs::create_dir(&group)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        let memory = (u64::from(spec.memory_mib) * MEMORY_TIMES + MEMORY_BESIDE_MIB) << 20;
        // One more than the guest's own: devices work beside them.
        let cpu = (u32::from(spec.vcpus) + 1) * CPU_PERIOD;
        for (file, value) in [
            ("memory.max", memory.to_string()),
            ("pids.max", PIDS.to_string()),
            ("cpu.max", format!("{cpu} {CPU_PERIOD}")),
            ("cgroup.procs", pid.to_string()),
        ] {
            std::fs::write(group.join(file), value)?;
        }
        Ok(())
    }

    /// Removes the groups that have no process any more. In that of a VM that ended, a copy may still stand: the next
    /// call removes it.
    pub fn sweep(&self) {
        let Some(all) = &self.all else { return };
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let groups = match std::fs::read_dir(all) {
            Ok(groups) => groups,
            Err(error) => return tracing::warn!(%error, "cgroups of VMs stay"),
        };
        for group in groups.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            match std::fs::remove_dir(group.path()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
                Err(error) => tracing::warn!(group = %group.path().display(), %error, "a VM's cgroup stays"),
            }
        }
    }
}

fn make_all() -> io::Result<PathBuf> {
    let mount = PathBuf::from(MOUNT);
    if !mount.join("cgroup.controllers").is_file() {
        return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{MOUNT} is not of version 2")));
    }
    let all = mount.join(ALL);
    std::fs::write(mount.join("cgroup.subtree_control"), CONTROLLERS)?;
    std::fs::create_dir_all(&all)?;
    std::fs::write(all.join("cgroup.subtree_control"), CONTROLLERS)?;
    Ok(all)
}
