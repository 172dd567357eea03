//! What each process is told at its start: one TOML file each, written by `gatehouse up`, read once.

use crate::host::HostName;
use crate::net::Ipv4Cidr;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where the processes meet. All paths are below the data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Places {
    /// State that must survive: views, database, images, VMs.
    pub data: PathBuf,
    /// Sockets.
    pub run: PathBuf,
}

impl Places {
    /// View files.
    #[must_use]
    pub fn feed(&self) -> PathBuf {
        self.data.join("feed")
    }
    /// Where readers of views hear of new ones.
    #[must_use]
    pub fn feed_socket(&self) -> PathBuf {
        self.run.join("feed.sock")
    }
    /// Requests to vpc.
    #[must_use]
    pub fn vpc_socket(&self) -> PathBuf {
        self.run.join("vpc.sock")
    }
    /// Requests to the supervisor of the VMs.
    #[must_use]
    pub fn vmm_socket(&self) -> PathBuf {
        self.run.join("vmm.sock")
    }
    /// The public API, as edge-proxy reaches it: every request must carry its key.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }
    /// The same API and the operator's own calls, for root on this host alone.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }
    /// One directory per VM.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.data.join("vms")
    }
    /// One directory per snapshot.
    #[must_use]
    pub fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }
    /// Kernels, initramfs and root file systems.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }
    /// The local certificate authority and the certificates made by it.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.data.join("tls")
    }
}

/// edge-proxy's settings. Its listeners come as descriptors (`LISTEN_FDS`, names `https` and `http`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeConfig {
    /// Where the processes meet.
    pub places: Places,
    /// Port that redirects to HTTPS name in their answer; clients may see another one than the listener's.
    pub public_https_port: u16,
    /// Open client connections at once; over it new ones are closed at once and counted.
    pub max_connections: usize,
}

/// control's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// Where the processes meet.
    pub places: Places,
    /// Preview hosts stand below this name, and the API at `api.` of it.
    pub domain: HostName,
    /// Where the default network's addresses come from.
    pub default_network: Ipv4Cidr,
    /// Plain HTTP for programs on this host; none when absent.
    pub api_listen: Option<SocketAddr>,
    /// The image of VMs that name none: a folder below `images`.
    pub default_image: String,
    /// Size of VMs that name none.
    pub default_size: VmSize,
    /// What VMs may ask for and how many there may be.
    pub limits: VmLimits,
    /// Who may read edge-proxy's view; nobody but control and root when absent.
    pub edge_gid: Option<u32>,
}

/// vpc's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpcConfig {
    /// Where the processes meet.
    pub places: Places,
    /// Prefix of the names of namespaces, devices and tables, so that two appliances fit on a host.
    /// One to four characters of a-z and 0-9.
    pub prefix: String,
    /// Users besides root who may ask for descriptors.
    pub allowed_uids: Vec<u32>,
    /// Name servers to which guests' questions go; the host's own when empty.
    pub upstream_dns: Vec<SocketAddr>,
}

/// vpn's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VpnConfig {
    /// Where the processes meet.
    pub places: Places,
    /// Where WireGuard's datagrams come in.
    #[serde(default = "vpn_listen")]
    pub listen: SocketAddr,
    /// Largest IP packet in a tunnel, in bytes; see [`VPN_MTU`].
    #[serde(default = "vpn_mtu")]
    pub mtu: u16,
    /// Whether clients of one network reach each other.
    #[serde(default)]
    pub client_to_client: bool,
}

/// MTU of the tunnels: what every path must carry (RFC 8200, section 5), so that no network on the way breaks it.
pub const VPN_MTU: u16 = 1280;
/// WireGuard's usual port.
pub const VPN_PORT: u16 = 51820;

fn vpn_listen() -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, VPN_PORT))
}

fn vpn_mtu() -> u16 {
    VPN_MTU
}

/// The settings of the VMs' supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// Where the processes meet.
    pub places: Places,
    /// Users besides root who may ask.
    pub allowed_uids: Vec<u32>,
    /// Bytes of a VM's console log that are kept.
    pub console_bytes: u64,
}

/// How large a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSize {
    /// Virtual CPUs, a power of two.
    pub vcpus: u8,
    /// Memory in MiB, a power of two.
    pub memory_mib: u32,
    /// Root file system in MiB.
    pub disk_mib: u32,
}

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmLimits {
    /// Largest VM.
    pub largest: VmSize,
    /// VMs of one account, whatever their state.
    pub vms_per_account: u32,
    /// Memory promised at once to VMs that run or come up, in MiB.
    pub memory_mib: u32,
    /// Memory of VMs that sleep, which is on disk, in MiB. Over it, sticky ones are deleted. No bound when absent.
    pub memory_storage_mib: Option<u64>,
    /// What the disks of all VMs may grow to together, in MiB. Over it, sticky ones that do not run are deleted. No
    /// bound when absent.
    pub rootfs_storage_mib: Option<u64>,
    /// VMs that are kept though they do not run, of all accounts together. Over it, sticky ones are deleted.
    pub kept_vms: u32,
    /// Snapshots of one account.
    pub snapshots_per_account: u32,
}
