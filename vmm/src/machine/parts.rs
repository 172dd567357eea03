//! The parts of a machine that come from the host: its disk, NIC, vsock and log, made from a plan.

use super::console::Console;
use super::control::{DISK, MachinePlan, VSOCK};
use super::load::{self, LoadError};
use super::vm::Parts;
use crate::client::NicSpec;
use crate::devices::block::backend::{DiskBackend, DiskError};
use crate::devices::block::{Block, DiskOpenError, LayeredDisk};
use crate::devices::net::{Net, NetConfig, Traffic};
use crate::devices::rng::Rng;
use crate::devices::vsock::{Vsock, VsockError};
use crate::devices::{DeviceError, GuestRam, VirtioDevice};
use model::agent::{BOOT_PORT, GUEST_CID};
use model::net::GUEST_MTU;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use thiserror::Error;
use vm_memory::VolatileSlice;
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
    disk: Disk,
    traffic: Arc<Mutex<Option<Arc<Traffic>>>>,
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
        let disk = open_disk(&plan.folder, &plan.rootfs, u64::from(plan.spec.disk_mib) * MIB)?;
        let disk = Disk(Arc::new(Mutex::new(disk)));
        Ok(Self { taps, vsock: listen(&base)?, disk, traffic: Arc::default(), agents })
    }

    /// The disk, for whoever seals it.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.disk.clone()
    }

    /// Readable when somebody wants something of a machine that stands still: frames for its NIC, a host's
    /// connection to its vsock.
    #[must_use]
    pub fn knocks(&self) -> Vec<BorrowedFd<'_>> {
        self.taps.iter().map(AsFd::as_fd).chain([self.vsock.as_fd()]).collect()
    }

    /// Bytes that the NIC has moved since the machine was made.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.as_ref().map_or(0, |traffic| traffic.received() + traffic.sent())
    }

    /// Makes the parts of one machine, with a saved memory or a blank one. Again after each restart of the guest.
    ///
    /// # Errors
    /// See [`PartsError`].
    pub fn parts(&self, plan: &MachinePlan, saved: Option<GuestRam>) -> Result<Parts, PartsError> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        devices.push(Box::new(Block::new(Box::new(self.disk.clone()), plan.spec.vm.as_str())));
        let vsock = self.vsock.try_clone().map_err(PartsError::Duplicate)?;
        let vsock = Vsock::new(GUEST_CID, vsock, &plan.folder.join(VSOCK)).map_err(PartsError::Vsock)?;
        devices.push(Box::new(vsock));
        devices.push(Box::new(Rng::new()));
        if let (Some(nic), Some(tap)) = (&plan.spec.nic, self.taps.first()) {
            let nic = make_nic(nic, tap)?;
            *self.traffic.lock().unwrap_or_else(PoisonError::into_inner) = Some(nic.traffic());
            devices.push(Box::new(nic));
        }
        let console = Console::open(&plan.folder, plan.console_bytes).map_err(PartsError::Console)?;
        let mem = match saved {
            Some(mem) => mem,
            None => load::map(plan.spec.memory_mib)?,
        };
        Ok(Parts { mem, devices, console })
    }
}

/// The disk, shared by its device and whoever seals it.
#[derive(Clone, Debug)]
pub struct Disk(Arc<Mutex<LayeredDisk>>);

impl Disk {
    fn lock(&self) -> MutexGuard<'_, LayeredDisk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes durable all that was written.
    pub fn flush(&self) -> Result<(), super::process::ProcessError> {
        self.lock().flush().map_err(|error| super::process::ProcessError::Folder(io::Error::other(error)))
    }
    pub fn prepare_seal(&self) -> Result<(), super::process::ProcessError> {
        Ok(())
    }
    pub fn switch(&self) -> Result<(), super::process::ProcessError> {
        Ok(())
    }
    pub fn settle(&self) -> Result<(), super::process::ProcessError> {
        Ok(())
    }
    pub fn link_into(&self, _: &Path) -> Result<(), super::process::ProcessError> {
        Ok(())
    }
}
impl DiskBackend for Disk {
    fn capacity(&self) -> u64 {
        self.lock().capacity()
    }
    fn read_only(&self) -> bool {
        self.lock().read_only()
    }
    fn read_at(&mut self, o: u64, i: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.lock().read_at(o, i)
    }
    fn write_at(&mut self, o: u64, i: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        self.lock().write_at(o, i)
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.lock().flush()
    }
    fn discard(&mut self, o: u64, l: u64) -> Result<(), DiskError> {
        self.lock().discard(o, l)
    }
    fn write_zeroes(&mut self, o: u64, l: u64, u: bool) -> Result<(), DiskError> {
        self.lock().write_zeroes(o, l, u)
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
