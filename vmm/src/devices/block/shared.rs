//! A disk that the block device uses and the VM's process seals.

use super::backend::{DiskBackend, DiskError, Medium};
use super::layered::LayeredDisk;
use super::top::lock;
use std::fs::File;
use std::sync::{Arc, Mutex};
use vm_memory::VolatileSlice;

/// A disk behind a lock, which each request takes once. Clones are the same disk. What was not flushed is when the
/// last of them and the folder go.
#[derive(Debug)]
pub struct SharedDisk<M: Medium = File>(Arc<Mutex<LayeredDisk<M>>>);

impl<M: Medium> Clone for SharedDisk<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Medium> SharedDisk<M> {
    pub(super) fn new(disk: Arc<Mutex<LayeredDisk<M>>>) -> Self {
        Self(disk)
    }
}

impl<M: Medium> DiskBackend for SharedDisk<M> {
    fn capacity(&self) -> u64 {
        lock(&self.0).capacity()
    }

    fn read_only(&self) -> bool {
        lock(&self.0).read_only()
    }

    fn read_at(&mut self, offset: u64, into: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        lock(&self.0).read_at(offset, into)
    }

    fn write_at(&mut self, offset: u64, from: &[VolatileSlice<'_>]) -> Result<(), DiskError> {
        lock(&self.0).write_at(offset, from)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        lock(&self.0).flush()
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        lock(&self.0).discard(offset, len)
    }

    fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), DiskError> {
        lock(&self.0).write_zeroes(offset, len, unmap)
    }
}
