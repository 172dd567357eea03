//! What is there: the ports of a network as the kernel shows them, and what this process holds and remembers.

use crate::io::netlink::{Link, Route};
use crate::io::network::{Network, NetworkError};
use crate::io::nft::{self, Where};
use crate::keeper::Keeper;
use crate::pure::names::{DeviceKind, DeviceName, TABLE};
use crate::pure::plan::{Seen, SeenTap};
use crate::pure::wanted::Seat;
use crate::pure::ways::SeenWay;
use model::net::{GATEWAY_IPV6, Ipv4Cidr, MacAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A TAP's queues.
pub type Queues = Arc<Vec<OwnedFd>>;

/// What only this process knows of a network.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Chains that this process wrote, and what they admit.
    pub filters: BTreeMap<DeviceName, (MacAddress, Ipv4Addr)>,
    /// Chains that are there, as far as is known; none when the kernel must be asked (again).
    pub chains: Option<BTreeSet<DeviceName>>,
    /// The rules of who comes from where, as this process last wrote them.
    pub sides: Option<String>,
    /// Devices that this process made and that have no chain yet: nothing was heard of who will be behind them.
    pub fresh: BTreeSet<DeviceName>,
    /// The firewall that this process wrote; none when it must be written (again).
    pub firewall: Option<crate::io::firewall::Standing>,
}

impl Memory {
    /// A member's chain was written.
    pub fn remember_filter(&mut self, seat: &Seat) {
        self.filters.insert(seat.device.clone(), (seat.mac, seat.ipv4));
        self.chains.get_or_insert_default().insert(seat.device.clone());
    }

    /// A chain was removed.
    pub fn forget_filter(&mut self, device: &DeviceName) {
        self.filters.remove(device);
        self.chains.get_or_insert_default().remove(device);
    }
}

/// Looks.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn observe(network: &Network, memory: &mut Memory, keeper: &Keeper) -> Result<Seen, NetworkError> {
    let (links, routes) = (network.netlink.links().await?, network.netlink.routes().await?);
    let neighbours = network.netlink.neighbours().await?;
    let ipv6_routes = network.netlink.ipv6_host_routes().await?;
    let speaking = network.netlink.devices_with(GATEWAY_IPV6.into()).await?;
    let chains = match memory.chains.take() {
        Some(chains) => chains,
        None if network.new && memory.filters.is_empty() => BTreeSet::new(),
        // A program start: not for every change.
        None => nft::port_chains(Where::Network(&network.inside), TABLE).await?,
    };
    memory.chains = Some(chains.clone());
    let mut seen = Seen::default();
    for link in links {
        let Some(device) = DeviceName::parse(&link.name) else { continue };
        let on = neighbours.iter().filter(|(index, _, _)| *index == link.index);
        let neighbours = on.map(|(_, address, mac)| (*address, *mac)).collect();
        match device.kind() {
            DeviceKind::Tap | DeviceKind::Service => {
                let held = keeper.queues(&device).map_or(0, |queues| queues.len());
                let speaks_ipv6 = speaking.contains(&link.index);
                let ipv6 = ipv6_routes.iter().filter(|(index, _)| *index == link.index);
                let ipv6: Vec<IpAddr> = ipv6.map(|(_, address)| IpAddr::V6(*address)).collect();
                let mut tap = SeenTap { speaks_ipv6, held, ..tap(link, &routes, neighbours) };
                tap.routes.extend(ipv6);
                seen.taps.insert(device, tap);
            }
            DeviceKind::Peer | DeviceKind::Clients => {
                seen.ways.insert(device, way(link, &routes, neighbours));
            }
        }
    }
    let filters = chains.into_iter().map(|device| {
        let admitted = memory.filters.get(&device).copied();
        (device, admitted)
    });
    seen.filters = filters.collect();
    Ok(seen)
}

fn tap(link: Link, routes: &[Route], neighbours: BTreeMap<IpAddr, MacAddress>) -> SeenTap {
    let over = routes.iter().filter(|route| route.device == link.index && route.prefix == 32);
    SeenTap {
        mac: link.mac,
        alias: link.alias,
        waiting_frames: link.queue_length,
        multi_queue: link.multi_queue,
        up: link.up,
        attached: link.attached,
        routes: over.map(|route| route.destination.into()).collect(),
        neighbours,
        ..SeenTap::default()
    }
}

/// Ways speak IPv4 alone.
fn way(link: Link, routes: &[Route], neighbours: BTreeMap<IpAddr, MacAddress>) -> SeenWay {
    let over = routes.iter().filter(|route| route.device == link.index && route.prefix <= 32);
    let ipv4 = |(address, mac)| match address {
        IpAddr::V4(address) => Some((address, mac)),
        IpAddr::V6(_) => None,
    };
    SeenWay {
        mac: link.mac,
        alias: link.alias,
        mtu: link.mtu,
        up: link.up,
        routes: over.map(|route| Ipv4Cidr::constant(route.destination, route.prefix)).collect(),
        neighbours: neighbours.into_iter().filter_map(ipv4).collect(),
    }
}
