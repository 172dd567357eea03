//! Many sealed layers into one.

use super::allocation::{GRAIN, Run};
use super::backend::{DiskError, Medium, write_all};
use super::layered::Stack;
use super::top::Top;
use std::sync::Arc;
use vm_memory::VolatileSlice;

/// Bytes that are copied at once.
pub const PIECE: usize = 1 << 20;

/// Copies what the layers show into the empty top `new`, makes it durable and ends it; returns it as the only layer
/// of a stack. Grains of zeros take no room; over the base they are noted all the same, since they hide it.
///
/// # Errors
/// A [`DiskError`].
pub fn copy<M: Medium>(from: &Stack<M>, base_len: u64, new: &mut Top<M>) -> Result<Stack<M>, DiskError> {
    let mut buffer = vec![0u8; PIECE];
    for (run, layer) in from.index().runs() {
        let (mut at, end) = (run.first * GRAIN, ((run.first + run.count) * GRAIN).min(new.capacity()));
        while at < end {
            let bytes = &mut buffer[..PIECE.min(usize::try_from(end - at).unwrap_or(PIECE))];
            from.read(layer, at, &[VolatileSlice::from(&mut *bytes)])?;
            put(new, at, bytes, base_len)?;
            at += bytes.len() as u64;
        }
    }
    new.dirty = true;
    new.end()?;
    let mut merged = Stack::default();
    merged.add(Arc::clone(&new.data), new.capacity(), new.map.bits().runs());
    Ok(merged)
}

/// Writes the grains that are not zeros, neighbours together.
fn put<M: Medium>(new: &mut Top<M>, offset: u64, bytes: &mut [u8], base_len: u64) -> Result<(), DiskError> {
    let mut at = 0;
    while at < bytes.len() {
        let (zeros, len) = alike(&bytes[at..]);
        let (first, count) = ((offset + at as u64) / GRAIN, (len as u64).div_ceil(GRAIN));
        if !zeros {
            write_all(&*new.data, first * GRAIN, &[VolatileSlice::from(&mut bytes[at..at + len])])?;
            new.set(Run { first, count });
        } else if first * GRAIN < base_len {
            let over_base = base_len.div_ceil(GRAIN) - first;
            new.set(Run { first, count: count.min(over_base) });
        }
        if new.map.is_full() {
            // Nobody reads this layer before it is whole, so its data may follow.
            new.map.journal().commit()?;
        }
        at += len;
    }
    Ok(())
}

/// Whether the first grain is zeros, and the bytes up to the first grain that differs in this.
fn alike(bytes: &[u8]) -> (bool, usize) {
    let is_zero = |grain: &[u8]| grain.iter().all(|byte| *byte == 0);
    let mut grains = bytes.chunks(GRAIN as usize);
    let first = grains.next().is_some_and(is_zero);
    let more: usize = grains.take_while(|grain| is_zero(grain) == first).map(<[u8]>::len).sum();
    (first, more + bytes.len().min(GRAIN as usize))
}
