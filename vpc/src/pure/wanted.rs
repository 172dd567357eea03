//! What a view asks for, checked: an entry that cannot be served is left out alone, with its reason.

use crate::pure::firewall::{Firewall, RuleRejection};
use crate::pure::names::{DeviceName, NetworkId, uplink_end};
use crate::pure::reach::{self, ClientsRejection, PeeringRejection};
use crate::pure::ways::Way;
use model::id::{Generation, PeeringId, RuleId, ServiceId, VmId, VpcId};
use model::net::{GATEWAY_IPV4, GATEWAY_MAC, Ipv4Cidr, MacAddress, Ula};
use model::view::{NetworkEntry, PortEntry, ServiceEntry, VpcView};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use thiserror::Error;

/// Most queue pairs of a TAP: their descriptors travel in one message.
pub const MAX_QUEUES: u8 = 8;
/// Most ports of all networks: each costs a device, a chain and eight descriptors at most, as many again while its VM
/// sleeps, and the process may hold about 65,000 of those.
pub const MAX_PORTS: usize = 4096;
/// Most private networks that have a port, a service or VPN clients: each costs two threads and eight descriptors here, a
/// namespace and two devices, and 70 ms of a start, of which its ports see nothing when they stand already.
pub const MAX_NETWORKS: usize = model::net::MAX_VPCS;
/// Most names of one port: its VM's own, and a few more.
pub const MAX_NAMES: usize = 8;
/// Longest label of a name (RFC 1035 section 2.3.4).
const MAX_LABEL_CHARS: usize = 63;
/// What no host may have for an address, or what a kernel treats as no other range. A network over any of it cannot be
/// routed.
const UNROUTABLE: [Ipv4Cidr; 5] = [
    Ipv4Cidr::constant(Ipv4Addr::UNSPECIFIED, 8),
    Ipv4Cidr::constant(Ipv4Addr::new(127, 0, 0, 0), 8),
    // The gateway, metadata and the links to the host.
    Ipv4Cidr::constant(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Cidr::constant(Ipv4Addr::new(224, 0, 0, 0), 4),
    Ipv4Cidr::constant(Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// A port of the switch, as it must stand in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Whose it is.
    pub vm: VmId,
    /// Its TAP.
    pub device: DeviceName,
    /// The guest's Ethernet address.
    pub mac: MacAddress,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
    /// Its address among the members of its private network, if that speaks IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Queue pairs, 1..=[`MAX_QUEUES`].
    pub queues: u8,
    /// TCP ports that may be dialled.
    pub dialable: BTreeSet<u16>,
    /// The VM has no process, or is about to have none, and a packet is to wake it.
    pub asleep: bool,
    /// Labels that mean it in its private network, the first for its address's own name; at most [`MAX_NAMES`].
    pub names: Vec<String>,
}

impl Port {
    /// Its place in the network.
    #[must_use]
    pub fn seat(&self) -> Seat {
        Seat { device: self.device.clone(), mac: self.mac, ipv4: self.ipv4, ipv6: self.ipv6 }
    }
}

/// A member that is no VM. It stands once it has joined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Which one.
    pub id: ServiceId,
    /// Its place in the network.
    pub seat: Seat,
    /// As [`Port::names`].
    pub names: Vec<String>,
}

/// A member's place in its network: whence its packets come, and with which addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Its device.
    pub device: DeviceName,
    /// The member's Ethernet address.
    pub mac: MacAddress,
    /// The member's address.
    pub ipv4: Ipv4Addr,
    /// As [`Port::ipv6`].
    pub ipv6: Option<Ipv6Addr>,
}

impl Seat {
    /// The mark of every packet and tracked flow of this member: its address, which no other one of the network has.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.ipv4.to_bits()
    }

    /// The member's addresses, to which routes lead.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        std::iter::once(IpAddr::V4(self.ipv4)).chain(self.ipv6.map(IpAddr::V6))
    }

    /// Addresses that stand behind its Ethernet address, and for which nobody asks: also the link-local one from which it
    /// may ask for the gateway. So the kernel learns no neighbour of a guest, whose table all networks share.
    pub fn neighbours(&self) -> impl Iterator<Item = IpAddr> + use<> {
        self.addresses().chain(self.ipv6.map(|_| IpAddr::V6(self.mac.link_local())))
    }
}

