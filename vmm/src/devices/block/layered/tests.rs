//! Against a model in memory, and cut off at any point.

use super::*;
use crate::devices::block::allocation::MAX_RUNS;
use proptest::prelude::*;
use std::collections::HashSet;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

/// Neither is a multiple of the grain.
const BASE: u64 = 5 * GRAIN + 1000;
const CAPACITY: u64 = 12 * GRAIN + 3 * SECTOR;
const SECTORS: u64 = CAPACITY / SECTOR;

#[derive(Clone, Debug)]
enum Operation {
    Write { sector: u64, sectors: u64, byte: u8 },
    Read { sector: u64, sectors: u64 },
    Discard { sector: u64, sectors: u64 },
    Zero { sector: u64, sectors: u64, unmap: bool },
    Flush,
    Reopen,
}

fn span() -> impl Strategy<Value = (u64, u64)> {
    (0..SECTORS).prop_flat_map(|sector| (Just(sector), 0..=(SECTORS - sector).min(40)))
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        5 => (span(), 1u8..).prop_map(|((sector, sectors), byte)| Operation::Write { sector, sectors, byte }),
        3 => span().prop_map(|(sector, sectors)| Operation::Read { sector, sectors }),
        1 => span().prop_map(|(sector, sectors)| Operation::Discard { sector, sectors }),
        2 => (span(), any::<bool>())
            .prop_map(|((sector, sectors), unmap)| Operation::Zero { sector, sectors, unmap }),
        2 => Just(Operation::Flush),
        1 => Just(Operation::Reopen),
    ]
}

fn base_bytes() -> Vec<u8> {
    (0..BASE).map(|n| 0x80 | (n / 512) as u8).collect()
}

fn read<M: Medium>(disk: &mut LayeredDisk<M>, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0xee; len as usize];
    let (left, right) = bytes.split_at_mut(len as usize / 3);
    disk.read_at(offset, &[VolatileSlice::from(left), VolatileSlice::from(right)]).unwrap();
    bytes
}

fn write<M: Medium>(disk: &mut LayeredDisk<M>, offset: u64, mut bytes: Vec<u8>) {
    let middle = bytes.len() / 2;
    let (left, right) = bytes.split_at_mut(middle);
    disk.write_at(offset, &[VolatileSlice::from(left), VolatileSlice::from(right)]).unwrap();
}

