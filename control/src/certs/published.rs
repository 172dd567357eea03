//! The certificates that a view names, and the files that edge-proxy reads them from.

use super::Pair;
use feed::blobs::Blobs;
use feed::shelf::Shelf;
use model::digest::Digest;
use model::host::MappedName;
use model::id::Generation;
use model::view::CertificateEntry;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use zeroize::Zeroizing;

/// The files that are there.
#[derive(Debug)]
pub struct Published(Shelf);

impl Published {
    /// Those of the folder, which is made when it is missing. `group`, if any, may read them. Blocks on the disk, as all of
    /// this does.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: PathBuf, group: Option<u32>) -> io::Result<Self> {
        Ok(Self(Shelf::open(Blobs::make(folder, group)?, group)?))
    }

    /// Whether this one is there.
    #[must_use]
    pub fn has(&self, file: Digest) -> bool {
        self.0.has(file)
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
        for file in files {
            self.0.put(file)?;
        }
        self.0.sync()?;
        let entry = |pair: &Arc<Pair>| CertificateEntry { names: pair.names.clone(), file: pair.digest };
        let (good, poor): (Vec<_>, Vec<_>) = pairs.iter().partition(|pair| pair.is_preferred(now_ms));
        let issued = issued.iter().filter(|(_, file)| self.has(*file));
        let issued =
            issued.map(|(name, file)| CertificateEntry { names: vec![name.to_string()], file: *file });
        Ok(poor.into_iter().map(entry).chain(issued).chain(good.into_iter().map(entry)).collect())
    }

    /// See [`Shelf::sweep`].
    ///
    /// # Errors
    /// When the disk fails; what is left is removed another time.
    pub fn sweep(
        &mut self,
        generation: Generation,
        listed: &[CertificateEntry],
        in_force: Option<Generation>,
    ) -> io::Result<()> {
        self.0.sweep(generation, &listed.iter().map(|entry| entry.file).collect(), in_force)
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
        assert!(!files.has(one) && Published::open(folder, None).expect("open").0.is_empty());
    }

    proptest! {
        #[test]
        fn no_view_in_force_ever_lacks_a_file(
            steps in prop::collection::vec((prop::collection::btree_set(0_u8..6, 0..4), any::<bool>()), 1..30),
        ) {
            let place = tempfile::tempdir().expect("folder");
            let mut files = Published::open(place.path().to_owned(), None).expect("open");
            let reader = Blobs::at(place.path().to_owned());
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
                        prop_assert!(reader.read(*digest).is_ok());
                    }
                }
            }
        }
    }
}
