//! The few things that are done in a disk's folder. Tests record them to cut a run at any point.

use super::backend::Medium;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

/// Of files that folders share: nobody writes to them.
const SHARED_MODE: Mode = Mode::from_raw_mode(0o444);
/// Bits of a mode beside the type.
const ALL_BITS: u32 = 0o7777;

/// A folder. Changes to its names are durable after [`Self::sync`], in any order before.
pub trait Directory {
    /// Its files.
    type File: Medium;

    /// All names in it.
    ///
    /// # Errors
    /// Of getdents(2).
    fn names(&self) -> io::Result<Vec<String>>;
    /// Makes a file that does not exist yet.
    ///
    /// # Errors
    /// Of openat(2).
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// Opens a file; a symbolic link is refused.
    ///
    /// # Errors
    /// Of openat(2).
    fn open(&self, name: &str, write: bool) -> io::Result<Self::File>;
    /// Gives a file the name of another, which is replaced.
    ///
    /// # Errors
    /// Of renameat(2).
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Takes a name away.
    ///
    /// # Errors
    /// Of unlinkat(2); a missing one is done.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Gives a file the same name in another folder too.
    ///
    /// # Errors
    /// Of linkat(2).
    fn link(&self, name: &str, other: &Self) -> io::Result<()>;
    /// Makes all changes of names durable.
    ///
    /// # Errors
    /// Of fsync(2).
    fn sync(&self) -> io::Result<()>;
}

/// A folder of the host, by its descriptor: it may be moved meanwhile.
#[derive(Debug)]
pub struct HostDirectory(OwnedFd);

impl HostDirectory {
    /// Opens one that is there.
    ///
    /// # Errors
    /// Of open(2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Makes one, durably, or opens it when it is there.
    ///
    /// # Errors
    /// Of mkdir(2), open(2) and fsync(2).
    pub fn make(path: &Path) -> io::Result<Self> {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        Self::open(parent.unwrap_or(Path::new(".")))?.sync()?;
        Self::open(path)
    }

    /// Whether both are the same folder.
    ///
    /// # Errors
    /// Of fstat(2).
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        let (a, b) = (rustix::fs::fstat(&self.0)?, rustix::fs::fstat(&other.0)?);
        Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    fn open_with(&self, name: &str, flags: OFlags) -> io::Result<File> {
        // Not to wait for what is no file.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(File::from(rustix::fs::openat(&self.0, name, flags, mode)?))
    }
}

impl Directory for HostDirectory {
    type File = File;

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(self.0.as_fd())? {
            // What is not UTF-8 is none of the disk's.
            names.extend(entry?.file_name().to_str().ok().map(str::to_owned));
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<File> {
        self.open_with(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, name: &str, write: bool) -> io::Result<File> {
        self.open_with(name, if write { OFlags::RDWR } else { OFlags::RDONLY })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            result => Ok(result?),
        }
    }

    /// What is shared belongs to root from then on, and nobody writes to it. A name that leads elsewhere is refused: the
    /// folder may be one of a VM's process, which may be anybody's.
    fn link(&self, name: &str, other: &Self) -> io::Result<()> {
        let file = self.open(name, false)?;
        let facts = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(facts.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if rustix::process::geteuid().is_root() && facts.st_uid != 0 {
            rustix::fs::fchown(&file, Some(Uid::ROOT), Some(Gid::ROOT))?;
        }
        if facts.st_mode & ALL_BITS != SHARED_MODE.bits() {
            rustix::fs::fchmod(&file, SHARED_MODE)?;
        }
        let itself = format!("/proc/self/fd/{}", file.as_raw_fd());
        Ok(rustix::fs::linkat(CWD, itself, &other.0, name, AtFlags::SYMLINK_FOLLOW)?)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.0)?)
    }
}