/// Why a port is left out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    /// The address is not one that a guest of the network may have.
    #[error("its address is not a host address of the network")]
    Address,
    /// Another port of the network has the address.
    #[error("another port has its address")]
    AddressTaken,
    /// The Ethernet address is a group's, zero, or the gateway's.
    #[error("its Ethernet address is a group's, zero or the gateway's")]
    Mac,
    /// Another port of the network has the Ethernet address.
    #[error("another port has its Ethernet address")]
    MacTaken,
    /// Zero queues, or more than [`MAX_QUEUES`].
    #[error("its number of queues is out of range")]
    Queues,
    /// It has a port already, here or in another network.
    #[error("the VM has another port")]
    VmTaken,
    /// It is a member already, here or in another network.
    #[error("the service is a member already")]
    ServiceTaken,
    /// Another one's id begins with the same characters.
    #[error("another port has its device name")]
    NameTaken,
    /// There are [`MAX_PORTS`].
    #[error("there are {MAX_PORTS} ports already")]
    Full,
}

/// Why a private network is left out, with all its ports.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NetworkRejection {
    /// Its range has addresses that no host may have.
    #[error("its range is not one of hosts: it is over 0/8, 127/8, 169.254/16, 224/4 or 240/4")]
    Range,
    /// It is there twice.
    #[error("it is named twice")]
    Twice,
    /// Another network's id begins with the same characters.
    #[error("the device that would link it to the host is another network's")]
    NameTaken,
    /// There are [`MAX_NETWORKS`].
    #[error("there are {MAX_NETWORKS} private networks with members already")]
    Full,
}

/// Why a name is left out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NameRejection {
    /// Not a label of a host name in lower case (RFC 1123 section 2.1).
    #[error("it is not 1 to {MAX_LABEL_CHARS} characters of a-z, 0-9 and, inside, hyphens")]
    Label,
    /// Another port of the network has it.
    #[error("another port of its network has it")]
    Taken,
    /// The port has [`MAX_NAMES`].
    #[error("its port has {MAX_NAMES} names already")]
    TooMany,
}

/// An entry that is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// A port.
    Port(VmId, Rejection),
    /// A private network.
    Network(VpcId, NetworkRejection),
    /// A service.
    Service(ServiceId, Rejection),
    /// A name, after whose it is.
    Name(String, String, NameRejection),
    /// A peer of a private network.
    Peering(VpcId, PeeringId, PeeringRejection),
    /// The VPN clients of a private network.
    Clients(VpcId, ClientsRejection),
    /// A rule of a private network's firewall.
    Rule(VpcId, RuleId, RuleRejection),
    /// So many rules that cannot be read.
    Rules(VpcId, usize),
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(vm, why) => write!(f, "the port of VM {vm}: {why}"),
            Self::Network(vpc, why) => write!(f, "network {vpc}: {why}"),
            Self::Service(service, why) => write!(f, "service {service}: {why}"),
            Self::Name(whose, name, why) => write!(f, "the name {name:?} of {whose}: {why}"),
            Self::Peering(vpc, id, why) => write!(f, "the peering {id} of network {vpc}: {why}"),
            Self::Clients(vpc, why) => write!(f, "the VPN clients of network {vpc}: {why}"),
            Self::Rule(vpc, rule, why) => write!(f, "rule {rule} of network {vpc}: {why}"),
            Self::Rules(vpc, count) => write!(
                f,
                "{count} rules of network {vpc} cannot be read; one of them may deny anything, so no new packet passes in it"
            ),
        }
    }
}

