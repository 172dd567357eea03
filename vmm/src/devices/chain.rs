//! One descriptor chain, checked once: what the driver lends to the device for one request.
//!
//! After [`Chain::parse`] every segment lies inside of guest memory and is not empty, the readable ones come
//! before the writable ones (virtio 1.2 section 2.7.4.2), and there are at most [`MAX_SEGMENTS`] of them.

use super::{Counter, Fault, GuestRam};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemory, GuestMemoryError, Permissions, VolatileSlice};

/// Most segments of one chain: the size of the largest queue here, which is also what a driver may use of an
/// indirect table (virtio 1.2 section 2.7.5.3.1). Bounds the time that one request takes to be read.
pub const MAX_SEGMENTS: usize = 256;

/// A run of bytes in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: GuestAddress,
    /// Number of bytes, not 0.
    pub len: u32,
}

/// Segments that are read or written in order, as if they were one buffer.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    list: Vec<Segment>,
    bytes: usize,
}

/// A parsed chain. Kept and parsed into again, so that a request allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// Index of the first descriptor; it goes into the used ring.
    pub head: u16,
    /// What the device may read.
    pub readable: Segments,
    /// What the device may write.
    pub writable: Segments,
}

impl Chain {
    /// Reads a chain from the descriptor table.
    ///
    /// # Errors
    /// A [`Fault`] that says what is wrong with the chain.
    pub fn parse(&mut self, descriptors: DescriptorChain<&GuestRam>) -> Result<(), Fault> {
        self.head = descriptors.head_index();
        self.readable.clear();
        self.writable.clear();
        let mem = descriptors.memory();
        let mut truncated = true;
        // The iterator ends silently at whatever it does not like: a loop, an index outside of the table, a
        // nested or odd indirect table, more than 2^32 bytes. Its last descriptor then still names a next one.
        for descriptor in descriptors.clone() {
            if self.readable.list.len() + self.writable.list.len() == MAX_SEGMENTS {
                return Err(Fault::Guest(Counter::BadChain));
            }
            truncated = descriptor.has_next();
            self.push(mem, descriptor)?;
        }
        if truncated { Err(Fault::Guest(Counter::BadChain)) } else { Ok(()) }
    }

    fn push(&mut self, mem: &GuestRam, descriptor: Descriptor) -> Result<(), Fault> {
        let segment = Segment { addr: descriptor.addr(), len: descriptor.len() };
        let len = segment.len as usize;
        let inside = segment.addr.checked_add(u64::from(segment.len)).is_some()
            && mem.check_range(segment.addr, len, Permissions::ReadWrite);
        if len == 0 || !inside {
            return Err(Fault::Guest(Counter::BadBuffer));
        }
        if descriptor.is_write_only() {
            self.writable.push(segment);
        } else if self.writable.bytes == 0 {
            self.readable.push(segment);
        } else {
            return Err(Fault::Guest(Counter::BadDirection));
        }
        Ok(())
    }
}

impl Segments {
    /// Total number of bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The segments in order.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.list.iter()
    }

    /// Appends one segment.
    pub fn push(&mut self, segment: Segment) {
        self.bytes += segment.len as usize;
        self.list.push(segment);
    }

    /// Forgets all segments and keeps the room for them.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// Appends to `out` the host's view of `len` bytes from `offset` on, or of what there is of them.
    ///
    /// # Errors
    /// When guest memory lacks a part, which [`Chain::parse`] has excluded.
    pub fn slices<'m>(
        &self,
        mem: &'m GuestRam,
        offset: usize,
        len: usize,
        out: &mut Vec<VolatileSlice<'m>>,
    ) -> Result<(), GuestMemoryError> {
        for part in self.parts(offset, len) {
            for slice in mem.get_slices(part.addr, part.len as usize, Permissions::ReadWrite)? {
                out.push(slice?);
            }
        }
        Ok(())
    }

    /// Copies bytes from `offset` on into `into`; returns how many there were.
    ///
    /// # Errors
    /// When guest memory lacks a part, which [`Chain::parse`] has excluded.
    pub fn read(&self, mem: &GuestRam, offset: usize, into: &mut [u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for part in self.parts(offset, into.len()) {
            let end = done + part.len as usize;
            mem.read_slice(&mut into[done..end], part.addr)?;
            done = end;
        }
        Ok(done)
    }

    /// Copies `from` to `offset` and on; returns how many bytes had room.
    ///
    /// # Errors
    /// When guest memory lacks a part, which [`Chain::parse`] has excluded.
    pub fn write(&self, mem: &GuestRam, offset: usize, from: &[u8]) -> Result<usize, GuestMemoryError> {
        let mut done = 0;
        for part in self.parts(offset, from.len()) {
            let end = done + part.len as usize;
            mem.write_slice(&from[done..end], part.addr)?;
            done = end;
        }
        Ok(done)
    }

    /// The segments, cut to the bytes `offset..offset + len`.
    fn parts(&self, offset: usize, len: usize) -> impl Iterator<Item = Segment> + '_ {
        let mut skip = offset;
        let mut left = len;
        self.list.iter().filter_map(move |segment| {
            let whole = segment.len as usize;
            if skip >= whole {
                skip -= whole;
                return None;
            }
            let take = (whole - skip).min(left);
            // Both fit: they are parts of a segment, whose length is a u32.
            let part = Segment { addr: segment.addr.unchecked_add(skip as u64), len: take as u32 };
            skip = 0;
            left -= take;
            (take != 0).then_some(part)
        })
    }
}
