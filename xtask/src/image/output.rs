//! The image's folder: put together beside the old one, which it replaces in one step.

use super::digest::Digest;
use super::kernel::Kernel;
use super::{ImageError, failed};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// What an image consists of, besides its manifest.
pub const FILES: [&str; 3] = ["kernel", "initramfs", "rootfs.img"];
/// The words of the kernel's command line that the guest needs, beside the monitor's own.
const COMMAND_LINE: &str = "gatehouse.root=/dev/vda";

/// What goes into it.
pub struct Parts<'a> {
    /// Debian release of the root file system.
    pub suite: &'a str,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// Root file system.
    pub rootfs: &'a Path,
    /// Initramfs.
    pub initramfs: &'a Path,
}

/// `manifest.json`
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    suite: String,
    architecture: String,
    kernel_release: String,
    command_line: String,
    files: Vec<ManifestFile>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ManifestFile {
    name: String,
    bytes: u64,
    sha256: String,
    /// The result of the step that made it.
    made: String,
}

/// One build at a time in a cache. The lock ends with the file.
pub fn lock(cache: &Path) -> Result<File, ImageError> {
    fs::create_dir_all(cache).map_err(failed("make", cache))?;
    let path = cache.join("lock");
    let file = File::create(&path).map_err(failed("make", &path))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        println!("another build runs in {}; waiting for it", cache.display());
        flock(&file, FlockOperation::LockExclusive)
            .map_err(io::Error::from)
            .map_err(failed("lock", &path))?;
    }
    Ok(file)
}

/// Puts the folder together.
pub fn assemble(folder: &Path, parts: &Parts<'_>) -> Result<(), ImageError> {
    let sources = [parts.kernel.image.as_path(), parts.initramfs, parts.rootfs];
    if is_current(folder, &sources) {
        println!("      unchanged: {}", folder.display());
        return Ok(());
    }
    let new = beside(folder, "new");
    discard(&new)?;
    fs::create_dir_all(&new).map_err(failed("make", &new))?;
    let mut files = Vec::new();
    for (name, source) in FILES.into_iter().zip(sources) {
        let target = new.join(name);
        copy_sparse(source, &target)?;
        files.push(ManifestFile {
            name: name.to_owned(),
            bytes: fs::metadata(&target).map_err(failed("look at", &target))?.len(),
            sha256: Digest::of_file(&target)?.as_str().to_owned(),
            made: source.display().to_string(),
        });
    }
    let manifest = Manifest {
        suite: parts.suite.to_owned(),
        architecture: "x86_64".to_owned(),
        kernel_release: parts.kernel.release.clone(),
        command_line: COMMAND_LINE.to_owned(),
        files,
    };
    let path = new.join("manifest.json");
    let text = serde_json::to_string_pretty(&manifest).map_err(ImageError::Manifest)?;
    fs::write(&path, text + "\n").map_err(failed("write", &path))?;
    replace(folder, &new)?;
    println!("      done: {}", folder.display());
    Ok(())
}

fn is_current(folder: &Path, sources: &[&Path]) -> bool {
    let read =
        || -> Option<Manifest> { serde_json::from_slice(&fs::read(folder.join("manifest.json")).ok()?).ok() };
    let Some(manifest) = read() else { return false };
    let made: Vec<_> = manifest.files.iter().map(|file| PathBuf::from(&file.made)).collect();
    made == sources
        && manifest
            .files
            .iter()
            .all(|file| fs::metadata(folder.join(&file.name)).is_ok_and(|facts| facts.len() == file.bytes))
}

/// A hard link would be cheaper, but a guest that gets to write its base would then spoil every later image.
fn copy_sparse(source: &Path, target: &Path) -> Result<(), ImageError> {
    let mut copy = std::process::Command::new("cp");
    copy.args(["--sparse=always", "--reflink=auto", "--preserve=mode"]).arg(source).arg(target);
    super::tool::run(&mut copy, "copying the image", "see whether the disk is full").map(drop)
}

/// Whoever has the old files open keeps them.
fn replace(folder: &Path, new: &Path) -> Result<(), ImageError> {
    let old = beside(folder, "old");
    discard(&old)?;
    if folder.exists() {
        fs::rename(folder, &old).map_err(failed("rename", folder))?;
    }
    fs::rename(new, folder).map_err(failed("rename", new))?;
    discard(&old)
}

fn discard(folder: &Path) -> Result<(), ImageError> {
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(failed("remove", folder))?;
    }
    Ok(())
}

/// Not by extension: a name such as `default-6.1` has a dot of its own.
fn beside(folder: &Path, end: &str) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.{end}"))
}
