//! rtnetlink(7): devices, addresses, routes and neighbours of one namespace.

use crate::io::namespace::{Inside, NamespaceError};
use futures_util::TryStreamExt;
use model::net::{Ipv4Cidr, MacAddress};
use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoTun, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use thiserror::Error;

// include/uapi/linux/if_link.h
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;
// include/uapi/asm-generic/errno-base.h, as netlink says it
const NO_SUCH_DEVICE: i32 = -19;
// include/uapi/linux/rtnetlink.h
const RT_TABLE_MAIN: u8 = 254;

/// What can go wrong over netlink.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket cannot be made.
    #[error("no netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused.
    #[error("{what} failed: {source}")]
    Refused {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: rtnetlink::Error,
    },
    /// A device that was there a moment ago is not.
    #[error("device {0} is not there")]
    NoDevice(String),
    /// The namespace's thread does not serve.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// One namespace's netlink.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: Handle,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address, when it has one of six octets.
    pub mac: Option<MacAddress>,
    /// What somebody wrote on it.
    pub alias: Option<String>,
    /// Frames that may wait in a queue of it.
    pub queue_length: u32,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Made for several queues (TAPs).
    pub multi_queue: bool,
    /// Queues that are held by some process (TAPs). The kernel counts them for multi-queue devices only; for the
    /// others the carrier says whether there is one.
    pub attached: u32,
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub destination: Ipv4Addr,
    /// Bits of it that count; 0 is the default route.
    pub prefix: u8,
    /// Over which device.
    pub device: u32,
}

/// A route that is to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRoute {
    /// Where to.
    pub to: Ipv4Cidr,
    /// Who stands behind the device, whether or not a route leads there; nobody when all of them stand on it.
    pub via: Option<Ipv4Addr>,
    /// Source address of packets of our own.
    pub source: Ipv4Addr,
    /// Of two routes to the same place, the one of the lower metric is taken.
    pub metric: u32,
}

