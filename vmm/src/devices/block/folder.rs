//! A VM's disk in its folder: many sealed layers, one top, and a manifest that names them.
//!
//! ```text
//! disk.json                     capacity, base's length, sealed layers bottom to top, top; replaced whole
//! layer-<32 hexadecimal digits>       data
//! layer-<32 hexadecimal digits>.map   which grains of it count
//! ```
//!
//! A seal has three steps, so that the guest is paused for the second alone, which does no I/O:
//!
//! ```text
//!            prepare_seal            switch             settle, or the guest's flush
//! written:   top ────────────► top ──────────► new top ───────────► new top
//! manifest:  ..., top          ..., top│new top                     (the same)
//! old top:                                     read, not durable    durable and ended: a sealed layer
//! ```
//! After `prepare_seal` the manifest calls the top a sealed layer already, with an empty top above it: whoever reads
//! both reads the same. So a crash at any point loses nothing that was flushed, and a seal that is not wanted any
//! more needs no undoing: it stays prepared for the next. When a disk is opened, the uppermost sealed layer may be one
//! that is not ended; it is ended then.
//!
//! A copy is a folder with hard links to the sealed layers and a manifest without a top. Hard links are the reference
//! counts: the file system keeps a layer as long as any folder names it, over crashes too, and nothing else counts.
//! (ext4 allows 65,000 of them for one file, so as many copies of one layer.) All folders lie in one file system.
//!
//! Files of the form of a layer that the manifest does not name are what a crash left; they are removed when the
//! disk is opened. Where they hold data and there is no manifest, the disk is refused: a copy that was not finished,
//! or a lost manifest, must not become an empty disk.

use super::allocation::MapError;
use super::backend::DiskError;
use super::directory::{Directory, HostDirectory};
use super::layered::{DiskOpenError, LayeredDisk, Stack, measure};
use super::manifest::{Manifest, ManifestError, fresh_name, layer_of, map_of};
use super::merge;
use super::shared::SharedDisk;
use super::top::{Top, lock};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use thiserror::Error;

/// Most sealed layers of a disk. Each holds a descriptor and is read when the disk is opened, within a wake; to merge
/// them copies all that was written since the base, which should be rare.
pub const MAX_LAYERS: usize = 32;

