//! Disks, copies and clones against models in memory, and cut off at any point.

use super::*;
use crate::devices::block::allocation::GRAIN;
use crate::devices::block::backend::{DiskBackend as _, Medium, SECTOR};
use crate::devices::block::manifest::MANIFEST;
use crate::devices::block::recorded::{Recorded, RecordedFolder, World};
use proptest::prelude::*;
use std::collections::HashSet;
use std::path::PathBuf;
use vm_memory::VolatileSlice;

/// Neither is a multiple of the grain.
const BASE: u64 = 5 * GRAIN + 1000;
const CAPACITY: u64 = 12 * GRAIN + 3 * SECTOR;
/// By which a disk grows at once.
const GROWTH: u64 = 2 * GRAIN + SECTOR;
/// The smallest disk's sectors, in which all writes of the tests lie but those that follow a growth.
const SECTORS: u64 = CAPACITY / SECTOR;

#[derive(Clone, Debug)]
enum Change {
    Write(u8),
    Discard,
    Zero { unmap: bool },
}

#[derive(Clone, Debug)]
enum Operation {
    /// Of `sectors` from `sector` on.
    Change(Change, u64, u64),
    Flush,
    Prepare,
    Switch,
    Settle,
    /// A copy of the last seal.
    Link,
    /// All three steps of a seal, and a copy.
    Snapshot,
    Merge,
    Reopen,
    /// Closed and opened larger.
    Grow,
    /// Larger while it is in use.
    GrowInUse,
    /// A disk from a copy, or from the closed disk itself.
    Clone {
        copy: Option<prop::sample::Index>,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    let change = prop_oneof![
        4 => (1u8..).prop_map(Change::Write),
        1 => Just(Change::Discard),
        1 => any::<bool>().prop_map(|unmap| Change::Zero { unmap }),
    ];
    let span = (0..SECTORS).prop_flat_map(|sector| (Just(sector), 1..=(SECTORS - sector).min(40)));
    prop_oneof![
        10 => (change, span).prop_map(|(change, (at, len))| Operation::Change(change, at, len)),
        3 => Just(Operation::Flush),
        3 => Just(Operation::Prepare),
        3 => Just(Operation::Switch),
        2 => Just(Operation::Settle),
        2 => Just(Operation::Link),
        3 => Just(Operation::Snapshot),
        1 => Just(Operation::Merge),
        2 => Just(Operation::Reopen),
        1 => Just(Operation::Grow),
        1 => Just(Operation::GrowInUse),
        2 => prop::option::of(any::<prop::sample::Index>()).prop_map(|copy| Operation::Clone { copy }),
    ]
}

fn base_bytes() -> Vec<u8> {
    (0..BASE).map(|n| 0x80 | (n / 512) as u8).collect()
}

fn read<M: Medium>(disk: &mut SharedDisk<M>) -> Vec<u8> {
    let mut bytes = vec![0xee; disk.capacity() as usize];
    let (left, right) = bytes.split_at_mut(3000);
    disk.read_at(0, &[VolatileSlice::from(left), VolatileSlice::from(right)]).unwrap();
    bytes
}

fn write<M: Medium>(disk: &mut SharedDisk<M>, offset: u64, len: u64, byte: u8) {
    let mut bytes = vec![byte; len as usize];
    disk.write_at(offset, &[VolatileSlice::from(bytes.as_mut_slice())]).unwrap();
}

fn change<M: Medium>(disk: &mut SharedDisk<M>, model: &mut [u8], change: &Change, sector: u64, sectors: u64) {
    let (at, len) = (sector * SECTOR, sectors * SECTOR);
    match change {
        Change::Write(byte) => {
            write(disk, at, len, *byte);
            model[at as usize..(at + len) as usize].fill(*byte);
        }
        Change::Zero { unmap } => {
            disk.write_zeroes(at, len, *unmap).unwrap();
            model[at as usize..(at + len) as usize].fill(0);
        }
        Change::Discard => {
            disk.discard(at, len).unwrap();
            // Whole grains of it.
            let (first, end) = (at.next_multiple_of(GRAIN), at + len);
            let last = if end == model.len() as u64 { end } else { end - end % GRAIN };
            if first < last {
                model[first as usize..last as usize].fill(0);
            }
        }
    }
}

/// Where folders come from: the host's file system, or a recorded one.
trait Place {
    type Folder: Directory<File = Self::File>;
    type File: Medium;
    fn base(&self) -> Self::File;
    fn folder(&mut self) -> usize;
    fn get(&self, folder: usize) -> Self::Folder;
}

struct Host(tempfile::TempDir, usize);

impl Place for Host {
    type Folder = HostDirectory;
    type File = File;

