//! The root disk: waited for by the kernel's events, mounted, and grown to the disk's size.

use crate::uevents::Uevents;
use crate::{error_chain, grow};
use rustix::mount::{MountFlags, mount};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Longest wait for the disk. A driver shows it within milliseconds; under emulation within a second.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

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
    events: Uevents,
}

impl Watch {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel gives no event socket.
    pub fn new() -> Result<Self, RootDiskError> {
        let events = Uevents::listen().map_err(|errno| RootDiskError::Events(errno.into()))?;
        Ok(Self { events })
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
            self.events.wait(left).map_err(|errno| RootDiskError::Events(errno.into()))?;
        }
        Ok(())
    }
}

/// Mounts the disk read-write and makes its file system as large as the disk.
///
/// # Errors
/// When it cannot be mounted. A file system that does not grow is reported on the console and used as it is.
pub fn mount_and_grow(device: &Path, place: &Path) -> Result<(), RootDiskError> {
    let mounted = mount(device, place, "ext4", MountFlags::NOATIME, c"");
    mounted.map_err(|errno| RootDiskError::Mount { path: device.to_owned(), cause: errno.into() })?;
    if let Err(error) = grow::to_disk(place) {
        eprintln!("gatehouse-init: {} keeps its size: {}", device.display(), error_chain(&error));
    }
    Ok(())
}
