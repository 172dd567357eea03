//! Views: what control publishes to each process, as one immutable file with a generation.
//!
//! An entry that cannot be read is left out and counted, so that it fails closed alone and the others serve.

use crate::digest::Digest;
use crate::firewall::RuleEntry;
use crate::host::{HostName, MappedName};
use crate::id::{Generation, PeeringId, ServiceId, VmId, VpcId, WireGuardSessionId};
use crate::key::{PublicKey, SecretKey};
use crate::names::NameParts;
use crate::net::{Ipv4Cidr, MacAddress};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;

/// The layout of the view files. A reader refuses another one.
pub const VIEW_VERSION: u32 = 1;

/// What all views have in common.
pub trait View: Serialize + for<'de> Deserialize<'de> + Send + Sync + 'static {
    /// The view's name: its file is `<name>.json`.
    const NAME: &'static str;
    /// Layout of the file, [`VIEW_VERSION`] when this build wrote it.
    fn version(&self) -> u32;
    /// Which decision it holds.
    fn generation(&self) -> Generation;
    /// Entries that could not be read.
    fn rejected(&self) -> usize;
}

/// A list whose bad entries are dropped and counted, never fatal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Entries<T> {
    good: Vec<T>,
    #[serde(skip)]
    rejected: usize,
}

impl<T> Entries<T> {
    /// How many entries could not be read.
    #[must_use]
    pub fn rejected(&self) -> usize {
        self.rejected
    }

    /// The entries that could be read.
    pub fn iter(&self) -> std::slice::Iter<'_, T> {
        self.good.iter()
    }

    /// How many could be read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.good.len()
    }

    /// Whether none could be read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.good.is_empty()
    }

    /// Adds one.
    pub fn push(&mut self, entry: T) {
        self.good.push(entry);
    }

    /// Takes all that could be read out.
    pub fn take(&mut self) -> Vec<T> {
        std::mem::take(&mut self.good)
    }
}

impl<T> From<Vec<T>> for Entries<T> {
    fn from(good: Vec<T>) -> Self {
        Self { good, rejected: 0 }
    }
}

impl<T> Default for Entries<T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<'a, T> IntoIterator for &'a Entries<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.good.iter()
    }
}

impl<'de, T: serde::de::DeserializeOwned> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = Vec::<serde_json::Value>::deserialize(deserializer)?;
        let all = values.len();
        let good: Vec<T> =
            values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect();
        let rejected = all - good.len();
        Ok(Self { good, rejected })
    }
}

/// One host that leads to a port of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteEntry {
    /// The public name, or all names below one.
    pub host: MappedName,
    /// The VM that answers.
    pub vm: VmId,
    /// TCP port inside the VM, 1..=65535.
    pub port: u16,
    /// Grows each time the VM starts or resumes: pooled connections of an older one are not used again.
    pub run: u64,
}

/// A certificate with its key, for the names that it covers. Both stand in a file of their own, which a view need not
/// carry along each time that something else changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateEntry {
    /// Names as in the certificate; `*.` stands for one label.
    pub names: Vec<String>,
    /// Names the file: a key (PKCS #8) and a chain, leaf first, as PEM (RFC 7468). A secret.
    pub file: Digest,
}

/// What a certificate authority asks the doors to show, as proof that a name leads here (RFC 8555 section 8).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChallengeEntry {
    /// A certificate for TLS clients that speak `acme-tls/1` alone (RFC 8737).
    TlsAlpn {
        /// The name that is proved.
        name: HostName,
        /// The certificate, PEM.
        chain_pem: String,
        /// Its key, PKCS #8, PEM. Of no use for anything else.
        key_pem: String,
    },
    /// A file over plain HTTP (RFC 8555 section 8.3).
    Http {
        /// The name that is proved.
        name: HostName,
        /// The last part of its path.
        token: String,
        /// What stands in it.
        answer: String,
    },
    /// A TXT record at `_acme-challenge.` of the name (RFC 8555 section 8.4).
    Dns {
        /// The name that is proved, without `*.`.
        name: HostName,
        /// What stands in it.
        answer: String,
    },
}

impl ChallengeEntry {
    /// The name that is proved.
    #[must_use]
    pub fn name(&self) -> &HostName {
        match self {
            Self::TlsAlpn { name, .. } | Self::Http { name, .. } | Self::Dns { name, .. } => name,
        }
    }
}

impl fmt::Debug for ChallengeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self {
            Self::TlsAlpn { .. } => "TlsAlpn",
            Self::Http { .. } => "Http",
            Self::Dns { .. } => "Dns",
        };
        f.debug_struct(kind).field("name", self.name()).finish_non_exhaustive()
    }
}

