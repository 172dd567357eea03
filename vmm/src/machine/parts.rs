//! The parts of a machine that come from the host: its disk, NIC, vsock and log, made from a plan.

use super::console::Console;
use super::control::{MachinePlan, VSOCK};
use super::load::{self, LoadError};
use super::vm::Parts;
use crate::client::{MachineSpec, NicSpec};
use crate::devices::balloon::Balloon;
use crate::devices::block::{Block, DiskFolder, FolderError};
use crate::devices::net::{MetadataContent, Net, NetConfig, NetShared};
use crate::devices::rng::Rng;
use crate::devices::vsock::{Vsock, VsockError};
use crate::devices::{DeviceError, GuestRam, VirtioDevice};
use model::agent::{BOOT_PORT, GUEST_CID};
use model::net::GUEST_MTU;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use thiserror::Error;
use vpc::client::VpcError;

/// One mebibyte.
pub(super) const MIB: u64 = 1 << 20;

/// Why a part is missing.
#[derive(Debug, Error)]
pub enum PartsError {
    /// The disk's files.
    #[error("cannot make or open the disk")]
    Disk(#[from] FolderError),
    /// The image that the disk is made over.
    #[error("cannot open the image {path}")]
    Base {
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
    disk: DiskFolder,
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
        let disk = open_disk(plan)?;
        Ok(Self { taps, vsock: listen(&base)?, disk, agents, nic })
    }

    /// The disk, to seal it.
    pub fn disk(&mut self) -> &mut DiskFolder {
        &mut self.disk
    }

    /// Readable when somebody wants something of a machine that stands still: frames for its NIC, a host's
    /// connection to its vsock.
    #[must_use]
    pub fn knocks(&self) -> Vec<BorrowedFd<'_>> {
        self.taps.iter().map(AsFd::as_fd).chain([self.vsock.as_fd()]).collect()
    }

    /// Bytes of traffic that the NIC has moved since this process began.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.nic.activity.bytes()
    }

    /// Makes the parts of one machine, with a saved memory or a blank one. Again after each restart of the guest.
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn parts(&self, plan: &MachinePlan, saved: Option<GuestRam>) -> Result<Parts, PartsError> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        devices.push(Box::new(Block::new(Box::new(self.disk.disk()), plan.spec.vm.as_str())));
        let vsock = self.vsock.try_clone().map_err(PartsError::Duplicate)?;
        let vsock = Vsock::new(GUEST_CID, vsock, &plan.folder.join(VSOCK)).map_err(PartsError::Vsock)?;
        devices.push(Box::new(vsock));
        devices.push(Box::new(Rng::new()));
        devices.push(Box::new(Balloon::new()));
        if let (Some(nic), Some(tap)) = (&plan.spec.nic, self.taps.first()) {
            devices.push(Box::new(make_nic(nic, tap, &self.nic)?));
        }
        let console = Console::open(&plan.folder, plan.console_bytes).map_err(PartsError::Console)?;
        let mem = match saved {
            Some(mem) => mem,
            None => load::map(plan.spec.memory_mib)?,
        };
        Ok(Parts { mem, devices, console })
    }
}

/// Number of devices of a plan, which the ACPI tables must know before they are made.
#[must_use]
pub fn device_count(plan: &MachinePlan) -> usize {
    if plan.spec.nic.is_some() { 5 } else { 4 }
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

/// Opens the VM's disk over the image, or makes it.
fn open_disk(plan: &MachinePlan) -> Result<DiskFolder, PartsError> {
    let base =
        File::open(&plan.rootfs).map_err(|source| PartsError::Base { path: plan.rootfs.clone(), source })?;
    Ok(DiskFolder::open(&plan.folder, Some(base), u64::from(plan.spec.disk_mib) * MIB)?)
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
