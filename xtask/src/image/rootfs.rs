//! The root file system: Debian's packages, our files, both kernels' modules, as one ext4 image.

use super::agent::Programs;
use super::base::Base;
use super::digest::Digest;
use super::kernel::Kernel;
use super::{ImageError, Places, SOURCE_DATE_EPOCH, Suite, failed, tool};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Size of the image. Sparse; the guest grows it to the disk's size when it boots.
const IMAGE_SIZE: &str = "2G";
/// Fixed, so that the same files give the same image. A disk of a VM is known by the VM, not by this.
const UUID: &str = "6a746568-6f75-4365-8f72-6f6f74667331";
const HASH_SEED: &str = "6a746568-6f75-4365-8f72-686173686564";
const LABEL: &str = "gatehouse-root";
/// Grows when the steps below change, so that no image of the old steps is taken for one of the new.
const RECIPE: &str = "1";
/// Where the agent lives in the guest.
const AGENT: &str = "usr/lib/gatehouse/agent";
const DISK_HINT: &str = "see whether the disk is full";

/// Makes the image, unless it is there.
pub fn build(
    places: &Places,
    suite: Suite,
    base: &Base,
    programs: &Programs,
    kernels: &[&Kernel],
) -> Result<PathBuf, ImageError> {
    let ours = Digest::of_folder(&places.data())?;
    let own = [
        RECIPE,
        IMAGE_SIZE,
        base.digest.as_str(),
        ours.as_str(),
        programs.agent_digest.as_str(),
        suite.name(),
    ];
    let digest = Digest::of_texts(own.into_iter().chain(kernels.iter().map(|kernel| kernel.digest.as_str())));
    let (image, there) = places.cached("rootfs", &digest);
    if there {
        println!("      unchanged");
        return Ok(image);
    }
    let tree = image.with_extension("tree");
    if tree.exists() {
        fs::remove_dir_all(&tree).map_err(failed("remove", &tree))?;
    }
    fs::create_dir_all(&tree).map_err(failed("make", &tree))?;
    println!("      unpacking the packages");
    let mut tar = Command::new("tar");
    tar.args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"])
        .arg(&base.tar)
        .arg("-C")
        .arg(&tree);
    tool::run(&mut tar, "unpacking the packages", DISK_HINT)?;
    println!("      adding our files and the kernels' modules");
    add_files(places, suite, &tree)?;
    add_programs(programs, &tree)?;
    for kernel in kernels {
        add_modules(kernel, &tree)?;
    }
    choose_units(places, &tree)?;
    println!("      writing the file system");
    let new = image.with_extension("new");
    write_image(&tree, &new)?;
    fs::rename(&new, &image).map_err(failed("rename", &new))?;
    fs::remove_dir_all(&tree).map_err(failed("remove", &tree))?;
    Ok(image)
}

