//! What `gatehouse up` is told: flags over one TOML file over defaults, read once and checked before anything runs.

use crate::acme_settings::{AcmeSettings, AcmeWishes};
use crate::domains_settings::DomainWishes;
use crate::edge_settings::{EdgeSettings, EdgeWishes};
use crate::ssh_settings::{SshSettings, SshWishes};
use crate::vpn_settings::{VpnSettings, VpnWishes};
use clap::Args;
use model::config::{DomainProof, VmLimits, VmSize};
use model::host::HostName;
use model::net::Ipv4Cidr;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// The user and group of edge-proxy: fixed numbers outside the ranges that Debian hands out (Debian policy 9.2.2),
/// so that no account needs to be made.
pub const EDGE_ID: u32 = 64_501;
/// The user and group of vpn, likewise.
pub const VPN_ID: u32 = 64_502;
/// The user and group of ssh-proxy, likewise.
pub const SSH_ID: u32 = 64_503;
/// Where state is kept when nothing else is said.
pub const DATA_DIR: &str = "/var/lib/gatehouse";
/// Where sockets are when nothing else is said.
pub const RUN_DIR: &str = "/run/gatehouse";
/// Where settings are read when no file is named and this one is there.
pub const CONFIG_FILE: &str = "/etc/gatehouse/gatehouse.toml";
/// Bytes of each VM's console that are kept: the last boots of a talkative kernel.
const CONSOLE_BYTES: u64 = 1 << 20;
/// Open client connections at once: half of the usual limit of open files, since each needs two.
const MAX_CONNECTIONS: usize = 16_384;
/// VMs that are kept though they do not run: each has files and an address, and none of the host's memory.
const KEPT_VMS: u32 = 5000;
/// Snapshots of one account, as many as it may have VMs.
const MAX_SNAPSHOTS: u32 = 1000;
/// Longest settings file; it is written by hand.
const MAX_CONFIG_BYTES: u64 = 64 << 10;
/// The memory that is promised to VMs leaves at least this much to the host, in MiB: its kernel, Gatehouse's own
/// processes and the page cache of a small host.
const HOST_RESERVE_MIB: u64 = 1024;
/// And at least this share of the host's memory, one tenth: each VM costs page tables and buffers besides its memory.
const HOST_RESERVE_SHARE: u64 = 10;
/// The smallest VM that a Debian guest boots in, in MiB.
const MIN_VM_MIB: u32 = 128;
/// Of the 2048 bytes that the kernel takes, our own need some 300.
const MAX_KERNEL_ARGUMENTS: usize = 1024;

