//! `wireguard-end INTERFACE`: a WireGuard interface with peers of equal right, which takes wireguard-go's place in
//! WireGuard's own test script. It is the front's parts (the guarded noise states, runs of datagrams, offload of the TUN,
//! joined segments, the socket) and what the front, a server of IPv4 clients that never calls them, has no use for: an
//! initiator, IPv6 inside, many ranges a peer ([`ways`]) and the interface that `wg` speaks ([`uapi`]).
//!
//! It goes to the background when it serves, as the script wants it; `-f` keeps it in front. Never part of a release.

mod device;
mod peer;
mod uapi;
mod ways;

use anyhow::{Context, Result, bail};
use device::Device;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What Ethernet leaves after IPv6, UDP and WireGuard's cover; wireguard-go's choice too.
const MTU: &str = "1420";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [name] => background(name),
        [flag, name] if flag == "-f" => serve(name),
        _ => bail!("usage: wireguard-end [-f] INTERFACE"),
    }
}

/// Starts this program again and returns when that one serves.
fn background(name: &str) -> Result<()> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["-f", name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let said = child.stdout.take().context("it has a pipe")?;
    let mut line = String::new();
    BufReader::new(said).read_line(&mut line)?;
    if line != "serving\n" {
        bail!("{name} does not come up: {}", child.wait()?);
    }
    Ok(())
}

fn serve(name: &str) -> Result<()> {
    let tun = vpn::sys::tun::open(name).with_context(|| format!("no TUN {name}"))?;
    vpn::sys::tun::prepare(&tun).context("no offload")?;
    let set = Command::new("ip").args(["link", "set", "dev", name, "mtu", MTU]).status()?;
    if !set.success() {
        bail!("ip: {set}");
    }
    let path = PathBuf::from("/var/run/wireguard").join(format!("{name}.sock"));
    fs::create_dir_all(path.parent().context("it has a folder")?)?;
    // The TUN is ours, so a socket of its name is of somebody who is gone.
    drop(fs::remove_file(&path));
    let listener = UnixListener::bind(&path)?;
    let own = fs::metadata(&path)?.ino();
    let device = Device::new(tun)?;
    writeln!(std::io::stdout(), "serving")?;
    let ended = device.run(&listener);
    // The next of the same name may be there already.
    if fs::metadata(&path).is_ok_and(|now| now.ino() == own) {
        fs::remove_file(&path)?;
    }
    ended
}
