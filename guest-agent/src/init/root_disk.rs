//! The root disk: waited for by the kernel's events, mounted, and grown to the disk's size.

use super::superblock::{self, Size};
use crate::sys::ext4;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest wait for the disk. A driver shows it within milliseconds; under emulation within a second.
const DISK_DEADLINE: Duration = Duration::from_secs(30);
/// The kernel's own uevents (udev's re-broadcasts are group 2).
const KERNEL_EVENTS: u32 = 1;
/// Room for one event: the kernel's `UEVENT_BUFFER_SIZE` is 2048.
const EVENT_BYTES: usize = 4096;
/// A sector of `/sys/class/block/*/size`, whatever the disk's own are.
const SYSFS_SECTOR_BYTES: u64 = 512;

/// Why there is no root disk.
#[derive(Debug, Error)]
pub enum RootDiskError {
    /// The kernel's events cannot be heard.
    #[error("cannot listen to the kernel's device events")]
    Events(#[source] io::Error),
    /// It did not appear.
    #[error(
        "{path} did not appear within {} s: is the disk attached, and is gatehouse.root= right?",
        DISK_DEADLINE.as_secs()
    )]
    Absent {
        /// What was waited for.
        path: PathBuf,
    },
    /// It cannot be mounted.
    #[error("cannot mount {path} as ext4")]
    Mount {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Hears of devices that appear.
pub struct Watch {
    events: OwnedFd,
}

impl Watch {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel gives no event socket.
    pub fn new() -> Result<Self, RootDiskError> {
        let open = || -> Result<OwnedFd, Errno> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let events = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
            bind(&events, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
            Ok(events)
        };
        open().map(|events| Self { events }).map_err(|errno| RootDiskError::Events(errno.into()))
    }

    /// Waits until the device node is there. devtmpfs makes the node before the kernel tells of it.
    ///
    /// # Errors
    /// When it does not come within [`DISK_DEADLINE`].
    pub fn wait_for(&self, path: &Path) -> Result<(), RootDiskError> {
        let deadline = Instant::now() + DISK_DEADLINE;
        while !path.exists() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(RootDiskError::Absent { path: path.to_owned() });
            }
            self.next_event(left).map_err(|errno| RootDiskError::Events(errno.into()))?;
        }
        Ok(())
    }

    /// Returns at an event or at the end of the time.
    fn next_event(&self, longest: Duration) -> Result<(), Errno> {
        let longest = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&longest)) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        match recv(&self.events, &mut [0; EVENT_BYTES][..], RecvFlags::DONTWAIT) {
            // A full queue lost events; the device node is looked for anyway.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

/// Mounts the disk read-write and makes its file system as large as the disk.
///
/// # Errors
/// When it cannot be mounted. A file system that does not grow is reported on the console and used as it is.
pub fn mount_and_grow(device: &Path, place: &Path) -> Result<(), RootDiskError> {
    let mounted = mount(device, place, "ext4", MountFlags::NOATIME, c"");
    mounted.map_err(|errno| RootDiskError::Mount { path: device.to_owned(), cause: errno.into() })?;
    if let Err(error) = grow(device, place) {
        eprintln!("gatehouse-init: {} keeps its size: {error}", device.display());
    }
    Ok(())
}

fn grow(device: &Path, place: &Path) -> io::Result<()> {
    let mut superblock = [0; superblock::BYTES];
    File::open(device)?.read_exact_at(&mut superblock, superblock::OFFSET)?;
    let size = Size::of(&superblock).ok_or_else(|| io::Error::other("its superblock is not one of ext4"))?;
    let Some(blocks) = size.grown(disk_bytes(device)?) else { return Ok(()) };
    ext4::resize(File::open(place)?, blocks)?;
    // Disks of this house read as zeros where nothing was written, so the kernel need not write zeros into the
    // new inode tables, which would fill the sparse disk.
    mount_remount(place, MountFlags::NOATIME, c"noinit_itable")?;
    Ok(())
}

fn disk_bytes(device: &Path) -> io::Result<u64> {
    let name = device.file_name().ok_or_else(|| io::Error::other("no device name"))?;
    let text = std::fs::read_to_string(Path::new("/sys/class/block").join(name).join("size"))?;
    let sectors: u64 = text.trim().parse().map_err(io::Error::other)?;
    Ok(sectors.saturating_mul(SYSFS_SECTOR_BYTES))
}
