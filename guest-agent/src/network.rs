//! The NIC: found by its Ethernet address, given its /32 and its routes over netlink, and its name servers.

use model::net::{GuestNetwork, MacAddress};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use thiserror::Error;

/// Room for one datagram of a dump: the kernel fills at most 32 KiB (linux/net/netlink/af_netlink.c).
const DATAGRAM_BYTES: usize = 32 << 10;
/// Most objects of one dump that are looked at.
const MAX_DUMPED: usize = 4096;
/// Most name servers that the C library looks at (`MAXNS`, resolv.h).
const MAX_NAME_SERVERS: usize = 3;
/// Where the name servers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the network is not set.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No netlink.
    #[error("cannot talk to the kernel's network")]
    Socket(#[source] io::Error),
    /// The answer makes no sense.
    #[error("cannot understand the kernel's answer: {0}")]
    Decode(String),
    /// The kernel refuses.
    #[error("the kernel refuses to {action}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No NIC has that address.
    #[error("there is no NIC with the address {0}")]
    NoNic(MacAddress),
    /// The name servers cannot be written.
    #[error("cannot write {RESOLV_CONF}")]
    Resolver(#[source] io::Error),
}

/// Sets address, routes and name servers; what another configuration of ours left on the NIC goes away.
///
/// # Errors
/// See [`NetworkError`].
pub fn configure(network: &GuestNetwork) -> Result<(), NetworkError> {
    configure_kernel(network)?;
    crate::machine::replace_file(Path::new(RESOLV_CONF), &resolver(&network.dns))
        .map_err(NetworkError::Resolver)
}

fn configure_kernel(network: &GuestNetwork) -> Result<(), NetworkError> {
    let mut kernel = Kernel::open()?;
    let nic = kernel.nic(network.mac)?;
    kernel.set_up(nic, network.mtu)?;
    kernel.replace_address(nic, network.ipv4)?;
    kernel.remove_other_addresses(nic, network.ipv4)?;
    // The gateway is on the link although no prefix of ours covers it.
    kernel.replace_route(nic, Some(network.gateway), None)?;
    kernel.replace_route(nic, None, Some(network.gateway))
}

fn resolver(servers: &[IpAddr]) -> String {
    let mut text = String::from("# Written by the Gatehouse agent.\n");
    for server in servers.iter().take(MAX_NAME_SERVERS) {
        // Writing to a String cannot fail.
        let written = writeln!(text, "nameserver {server}");
        debug_assert!(written.is_ok());
    }
    text
}

/// A netlink socket with the few requests that a NIC needs.
struct Kernel {
    socket: Socket,
    sequence: u32,
}

impl Kernel {
    fn open() -> Result<Self, NetworkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetworkError::Socket)?;
        socket.bind_auto().map_err(NetworkError::Socket)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetworkError::Socket)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The index of the NIC with that Ethernet address.
    fn nic(&mut self, mac: MacAddress) -> Result<u32, NetworkError> {
        let links = self.dump("list the NICs", RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let has_address = |link: &LinkMessage| {
            link.attributes.iter().any(|it| *it == LinkAttribute::Address(mac.0.to_vec()))
        };
        links
            .into_iter()
            .find_map(|message| match message {
                RouteNetlinkMessage::NewLink(link) if has_address(&link) => Some(link.header.index),
                _ => None,
            })
            .ok_or(NetworkError::NoNic(mac))
    }

    fn set_up(&mut self, nic: u32, mtu: u16) -> Result<(), NetworkError> {
        let mut link = LinkMessage::default();
        link.header.index = nic;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes.push(LinkAttribute::Mtu(mtu.into()));
        self.ask("bring the NIC up", RouteNetlinkMessage::SetLink(link), 0)
    }

    fn replace_address(&mut self, nic: u32, address: Ipv4Addr) -> Result<(), NetworkError> {
        let message = RouteNetlinkMessage::NewAddress(address_message(nic, address, 32));
        self.ask("set the address", message, NLM_F_CREATE | NLM_F_REPLACE)
    }

    fn remove_other_addresses(&mut self, nic: u32, keep: Ipv4Addr) -> Result<(), NetworkError> {
        let mut all = AddressMessage::default();
        all.header.family = AddressFamily::Inet;
        let addresses = self.dump("list the addresses", RouteNetlinkMessage::GetAddress(all))?;
        for message in addresses {
            let RouteNetlinkMessage::NewAddress(found) = message else { continue };
            let local = found.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(IpAddr::V4(local)) => Some(*local),
                _ => None,
            });
            let Some(local) = local.filter(|local| found.header.index == nic && *local != keep) else {
                continue;
            };
            let other = address_message(nic, local, found.header.prefix_len);
            self.ask("remove an old address", RouteNetlinkMessage::DelAddress(other), 0)?;
        }
        Ok(())
    }

    /// To one address on the link, or by way of the gateway to everything.
    fn replace_route(
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

fn address_message(nic: u32, address: Ipv4Addr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = nic;
    message.attributes.push(AddressAttribute::Local(address.into()));
    message.attributes.push(AddressAttribute::Address(address.into()));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::thread;

    fn ip(words: &str) -> String {
        let done = Command::new("ip").args(words.split(' ')).output().expect("ip");
        assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text")
    }

    fn settings(ipv4: [u8; 4]) -> GuestNetwork {
        GuestNetwork {
            mac: MacAddress([2, 0x67, 10, 0, 0, 2]),
            ipv4: ipv4.into(),
            gateway: Ipv4Addr::new(169, 254, 1, 1),
            dns: vec![],
            mtu: 1400,
        }
    }

    /// In a network namespace of the test's own thread, which its children inherit.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = thread::spawn(|| {
            crate::sys::namespace::new_network().expect("network namespace");
            test();
        });
        thread.join().expect("test");
    }

    #[test]
    fn a_nic_gets_its_address_and_routes_and_a_second_time_new_ones() {
        in_namespace(|| {
            ip("link add nic0 address 02:67:0a:00:00:02 type veth peer name other");
            ip("link set other up");
            for (address, text) in [([10, 0, 0, 2], "10.0.0.2/32"), ([10, 0, 0, 9], "10.0.0.9/32")] {
                configure_kernel(&settings(address)).expect("configured");
                let addresses = ip("-4 -o address show dev nic0");
                assert!(addresses.contains(text) && addresses.lines().count() == 1, "{addresses}");
            }
            assert!(ip("link show nic0").contains("mtu 1400"));
            let routes = ip("route show");
            assert!(routes.contains("default via 169.254.1.1 dev nic0 proto static onlink"), "{routes}");
            assert!(routes.contains("169.254.1.1 dev nic0 proto static scope link"), "{routes}");
            assert_eq!(routes.lines().count(), 2, "{routes}");
        });
    }

    #[test]
    fn a_nic_that_is_not_there_is_named() {
        in_namespace(|| {
            let error = configure_kernel(&settings([10, 0, 0, 2])).expect_err("no NIC");
            assert!(error.to_string().contains("02:67:0a:00:00:02"), "{error}");
        });
    }

    #[test]
    fn name_servers_are_bounded() {
        let servers = vec![IpAddr::from([1, 1, 1, 1]); 9];
        assert_eq!(resolver(&servers).matches("nameserver 1.1.1.1\n").count(), MAX_NAME_SERVERS);
    }
}