impl Netlink {
    /// Of the calling thread's namespace. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn here() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Of a thread's namespace. A socket stays in the namespace in which it was made.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub async fn of(inside: &Inside) -> Result<Self, NetlinkError> {
        let runtime = tokio::runtime::Handle::current();
        inside
            .run(move || {
                let _entered = runtime.enter();
                Self::here()
            })
            .await?
    }

    /// All devices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let found = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        Ok(found.map_err(refused("listing devices"))?.iter().map(read_link).collect())
    }

    /// The device of this name; none when there is none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut found = std::pin::pin!(self.handle.link().get().match_name(name).execute());
        match found.try_next().await {
            Ok(message) => Ok(message.as_ref().map(read_link)),
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == NO_SUCH_DEVICE => Ok(None),
            Err(source) => Err(refused("looking for a device")(source)),
        }
    }

    /// The device of this name, which must be there.
    ///
    /// # Errors
    /// When it is not, or the kernel refuses.
    pub async fn need(&self, name: &str) -> Result<Link, NetlinkError> {
        self.link(name).await?.ok_or_else(|| NetlinkError::NoDevice(name.to_owned()))
    }

    /// IPv4 routes of the main table that lead over one device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let all = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let found = self.handle.route().get(all).execute().try_collect::<Vec<_>>().await;
        Ok(found.map_err(refused("listing routes"))?.iter().filter_map(read_route).collect())
    }

    /// IPv6 routes of the main table to single addresses over one device: device, address. Without those to link-local
    /// ones, which the kernel makes of its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn ipv6_host_routes(&self) -> Result<Vec<(u32, Ipv6Addr)>, NetlinkError> {
        let all = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let found = self.handle.route().get(all).execute().try_collect::<Vec<_>>().await;
        Ok(found.map_err(refused("listing routes"))?.iter().filter_map(read_ipv6_host_route).collect())
    }

    /// Permanent neighbours: device, address, Ethernet address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn neighbours(&self) -> Result<Vec<(u32, IpAddr, MacAddress)>, NetlinkError> {
        let found = self.handle.neighbours().get().execute().try_collect::<Vec<_>>().await;
        let found = found.map_err(refused("listing neighbours"))?;
        let permanent = found.iter().filter(|entry| entry.header.state == NeighbourState::Permanent);
        Ok(permanent
            .filter_map(|entry| {
                let address = entry.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                        Some(IpAddr::V4(*address))
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                        Some(IpAddr::V6(*address))
                    }
                    _ => None,
                })?;
                let mac = entry.attributes.iter().find_map(|attribute| match attribute {
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac_of(bytes),
                    _ => None,
                })?;
                Some((entry.header.ifindex, address, mac))
            })
            .collect())
    }

    /// IPv4 addresses: device, address, prefix length.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn addresses(&self) -> Result<Vec<(u32, Ipv4Addr, u8)>, NetlinkError> {
        let found = self.list_addresses().await?;
        let ipv4 = found.into_iter().filter_map(|(device, address, prefix)| match address {
            IpAddr::V4(address) => Some((device, address, prefix)),
            IpAddr::V6(_) => None,
        });
        Ok(ipv4.collect())
    }

    /// The devices that have an address.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn devices_with(&self, wanted: IpAddr) -> Result<HashSet<u32>, NetlinkError> {
        let found = self.list_addresses().await?;
        let having = found.into_iter().filter(|(_, address, _)| *address == wanted);
        Ok(having.map(|(device, _, _)| device).collect())
    }

    async fn list_addresses(&self) -> Result<Vec<(u32, IpAddr, u8)>, NetlinkError> {
        let found = self.handle.address().get().execute().try_collect::<Vec<_>>().await;
        let found = found.map_err(refused("listing addresses"))?;
        Ok(found
            .iter()
            .filter_map(|entry| {
                let own = entry.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Local(address @ IpAddr::V4(_))
                    | AddressAttribute::Address(address @ IpAddr::V6(_)) => Some(*address),
                    _ => None,
                })?;
                Some((entry.header.index, own, entry.header.prefix_len))
            })
            .collect())
    }

    /// Makes a pair of veth devices in one step: `name` here, `peer` in another namespace.
    ///
    /// # Errors
    /// When one of them exists, or the kernel refuses.
    pub async fn add_veth(&self, name: &str, peer: &str, there: BorrowedFd<'_>) -> Result<(), NetlinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new().name(peer).setns_by_fd(there.as_raw_fd()).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle.link().add(pair).execute().await.map_err(refused("making a link"))
    }

    /// Sets a device's Ethernet address, its alias (or leaves it), and how many frames may wait in a queue of it. Its
    /// neighbours are forgotten, even when the address is the one that it has.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn dress(
        &self,
        index: u32,
        mac: MacAddress,
        alias: Option<&str>,
        queue_length: u32,
    ) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec()).txqueuelen(queue_length);
        let message = match alias {
            Some(alias) => message.alias(alias),
            None => message,
        };
        self.handle.link().set(message.build()).execute().await.map_err(refused("setting a device's address"))
    }

    /// Sets a device's alias alone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn sign(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).alias(alias).build();
        self.handle.link().set(message).execute().await.map_err(refused("setting a device's alias"))
    }

    /// Sets how large an IP packet may be on a device, in bytes.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn set_mtu(&self, index: u32, mtu: u16) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(u32::from(mtu)).build();
        self.handle.link().set(message).execute().await.map_err(refused("setting a device's MTU"))
    }

    /// Sets a device up.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn raise(&self, index: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(message).execute().await.map_err(refused("setting a device up"))
    }

    /// Removes a device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn remove(&self, index: u32) -> Result<(), NetlinkError> {
        self.handle.link().del(index).execute().await.map_err(refused("removing a device"))
    }

    /// Gives a device an address, or leaves it when it has it. Of an IPv6 address nobody is asked first
    /// whether he has it (RFC 4862 section 5.4): it is given out by us.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<(), NetlinkError> {
        let mut request = self.handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(refused("adding an address"))
    }

    /// A host route over a device, with the source address for packets of our own; IPv6 finds its own one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_host_route(&self, index: u32, to: IpAddr, source: Ipv4Addr) -> Result<(), NetlinkError> {
        let route = match to {
            IpAddr::V4(to) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to, 32)
                .output_interface(index)
                .scope(RouteScope::Link)
                .pref_source(source)
                .build(),
            IpAddr::V6(to) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to, 128)
                .output_interface(index)
                .build(),
        };
        self.handle.route().add(route).replace().execute().await.map_err(refused("adding a route"))
    }

    /// A route over a device to an IPv6 network, behind a gateway on its link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_ipv6_route(
        &self,
        index: u32,
        (to, prefix): (Ipv6Addr, u8),
        gateway: Ipv6Addr,
    ) -> Result<(), NetlinkError> {
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to, prefix)
            .output_interface(index)
            .gateway(gateway)
            .onlink()
            .build();
        self.handle.route().add(route).replace().execute().await.map_err(refused("adding a route"))
    }

    /// A route over a device, in place of one of the same metric to the same place.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_route(&self, index: u32, new: NewRoute) -> Result<(), NetlinkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(new.to.network(), new.to.prefix())
            .output_interface(index)
            .pref_source(new.source)
            .priority(new.metric);
        let route = match new.via {
            Some(gateway) => route.gateway(gateway).onlink(),
            None => route.scope(RouteScope::Link),
        };
        self.handle.route().add(route.build()).replace().execute().await.map_err(refused("adding a route"))
    }

    /// The default route.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_default_route(&self, index: u32, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(index).build();
        self.handle.route().add(route).replace().execute().await.map_err(refused("adding the default route"))
    }

    /// A neighbour that is never asked for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn add_neighbour(
        &self,
        index: u32,
        address: IpAddr,
        mac: MacAddress,
    ) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac.0)
            .state(NeighbourState::Permanent)
            .replace()
            .execute()
            .await
            .map_err(refused("adding a neighbour"))
    }
}

