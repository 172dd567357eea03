//! What a disk is to virtio-blk, and the file operations that disks are made of.

use crate::devices::sys;
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use thiserror::Error;
use vm_memory::VolatileSlice;

/// Bytes of a sector, the unit of addresses. Also the logical block size that guests see, on any host disk.
pub const SECTOR: u64 = 512;

/// Why a disk did not do what was asked.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The range is not inside of the disk, or not made of whole sectors.
    #[error("sectors outside of the disk")]
    OutOfRange,
    /// The disk cannot be written.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A file ended before its recorded length.
    #[error("a file of the disk is shorter than it was")]
    Short,
    /// An earlier flush failed. The kernel may have dropped what it could not write, so that a later flush
    /// would seem to succeed; the disk answers nothing but errors until it is opened again.
    #[error("the disk was stopped by a failed flush")]
    Stopped,
    /// Reading failed.
    #[error("cannot read from the disk's files")]
    Read(#[source] io::Error),
    /// Writing failed.
    #[error("cannot write to the disk's files")]
    Write(#[source] io::Error),
    /// Flushing failed.
    #[error("cannot flush the disk's files")]
    Flush(#[source] io::Error),
    /// Deallocating or zeroing failed.
    #[error("cannot deallocate in the disk's files")]
    Deallocate(#[source] io::Error),
}

/// A disk. Offsets and lengths are in bytes, whole sectors, inside of the disk; everything else is refused.
pub trait DiskBackend: Send {
    /// Size in bytes, whole sectors.
    fn capacity(&self) -> u64;

    /// Whether it can only be read.
    fn read_only(&self) -> bool;

    /// Fills the slices from `offset` on.
    ///
    /// # Errors
    /// A [`DiskError`]; the slices may be partly written.
    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Writes the slices to `offset` and on. Durable after the next [`Self::flush`].
    ///
    /// # Errors
    /// A [`DiskError`]; some of the range may be written.
    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError>;

    /// Makes durable all that was written.
    ///
    /// # Errors
    /// A [`DiskError`]; the disk is then stopped.
    fn flush(&mut self) -> Result<(), DiskError>;

    /// The content of the range is not needed any more; whole grains of it read as zeros afterwards.
    ///
    /// # Errors
    /// A [`DiskError`].
    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError>;

    /// The range reads as zeros afterwards; `unmap` allows to give its room back to the host.
    ///
    /// # Errors
    /// A [`DiskError`].
    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError>;
}

/// The few things that disks do with a file. Tests record them to cut a run at any point.
pub trait Medium: Send + Sync {
    /// Reads once; 0 is the end of the file.
    ///
    /// # Errors
    /// Of preadv(2).
    fn read(&self, offset: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize>;
    /// Writes once.
    ///
    /// # Errors
    /// Of pwritev(2).
    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<usize>;
    /// Makes a range read as zeros, and gives its room back when `punch`.
    ///
    /// # Errors
    /// Of fallocate(2); [`io::ErrorKind::Unsupported`] when the file system cannot.
    fn zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()>;
    /// Makes all writes durable.
    ///
    /// # Errors
    /// Of fdatasync(2).
    fn sync(&self) -> io::Result<()>;
    /// Length in bytes.
    ///
    /// # Errors
    /// Of fstat(2).
    fn len(&self) -> io::Result<u64>;
    /// Whether it is empty.
    ///
    /// # Errors
    /// Of fstat(2).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Bytes that take room on the host.
    ///
    /// # Errors
    /// Of fstat(2).
    fn allocated(&self) -> io::Result<u64>;
    /// Changes the length; new bytes are zeros.
    ///
    /// # Errors
    /// Of ftruncate(2).
    fn set_len(&self, len: u64) -> io::Result<()>;
}

impl Medium for File {
    fn read(&self, offset: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        sys::preadv(self.as_fd(), into, offset)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        sys::pwritev(self.as_fd(), from, offset)
    }

    fn zero(&self, offset: u64, len: u64, punch: bool) -> io::Result<()> {
        let how = if punch { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        loop {
            match fallocate(self, how | FallocateFlags::KEEP_SIZE, offset, len) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
                result => return Ok(result?),
            }
        }
    }

    fn sync(&self) -> io::Result<()> {
        loop {
            match fdatasync(self) {
                Err(Errno::INTR) => {}
                result => return Ok(result?),
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.metadata()?.blocks() * SECTOR)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

/// Fills all slices from the file.
pub(super) fn read_all<M: Medium>(
    file: &M,
    offset: u64,
    into: &[VolatileSlice<'_>],
) -> Result<(), DiskError> {
    transfer(into, |done, rest| match file.read(offset + done, rest) {
        Ok(0) => Err(DiskError::Short),
        Ok(count) => Ok(count),
        Err(error) => Err(DiskError::Read(error)),
    })
}

/// Writes all slices to the file.
pub(super) fn write_all<M: Medium>(
    file: &M,
    offset: u64,
    from: &[VolatileSlice<'_>],
) -> Result<(), DiskError> {
    transfer(from, |done, rest| match file.write(offset + done, rest) {
        Ok(0) => Err(DiskError::Write(io::ErrorKind::WriteZero.into())),
        Ok(count) => Ok(count),
        Err(error) => Err(DiskError::Write(error)),
    })
}

/// Repeats a call that may move less than all.
fn transfer<'m>(
    slices: &[VolatileSlice<'m>],
    mut call: impl FnMut(u64, &[VolatileSlice<'m>]) -> Result<usize, DiskError>,
) -> Result<(), DiskError> {
    let total = total(slices);
    if total == 0 {
        return Ok(());
    }
    let mut done = call(0, slices)?;
    let mut rest = Vec::new();
    while done < total {
        cut(slices, done, total - done, &mut rest);
        done += call(done as u64, &rest)?;
    }
    Ok(())
}

/// Bytes of all slices.
pub(super) fn total(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Sets `out` to the bytes `skip..skip + len` of the slices.
pub(super) fn cut<'m>(
    slices: &[VolatileSlice<'m>],
    skip: usize,
    len: usize,
    out: &mut Vec<VolatileSlice<'m>>,
) {
    out.clear();
    let (mut skip, mut left) = (skip, len);
    for slice in slices {
        if left == 0 {
            return;
        }
        let start = skip.min(slice.len());
        let take = (slice.len() - start).min(left);
        if take != 0 {
            out.push(slice.subslice(start, take).expect("start and take lie inside of the slice"));
        }
        skip -= start;
        left -= take;
    }
}

/// Fills the slices with zeros.
pub(super) fn fill_zeros(slices: &[VolatileSlice<'_>]) {
    const ZEROS: [u8; 4096] = [0; 4096];
    for slice in slices {
        for start in (0..slice.len()).step_by(ZEROS.len()) {
            let len = (slice.len() - start).min(ZEROS.len());
            let part = slice.subslice(start, len).expect("start and len lie inside of the slice");
            part.copy_from(&ZEROS[..len]);
        }
    }
}