/// What the command line says. Every flag has a line of the same name in the file.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Wishes {
    /// Where state is kept: database, VMs, certificates [default: /var/lib/gatehouse]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where sockets are made [default: /run/gatehouse]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Preview hosts stand below this name, the API is at `api.` of it [default: style.dev]
    #[arg(long, value_name = "NAME")]
    pub domain: Option<HostName>,
    /// Where HTTPS is served [default: 0.0.0.0:443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub https: Option<SocketAddr>,
    /// Where plain HTTP is redirected to HTTPS [default: 0.0.0.0:80]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// The HTTPS port that clients see, if it is another one than the listener's
    #[arg(long, value_name = "PORT")]
    pub public_https_port: Option<u16>,
    /// Also serve the API over plain HTTP here, for programs on this host (for example 127.0.0.1:8600)
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub api_listen: Option<SocketAddr>,
    /// Where the addresses of VMs come from [default: 10.201.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub default_network: Option<Ipv4Cidr>,
    /// Begins the names of namespaces and devices; 1 to 4 of a-z and 0-9 [default: gh]
    #[arg(long, value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// Name servers for guests; the host's own when none is given. May be repeated
    #[arg(long, value_name = "ADDRESS:PORT")]
    #[serde(default)]
    pub upstream_dns: Vec<SocketAddr>,
    /// A folder of images (one folder each: kernel, initramfs, rootfs.img) to use in place of `images` of the data folder
    #[arg(long, value_name = "DIR")]
    pub image_dir: Option<PathBuf>,
    /// The image of VMs that name none [default: default]
    #[arg(long, value_name = "NAME")]
    pub default_image: Option<String>,
    /// Added to the command line of guests' kernels when they boot, such as `mitigations=off` [default: none]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub kernel_arguments: Option<String>,
    /// Virtual CPUs of a VM that names no size, a power of two [default: 4]
    #[arg(long, value_name = "N")]
    pub default_vcpus: Option<u8>,
    /// Memory in MiB of a VM that names no size, a power of two [default: 8192, or what the host can spare]
    #[arg(long, value_name = "MIB")]
    pub default_memory_mib: Option<u32>,
    /// Disk in MiB of a VM that names no size [default: 20480]
    #[arg(long, value_name = "MIB")]
    pub default_disk_mib: Option<u32>,
    /// VMs of one account, whatever their state [default: 1000]
    #[arg(long, value_name = "N")]
    pub max_vms: Option<u32>,
    /// Memory that is promised to running VMs at once, in MiB [default: the host's less a tenth, at least less 1024]
    #[arg(long, value_name = "MIB")]
    pub vm_memory_mib: Option<u32>,
    /// Memory of suspended VMs that is kept on disk, in MiB; over it sticky ones are deleted [default: no bound]
    #[arg(long, value_name = "MIB")]
    pub memory_storage: Option<u64>,
    /// What the disks of all VMs may grow to, in MiB; over it sticky ones that do not run are deleted [default: no bound]
    #[arg(long, value_name = "MIB")]
    pub rootfs_storage: Option<u64>,
    /// VMs that are kept though they do not run, of all accounts; over it sticky ones are deleted [default: 5000]
    #[arg(long, value_name = "N")]
    pub kept_vms: Option<u32>,
    /// Snapshots of one account [default: 1000]
    #[arg(long, value_name = "N")]
    pub max_snapshots: Option<u32>,
    /// Client connections at once [default: 16384]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<usize>,
    /// Log each flow of the networks, as JSON lines below the data folder [default: true]
    #[arg(long, value_name = "BOOL")]
    pub flow_log: Option<bool>,
    /// Where Prometheus may ask for the figures of all processes, `127.0.0.1:9463` for one; nowhere without it
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics_listen: Option<SocketAddr>,
    /// The HTTPS front.
    #[command(flatten)]
    pub edge: EdgeWishes,
    /// The VPN.
    #[command(flatten)]
    pub vpn: VpnWishes,
    /// SSH.
    #[command(flatten)]
    pub ssh: SshWishes,
    /// Who certifies mapped names.
    #[command(flatten)]
    pub acme: AcmeWishes,
    /// Customers' domains.
    #[command(flatten)]
    pub domains: DomainWishes,
}

/// What is true after all three sources were joined and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where state is kept.
    pub data_dir: PathBuf,
    /// Where sockets are made.
    pub run_dir: PathBuf,
    /// The name of the house.
    pub domain: HostName,
    /// HTTPS listener.
    pub https: SocketAddr,
    /// HTTP listener.
    pub http: SocketAddr,
    /// The HTTPS port that clients see.
    pub public_https_port: u16,
    /// Plain HTTP listener of the API.
    pub api_listen: Option<SocketAddr>,
    /// Addresses of VMs.
    pub default_network: Ipv4Cidr,
    /// Begins the names of kernel objects.
    pub prefix: String,
    /// Name servers for guests.
    pub upstream_dns: Vec<SocketAddr>,
    /// Images that live elsewhere.
    pub image_dir: Option<PathBuf>,
    /// The image of VMs that name none.
    pub default_image: String,
    /// Added to the command line of guests' kernels.
    pub kernel_arguments: String,
    /// Size of VMs that name none.
    pub default_size: VmSize,
    /// What may be asked for.
    pub limits: VmLimits,
    /// Bytes of each VM's console that are kept.
    pub console_bytes: u64,
    /// Client connections at once.
    pub max_connections: usize,
    /// Whether flows are logged.
    pub flow_log: bool,
    /// Where Prometheus may ask for all figures.
    pub metrics_listen: Option<SocketAddr>,
    /// The HTTPS front.
    pub edge: EdgeSettings,
    /// The VPN.
    pub vpn: VpnSettings,
    /// SSH.
    pub ssh: SshSettings,
    /// Who certifies mapped names.
    pub acme: AcmeSettings,
    /// Customers' domains.
    pub domains: DomainProof,
}

