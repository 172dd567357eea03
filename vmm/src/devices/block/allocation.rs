//! Which grains of a layer hold data: a bit for each grain in memory, a journal of set bits in a file.
//!
//! Bits are only ever set (a discarded grain keeps its bit and its data becomes a hole), so the journal names
//! each grain once at most: it never needs compaction and its length is bounded by the disk's size.
//!
//! ```text
//! 0     header  magic, version, grain, capacity, base length, CRC-32; padded to 4096 bytes
//! 4096  batch   magic, runs, sequence, CRC-32 of header and runs, 0; then `runs` × (first grain, grains)
//!       batch   ...
//!       end     magic, 0, sequence, CRC-32 of the record, 0: 32 bytes, only in a sealed layer
//! ```
//! All numbers are little-endian. A batch is written and synced by one flush, after the data that it speaks
//! of is durable. At the end of the file, a batch that is not whole is what a crash left of a flush that had
//! not succeeded: it is cut off. Anything else that does not check is damage and an error. A journal with an
//! end record was complete once, so that a shortened one is known.

use super::backend::{DiskError, Medium, write_all};
use std::io;
use thiserror::Error;
use vm_memory::VolatileSlice;

/// Bytes of a grain, the unit of copy-on-write: the block size of usual file systems, so that their writes
/// never need the base's bytes.
pub const GRAIN: u64 = 4096;
/// Largest disk: 4 TiB, whose bits take 128 MiB of memory.
pub const MAX_CAPACITY: u64 = 1 << 42;
/// Most runs of one batch, 1 MiB of journal. When so many wait, a flush is due at once.
pub const MAX_RUNS: usize = 1 << 16;

const MAGIC: [u8; 8] = *b"GHTOPMAP";
const VERSION: u32 = 1;
const HEADER: usize = 36;
const FIRST_BATCH: u64 = 4096;
const BATCH_MAGIC: u32 = 0x4248_5447;
const END_MAGIC: u32 = 0x4548_5447;
const BATCH_HEADER: usize = 32;
const RUN: usize = 16;
const MAX_BATCH: u64 = (BATCH_HEADER + MAX_RUNS * RUN) as u64;

/// Why a journal cannot be used.
#[derive(Debug, Error)]
pub enum MapError {
    /// Reading or writing it failed.
    #[error("cannot {operation} the allocation map")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It is not a journal, or of another version, or its header is damaged.
    #[error("not an allocation map of this version, or its header is damaged")]
    Header,
    /// A record that a crash cannot have left like this.
    #[error("the allocation map is damaged at byte {0}")]
    Damaged(u64),
    /// The size is 0, not a multiple of 512, or above [`MAX_CAPACITY`].
    #[error("a disk of {0} bytes is not possible")]
    Capacity(u64),
    /// It has an end record, so its layer is sealed and cannot be written.
    #[error("the allocation map belongs to a sealed layer")]
    Sealed,
    /// It has no end record where one is due.
    #[error("the allocation map of a sealed layer has no end")]
    Unfinished,
}

/// Grains `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first grain.
    pub first: u64,
    /// How many, not 0.
    pub count: u64,
}

/// A bit for each grain. The words of grains that were never set take no memory: they are zero pages.
#[derive(Clone, Debug)]
pub struct Bitmap(Vec<u64>);

impl Bitmap {
    /// No grain of a disk of `capacity` bytes, at most [`MAX_CAPACITY`].
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        let words = usize::try_from(grains(capacity).div_ceil(64)).expect("checked against MAX_CAPACITY");
        Self(vec![0; words])
    }

    /// Whether the grain's bit is set. Beyond the disk none is.
    #[must_use]
    pub fn is_set(&self, grain: u64) -> bool {
        let word = usize::try_from(grain / 64).unwrap_or(usize::MAX);
        self.0.get(word).is_some_and(|bits| bits >> (grain % 64) & 1 == 1)
    }

    /// Whether no bit is set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|bits| *bits == 0)
    }

    /// The set grains, in order, as runs of neighbours.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let first = self.next(at, true)?;
            at = self.next(first, false).unwrap_or(self.0.len() as u64 * 64);
            Some(Run { first, count: at - first })
        })
    }

    /// The first grain from `from` on whose bit is `value`.
    fn next(&self, from: u64, value: bool) -> Option<u64> {
        let start = usize::try_from(from / 64).ok()?;
        let mut skip = u64::MAX << (from % 64);
        for (n, bits) in self.0.iter().enumerate().skip(start) {
            let found = if value { *bits } else { !bits } & skip;
            skip = u64::MAX;
            if found != 0 {
                return Some(n as u64 * 64 + u64::from(found.trailing_zeros()));
            }
        }
        None
    }

    fn set(&mut self, grain: u64) {
        self.0[(grain / 64) as usize] |= 1 << (grain % 64);
    }
}

