//! The virtio-blk device (virtio 1.2 section 5.2) over a [`DiskBackend`].
//!
//! One queue, served in order: a FLUSH is answered after all that was answered before it is durable. A
//! request that the disk refuses is answered with an error; only a chain that cannot be answered stops the
//! device.

use super::backend::{DiskBackend, DiskError, SECTOR};
use crate::devices::chain::{Chain, MAX_SEGMENTS};
use crate::devices::device::Progress;
use crate::devices::state::BlockState;
use crate::devices::{Context, Counter, DeviceError, DeviceKind, DeviceState, Fault, GuestRam, VirtioDevice};
use virtio_bindings::virtio_blk as abi;
use vm_memory::VolatileSlice;

/// Size of the queue: also the most segments of a request, see [`MAX_SEGMENTS`].
const QUEUE_SIZES: &[u16] = &[256];
/// Requests served for one event, so that a command of the transport waits for no more of them.
const REQUESTS_AT_ONCE: u32 = 32;
/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of one range of a DISCARD or WRITE_ZEROES request.
const RANGE: usize = 16;
/// Most ranges of one such request.
const MAX_RANGES: usize = 16;
/// Most sectors of one DISCARD range: 1 GiB, one fallocate(2) of bounded time.
const MAX_DISCARD: u32 = 1 << 21;
/// Most sectors of one WRITE_ZEROES range: 16 MiB, since a file system may force it to be written.
const MAX_ZEROES: u32 = 1 << 15;
/// Bytes of a GET_ID answer.
const ID_BYTES: usize = abi::VIRTIO_BLK_ID_BYTES as usize;
/// Bytes of the configuration space up to and with `unused1` (section 5.2.4).
const CONFIG_BYTES: usize = 60;
/// log2 of the sectors in the block that the disk likes best: one grain.
const PHYSICAL_BLOCK_EXP: u8 = 3;

/// Why a request was not done; becomes its status byte.
#[derive(Debug)]
enum Refusal {
    Disk(DiskError),
    Unsupported,
    Malformed,
}

impl From<DiskError> for Refusal {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

/// The device.
pub struct Block {
    disk: Box<dyn DiskBackend>,
    id: [u8; ID_BYTES],
    /// Without the feature FLUSH a driver expects every write to be durable when it is answered.
    write_through: bool,
    chain: Chain,
}

impl Block {
    /// A device for `disk`. The guest sees the first 20 bytes of `serial` as the disk's serial number.
    #[must_use]
    pub fn new(disk: Box<dyn DiskBackend>, serial: &str) -> Self {
        let mut id = [0; ID_BYTES];
        let len = serial.len().min(ID_BYTES);
        id[..len].copy_from_slice(&serial.as_bytes()[..len]);
        Self { disk, id, write_through: false, chain: Chain::default() }
    }