/// Why the settings are refused. Nothing was touched.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The file is not there or cannot be read.
    #[error("the settings file {path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is over its bound.
    #[error("the settings file {path} is larger than 64 KiB; it should hold a few lines")]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// The file is not TOML, or has a line that no setting has.
    #[error("the settings file {path} cannot be understood: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<toml::de::Error>,
    },
    /// A value cannot be.
    #[error("{setting} = {got} cannot be: {why}")]
    Value {
        /// Which setting.
        setting: &'static str,
        /// What was said.
        got: String,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// Reads the settings file: the named one, or the usual one if it is there.
///
/// # Errors
/// When the named file is missing, or any file cannot be understood.
pub fn read_file(named: Option<&Path>) -> Result<Wishes, SettingsError> {
    let path = named.unwrap_or(Path::new(CONFIG_FILE));
    let failed = |source| SettingsError::Read { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Ok(facts) if facts.len() > MAX_CONFIG_BYTES => {
            return Err(SettingsError::TooLarge { path: path.to_owned() });
        }
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => {
            return Ok(Wishes::default());
        }
        Err(error) => return Err(failed(error)),
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text)
        .map_err(|source| SettingsError::Parse { path: path.to_owned(), source: Box::new(source) })
}

impl Wishes {
    /// Joins two sources: what `self` says wins.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            data_dir: self.data_dir.or(below.data_dir),
            run_dir: self.run_dir.or(below.run_dir),
            domain: self.domain.or(below.domain),
            https: self.https.or(below.https),
            http: self.http.or(below.http),
            public_https_port: self.public_https_port.or(below.public_https_port),
            api_listen: self.api_listen.or(below.api_listen),
            default_network: self.default_network.or(below.default_network),
            prefix: self.prefix.or(below.prefix),
            upstream_dns: if self.upstream_dns.is_empty() { below.upstream_dns } else { self.upstream_dns },
            image_dir: self.image_dir.or(below.image_dir),
            default_image: self.default_image.or(below.default_image),
            kernel_arguments: self.kernel_arguments.or(below.kernel_arguments),
            default_vcpus: self.default_vcpus.or(below.default_vcpus),
            default_memory_mib: self.default_memory_mib.or(below.default_memory_mib),
            default_disk_mib: self.default_disk_mib.or(below.default_disk_mib),
            max_vms: self.max_vms.or(below.max_vms),
            vm_memory_mib: self.vm_memory_mib.or(below.vm_memory_mib),
            memory_storage: self.memory_storage.or(below.memory_storage),
            rootfs_storage: self.rootfs_storage.or(below.rootfs_storage),
            kept_vms: self.kept_vms.or(below.kept_vms),
            max_snapshots: self.max_snapshots.or(below.max_snapshots),
            max_connections: self.max_connections.or(below.max_connections),
            flow_log: self.flow_log.or(below.flow_log),
            metrics_listen: self.metrics_listen.or(below.metrics_listen),
            edge: self.edge.over(below.edge),
            vpn: self.vpn.over(below.vpn),
            ssh: self.ssh.over(below.ssh),
            acme: self.acme.over(below.acme),
            domains: self.domains.over(below.domains),
        }
    }

    /// Fills in what nobody said, and checks all of it. `host` is what this machine has.
    ///
    /// # Errors
    /// [`SettingsError::Value`] for the first value that cannot be.
    pub fn settle(self, host: Host) -> Result<Settings, SettingsError> {
        let limits = self.limits(host)?;
        let default_size = self.default_size(&limits)?;
        let https = self.https.unwrap_or((Ipv4Addr::UNSPECIFIED, 443).into());
        let default_network = network(self.default_network)?;
        let domain = self.domain.unwrap_or_else(|| "style.dev".parse().expect("a host name"));
        let settings = Settings {
            data_dir: absolute("data-dir", self.data_dir.unwrap_or(DATA_DIR.into()))?,
            run_dir: absolute("run-dir", self.run_dir.unwrap_or(RUN_DIR.into()))?,
            acme: self.acme.settle(&domain)?,
            domain,
            https,
            http: self.http.unwrap_or((Ipv4Addr::UNSPECIFIED, 80).into()),
            public_https_port: self.public_https_port.unwrap_or(https.port()),
            api_listen: self.api_listen,
            default_network,
            prefix: prefix(self.prefix.unwrap_or("gh".into()))?,
            upstream_dns: self.upstream_dns,
            image_dir: self.image_dir.map(|dir| absolute("image-dir", dir)).transpose()?,
            default_image: image_name(self.default_image.unwrap_or("default".into()))?,
            kernel_arguments: kernel_arguments(self.kernel_arguments.unwrap_or_default())?,
            default_size,
            limits,
            console_bytes: CONSOLE_BYTES,
            max_connections: self.max_connections.unwrap_or(MAX_CONNECTIONS),
            flow_log: self.flow_log.unwrap_or(true),
            metrics_listen: self.metrics_listen,
            edge: self.edge.settle()?,
            vpn: self.vpn.settle(default_network)?,
            ssh: self.ssh.settle()?,
            domains: self.domains.settle()?,
        };
        distinct_listeners(&settings)?;
        Ok(settings)
    }

    fn limits(&self, host: Host) -> Result<VmLimits, SettingsError> {
        let reserve = HOST_RESERVE_MIB.max(host.memory_mib.div_ceil(HOST_RESERVE_SHARE));
        let spare = host.memory_mib.saturating_sub(reserve);
        let memory_mib = self.vm_memory_mib.unwrap_or(u32::try_from(spare).unwrap_or(u32::MAX));
        if memory_mib < MIN_VM_MIB {
            return Err(value("vm-memory-mib", memory_mib, format!("a VM needs at least {MIN_VM_MIB} MiB")));
        }
        let largest = VmSize { vcpus: 8, memory_mib: 65_536.min(power_below(memory_mib)), disk_mib: 1 << 20 };
        Ok(VmLimits {
            largest,
            vms_per_account: self.max_vms.unwrap_or(1000),
            memory_mib,
            memory_storage_mib: self.memory_storage,
            rootfs_storage_mib: self.rootfs_storage,
            kept_vms: self.kept_vms.unwrap_or(KEPT_VMS),
            snapshots_per_account: self.max_snapshots.unwrap_or(MAX_SNAPSHOTS),
        })
    }

    fn default_size(&self, limits: &VmLimits) -> Result<VmSize, SettingsError> {
        let size = VmSize {
            vcpus: self.default_vcpus.unwrap_or(4),
            memory_mib: self.default_memory_mib.unwrap_or(8192.min(limits.largest.memory_mib)),
            disk_mib: self.default_disk_mib.unwrap_or(20_480),
        };
        if !size.vcpus.is_power_of_two() || size.vcpus > limits.largest.vcpus {
            return Err(value("default-vcpus", size.vcpus, "it must be 1, 2, 4 or 8".into()));
        }
        if !size.memory_mib.is_power_of_two()
            || size.memory_mib < MIN_VM_MIB
            || size.memory_mib > limits.largest.memory_mib
        {
            let why =
                format!("it must be a power of two between {MIN_VM_MIB} and {}", limits.largest.memory_mib);
            return Err(value("default-memory-mib", size.memory_mib, why));
        }
        if size.disk_mib == 0 || size.disk_mib > limits.largest.disk_mib {
            let why = format!("it must be between 1 and {}", limits.largest.disk_mib);
            return Err(value("default-disk-mib", size.disk_mib, why));
        }
        if let Some(all) = limits.rootfs_storage_mib.filter(|all| *all < u64::from(size.disk_mib)) {
            let why =
                format!("a VM that names no size has a disk of {} MiB, so none could be made", size.disk_mib);
            return Err(value("rootfs-storage", all, why));
        }
        Ok(size)
    }
}

