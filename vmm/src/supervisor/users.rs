//! Users of VMs' processes: each VM has one that no other has, and its folder belongs to it.
//!
//! The owners of the folders are the whole record, so nothing can be out of step with them. A fork runs as the user of
//! the VM that it was made of, since a process cannot change its user once it has nothing; it gets its own with its
//! next process.

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Uid};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The first of the users: in the range that systemd's overview of users (docs/UIDS-GIDS) leaves to nobody, below the
/// half of the numbers that some programs take for negative ones.
const FIRST: u32 = 1_880_000_000;
/// So many VMs and copies may exist at once.
const COUNT: u32 = 1 << 16;
/// Bits of a mode that allow to write.
const WRITE_BITS: u32 = 0o222;

/// Gives folders to users. One for all that do so at a time.
#[derive(Debug)]
pub struct Users {
    /// Where folders with users lie: those of VMs and those of copies.
    places: Vec<PathBuf>,
    turn: Mutex<()>,
}

impl Users {
    /// Of the folders in these places.
    #[must_use]
    pub fn new(places: Vec<PathBuf>) -> Self {
        Self { places, turn: Mutex::new(()) }
    }

    /// Gives a folder, with all in it that is not shared, to a user that owns no other: its own, or a new one.
    ///
    /// # Errors
    /// When a file does not change hands, or none is left.
    pub fn settle(&self, folder: &Path) -> io::Result<u32> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let own = std::fs::symlink_metadata(folder)?.uid();
        let taken = self.owners_but(folder)?;
        let range = FIRST..FIRST + COUNT;
        let user = if range.contains(&own) && !taken.contains(&own) {
            own
        } else {
            let free = range.clone().find(|user| !taken.contains(user));
            free.ok_or_else(|| io::Error::other(format!("all {COUNT} users of VMs are taken")))?
        };
        give(folder, user)?;
        Ok(user)
    }

    fn owners_but(&self, folder: &Path) -> io::Result<BTreeSet<u32>> {
        let mut owners = BTreeSet::new();
        for place in &self.places {
            for entry in std::fs::read_dir(place)? {
                let path = entry?.path();
                if path == folder {
                    continue;
                }
                match std::fs::symlink_metadata(&path) {
                    Ok(facts) => drop(owners.insert(facts.uid())),
                    // It was removed meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(owners)
    }
}

/// Who owns a folder.
///
/// # Errors
/// When there is none.
pub fn owner(folder: &Path) -> io::Result<u32> {
    Ok(std::fs::symlink_metadata(folder)?.uid())
}

/// Gives a folder, with all in it that is not shared, to a user.
///
/// # Errors
/// When a file does not change hands.
pub fn give(folder: &Path, user: u32) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = File::from(rustix::fs::open(folder, flags, Mode::empty())?);
    give_opened(folder.as_fd(), user)?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let facts = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
            let inner = File::from(rustix::fs::openat(&folder, name, flags, Mode::empty())?);
            give_opened(inner.as_fd(), user)?;
            // A saved state; there are no deeper ones.
            for file in Dir::read_from(&inner)? {
                let file = file?;
                if !matches!(file.file_name().to_bytes(), b"." | b"..") {
                    give_file(inner.as_fd(), file.file_name(), user)?;
                }
            }
        } else {
            give_file(folder.as_fd(), name, user)?;
        }
    }
    Ok(())
}

fn give_opened(folder: BorrowedFd<'_>, user: u32) -> io::Result<()> {
    rustix::fs::fchown(folder, Some(Uid::from_raw(user)), Some(Gid::from_raw(user)))?;
    Ok(rustix::fs::fchmod(folder, Mode::RWXU)?)
}

/// What is root's and cannot be written is shared with others, and stays so.
fn give_file(folder: BorrowedFd<'_>, name: &std::ffi::CStr, user: u32) -> io::Result<()> {
    let facts = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let shared = facts.st_uid == 0
        && FileType::from_raw_mode(facts.st_mode) == FileType::RegularFile
        && facts.st_mode & WRITE_BITS == 0;
    if shared || facts.st_uid == user {
        return Ok(());
    }
    let owner = (Some(Uid::from_raw(user)), Some(Gid::from_raw(user)));
    Ok(rustix::fs::chownat(folder, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn place() -> (tempfile::TempDir, Users) {
        let place = tempfile::tempdir().expect("place");
        let users = Users::new(vec![place.path().to_owned()]);
        (place, users)
    }

    fn make(place: &tempfile::TempDir, name: &str) -> PathBuf {
        let folder = place.path().join(name);
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("top"), b"x").expect("file");
        folder
    }

    #[test]
    fn each_folder_has_a_user_of_its_own_and_keeps_it() {
        let (place, users) = place();
        let (a, b) = (make(&place, "a"), make(&place, "b"));
        let (first, second) = (users.settle(&a).expect("a"), users.settle(&b).expect("b"));
        assert_ne!(first, second);
        assert_eq!(users.settle(&a).expect("again"), first);
        assert_eq!(owner(&a.join("top")).expect("facts"), first);
        assert_eq!(a.metadata().expect("facts").permissions().mode() & 0o777, 0o700);
        // As a fork has it, which then gets its own.
        give(&b, first).expect("given");
        assert_eq!(users.settle(&b).expect("b"), second);
        std::fs::remove_dir_all(&a).expect("removed");
        let c = make(&place, "c");
        assert_eq!(users.settle(&c).expect("c"), first, "a user is free when its folder is gone");
    }

    #[test]
    fn what_is_shared_and_what_links_lead_to_stays() {
        let (place, users) = place();
        let folder = make(&place, "a");
        let outside = place.path().join("outside");
        std::fs::write(&outside, b"x").expect("file");
        std::os::unix::fs::symlink(&outside, folder.join("link")).expect("link");
        std::fs::create_dir(folder.join("suspended")).expect("folder");
        for name in ["layer", "suspended/memory"] {
            let path = folder.join(name);
            std::fs::write(&path, b"x").expect("file");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o444)).expect("mode");
        }
        let user = users.settle(&folder).expect("settled");
        for (name, expected) in
            [("layer", 0), ("suspended", user), ("suspended/memory", 0), ("link", user), ("top", user)]
        {
            assert_eq!(owner(&folder.join(name)).expect("facts"), expected, "{name}");
        }
        assert_eq!(owner(&outside).expect("facts"), 0);
    }
}