/// The file half of a map: what is in it, and what waits to be.
#[derive(Debug)]
pub struct Journal<M> {
    file: M,
    capacity: u64,
    base_len: u64,
    pending: Vec<Run>,
    sequence: u64,
    end: u64,
}

impl<M: Medium> Journal<M> {
    /// Makes all set bits durable. The data of their grains must be durable already.
    ///
    /// # Errors
    /// A [`DiskError`]; after a failed sync, nothing may be committed any more.
    pub fn commit(&mut self) -> Result<(), DiskError> {
        for runs in self.pending.chunks(MAX_RUNS) {
            let mut batch = record(BATCH_MAGIC, self.sequence, runs);
            write_all(&self.file, self.end, &[VolatileSlice::from(batch.as_mut_slice())])?;
            self.file.sync().map_err(DiskError::Flush)?;
            self.end += batch.len() as u64;
            self.sequence += 1;
        }
        self.pending.clear();
        Ok(())
    }

    /// Commits and writes the end record. Nothing may be set afterwards. May be repeated after a failed write.
    ///
    /// # Errors
    /// A [`DiskError`].
    pub fn finish(&mut self) -> Result<(), DiskError> {
        self.commit()?;
        let mut end = record(END_MAGIC, self.sequence, &[]);
        write_all(&self.file, self.end, &[VolatileSlice::from(end.as_mut_slice())])?;
        self.file.sync().map_err(DiskError::Flush)
    }

    fn note(&mut self, grain: u64) {
        match self.pending.last_mut() {
            Some(last) if last.first + last.count == grain => last.count += 1,
            Some(_) | None => self.pending.push(Run { first: grain, count: 1 }),
        }
    }
}

/// The map of one writable layer.
#[derive(Debug)]
pub struct AllocationMap<M> {
    journal: Journal<M>,
    bits: Bitmap,
}

impl<M: Medium> AllocationMap<M> {
    /// Writes a new journal into an empty file and makes it durable.
    ///
    /// # Errors
    /// A [`MapError`].
    pub fn create(file: M, capacity: u64, base_len: u64) -> Result<Self, MapError> {
        check_capacity(capacity)?;
        let mut page = vec![0u8; FIRST_BATCH as usize];
        page[..HEADER].copy_from_slice(&header(capacity, base_len));
        let failed = |operation| move |source| MapError::Io { operation, source };
        file.set_len(0).map_err(failed("truncate"))?;
        put(&file, 0, &mut page).map_err(failed("write"))?;
        file.sync().map_err(failed("sync"))?;
        let bits = Bitmap::new(capacity);
        let journal =
            Journal { file, capacity, base_len, pending: Vec::new(), sequence: 1, end: FIRST_BATCH };
        Ok(Self { journal, bits })
    }

    /// Reads the journal of a layer that is not sealed, and cuts off what a crash left unfinished.
    ///
    /// # Errors
    /// A [`MapError`] when it is damaged or sealed.
    pub fn open(file: M) -> Result<Self, MapError> {
        let failed = |operation| move |source| MapError::Io { operation, source };
        let bytes = get(&file).map_err(failed("read"))?;
        let found = parse(&bytes)?;
        if found.finished {
            return Err(MapError::Sealed);
        }
        let (capacity, base_len, sequence, end) = (found.capacity, found.base_len, found.sequence, found.end);
        let mut bits = Bitmap::new(capacity);
        for run in found.runs {
            (run.first..run.first + run.count).for_each(|grain| bits.set(grain));
        }
        file.set_len(end).map_err(failed("truncate"))?;
        Ok(Self { journal: Journal { file, capacity, base_len, pending: Vec::new(), sequence, end }, bits })
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.journal.capacity
    }

