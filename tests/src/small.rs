//! A small guest: the kernel and initramfs of the usual image, and a root file system of busybox and the agent. It boots
//! in a fraction of Debian's time, and all that the house does with it is the same.

use crate::house::images;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

/// Where the usual image has the agent.
const AGENT: &str = "usr/lib/gatehouse/agent";
/// Size of the root file system.
const SIZE: &str = "64M";
/// busybox's init: `/etc/inittab`.
const INITTAB: &str = "::sysinit:/etc/begin\n::respawn:/usr/lib/gatehouse/agent\n";
/// The first program.
const BEGIN: &str = "#!/bin/sh\nexport PATH=/bin:/sbin\nmount -o remount,rw / 2>/dev/null\nmount -t tmpfs run /run\n\
    mount -t tmpfs tmp /tmp\nmkdir -p /dev/pts /dev/shm\nmount -t devpts devpts /dev/pts\n";

/// Makes an image folder with it as the default image.
///
/// # Errors
/// When the usual image or a tool is missing.
pub fn make_images(folder: &Path) -> Result<()> {
    let (usual, image, root) = (images()?.join("default"), folder.join("default"), folder.join("root"));
    fs::create_dir_all(&image)?;
    for name in ["kernel", "initramfs"] {
        symlink(usual.join(name), image.join(name))?;
    }
    for name in ["bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr/lib/gatehouse", "var"]
    {
        fs::create_dir_all(root.join(name))?;
    }
    let agent = root.join(AGENT);
    let dump = format!("dump /{AGENT} {}", agent.display());
    run(Command::new("/sbin/debugfs").args(["-R", &dump]).arg(usual.join("rootfs.img")))?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755)).context("the usual image has no agent")?;
    fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is missing")?;
    let listed = Command::new("/bin/busybox").arg("--list").output()?;
    for name in String::from_utf8(listed.stdout)?.lines().filter(|name| *name != "busybox") {
        symlink("/bin/busybox", root.join("bin").join(name))?;
    }
    symlink("/bin/busybox", root.join("sbin/init"))?;
    for (name, content) in [
        ("inittab", INITTAB),
        ("begin", BEGIN),
        ("passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("group", "root:x:0:\n"),
        ("hostname", "small\n"),
        ("machine-id", "\n"),
    ] {
        let path = root.join("etc").join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(if name == "begin" { 0o755 } else { 0o644 }))?;
    }
    let mut make = Command::new("/sbin/mke2fs");
    run(make.args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(image.join("rootfs.img")).arg(SIZE))?;
    Ok(fs::remove_dir_all(root)?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(())
}