/// A network, as it must stand in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedNetwork {
    /// Where its addresses come from.
    pub range: Ipv4Cidr,
    /// Where its members' IPv6 addresses come from; none when it speaks none, as the default network.
    pub ula: Option<Ula>,
    /// Ports by device.
    pub ports: BTreeMap<DeviceName, Port>,
    /// Services by device.
    pub services: BTreeMap<DeviceName, Service>,
    /// Ways to others than members, by device.
    pub ways: BTreeMap<DeviceName, Way>,
    /// The address under which members see all VPN clients; the clients' own when absent.
    pub hidden_behind: Option<Ipv4Addr>,
    /// Its firewall; of the default network, one without rules.
    pub firewall: Firewall,
}

impl WantedNetwork {
    /// A network of VMs alone, without rules.
    #[must_use]
    pub fn of_ports(range: Ipv4Cidr, ports: BTreeMap<DeviceName, Port>) -> Self {
        Self {
            range,
            ula: None,
            ports,
            services: BTreeMap::new(),
            ways: BTreeMap::new(),
            hidden_behind: None,
            firewall: Firewall::default(),
        }
    }

    /// Its members' addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        let services = self.services.values().map(|service| service.seat.ipv4);
        self.ports.values().map(|port| port.ipv4).chain(services)
    }
}

/// The state that the kernel must be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which decision it is.
    pub generation: Generation,
    /// The default network, which is always there, and each private one that has a port, a service or VPN clients. One
    /// without would cost as much and serve nobody.
    pub networks: BTreeMap<NetworkId, WantedNetwork>,
    /// What is left out.
    pub left_out: Vec<LeftOut>,
}

impl Wanted {
    /// Checks a view. Of two entries that are in each other's way the first is served; the default network's come first.
    #[must_use]
    pub fn of(view: &VpcView) -> Self {
        let mut check = Check::default();
        let ports = check.ports(view.default_network, &view.ports, None, &mut Taken::default());
        let default = WantedNetwork::of_ports(view.default_network, ports);
        let mut networks = BTreeMap::from([(NetworkId::Default, default)]);
        for entry in &view.networks {
            if let Err(why) = check.network(entry) {
                check.left_out.push(LeftOut::Network(entry.vpc.clone(), why));
                continue;
            }
            let mut taken = Taken::default();
            let ula = Some(Ula::of(&entry.vpc));
            let ports = check.ports(entry.range, &entry.ports, ula, &mut taken);
            let services = check.services(entry, &mut taken);
            let mut network = WantedNetwork { ula, services, ..WantedNetwork::of_ports(entry.range, ports) };
            (network.ways, network.hidden_behind) = reach::ways(entry, &network, &mut check.left_out);
            let clients = network.ways.contains_key(&DeviceName::clients());
            if !network.ports.is_empty() || !network.services.is_empty() || clients {
                check.with_members += 1;
                network.firewall = check.firewall(entry);
                networks.insert(NetworkId::Private(entry.vpc.clone()), network);
            }
        }
        reach::drop_one_sided(&mut networks, &mut check.left_out);
        Self { generation: view.generation, networks, left_out: check.left_out }
    }

    /// The same for a kernel without IPv6.
    #[must_use]
    pub fn without_ipv6(mut self) -> Self {
        for network in self.networks.values_mut() {
            network.ula = None;
            network.ports.values_mut().for_each(|port| port.ipv6 = None);
            network.services.values_mut().for_each(|service| service.seat.ipv6 = None);
        }
        self
    }

    /// The TAPs of all networks.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceName> {
        self.networks.values().flat_map(|network| network.ports.keys())
    }
}

/// What is taken so far.
#[derive(Default)]
struct Check<'a> {
    vms: HashSet<&'a VmId>,
    services: HashSet<&'a ServiceId>,
    devices: HashSet<DeviceName>,
    vpcs: HashSet<&'a VpcId>,
    links: HashSet<String>,
    with_members: usize,
    left_out: Vec<LeftOut>,
}

