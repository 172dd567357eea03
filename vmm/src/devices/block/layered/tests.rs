//! Against a model in memory, and cut off at any point.

use super::*;
use crate::devices::block::allocation::MAX_RUNS;
use crate::devices::block::recorded::{Recorded, World};
use proptest::prelude::*;
use std::collections::HashSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

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
        let mut disk = create_at(Some(&base), &top, CAPACITY).unwrap();
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
                    disk = open_at(Some(&base), &top).unwrap();
                }
            }
        }
        prop_assert_eq!(&read(&mut disk, 0, CAPACITY), &model);
        prop_assert_eq!(std::fs::read(&base).unwrap(), base_bytes());
    }
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
        let world = World::default();
        let base = Recorded::of(base_bytes());
        let (data, map) = (world.file(), world.file());
        let (data_id, map_id) = (data.id(), map.id());
        let mut disk = LayeredDisk::create(Some(base.clone()), data, map, CAPACITY).unwrap();
        let created = world.len();
        let mut model = base_bytes();
        model.resize(CAPACITY as usize, 0);
        // For each point in time: the steps before it, and the disk after it, or before when it is a flush.
        let mut history = vec![(created, true, model.clone())];
        for (operation, _) in operations {
            let before = world.len();
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
                    history.push((world.len(), true, model.clone()));
                }
            }
        }
        let cut_at = created + cut_at.index(world.len() - created + 1);
        let flushed = history.iter().rposition(|(at, flush, _)| *flush && *at <= cut_at).unwrap();
        let possible: Vec<&Vec<u8>> = history[flushed..]
            .iter()
            .take_while(|(at, flush, _)| *at < cut_at || *flush && *at <= cut_at)
            .chain(std::iter::once(&history[flushed]))
            .map(|(_, _, model)| model)
            .collect();

        let left = |id| Recorded::of(world.survivor(id, cut_at, &luck));
        let (data, map) = (left(data_id), left(map_id));
        let mut disk = LayeredDisk::open(Some(base), data, map).unwrap();
        let found = read(&mut disk, 0, CAPACITY);
        for sector in 0..SECTORS as usize {
            let at = sector * SECTOR as usize..(sector + 1) * SECTOR as usize;
            let allowed: HashSet<&[u8]> = possible.iter().map(|model| &model[at.clone()]).collect();
            prop_assert!(allowed.contains(&found[at.clone()]), "sector {} is {:?}", sector, &found[at][..1]);
        }
    }
}

fn create_at(base: Option<&Path>, top: &Path, capacity: u64) -> Result<LayeredDisk, DiskOpenError> {
    let new = |path: &Path| File::options().read(true).write(true).create_new(true).open(path);
    let base = base.map(|path| File::open(path).unwrap());
    let (data, map) = (new(top).unwrap(), new(&map_path(top)).unwrap());
    LayeredDisk::create(base, data, map, capacity)
}

fn open_at(base: Option<&Path>, top: &Path) -> Result<LayeredDisk, DiskOpenError> {
    let old = |path: &Path| File::options().read(true).write(true).open(path).unwrap();
    LayeredDisk::open(base.map(|path| File::open(path).unwrap()), old(top), old(&map_path(top)))
}

fn map_path(top: &Path) -> PathBuf {
    top.with_extension("map")
}

fn written_top(folder: &Path) -> (PathBuf, PathBuf) {
    let (base, top) = (folder.join("base"), folder.join("top"));
    std::fs::write(&base, base_bytes()).unwrap();
    let mut disk = create_at(Some(&base), &top, CAPACITY).unwrap();
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
        open_at(Some(&base), &top)
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
    assert!(matches!(open_at(None, &top), Err(DiskOpenError::BaseLength { found: 0, .. })));
    File::options().write(true).open(&top).unwrap().set_len(CAPACITY - 1).unwrap();
    assert!(matches!(open_at(Some(&base), &top), Err(DiskOpenError::DataLength { .. })));
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
    let mut disk = create_at(None, &top, 1 << 30).unwrap();
    let room = || std::fs::metadata(&top).unwrap().blocks() * 512;
    assert_eq!(room(), 0);
    write(&mut disk, 1 << 20, vec![1; 1 << 20]);
    disk.flush().unwrap();
    assert!(room() >= 1 << 20);
    disk.discard(1 << 20, 1 << 20).unwrap();
    disk.flush().unwrap();
    assert!(room() < 1 << 16, "{} bytes are left", room());
}