    /// Length of the base that the top belongs to, in bytes.
    #[must_use]
    pub fn base_len(&self) -> u64 {
        self.journal.base_len
    }

    /// Whether the top holds the grain.
    #[must_use]
    pub fn is_set(&self, grain: u64) -> bool {
        self.bits.is_set(grain)
    }

    /// Whether the top holds no grain.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bits.is_empty()
    }

    /// Notes that the top holds these grains; durable after [`Journal::commit`].
    pub fn set(&mut self, run: Run) {
        for grain in run.first..run.first + run.count {
            if !self.bits.is_set(grain) {
                self.bits.set(grain);
                self.journal.note(grain);
            }
        }
    }

    /// Whether so many runs wait that a commit is due. One request may exceed it; the commit then writes
    /// several batches.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.journal.pending.len() >= MAX_RUNS
    }

    /// The half in memory.
    #[must_use]
    pub fn bits(&self) -> &Bitmap {
        &self.bits
    }

    /// The file half.
    pub fn journal(&mut self) -> &mut Journal<M> {
        &mut self.journal
    }

    /// Both halves, when nothing will be set any more.
    #[must_use]
    pub fn into_parts(self) -> (Bitmap, Journal<M>) {
        (self.bits, self.journal)
    }
}

/// What a journal says.
#[derive(Debug)]
pub struct Found {
    /// Size of the disk in bytes.
    pub capacity: u64,
    /// Length of its base in bytes.
    pub base_len: u64,
    /// The grains that the layer holds.
    pub runs: Vec<Run>,
    /// It has its end record.
    pub finished: bool,
    sequence: u64,
    end: u64,
}

/// Reads a journal that nobody writes any more, and changes nothing.
///
/// # Errors
/// A [`MapError`] when it is damaged.
pub fn read<M: Medium>(file: &M) -> Result<Found, MapError> {
    parse(&get(file).map_err(|source| MapError::Io { operation: "read", source })?)
}

fn parse(bytes: &[u8]) -> Result<Found, MapError> {
    let (capacity, base_len) = parse_header(bytes)?;
    let (sequence, end) = (1, FIRST_BATCH);
    let mut found = Found { capacity, base_len, runs: Vec::new(), finished: false, sequence, end };
    let mut rest = bytes.get(FIRST_BATCH as usize..).ok_or(MapError::Header)?;
    while let Some((runs, len)) = parse_batch(rest, found.sequence) {
        for run in runs {
            let end = run.first.checked_add(run.count).ok_or(MapError::Damaged(found.end))?;
            if run.count == 0 || end > grains(capacity) {
                return Err(MapError::Damaged(found.end));
            }
            found.runs.push(run);
        }
        rest = &rest[len..];
        found.end += len as u64;
        found.sequence += 1;
    }
    if rest == record(END_MAGIC, found.sequence, &[]) {
        found.finished = true;
        return Ok(found);
    }
    // Behind an unfinished record there is nothing: the next one is written only after it is durable.
    let later = (0..rest.len()).step_by(RUN).any(|at| is_record_after(&rest[at..], found.sequence));
    if rest.len() as u64 > MAX_BATCH || later { Err(MapError::Damaged(found.end)) } else { Ok(found) }
}

/// Number of grains of a disk; the last may be partial.
#[must_use]
pub fn grains(capacity: u64) -> u64 {
    capacity.div_ceil(GRAIN)
}

fn check_capacity(capacity: u64) -> Result<(), MapError> {
    let possible = capacity != 0 && capacity <= MAX_CAPACITY && capacity.is_multiple_of(super::SECTOR);
    if possible { Ok(()) } else { Err(MapError::Capacity(capacity)) }
}