/// What is taken in one network.
#[derive(Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    macs: HashSet<MacAddress>,
    names: HashSet<String>,
}

impl<'a> Check<'a> {
    fn network(&mut self, entry: &'a NetworkEntry) -> Result<(), NetworkRejection> {
        if is_unroutable(entry.range) {
            return Err(NetworkRejection::Range);
        }
        if !self.vpcs.insert(&entry.vpc) {
            return Err(NetworkRejection::Twice);
        }
        if !self.links.insert(uplink_end(&entry.vpc)) {
            return Err(NetworkRejection::NameTaken);
        }
        if self.with_members >= MAX_NETWORKS {
            return Err(NetworkRejection::Full);
        }
        Ok(())
    }

    fn firewall(&mut self, entry: &NetworkEntry) -> Firewall {
        if entry.rules.rejected() > 0 {
            self.left_out.push(LeftOut::Rules(entry.vpc.clone(), entry.rules.rejected()));
        }
        let left_out = &mut self.left_out;
        Firewall::of(&entry.rules, entry.clients.map(|clients| clients.pool), |rule, why| {
            left_out.push(LeftOut::Rule(entry.vpc.clone(), rule.clone(), why));
        })
    }

    fn ports(
        &mut self,
        range: Ipv4Cidr,
        entries: impl IntoIterator<Item = &'a PortEntry>,
        private: Option<Ula>,
        taken: &mut Taken,
    ) -> BTreeMap<DeviceName, Port> {
        let mut ports = BTreeMap::new();
        for entry in entries {
            let seat = Seat {
                device: DeviceName::of(&entry.vm),
                mac: entry.mac,
                ipv4: entry.ipv4,
                ipv6: private.map(|ula| ula.address(entry.ipv4)),
            };
            if let Err(why) = self.port(range, entry, &seat, taken) {
                self.left_out.push(LeftOut::Port(entry.vm.clone(), why));
                continue;
            }
            self.vms.insert(&entry.vm);
            self.take(&seat, taken);
            let names = match private {
                Some(_) => self.names(&format!("VM {}", entry.vm), &entry.names, taken),
                None => Vec::new(),
            };
            let port = Port {
                vm: entry.vm.clone(),
                device: seat.device.clone(),
                mac: entry.mac,
                ipv4: entry.ipv4,
                ipv6: seat.ipv6,
                queues: entry.queues,
                dialable: entry.dialable.iter().copied().filter(|port| *port != 0).collect(),
                asleep: entry.asleep,
                names,
            };
            ports.insert(seat.device, port);
        }
        ports
    }

    fn services(&mut self, network: &'a NetworkEntry, taken: &mut Taken) -> BTreeMap<DeviceName, Service> {
        let mut services = BTreeMap::new();
        for entry in &network.services {
            let seat = Seat {
                device: DeviceName::of_service(&entry.id),
                mac: entry.mac,
                ipv4: entry.ipv4,
                ipv6: Some(Ula::of(&network.vpc).address(entry.ipv4)),
            };
            if let Err(why) = self.service(network.range, entry, &seat, taken) {
                self.left_out.push(LeftOut::Service(entry.id.clone(), why));
                continue;
            }
            self.services.insert(&entry.id);
            self.take(&seat, taken);
            let names = self.names(&format!("service {}", entry.id), &entry.names, taken);
            services.insert(seat.device.clone(), Service { id: entry.id.clone(), seat, names });
        }
        services
    }

    fn take(&mut self, seat: &Seat, taken: &mut Taken) {
        self.devices.insert(seat.device.clone());
        taken.addresses.insert(seat.ipv4);
        taken.macs.insert(seat.mac);
    }

    fn port(&self, range: Ipv4Cidr, entry: &PortEntry, seat: &Seat, taken: &Taken) -> Result<(), Rejection> {
        addresses_fit(range, seat)?;
        if !(1..=MAX_QUEUES).contains(&entry.queues) {
            return Err(Rejection::Queues);
        }
        is_free(seat, taken)?;
        if self.vms.contains(&entry.vm) {
            return Err(Rejection::VmTaken);
        }
        self.has_room(seat)
    }