    fn base(&self) -> File {
        let path = self.0.path().join("base");
        if !path.exists() {
            std::fs::write(&path, base_bytes()).unwrap();
        }
        File::open(path).unwrap()
    }

    fn folder(&mut self) -> usize {
        self.1 += 1;
        HostDirectory::make(&self.0.path().join(self.1.to_string())).unwrap();
        self.1
    }

    fn get(&self, folder: usize) -> HostDirectory {
        HostDirectory::open(&self.0.path().join(folder.to_string())).unwrap()
    }
}

#[derive(Default)]
struct Memory(World, Vec<RecordedFolder>);

impl Place for Memory {
    type Folder = RecordedFolder;
    type File = Recorded;

    fn base(&self) -> Recorded {
        Recorded::of(base_bytes())
    }

    fn folder(&mut self) -> usize {
        self.1.push(self.0.folder());
        self.1.len() - 1
    }

    fn get(&self, folder: usize) -> RecordedFolder {
        self.1[folder].clone()
    }
}

/// A disk in use, its copies, and what they should be.
struct Run<P: Place> {
    place: P,
    home: usize,
    disk: Option<DiskFolder<P::Folder>>,
    model: Vec<u8>,
    /// What it was at the last switch; none before the first and after a reopening.
    sealed: Option<Vec<u8>>,
    /// Folders and contents of complete copies.
    copies: Vec<(usize, Vec<u8>)>,
}

impl<P: Place> Run<P> {
    fn new(mut place: P) -> Self {
        let home = place.folder();
        let mut model = base_bytes();
        model.resize(CAPACITY as usize, 0);
        let mut run = Self { place, home, disk: None, model, sealed: None, copies: Vec::new() };
        run.open();
        run
    }

    fn open(&mut self) {
        let base = Some(self.place.base());
        let capacity = self.model.len() as u64;
        self.disk = None;
        self.disk = Some(DiskFolder::open_in(self.place.get(self.home), base, capacity).unwrap());
        self.sealed = None;
    }

    fn disk(&mut self) -> &mut DiskFolder<P::Folder> {
        self.disk.as_mut().unwrap()
    }

    fn switch(&mut self) {
        if self.disk().prepared.is_none() {
            assert!(matches!(self.disk().switch(), Err(FolderError::NotPrepared)));
            return;
        }
        self.disk().switch().unwrap();
        self.sealed = Some(self.model.clone());
    }

    fn link(&mut self) {
        let to = self.place.folder();
        let to_folder = self.place.get(to);
        if self.disk().prepared.is_some() {
            assert!(matches!(self.disk().link_to(&to_folder), Err(FolderError::Unsealed)));
        } else if let Some(sealed) = self.sealed.clone() {
            self.disk().link_to(&to_folder).unwrap();
            self.copies.push((to, sealed));
        }
    }

    /// Makes a disk from a copy, or from the disk itself, and leaves it changed; returns what it was.
    fn clone_of(&mut self, copy: Option<prop::sample::Index>) {
        let (from, content) = match copy {
            Some(copy) if !self.copies.is_empty() => copy.get(&self.copies).clone(),
            Some(_) | None => {
                self.disk = None;
                (self.home, self.model.clone())
            }
        };
        let to = self.place.folder();
        clone_between(&self.place.get(from), &self.place.get(to)).unwrap();
        let base = Some(self.place.base());
        let clone = DiskFolder::open_in(self.place.get(to), base, content.len() as u64).unwrap();
        assert!(read(&mut clone.disk()) == content, "clone of {from}");
        write(&mut clone.disk(), 0, CAPACITY, 0xcc);
        if self.disk.is_none() {
            self.open();
        }
    }

