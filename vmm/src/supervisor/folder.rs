//! A VM's folder, and the plan that is made of a specification.

use crate::client::{MachineSpec, Refusal};
use crate::devices::block::DiskFolder;
use crate::machine::control::{MachinePlan, SPEC, SUSPENDING, USED};
use crate::machine::pure::layout::{MAX_MEMORY_MIB, MAX_VCPUS, MIN_MEMORY_MIB};
use model::config::VmmConfig;
use model::id::VmId;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longest name of an image.
const MAX_IMAGE_NAME: usize = 64;
/// Longest specification that is read: several times what a message carries.
const MAX_SPEC: u64 = 1 << 20;
/// One mebibyte.
const MIB: u64 = 1 << 20;

/// Why no plan can be made, or a folder not be changed.
#[derive(Debug, Error)]
pub enum FolderError {
    /// A number is out of its range.
    #[error("{what} must be {range}, got {got}")]
    Range {
        /// Which.
        what: &'static str,
        /// What is allowed.
        range: String,
        /// What was given.
        got: u32,
    },
    /// An image's name is a name of a folder, nothing else.
    #[error(
        "the image's name must be 1 to {MAX_IMAGE_NAME} characters of a-z, A-Z, 0-9, '-', '_' and '.', not first"
    )]
    ImageName,
    /// A file of the image is missing.
    #[error("the image {image} has no usable {path}")]
    Image {
        /// Which image.
        image: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk would be smaller than its base.
    #[error("the disk of {disk_mib} MiB is smaller than the image's {base_bytes} bytes")]
    DiskTooSmall {
        /// What was asked for.
        disk_mib: u32,
        /// What the image has.
        base_bytes: u64,
    },
    /// A file or folder of the VM.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The disk.
    #[error("cannot use the disk")]
    Disk(#[from] crate::devices::block::FolderError),
    /// The specification cannot be written down or read.
    #[error("the specification cannot be written down or read")]
    Encode(#[source] serde_json::Error),
}

impl FolderError {
    /// Which kind of no this is.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::Range { .. } | Self::ImageName | Self::DiskTooSmall { .. } => Refusal::BadSpec,
            Self::Image { .. } => Refusal::Image,
            Self::Io { .. } | Self::Disk(_) => Refusal::Disk,
            Self::Encode(_) => Refusal::Internal,
        }
    }
}

/// The folder of a VM.
#[must_use]
pub fn of(config: &VmmConfig, vm: &VmId) -> PathBuf {
    config.places.vms().join(vm.as_str())
}

/// Checks a specification and finds its files.
///
/// # Errors
/// See [`FolderError`].
pub fn plan(config: &VmmConfig, spec: MachineSpec) -> Result<MachinePlan, FolderError> {
    check_range("the number of vCPUs", u32::from(spec.vcpus), 1, u32::from(MAX_VCPUS))?;
    check_range("the memory in MiB", spec.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)?;
    if !is_image_name(&spec.image) {
        return Err(FolderError::ImageName);
    }
    let image = config.places.images().join(&spec.image);
    let file = |name: &str| {
        let path = image.join(name);
        match path.metadata() {
            Ok(facts) if facts.is_file() => Ok((path, facts.len())),
            Ok(_) => Err((path, io::Error::other("not a regular file"))),
            Err(error) => Err((path, error)),
        }
        .map_err(|(path, source)| FolderError::Image { image: spec.image.clone(), path, source })
    };
    let ((kernel, _), (initramfs, _)) = (file("kernel")?, file("initramfs")?);
    let (rootfs, base_bytes) = file("rootfs.img")?;
    if u64::from(spec.disk_mib) * MIB < base_bytes {
        return Err(FolderError::DiskTooSmall { disk_mib: spec.disk_mib, base_bytes });
    }
    Ok(MachinePlan {
        kernel,
        initramfs,
        rootfs,
        folder: of(config, &spec.vm),
        console_bytes: config.console_bytes,
        command_line: config.kernel_arguments.clone(),
        restore: None,
        user: None,
        spec,
    })
}

/// Makes the folder and writes down, durably, what is going to run in it.
///
/// # Errors
/// See [`FolderError`].
pub fn prepare(plan: &MachinePlan) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { operation: "make", path: plan.folder.clone(), source };
    std::fs::create_dir_all(&plan.folder).map_err(failed)?;
    write_spec(&plan.folder, &plan.spec)
}

/// Writes down that the disk of a VM becomes larger.
///
/// # Errors
/// See [`FolderError`].
pub fn note_growth(config: &VmmConfig, vm: &VmId, disk_mib: u32) -> Result<(), FolderError> {
    let folder = of(config, vm);
    let Some(mut spec) = read_spec(&folder)? else {
        let (path, source) = (folder.join(SPEC), io::ErrorKind::NotFound.into());
        return Err(FolderError::Io { operation: "read", path, source });
    };
    if spec.disk_mib >= disk_mib {
        return Ok(());
    }
    spec.disk_mib = disk_mib;
    write_spec(&folder, &spec)
}

