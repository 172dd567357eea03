//! The parts of a machine that come from the host: its disk, NIC, vsock and log, made from a plan.

use super::console::Console;
use super::control::{DISK, MachinePlan, VSOCK};
use super::load::{self, LoadError};
use super::vm::Parts;
use crate::client::{MachineSpec, NicSpec};
use crate::devices::block::{Block, DiskOpenError, LayeredDisk};
use crate::devices::net::{MetadataContent, Net, NetConfig, NetShared};
use crate::devices::rng::Rng;
use crate::devices::vsock::{Vsock, VsockError};
use crate::devices::{DeviceError, VirtioDevice};
use model::agent::{BOOT_PORT, GUEST_CID};
use model::net::GUEST_MTU;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use thiserror::Error;
use vpc::client::VpcError;

/// One mebibyte.
const MIB: u64 = 1 << 20;
/// Added to the name of a disk's top while it is being made.
const UNFINISHED: &str = "disk.new";

/// Why a part is missing.
#[derive(Debug, Error)]
pub enum PartsError {
    /// The disk's files.
    #[error("cannot make or open the disk")]
    Disk(#[source] DiskOpenError),
    /// The disk's folder.
    #[error("cannot prepare the disk's files at {path}")]
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
    /// What the NIC counts, and what it tells the guest.
    pub nic: NetShared,
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
        let nic = NetShared::default();
        if let Some(content) = metadata_of(&plan.spec) {
            nic.metadata.replace(content);
        }
        Ok(Self { taps, vsock: listen(&base)?, agents, nic })
    }

    /// Makes the parts of one machine. Again after each restart of the guest.
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn parts(&self, plan: &MachinePlan) -> Result<Parts, PartsError> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let disk = open_disk(&plan.folder, &plan.rootfs, u64::from(plan.spec.disk_mib) * MIB)?;
        devices.push(Box::new(Block::new(Box::new(disk), plan.spec.vm.as_str())));
        let vsock = self.vsock.try_clone().map_err(PartsError::Duplicate)?;
        let vsock = Vsock::new(GUEST_CID, vsock, &plan.folder.join(VSOCK)).map_err(PartsError::Vsock)?;
        devices.push(Box::new(vsock));
        devices.push(Box::new(Rng::new()));
        if let (Some(nic), Some(tap)) = (&plan.spec.nic, self.taps.first()) {
            devices.push(Box::new(make_nic(nic, tap, &self.nic)?));
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

/// What the guest is told at the metadata address; nothing when it has no network.
#[must_use]
pub fn metadata_of(spec: &MachineSpec) -> Option<MetadataContent> {
    let network = spec.boot.network.as_ref()?;
    Some(MetadataContent {
        instance_id: spec.vm.to_string(),
        hostname: spec.boot.hostname.clone(),
        ipv4: network.ipv4,
        mac: network.mac,
        ssh_keys: spec.metadata.ssh_keys.clone(),
        user_data: spec.metadata.user_data.clone(),
    })
}

fn make_nic(nic: &NicSpec, tap: &OwnedFd, shared: &NetShared) -> Result<Net, PartsError> {
    let tap = tap.try_clone().map_err(PartsError::Duplicate)?;
    Net::over_tap(tap, NetConfig { mac: nic.mac, mtu: GUEST_MTU }, shared).map_err(PartsError::Nic)
}

/// Opens the top, or makes it. It gets its name only when it is complete, so that a crash leaves none by halves.
fn open_disk(folder: &Path, base: &Path, capacity: u64) -> Result<LayeredDisk, PartsError> {
    let top = folder.join(DISK);
    let failed = |source| PartsError::DiskFiles { path: top.clone(), source };
    if !top.try_exists().map_err(failed)? {
        let new = folder.join(UNFINISHED);
        let (map, new_map) = (map_of(&top), map_of(&new));
        for leftover in [&new, &new_map, &map] {
            remove_if_there(leftover).map_err(failed)?;
        }
        drop(LayeredDisk::create_at(Some(base), &new, capacity).map_err(PartsError::Disk)?);
        std::fs::rename(&new_map, &map).map_err(failed)?;
        std::fs::rename(&new, &top).map_err(failed)?;
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    }
    LayeredDisk::open_at(Some(base), &top).map_err(PartsError::Disk)
}

fn map_of(top: &Path) -> PathBuf {
    crate::devices::block::layered::map_path(top)
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
