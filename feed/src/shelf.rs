//! The writer's side of files that views name: one is there before a view names it, and until no reader has a view in force
//! that does.
//!
//! ```text
//!           put                    a decision without it           one without it is in force
//!   (none) ─────► wanted ───────────────────────────► retired since g ─────────────────────► removed
//!                    ▲                                       │
//!                    └────────── a decision with it ◄────────┘
//! ```

use crate::blobs::Blobs;
use model::digest::Digest;
use model::id::Generation;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The files that are there.
#[derive(Debug)]
pub struct Shelf {
    blobs: Blobs,
    group: Option<u32>,
    known: BTreeSet<Digest>,
    /// What no decision wants any more, since the first that did not.
    retired: BTreeMap<Digest, Generation>,
    /// Something was put and is not durable yet.
    owed: bool,
}

impl Shelf {
    /// Those of a folder. `group`, if any, may read what is put. Blocks on the disk, as all of this does.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn open(blobs: Blobs, group: Option<u32>) -> io::Result<Self> {
        let known = blobs.list()?;
        Ok(Self { blobs, group, known, retired: BTreeMap::new(), owed: false })
    }

    /// Whether this one is there.
    #[must_use]
    pub fn has(&self, file: Digest) -> bool {
        self.known.contains(&file)
    }

    /// How many are there.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none is there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Keeps these bytes, which a view may name after [`Shelf::sync`].
    ///
    /// # Errors
    /// When they cannot be made durable.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.has(digest) {
            self.owed = true;
            self.known.insert(self.blobs.put(bytes, self.group)?);
        }
        Ok(digest)
    }

    /// Makes all that was put durable.
    ///
    /// # Errors
    /// When the disk fails; it is tried again the next time.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.owed {
            self.blobs.sync()?;
            self.owed = false;
        }
        Ok(())
    }

    /// Takes note of what a decision wants, and removes what is wanted neither by it nor by a decision since the one that
    /// is in force.
    ///
    /// # Errors
    /// When the disk fails; what is left is removed another time.
    pub fn sweep(
        &mut self,
        generation: Generation,
        wanted: &BTreeSet<Digest>,
        in_force: Option<Generation>,
    ) -> io::Result<()> {
        self.retired.retain(|file, _| !wanted.contains(file));
        for file in self.known.difference(wanted) {
            self.retired.entry(*file).or_insert(generation);
        }
        let Some(in_force) = in_force else { return Ok(()) };
        let over: Vec<_> =
            self.retired.iter().filter(|(_, since)| **since <= in_force).map(|(file, _)| *file).collect();
        for file in over {
            self.blobs.remove(file)?;
            self.retired.remove(&file);
            self.known.remove(&file);
        }
        Ok(())
    }
}
