//! Requests about NICs, addresses and routes over rtnetlink(7).

use super::NetworkError;
use model::net::{MacAddress, Ula};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Room for one datagram of a dump: the kernel fills at most 32 KiB (linux/net/netlink/af_netlink.c).
const DATAGRAM_BYTES: usize = 32 << 10;
/// Most objects of one dump that are looked at.
const MAX_DUMPED: usize = 4096;

/// A netlink socket with the few requests that a NIC needs.
pub struct Kernel {
    socket: Socket,
    sequence: u32,
}

impl Kernel {
    pub fn open() -> Result<Self, NetworkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetworkError::Socket)?;
        socket.bind_auto().map_err(NetworkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetworkError::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of the NIC with that Ethernet address.
    pub fn nic(&mut self, mac: MacAddress) -> Result<u32, NetworkError> {
        self.find_nic(|link| has_address(link, mac))?.ok_or(NetworkError::NoNic(mac))
    }

    /// The index of the NIC with that Ethernet address, or that had the other one, or else of the first hardware.
    pub fn any_nic(&mut self, mac: MacAddress, before: Option<MacAddress>) -> Result<u32, NetworkError> {
        if let Some(nic) = self.find_nic(|link| has_address(link, mac))? {
            return Ok(nic);
        }
        let had = |link: &LinkMessage| before.is_some_and(|before| has_address(link, before));
        if let Some(nic) = self.find_nic(had)? {
            return Ok(nic);
        }
        self.find_nic(is_hardware)?.ok_or(NetworkError::NoNic(mac))
    }

    fn find_nic(&mut self, wanted: impl Fn(&LinkMessage) -> bool) -> Result<Option<u32>, NetworkError> {
        let links = self.dump("list the NICs", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(links.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) if wanted(&link) => Some(link.header.index),
            _ => None,
        }))
    }

    pub fn set_down(&mut self, nic: u32) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = nic;
        link.header.change_mask = LinkFlags::Up;
        self.ask("take the NIC down", RouteNetlinkMessage::SetLink(link), 0)
    }

    pub fn set_mac(&mut self, nic: u32, mac: MacAddress) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = nic;
        link.attributes.push(LinkAttribute::Address(mac.0.to_vec()));
        self.ask("set the Ethernet address", RouteNetlinkMessage::SetLink(link), 0)
    }

    pub fn set_up(&mut self, nic: u32, mtu: u16) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = nic;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes.push(LinkAttribute::Mtu(mtu.into()));
        self.ask("bring the NIC up", RouteNetlinkMessage::SetLink(link), 0)
    }

    /// The name of a NIC.
    pub fn name(&mut self, nic: u32) -> Result<Option<String>, NetworkError> {
        let links = self.dump("list the NICs", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(links.into_iter().find_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) if link.header.index == nic => {
                link.attributes.into_iter().find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name),
                    _ => None,
                })
            }
            _ => None,
        }))
    }

    /// Gives a NIC an address of its own alone. Nobody is asked whether he has it: who gave it out knows.
    pub fn replace_address(&mut self, nic: u32, address: IpAddr) -> Result<(), NetworkError> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let message = RouteNetlinkMessage::NewAddress(address_message(nic, address, prefix));
        self.ask("set the address", message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// The addresses of a NIC, of both families.
    pub fn addresses(&mut self, nic: u32) -> Result<Vec<IpAddr>, NetworkError> {
        let found = self.list_addresses(AddressFamily::Unspec)?;
        let of_nic = found.into_iter().filter(|found| found.header.index == nic);
        Ok(of_nic.filter_map(|found| address_of(&found)).collect())
    }

    /// Removes its IPv4 addresses, except one.
    pub fn remove_addresses(&mut self, nic: u32, keep: Option<Ipv4Addr>) -> Result<(), NetworkError> {
        let other = |address: IpAddr| address.is_ipv4() && Some(address) != keep.map(IpAddr::V4);
        self.remove_addresses_that(nic, AddressFamily::Inet, other)
    }

    /// Removes its unique local IPv6 addresses (RFC 4193), except one.
    pub fn remove_local_ipv6(&mut self, nic: u32, keep: Option<Ipv6Addr>) -> Result<(), NetworkError> {
        let other = |address: IpAddr| match address {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.is_unique_local() && Some(address) != keep,
        };
        self.remove_addresses_that(nic, AddressFamily::Inet6, other)
    }

    fn remove_addresses_that(
        &mut self,
        nic: u32,
        family: AddressFamily,
        unwanted: impl Fn(IpAddr) -> bool,
    ) -> Result<(), NetworkError> {
        for found in self.list_addresses(family)? {
            let Some(local) = address_of(&found).filter(|local| unwanted(*local)) else { continue };
            if found.header.index != nic {
                continue;
            }
            let other = address_message(nic, local, found.header.prefix_len);
            match self.ask("remove an old address", RouteNetlinkMessage::DelAddress(other), 0) {
                // With the first address of a prefix the kernel removes its secondary ones.
                Err(NetworkError::Refused { cause, .. })
                    if cause.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn list_addresses(&mut self, family: AddressFamily) -> Result<Vec<AddressMessage>, NetworkError> {
        let mut all = AddressMessage::default();
        all.header.family = family;
        let found = self.dump("list the addresses", RouteNetlinkMessage::GetAddress(all))?;
        let address = |message| match message {
            RouteNetlinkMessage::NewAddress(found) => Some(found),
            _ => None,
        };
        Ok(found.into_iter().filter_map(address).collect())
    }

    /// To one address on the link, or by way of the gateway to everything.
    pub fn replace_route(
        &mut self,
        nic: u32,
        to: Option<Ipv4Addr>,
        by: Option<Ipv4Addr>,
    ) -> Result<(), NetworkError> {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.kind = RouteType::Unicast;
        route.header.scope = if by.is_some() { RouteScope::Universe } else { RouteScope::Link };
        route.attributes.push(RouteAttribute::Oif(nic));
        if let Some(to) = to {
            route.header.destination_prefix_length = 32;
            route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
        }
        if let Some(by) = by {
            route.header.flags = RouteFlags::Onlink;
            route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet(by)));
        }
        self.ask("set a route", RouteNetlinkMessage::NewRoute(route), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// To the network of an IPv6 address, by way of the gateway.
    pub fn replace_ipv6_route(
        &mut self,
        nic: u32,
        address: Ipv6Addr,
        gateway: Ipv6Addr,
    ) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::NewRoute(ipv6_route(nic, network_of(address), gateway));
        self.ask("set a route", message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Removes what [`Self::replace_ipv6_route`] set, except for the network of this address.
    pub fn remove_ipv6_routes(
        &mut self,
        nic: u32,
        gateway: Ipv6Addr,
        keep: Option<Ipv6Addr>,
    ) -> Result<(), NetworkError> {
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet6;
        let found = self.dump("list the routes", RouteNetlinkMessage::GetRoute(all))?;
        let networks = found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) => network_behind(&route, nic, gateway),
            _ => None,
        });
        let networks: Vec<Ipv6Addr> = networks.collect();
        for network in networks.into_iter().filter(|network| Some(*network) != keep.map(network_of)) {
            let message = RouteNetlinkMessage::DelRoute(ipv6_route(nic, network, gateway));
            self.ask("remove an old route", message, 0)?;
        }
        Ok(())
    }

    /// A request that is answered with yes or no.
    fn ask(
        &mut self,
        action: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetworkError> {
        self.exchange(action, message, flags | NLM_F_ACK).map(drop)
    }

    fn dump(
        &mut self,
        action: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        self.exchange(action, message, NLM_F_DUMP)
    }

    fn exchange(
        &mut self,
        action: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        packet.header.flags = flags | NLM_F_REQUEST;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(NetworkError::Socket)?;
        self.answers(action)
    }

    fn answers(&self, action: &'static str) -> Result<Vec<RouteNetlinkMessage>, NetworkError> {
        let mut found = Vec::new();
        let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
        loop {
            buffer.clear();
            let length = self.socket.recv(&mut buffer, 0).map_err(NetworkError::Socket)?;
            let mut rest = buffer.get(..length).unwrap_or(&buffer);
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| NetworkError::Decode(error.to_string()))?;
                // Messages are padded to four bytes (netlink(7)).
                let step = (answer.header.length as usize).next_multiple_of(4).max(4);
                rest = rest.get(step..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) if found.len() < MAX_DUMPED => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(found),
                    NetlinkPayload::Error(error) => {
                        return Err(NetworkError::Refused { action, cause: error.to_io() });
                    }
                    _ => {}
                }
            }
        }
    }
}