    /// Serves the chain that was taken; returns how many bytes were written to it.
    fn serve(&mut self, ctx: &Context<'_>) -> Result<u32, Fault> {
        let mem = ctx.mem;
        let unreachable = |_| Fault::Guest(Counter::BadBuffer);
        let mut header = [0u8; HEADER];
        let got = self.chain.readable.read(mem, 0, &mut header).map_err(unreachable)?;
        if got != HEADER {
            return Err(Fault::Guest(Counter::BadRequest));
        }
        let Some(room) = self.chain.writable.bytes().checked_sub(1) else {
            return Err(Fault::Guest(Counter::BadDirection));
        };
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let (status, written) = match self.perform(mem, kind, sector, room) {
            Ok(written) => (abi::VIRTIO_BLK_S_OK, written),
            Err(refusal) => (self.refuse(ctx, kind, &refusal), 0),
        };
        self.chain.writable.write(mem, room, &[status as u8]).map_err(unreachable)?;
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    /// Does a request; returns how many bytes were written in front of the status.
    fn perform(&mut self, mem: &GuestRam, kind: u32, sector: u64, room: usize) -> Result<usize, Refusal> {
        match kind {
            abi::VIRTIO_BLK_T_IN => {
                let mut into = Vec::with_capacity(MAX_SEGMENTS);
                let slices = self.chain.writable.slices(mem, 0, room, &mut into);
                slices.map_err(|_| Refusal::Malformed)?;
                self.disk.read_at(byte_offset(sector)?, &into)?;
                Ok(room)
            }
            abi::VIRTIO_BLK_T_OUT => {
                let mut from: Vec<VolatileSlice<'_>> = Vec::with_capacity(MAX_SEGMENTS);
                let slices = self.chain.readable.slices(mem, HEADER, usize::MAX, &mut from);
                slices.map_err(|_| Refusal::Malformed)?;
                self.disk.write_at(byte_offset(sector)?, &from)?;
                self.flush_if_write_through()
            }
            abi::VIRTIO_BLK_T_FLUSH => {
                self.disk.flush()?;
                Ok(0)
            }
            abi::VIRTIO_BLK_T_GET_ID => {
                let len = room.min(ID_BYTES);
                let written = self.chain.writable.write(mem, 0, &self.id[..len]);
                written.map_err(|_| Refusal::Malformed)
            }
            abi::VIRTIO_BLK_T_DISCARD | abi::VIRTIO_BLK_T_WRITE_ZEROES => self.deallocate(mem, kind),
            _ => Err(Refusal::Unsupported),
        }
    }

    /// DISCARD and WRITE_ZEROES: an array of ranges (section 5.2.6).
    fn deallocate(&mut self, mem: &GuestRam, kind: u32) -> Result<usize, Refusal> {
        if self.disk.read_only() {
            return Err(Refusal::Disk(DiskError::ReadOnly));
        }
        let len = self.chain.readable.bytes() - HEADER;
        if len == 0 || !len.is_multiple_of(RANGE) || len / RANGE > MAX_RANGES {
            return Err(Refusal::Malformed);
        }
        let mut bytes = [0u8; MAX_RANGES * RANGE];
        let bytes = &mut bytes[..len];
        self.chain.readable.read(mem, HEADER, bytes).map_err(|_| Refusal::Malformed)?;
        for range in bytes.chunks_exact(RANGE) {
            let sector = u64::from_le_bytes(range[..8].try_into().expect("eight bytes"));
            let sectors = u32::from_le_bytes(range[8..12].try_into().expect("four bytes"));
            let flags = u32::from_le_bytes(range[12..].try_into().expect("four bytes"));
            let (offset, len) = (byte_offset(sector)?, u64::from(sectors) * SECTOR);
            let zeroes = kind == abi::VIRTIO_BLK_T_WRITE_ZEROES;
            let known = if zeroes { abi::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
            if flags & !known != 0 {
                return Err(Refusal::Unsupported);
            }
            if sectors > if zeroes { MAX_ZEROES } else { MAX_DISCARD } {
                return Err(Refusal::Malformed);
            }
            if zeroes {
                self.disk.write_zeroes(offset, len, flags != 0)?;
            } else {
                self.disk.discard(offset, len)?;
            }
        }
        self.flush_if_write_through()
    }

    fn flush_if_write_through(&mut self) -> Result<usize, Refusal> {
        if self.write_through {
            self.disk.flush()?;
        }
        Ok(0)
    }

    /// Counts and reports a refusal; returns the status for it.
    fn refuse(&self, ctx: &Context<'_>, kind: u32, refusal: &Refusal) -> u32 {
        match refusal {
            Refusal::Unsupported => {
                ctx.counters.count(Counter::RequestUnsupported);
                abi::VIRTIO_BLK_S_UNSUPP
            }
            Refusal::Malformed | Refusal::Disk(DiskError::OutOfRange | DiskError::ReadOnly) => {
                ctx.counters.count(Counter::DiskRefused);
                abi::VIRTIO_BLK_S_IOERR
            }
            Refusal::Disk(error) => {
                ctx.counters.count(Counter::DiskError);
                if ctx.counters.get(Counter::DiskError).is_power_of_two() {
                    // A disk that fails fails often: the 1st, 2nd, 4th, 8th … time is enough to be told.
                    tracing::error!(kind, %error, cause = ?error, "a disk request failed");
                }
                abi::VIRTIO_BLK_S_IOERR
            }
        }
    }

    fn sectors(&self) -> u64 {
        self.disk.capacity() / SECTOR
    }
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let always = 1 << abi::VIRTIO_BLK_F_SEG_MAX
            | 1 << abi::VIRTIO_BLK_F_BLK_SIZE
            | 1 << abi::VIRTIO_BLK_F_FLUSH
            | 1 << abi::VIRTIO_BLK_F_TOPOLOGY;
        if self.disk.read_only() {
            always | 1 << abi::VIRTIO_BLK_F_RO
        } else {
            always | 1 << abi::VIRTIO_BLK_F_DISCARD | 1 << abi::VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0u8; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors().to_le_bytes());
        // The header and the status take a segment each.
        put(12, &(MAX_SEGMENTS as u32 - 2).to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXP]);
        put(26, &(1u16 << PHYSICAL_BLOCK_EXP).to_le_bytes());
        put(34, &1u16.to_le_bytes());
        put(36, &MAX_DISCARD.to_le_bytes());
        put(40, &(MAX_RANGES as u32).to_le_bytes());
        put(44, &(1u32 << PHYSICAL_BLOCK_EXP).to_le_bytes());
        put(48, &MAX_ZEROES.to_le_bytes());
        put(52, &(MAX_RANGES as u32).to_le_bytes());
        put(56, &[1]);
        config
    }

