//! What each process is told at its start: one TOML file each, written by `gatehouse up`, read once.

use crate::host::HostName;
use crate::net::Ipv4Cidr;
use crate::range::IpRange;
use crate::ratio::Ratio;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
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
    /// Certificates with their keys, in files that edge-proxy's view names.
    #[must_use]
    pub fn certificates(&self) -> PathBuf {
        self.feed().join("certificates")
    }
    /// Names in parts, in files that edge-proxy's view names.
    #[must_use]
    pub fn names(&self) -> PathBuf {
        self.feed().join("names")
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
    /// Requests to vpn: which sessions live.
    #[must_use]
    pub fn vpn_socket(&self) -> PathBuf {
        self.vpn_run().join("vpn.sock")
    }
    /// The folder of that socket, which is vpn's own.
    #[must_use]
    pub fn vpn_run(&self) -> PathBuf {
        self.run.join("vpn")
    }
    /// Requests to ssh-proxy: which sessions live, and which VMs its clients wait for.
    #[must_use]
    pub fn ssh_socket(&self) -> PathBuf {
        self.ssh_run().join("ssh.sock")
    }
    /// The folder of that socket, which is ssh-proxy's own.
    #[must_use]
    pub fn ssh_run(&self) -> PathBuf {
        self.run.join("ssh")
    }
    /// The folder of edge-proxy's socket, which is its own.
    #[must_use]
    pub fn edge_run(&self) -> PathBuf {
        self.run.join("edge")
    }
    /// Figures of edge-proxy, for who gathers them.
    #[must_use]
    pub fn edge_figures(&self) -> PathBuf {
        self.edge_run().join("figures.sock")
    }
    /// Figures of ssh-proxy.
    #[must_use]
    pub fn ssh_figures(&self) -> PathBuf {
        self.ssh_run().join("figures.sock")
    }
    /// Figures of vpn.
    #[must_use]
    pub fn vpn_figures(&self) -> PathBuf {
        self.vpn_run().join("figures.sock")
    }
    /// Where SSH logins and channels are logged.
    #[must_use]
    pub fn ssh_log(&self) -> PathBuf {
        self.data.join("ssh")
    }
    /// Where requests to the HTTPS front are logged.
    #[must_use]
    pub fn access_log(&self) -> PathBuf {
        self.data.join("access")
    }
    /// Where flows are logged.
    #[must_use]
    pub fn flow_log(&self) -> PathBuf {
        self.data.join("flows")
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
    /// The name of this host's name server for certificate authorities. It answers when a listener called `dns` is
    /// handed over.
    #[serde(default)]
    pub dns_host: Option<HostName>,
    /// What one client, and one host, may take.
    #[serde(default)]
    pub guard: EdgeGuard,
    /// Whose connections begin with a PROXY header, and nobody else's: load balancers in front.
    #[serde(default)]
    pub proxy_protocol_from: Vec<IpRange>,
    /// Largest file of the access log, in MiB; there are four. Zero: nothing is logged.
    #[serde(default = "access_log_mib")]
    pub access_log_mib: u32,
    /// Where spans of requests are told; nowhere when absent.
    #[serde(default)]
    pub traces: Option<TraceExport>,
}

/// A collector of traces that speaks OTLP over plain HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceExport {
    /// Its address.
    pub endpoint: SocketAddr,
    /// The part that is recorded of traces that begin here. Of others their client says whether they are.
    pub ratio: Ratio,
}

/// What one client address (one /64 in IPv6), and one host, may take of edge-proxy. Zero is no bound. What is over one
/// is refused and counted: a connection is closed, a request is answered with 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EdgeGuard {
    /// Connections at once of one address. Many people may be behind one address of a company or a mobile network.
    pub connections_per_address: u32,
    /// Requests per second of one address; so many may begin at once.
    pub requests_per_second_per_address: u32,
    /// Requests at once of one address, WebSockets included.
    pub requests_at_once_per_address: u32,
    /// Requests per second to one host.
    pub requests_per_second_per_host: u32,
    /// Requests at once to one host, WebSockets included: one host's crowd leaves room for the others.
    pub requests_at_once_per_host: u32,
    /// Bytes per second of a request's body, on average, after its first minute. Streams of gRPC are exempt.
    pub body_bytes_per_second: u32,
}