fn write_spec(folder: &Path, spec: &MachineSpec) -> Result<(), FolderError> {
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| FolderError::Io { operation, path, source }
    };
    let bytes = serde_json::to_vec_pretty(spec).map_err(FolderError::Encode)?;
    let (path, staged) = (folder.join(SPEC), folder.join(format!("{SPEC}.new")));
    // Whoever owns the folder may have put something there that leads elsewhere.
    remove_file(&staged).map_err(failed("remove", &staged))?;
    let mut file = File::create_new(&staged).map_err(failed("make", &staged))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write", &staged))?;
    std::fs::rename(&staged, &path).map_err(failed("rename", &path))?;
    sync(folder)
}

/// What is running or ran last in a folder, if anything did.
fn read_spec(folder: &Path) -> Result<Option<MachineSpec>, FolderError> {
    let path = folder.join(SPEC);
    match read_own(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Io { operation: "read", path, source }),
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(FolderError::Encode)?)),
    }
}

/// Removes all that a VM left.
///
/// # Errors
/// When a file cannot be removed.
pub fn remove(folder: &Path) -> Result<(), FolderError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FolderError::Io { operation: "remove", path: folder.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes from the folder of a VM without a process what the end of its process cut short: a state that was not written
/// to its end, and one that was gone on from. The caller has the VM's turn, or is the only one yet.
///
/// # Errors
/// When a file cannot be removed.
pub fn tidy(home: &Path) -> Result<(), FolderError> {
    [SUSPENDING, USED].iter().try_for_each(|name| remove(&home.join(name)))
}

/// Merges the layers of the disk of a VM without a process. Without a disk there is nothing to merge.
///
/// # Errors
/// When that cannot be done.
pub fn merge(config: &VmmConfig, vm: &VmId) -> Result<(), FolderError> {
    let Some(spec) = read_spec(&of(config, vm))? else { return Ok(()) };
    let plan = plan(config, spec)?;
    let failed = |source| FolderError::Io { operation: "open", path: plan.rootfs.clone(), source };
    let base = File::open(&plan.rootfs).map_err(failed)?;
    let mut disk = DiskFolder::open(&plan.folder, Some(base), u64::from(plan.spec.disk_mib) * MIB)?;
    Ok(disk.merge()?)
}

/// Makes a folder that root alone may enter, so that nobody gets from one VM's folder in it to another's.
///
/// # Errors
/// When that cannot be done.
pub fn make_private(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// Makes an empty folder, whatever is there.
///
/// # Errors
/// When that cannot be done.
pub fn renew(path: &Path) -> Result<(), FolderError> {
    remove(path)?;
    std::fs::create_dir(path).map_err(|source| FolderError::Io {
        operation: "make",
        path: path.to_owned(),
        source,
    })
}

/// Renames a folder, durably.
///
/// # Errors
/// When that cannot be done.
pub fn rename(from: &Path, to: &Path) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { operation: "rename", path: from.to_owned(), source };
    std::fs::rename(from, to).map_err(failed)?;
    for parent in [from.parent(), to.parent()].into_iter().flatten() {
        sync(parent)?;
    }
    Ok(())
}

/// Makes the names in a folder durable.
///
/// # Errors
/// When that cannot be done.
pub fn sync(path: &Path) -> Result<(), FolderError> {
    let synced = File::open(path).and_then(|folder| folder.sync_all());
    synced.map_err(|source| FolderError::Io { operation: "sync", path: path.to_owned(), source })
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Reads a file of a VM's folder, which may be anything.
fn read_own(path: &Path) -> io::Result<Vec<u8>> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let mut bytes = Vec::new();
    file.take(MAX_SPEC).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check_range(what: &'static str, got: u32, least: u32, most: u32) -> Result<(), FolderError> {
    if (least..=most).contains(&got) {
        return Ok(());
    }
    Err(FolderError::Range { what, range: format!("{least} to {most}"), got })
}

/// A name that stays one folder below `images`.
fn is_image_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= MAX_IMAGE_NAME && !name.starts_with('.') && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_image_name_leaves_the_folder(name in ".{0,80}") {
            if is_image_name(&name) {
                let path = Path::new("/images").join(&name);
                prop_assert_eq!(path.parent(), Some(Path::new("/images")));
                prop_assert_eq!(path.components().count(), 3);
            }
        }
    }

    #[test]
    fn what_was_cut_short_goes_and_nothing_else() {
        let home = tempfile::tempdir().expect("folder");
        let all = ["suspended", "suspended.new", "suspended.used"];
        let names = || -> Vec<String> {
            let entries = std::fs::read_dir(home.path()).expect("folder");
            let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("entry").file_name();
            let mut names: Vec<String> =
                entries.map(|entry| name(entry).to_str().expect("text").to_owned()).collect();
            names.sort();
            names
        };
        for name in all {
            std::fs::create_dir(home.path().join(name)).expect("folder");
            std::fs::write(home.path().join(name).join("memory"), "x").expect("file");
        }
        std::fs::write(home.path().join(SPEC), "{}").expect("file");
        tidy(home.path()).expect("tidy");
        assert_eq!(names(), [SPEC, "suspended"]);
        tidy(&home.path().join("none")).expect("there is nothing to tidy");
    }

    #[test]
    fn names_of_other_folders_are_refused() {
        for name in ["", ".", "..", "a/b", "../x", "a\0b", ".hidden"] {
            assert!(!is_image_name(name), "{name:?}");
        }
        assert!(is_image_name("debian-13_x.y"));
    }
}