/// What edge-proxy must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeView {
    /// See [`VIEW_VERSION`].
    pub version: u32,
    /// Which decision this is.
    pub generation: Generation,
    /// Names that lead to control's API.
    pub api_hosts: Vec<HostName>,
    /// Names that lead to VMs.
    pub routes: Entries<RouteEntry>,
    /// Names whose VM was deleted, and which lead nowhere since.
    #[serde(default)]
    pub gone: Entries<MappedName>,
    /// Certificates by name.
    pub certificates: Entries<CertificateEntry>,
    /// What certificate authorities ask to see.
    #[serde(default)]
    pub challenges: Entries<ChallengeEntry>,
    /// More routes, names that lead nowhere and certificates, see [`crate::names`].
    #[serde(default)]
    pub names: Option<NameParts>,
}

impl View for EdgeView {
    const NAME: &'static str = "edge";
    fn version(&self) -> u32 {
        self.version
    }
    fn generation(&self) -> Generation {
        self.generation
    }
    fn rejected(&self) -> usize {
        self.routes.rejected()
            + self.gone.rejected()
            + self.certificates.rejected()
            + self.challenges.rejected()
    }
}

/// One NIC of a VM: a port of the switch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortEntry {
    /// Whose it is.
    pub vm: VmId,
    /// The guest's Ethernet address; frames from another are dropped.
    pub mac: MacAddress,
    /// The guest's address; packets from another are dropped.
    pub ipv4: Ipv4Addr,
    /// Queue pairs of the TAP: 1, or as many as the VM has vCPUs.
    pub queues: u8,
    /// TCP ports that the doors may dial. Nothing else is dialled.
    pub dialable: Vec<u16>,
    /// The VM has no process, and a packet for it is to wake it.
    #[serde(default)]
    pub asleep: bool,
    /// Labels under [`crate::net::VPC_DOMAIN`] that mean this address inside its network. Lower case.
    #[serde(default)]
    pub names: Vec<String>,
}

/// A private network of an account. Its range may be another network's as well: they never meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkEntry {
    /// Which one.
    pub vpc: VpcId,
    /// Where the addresses of its members come from.
    pub range: Ipv4Cidr,
    /// Its VMs' ports.
    pub ports: Entries<PortEntry>,
    /// Members that are no VMs. One that is named here has its address, and stands once it has joined.
    #[serde(default)]
    pub services: Entries<ServiceEntry>,
    /// Other networks that this one reaches. The other one's entry names this one.
    #[serde(default)]
    pub peerings: Entries<PeeringEntry>,
    /// Its firewall, in the order of judgement.
    #[serde(default)]
    pub rules: Entries<RuleEntry>,
    /// There are VPN clients.
    #[serde(default)]
    pub clients: Option<ClientsEntry>,
}

impl NetworkEntry {
    /// A network of VMs alone.
    #[must_use]
    pub fn of_vms(vpc: VpcId, range: Ipv4Cidr, ports: Vec<PortEntry>) -> Self {
        Self {
            vpc,
            range,
            ports: ports.into(),
            services: Entries::default(),
            peerings: Entries::default(),
            rules: Entries::default(),
            clients: None,
        }
    }
}

/// A service on this host that is a member of a network, or may become one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Which one.
    pub id: ServiceId,
    /// Its Ethernet address; frames from another are dropped.
    pub mac: MacAddress,
    /// Its address; packets from another are dropped.
    pub ipv4: Ipv4Addr,
    /// As [`PortEntry::names`].
    #[serde(default)]
    pub names: Vec<String>,
}

/// Another network that a network reaches. Neither's range has addresses of the other's, nor of another peer's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeeringEntry {
    /// Which one; both sides have the same.
    pub id: PeeringId,
    /// The other network.
    pub vpc: VpcId,
    /// Its range.
    pub range: Ipv4Cidr,
}

/// The VPN clients of a network, as it sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsEntry {
    /// Where their addresses come from.
    pub pool: Ipv4Cidr,
    /// Largest IP packet in their tunnels, in bytes.
    pub mtu: u16,
    /// The address under which members see all of them; their own when absent. Members cannot begin a connection to it.
    #[serde(default)]
    pub hidden_behind: Option<Ipv4Addr>,
}

/// What vpc must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcView {
    /// See [`VIEW_VERSION`].
    pub version: u32,
    /// Which decision this is.
    pub generation: Generation,
    /// Where the addresses of the default network come from.
    pub default_network: Ipv4Cidr,
    /// Ports of the default network.
    pub ports: Entries<PortEntry>,
    /// Private networks. A VM has a port in the default network or in one of these.
    #[serde(default)]
    pub networks: Entries<NetworkEntry>,
}

impl View for VpcView {
    const NAME: &'static str = "vpc";
    fn version(&self) -> u32 {
        self.version
    }
    fn generation(&self) -> Generation {
        self.generation
    }
    fn rejected(&self) -> usize {
        let inner = |network: &NetworkEntry| {
            network.ports.rejected()
                + network.services.rejected()
                + network.peerings.rejected()
                + network.rules.rejected()
        };
        self.ports.rejected() + self.networks.rejected() + self.networks.iter().map(inner).sum::<usize>()
    }
}

