//! What can be seen of the host without running a guest.

use super::Finding;
use crate::settings::Settings;
use crate::up::children;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

/// Below this an image and one VM's disk do not fit, in MiB.
const LEAST_DISK_MIB: u64 = 4 << 10;
/// Below this there is room for a few VMs only, in MiB.
const GOOD_DISK_MIB: u64 = 20 << 10;
/// Below this no Debian guest fits beside the house, in MiB.
const LEAST_MEMORY_MIB: u64 = 1 << 10;
/// Descriptors that the house needs besides two for each client connection.
const OWN_DESCRIPTORS: u64 = 1024;

/// Only root may make namespaces, TAPs and VMs.
#[must_use]
pub fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        return Finding::good("root", "runs as root");
    }
    Finding::bad("root", "runs as an ordinary user, who may not make networks or VMs", "run it with sudo")
}

/// The device behind every NIC.
#[must_use]
pub fn tun() -> Finding {
    match OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("TUN/TAP", "/dev/net/tun opens"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Finding::bad("TUN/TAP", format!("/dev/net/tun: {error}"), "run it with sudo")
        }
        Err(error) => Finding::bad(
            "TUN/TAP",
            format!("/dev/net/tun: {error}; VMs would have no network"),
            "modprobe tun; in a container, pass the device in",
        ),
    }
}

/// The program and the kernel's half.
#[must_use]
pub fn nftables() -> Finding {
    let install = "apt-get install -y nftables";
    match Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output() {
        Ok(output) if output.status.success() => Finding::good("nftables", "nft and the kernel agree"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Finding::bad("nftables", format!("nft fails: {said}"), "run as root; modprobe nf_tables")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Finding::bad("nftables", "the program nft is missing; VMs could not be fenced", install)
        }
        Err(error) => Finding::bad("nftables", format!("nft cannot be started: {error}"), install),
    }
}

/// One network namespace per private network.
#[must_use]
pub fn namespaces() -> Finding {
    let tried = Command::new("unshare").args(["--net", "true"]).stdin(Stdio::null()).output();
    match tried {
        Ok(output) if output.status.success() => {
            Finding::good("namespaces", "network namespaces can be made")
        }
        Ok(output) => Finding::bad(
            "namespaces",
            format!("a network namespace cannot be made: {}", String::from_utf8_lossy(&output.stderr).trim()),
            "run as root, outside a container or with CAP_SYS_ADMIN and CAP_NET_ADMIN",
        ),
        Err(error) => Finding::bad(
            "namespaces",
            format!("the program unshare cannot be started: {error}"),
            "apt-get install -y util-linux",
        ),
    }
}

/// What bounds a VM's process.
#[must_use]
pub fn cgroups() -> Finding {
    let mount = Path::new("/sys/fs/cgroup");
    let listed = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|name| !listed.split_whitespace().any(|one| one == *name))
        .collect();
    if missing.is_empty() {
        return Finding::good("cgroups", "VMs' processes are bounded by cgroup v2");
    }
    Finding::warning(
        "cgroups",
        format!(
            "{} has no {}; a VM's process that was taken over could use the whole host",
            mount.display(),
            missing.join(", ")
        ),
        "boot with systemd.unified_cgroup_hierarchy=1",
    )
}

/// The other programs of the house, beside this one.
#[must_use]
pub fn programs() -> Finding {
    match children::missing_programs() {
        Ok(missing) if missing.is_empty() => Finding::good(
            "programs",
            "vpc, vmm, control, vpn, ssh-proxy and edge-proxy stand beside gatehouse",
        ),
        Ok(missing) => Finding::bad(
            "programs",
            format!("missing beside gatehouse: {}", missing.join(", ")),
            "cargo build --release --workspace, and install all programs into one folder",
        ),
        Err(error) => Finding::bad("programs", error.to_string(), "start gatehouse by its full path"),
    }
}

/// Whether the doors' ports are free.
#[must_use]
pub fn ports(settings: &Settings) -> Vec<Finding> {
    let api = settings.api_listen.map(|address| ("port of the API", address));
    let doors = [
        ("port of HTTPS", settings.https),
        ("port of HTTP", settings.http),
        ("port of SSH", settings.ssh.listen),
    ];
    let tcp = doors.into_iter().chain(api).map(|(check, address)| {
        port(check, address, TcpListener::bind(address).map(drop), "-ltnp", settings)
    });
    let vpn = settings.vpn.listen;
    let udp = port("port of WireGuard", vpn, UdpSocket::bind(vpn).map(drop), "-lunp", settings);
    tcp.chain([udp]).collect()
}