fn add_files(places: &Places, suite: Suite, tree: &Path) -> Result<(), ImageError> {
    copy_folder(&places.data().join("rootfs"), tree)?;
    let of_suite = places.data().join(format!("rootfs-{}", suite.name()));
    if of_suite.is_dir() {
        copy_folder(&of_suite, tree)?;
    }
    // Empty: systemd makes a new one at boot without taking the machine for never configured.
    write(&tree.join("etc/machine-id"), "")?;
    write(&tree.join("etc/hostname"), "gatehouse\n")?;
    write(&tree.join("etc/hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")?;
    let resolver = tree.join("etc/resolv.conf");
    if resolver.is_symlink() {
        remove(&resolver)?;
    }
    write(&resolver, "")?;
    remove(&tree.join("var/lib/dbus/machine-id"))?;
    // Each machine makes its own.
    let ssh = tree.join("etc/ssh");
    for entry in fs::read_dir(&ssh).map_err(failed("list", &ssh))? {
        let path = entry.map_err(failed("list", &ssh))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ssh_host_")) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn add_programs(programs: &Programs, tree: &Path) -> Result<(), ImageError> {
    let agent = tree.join(AGENT);
    make_parent(&agent)?;
    fs::copy(&programs.agent, &agent).map_err(failed("copy", &programs.agent))?;
    set_mode(&agent, 0o755)
}

fn add_modules(kernel: &Kernel, tree: &Path) -> Result<(), ImageError> {
    let place = tree.join("usr/lib/modules");
    fs::create_dir_all(&place).map_err(failed("make", &place))?;
    let mut copy = Command::new("cp");
    copy.args(["-r", "--preserve=mode", "--no-target-directory"])
        .arg(&kernel.modules)
        .arg(place.join(&kernel.release));
    tool::run(&mut copy, "copying kernel modules", DISK_HINT)?;
    in_guest(tree, "reading the modules' dependencies", &["depmod", &kernel.release])
}

fn choose_units(places: &Places, tree: &Path) -> Result<(), ImageError> {
    for (list, folder) in [
        ("masked-units.txt", "etc/systemd/system"),
        ("masked-generators.txt", "etc/systemd/system-generators"),
    ] {
        for name in places.list(list)? {
            let link = tree.join(folder).join(name);
            make_parent(&link)?;
            remove(&link)?;
            symlink("/dev/null", &link).map_err(failed("link", &link))?;
        }
    }
    let default = tree.join("etc/systemd/system/default.target");
    remove(&default)?;
    symlink("/usr/lib/systemd/system/multi-user.target", &default).map_err(failed("link", &default))?;
    in_guest(tree, "enabling units", &["systemctl", "preset-all", "--preset-mode=full"])
}

/// Runs one of the guest's own programs on the guest's own files.
fn in_guest(tree: &Path, step: &str, words: &[&str]) -> Result<(), ImageError> {
    let mut command = Command::new("chroot");
    command.arg(tree).args(words).env("SYSTEMD_OFFLINE", "1");
    tool::run(&mut command, step, "see what it says above").map(drop)
}

/// With the guest's own mke2fs: it knows the options, whatever this machine has, and its times are fixed.
fn write_image(tree: &Path, image: &Path) -> Result<(), ImageError> {
    if image.exists() {
        remove(image)?;
    }
    clamp_times(tree)?;
    let mut command = Command::new(tree.join("usr/lib64/ld-linux-x86-64.so.2"));
    command
        .arg("--library-path")
        .arg(tree.join("usr/lib/x86_64-linux-gnu"))
        .arg(tree.join("usr/sbin/mke2fs"));
    command.args(["-q", "-t", "ext4", "-L", LABEL, "-U", UUID, "-E"]);
    // Disks of guests read as zeros where nothing was written.
    command.arg(format!("hash_seed={HASH_SEED},assume_storage_prezeroed=1,root_owner=0:0"));
    command.arg("-d").arg(tree).arg(image).arg(IMAGE_SIZE);
    command.env("SOURCE_DATE_EPOCH", SOURCE_DATE_EPOCH).env("MKE2FS_CONFIG", tree.join("etc/mke2fs.conf"));
    tool::run(&mut command, "writing the file system", DISK_HINT).map(drop)
}

/// Files that the steps above made have the time of the build.
fn clamp_times(tree: &Path) -> Result<(), ImageError> {
    let mut find = Command::new("find");
    let time = format!("@{SOURCE_DATE_EPOCH}");
    find.arg(tree).args(["-newermt", &time, "-exec", "touch", "--no-dereference", "-d", &time, "{}", "+"]);
    tool::run(&mut find, "setting file times", DISK_HINT).map(drop)
}

/// Copies files as root's; whether a file is a program is all that counts of its mode.
fn copy_folder(from: &Path, to: &Path) -> Result<(), ImageError> {
    for entry in fs::read_dir(from).map_err(failed("list", from))? {
        let source = entry.map_err(failed("list", from))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        if source.is_dir() {
            if !target.is_dir() {
                fs::create_dir(&target).map_err(failed("make", &target))?;
                set_mode(&target, 0o755)?;
            }
            copy_folder(&source, &target)?;
            continue;
        }
        fs::copy(&source, &target).map_err(failed("copy", &source))?;
        let mode = fs::metadata(&source).map_err(failed("look at", &source))?.permissions().mode();
        set_mode(&target, if mode & 0o111 == 0 { 0o644 } else { 0o755 })?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), ImageError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of", path))
}

fn make_parent(path: &Path) -> Result<(), ImageError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(failed("make", parent))
}

fn write(path: &Path, text: &str) -> Result<(), ImageError> {
    fs::write(path, text).map_err(failed("write", path))?;
    set_mode(path, 0o644)
}

/// It is well when there is nothing.
fn remove(path: &Path) -> Result<(), ImageError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}