    fn service(
        &self,
        range: Ipv4Cidr,
        entry: &ServiceEntry,
        seat: &Seat,
        taken: &Taken,
    ) -> Result<(), Rejection> {
        addresses_fit(range, seat)?;
        is_free(seat, taken)?;
        if self.services.contains(&entry.id) {
            return Err(Rejection::ServiceTaken);
        }
        self.has_room(seat)
    }

    fn has_room(&self, seat: &Seat) -> Result<(), Rejection> {
        if self.devices.contains(&seat.device) {
            return Err(Rejection::NameTaken);
        }
        if self.devices.len() >= MAX_PORTS {
            return Err(Rejection::Full);
        }
        Ok(())
    }

    fn names(&mut self, whose: &str, entries: &[String], taken: &mut Taken) -> Vec<String> {
        let mut names = Vec::new();
        for name in entries {
            let why = if !is_label(name) {
                NameRejection::Label
            } else if names.len() >= MAX_NAMES {
                NameRejection::TooMany
            } else if !taken.names.insert(name.clone()) {
                NameRejection::Taken
            } else {
                names.push(name.clone());
                continue;
            };
            let start = name.chars().take(MAX_LABEL_CHARS).collect();
            self.left_out.push(LeftOut::Name(whose.to_owned(), start, why));
        }
        names
    }
}

fn addresses_fit(range: Ipv4Cidr, seat: &Seat) -> Result<(), Rejection> {
    let [first, ..] = seat.mac.0;
    let edge = range.prefix() < 31 && (seat.ipv4 == range.network() || seat.ipv4 == range.broadcast());
    if !range.contains(seat.ipv4) || edge || seat.ipv4 == GATEWAY_IPV4 || seat.ipv4.is_unspecified() {
        return Err(Rejection::Address);
    }
    if first & 1 == 1 || seat.mac == MacAddress([0; 6]) || seat.mac == GATEWAY_MAC {
        return Err(Rejection::Mac);
    }
    Ok(())
}

fn is_free(seat: &Seat, taken: &Taken) -> Result<(), Rejection> {
    if taken.addresses.contains(&seat.ipv4) {
        return Err(Rejection::AddressTaken);
    }
    if taken.macs.contains(&seat.mac) {
        return Err(Rejection::MacTaken);
    }
    Ok(())
}

/// Whether a range has addresses that no host may have.
#[must_use]
pub fn is_unroutable(range: Ipv4Cidr) -> bool {
    UNROUTABLE.iter().any(|unroutable| range.overlaps(*unroutable))
}