/// What this machine has, as far as defaults depend on it.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Memory in MiB.
    pub memory_mib: u64,
}

impl Host {
    /// Asks the kernel.
    #[must_use]
    pub fn here() -> Self {
        let info = rustix::system::sysinfo();
        Self { memory_mib: (info.totalram * u64::from(info.mem_unit)) >> 20 }
    }
}

fn power_below(mib: u32) -> u32 {
    if mib.is_power_of_two() { mib } else { mib.next_power_of_two() / 2 }
}

pub(crate) fn value(setting: &'static str, got: impl ToString, why: String) -> SettingsError {
    SettingsError::Value { setting, got: got.to_string(), why }
}

fn absolute(setting: &'static str, path: PathBuf) -> Result<PathBuf, SettingsError> {
    std::path::absolute(&path).map_err(|error| value(setting, path.display(), error.to_string()))
}

fn network(cidr: Option<Ipv4Cidr>) -> Result<Ipv4Cidr, SettingsError> {
    let cidr = cidr.unwrap_or_else(|| "10.201.0.0/16".parse().expect("a network"));
    if !(8..=28).contains(&cidr.prefix()) {
        return Err(value("default-network", cidr, "its prefix must be between /8 and /28".into()));
    }
    Ok(cidr)
}

fn prefix(prefix: String) -> Result<String, SettingsError> {
    let good = (1..=4).contains(&prefix.len())
        && prefix.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if good { Ok(prefix) } else { Err(value("prefix", prefix, "it must be 1 to 4 of a-z and 0-9".into())) }
}

fn image_name(name: String) -> Result<String, SettingsError> {
    let good = !name.is_empty()
        && name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    let why = "it must be the name of a folder: letters, digits, '-', '_' and '.'";
    if good { Ok(name) } else { Err(value("default-image", name, why.into())) }
}

/// Bytes that the kernel does not understand stay out, and the word after which all others would be those of init.
fn kernel_arguments(text: String) -> Result<String, SettingsError> {
    let printable = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
    if text.len() > MAX_KERNEL_ARGUMENTS || !printable || text.split(' ').any(|word| word == "--") {
        let why = format!(
            "it must be at most {MAX_KERNEL_ARGUMENTS} printable ASCII characters without the word '--'"
        );
        return Err(value("kernel-arguments", text, why));
    }
    Ok(text)
}