/// Sets whole grains of the range to zero, as a discard does.
fn discard_model(model: &mut [u8], offset: u64, len: u64) {
    let end = offset + len;
    let first = offset.next_multiple_of(GRAIN);
    let last = if end == CAPACITY { end } else { end - end % GRAIN };
    if first < last {
        model[first as usize..last as usize].fill(0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_disk_is_what_was_written_to_it(operations in prop::collection::vec(operation(), 1..60)) {
        let folder = tempfile::tempdir().unwrap();
        let (base, top) = (folder.path().join("base"), folder.path().join("top"));
        std::fs::write(&base, base_bytes()).unwrap();
        let mut model = base_bytes();
        model.resize(CAPACITY as usize, 0);
        let mut disk = LayeredDisk::create_at(Some(&base), &top, CAPACITY).unwrap();
        for operation in operations {
            match operation {
                Operation::Write { sector, sectors, byte } => {
                    let (at, len) = (sector * SECTOR, sectors * SECTOR);
                    write(&mut disk, at, vec![byte; len as usize]);
                    model[at as usize..(at + len) as usize].fill(byte);
                }
                Operation::Read { sector, sectors } => {
                    let (at, len) = (sector * SECTOR, sectors * SECTOR);
                    prop_assert_eq!(&read(&mut disk, at, len), &model[at as usize..(at + len) as usize]);
                }
                Operation::Discard { sector, sectors } => {
                    disk.discard(sector * SECTOR, sectors * SECTOR).unwrap();
                    discard_model(&mut model, sector * SECTOR, sectors * SECTOR);
                }
                Operation::Zero { sector, sectors, unmap } => {
                    let (at, len) = (sector * SECTOR, sectors * SECTOR);
                    disk.write_zeroes(at, len, unmap).unwrap();
                    model[at as usize..(at + len) as usize].fill(0);
                }
                Operation::Flush => disk.flush().unwrap(),
                Operation::Reopen => {
                    drop(disk);
                    disk = LayeredDisk::open_at(Some(&base), &top).unwrap();
                }
            }
        }
        prop_assert_eq!(&read(&mut disk, 0, CAPACITY), &model);
        prop_assert_eq!(std::fs::read(&base).unwrap(), base_bytes());
    }
}

/// What was done to a file.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Length(u64),
    Sync,
}

/// A file in memory that remembers what was done to it and its siblings.
#[derive(Clone)]
struct Recorded {
    name: usize,
    bytes: Arc<Mutex<Vec<u8>>>,
    steps: Arc<Mutex<Vec<(usize, Step)>>>,
}

impl Recorded {
    fn step(&self, step: Step) {
        apply(&mut self.bytes.lock().unwrap(), &step);
        self.steps.lock().unwrap().push((self.name, step));
    }
}

fn apply(file: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(offset, bytes) => {
            let end = *offset as usize + bytes.len();
            file.resize(file.len().max(end), 0);
            file[*offset as usize..end].copy_from_slice(bytes);
        }
        Step::Zero(offset, len) => {
            let end = file.len().min((offset + len) as usize);
            file[*offset as usize..end].fill(0);
        }
        Step::Length(len) => file.resize(*len as usize, 0),
        Step::Sync => {}
    }
}

impl Medium for Recorded {
    fn read(&self, offset: u64, into: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let bytes = self.bytes.lock().unwrap();
        let mut done = (offset as usize).min(bytes.len());
        let start = done;
        for slice in into {
            let take = slice.len().min(bytes.len() - done);
            slice.copy_from(&bytes[done..done + take]);
            done += take;
        }
        Ok(done - start)
    }

    fn write(&self, offset: u64, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut bytes = Vec::new();
        for slice in from {
            let mut part = vec![0; slice.len()];
            slice.copy_to(&mut part[..]);
            bytes.extend(part);
        }
        // Sometimes less than asked for, as the kernel may do.
        bytes.truncate(bytes.len().min(6 * GRAIN as usize + 100));
        let len = bytes.len();
        self.step(Step::Write(offset, bytes));
        Ok(len)
    }

