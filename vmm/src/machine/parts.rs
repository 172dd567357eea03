//! The parts of a machine that come from the host: its disk, NIC, vsock and log, made from a plan.

use super::console::Console;
use super::control::{MachinePlan, VSOCK};
use super::load::{self, LoadError};
use super::vm::Parts;
use crate::client::NicSpec;
use crate::devices::block::{Block, DiskFolder, FolderError};
use crate::devices::net::{Net, NetConfig};
use crate::devices::rng::Rng;
use crate::devices::vsock::{Vsock, VsockError};
use crate::devices::{DeviceError, VirtioDevice};
use model::agent::{BOOT_PORT, GUEST_CID};
use model::net::GUEST_MTU;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use thiserror::Error;
use vpc::client::VpcError;

/// One mebibyte.
const MIB: u64 = 1 << 20;

/// Why a part is missing.
#[derive(Debug, Error)]
pub enum PartsError {
    /// The disk's files.
    #[error("cannot make or open the disk")]
    Disk(#[source] FolderError),
    /// The disk's base.
    #[error("cannot open the disk's base {path}")]
    DiskFiles {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network process gave no TAP.
    #[error("no TAP for the NIC")]
    Tap(#[source] VpcError),
    /// A device could not be made.
    #[error("cannot make the NIC")]
    Nic(#[source] DeviceError),
    /// The vsock device could not be made.
    #[error("cannot make the vsock device")]
    Vsock(#[source] VsockError),
    /// A socket could not be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The console's log.
    #[error("cannot open the console's log")]
    Console(#[source] io::Error),
    /// A descriptor could not be duplicated.
    #[error("cannot duplicate a descriptor")]
    Duplicate(#[source] io::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] LoadError),
}

/// What stays when the guest restarts.
#[derive(Debug)]
pub struct Host {
    taps: Vec<OwnedFd>,
    vsock: UnixListener,
    /// Where the agent reports.
    pub agents: UnixListener,
}

impl Host {
    /// Makes the sockets, and asks vpc for the TAP. Blocks until vpc answers.
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn prepare(plan: &MachinePlan) -> Result<Self, PartsError> {
        let base = plan.folder.join(VSOCK);
        let agents = listen(&plan.folder.join(format!("{VSOCK}_{BOOT_PORT}")))?;
        agents.set_nonblocking(true).map_err(PartsError::Duplicate)?;
        let taps = match &plan.spec.nic {
            Some(nic) => {
                vpc::client::tap(&plan.vpc_socket, &plan.spec.vm, nic.generation).map_err(PartsError::Tap)?
            }
            None => Vec::new(),
        };
        Ok(Self { taps, vsock: listen(&base)?, agents })
    }

    /// Makes the parts of one machine. Again after each restart of the guest.
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn parts(&self, plan: &MachinePlan) -> Result<Parts, PartsError> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let disk = open_disk(&plan.folder, &plan.rootfs, u64::from(plan.spec.disk_mib) * MIB)?;
        devices.push(Box::new(Block::new(Box::new(disk.disk()), plan.spec.vm.as_str())));
        let vsock = self.vsock.try_clone().map_err(PartsError::Duplicate)?;
        let vsock = Vsock::new(GUEST_CID, vsock, &plan.folder.join(VSOCK)).map_err(PartsError::Vsock)?;
        devices.push(Box::new(vsock));
        devices.push(Box::new(Rng::new()));
        if let (Some(nic), Some(tap)) = (&plan.spec.nic, self.taps.first()) {
            devices.push(Box::new(make_nic(nic, tap)?));
        }
        let console = Console::open(&plan.folder, plan.console_bytes).map_err(PartsError::Console)?;
        Ok(Parts { mem: load::map(plan.spec.memory_mib)?, devices, console })
    }
}

/// Number of devices of a plan, which the ACPI tables must know before they are made.
#[must_use]
pub fn device_count(plan: &MachinePlan) -> usize {
    if plan.spec.nic.is_some() { 4 } else { 3 }
}

fn make_nic(nic: &NicSpec, tap: &OwnedFd) -> Result<Net, PartsError> {
    let tap = tap.try_clone().map_err(PartsError::Duplicate)?;
    Net::over_tap(tap, NetConfig { mac: nic.mac, mtu: GUEST_MTU }).map_err(PartsError::Nic)
}

/// Opens the disk over its base, or makes it.
fn open_disk(folder: &Path, base: &Path, capacity: u64) -> Result<DiskFolder, PartsError> {
    let base = File::open(base).map_err(|source| PartsError::DiskFiles { path: base.to_owned(), source })?;
    DiskFolder::open(folder, Some(base), capacity).map_err(PartsError::Disk)
}

/// Listens where an earlier process of this VM may have left its socket.
fn listen(path: &Path) -> Result<UnixListener, PartsError> {
    let failed = |source| PartsError::Listen { path: path.to_owned(), source };
    remove_if_there(path).map_err(failed)?;
    UnixListener::bind(path).map_err(failed)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
