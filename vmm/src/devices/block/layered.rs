//! A disk of layers: an immutable raw base and a writable top with copy-on-write by grains.
//!
//! The top is two files: the data at the same offsets as in the disk, sparse, and its
//! [allocation map](super::allocation). A grain that the top does not hold is the base's, or zeros beyond the
//! base's end. Formats are named by the caller and never guessed from bytes that a guest could have written,
//! and nothing in a layer names another file (the class of CVE-2026-27211).

use super::allocation::{AllocationMap, GRAIN, MapError, Run, grains};
use super::backend::{DiskBackend, DiskError, Medium, SECTOR, cut, fill_zeros, read_all, total, write_all};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;
use vm_memory::VolatileSlice;

/// Longest piece that is zeroed through memory where the file system cannot zero by itself.
const ZERO_PIECE: usize = 64 * 1024;

/// Why a disk cannot be made or opened.
#[derive(Debug, Error)]
pub enum DiskOpenError {
    /// A file could not be opened or made.
    #[error("cannot open {path} of the disk")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The data file of the top could not be measured, sized or made durable.
    #[error("cannot prepare the disk's data file")]
    Data(#[source] io::Error),
    /// The base could not be measured.
    #[error("cannot measure the disk's base")]
    Base(#[source] io::Error),
    /// The allocation map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The data file has another length than its map says.
    #[error("the disk's data file has {found} bytes where its map says {expected}")]
    DataLength {
        /// What the map says.
        expected: u64,
        /// What the file has.
        found: u64,
    },
    /// The base is not the one that the top was made for.
    #[error("the disk's base has {found} bytes where its top was made for one of {expected}")]
    BaseLength {
        /// What the top was made for.
        expected: u64,
        /// What the base has.
        found: u64,
    },
}

/// A base, which may be absent, and a top, which is absent in a read-only disk.
#[derive(Debug)]
pub struct LayeredDisk<M: Medium = File> {
    base: Option<M>,
    base_len: u64,
    capacity: u64,
    top: Option<Top<M>>,
}

/// The writable layer.
#[derive(Debug)]
struct Top<M> {
    data: M,
    map: AllocationMap<M>,
    /// Something was written to the data file since its last sync.
    dirty: bool,
    /// A sync failed.
    stopped: bool,
}

/// Where the bytes of a grain are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Top,
    Base,
    Nothing,
}

impl LayeredDisk<File> {
    /// Makes a new top of `capacity` bytes over `base`: the data at `top`, its map beside it with the suffix
    /// `.map`. Both and their names are durable on return.
    ///
    /// # Errors
    /// A [`DiskOpenError`]; also when one of the files exists.
    pub fn create_at(base: Option<&Path>, top: &Path, capacity: u64) -> Result<Self, DiskOpenError> {
        let base = base.map(|path| open(File::options().read(true), path)).transpose()?;
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let data = open(&options, top)?;
        let map = open(&options, &map_path(top))?;
        let disk = Self::create(base, data, map, capacity)?;
        let folder = top.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        open(File::options().read(true), folder)?.sync_all().map_err(DiskOpenError::Data)?;
        Ok(disk)
    }

    /// Opens a top made by [`Self::create_at`] over the same base.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn open_at(base: Option<&Path>, top: &Path) -> Result<Self, DiskOpenError> {
        let base = base.map(|path| open(File::options().read(true), path)).transpose()?;
        let mut options = File::options();
        options.read(true).write(true);
        Self::open(base, open(&options, top)?, open(&options, &map_path(top))?)
    }
}