fn header(capacity: u64, base_len: u64) -> [u8; HEADER] {
    let mut header = [0u8; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&(GRAIN as u32).to_le_bytes());
    header[16..24].copy_from_slice(&capacity.to_le_bytes());
    header[24..32].copy_from_slice(&base_len.to_le_bytes());
    let crc = crc32fast::hash(&header[..32]);
    header[32..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn parse_header(bytes: &[u8]) -> Result<(u64, u64), MapError> {
    let (capacity, base_len) = match (u64_at(bytes, 16), u64_at(bytes, 24)) {
        (Some(capacity), Some(base_len)) => (capacity, base_len),
        (None, _) | (_, None) => return Err(MapError::Header),
    };
    if bytes.get(..HEADER) != Some(&header(capacity, base_len)[..]) {
        return Err(MapError::Header);
    }
    check_capacity(capacity)?;
    Ok((capacity, base_len))
}

fn record(magic: u32, sequence: u64, runs: &[Run]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BATCH_HEADER + runs.len() * RUN);
    bytes.extend(magic.to_le_bytes());
    bytes.extend((runs.len() as u32).to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend([0; 16]);
    for run in runs {
        bytes.extend(run.first.to_le_bytes());
        bytes.extend(run.count.to_le_bytes());
    }
    // The CRC's own place counts as zeros.
    let crc = crc32fast::hash(&bytes);
    bytes[16..20].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The runs and the length of a whole batch at the start of `bytes`, if it is the one with this sequence.
fn parse_batch(bytes: &[u8], sequence: u64) -> Option<(Vec<Run>, usize)> {
    let runs = checked_runs(bytes)?;
    (u64_at(bytes, 8) == Some(sequence)).then(|| {
        let run = |r: &[u8]| Run { first: u64_at(r, 0).unwrap_or(0), count: u64_at(r, 8).unwrap_or(0) };
        (runs.chunks_exact(RUN).map(run).collect(), BATCH_HEADER + runs.len())
    })
}

/// Whether a whole record begins here that cannot stand behind the batch before `sequence`.
fn is_record_after(bytes: &[u8], sequence: u64) -> bool {
    let later = |least| u64_at(bytes, 8).is_some_and(|found| found >= least);
    let end = || u32_at(bytes, 0) == Some(END_MAGIC) && check_crc(bytes, 0).is_some();
    checked_runs(bytes).is_some() && later(sequence + 1) || end() && later(sequence)
}

/// The runs of a whole batch whose CRC is right, as bytes.
fn checked_runs(bytes: &[u8]) -> Option<&[u8]> {
    if u32_at(bytes, 0)? != BATCH_MAGIC {
        return None;
    }
    let count = u32_at(bytes, 4)? as usize;
    if count == 0 || count > MAX_RUNS { None } else { check_crc(bytes, count) }
}

fn check_crc(bytes: &[u8], count: usize) -> Option<&[u8]> {
    let runs = bytes.get(BATCH_HEADER..BATCH_HEADER + count * RUN)?;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..16]);
    hasher.update(&[0; 4]);
    hasher.update(&bytes[20..BATCH_HEADER]);
    hasher.update(runs);
    (hasher.finalize() == u32_at(bytes, 16)?).then_some(runs)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn put<M: Medium>(file: &M, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    write_all(file, offset, &[VolatileSlice::from(bytes)]).map_err(io::Error::other)
}

/// The whole file. Its length is bounded by the grains of the largest disk, in practice a few MiB.
fn get<M: Medium>(file: &M) -> io::Result<Vec<u8>> {
    let too_long = || io::Error::from(io::ErrorKind::FileTooLarge);
    let longest = FIRST_BATCH + grains(MAX_CAPACITY) * (BATCH_HEADER + RUN) as u64;
    let len = Some(file.len()?).filter(|len| *len <= longest).ok_or_else(too_long)?;
    let mut bytes = vec![0u8; usize::try_from(len).map_err(|_| too_long())?];
    let mut done = 0;
    while done < bytes.len() {
        match file.read(done as u64, &[VolatileSlice::from(&mut bytes[done..])])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => done += count,
        }
    }
    Ok(bytes)
}