/// One client of a private network, and how long it may be one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// Which one.
    pub id: WireGuardSessionId,
    /// The network that it leads into.
    pub vpc: VpcId,
    /// Who the client is. No two sessions share one.
    pub client_key: PublicKey,
    /// A second secret beside the keys, for the day when the keys alone do not hold.
    #[serde(default)]
    pub preshared_key: Option<SecretKey>,
    /// The client's address in the tunnel; packets from another are dropped. Unique in its network.
    pub address: Ipv4Addr,
    /// Where the client may send to: its network's range.
    pub allowed: Ipv4Cidr,
    /// When it ends in any case, in milliseconds since 1970 UTC.
    pub expires_unix_ms: u64,
    /// It ends when nothing authentic came from its client for so many seconds.
    pub idle_seconds: NonZeroU32,
}

/// What vpn must know. The file has secrets: only control, vpn and root may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpnView {
    /// See [`VIEW_VERSION`].
    pub version: u32,
    /// Which decision this is.
    pub generation: Generation,
    /// The server's own key, one for all networks.
    pub server_key: SecretKey,
    /// Who may come in.
    pub sessions: Entries<SessionEntry>,
}

impl View for VpnView {
    const NAME: &'static str = "vpn";
    fn version(&self) -> u32 {
        self.version
    }
    fn generation(&self) -> Generation {
        self.generation
    }
    fn rejected(&self) -> usize {
        self.sessions.rejected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_entry_is_left_out_alone() {
        let text = r#"{"version":1,"generation":7,"api_hosts":["api.style.dev"],"certificates":[],"routes":[
            {"host":"a.style.dev","vm":"abcdefghij0123456789","port":80,"run":1},
            {"host":"bad host","vm":"abcdefghij0123456789","port":80,"run":1},
            {"host":"b.style.dev","vm":"abcdefghij0123456789","port":99999,"run":1}, 5]}"#;
        let view: EdgeView = serde_json::from_str(text).expect("the view itself is good");
        assert_eq!((view.routes.iter().count(), view.rejected()), (1, 3));
    }

    #[test]
    fn a_bad_port_of_a_private_network_is_left_out_alone() {
        let text = r#"{"version":1,"generation":7,"default_network":"10.201.0.0/16","ports":[],"networks":[
            {"vpc":"vpc-abcdefghij0123456789","range":"10.0.0.0/24","ports":[
                {"vm":"abcdefghij0123456789","mac":"02:00:0a:00:00:05","ipv4":"10.0.0.5","queues":1,"dialable":[22]},
                {"vm":"abcdefghij0123456789","mac":"02:00","ipv4":"10.0.0.6","queues":1,"dialable":[22]}]},
            {"vpc":"vpc-abcdefghij0123456788","range":"10.0.0.1/24","ports":[]}]}"#;
        let view: VpcView = serde_json::from_str(text).expect("the view itself is good");
        assert_eq!((view.networks.iter().count(), view.rejected()), (1, 2));
        let earlier = r#"{"version":1,"generation":7,"default_network":"10.201.0.0/16","ports":[]}"#;
        let view: VpcView = serde_json::from_str(earlier).expect("of a build without private networks");
        assert_eq!(view.networks.iter().count(), 0);
    }

    #[test]
    fn a_bad_session_is_left_out_alone_and_no_secret_prints() {
        let key = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
        let session = |address: &str, idle: u32, client: &str| {
            format!(
                r#"{{"id":"wg-abcdefghij0123456789","vpc":"vpc-abcdefghij0123456789","client_key":"{client}",
                "preshared_key":"{key}","address":"{address}","allowed":"10.0.0.0/24","expires_unix_ms":1,
                "idle_seconds":{idle}}}"#
            )
        };
        let text = format!(
            r#"{{"version":1,"generation":7,"server_key":"{key}","sessions":[{},{},{},{}]}}"#,
            session("100.96.0.2", 60, key),
            session("100.96.0", 60, key),
            session("100.96.0.2", 0, key),
            session("100.96.0.2", 60, "short")
        );
        let view: VpnView = serde_json::from_str(&text).expect("the view itself is good");
        assert_eq!((view.sessions.iter().count(), view.rejected()), (1, 3));
        let public = format!("client_key: {key}");
        let shown = format!("{view:?}");
        assert!(shown.contains(&public) && !shown.replacen(key, "", 1).contains(key), "{shown}");
        assert!(!shown.contains("65, 65"), "{shown}");
    }

    #[test]
    fn a_key_never_prints() {
        let name = "a.dev".parse().expect("name");
        let entry = ChallengeEntry::TlsAlpn { name, chain_pem: String::new(), key_pem: "SECRET".into() };
        assert!(!format!("{entry:?}").contains("SECRET"));
    }
}