impl<M: Medium> LayeredDisk<M> {
    /// Makes a new top in two empty files that were handed in.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn create(base: Option<M>, data: M, map: M, capacity: u64) -> Result<Self, DiskOpenError> {
        let base_len = measure(base.as_ref())?;
        let map = AllocationMap::create(map, capacity, base_len)?;
        data.set_len(0).and_then(|()| data.set_len(capacity)).map_err(DiskOpenError::Data)?;
        data.sync().map_err(DiskOpenError::Data)?;
        let top = Some(Top { data, map, dirty: false, stopped: false });
        Ok(Self { base, base_len, capacity, top })
    }

    /// Opens a top in two files that were handed in, over the base it was made for.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn open(base: Option<M>, data: M, map: M) -> Result<Self, DiskOpenError> {
        let base_len = measure(base.as_ref())?;
        let map = AllocationMap::open(map)?;
        if map.base_len() != base_len {
            return Err(DiskOpenError::BaseLength { expected: map.base_len(), found: base_len });
        }
        let (capacity, found) = (map.capacity(), data.len().map_err(DiskOpenError::Data)?);
        if found != capacity {
            return Err(DiskOpenError::DataLength { expected: capacity, found });
        }
        Ok(Self { base, base_len, capacity, top: Some(Top { data, map, dirty: false, stopped: false }) })
    }

    /// A disk that can only be read: a raw file. Bytes of an incomplete last sector are not shown.
    ///
    /// # Errors
    /// When the file cannot be measured.
    pub fn read_only(base: M) -> Result<Self, DiskOpenError> {
        let base_len = base.len().map_err(DiskOpenError::Base)?;
        Ok(Self { base: Some(base), base_len, capacity: base_len - base_len % SECTOR, top: None })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.capacity);
        if self.top.as_ref().is_some_and(|top| top.stopped) {
            Err(DiskError::Stopped)
        } else if whole && inside {
            Ok(())
        } else {
            Err(DiskError::OutOfRange)
        }
    }

    fn layer_of(&self, grain: u64) -> Layer {
        if self.top.as_ref().is_some_and(|top| top.map.is_set(grain)) {
            Layer::Top
        } else if grain * GRAIN < self.base_len {
            Layer::Base
        } else {
            Layer::Nothing
        }
    }

    /// Reads a range that lies in one layer.
    fn read_layer(&self, layer: Layer, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        match (layer, &self.top, &self.base) {
            (Layer::Top, Some(top), _) => read_all(&top.data, offset, into),
            (Layer::Base, _, Some(base)) => {
                // The base may end inside of its last grain.
                let total = total(into);
                let have = self.base_len.saturating_sub(offset);
                let have = usize::try_from(have).unwrap_or(total).min(total);
                let mut part = Vec::new();
                cut(into, 0, have, &mut part);
                read_all(base, offset, &part)?;
                cut(into, have, total - have, &mut part);
                fill_zeros(&part);
                Ok(())
            }
            (Layer::Top, None, _) | (Layer::Base, _, None) | (Layer::Nothing, _, _) => {
                fill_zeros(into);
                Ok(())
            }
        }
    }

    /// Brings a grain that will be written in part, whole into the top.
    fn copy_up(&mut self, grain: u64) -> Result<(), DiskError> {
        let layer = self.layer_of(grain);
        if layer == Layer::Top {
            return Ok(());
        }
        let offset = grain * GRAIN;
        let mut bytes = [0u8; GRAIN as usize];
        // The disk may end inside of its last grain.
        let len = GRAIN.min(self.capacity - offset) as usize;
        let slices = [VolatileSlice::from(&mut bytes[..len])];
        self.read_layer(layer, offset, &slices)?;
        let top = self.top.as_mut().ok_or(DiskError::ReadOnly)?;
        top.dirty = true;
        write_all(&top.data, offset, &slices)?;
        top.map.set(Run { first: grain, count: 1 });
        Ok(())
    }

    /// Prepares the partly covered grains at both ends of a range; returns all grains that it touches.
    fn prepare(&mut self, offset: u64, len: u64) -> Result<Run, DiskError> {
        let end = offset + len;
        let first = offset / GRAIN;
        let last = (end - 1) / GRAIN;
        if !offset.is_multiple_of(GRAIN) {
            self.copy_up(first)?;
        }
        if !end.is_multiple_of(GRAIN) && end != self.capacity {
            self.copy_up(last)?;
        }
        Ok(Run { first, count: last - first + 1 })
    }

    fn commit_if_full(&mut self) -> Result<(), DiskError> {
        if self.top.as_ref().is_some_and(|top| top.map.is_full()) { self.flush() } else { Ok(()) }
    }

    /// Makes whole grains read as zeros, without touching what neither layer holds.
    fn zero_grains(&mut self, run: Run, punch: bool) -> Result<(), DiskError> {
        let base_grains = grains(self.base_len);
        let offset = run.first * GRAIN;
        let len = (run.count * GRAIN).min(self.capacity - offset);
        let top = self.top.as_mut().ok_or(DiskError::ReadOnly)?;
        top.dirty = true;
        match top.data.zero(offset, len, punch) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(&top.data, offset, len)?,
            result => result.map_err(DiskError::Deallocate)?,
        }
        // Beyond the base a grain without data is zeros already.
        let end =
            if punch { base_grains.clamp(run.first, run.first + run.count) } else { run.first + run.count };
        if end != run.first {
            top.map.set(Run { first: run.first, count: end - run.first });
        }
        self.commit_if_full()
    }
}

