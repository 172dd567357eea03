//! What is there: the ports of a network as the kernel shows them, and what this process holds and remembers.

use crate::io::network::{Network, NetworkError};
use crate::io::nft::{self, Where};
use crate::keeper::Keeper;
use crate::pure::names::{DeviceName, TABLE};
use crate::pure::plan::{Seen, SeenTap};
use crate::pure::wanted::Port;
use model::net::MacAddress;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
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
    /// The firewall that this process wrote; none when it must be written (again).
    pub firewall: Option<crate::io::firewall::Standing>,
}

impl Memory {
    /// A port's chain was written.
    pub fn remember_filter(&mut self, port: &Port) {
        self.filters.insert(port.device.clone(), (port.mac, port.ipv4));
        self.chains.get_or_insert_default().insert(port.device.clone());
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
    let chains = match memory.chains.take() {
        Some(chains) => chains,
        // A program start: not for every change.
        None => nft::port_chains(Where::Network(&network.inside), TABLE).await?,
    };
    memory.chains = Some(chains.clone());
    let taps = links.into_iter().filter_map(|link| {
        let device = DeviceName::parse(&link.name)?;
        let held = keeper.queues(&device).map_or(0, |queues| queues.len());
        let over = routes.iter().filter(|route| route.device == link.index && route.prefix == 32);
        let on = neighbours.iter().filter(|(index, _, _)| *index == link.index);
        let tap = SeenTap {
            mac: link.mac,
            alias: link.alias,
            waiting_frames: link.queue_length,
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