    fn step(&mut self, operation: &Operation) {
        match operation {
            Operation::Change(what, sector, sectors) => {
                let mut disk = self.disk().disk();
                change(&mut disk, &mut self.model, what, *sector, *sectors);
            }
            Operation::Flush => self.disk().disk().flush().unwrap(),
            Operation::Prepare => self.disk().prepare_seal().unwrap(),
            Operation::Switch => self.switch(),
            Operation::Settle => self.disk().settle().unwrap(),
            Operation::Link => self.link(),
            Operation::Snapshot => {
                self.disk().prepare_seal().unwrap();
                self.switch();
                self.link();
            }
            Operation::Merge => self.disk().merge().unwrap(),
            Operation::Reopen => self.open(),
            Operation::Grow => {
                self.model.resize(self.model.len() + GROWTH as usize, 0);
                self.open();
            }
            Operation::GrowInUse => {
                self.model.resize(self.model.len() + GROWTH as usize, 0);
                let capacity = self.model.len() as u64;
                self.disk().grow(capacity).unwrap();
                self.sealed = Some(self.model.clone());
            }
            Operation::Clone { copy } => self.clone_of(*copy),
        }
    }

    /// What a copy shows to a disk that is made from it.
    fn check_copies(&mut self) {
        for (copy, content) in self.copies.clone() {
            let to = self.place.folder();
            clone_between(&self.place.get(copy), &self.place.get(to)).unwrap();
            let base = Some(self.place.base());
            let disk = DiskFolder::open_in(self.place.get(to), base, content.len() as u64).unwrap();
            assert!(read(&mut disk.disk()) == content, "copy {copy}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn disks_copies_and_clones_are_what_was_written_to_them(
        operations in prop::collection::vec(operation(), 1..50),
    ) {
        let mut run = Run::new(Host(tempfile::tempdir().unwrap(), 0));
        for operation in &operations {
            run.step(operation);
            prop_assert!(read(&mut run.disk().disk()) == run.model, "after {:?}", operation);
        }
        run.open();
        prop_assert!(read(&mut run.disk().disk()) == run.model);
        // A copy outlives the folder that it came from.
        run.disk = None;
        std::fs::remove_dir_all(run.place.0.path().join(run.home.to_string())).unwrap();
        run.check_copies();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(384))]

    /// Each sector is what it was at the last flush that succeeded, or something written to it since; and complete
    /// copies are what they were at their seal.
    #[test]
    fn nothing_flushed_is_lost_by_a_crash_at_any_point(
        operations in prop::collection::vec(operation(), 1..30),
        cut_at in any::<prop::sample::Index>(),
        luck in prop::collection::vec(any::<u8>(), 97),
    ) {
        let mut run = Run::new(Memory::default());
        let world = run.place.0.clone();
        let created = world.len();
        // For each operation: how much was done before and after it, whether all before it is durable, the disk, and
        // how many copies are complete.
        let mut history = vec![(0, created, true, run.model.clone(), 0)];
        for operation in &operations {
            let before = world.len();
            run.step(operation);
            let flushed = matches!(
                operation,
                Operation::Flush | Operation::Reopen | Operation::Grow | Operation::GrowInUse
            );
            history.push((before, world.len(), flushed, run.model.clone(), run.copies.len()));
        }
        let cut_at = created + cut_at.index(world.len() - created + 1);
        let flushed = history.iter().rposition(|(_, after, flush, ..)| *flush && *after <= cut_at).unwrap();
        let possible: Vec<&Vec<u8>> = history[flushed..]
            .iter()
            .enumerate()
            .filter(|(n, (before, ..))| *n == 0 || *before < cut_at)
            .map(|(_, (_, _, _, model, _))| model)
            .collect();
        let complete = history.iter().filter(|(_, after, ..)| *after <= cut_at).map(|h| h.4).max().unwrap();

        let ids: Vec<usize> = run.place.1.iter().map(RecordedFolder::id).collect();
        let folders = world.folders(&ids, cut_at, &luck);
        let capacity = possible.iter().map(|model| model.len()).max().unwrap();
        let open = || DiskFolder::open_in(folders[run.home].clone(), Some(run.place.base()), capacity as u64);
        let disk = open().unwrap();
        let found = read(&mut disk.disk());
        for (n, sector) in found.chunks(SECTOR as usize).enumerate() {
            let at = n * SECTOR as usize..(n + 1) * SECTOR as usize;
            let zeros = [0; SECTOR as usize];
            let allowed: HashSet<&[u8]> =
                possible.iter().map(|model| model.get(at.clone()).unwrap_or(&zeros)).collect();
            prop_assert!(allowed.contains(sector), "sector {} is {:?}", n, &sector[..1]);
        }
        // It is a whole disk again.
        write(&mut disk.disk(), GRAIN, 3 * GRAIN, 0xdd);
        let expected = read(&mut disk.disk());
        drop(disk);
        let mut again = open().unwrap();
        prop_assert!(read(&mut again.disk()) == expected);
        again.prepare_seal().unwrap();
        again.switch().unwrap();
        again.merge().unwrap();
        prop_assert!(read(&mut again.disk()) == expected);

        for (copy, content) in &run.copies[..complete] {
            let to = World::default().folder();
            clone_between(&folders[*copy], &to).unwrap();
            let disk = DiskFolder::open_in(to, Some(run.place.base()), content.len() as u64).unwrap();
            prop_assert!(&read(&mut disk.disk()) == content, "copy {}", copy);
        }
        // What is not complete is refused or complete after all, and can be made again in the same place.
        for (copy, content) in &run.copies[complete..] {
            let to = World::default().folder();
            match clone_between(&folders[*copy], &to) {
                Err(FolderError::NoManifest) => {}
                result => {
                    result.unwrap();
                    let disk = DiskFolder::open_in(to, Some(run.place.base()), content.len() as u64).unwrap();
                    prop_assert!(&read(&mut disk.disk()) == content, "copy {}", copy);
                }
            }
            again.link_to(&folders[*copy]).unwrap();
        }
    }
}

/// A folder for a disk, with room for others beside it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("vm");
    std::fs::create_dir(&folder).unwrap();
    (parent, folder)
}

fn seal(disk: &mut DiskFolder) {
    disk.prepare_seal().unwrap();
    disk.switch().unwrap();
    disk.settle().unwrap();
}

fn layer_files(folder: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| layer_of(path.file_name().unwrap().to_str().unwrap()).is_some()).collect()
}

