//! What is there: the ports of a network as the kernel shows them, and what this process holds and remembers.

use crate::io::network::{Network, NetworkError};
use crate::io::nft::{self, Where};
use crate::pure::names::{DeviceName, TABLE};
use crate::pure::plan::{Seen, SeenTap};
use model::net::MacAddress;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A TAP's queues.
pub type Queues = Arc<Vec<OwnedFd>>;

/// What only this process knows.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Queues of TAPs.
    pub queues: HashMap<DeviceName, Queues>,
    /// Chains that this process wrote, and what they admit.
    pub filters: BTreeMap<DeviceName, (MacAddress, Ipv4Addr)>,
}

/// Looks.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn observe(network: &Network, memory: &Memory) -> Result<Seen, NetworkError> {
    let (links, routes) = (network.netlink.links().await?, network.netlink.routes().await?);
    let neighbours = network.netlink.neighbours().await?;
    let chains = nft::port_chains(Where::Network(&network.inside), TABLE).await?;
    let taps = links.into_iter().filter_map(|link| {
        let device = DeviceName::parse(&link.name)?;
        let held = memory.queues.get(&device).map_or(0, |queues| queues.len());
        let over = routes.iter().filter(|route| route.device == link.index && route.prefix == 32);
        let on = neighbours.iter().filter(|(index, _, _)| *index == link.index);
        let tap = SeenTap {
            mac: link.mac,
            alias: link.alias,
            multi_queue: link.multi_queue,
            up: link.up,
            attached: link.attached,
            held,
            routes: over.map(|route| route.destination).collect(),
            neighbours: on.map(|(_, address, mac)| (*address, *mac)).collect(),
        };
        Some((device, tap))
    });
    let taps = taps.collect();
    let filters = chains.into_iter().map(|device| {
        let admitted = memory.filters.get(&device).copied();
        (device, admitted)
    });
    Ok(Seen { taps, filters: filters.collect() })
}