impl<M: Medium> DiskBackend for LayeredDisk<M> {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read_only(&self) -> bool {
        self.top.is_none()
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let len = total(into) as u64;
        self.check(offset, len)?;
        let end = offset + len;
        let mut at = offset;
        let mut part = Vec::new();
        while at < end {
            // As far as the next grain that is in another layer.
            let layer = self.layer_of(at / GRAIN);
            let mut next = at / GRAIN + 1;
            while next * GRAIN < end && self.layer_of(next) == layer {
                next += 1;
            }
            let stop = end.min(next * GRAIN);
            cut(into, (at - offset) as usize, (stop - at) as usize, &mut part);
            self.read_layer(layer, at, &part)?;
            at = stop;
        }
        Ok(())
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        let len = total(from) as u64;
        self.check(offset, len)?;
        if self.top.is_none() {
            return Err(DiskError::ReadOnly);
        }
        if len == 0 {
            return Ok(());
        }
        let run = self.prepare(offset, len)?;
        let top = self.top.as_mut().ok_or(DiskError::ReadOnly)?;
        top.dirty = true;
        write_all(&top.data, offset, from)?;
        top.map.set(run);
        self.commit_if_full()
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        let Some(top) = self.top.as_mut() else { return Ok(()) };
        if top.stopped {
            return Err(DiskError::Stopped);
        }
        if top.dirty {
            top.stopped = true;
            top.data.sync().map_err(DiskError::Flush)?;
            top.dirty = false;
        }
        top.stopped = false;
        // Only now the map may speak of the data.
        let committed = top.map.commit();
        // A write that failed, as on a full file system, can be tried again; a sync cannot.
        top.stopped = matches!(committed, Err(DiskError::Flush(_)));
        committed
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check(offset, len)?;
        let end = offset + len;
        let first = offset.div_ceil(GRAIN);
        let last = if end == self.capacity { grains(end) } else { end / GRAIN };
        if first < last { self.zero_grains(Run { first, count: last - first }, true) } else { Ok(()) }
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        self.check(offset, len)?;
        if self.top.is_none() {
            return Err(DiskError::ReadOnly);
        }
        let end = offset + len;
        let first = offset.div_ceil(GRAIN);
        let last = if end == self.capacity { grains(end) } else { end / GRAIN };
        if first >= last {
            return self.write_zeros_small(offset, len);
        }
        self.write_zeros_small(offset, first * GRAIN - offset)?;
        self.zero_grains(Run { first, count: last - first }, unmap)?;
        let tail = (last * GRAIN).min(end);
        self.write_zeros_small(tail, end - tail)
    }
}

impl<M: Medium> LayeredDisk<M> {
    /// Zeros a range of less than two grains.
    fn write_zeros_small(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        let mut zeros = [0u8; 2 * GRAIN as usize];
        self.write_at(offset, &[VolatileSlice::from(&mut zeros[..len as usize])])
    }
}

impl<M: Medium> Drop for LayeredDisk<M> {
    fn drop(&mut self) {
        // What the guest did not flush may be lost in a crash, but need not be at a clean end.
        match self.flush() {
            Ok(()) | Err(DiskError::Stopped) => {}
            Err(error) => tracing::error!(%error, cause = ?error, "cannot flush a disk at its end"),
        }
    }
}

fn write_zeros<M: Medium>(data: &M, offset: u64, len: u64) -> Result<(), DiskError> {
    let mut zeros = vec![0u8; ZERO_PIECE.min(usize::try_from(len).unwrap_or(ZERO_PIECE))];
    let mut done = 0;
    while done < len {
        let piece = (zeros.len() as u64).min(len - done);
        write_all(data, offset + done, &[VolatileSlice::from(&mut zeros[..piece as usize])])?;
        done += piece;
    }
    Ok(())
}

fn measure<M: Medium>(base: Option<&M>) -> Result<u64, DiskOpenError> {
    base.map_or(Ok(0), |base| base.len().map_err(DiskOpenError::Base))
}

fn open(options: &std::fs::OpenOptions, path: &Path) -> Result<File, DiskOpenError> {
    options.open(path).map_err(|source| DiskOpenError::Open { path: path.to_owned(), source })
}

/// Where the map of a top lies.
#[must_use]
pub fn map_path(top: &Path) -> PathBuf {
    let mut name = top.as_os_str().to_owned();
    name.push(".map");
    name.into()
}

#[cfg(test)]
mod tests;