#[test]
fn clones_of_one_copy_diverge() {
    let (parent, folder) = place();
    let mut disk = DiskFolder::open(&folder, None, CAPACITY).unwrap();
    write(&mut disk.disk(), 0, GRAIN, 1);
    seal(&mut disk);
    write(&mut disk.disk(), 0, SECTOR, 2);
    let copy = parent.path().join("copy");
    disk.settle().unwrap();
    clone_sealed(&folder, &copy).unwrap();
    let clones = ["a", "b"].map(|name| {
        let to = parent.path().join(name);
        // Again over a disk that is in use there: it is made anew.
        clone_folder(&copy, &to).unwrap();
        write(&mut DiskFolder::open(&to, None, CAPACITY).unwrap().disk(), 0, GRAIN, 9);
        clone_folder(&copy, &to).unwrap();
        DiskFolder::open(&to, None, CAPACITY).unwrap().disk()
    });
    let [mut a, mut b] = clones;
    write(&mut a, SECTOR, SECTOR, 3);
    write(&mut b, SECTOR, SECTOR, 4);
    let firsts = |disk: &mut SharedDisk| [0, 512, 1024].map(|at| read(disk)[at]);
    assert_eq!(firsts(&mut disk.disk()), [2, 1, 1]);
    assert_eq!(firsts(&mut a), [1, 3, 1]);
    assert_eq!(firsts(&mut b), [1, 4, 1]);
    assert!(matches!(clone_folder(&copy, &copy), Err(FolderError::Same)));
}

#[test]
fn a_damaged_manifest_is_an_error() {
    let (_parent, folder) = place();
    let mut disk = DiskFolder::open(&folder, None, CAPACITY).unwrap();
    write(&mut disk.disk(), 0, GRAIN, 1);
    seal(&mut disk);
    drop(disk);
    let path = folder.join(MANIFEST);
    let whole = std::fs::read(&path).unwrap();
    let open = || DiskFolder::open(&folder, None, CAPACITY);
    for at in 0..whole.len() {
        for flip in [0x01, 0x20, 0x80] {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            std::fs::write(&path, &bytes).unwrap();
            // Blanks may be others.
            let same = serde_json::from_slice::<serde_json::Value>(&bytes).ok()
                == serde_json::from_slice(&whole).ok();
            if !same {
                assert!(
                    matches!(open(), Err(FolderError::Manifest(_))),
                    "{}",
                    String::from_utf8_lossy(&bytes)
                );
            }
        }
    }
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(open(), Err(FolderError::Manifest(ManifestError::Form(_)))));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open(), Err(FolderError::NoManifest)));
    assert_eq!(layer_files(&folder).len(), 4, "nothing was removed");
    std::fs::write(&path, &whole).unwrap();
    assert_eq!(read(&mut open().unwrap().disk())[0], 1);
}