    fn zero(&self, offset: u64, len: u64, _punch: bool) -> io::Result<()> {
        self.step(Step::Zero(offset, len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.step(Step::Sync);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(Step::Length(len));
        Ok(())
    }
}

/// What is left of a file when the host loses power: all that was synced; of what came later each step, or
/// single sectors of it, or nothing, by the bits of `luck`.
fn survivors(name: usize, steps: &[(usize, Step)], luck: &[u8]) -> Vec<u8> {
    let own: Vec<&Step> = steps.iter().filter(|(n, _)| *n == name).map(|(_, s)| s).collect();
    let synced = own.iter().rposition(|s| matches!(s, Step::Sync)).map_or(0, |at| at + 1);
    let mut file = Vec::new();
    for (n, step) in own.iter().enumerate() {
        let luck = luck[n % luck.len()];
        match step {
            Step::Write(offset, bytes) if n >= synced && luck & 3 == 1 => {
                // A part of the sectors, and the length as if all had been written.
                let mut torn = Step::Length((file.len() as u64).max(offset + bytes.len() as u64));
                apply(&mut file, &torn);
                for (sector, part) in bytes.chunks(SECTOR as usize).enumerate() {
                    if luck >> (2 + sector % 6) & 1 == 1 {
                        torn = Step::Write(offset + sector as u64 * SECTOR, part.to_vec());
                        apply(&mut file, &torn);
                    }
                }
            }
            _ if n >= synced && luck & 3 == 0 => {}
            step => apply(&mut file, step),
        }
    }
    file
}

fn recorded(name: usize, bytes: Vec<u8>, steps: &Arc<Mutex<Vec<(usize, Step)>>>) -> Recorded {
    Recorded { name, bytes: Arc::new(Mutex::new(bytes)), steps: Arc::clone(steps) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Each sector is what it was at the last flush that succeeded, or something written to it since.
    #[test]
    fn nothing_flushed_is_lost_by_a_crash_at_any_point(
        operations in prop::collection::vec((operation(), any::<u8>()), 1..30),
        cut_at in any::<prop::sample::Index>(),
        luck in prop::collection::vec(any::<u8>(), 97),
    ) {
        let steps = Arc::default();
        let base = recorded(0, base_bytes(), &steps);
        let (data, map) = (recorded(1, Vec::new(), &steps), recorded(2, Vec::new(), &steps));
        let mut disk = LayeredDisk::create(Some(base.clone()), data, map, CAPACITY).unwrap();
        let created = steps.lock().unwrap().len();
        let mut model = base_bytes();
        model.resize(CAPACITY as usize, 0);
        // For each point in time: the steps before it, and the disk after it, or before when it is a flush.
        let mut history = vec![(created, true, model.clone())];
        for (operation, _) in operations {
            let before = steps.lock().unwrap().len();
            match operation {
                Operation::Write { sector, sectors, byte } => {
                    write(&mut disk, sector * SECTOR, vec![byte; (sectors * SECTOR) as usize]);
                    model[(sector * SECTOR) as usize..((sector + sectors) * SECTOR) as usize].fill(byte);
                    history.push((before, false, model.clone()));
                }
                Operation::Discard { sector, sectors } => {
                    disk.discard(sector * SECTOR, sectors * SECTOR).unwrap();
                    discard_model(&mut model, sector * SECTOR, sectors * SECTOR);
                    history.push((before, false, model.clone()));
                }
                Operation::Zero { sector, sectors, unmap } => {
                    disk.write_zeroes(sector * SECTOR, sectors * SECTOR, unmap).unwrap();
                    model[(sector * SECTOR) as usize..((sector + sectors) * SECTOR) as usize].fill(0);
                    history.push((before, false, model.clone()));
                }
                Operation::Flush | Operation::Reopen | Operation::Read { .. } => {
                    disk.flush().unwrap();
                    history.push((steps.lock().unwrap().len(), true, model.clone()));
                }
            }
        }
        let all = steps.lock().unwrap().clone();
        let cut_at = created + cut_at.index(all.len() - created + 1);
        let past = &all[..cut_at];
        let flushed = history.iter().rposition(|(at, flush, _)| *flush && *at <= cut_at).unwrap();
        let possible: Vec<&Vec<u8>> = history[flushed..]
            .iter()
            .take_while(|(at, flush, _)| *at < cut_at || *flush && *at <= cut_at)
            .chain(std::iter::once(&history[flushed]))
            .map(|(_, _, model)| model)
            .collect();

        let (data, map) = (survivors(1, past, &luck), survivors(2, past, &luck));
        let again = Arc::default();
        let (data, map) = (recorded(1, data, &again), recorded(2, map, &again));
        let mut disk = LayeredDisk::open(Some(base), data, map).unwrap();
        let found = read(&mut disk, 0, CAPACITY);
        for sector in 0..SECTORS as usize {
            let at = sector * SECTOR as usize..(sector + 1) * SECTOR as usize;
            let allowed: HashSet<&[u8]> = possible.iter().map(|model| &model[at.clone()]).collect();
            prop_assert!(allowed.contains(&found[at.clone()]), "sector {} is {:?}", sector, &found[at][..1]);
        }
    }
}

fn written_top(folder: &Path) -> (PathBuf, PathBuf) {
    let (base, top) = (folder.join("base"), folder.join("top"));
    std::fs::write(&base, base_bytes()).unwrap();
    let mut disk = LayeredDisk::create_at(Some(&base), &top, CAPACITY).unwrap();
    for grain in 0..3 {
        write(&mut disk, grain * GRAIN, vec![7; 512]);
        disk.flush().unwrap();
    }
    (base, top)
}

#[test]
fn a_damaged_map_is_an_error_and_a_torn_end_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let (base, top) = written_top(folder.path());
    let map = map_path(&top);
    let whole = std::fs::read(&map).unwrap();
    assert_eq!(whole.len(), 4096 + 3 * 48);
    let open = |bytes: &[u8]| {
        std::fs::write(&map, bytes).unwrap();
        LayeredDisk::open_at(Some(&base), &top)
    };
    for at in [0, 9, 20, 33] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert!(matches!(open(&bytes), Err(DiskOpenError::Map(MapError::Header))), "byte {at}");
    }
    assert!(matches!(open(&whole[..20]), Err(DiskOpenError::Map(MapError::Header))));
    for at in [4096, 4096 + 16, 4096 + 47, 4096 + 48 + 8] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        assert!(matches!(open(&bytes), Err(DiskOpenError::Map(MapError::Damaged(_)))), "byte {at}");
    }
    for len in [4096 + 96, 4096 + 97, 4096 + 143] {
        let mut disk = open(&whole[..len]).unwrap();
        assert_eq!(read(&mut disk, GRAIN, 512), vec![7; 512]);
        assert_eq!(read(&mut disk, 2 * GRAIN, 512)[0], 0x80 | 16);
        drop(disk);
        assert_eq!(std::fs::read(&map).unwrap().len(), 4096 + 96);
    }
    let mut long = whole.clone();
    long.resize(whole.len() + MAX_RUNS * 17, 0);
    assert!(matches!(open(&long), Err(DiskOpenError::Map(MapError::Damaged(_)))));
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (base, top) = written_top(folder.path());
    assert!(matches!(LayeredDisk::create_at(Some(&base), &top, CAPACITY), Err(DiskOpenError::Open { .. })));
    assert!(matches!(LayeredDisk::open_at(None, &top), Err(DiskOpenError::BaseLength { found: 0, .. })));
    File::options().write(true).open(&top).unwrap().set_len(CAPACITY - 1).unwrap();
    assert!(matches!(LayeredDisk::open_at(Some(&base), &top), Err(DiskOpenError::DataLength { .. })));
    let (data, map) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let odd = LayeredDisk::create(None, data, map, CAPACITY + 1);
    assert!(matches!(odd, Err(DiskOpenError::Map(MapError::Capacity(_)))));
}

#[test]
fn a_base_is_bytes_even_if_they_look_like_another_format() {
    let file = tempfile::tempfile().unwrap();
    let mut header = vec![0u8; 4096];
    header[..4].copy_from_slice(b"QFI\xfb");
    header[4..8].copy_from_slice(&3u32.to_be_bytes());
    file.write_all_at(&header, 0).unwrap();
    let mut disk = LayeredDisk::read_only(file).unwrap();
    assert_eq!(disk.capacity(), 4096);
    assert_eq!(read(&mut disk, 0, 4096), header);
}

#[test]
fn untouched_and_discarded_grains_take_no_room() {
    use std::os::unix::fs::MetadataExt as _;
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let top = folder.path().join("top");
    let mut disk = LayeredDisk::create_at(None, &top, 1 << 30).unwrap();
    let room = || std::fs::metadata(&top).unwrap().blocks() * 512;
    assert_eq!(room(), 0);
    write(&mut disk, 1 << 20, vec![1; 1 << 20]);
    disk.flush().unwrap();
    assert!(room() >= 1 << 20);
    disk.discard(1 << 20, 1 << 20).unwrap();
    disk.flush().unwrap();
    assert!(room() < 1 << 16, "{} bytes are left", room());
}