impl Default for EdgeGuard {
    fn default() -> Self {
        Self {
            connections_per_address: 1024,
            requests_per_second_per_address: 0,
            requests_at_once_per_address: 4096,
            requests_per_second_per_host: 0,
            requests_at_once_per_host: 8192,
            body_bytes_per_second: 100,
        }
    }
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
    /// What VPN clients are told, and how long they may stay.
    #[serde(default)]
    pub vpn: VpnDoor,
    /// Who may read vpn's view; nobody but control and root when absent.
    #[serde(default)]
    pub vpn_gid: Option<u32>,
    /// Where SSH clients reach their VMs.
    #[serde(default)]
    pub ssh: SshDoor,
    /// Who may read ssh-proxy's view; nobody but control and root when absent.
    #[serde(default)]
    pub ssh_gid: Option<u32>,
    /// Who certifies mapped names; nobody when absent.
    #[serde(default)]
    pub acme: Option<AcmeConfig>,
    /// How customers prove their domains.
    #[serde(default)]
    pub domains: DomainProof,
    /// Where Prometheus may ask for the figures of the whole house; nowhere when absent.
    #[serde(default)]
    pub metrics_listen: Option<SocketAddr>,
}

/// A certificate authority (RFC 8555), and how names are proved to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcmeConfig {
    /// The URL of its directory.
    pub directory: String,
    /// Where it may write to: `mailto:` URLs.
    #[serde(default)]
    pub contact: Vec<String>,
    /// The account at the authority that ours is to belong to (RFC 8555 section 7.3.4).
    #[serde(default)]
    pub external_account: Option<ExternalAccount>,
    /// Certificates to trust when it is asked, PEM, in place of the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Ways to prove a name, the preferred one first.
    pub challenges: Vec<ChallengeKind>,
    /// Whether it certifies `*.` of the house's domain too.
    #[serde(default)]
    pub preview: bool,
    /// Orders in three hours, at most.
    pub orders: u32,
}

/// An account that stands at an authority already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// Its name there.
    pub key_id: String,
    /// The file that has its key, base64url.
    pub key_file: PathBuf,
}

/// How a name is proved (RFC 8555 section 8, RFC 8737).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChallengeKind {
    /// By a TLS handshake on port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn,
    /// By a file over plain HTTP on port 80.
    #[serde(rename = "http-01")]
    Http,
    /// By a TXT record.
    #[serde(rename = "dns-01")]
    Dns,
}

/// How customers prove their domains.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DomainProof {
    /// Label before the domain under which the code stands; the usual one when absent.
    pub label: Option<HostName>,
    /// Name servers of the DNS root at which the search begins; the Internet's when empty.
    pub roots: Vec<IpAddr>,
    /// The port on which name servers are asked; DNS's when absent.
    pub port: Option<u16>,
    /// Whether name servers at private, loopback and other special addresses are asked too.
    pub any_address: bool,
    /// Hours between two looks whether a proof still stands; it is not looked at again when absent.
    pub recheck_hours: Option<NonZeroU32>,
}

/// The door of SSH, as its clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SshDoor {
    /// Its name; `vm-ssh.` of the house's domain when absent. Names below it lead there too.
    pub host: Option<HostName>,
    /// The port that clients see.
    pub port: u16,
}

impl Default for SshDoor {
    fn default() -> Self {
        Self { host: None, port: SSH_PORT }
    }
}

/// The door of the VPN, as its clients and sessions see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VpnDoor {
    /// Where clients reach it: a name or an address; `vpn.` of the house's domain when absent.
    pub host: Option<String>,
    /// The UDP port that clients see.
    pub port: u16,
    /// Largest IP packet in a tunnel, in bytes; see [`VPN_MTU`].
    pub mtu: u16,
    /// Where clients' addresses come from, in each VPC; no VPC may overlap it.
    pub pool: Ipv4Cidr,
    /// Whether members of a VPC see its clients under the VPC's first address, and not under their own. For guests that
    /// drop what comes from 100.64.0.0/10, as those with a mesh VPN of their own do.
    pub hide_clients: bool,
    /// A session ends when nothing authentic came from its client for so many seconds.
    pub idle_seconds: NonZeroU32,
    /// A session ends after so many seconds in any case.
    pub longest_seconds: NonZeroU32,
}

