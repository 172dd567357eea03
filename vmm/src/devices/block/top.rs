//! The layers that are written: the top, and the one that was the top until a switch and is not settled yet.

use super::allocation::{AllocationMap, Bitmap, Journal, Run};
use super::backend::{DiskError, Medium};
use super::layered::DiskOpenError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The writable layer: data at the same offsets as in the disk, sparse, and its map.
#[derive(Debug)]
pub struct Top<M> {
    pub(super) data: Arc<M>,
    pub(super) map: AllocationMap<M>,
    /// Something was written to the data file since its last sync.
    pub(super) dirty: bool,
    /// A sync failed.
    pub(super) stopped: bool,
}

impl<M: Medium> Top<M> {
    /// Makes an empty top in two empty files, durably.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn create(data: M, map: M, capacity: u64, base_len: u64) -> Result<Self, DiskOpenError> {
        let map = AllocationMap::create(map, capacity, base_len)?;
        data.set_len(0).and_then(|()| data.set_len(capacity)).map_err(DiskOpenError::Data)?;
        data.sync().map_err(DiskOpenError::Data)?;
        Ok(Self { data: Arc::new(data), map, dirty: false, stopped: false })
    }

    /// Opens one that was made for a base of `base_len` bytes.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn open(data: M, map: M, base_len: u64) -> Result<Self, DiskOpenError> {
        let map = AllocationMap::open(map)?;
        check_lengths(&data, map.capacity(), map.base_len(), base_len)?;
        Ok(Self { data: Arc::new(data), map, dirty: false, stopped: false })
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.map.capacity()
    }

    /// Whether nothing was written to it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Notes that it holds these grains.
    pub(super) fn set(&mut self, run: Run) {
        self.map.set(run);
    }

    /// Makes all that was written durable: the data first, since only then the map may speak of it.
    pub(super) fn flush(&mut self) -> Result<(), DiskError> {
        sync_data(&*self.data, &mut self.dirty, &mut self.stopped)?;
        guard(&mut self.stopped, self.map.journal().commit())
    }

    /// Makes all durable and ends the map. Nothing may be written any more.
    pub(super) fn end(&mut self) -> Result<(), DiskError> {
        sync_data(&*self.data, &mut self.dirty, &mut self.stopped)?;
        guard(&mut self.stopped, self.map.journal().finish())
    }

    /// Nothing is written to it any more. Costs no I/O.
    #[must_use]
    pub fn seal(self) -> Old<M> {
        let len = self.capacity();
        let (bits, journal) = self.map.into_parts();
        let data = Arc::clone(&self.data);
        let tail = Tail { data, journal, dirty: self.dirty, stopped: self.stopped, settled: false };
        Old { data: self.data, len, bits, tail: Arc::new(Mutex::new(tail)) }
    }
}

/// What was the top: it is read, and what is not durable of it yet is settled beside that.
#[derive(Debug)]
pub struct Old<M> {
    pub(super) data: Arc<M>,
    /// Length of the data in bytes.
    pub(super) len: u64,
    pub(super) bits: Bitmap,
    tail: Arc<Mutex<Tail<M>>>,
}

impl<M: Medium> Old<M> {
    /// What is not durable yet, to be settled without holding the disk.
    #[must_use]
    pub fn tail(&self) -> Arc<Mutex<Tail<M>>> {
        Arc::clone(&self.tail)
    }
}

/// What is not durable of an old top. Its lock is held while it is settled, so that of two who settle it the second
/// sees how the first fared: a failed sync is reported by the kernel once.
#[derive(Debug)]
pub struct Tail<M> {
    data: Arc<M>,
    journal: Journal<M>,
    dirty: bool,
    stopped: bool,
    settled: bool,
}

impl<M: Medium> Tail<M> {
    /// Makes the data and the map durable and ends the map. Done once; a failed write can be tried again.
    ///
    /// # Errors
    /// A [`DiskError`].
    pub fn settle(&mut self) -> Result<(), DiskError> {
        if self.settled {
            return Ok(());
        }
        sync_data(&*self.data, &mut self.dirty, &mut self.stopped)?;
        guard(&mut self.stopped, self.journal.finish())?;
        self.settled = true;
        Ok(())
    }
}

/// Locks; who panicked with the lock held left a disk that is as good as after a crash.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a data file is as long as its map says, and the base is the one that it was made for.
pub(super) fn check_lengths<M: Medium>(
    data: &M,
    capacity: u64,
    made_for: u64,
    base_len: u64,
) -> Result<(), DiskOpenError> {
    if made_for != base_len {
        return Err(DiskOpenError::BaseLength { expected: made_for, found: base_len });
    }
    let found = data.len().map_err(DiskOpenError::Data)?;
    if found == capacity { Ok(()) } else { Err(DiskOpenError::DataLength { expected: capacity, found }) }
}

fn sync_data<M: Medium>(data: &M, dirty: &mut bool, stopped: &mut bool) -> Result<(), DiskError> {
    if *stopped {
        return Err(DiskError::Stopped);
    }
    if *dirty {
        guard(stopped, data.sync().map_err(DiskError::Flush))?;
        *dirty = false;
    }
    Ok(())
}

/// A write that failed, as on a full file system, can be tried again; a sync cannot.
fn guard(stopped: &mut bool, result: Result<(), DiskError>) -> Result<(), DiskError> {
    *stopped |= matches!(result, Err(DiskError::Flush(_)));
    result
}