fn has_address(link: &LinkMessage, mac: MacAddress) -> bool {
    link.attributes.iter().any(|it| *it == LinkAttribute::Address(mac.0.to_vec()))
}

/// Ethernet, and not made by software (bridges, pairs, tunnels, which say their kind).
fn is_hardware(link: &LinkMessage) -> bool {
    let says_kind = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(facts) => facts.iter().any(|fact| matches!(fact, LinkInfo::Kind(_))),
        _ => false,
    };
    link.header.link_layer_type == LinkLayerType::Ether && !link.attributes.iter().any(says_kind)
}

/// The local address; IPv6 tells it only where it differs from that of the peer.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let any = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    let all = &message.attributes;
    all.iter().find_map(local).or_else(|| all.iter().find_map(any))
}

fn address_message(nic: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    if address.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.header.prefix_len = prefix;
    message.header.index = nic;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    message
}

fn ipv6_route(nic: u32, network: Ipv6Addr, gateway: Ipv6Addr) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet6;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.header.flags = RouteFlags::Onlink;
    route.header.destination_prefix_length = Ula::PREFIX;
    route.attributes.push(RouteAttribute::Oif(nic));
    route.attributes.push(RouteAttribute::Destination(RouteAddress::Inet6(network)));
    route.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet6(gateway)));
    route
}

/// The network of a route that may be one of ours; none of any other.
fn network_behind(route: &RouteMessage, nic: u32, gateway: Ipv6Addr) -> Option<Ipv6Addr> {
    let by = RouteAttribute::Gateway(RouteAddress::Inet6(gateway));
    let ours = route.header.table == RouteHeader::RT_TABLE_MAIN
        && route.header.protocol == RouteProtocol::Static
        && route.header.destination_prefix_length == Ula::PREFIX
        && route.attributes.contains(&RouteAttribute::Oif(nic))
        && route.attributes.contains(&by);
    route.attributes.iter().filter(|_| ours).find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(network)) => Some(*network),
        _ => None,
    })
}

fn network_of(address: Ipv6Addr) -> Ipv6Addr {
    Ipv6Addr::from_bits(address.to_bits() >> (128 - Ula::PREFIX) << (128 - Ula::PREFIX))
}
