//! The initramfs: our first process, and the kernel modules that it loads, in order.

use super::agent::Programs;
use super::digest::Digest;
use super::kernel::Kernel;
use super::{ImageError, Places, failed, tool};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

/// Size of an archive is a multiple of this, as cpio(1) makes it.
const BLOCK_BYTES: usize = 512;

/// Why there is no initramfs.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// A module is neither there nor built in.
    #[error("the kernel has no module {0}; next: see deploy/image/initramfs-modules.txt")]
    NoModule(String),
    /// A file is too large for the format.
    #[error("{0} is larger than the format allows")]
    TooLarge(String),
}

/// Makes the archive, unless it is there.
pub fn build(places: &Places, kernel: &Kernel, programs: &Programs) -> Result<PathBuf, ImageError> {
    let wanted = places.list("initramfs-modules.txt")?;
    let list = wanted.join(" ");
    let digest = Digest::of_texts([kernel.digest.as_str(), programs.init_digest.as_str(), &list]);
    let (path, there) = places.cached("initramfs", &digest);
    if there {
        println!("      unchanged");
        return Ok(path);
    }
    let archive = archive(kernel, programs, &wanted)?;
    let new = path.with_extension("new");
    fs::write(&new, archive).map_err(failed("write", &new))?;
    fs::rename(&new, &path).map_err(failed("rename", &new))?;
    Ok(path)
}

fn archive(kernel: &Kernel, programs: &Programs, wanted: &[String]) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::default();
    for folder in ["dev", "modules", "proc", "root", "sys"] {
        archive.add(folder, Kind::Folder, &[])?;
    }
    // The kernel opens it as the first process's standard input and outputs.
    archive.add("dev/console", Kind::Console, &[])?;
    archive.add("init", Kind::Program, &read(&programs.init)?)?;
    let order = load_order(kernel, wanted)?;
    let mut names = String::new();
    for path in &order {
        let name = module_file_name(path);
        println!("      {name}");
        archive.add(&format!("modules/{name}"), Kind::File, &module(&kernel.modules.join(path))?)?;
        names.push_str(&name);
        names.push('\n');
    }
    archive.add("modules/order", Kind::File, names.as_bytes())?;
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(failed("read", path))
}

/// A module's bytes, uncompressed: not every kernel can do that by itself.
fn module(path: &Path) -> Result<Vec<u8>, ImageError> {
    if path.extension().is_some_and(|end| end == "xz") {
        let mut xz = Command::new("xz");
        return tool::run(xz.arg("-dc").arg(path), "unpacking a kernel module", "remove target/image-cache");
    }
    read(path)
}

fn module_file_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".xz").unwrap_or(name).to_owned()
}

/// Files of the wanted modules and of what they need, in the order of loading.
fn load_order(kernel: &Kernel, wanted: &[String]) -> Result<Vec<String>, ImageError> {
    // depmod needs the layout of a system.
    let root = kernel.modules.with_file_name("depmod");
    let modules = root.join("lib/modules");
    fs::create_dir_all(&modules).map_err(failed("make", &modules))?;
    let link = modules.join(&kernel.release);
    if !link.is_symlink() {
        std::os::unix::fs::symlink(&kernel.modules, &link).map_err(failed("link", &link))?;
    }
    let mut depmod = Command::new("depmod");
    depmod.arg("-b").arg(&root).arg(&kernel.release);
    tool::run(&mut depmod, "reading the modules' dependencies", "apt-get install -y kmod")?;
    let dependencies = String::from_utf8_lossy(&read(&kernel.modules.join("modules.dep"))?).into_owned();
    let builtin = String::from_utf8_lossy(&read(&kernel.modules.join("modules.builtin"))?).into_owned();
    Ok(order(&dependencies, &builtin, wanted)?)
}