fn distinct_listeners(settings: &Settings) -> Result<(), SettingsError> {
    for (name, other) in [("http", settings.http), ("ssh-listen", settings.ssh.listen)] {
        if settings.https == other && other.port() != 0 {
            return Err(value(name, other, "HTTPS listens there; give each its own port".into()));
        }
    }
    if settings.ssh.listen == settings.http && settings.http.port() != 0 {
        return Err(value("ssh-listen", settings.http, "HTTP listens there; give each its own port".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: Host = Host { memory_mib: 24_000 };

    #[test]
    fn defaults_are_good() {
        let settings = Wishes::default().settle(HOST).expect("defaults");
        assert_eq!(settings.domain.as_str(), "style.dev");
        assert_eq!(settings.default_size, VmSize { vcpus: 4, memory_mib: 8192, disk_mib: 20_480 });
        assert_eq!(settings.limits.memory_mib, 21_600, "a tenth is left to the host");
        assert_eq!((settings.limits.memory_storage_mib, settings.limits.rootfs_storage_mib), (None, None));
        assert_eq!(settings.limits.largest.memory_mib, 16_384);
        let small = Wishes::default().settle(Host { memory_mib: 4096 }).expect("a small host");
        assert_eq!((small.limits.memory_mib, small.default_size.memory_mib), (3072, 2048));
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: Wishes =
            toml::from_str("domain = \"file.example\"\nhttps = \"127.0.0.1:8443\"").expect("file");
        let flags = Wishes { domain: Some("flag.example".parse().expect("host")), ..Wishes::default() };
        let budgets: Wishes =
            toml::from_str("memory-storage = 0\nrootfs-storage = 8000000").expect("budgets");
        let settings = flags.over(file).over(budgets).settle(HOST).expect("all");
        assert_eq!(settings.limits.memory_storage_mib, Some(0), "nothing may be kept, not: no bound");
        assert_eq!(settings.limits.rootfs_storage_mib, Some(8_000_000));
        let vpn: Wishes =
            toml::from_str("[vpn]\nlisten = \"0.0.0.0:4500\"\nhide-clients = true").expect("vpn");
        let door = vpn.settle(HOST).expect("good").vpn;
        assert_eq!((door.listen.port(), door.door.hide_clients), (4500, true));
        assert!(toml::from_str::<Wishes>("[vpn]\nlisen = \"x\"").is_err(), "misspelt there");
        assert_eq!(settings.domain.as_str(), "flag.example");
        assert_eq!((settings.https.port(), settings.public_https_port), (8443, 8443));
    }

    #[test]
    fn a_wrong_line_is_refused_with_its_name() {
        let error = toml::from_str::<Wishes>("domian = \"x\"").expect_err("misspelt");
        assert!(error.to_string().contains("domian"));
        let folder = tempfile::tempdir().expect("folder");
        let missing = folder.path().join("none.toml");
        assert!(matches!(read_file(Some(&missing)), Err(SettingsError::Read { .. })));
    }

    #[test]
    fn bad_values_are_named() {
        let refused = |wishes: Wishes| wishes.settle(HOST).expect_err("refused").to_string();
        assert!(refused(Wishes { prefix: Some("Long!".into()), ..Wishes::default() }).starts_with("prefix"));
        assert!(
            refused(Wishes { default_vcpus: Some(3), ..Wishes::default() }).starts_with("default-vcpus = 3")
        );
        assert!(
            refused(Wishes { default_memory_mib: Some(3000), ..Wishes::default() }).contains("power of two")
        );
        assert!(
            refused(Wishes { default_image: Some("../etc".into()), ..Wishes::default() }).contains("folder")
        );
        for text in ["quiet\nx", "a -- b", "\u{e9}", &"x".repeat(1025)] {
            let wishes = Wishes { kernel_arguments: Some(text.to_owned()), ..Wishes::default() };
            assert!(refused(wishes).starts_with("kernel-arguments"), "{text}");
        }
        let small = Wishes { rootfs_storage: Some(20_479), ..Wishes::default() };
        assert!(refused(small).starts_with("rootfs-storage = 20479"));
        let same = "127.0.0.1:9000".parse().ok();
        assert!(refused(Wishes { https: same, http: same, ..Wishes::default() }).starts_with("http"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,200}") {
            if let Ok(wishes) = toml::from_str::<Wishes>(&text) {
                prop_assert!(wishes.settle(HOST).is_ok() || !text.is_empty());
            }
        }
    }
}
