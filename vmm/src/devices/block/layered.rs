//! A disk of layers: an immutable raw base, sealed layers and a writable top with copy-on-write by grains.
//!
//! A layer is two files: the data at the same offsets as in the disk, sparse, and its
//! [allocation map](super::allocation). A grain is read from the topmost layer that has it, else from the base, else
//! it is zeros. Formats are named by the caller and never guessed from bytes that a guest could have written, and
//! nothing in a layer names another file (the class of CVE-2026-27211).
//!
//! ```text
//! top      written               switch: a new, empty top; the top is the old top. No I/O
//! old top  read, not durable     settle, or a flush: it is durable, and one of the sealed layers
//! sealed   read, never changes   which has a grain is in one index over all of them
//! base     read, never changes
//! ```

use super::allocation::{self, GRAIN, MapError, Run, grains};
use super::backend::{DiskBackend, DiskError, Medium, SECTOR, cut, fill_zeros, read_all, total, write_all};
use super::index::{LayerIndex, Number};
use super::top::{Old, Tail, Top, check_lengths, lock};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use thiserror::Error;
use vm_memory::VolatileSlice;

/// Longest piece that is zeroed through memory where the file system cannot zero by itself.
const ZERO_PIECE: usize = 64 * 1024;

/// Why a disk cannot be made or opened.
#[derive(Debug, Error)]
pub enum DiskOpenError {
    /// The data file of a layer could not be measured, sized or made durable.
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
    /// The base is not the one that the layer was made for.
    #[error("the disk's base has {found} bytes where its layer was made for one of {expected}")]
    BaseLength {
        /// What the layer was made for.
        expected: u64,
        /// What the base has.
        found: u64,
    },
}

/// An immutable layer. It may be shorter than the disk, which then grew later.
#[derive(Debug)]
pub struct Sealed<M> {
    data: Arc<M>,
    len: u64,
}

/// The sealed layers of a disk, bottom to top, and which of them has a grain. Cheap to clone.
#[derive(Debug)]
pub struct Stack<M> {
    layers: Vec<Arc<Sealed<M>>>,
    index: Arc<LayerIndex>,
}

impl<M> Clone for Stack<M> {
    fn clone(&self) -> Self {
        Self { layers: self.layers.clone(), index: Arc::clone(&self.index) }
    }
}

impl<M> Default for Stack<M> {
    fn default() -> Self {
        Self { layers: Vec::new(), index: Arc::default() }
    }
}

impl<M: Medium> Stack<M> {
    /// How many layers.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Which layer has each grain.
    #[must_use]
    pub fn index(&self) -> &LayerIndex {
        &self.index
    }

    /// Opens a sealed layer as the new uppermost.
    ///
    /// # Errors
    /// A [`DiskOpenError`]; [`MapError::Unfinished`] when it was never sealed whole.
    pub fn push(&mut self, data: M, map: &M, base_len: u64) -> Result<(), DiskOpenError> {
        let found = allocation::read(map)?;
        if !found.finished {
            return Err(MapError::Unfinished.into());
        }
        check_lengths(&data, found.capacity, found.base_len, base_len)?;
        self.add(Arc::new(data), found.capacity, found.runs);
        Ok(())
    }

    /// Puts a layer that is durable on top of the others.
    pub(super) fn add(&mut self, data: Arc<M>, len: u64, runs: impl IntoIterator<Item = Run>) {
        self.layers.push(Arc::new(Sealed { data, len }));
        let number = Number::try_from(self.layers.len()).expect("fewer layers than MAX_LAYERS");
        Arc::make_mut(&mut self.index).put(runs, number);
    }

    /// Length of the longest layer in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.layers.iter().map(|layer| layer.len).max().unwrap_or(0)
    }

    /// Whether there is no layer.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Bytes of all layers that take room on the host.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        self.layers.iter().map(|layer| layer.data.allocated()).sum()
    }

    /// Reads a range of one layer; its number is not 0.
    pub(super) fn read(
        &self,
        layer: Number,
        offset: u64,
        into: &[VolatileSlice<'_>],
    ) -> Result<(), DiskError> {
        let layer = &self.layers[usize::from(layer) - 1];
        read_clipped(&*layer.data, layer.len, offset, into)
    }
}

