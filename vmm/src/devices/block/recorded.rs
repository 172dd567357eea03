//! Files and folders in memory that remember what was done to them, to cut a run at any point.

use super::backend::{Medium, SECTOR};
use super::directory::Directory;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use vm_memory::VolatileSlice;

/// What was done, in order, to all files and folders.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<Past>>);

#[derive(Debug, Default)]
struct Past {
    events: Vec<Event>,
    ids: usize,
}

#[derive(Clone, Debug)]
enum Event {
    File(usize, Step),
    Folder(usize, Entry),
}

/// What was done to a file.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Length(u64),
    Sync,
}

/// What was done to a folder.
#[derive(Clone, Debug)]
enum Entry {
    Put(String, usize),
    Rename(String, String, usize),
    Remove(String),
    Sync,
}

impl World {
    /// How much was done.
    pub fn len(&self) -> usize {
        self.0.lock().unwrap().events.len()
    }

    /// A new, empty file.
    pub fn file(&self) -> Recorded {
        Recorded { id: self.id(), bytes: Arc::default(), world: self.clone() }
    }

    /// A new, empty folder.
    pub fn folder(&self) -> RecordedFolder {
        RecordedFolder { id: self.id(), names: Arc::default(), world: self.clone() }
    }

    fn id(&self) -> usize {
        let mut past = self.0.lock().unwrap();
        past.ids += 1;
        past.ids
    }

    fn add(&self, event: Event) {
        self.0.lock().unwrap().events.push(event);
    }

    /// What is left of a file when the host loses power after `cut_at` events: all that was synced; of what came
    /// later each step, or single sectors of it, or nothing, by the bits of `luck`.
    pub fn survivor(&self, id: usize, cut_at: usize, luck: &[u8]) -> Vec<u8> {
        let past = self.0.lock().unwrap();
        let own = past.events[..cut_at].iter().filter_map(|event| match event {
            Event::File(file, step) if *file == id => Some(step),
            Event::File(..) | Event::Folder(..) => None,
        });
        survivors(&own.collect::<Vec<_>>(), luck)
    }

    /// The same of the folders, with their files, in a new world in which they stand synced. Of names that were
    /// changed since a folder's last sync, each change is left or lost.
    pub fn folders(&self, ids: &[usize], cut_at: usize, luck: &[u8]) -> Vec<RecordedFolder> {
        let world = World::default();
        let mut files = BTreeMap::new();
        let mut left = Vec::new();
        for id in ids {
            let folder = world.folder();
            for (name, file) in self.names(*id, cut_at, luck) {
                let recorded = files.entry(file).or_insert_with(|| {
                    let recorded = world.file();
                    recorded.step(Step::Write(0, self.survivor(file, cut_at, luck)));
                    recorded.step(Step::Sync);
                    recorded
                });
                folder.put(&name, recorded.clone());
            }
            folder.sync().unwrap();
            left.push(folder);
        }
        left
    }

    fn names(&self, id: usize, cut_at: usize, luck: &[u8]) -> BTreeMap<String, usize> {
        let past = self.0.lock().unwrap();
        let own = past.events[..cut_at].iter().filter_map(|event| match event {
            Event::Folder(folder, entry) if *folder == id => Some(entry),
            Event::File(..) | Event::Folder(..) => None,
        });
        let own: Vec<&Entry> = own.collect();
        let synced = own.iter().rposition(|entry| matches!(entry, Entry::Sync)).map_or(0, |at| at + 1);
        let mut names = BTreeMap::new();
        for (n, entry) in own.iter().enumerate() {
            if n >= synced && luck[n % luck.len()] & 1 == 0 {
                continue;
            }
            match entry {
                Entry::Put(name, file) => drop(names.insert(name.clone(), *file)),
                Entry::Rename(from, to, file) => {
                    names.remove(from);
                    names.insert(to.clone(), *file);
                }
                Entry::Remove(name) => drop(names.remove(name)),
                Entry::Sync => {}
            }
        }
        names
    }
}

/// A file in memory.
#[derive(Clone, Debug)]
pub struct Recorded {
    id: usize,
    bytes: Arc<Mutex<Vec<u8>>>,
    world: World,
}

impl Recorded {
    /// A file with these bytes, alone in its world.
    pub fn of(bytes: Vec<u8>) -> Self {
        let file = World::default().file();
        *file.bytes.lock().unwrap() = bytes;
        file
    }

    /// By which the world knows it.
    pub fn id(&self) -> usize {
        self.id
    }

    fn step(&self, step: Step) {
        apply(&mut self.bytes.lock().unwrap(), &step);
        self.world.add(Event::File(self.id, step));
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

fn survivors(own: &[&Step], luck: &[u8]) -> Vec<u8> {
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
            Step::Write(..) | Step::Zero(..) | Step::Length(_) | Step::Sync
                if n >= synced && luck & 3 == 0 => {}
            step => apply(&mut file, step),
        }
    }
    file
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
        bytes.truncate(bytes.len().min(6 * 4096 + 100));
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

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step(Step::Length(len));
        Ok(())
    }
}

/// A folder in memory.
#[derive(Clone, Debug)]
pub struct RecordedFolder {
    id: usize,
    names: Arc<Mutex<BTreeMap<String, Recorded>>>,
    world: World,
}

impl RecordedFolder {
    /// By which the world knows it.
    pub fn id(&self) -> usize {
        self.id
    }

    fn put(&self, name: &str, file: Recorded) {
        self.world.add(Event::Folder(self.id, Entry::Put(name.to_owned(), file.id)));
        self.names.lock().unwrap().insert(name.to_owned(), file);
    }
}

impl Directory for RecordedFolder {
    type File = Recorded;

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.names.lock().unwrap().keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Recorded> {
        if self.names.lock().unwrap().contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = self.world.file();
        self.put(name, file.clone());
        Ok(file)
    }

    fn open(&self, name: &str, _write: bool) -> io::Result<Recorded> {
        self.names.lock().unwrap().get(name).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names.lock().unwrap();
        let file = names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.world.add(Event::Folder(self.id, Entry::Rename(from.to_owned(), to.to_owned(), file.id)));
        names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.world.add(Event::Folder(self.id, Entry::Remove(name.to_owned())));
        self.names.lock().unwrap().remove(name);
        Ok(())
    }

    fn link(&self, name: &str, other: &Self) -> io::Result<()> {
        let file = self.open(name, false)?;
        if other.names.lock().unwrap().contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        other.put(name, file);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.world.add(Event::Folder(self.id, Entry::Sync));
        Ok(())
    }
}
