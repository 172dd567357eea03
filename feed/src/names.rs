//! Names in parts (see [`model::names`]): control keeps each part in a file, and writes again what has changed; edge-proxy
//! reads again what has another digest than before.

use crate::blobs::{BlobError, Blobs};
use crate::shelf::Shelf;
use crate::subscribe::MAX_VIEW_BYTES;
use model::digest::Digest;
use model::id::Generation;
use model::names::{NamePart, NameParts, take_out};
use model::view::EdgeView;
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// control's side.
#[derive(Debug)]
pub struct NamesWriter {
    shelf: Shelf,
    /// Those of the newest view.
    newest: Vec<(Digest, NamePart)>,
    /// Those of the one before it, of no more use: freeing some hundred thousand texts waits until the view is out.
    over: Vec<(Digest, NamePart)>,
}

impl NamesWriter {
    /// With the files of a folder, which is made when it is missing. `group`, if any, may read them. Blocks on the disk, as
    /// all of this does.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub fn open(folder: PathBuf, group: Option<u32>) -> io::Result<Self> {
        let blobs = Blobs::make(folder, group)?.up_to(MAX_VIEW_BYTES);
        Ok(Self { shelf: Shelf::open(blobs, group)?, newest: Vec::new(), over: Vec::new() })
    }

    /// Puts the names of a view into files, if they are many. They are durable, and the view names them.
    ///
    /// # Errors
    /// When a file cannot be made durable; the view is of no use then.
    pub fn take_out(&mut self, view: &mut EdgeView) -> io::Result<()> {
        let Some((parts, certificates_before)) = take_out(view) else {
            self.newest.clear();
            return Ok(());
        };
        self.over = std::mem::take(&mut self.newest);
        let mut files = Vec::with_capacity(parts.len());
        for (number, part) in parts.into_iter().enumerate() {
            let digest = match self.over.get(number) {
                Some((digest, known)) if *known == part => *digest,
                Some(_) | None => self.shelf.put(&serde_json::to_vec(&part)?)?,
            };
            self.newest.push((digest, part));
            files.push(digest);
        }
        self.shelf.sync()?;
        view.names = Some(NameParts { files, certificates_before });
        Ok(())
    }

    /// Removes files that neither the newest view names nor one since the one that is in force.
    ///
    /// # Errors
    /// When the disk fails; what is left is removed another time.
    pub fn sweep(&mut self, generation: Generation, in_force: Option<Generation>) -> io::Result<()> {
        self.over = Vec::new();
        self.shelf.sweep(generation, &self.newest.iter().map(|(digest, _)| *digest).collect(), in_force)
    }
}

/// Why a part is of no use.
#[derive(Debug, Error)]
pub enum PartError {
    /// Its file is of no use.
    #[error("a part of the names: {0}")]
    File(#[from] BlobError),
    /// Its file is no part.
    #[error("a part of the names, {file}, is malformed: {source}")]
    Malformed {
        /// Which one.
        file: Digest,
        /// Why.
        source: serde_json::Error,
    },
}

/// edge-proxy's side.
#[derive(Clone, Debug)]
pub struct NamesReader(Blobs);

impl NamesReader {
    /// Of a folder. Nothing is looked at yet.
    #[must_use]
    pub fn at(folder: PathBuf) -> Self {
        Self(Blobs::at(folder).up_to(MAX_VIEW_BYTES))
    }

    /// The part of this file.
    ///
    /// # Errors
    /// See [`PartError`].
    pub fn read(&self, file: Digest) -> Result<NamePart, PartError> {
        let bytes = self.0.read(file)?;
        serde_json::from_slice(&bytes).map_err(|source| PartError::Malformed { file, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::host::MappedName;
    use model::names::{MOST_IN_VIEW, PARTS, part_of};
    use model::view::VIEW_VERSION;

    fn view(generation: u64, names: usize) -> EdgeView {
        let name = |number| format!("n{number}.dev").parse::<MappedName>().expect("name");
        EdgeView {
            version: VIEW_VERSION,
            generation: Generation(generation),
            api_hosts: Vec::new(),
            routes: Vec::new().into(),
            gone: (0..names).map(name).collect::<Vec<_>>().into(),
            certificates: Vec::new().into(),
            challenges: Vec::new().into(),
            names: None,
        }
    }

    fn taken(writer: &mut NamesWriter, mut view: EdgeView) -> Vec<Digest> {
        writer.take_out(&mut view).expect("written");
        view.names.map_or_else(Vec::new, |names| names.files)
    }

    #[test]
    fn a_change_is_one_part_and_old_ones_go_when_no_view_in_force_has_them() {
        let place = tempfile::tempdir().expect("folder");
        let folder = place.path().join("names");
        let mut writer = NamesWriter::open(folder.clone(), None).expect("open");
        let reader = NamesReader::at(folder.clone());
        let first = taken(&mut writer, view(1, MOST_IN_VIEW + 1));
        assert_eq!(first.len(), PARTS);
        writer.sweep(Generation(1), None).expect("swept");
        let second = taken(&mut writer, view(2, MOST_IN_VIEW + 2));
        let name: MappedName = format!("n{}.dev", MOST_IN_VIEW + 1).parse().expect("name");
        let changed: Vec<_> = (0..PARTS).filter(|part| first[*part] != second[*part]).collect();
        assert_eq!(changed, [part_of(name.base())]);
        let part = reader.read(second[changed[0]]).expect("read");
        assert!(part.gone.iter().any(|gone| *gone == name));
        writer.sweep(Generation(2), Some(Generation(1))).expect("swept");
        assert!(reader.read(first[changed[0]]).is_ok(), "the view in force names it");
        // After a start nothing is written again, and all is known.
        let mut writer = NamesWriter::open(folder.clone(), None).expect("open");
        assert_eq!(taken(&mut writer, view(3, MOST_IN_VIEW + 2)), second);
        writer.sweep(Generation(3), Some(Generation(3))).expect("swept");
        assert!(matches!(reader.read(first[changed[0]]), Err(PartError::File(BlobError::Read { .. }))));
        assert!(second.iter().all(|file| reader.read(*file).is_ok()));
        assert!(taken(&mut writer, view(4, 1)).is_empty());
        writer.sweep(Generation(4), Some(Generation(4))).expect("swept");
        assert!(Blobs::at(folder).list().expect("list").is_empty());
    }

    #[test]
    fn what_is_no_part_is_told() {
        let place = tempfile::tempdir().expect("folder");
        let blobs = Blobs::make(place.path().to_owned(), None).expect("made");
        let file = blobs.put(b"[]", None).expect("put");
        let read = NamesReader::at(place.path().to_owned()).read(file);
        assert!(matches!(read, Err(PartError::Malformed { .. })), "{read:?}");
    }
}