#[test]
fn names_in_a_manifest_are_names_of_layers() {
    let (_parent, folder) = place();
    drop(DiskFolder::open(&folder, None, CAPACITY).unwrap());
    let directory = HostDirectory::open(&folder).unwrap();
    let good = Manifest::read(&directory).unwrap().unwrap();
    let top = good.top.clone().unwrap();
    let upper = top.to_uppercase();
    for name in ["", "../../etc/shadow", "layer-1", "disk.json", &map_of(&top), &upper, &top] {
        Manifest { layers: vec![name.to_owned()], ..good.clone() }.stage(&directory).unwrap();
        Manifest::publish(&directory).unwrap();
        let open = DiskFolder::open(&folder, None, CAPACITY);
        assert!(matches!(open, Err(FolderError::Manifest(ManifestError::Damaged(_)))), "{name}");
    }
}

#[test]
fn a_missing_or_shortened_layer_is_an_error() {
    let (_parent, folder) = place();
    let mut disk = DiskFolder::open(&folder, None, CAPACITY).unwrap();
    for grain in 0..3 {
        write(&mut disk.disk(), grain * GRAIN, GRAIN, 1);
        disk.disk().flush().unwrap();
        seal(&mut disk);
    }
    let lowest = folder.join(&disk.manifest.layers[0]);
    drop(disk);
    let open = || DiskFolder::open(&folder, None, CAPACITY);
    let map = folder.join(map_of(lowest.file_name().unwrap().to_str().unwrap()));
    let whole = std::fs::read(&map).unwrap();
    for len in [0, 20, 4096, whole.len() - 33, whole.len() - 32, whole.len() - 1] {
        std::fs::write(&map, &whole[..len]).unwrap();
        assert!(matches!(open(), Err(FolderError::Layer { .. })), "{len} bytes");
    }
    for more in [&[0][..], &whole[4096..], &[0; 64]] {
        std::fs::write(&map, [&whole, more].concat()).unwrap();
        assert!(matches!(open(), Err(FolderError::Layer { .. })), "{} bytes more", more.len());
    }
    std::fs::write(&map, &whole).unwrap();
    let away = folder.join("away");
    for file in [&map, &lowest] {
        std::fs::rename(file, &away).unwrap();
        assert!(matches!(open(), Err(FolderError::File { operation: "open", .. })));
        std::os::unix::fs::symlink(&away, file).unwrap();
        assert!(matches!(open(), Err(FolderError::File { operation: "open", .. })), "a link is no layer");
        std::fs::rename(&away, file).unwrap();
    }
    File::options().write(true).open(&lowest).unwrap().set_len(CAPACITY - SECTOR).unwrap();
    let short = open();
    assert!(matches!(short, Err(FolderError::Layer { source: DiskOpenError::DataLength { .. }, .. })));
    File::options().write(true).open(&lowest).unwrap().set_len(CAPACITY).unwrap();
    assert_eq!(read(&mut open().unwrap().disk())[2 * GRAIN as usize], 1);
}

#[test]
fn a_disk_keeps_its_base_and_never_shrinks() {
    let (parent, folder) = place();
    let path = parent.path().join("base");
    std::fs::write(&path, base_bytes()).unwrap();
    let open = |capacity| DiskFolder::open(&folder, Some(File::open(&path).unwrap()), capacity);
    assert!(matches!(open(BASE - BASE % SECTOR), Err(FolderError::TooSmall { least: BASE, .. })));
    drop(open(CAPACITY).unwrap());
    drop(open(CAPACITY + GROWTH).unwrap());
    let small = open(CAPACITY);
    assert!(matches!(small, Err(FolderError::TooSmall { least, .. }) if least == CAPACITY + GROWTH));
    let none = DiskFolder::open(&folder, None, CAPACITY + GROWTH);
    assert!(matches!(none, Err(FolderError::BaseLength { expected: BASE, found: 0 })));
}