fn refused(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    move |source| NetlinkError::Refused { what, source }
}

fn mac_of(bytes: &[u8]) -> Option<MacAddress> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddress)
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        ..Link::default()
    };
    let (mut carrier, mut queues) = (false, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Address(bytes) => link.mac = mac_of(bytes),
            LinkAttribute::TxQueueLen(length) => link.queue_length = *length,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Carrier(value) => carrier = *value != 0,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Data(InfoData::Tun(facts)) = info {
                        link.multi_queue = tun_fact(facts, IFLA_TUN_MULTI_QUEUE) == Some(1);
                        queues = tun_fact(facts, IFLA_TUN_NUM_QUEUES);
                    }
                }
            }
            _ => {}
        }
    }
    link.attached = queues.filter(|_| link.multi_queue).unwrap_or(u32::from(carrier));
    link
}

/// A fact of one or four octets, in the host's order.
fn tun_fact(facts: &[InfoTun], kind: u16) -> Option<u32> {
    let fact = facts.iter().find(|fact| fact.kind() == kind)?;
    let mut bytes = [0; 4];
    match fact.value_len() {
        length @ (1 | 4) => fact.emit_value(bytes.get_mut(..length)?),
        _ => return None,
    }
    Some(if fact.value_len() == 1 { u32::from(bytes[0]) } else { u32::from_ne_bytes(bytes) })
}

fn read_route(message: &RouteMessage) -> Option<Route> {
    let device = device_of(message, AddressFamily::Inet)?;
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    });
    let destination = destination.unwrap_or(Ipv4Addr::UNSPECIFIED);
    Some(Route { destination, prefix: message.header.destination_prefix_length, device })
}

fn read_ipv6_host_route(message: &RouteMessage) -> Option<(u32, Ipv6Addr)> {
    let device = device_of(message, AddressFamily::Inet6)?;
    let destination = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(*address),
        _ => None,
    })?;
    let host = message.header.destination_prefix_length == 128 && !destination.is_unicast_link_local();
    host.then_some((device, destination))
}

/// The device of a route of this family in the main table.
fn device_of(message: &RouteMessage, family: AddressFamily) -> Option<u32> {
    if message.header.table != RT_TABLE_MAIN || message.header.address_family != family {
        return None;
    }
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