fn is_label(name: &str) -> bool {
    (1..=MAX_LABEL_CHARS).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::view::VIEW_VERSION;
    use proptest::prelude::*;

    fn entry(vm: u8, last: u8, queues: u8) -> PortEntry {
        let ipv4 = Ipv4Addr::new(10, 201, 0, last);
        PortEntry {
            vm: VmId::from_random([vm; 20]),
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            queues,
            dialable: vec![22, 0, 22],
            asleep: false,
            names: Vec::new(),
        }
    }

    fn wanted(ports: Vec<PortEntry>, networks: Vec<NetworkEntry>) -> Wanted {
        Wanted::of(&VpcView {
            version: VIEW_VERSION,
            generation: Generation(1),
            default_network: "10.201.0.0/24".parse().expect("network"),
            ports: ports.into(),
            networks: networks.into(),
        })
    }

    fn private(number: u8, range: &str, ports: Vec<PortEntry>) -> NetworkEntry {
        let vpc = VpcId::from_random([number; 20]);
        NetworkEntry::of_vms(vpc, range.parse().expect("range"), ports)
    }

    fn named(vm: u8, last: u8, names: &[&str]) -> PortEntry {
        PortEntry { names: names.iter().map(|name| (*name).to_owned()).collect(), ..entry(vm, last, 1) }
    }

    /// The ports of the default network.
    fn ports(wanted: &Wanted) -> &BTreeMap<DeviceName, Port> {
        &wanted.networks[&NetworkId::Default].ports
    }

    #[test]
    fn bad_entries_are_left_out_alone() {
        let group = PortEntry { mac: MacAddress([1, 0, 0, 0, 0, 1]), ..entry(7, 7, 1) };
        let same_mac = PortEntry { mac: entry(1, 1, 1).mac, ..entry(8, 8, 1) };
        let same_name = PortEntry {
            vm: format!("{}zzzzzz", &VmId::from_random([1; 20]).as_str()[..14]).parse().expect("id"),
            ..entry(9, 9, 1)
        };
        let entries = vec![
            entry(1, 1, 1),
            entry(2, 1, 1),
            entry(3, 0, 1),
            entry(4, 255, 1),
            entry(5, 5, 0),
            entry(6, 6, 9),
            group,
            same_mac,
            same_name,
            entry(1, 11, 1),
            entry(10, 10, 8),
        ];
        let wanted = wanted(entries, vec![]);
        let reasons = wanted.left_out.iter().map(|left_out| match left_out {
            LeftOut::Port(_, why) => *why,
            other => panic!("{other}"),
        });
        let reasons: Vec<_> = reasons.collect();
        assert_eq!(
            reasons,
            [
                Rejection::AddressTaken,
                Rejection::Address,
                Rejection::Address,
                Rejection::Queues,
                Rejection::Queues,
                Rejection::Mac,
                Rejection::MacTaken,
                Rejection::NameTaken,
                Rejection::VmTaken
            ]
        );
        assert_eq!(ports(&wanted).len(), 2);
        assert!(ports(&wanted).values().all(|port| port.dialable == BTreeSet::from([22])));
    }

    #[test]
    fn networks_are_left_out_alone_and_may_have_each_others_addresses() {
        let range = "10.201.0.0/24";
        let wanted = wanted(
            vec![entry(1, 5, 1)],
            vec![
                private(1, range, vec![entry(2, 5, 1), entry(1, 6, 1)]),
                private(2, range, vec![entry(3, 5, 1), entry(2, 6, 1)]),
                private(1, range, vec![entry(4, 5, 1)]),
                private(3, "169.254.0.0/17", vec![entry(5, 5, 1)]),
                private(4, "0.0.0.0/0", vec![entry(6, 5, 1)]),
                private(5, "224.0.0.0/3", vec![entry(7, 5, 1)]),
                private(6, range, vec![entry(8, 0, 1)]),
                private(7, range, vec![]),
            ],
        );
        let [one, two] = [1, 2].map(|number| VpcId::from_random([number; 20]));
        let vm = |number: u8| VmId::from_random([number; 20]);
        let private = |number: u8| VpcId::from_random([number; 20]);
        let expected = [
            LeftOut::Port(vm(1), Rejection::VmTaken),
            LeftOut::Port(vm(2), Rejection::VmTaken),
            LeftOut::Network(one.clone(), NetworkRejection::Twice),
            LeftOut::Network(private(3), NetworkRejection::Range),
            LeftOut::Network(private(4), NetworkRejection::Range),
            LeftOut::Network(private(5), NetworkRejection::Range),
            LeftOut::Port(vm(8), Rejection::Address),
        ];
        assert_eq!(wanted.left_out, expected);
        let networks: Vec<_> = wanted.networks.keys().cloned().collect();
        assert_eq!(networks, [NetworkId::Default, NetworkId::Private(one), NetworkId::Private(two)]);
        assert!(wanted.networks.values().all(|network| network.ports.len() == 1), "{wanted:?}");
    }

    #[test]
    fn members_of_private_networks_have_ipv6_unless_the_kernel_has_none() {
        let ports = [entry(2, 2, 1)].map(|port| PortEntry { ipv4: Ipv4Addr::new(10, 0, 0, 2), ..port });
        let wanted = wanted(vec![entry(1, 1, 1)], vec![private(1, "10.0.0.0/24", ports.to_vec())]);
        let private = NetworkId::Private(VpcId::from_random([1; 20]));
        let addresses = |wanted: &Wanted, id: &NetworkId| -> Vec<Option<Ipv6Addr>> {
            wanted.networks[id].ports.values().map(|port| port.seat().ipv6).collect()
        };
        let ula = wanted.networks[&private].ula.expect("it speaks IPv6");
        assert_eq!(addresses(&wanted, &private), [Some(ula.address(Ipv4Addr::new(10, 0, 0, 2)))]);
        assert_eq!(addresses(&wanted, &NetworkId::Default), [None]);
        let without = wanted.without_ipv6();
        assert_eq!(addresses(&without, &private), [None]);
        assert_eq!(without.networks[&private].ula, None);
    }

    #[test]
    fn services_are_members_and_left_out_alone() {
        let service = |number: u8, last: u8| {
            let ipv4 = Ipv4Addr::new(10, 201, 0, last);
            let (id, mac) = (ServiceId::from_random([number; 20]), MacAddress::of_ipv4(ipv4));
            ServiceEntry { id, mac, ipv4, names: vec!["db".to_owned()] }
        };
        let mut entries = private(1, "10.201.0.0/24", vec![named(1, 5, &["web"])]);
        let group = ServiceEntry { mac: MacAddress([1; 6]), ..service(7, 7) };
        entries.services =
            vec![service(1, 6), service(2, 5), service(1, 8), service(3, 0), group, service(4, 9)].into();
        let alone =
            NetworkEntry { services: vec![service(9, 5)].into(), ..private(2, "10.201.0.0/24", vec![]) };
        let wanted = wanted(vec![], vec![entries, alone]);
        let network = |number: u8| &wanted.networks[&NetworkId::Private(VpcId::from_random([number; 20]))];
        let names: Vec<_> = network(1).services.values().map(|service| service.names.clone()).collect();
        assert_eq!(names, [vec!["db".to_owned()], vec![]]);
        assert_eq!(network(2).services.len(), 1, "a service alone makes a network");
        let id = |number: u8| ServiceId::from_random([number; 20]);
        let expected = [
            LeftOut::Service(id(2), Rejection::AddressTaken),
            LeftOut::Service(id(1), Rejection::ServiceTaken),
            LeftOut::Service(id(3), Rejection::Address),
            LeftOut::Service(id(7), Rejection::Mac),
            LeftOut::Name(format!("service {}", id(4)), "db".to_owned(), NameRejection::Taken),
        ];
        assert_eq!(wanted.left_out, expected);
    }

    #[test]
    fn there_are_no_more_networks_and_ports_than_may_be() {
        let range = "10.201.0.0/16";
        let network = |number: usize, ports: Vec<PortEntry>| {
            let (high, low) = (number / 36, number % 36);
            let vpc =
                VpcId::from_random(std::array::from_fn(|at| (if at % 2 == 0 { high } else { low }) as u8));
            NetworkEntry::of_vms(vpc, range.parse().expect("range"), ports)
        };
        let port = |number: usize| {
            let digits = [number / 1296, number / 36 % 36, number % 36];
            let ipv4 = Ipv4Addr::from_bits(0x0ac9_0001 + number as u32);
            let vm = VmId::from_random(std::array::from_fn(|at| digits[at % 3] as u8));
            PortEntry { vm, ipv4, mac: MacAddress::of_ipv4(ipv4), ..entry(0, 1, 1) }
        };
        let many = (0..MAX_NETWORKS + 2).map(|number| network(number, vec![port(number)])).collect();
        let one = Wanted::of(&view_of(vec![network(0, (0..MAX_PORTS + 3).map(port).collect())]));
        let all = Wanted::of(&view_of(many));
        assert_eq!(all.networks.len(), 1 + MAX_NETWORKS);
        assert!(matches!(all.left_out[..], [_, LeftOut::Network(_, NetworkRejection::Full)]));
        assert_eq!(one.networks.values().map(|network| network.ports.len()).sum::<usize>(), MAX_PORTS);
        assert!(matches!(one.left_out[..], [_, _, LeftOut::Port(_, Rejection::Full)]));
    }

    fn view_of(networks: Vec<NetworkEntry>) -> VpcView {
        VpcView {
            version: VIEW_VERSION,
            generation: Generation(1),
            default_network: "10.201.0.0/24".parse().expect("network"),
            ports: Vec::new().into(),
            networks: networks.into(),
        }
    }

    #[test]
    fn bad_names_are_left_out_alone() {
        let (long, many) = ("a".repeat(64), ["a", "b", "c", "d", "e", "f", "g", "h", "i"]);
        let names = ["db", "", "-a", "a-", "A", "a.b", "ä", &long, "db-2", "db"];
        let wanted = wanted(
            vec![named(1, 5, &["db"])],
            vec![
                private(
                    1,
                    "10.201.0.0/24",
                    vec![named(2, 5, &names), named(3, 6, &["db"]), named(4, 7, &many)],
                ),
                private(2, "10.201.0.0/24", vec![named(5, 5, &["db"])]),
            ],
        );
        let of = |vm: u8| {
            let device = DeviceName::of(&VmId::from_random([vm; 20]));
            let mut all = wanted.networks.values().filter_map(|network| network.ports.get(&device));
            all.next().expect("a port").names.clone()
        };
        assert_eq!(of(1), Vec::<String>::new(), "the default network has no names");
        assert_eq!(
            (of(2), of(3), of(4)),
            (
                vec!["db".into(), "db-2".into()],
                vec![],
                many[..8].iter().map(|&name| name.to_owned()).collect()
            )
        );
        assert_eq!(of(5), ["db"]);
        assert_eq!(wanted.left_out.len(), 7 + 1 + 1 + 1);
    }

    proptest! {
        #[test]
        fn no_two_ports_of_a_network_share_anything_and_no_two_a_vm(
            entries in proptest::collection::vec((0usize..4, 0u8..36, 0u8..40, 0u8..10), 0..60)
        ) {
            let all = entries.len();
            let mut sorted: [Vec<PortEntry>; 4] = Default::default();
            for (network, vm, last, queues) in entries {
                sorted[network].push(entry(vm, last, queues));
            }
            let [default, one, two, three] = sorted;
            let range = "10.201.0.0/24";
            let wanted = wanted(default, vec![private(1, range, one), private(2, range, two), private(3, range, three)]);
            let mut devices = HashSet::new();
            for network in wanted.networks.values() {
                let addresses: HashSet<_> = network.ports.values().map(|port| port.ipv4).collect();
                let marks: HashSet<_> = network.ports.values().map(|port| port.seat().mark()).collect();
                prop_assert_eq!(addresses.len(), network.ports.len());
                prop_assert_eq!(marks.len(), network.ports.len());
                prop_assert!(!marks.contains(&0));
                prop_assert!(network.ports.keys().all(|device| devices.insert(device.clone())));
            }
            prop_assert!(wanted.devices().all(|device| devices.contains(device)));
            prop_assert_eq!(all, devices.len() + wanted.left_out.len());
        }

        #[test]
        fn a_served_range_has_no_address_that_cannot_be_routed(bits: u32, prefix in 0u8..=32, other: u32) {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            let range = format!("{}/{prefix}", Ipv4Addr::from_bits(bits & mask));
            let inner = Ipv4Addr::from_bits(bits & mask | other & !mask);
            let wanted = wanted(vec![], vec![private(1, &range, vec![])]);
            let bad = inner.octets()[0] == 0 || inner.is_loopback() || inner.is_link_local() || inner.octets()[0] >= 224;
            prop_assert!(!bad || !wanted.left_out.is_empty(), "{} in {}", inner, range);
        }
    }
}