#[test]
fn many_seals_merge_at_the_bound_and_leave_no_file_behind() {
    let (_parent, folder) = place();
    let mut disk = DiskFolder::open(&folder, None, CAPACITY).unwrap();
    let mut deepest = 0;
    for n in 0..2 * MAX_LAYERS as u64 + 5 {
        write(&mut disk.disk(), n % 24 * SECTOR, SECTOR, n as u8 + 1);
        seal(&mut disk);
        let stats = disk.stats().unwrap();
        deepest = deepest.max(stats.layers);
        assert!(stats.layers <= MAX_LAYERS && stats.layer_bytes > 0 && stats.top_bytes == 0, "{stats:?}");
        assert_eq!(layer_files(&folder).len(), 2 * stats.layers + 2);
    }
    assert_eq!(deepest, MAX_LAYERS);
    let expected = read(&mut disk.disk());
    drop(disk);
    assert!(read(&mut DiskFolder::open(&folder, None, CAPACITY).unwrap().disk()) == expected);
}

#[test]
fn leftovers_go_when_the_disk_is_opened_and_other_files_stay() {
    let (_parent, folder) = place();
    drop(DiskFolder::open(&folder, None, CAPACITY).unwrap());
    let leftover = folder.join(fresh_name().unwrap());
    for path in [leftover.clone(), folder.join(map_of(leftover.to_str().unwrap())), folder.join("layer-mine")]
    {
        std::fs::write(path, b"something").unwrap();
    }
    drop(DiskFolder::open(&folder, None, CAPACITY).unwrap());
    assert_eq!(layer_files(&folder).len(), 2);
    assert!(folder.join("layer-mine").exists());
}

#[test]
fn merging_hides_the_base_under_zeros_and_takes_no_room_for_them() {
    let (parent, folder) = place();
    let path = parent.path().join("base");
    std::fs::write(&path, vec![7; 4 << 20]).unwrap();
    let mut disk = DiskFolder::open(&folder, Some(File::open(&path).unwrap()), 16 << 20).unwrap();
    write(&mut disk.disk(), 0, 8 << 20, 1);
    seal(&mut disk);
    disk.disk().discard(GRAIN, (8 << 20) - GRAIN).unwrap();
    seal(&mut disk);
    assert!(disk.stats().unwrap().layer_bytes >= 8 << 20);
    disk.merge().unwrap();
    let stats = disk.stats().unwrap();
    assert!(stats.layers == 1 && stats.layer_bytes <= 64 << 10, "{stats:?}");
    let mut expected = vec![0; 16 << 20];
    expected[..GRAIN as usize].fill(1);
    assert!(read(&mut disk.disk()) == expected);
}

#[test]
fn a_flush_between_switch_and_settle_makes_the_old_top_durable() {
    let mut run = Run::new(Memory::default());
    let world = run.place.0.clone();
    let mut disk = run.disk().disk();
    write(&mut disk, 0, GRAIN, 1);
    run.disk().prepare_seal().unwrap();
    write(&mut disk, GRAIN, GRAIN, 2);
    let before = world.len();
    run.disk().switch().unwrap();
    assert_eq!(world.len(), before, "a switch does no I/O");
    disk.flush().unwrap();
    let flushed = world.len();
    run.disk().settle().unwrap();
    assert_eq!(world.len(), flushed, "nothing is left to settle");
    // Of what was not synced, nothing is left.
    let left = world.folders(&[run.place.1[0].id()], flushed, &[0]).remove(0);
    let again = DiskFolder::open_in(left, Some(run.place.base()), CAPACITY).unwrap();
    assert_eq!([0, GRAIN as usize].map(|at| read(&mut again.disk())[at]), [1, 2]);
}

