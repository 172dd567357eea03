//! Making a mounted ext4 file system as large as its disk, as resize2fs(8) does, without that program.

use crate::pure::superblock::{self, Size};
use crate::sys::ext4;
use crate::uevents::Uevents;
use rustix::fs::{CWD, major, minor};
use rustix::io::Errno;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use thiserror::Error;

/// A sector of sysfs's `size`, whatever the disk's own are.
const SYSFS_SECTOR_BYTES: u64 = 512;
/// How long a disk that is said to be larger may take to become so: the host's word can overtake the interrupt that
/// tells the driver.
const SIZE_WAIT: Duration = Duration::from_secs(1);

/// Why a file system keeps its size.
#[derive(Debug, Error)]
pub enum GrowError {
    /// It is on no disk, or the disk is not known.
    #[error("cannot find the disk of {path}")]
    Disk {
        /// Where it is mounted.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The disk cannot be read.
    #[error("cannot read the superblock on {path}")]
    Superblock {
        /// The disk.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Another file system.
    #[error("{0} has no ext4 file system")]
    NotExt4(PathBuf),
    /// The kernel refuses.
    #[error("cannot grow to {blocks} blocks")]
    Resize {
        /// The size that was asked for.
        blocks: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// The kernel's events cannot be heard.
    #[error("cannot listen to the kernel's device events")]
    Events(#[source] io::Error),
}

/// Grows what is mounted at `place`. Tells whether there was anything to do.
///
/// # Errors
/// See [`GrowError`].
pub fn to_disk(place: &Path) -> Result<bool, GrowError> {
    let (device, disk_bytes) =
        disk_of(place).map_err(|cause| GrowError::Disk { path: place.to_owned(), cause })?;
    let size = size_on(&device)?;
    let Some(blocks) = size.grown(disk_bytes) else { return Ok(false) };
    // Disks of this house read as zeros where nothing was written, so the kernel need not write zeros into the new
    // inode tables, which would fill the sparse disk.
    if let Err(errno) = leave_new_inodes_alone(place) {
        eprintln!("gatehouse-agent: zeros are written into the new inode tables: {errno}");
    }
    let resized = File::open(place).and_then(|root| Ok(ext4::resize(root, blocks)?));
    resized.map(|()| true).map_err(|cause| GrowError::Resize { blocks, cause })
}

/// Grows what is mounted at `place`, whose disk has been made larger just now.
///
/// # Errors
/// See [`GrowError`]. A disk that does not become larger is none.
pub fn when_larger(place: &Path) -> Result<(), GrowError> {
    let events = |errno: Errno| GrowError::Events(errno.into());
    // Listens before it looks, so that no change is missed.
    let changes = Uevents::listen().map_err(events)?;
    let deadline = Instant::now() + SIZE_WAIT;
    while !to_disk(place)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        changes.wait(left).map_err(events)?;
    }
    Ok(())
}

/// The device node and its bytes, by what the kernel knows of the device that the folder is on.
fn disk_of(place: &Path) -> io::Result<(PathBuf, u64)> {
    let device = fs::metadata(place)?.dev();
    let facts = PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    let event = fs::read_to_string(facts.join("uevent"))?;
    let name = event.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = name.ok_or_else(|| io::Error::other("the device has no name"))?;
    let sectors: u64 = fs::read_to_string(facts.join("size"))?.trim().parse().map_err(io::Error::other)?;
    Ok((Path::new("/dev").join(name), sectors.saturating_mul(SYSFS_SECTOR_BYTES)))
}

/// The mounted file system's superblock is the one in the device's own cache.
fn size_on(device: &Path) -> Result<Size, GrowError> {
    let mut block = [0; superblock::BYTES];
    File::open(device)
        .and_then(|disk| disk.read_exact_at(&mut block, superblock::OFFSET))
        .map_err(|cause| GrowError::Superblock { path: device.to_owned(), cause })?;
    Size::of(&block).ok_or_else(|| GrowError::NotExt4(device.to_owned()))
}

/// Sets the one option, and none of the mount's others.
fn leave_new_inodes_alone(place: &Path) -> Result<(), Errno> {
    let options = fspick(CWD, place, FsPickFlags::FSPICK_CLOEXEC)?;
    fsconfig_set_flag(&options, "noinit_itable")?;
    fsconfig_reconfigure(&options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// A real file system on a loop device, gone with the test.
    struct Disk {
        folder: tempfile::TempDir,
        device: String,
    }

    fn tool(name: &str, words: &[&str]) -> String {
        let done = Command::new(name).args(words).output().expect("tool");
        assert!(done.status.success(), "{name} {words:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    }

    impl Disk {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let (file, place) = (folder.path().join("disk"), folder.path().join("mounted"));
            fs::create_dir(&place).expect("folder");
            File::create(&file).and_then(|file| file.set_len(64 << 20)).expect("file");
            let path = file.to_str().expect("text");
            tool("mkfs.ext4", &["-q", "-b", "1024", path]);
            let device = tool("losetup", &["--find", "--show", path]);
            tool("mount", &["-o", "nodev,noatime", &device, place.to_str().expect("text")]);
            Self { folder, device }
        }

        fn place(&self) -> PathBuf {
            self.folder.path().join("mounted")
        }

        fn enlarge(&self) {
            let file = File::options().write(true).open(self.folder.path().join("disk")).expect("file");
            file.set_len(256 << 20).expect("length");
            tool("losetup", &["--set-capacity", &self.device]);
        }

        fn bytes(&self) -> u64 {
            let facts = rustix::fs::statvfs(self.place()).expect("facts");
            facts.f_blocks * facts.f_frsize
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            tool("umount", &[self.place().to_str().expect("text")]);
            tool("losetup", &["--detach", &self.device]);
        }
    }

    /// Root in a container may lack the right to resize. Then the refusal must be told, and nothing else can be seen.
    fn may_resize() -> bool {
        let sets = rustix::thread::capabilities(None).expect("capabilities");
        sets.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE)
    }

    fn assert_grown<T: std::fmt::Debug>(disk: &Disk, grown: &Result<T, GrowError>) {
        if may_resize() {
            assert!(grown.is_ok() && disk.bytes() > 200 << 20, "{grown:?}, {}", disk.bytes());
        } else {
            let Err(GrowError::Resize { blocks: 262_144, cause }) = grown else { panic!("{grown:?}") };
            assert_eq!(cause.raw_os_error(), Some(libc::EPERM));
        }
    }

    #[test]
    fn a_mounted_file_system_takes_its_disks_size_and_keeps_its_options() {
        let disk = Disk::new();
        assert!(!to_disk(&disk.place()).expect("nothing to do"));
        disk.enlarge();
        assert_grown(&disk, &to_disk(&disk.place()));
        if may_resize() {
            assert!(!to_disk(&disk.place()).expect("nothing to do"));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
        let own =
            mounts.lines().find(|line| line.starts_with(&format!("{} ", disk.device))).expect("mounted");
        for option in ["rw", "nodev", "noatime", "noinit_itable"] {
            assert!(own.split([' ', ',']).any(|found| found == option), "{own}");
        }
    }

    #[test]
    fn a_disk_that_becomes_larger_a_little_later_is_waited_for() {
        let disk = Disk::new();
        let grown = std::thread::scope(|scope| {
            let growing = scope.spawn(|| when_larger(&disk.place()));
            disk.enlarge();
            growing.join().expect("thread")
        });
        assert_grown(&disk, &grown);
    }

    #[test]
    fn another_file_system_is_left_alone() {
        assert!(matches!(to_disk(Path::new("/proc")), Err(GrowError::Disk { .. })));
        let size = size_on(Path::new("/dev/zero"));
        assert!(matches!(size, Err(GrowError::NotExt4(_))), "{size:?}");
    }
}