    fn activate(&mut self, features: u64) -> Result<(), DeviceError> {
        self.write_through = features >> abi::VIRTIO_BLK_F_FLUSH & 1 == 0;
        Ok(())
    }

    fn queue_event(&mut self, index: usize, ctx: &mut Context<'_>) -> Result<Progress, Fault> {
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(queue) = ctx.queues[index].as_mut() else { return Ok(Progress::Done) };
            queue.disable_notification(ctx.mem)?;
            if !queue.pop(ctx.mem, &mut self.chain)? {
                if queue.enable_notification(ctx.mem)? {
                    continue;
                }
                return Ok(Progress::Done);
            }
            let written = self.serve(ctx)?;
            if let Some(queue) = ctx.queues[index].as_mut() {
                queue.push_used(ctx.mem, self.chain.head, written)?;
            }
            // At once: the next request may take long, and the driver says itself when it wants interrupts.
            ctx.signal(index)?;
        }
        Ok(Progress::More)
    }

    fn drain(&mut self, _ctx: &mut Context<'_>) -> Result<(), Fault> {
        // Requests are served whole, so none is in flight. What they wrote is made durable after the pause, when the
        // layer that was sealed in it is settled.
        Ok(())
    }

    fn reset(&mut self) {
        self.write_through = false;
        if let Err(error) = self.disk.flush() {
            tracing::error!(%error, cause = ?error, "cannot flush a disk at a reset");
        }
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState { sectors: self.sectors(), read_only: self.disk.read_only() })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let DeviceState::Block(state) = state else { return Err(DeviceError::WrongKind) };
        // One that has grown since is told to the driver by its transport.
        if state.sectors > self.sectors() || state.read_only != self.disk.read_only() {
            return Err(DeviceError::Mismatch(
                "the disk is smaller than it was, or only one of both can be written",
            ));
        }
        Ok(())
    }
}

fn byte_offset(sector: u64) -> Result<u64, Refusal> {
    sector.checked_mul(SECTOR).ok_or(Refusal::Disk(DiskError::OutOfRange))
}

#[cfg(test)]
mod tests;