/// A disk that is replaced by a clone is the old one, none, or the new one at any point, and the new one after another
/// try.
#[test]
fn a_clone_that_replaces_a_disk_can_be_cut_off_and_repeated() {
    let mut run = Run::new(Memory::default());
    let world = run.place.0.clone();
    let mut contents = Vec::new();
    for byte in [1, 2] {
        write(&mut run.disk().disk(), 0, GRAIN, byte);
        run.step(&Operation::Snapshot);
        contents.push(read(&mut run.disk().disk()));
    }
    let [old, new] = [0, 1].map(|n| run.place.get(run.copies[n].0));
    let to = run.place.folder();
    let to = run.place.get(to);
    clone_between(&old, &to).unwrap();
    let (before, capacity) = (world.len(), CAPACITY);
    clone_between(&new, &to).unwrap();
    let mut fresh = base_bytes();
    fresh.resize(CAPACITY as usize, 0);
    contents.push(fresh);
    for (cut_at, luck) in (before..=world.len()).flat_map(|cut_at| (0..8u8).map(move |luck| (cut_at, luck))) {
        let luck = [luck & 1, luck >> 1 & 1, luck >> 2].map(|bit| bit * 3);
        let left = || world.folders(&[to.id(), new.id()], cut_at, &luck);
        match DiskFolder::open_in(left().remove(0), Some(run.place.base()), capacity) {
            Ok(disk) => assert!(contents.contains(&read(&mut disk.disk()))),
            Err(error) => assert!(matches!(error, FolderError::NoManifest), "cut at {cut_at}: {error:?}"),
        }
        let folders = left();
        clone_between(&folders[1], &folders[0]).unwrap();
        let disk = DiskFolder::open_in(folders[0].clone(), Some(run.place.base()), capacity).unwrap();
        assert!(read(&mut disk.disk()) == contents[1]);
    }
}

#[test]
fn an_abandoned_disk_writes_nothing() {
    let mut run = Run::new(Memory::default());
    let world = run.place.0.clone();
    write(&mut run.disk().disk(), 0, GRAIN, 1);
    run.disk().abandon();
    let before = world.len();
    run.disk = None;
    assert_eq!(world.len(), before);
}

/// The guest goes on writing and flushing in its own thread while the disk is sealed, copied and merged.
#[test]
fn a_disk_in_use_is_sealed_and_merged() {
    let (parent, folder) = place();
    let mut disk = DiskFolder::open(&folder, None, 64 * GRAIN).unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let mut guest = disk.disk();
    let writer = std::thread::spawn(move || {
        let mut rounds = 0u64;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) || rounds < 64 {
            write(&mut guest, rounds % 64 * GRAIN, GRAIN, rounds as u8);
            if rounds.is_multiple_of(5) {
                guest.flush().unwrap();
            }
            rounds += 1;
        }
        rounds
    });
    for n in 0..12 {
        disk.prepare_seal().unwrap();
        disk.switch().unwrap();
        disk.settle().unwrap();
        clone_sealed(&folder, &parent.path().join(n.to_string())).unwrap();
        if n % 4 == 3 {
            disk.merge().unwrap();
        }
    }
    stop.send(()).unwrap();
    let rounds = writer.join().unwrap();
    let found = read(&mut disk.disk());
    for round in rounds - 64..rounds {
        assert_eq!(found[(round % 64 * GRAIN) as usize], round as u8);
    }
}

#[test]
fn a_disk_grows_in_use_and_never_shrinks() {
    let (parent, folder) = place();
    let mut disk = DiskFolder::open(&folder, None, CAPACITY).unwrap();
    let mut used = disk.disk();
    write(&mut used, 0, GRAIN, 1);
    // A seal that was given up: its top has the old size.
    disk.prepare_seal().unwrap();
    let larger = CAPACITY + GROWTH;
    disk.grow(larger).unwrap();
    assert_eq!((used.capacity(), read(&mut used)[0]), (larger, 1));
    write(&mut used, larger - SECTOR, SECTOR, 2);
    used.flush().unwrap();
    disk.grow(larger).unwrap();
    assert_eq!(
        layer_files(&folder).len(),
        6,
        "two sealed layers and a top: the same size again is no growth"
    );
    let shrunk = disk.grow(CAPACITY);
    assert!(matches!(shrunk, Err(FolderError::TooSmall { asked: CAPACITY, least }) if least == larger));
    seal(&mut disk);
    let copy = parent.path().join("copy");
    disk.settle().unwrap();
    clone_sealed(&folder, &copy).unwrap();
    drop((disk, used));
    for folder in [&folder, &copy] {
        assert!(matches!(DiskFolder::open(folder, None, CAPACITY), Err(FolderError::TooSmall { .. })));
        let disk = DiskFolder::open(folder, None, larger).unwrap();
        let bytes = read(&mut disk.disk());
        assert_eq!((bytes[0], bytes[bytes.len() - 1]), (1, 2));
    }
}