/// From `modules.dep` (modules.dep(5)): each line is a module, and after the colon what it needs, nearest first.
fn order(dependencies: &str, builtin: &str, wanted: &[String]) -> Result<Vec<String>, InitramfsError> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let needs: HashMap<String, (&str, &str)> =
        lines.map(|(path, needs)| (module_name(path), (path, needs))).collect();
    let builtin: HashSet<String> = builtin.lines().map(module_name).collect();
    let mut order: Vec<String> = Vec::new();
    for name in wanted {
        let name = name.replace('-', "_");
        if builtin.contains(&name) {
            continue;
        }
        let (path, needs) = needs.get(&name).ok_or_else(|| InitramfsError::NoModule(name.clone()))?;
        for file in needs.split_ascii_whitespace().rev().chain([*path]) {
            if !order.iter().any(|known| known == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// As the kernel calls a module, whose file may be written with hyphens.
fn module_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// What an entry of an archive is.
#[derive(Clone, Copy)]
enum Kind {
    Folder,
    File,
    Program,
    Console,
}

/// A cpio archive in the "newc" format (linux/Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, kind: Kind, content: &[u8]) -> Result<(), InitramfsError> {
        let (mode, major, minor) = match kind {
            Kind::Folder => (0o040_755, 0, 0),
            Kind::File => (0o100_644, 0, 0),
            Kind::Program => (0o100_755, 0, 0),
            Kind::Console => (0o020_600, 5, 1),
        };
        self.entry(name, mode, (major, minor), content)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> Result<(), InitramfsError> {
        let large = || InitramfsError::TooLarge(name.to_owned());
        let size = u32::try_from(content.len()).map_err(|_| large())?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| large())?;
        self.entries += 1;
        // Inode, mode, owner, group, links, time, size, device, device of a node, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0]
            .map(|field| format!("{field:08x}"));
        self.bytes.extend_from_slice(b"070701");
        self.bytes.extend_from_slice(fields.concat().as_bytes());
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
        Ok(())
    }

    fn pad(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>, ImageError> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.pad(BLOCK_BYTES);
        let bytes = self.bytes;
        std::io::stdout().flush().map_err(failed("write", Path::new("the terminal")))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/net/virtio_net.ko.xz: kernel/net/net_failover.ko.xz kernel/net/failover.ko.xz\n\
                                kernel/net/net_failover.ko.xz: kernel/net/failover.ko.xz\n\
                                kernel/net/failover.ko.xz:\nkernel/char/virtio-rng.ko:\n";

    #[test]
    fn what_is_needed_comes_first_and_once() {
        let wanted = ["virtio_rng", "ext4", "virtio_net", "net-failover"].map(str::to_owned);
        let order = order(DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n", &wanted).expect("order");
        let names: Vec<_> = order.iter().map(|path| module_file_name(path)).collect();
        assert_eq!(names, ["virtio-rng.ko", "failover.ko", "net_failover.ko", "virtio_net.ko"]);
        let missing = super::order(DEPENDENCIES, "", &["ext4".to_owned()]);
        assert!(matches!(missing, Err(InitramfsError::NoModule(name)) if name == "ext4"));
    }

    #[test]
    fn the_same_entries_are_the_same_bytes_and_cpio_reads_them() {
        let make = || {
            let mut archive = Archive::default();
            archive.add("dev", Kind::Folder, &[]).expect("folder");
            archive.add("dev/console", Kind::Console, &[]).expect("node");
            archive.add("init", Kind::Program, b"hello").expect("file");
            archive.finish().expect("archive")
        };
        assert_eq!(make(), make());
        let place = tempfile::tempdir().expect("directory");
        let file = place.path().join("archive");
        fs::write(&file, make()).expect("write");
        let mut cpio = Command::new("cpio");
        cpio.args(["--list", "--verbose", "--quiet", "--file"]).arg(&file);
        let listed = String::from_utf8(tool::run(&mut cpio, "test", "").expect("cpio")).expect("text");
        assert!(
            listed.lines().any(|line| line.starts_with("crw-------") && line.ends_with("dev/console")),
            "{listed}"
        );
        assert!(
            listed.lines().any(|line| line.starts_with("-rwxr-xr-x") && line.contains(" 5 ")),
            "{listed}"
        );
    }
}
