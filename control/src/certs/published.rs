//! The files that edge-proxy reads certificates from. One is there before a view names it, and until no reader has a view
//! in force that does.
//!
//! ```text
//!           put                    a decision without it           one without it is in force
//!   (none) ─────► wanted ───────────────────────────► retired since g ─────────────────────► removed
//!                    ▲                                       │
//!                    └────────── a decision with it ◄────────┘
//! ```

use super::Pair;
use feed::blobs::Blobs;
use model::digest::Digest;
use model::host::MappedName;
use model::id::Generation;
use model::view::CertificateEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The files that are there.
#[derive(Debug)]
pub struct Published {
    blobs: Blobs,
    group: Option<u32>,
    known: BTreeSet<Digest>,
    /// What no decision wants any more, since the first that did not.
    retired: BTreeMap<Digest, Generation>,
}

impl Published {
    /// Those of the folder, which is made when it is missing. `group`, if any, may read them. Blocks on the disk, as all of
    /// this does.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: PathBuf, group: Option<u32>) -> io::Result<Self> {
        let blobs = Blobs::make(folder, group)?;
        let known = blobs.list()?;
        Ok(Self { blobs, group, known, retired: BTreeMap::new() })
    }

    /// Whether this one is there.
    #[must_use]
    pub fn has(&self, file: Digest) -> bool {
        self.known.contains(&file)
    }

    /// What a view lists, in the order in which a later one wins: the house's own and those that are over, then the
    /// authority's, then what the operator supplied. `fresh` are files that were missing; without its file a certificate
    /// is not listed.
    ///
    /// # Errors
    /// When a file cannot be made durable.
    pub fn entries(
        &mut self,
        pairs: &[Arc<Pair>],
        issued: &[(MappedName, Digest)],
        fresh: &[Zeroizing<Vec<u8>>],
        now_ms: i64,
    ) -> io::Result<Vec<CertificateEntry>> {
        let missing: Vec<_> = pairs.iter().filter(|pair| !self.has(pair.digest)).collect();
        let files = fresh.iter().chain(missing.iter().map(|pair| &pair.file));
        let mut put = false;
        for file in files {
            self.known.insert(self.blobs.put(file, self.group)?);
            put = true;
        }
        if put {
            self.blobs.sync()?;
        }
        let entry = |pair: &Arc<Pair>| CertificateEntry { names: pair.names.clone(), file: pair.digest };
        let (good, poor): (Vec<_>, Vec<_>) = pairs.iter().partition(|pair| pair.is_preferred(now_ms));
        let issued = issued.iter().filter(|(_, file)| self.has(*file));
        let issued =
            issued.map(|(name, file)| CertificateEntry { names: vec![name.to_string()], file: *file });
        Ok(poor.into_iter().map(entry).chain(issued).chain(good.into_iter().map(entry)).collect())
    }

    /// Takes note of what a decision lists, and removes what is listed neither by it nor by a decision since the one that
    /// is in force.
    ///
    /// # Errors
    /// When the disk fails; what is left is removed another time.
    pub fn sweep(
        &mut self,
        generation: Generation,
        listed: &[CertificateEntry],
        in_force: Option<Generation>,
    ) -> io::Result<()> {
        let wanted: BTreeSet<_> = listed.iter().map(|entry| entry.file).collect();
        self.retired.retain(|file, _| !wanted.contains(file));
        for file in self.known.difference(&wanted) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(number: u8) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(vec![number])
    }

    fn name(number: u8) -> MappedName {
        format!("n{number}.dev").parse().expect("name")
    }

    #[test]
    fn a_file_is_there_while_a_view_in_force_may_name_it_also_after_a_start() {
        let place = tempfile::tempdir().expect("folder");
        let folder = place.path().join("certificates");
        let mut files = Published::open(folder.clone(), None).expect("open");
        let one = Digest::of(&file(1));
        let first = files.entries(&[], &[(name(1), one), (name(2), Digest::of(&file(2)))], &[file(1)], 0);
        let first = first.expect("put");
        assert_eq!(first.len(), 1, "the other one has no file");
        files.sweep(Generation(1), &first, None).expect("swept");
        files.sweep(Generation(2), &[], Some(Generation(1))).expect("swept");
        assert!(files.has(one), "the view in force names it");
        let mut files = Published::open(folder.clone(), None).expect("open");
        files.sweep(Generation(3), &[], Some(Generation(2))).expect("swept");
        assert!(files.has(one), "as far as is known since the start");
        files.sweep(Generation(4), &first, Some(Generation(3))).expect("swept");
        assert!(files.has(one), "it is wanted again");
        files.sweep(Generation(5), &[], Some(Generation(4))).expect("swept");
        files.sweep(Generation(6), &[], Some(Generation(5))).expect("swept");
        assert!(!files.has(one) && Published::open(folder, None).expect("open").known.is_empty());
    }

    proptest! {
        #[test]
        fn no_view_in_force_ever_lacks_a_file(
            steps in prop::collection::vec((prop::collection::btree_set(0_u8..6, 0..4), any::<bool>()), 1..30),
        ) {
            let place = tempfile::tempdir().expect("folder");
            let mut files = Published::open(place.path().to_owned(), None).expect("open");
            let mut views: Vec<(Generation, Vec<Digest>)> = Vec::new();
            let mut in_force = None;
            for (number, (wanted, taken)) in steps.into_iter().enumerate() {
                let generation = Generation(number as u64 + 1);
                let issued: Vec<_> = wanted.iter().map(|one| (name(*one), Digest::of(&file(*one)))).collect();
                let fresh: Vec<_> =
                    wanted.iter().filter(|one| !files.has(Digest::of(&file(**one)))).map(|one| file(*one)).collect();
                let listed = files.entries(&[], &issued, &fresh, 0).expect("put");
                prop_assert_eq!(listed.len(), issued.len());
                files.sweep(generation, &listed, in_force).expect("swept");
                views.push((generation, listed.iter().map(|entry| entry.file).collect()));
                if taken {
                    in_force = Some(generation);
                }
                // A reader has the one that it told of, or a newer one.
                for (_, view) in views.iter().filter(|(at, _)| in_force.is_none_or(|force| *at >= force)) {
                    for digest in view {
                        prop_assert!(files.blobs.read(*digest).is_ok());
                    }
                }
            }
        }
    }
}