/// Why a disk's folder does not do what was asked.
#[derive(Debug, Error)]
pub enum FolderError {
    /// The folder itself.
    #[error("cannot {operation} the disk's folder")]
    Directory {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file of a layer.
    #[error("cannot {operation} the disk's layer {name}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// The layer.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A layer is damaged or does not belong to the disk.
    #[error("the disk's layer {name} cannot be used")]
    Layer {
        /// The layer.
        name: String,
        /// Why not.
        #[source]
        source: DiskOpenError,
    },
    /// A layer has another size than the manifest allows.
    #[error("the disk's layer {name} has {found} bytes in a disk of {capacity}")]
    LayerSize {
        /// The layer.
        name: String,
        /// Its size.
        found: u64,
        /// The disk's.
        capacity: u64,
    },
    /// The manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// There is no manifest, where one is needed or layers hold data.
    #[error("the disk's folder has no manifest: it is no disk, or one that was copied by halves")]
    NoManifest,
    /// The base.
    #[error("cannot use the disk's base")]
    Base(#[source] DiskOpenError),
    /// The base is not the one that the disk was made for.
    #[error("the disk's base has {found} bytes where the disk was made for one of {expected}")]
    BaseLength {
        /// What the disk was made for.
        expected: u64,
        /// What the base has.
        found: u64,
    },
    /// The disk would be smaller than its base, or than it was.
    #[error("a disk of {asked} bytes is too small, at least {least} are needed")]
    TooSmall {
        /// What was asked for.
        asked: u64,
        /// The least.
        least: u64,
    },
    /// Reading or writing layers.
    #[error("cannot make the disk's layers durable")]
    Disk(#[source] DiskError),
    /// Nothing is prepared to switch to.
    #[error("no seal is prepared")]
    NotPrepared,
    /// The uppermost layer is still written, until a switch.
    #[error("a seal is prepared and not done")]
    Unsealed,
    /// A folder cannot be a copy of itself.
    #[error("a disk cannot be copied over itself")]
    Same,
}

/// How much a disk has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskStats {
    /// Sealed layers, 0..=[`MAX_LAYERS`].
    pub layers: usize,
    /// Bytes of the host's disk that the top takes, maps not counted.
    pub top_bytes: u64,
    /// Bytes of the host's disk that the sealed layers take, shared with copies as they may be.
    pub layer_bytes: u64,
}

/// A VM's disk with its folder. One process at a time opens it.
#[derive(Debug)]
pub struct DiskFolder<D: Directory = HostDirectory> {
    directory: D,
    manifest: Manifest,
    disk: Arc<Mutex<LayeredDisk<D::File>>>,
    /// The top that the manifest names already, until the switch to it.
    prepared: Option<Top<D::File>>,
}

impl DiskFolder {
    /// Opens the disk in `folder`, or makes one when there is none. `capacity` is in bytes; a larger one than the
    /// disk had makes it grow. Everything is durable on return.
    ///
    /// # Errors
    /// A [`FolderError`].
    pub fn open(folder: &Path, base: Option<File>, capacity: u64) -> Result<Self, FolderError> {
        let directory = HostDirectory::open(folder);
        let directory = directory.map_err(|source| FolderError::Directory { operation: "open", source })?;
        Self::open_in(directory, base, capacity)
    }
}

/// Makes `to` a disk of the sealed layers of `from`, without the top: what the disk was at its last seal, which must be
/// settled. `from` may be in use, but neither be sealed nor merged meanwhile. A disk in `to` is replaced. Durable on
/// return, and repeatable.
///
/// # Errors
/// A [`FolderError`].
pub fn clone_sealed(from: &Path, to: &Path) -> Result<(), FolderError> {
    let from = HostDirectory::open(from);
    let from = from.map_err(|source| FolderError::Directory { operation: "open", source })?;
    let manifest = Manifest::read(&from)?.ok_or(FolderError::NoManifest)?;
    let to = make(to, &from)?;
    link_layers(&from, &manifest, &to)
}

/// Makes `to` a disk of the layers of `from`, without a top: [`DiskFolder::open`] gives it one. `from` is a copy, or
/// a disk that nobody has open, whose top is then sealed. A disk in `to` is replaced, whole or not, so this can be
/// repeated after a crash. Durable on return.
///
/// # Errors
/// A [`FolderError`].
pub fn clone_folder(from: &Path, to: &Path) -> Result<(), FolderError> {
    let from = HostDirectory::open(from);
    let from = from.map_err(|source| FolderError::Directory { operation: "open", source })?;
    let to = make(to, &from)?;
    clone_between(&from, &to)
}

fn make(path: &Path, other: &HostDirectory) -> Result<HostDirectory, FolderError> {
    let failed = |operation| move |source| FolderError::Directory { operation, source };
    let made = HostDirectory::make(path).map_err(failed("make"))?;
    if made.is_same(other).map_err(failed("look at"))? { Err(FolderError::Same) } else { Ok(made) }
}

impl<D: Directory> DiskFolder<D> {
    /// [`DiskFolder::open`] in a folder that is open.
    ///
    /// # Errors
    /// A [`FolderError`].
    pub fn open_in(directory: D, base: Option<D::File>, capacity: u64) -> Result<Self, FolderError> {
        let base_len = measure(base.as_ref()).map_err(FolderError::Base)?;
        if capacity < base_len {
            return Err(FolderError::TooSmall { asked: capacity, least: base_len });
        }
        let found = Manifest::read(&directory)?;
        if found.is_none() {
            check_empty(&directory)?;
        }
        let mut manifest = found.unwrap_or_else(|| Manifest::new(capacity, base_len));
        if manifest.base_bytes != base_len {
            return Err(FolderError::BaseLength { expected: manifest.base_bytes, found: base_len });
        }
        if capacity < manifest.capacity {
            // Before anything of it is touched.
            return Err(FolderError::TooSmall { asked: capacity, least: manifest.capacity });
        }
        remove_leftovers(&directory, &manifest)?;
        finish_uppermost(&directory, &manifest)?;
        let sealed = open_layers(&directory, &manifest)?;
        let top = match &manifest.top {
            Some(name) => open_top(&directory, name, &manifest)?,
            None => {
                let (name, top) = create_top(&directory, manifest.capacity, base_len)?;
                let next = Manifest { top: Some(name), ..manifest };
                next.stage(&directory)?;
                Manifest::publish(&directory)?;
                manifest = next;
                top
            }
        };
        let disk = LayeredDisk::assemble(base, base_len, sealed, top);
        let mut folder = Self { directory, manifest, disk: Arc::new(Mutex::new(disk)), prepared: None };
        folder.grow(capacity)?;
        Ok(folder)
    }

    /// The disk, for the block device. It may be asked for again; all are the same disk.
    #[must_use]
    pub fn disk(&self) -> SharedDisk<D::File> {
        SharedDisk::new(Arc::clone(&self.disk))
    }

    /// The first step of a seal: makes the next top, durably. The disk is in use meanwhile. Merges the layers first
    /// when they are at [`MAX_LAYERS`]. Done already when a seal was prepared and not switched to.
    ///
    /// # Errors
    /// A [`FolderError`]; nothing has changed then, and it can be tried again.
    pub fn prepare_seal(&mut self) -> Result<(), FolderError> {
        self.prepare(self.manifest.capacity)
    }

    /// The second step, while nobody uses the disk: what was written is sealed, and the next top is the top. No I/O.
    /// [`Self::settle`] must follow. A pause that fails needs no undoing: whatever was prepared stays prepared.
    ///
    /// # Errors
    /// [`FolderError::NotPrepared`].
    pub fn switch(&mut self) -> Result<(), FolderError> {
        let top = self.prepared.take().ok_or(FolderError::NotPrepared)?;
        lock(&self.disk).switch(top);
        Ok(())
    }

    /// The third step, while the disk is in use again: makes durable what was sealed. Done when there is nothing to
    /// settle. A write that failed, as on a full file system, can be tried again; a sync that failed stops the disk.
    ///
    /// # Errors
    /// [`FolderError::Disk`].
    pub fn settle(&mut self) -> Result<(), FolderError> {
        let tail = lock(&self.disk).tail();
        let Some(tail) = tail else { return Ok(()) };
        // The disk is not locked while this takes its time.
        let settled = lock(&tail).settle();
        lock(&self.disk).settled(settled).map_err(FolderError::Disk)
    }

    /// Makes the disk larger, to `capacity` bytes, also while it is in use: what is there is sealed below a larger top.
    /// The manifest tells the new size, durably, before the disk does. Done when it has that size already; what an
    /// earlier attempt left unsettled is settled then.
    ///
    /// # Errors
    /// [`FolderError::TooSmall`] when it would shrink. After [`FolderError::Disk`] it has grown all the same.
    pub fn grow(&mut self, capacity: u64) -> Result<(), FolderError> {
        let least = self.manifest.capacity;
        if capacity < least {
            return Err(FolderError::TooSmall { asked: capacity, least });
        }
        if capacity > least {
            if self.prepared.is_some() {
                // Its top has the old size.
                self.switch()?;
            }
            self.prepare(capacity)?;
            self.switch()?;
        }
        self.settle()
    }

    /// Makes one layer of all sealed ones, for disks of many layers, stopped or in use. What other folders share with
    /// this one is no longer shared afterwards. Takes a buffer of [`merge::PIECE`] bytes and the new layer's map.
    ///
    /// # Errors
    /// A [`FolderError`]; the disk is what it was then.
    pub fn merge(&mut self) -> Result<(), FolderError> {
        self.settle()?;
        let (sealed, capacity) = {
            let disk = lock(&self.disk);
            (disk.sealed().clone(), self.manifest.capacity)
        };
        if sealed.depth() < 2 {
            return Ok(());
        }
        let base_len = self.manifest.base_bytes;
        let (name, mut new) = create_top(&self.directory, capacity, base_len)?;
        let copied = merge::copy(&sealed, base_len, &mut new).map_err(FolderError::Disk);
        // Between prepare and switch the top that is written stands among the manifest's sealed layers.
        let layers = std::iter::once(&name).chain(&self.manifest.layers[sealed.depth()..]);
        let next = Manifest { layers: layers.cloned().collect(), ..self.manifest.clone() };
        let staged = copied.and_then(|runs| next.stage(&self.directory).map(|()| runs).map_err(Into::into));
        let merged = self.or_remove(&name, staged)?;
        Manifest::publish(&self.directory)?;
        let gone = std::mem::replace(&mut self.manifest, next).layers;
        lock(&self.disk).replace_sealed(merged);
        for name in &gone[..sealed.depth()] {
            remove_layer(&self.directory, name);
        }
        Ok(())
    }

    /// Gives the disk up without writing anything any more, as a forked child must, whose files are its parent's.
    pub fn abandon(&self) {
        lock(&self.disk).stop();
    }

    /// How much there is. Reads the files' facts.
    ///
    /// # Errors
    /// A [`FolderError`].
    pub fn stats(&self) -> Result<DiskStats, FolderError> {
        let disk = lock(&self.disk);
        let failed = |source| FolderError::Directory { operation: "measure the files of", source };
        let (old, top_bytes) = disk.allocated().map_err(failed)?;
        let layer_bytes = old + disk.sealed().allocated().map_err(failed)?;
        let layers = disk.sealed().depth() + usize::from(disk.tail().is_some());
        Ok(DiskStats { layers, top_bytes, layer_bytes })
    }

    /// [`DiskFolder::link_into`] a folder that is open.
    ///
    /// # Errors
    /// A [`FolderError`].
    pub fn link_to(&mut self, other: &D) -> Result<(), FolderError> {
        if self.prepared.is_some() {
            return Err(FolderError::Unsealed);
        }
        self.settle()?;
        link_layers(&self.directory, &self.manifest, other)
    }

    fn prepare(&mut self, capacity: u64) -> Result<(), FolderError> {
        if self.prepared.is_some() {
            return Ok(());
        }
        self.settle()?;
        if self.manifest.layers.len() >= MAX_LAYERS {
            self.merge()?;
        }
        let (name, top) = create_top(&self.directory, capacity, self.manifest.base_bytes)?;
        let layers = self.manifest.names().cloned().collect();
        let next = Manifest { capacity, layers, top: Some(name.clone()), ..self.manifest.clone() };
        let staged = next.stage(&self.directory).map_err(Into::into);
        self.or_remove(&name, staged)?;
        Manifest::publish(&self.directory)?;
        self.manifest = next;
        self.prepared = Some(top);
        Ok(())
    }

    /// Removes a new layer that no manifest can name, when what should follow failed.
    fn or_remove<T>(&self, name: &str, result: Result<T, FolderError>) -> Result<T, FolderError> {
        if result.is_err() {
            remove_layer(&self.directory, name);
        }
        result
    }
}

/// [`clone_folder`] between folders that are open.
///
/// # Errors
/// A [`FolderError`].
pub fn clone_between<D: Directory>(from: &D, to: &D) -> Result<(), FolderError> {
    let mut manifest = Manifest::read(from)?.ok_or(FolderError::NoManifest)?;
    finish_uppermost(from, &manifest)?;
    if let Some(name) = manifest.top.take() {
        let top = open_top(from, &name, &manifest)?;
        if !top.is_empty() {
            seal_top(from, &mut manifest, name, top)?;
        }
    }
    link_layers(from, &manifest, to)
}

/// Makes the top of a disk that nobody has open a sealed layer, and gives the disk another top.
fn seal_top<D: Directory>(
    directory: &D,
    manifest: &mut Manifest,
    name: String,
    mut top: Top<D::File>,
) -> Result<(), FolderError> {
    let mut layers = std::mem::take(&mut manifest.layers);
    if layers.len() >= MAX_LAYERS {
        layers = vec![merge_layers(directory, &layers, manifest)?];
    }
    let (next, _) = create_top(directory, manifest.capacity, manifest.base_bytes)?;
    layers.push(name);
    manifest.layers = layers;
    Manifest { top: Some(next), ..manifest.clone() }.stage(directory)?;
    Manifest::publish(directory)?;
    // It was not written by this process, so its data may not be durable.
    top.dirty = true;
    lock(&top.seal().tail()).settle().map_err(FolderError::Disk)
}

/// Makes one layer of all; returns its name, which the next manifest is to name instead of theirs.
fn merge_layers<D: Directory>(
    directory: &D,
    layers: &[String],
    manifest: &Manifest,
) -> Result<String, FolderError> {
    let sealed = open_layers(directory, &Manifest { layers: layers.to_vec(), ..manifest.clone() })?;
    let (name, mut new) = create_top(directory, manifest.capacity, manifest.base_bytes)?;
    merge::copy(&sealed, manifest.base_bytes, &mut new).map_err(FolderError::Disk)?;
    Ok(name)
}

/// Makes `to` a copy of the sealed layers, all of which are ended.
fn link_layers<D: Directory>(from: &D, manifest: &Manifest, to: &D) -> Result<(), FolderError> {
    let failed = |operation| move |source| FolderError::Directory { operation, source };
    // First its manifest goes, so that at no time it names what is not there.
    to.remove(super::manifest::MANIFEST).map_err(failed("empty"))?;
    to.sync().map_err(failed("sync"))?;
    let copy = Manifest { top: None, ..manifest.clone() };
    remove_leftovers(to, &Manifest::new(0, 0))?;
    for name in &copy.layers {
        for file in [name.clone(), map_of(name)] {
            from.link(&file, to).map_err(|source| file_error("link", name, source))?;
        }
    }
    copy.stage(to)?;
    Ok(Manifest::publish(to)?)
}

/// Refuses a folder without manifest whose layers hold data.
fn check_empty<D: Directory>(directory: &D) -> Result<(), FolderError> {
    let failed = |source| FolderError::Directory { operation: "list", source };
    for name in directory.names().map_err(failed)?.iter().filter(|name| layer_of(name).is_some()) {
        let Some(layer) = name.strip_suffix(&map_of("")) else { continue };
        let opened = directory.open(name, false).map_err(|source| file_error("open", layer, source))?;
        // One that is not even whole was being made.
        if super::allocation::read(&opened).is_ok_and(|found| !found.runs.is_empty()) {
            return Err(FolderError::NoManifest);
        }
    }
    Ok(())
}

fn remove_leftovers<D: Directory>(directory: &D, manifest: &Manifest) -> Result<(), FolderError> {
    let failed = |operation| move |source| FolderError::Directory { operation, source };
    for name in directory.names().map_err(failed("list"))? {
        if manifest.is_leftover(&name) {
            directory.remove(&name).map_err(|source| file_error("remove", &name, source))?;
        }
    }
    Ok(())
}

/// Ends the uppermost sealed layer if a crash left it before it was settled. Only a disk with a top can have one, and
/// nobody shares it yet.
fn finish_uppermost<D: Directory>(directory: &D, manifest: &Manifest) -> Result<(), FolderError> {
    let (Some(name), Some(_)) = (manifest.layers.last(), &manifest.top) else { return Ok(()) };
    let mut top = match open_top(directory, name, manifest) {
        Err(FolderError::Layer { source: DiskOpenError::Map(MapError::Sealed), .. }) => return Ok(()),
        // Somebody shares it, which is done with ended ones alone.
        Err(FolderError::File { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(());
        }
        result => result?,
    };
    top.dirty = true;
    lock(&top.seal().tail()).settle().map_err(FolderError::Disk)
}

fn open_layers<D: Directory>(directory: &D, manifest: &Manifest) -> Result<Stack<D::File>, FolderError> {
    let mut sealed = Stack::default();
    for name in &manifest.layers {
        let failed = |source| file_error("open", name, source);
        let data = directory.open(name, false).map_err(failed)?;
        let map = directory.open(&map_of(name), false).map_err(failed)?;
        let pushed = sealed.push(data, &map, manifest.base_bytes);
        pushed.map_err(|source| FolderError::Layer { name: name.clone(), source })?;
        check_size(name, sealed.len(), manifest, sealed.len() <= manifest.capacity)?;
    }
    Ok(sealed)
}

/// Opens a layer that is not sealed: the top, or the uppermost sealed one after a crash.
fn open_top<D: Directory>(
    directory: &D,
    name: &str,
    manifest: &Manifest,
) -> Result<Top<D::File>, FolderError> {
    let failed = |source| file_error("open", name, source);
    let data = directory.open(name, true).map_err(failed)?;
    let map = directory.open(&map_of(name), true).map_err(failed)?;
    let top = Top::open(data, map, manifest.base_bytes);
    let top = top.map_err(|source| FolderError::Layer { name: name.to_owned(), source })?;
    let fits = match &manifest.top {
        Some(top_name) if top_name == name => top.capacity() == manifest.capacity,
        Some(_) | None => top.capacity() <= manifest.capacity,
    };
    check_size(name, top.capacity(), manifest, fits)?;
    Ok(top)
}

fn check_size(name: &str, found: u64, manifest: &Manifest, fits: bool) -> Result<(), FolderError> {
    let (name, capacity) = (name.to_owned(), manifest.capacity);
    if fits { Ok(()) } else { Err(FolderError::LayerSize { name, found, capacity }) }
}

/// Makes the files of a new layer, durably but for their names.
fn create_top<D: Directory>(
    directory: &D,
    capacity: u64,
    base_len: u64,
) -> Result<(String, Top<D::File>), FolderError> {
    let failed = |source| FolderError::Directory { operation: "name a layer in", source };
    let name = fresh_name().map_err(failed)?;
    let make = |file: &str| directory.create(file).map_err(|source| file_error("make", &name, source));
    let top = make(&name).and_then(|data| Ok((data, make(&map_of(&name))?))).and_then(|(data, map)| {
        let top = Top::create(data, map, capacity, base_len);
        top.map_err(|source| FolderError::Layer { name: name.clone(), source })
    });
    if top.is_err() {
        remove_layer(directory, &name);
    }
    top.map(|top| (name, top))
}

/// Removes a layer that no manifest names any more. What stays is removed when the disk is opened.
fn remove_layer<D: Directory>(directory: &D, name: &str) {
    for file in [name.to_owned(), map_of(name)] {
        if let Err(error) = directory.remove(&file) {
            tracing::warn!(file, %error, "cannot remove a layer that is not needed any more");
        }
    }
}

fn file_error(operation: &'static str, name: &str, source: io::Error) -> FolderError {
    FolderError::File { operation, name: name.to_owned(), source }
}

#[cfg(test)]
mod tests;