/// A base, which may be absent, sealed layers, and a top, which is absent in a read-only disk.
#[derive(Debug)]
pub struct LayeredDisk<M: Medium = File> {
    base: Option<M>,
    base_len: u64,
    capacity: u64,
    sealed: Stack<M>,
    old: Option<Old<M>>,
    top: Option<Top<M>>,
    /// A sync failed.
    stopped: bool,
}

/// Where the bytes of a grain are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    Top,
    Old,
    Sealed(Number),
    Base,
    Nothing,
}

impl<M: Medium> LayeredDisk<M> {
    /// Makes a new top in two empty files that were handed in, over a base alone.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn create(base: Option<M>, data: M, map: M, capacity: u64) -> Result<Self, DiskOpenError> {
        let base_len = measure(base.as_ref())?;
        let top = Top::create(data, map, capacity, base_len)?;
        Ok(Self::assemble(base, base_len, Stack::default(), top))
    }

    /// Opens a top in two files that were handed in, over the base alone for which it was made.
    ///
    /// # Errors
    /// A [`DiskOpenError`].
    pub fn open(base: Option<M>, data: M, map: M) -> Result<Self, DiskOpenError> {
        let base_len = measure(base.as_ref())?;
        let top = Top::open(data, map, base_len)?;
        Ok(Self::assemble(base, base_len, Stack::default(), top))
    }

    /// A disk of layers that were opened for a base of `base_len` bytes.
    #[must_use]
    pub fn assemble(base: Option<M>, base_len: u64, sealed: Stack<M>, top: Top<M>) -> Self {
        let capacity = top.capacity();
        Self { base, base_len, capacity, sealed, old: None, top: Some(top), stopped: false }
    }

    /// A disk that can only be read: a raw file. Bytes of an incomplete last sector are not shown.
    ///
    /// # Errors
    /// When the file cannot be measured.
    pub fn read_only(base: M) -> Result<Self, DiskOpenError> {
        let base_len = base.len().map_err(DiskOpenError::Base)?;
        let (base, capacity, sealed) = (Some(base), base_len - base_len % SECTOR, Stack::default());
        Ok(Self { base, base_len, capacity, sealed, old: None, top: None, stopped: false })
    }

    /// From now on `top` is written, and what was the top is only read. No I/O, and no work that grows with the
    /// disk. The one before must be settled; a disk without a top stays as it is.
    ///
    /// # Panics
    /// When the old top of an earlier switch is not settled.
    pub(super) fn switch(&mut self, top: Top<M>) {
        assert!(self.old.is_none(), "the old top was settled before");
        self.capacity = top.capacity();
        self.old = self.top.replace(top).map(Top::seal);
    }

    /// What is not durable yet of the old top.
    pub(super) fn tail(&self) -> Option<Arc<Mutex<Tail<M>>>> {
        self.old.as_ref().map(Old::tail)
    }

    /// Makes the old top one of the sealed layers, or stops the disk, by how its tail was settled.
    pub(super) fn settled(&mut self, result: Result<(), DiskError>) -> Result<(), DiskError> {
        self.stopped |= matches!(result, Err(DiskError::Flush(_)));
        result?;
        if let Some(old) = self.old.take() {
            self.sealed.add(old.data, old.len, old.bits.runs());
        }
        Ok(())
    }

    /// Answers nothing but errors from now on, and writes nothing any more.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// The sealed layers.
    pub(super) fn sealed(&self) -> &Stack<M> {
        &self.sealed
    }

    /// Reads from other sealed layers with the same content.
    pub(super) fn replace_sealed(&mut self, sealed: Stack<M>) {
        self.sealed = sealed;
    }

    /// Bytes of the old top and the top that take room on the host.
    pub(super) fn allocated(&self) -> io::Result<(u64, u64)> {
        let old = self.old.as_ref().map_or(Ok(0), |old| old.data.allocated())?;
        Ok((old, self.top.as_ref().map_or(Ok(0), |top| top.data.allocated())?))
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.capacity);
        if self.stopped {
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
        } else {
            self.layer_below(grain)
        }
    }

    /// Where a grain is that the top does not hold.
    fn layer_below(&self, grain: u64) -> Layer {
        if self.old.as_ref().is_some_and(|old| old.bits.is_set(grain)) {
            return Layer::Old;
        }
        match self.sealed.index.layer(grain) {
            0 if grain * GRAIN < self.base_len => Layer::Base,
            0 => Layer::Nothing,
            number => Layer::Sealed(number),
        }
    }

    /// Reads a range that lies in one layer.
    fn read_layer(&self, layer: Layer, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        match (layer, &self.top, &self.old, &self.base) {
            (Layer::Top, Some(top), _, _) => read_all(&*top.data, offset, into),
            (Layer::Old, _, Some(old), _) => read_clipped(&*old.data, old.len, offset, into),
            (Layer::Sealed(number), _, _, _) => self.sealed.read(number, offset, into),
            (Layer::Base, _, _, Some(base)) => read_clipped(base, self.base_len, offset, into),
            (Layer::Top, None, _, _) | (Layer::Old, _, None, _) | (Layer::Base, _, _, None) => {
                unreachable!("a grain is only in layers that are there")
            }
            (Layer::Nothing, _, _, _) => {
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
        write_all(&*top.data, offset, &slices)?;
        top.set(Run { first: grain, count: 1 });
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

    /// Makes whole grains read as zeros, without touching what no layer holds.
    fn zero_grains(&mut self, run: Run, punch: bool) -> Result<(), DiskError> {
        let offset = run.first * GRAIN;
        let len = (run.count * GRAIN).min(self.capacity - offset);
        let top = self.top.as_mut().ok_or(DiskError::ReadOnly)?;
        top.dirty = true;
        match top.data.zero(offset, len, punch) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeros(&*top.data, offset, len)?,
            result => result.map_err(DiskError::Deallocate)?,
        }
        for grain in run.first..run.first + run.count {
            // A grain that nothing below holds is zeros already.
            if !punch || self.layer_below(grain) != Layer::Nothing {
                let top = self.top.as_mut().ok_or(DiskError::ReadOnly)?;
                top.set(Run { first: grain, count: 1 });
            }
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
        write_all(&*top.data, offset, from)?;
        top.set(run);
        self.commit_if_full()
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        if self.stopped {
            return Err(DiskError::Stopped);
        }
        if let Some(tail) = self.tail() {
            // What was flushed must not depend on a layer that is not durable.
            let settled = lock(&tail).settle();
            self.settled(settled)?;
        }
        let result = self.top.as_mut().map_or(Ok(()), Top::flush);
        self.stopped |= matches!(result, Err(DiskError::Flush(_) | DiskError::Stopped));
        result
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

/// Reads from a file of `len` bytes; what is behind its end is zeros.
fn read_clipped<M: Medium>(
    file: &M,
    len: u64,
    offset: u64,
    into: &[VolatileSlice<'_>],
) -> Result<(), DiskError> {
    let total = total(into);
    let have = usize::try_from(len.saturating_sub(offset)).unwrap_or(total).min(total);
    let mut part = Vec::new();
    cut(into, 0, have, &mut part);
    read_all(file, offset, &part)?;
    cut(into, have, total - have, &mut part);
    fill_zeros(&part);
    Ok(())
}

/// Length of a base in bytes; none has 0.
pub(super) fn measure<M: Medium>(base: Option<&M>) -> Result<u64, DiskOpenError> {
    base.map_or(Ok(0), |base| base.len().map_err(DiskOpenError::Base))
}

#[cfg(test)]
mod tests;