fn port(
    check: &'static str,
    address: SocketAddr,
    bound: io::Result<()>,
    look: &str,
    settings: &Settings,
) -> Finding {
    match bound {
        Ok(()) => Finding::good(check, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && crate::up::house::is_open(settings) => {
            Finding::good(check, format!("{address} is used by Gatehouse, which runs"))
        }
        Err(error) if error.kind() == ErrorKind::AddrInUse => Finding::bad(
            check,
            format!("{address} is used by another program"),
            format!("see who with: ss {look} 'sport = :{}'; or choose another port", address.port()),
        ),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Finding::bad(check, format!("{address}: {error}"), "run it with sudo")
        }
        Err(error) => Finding::bad(
            check,
            format!("{address} cannot be listened on: {error}"),
            "choose an address that this host has: ip address",
        ),
    }
}

/// The image of VMs that name none.
#[must_use]
pub fn image(settings: &Settings) -> Finding {
    let folder = children::places(settings).images();
    let folder = settings.image_dir.clone().unwrap_or(folder).join(&settings.default_image);
    let missing: Vec<&str> = ["kernel", "initramfs", "rootfs.img"]
        .into_iter()
        .filter(|name| !folder.join(name).is_file())
        .collect();
    if missing.is_empty() {
        return Finding::good("image", folder.display().to_string());
    }
    Finding::bad(
        "image",
        format!("{} lacks {}; no VM could boot", folder.display(), missing.join(", ")),
        "cargo xtask image, then start with --image-dir target/image",
    )
}

/// Room for disks and logs.
#[must_use]
pub fn disk(settings: &Settings) -> Finding {
    let Some(folder) = settings.data_dir.ancestors().find(|folder| folder.is_dir()) else {
        return Finding::bad("disk", "no folder above the data folder exists", "choose another --data-dir");
    };
    let facts = match rustix::fs::statvfs(folder) {
        Ok(facts) => facts,
        Err(error) => {
            return Finding::bad(
                "disk",
                format!("{}: {error}", folder.display()),
                "choose another --data-dir",
            );
        }
    };
    let free = (facts.f_bavail * facts.f_frsize) >> 20;
    let found = format!("{free} MiB free for {}", settings.data_dir.display());
    let remedy = "free some, or choose another --data-dir";
    match free {
        free if free < LEAST_DISK_MIB => Finding::bad("disk", found, remedy),
        free if free < GOOD_DISK_MIB => Finding::warning("disk", found, remedy),
        _ => Finding::good("disk", found),
    }
}

/// Room for VMs.
#[must_use]
pub fn memory(settings: &Settings) -> Finding {
    let free = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib >> 10);
    let wanted = u64::from(settings.default_size.memory_mib);
    let found = format!("{free} MiB free; a VM that names no size gets {wanted}");
    let remedy = "give the host more, or choose a smaller --default-memory-mib";
    match free {
        free if free < LEAST_MEMORY_MIB => Finding::bad("memory", found, remedy),
        free if free < wanted => Finding::warning("memory", found, remedy),
        _ => Finding::good("memory", found),
    }
}

/// Two descriptors for each client connection.
#[must_use]
pub fn open_files(settings: &Settings) -> Finding {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let wanted = settings.max_connections as u64 * 2 + OWN_DESCRIPTORS;
    let found = format!("a process may open {limit} files; {wanted} serve all client connections");
    if limit >= wanted {
        return Finding::good("open files", found);
    }
    Finding::warning(
        "open files",
        found,
        "ulimit -Hn 65536 (or LimitNOFILE= in the unit), or fewer --max-connections",
    )
}

/// Certificates and API tokens are judged by the clock.
#[must_use]
pub fn clock() -> Finding {
    let asked = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    let remedy = "apt-get install -y systemd-timesyncd (or chrony)";
    match asked {
        Ok(output) if output.status.success() && output.stdout.starts_with(b"yes") => {
            Finding::good("clock", "kept by a time server")
        }
        Ok(output) if output.status.success() => Finding::warning(
            "clock",
            "not kept by a time server; certificates may seem to be of another day",
            remedy,
        ),
        Ok(_) | Err(_) => {
            Finding::warning("clock", "nobody here knows whether a time server keeps it", remedy)
        }
    }
}

/// Units can keep the house over a restart of the host.
#[must_use]
pub fn systemd() -> Finding {
    if Path::new("/run/systemd/system").is_dir() {
        return Finding::good("systemd", "runs; the units of deploy/systemd can be installed");
    }
    Finding::warning(
        "systemd",
        "does not run here; `gatehouse up` must be started by hand",
        "nothing, if that is what you want",
    )
}