/// Seconds after which a silent session ends: time enough to install WireGuard between the call and the first use, and
/// for a laptop's lid.
const VPN_IDLE_SECONDS: NonZeroU32 = NonZeroU32::new(3600).expect("not zero");
/// Seconds after which any session ends: a working day and its night.
const VPN_LONGEST_SECONDS: NonZeroU32 = NonZeroU32::new(24 * 3600).expect("not zero");

impl Default for VpnDoor {
    fn default() -> Self {
        Self {
            host: None,
            port: VPN_PORT,
            mtu: VPN_MTU,
            pool: crate::net::VPN_CLIENTS,
            hide_clients: false,
            idle_seconds: VPN_IDLE_SECONDS,
            longest_seconds: VPN_LONGEST_SECONDS,
        }
    }
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
    /// The user of vpn, who may ask for TUNs and nothing else; nobody when absent.
    #[serde(default)]
    pub vpn_uid: Option<u32>,
    /// The user of ssh-proxy, who may dial VMs and nothing else; nobody when absent.
    #[serde(default)]
    pub ssh_uid: Option<u32>,
    /// Whether flows are logged, into the data folder.
    #[serde(default = "flow_log")]
    pub flow_log: bool,
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

/// ssh-proxy's settings. Its listener comes as a descriptor (`LISTEN_FDS`, name `ssh`); else it binds `listen`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SshConfig {
    /// Where the processes meet.
    pub places: Places,
    /// Where clients come in.
    #[serde(default = "ssh_listen")]
    pub listen: SocketAddr,
    /// What clients may take.
    #[serde(default)]
    pub limits: SshLimits,
}

/// What SSH clients may take. Over a bound they are refused, and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SshLimits {
    /// Connections at once, of all clients: some 150 KiB each, and two descriptors.
    pub connections: u32,
    /// Connections at once that have not logged in.
    pub unauthenticated: u32,
    /// The same of one address (of one /64 in IPv6).
    pub unauthenticated_per_address: u32,
    /// Logged-in connections at once to one VM.
    pub sessions_per_vm: u32,
    /// Channels at once of one connection.
    pub channels: u32,
    /// Seconds from the first byte to a login, as sshd's LoginGraceTime.
    pub login_seconds: NonZeroU32,
    /// Logins that a connection may try, as sshd's MaxAuthTries.
    pub login_attempts: u32,
    /// Bytes that a channel may hold back in each direction, which is its largest window.
    pub channel_bytes: u32,
    /// Seconds that a session lives on while its VM is suspended. A key pressed meanwhile wakes the VM.
    pub asleep_seconds: u32,
}

impl Default for SshLimits {
    fn default() -> Self {
        Self {
            connections: 4096,
            unauthenticated: 256,
            unauthenticated_per_address: 16,
            sessions_per_vm: 256,
            channels: 256,
            login_seconds: NonZeroU32::new(60).expect("not zero"),
            login_attempts: 6,
            channel_bytes: 16 << 20,
            asleep_seconds: 3600,
        }
    }
}

/// SSH's port (RFC 4253, section 4.1).
pub const SSH_PORT: u16 = 22;

fn ssh_listen() -> SocketAddr {
    SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, SSH_PORT))
}

/// MTU of the tunnels: what every path must carry (RFC 8200, section 5), so that no network on the way breaks it.
pub const VPN_MTU: u16 = 1280;
/// WireGuard's usual port.
pub const VPN_PORT: u16 = 51820;

/// Some hundred thousand requests in all four files.
#[must_use]
pub fn access_log_mib() -> u32 {
    32
}

fn flow_log() -> bool {
    true
}

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
    /// The user of ssh-proxy, who may ask for guests' SSH host keys and nothing else; nobody when absent.
    #[serde(default)]
    pub ssh_uid: Option<u32>,
    /// Bytes of a VM's console log that are kept.
    pub console_bytes: u64,
    /// Added to the command line of guests' kernels.
    #[serde(default)]
    pub kernel_arguments: String,
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
