//! Executes the steps of a network's ways to its VPN clients and peers, one change of the kernel's state each.

use crate::chaos;
use crate::io::namespace::{self, Inside};
use crate::io::netlink::{Netlink, NewRoute};
use crate::io::network::{Network, NetworkError};
use crate::io::ports::index;
use crate::io::settings;
use crate::pure::names::{DeviceName, Names, NetworkId};
use crate::pure::plan::WAITING_FRAMES;
use crate::pure::ways::{End, PEER_HOP, Way, WayStep};
use crate::sys::tun;
use model::id::VpcId;
use model::net::{GATEWAY_IPV4, GATEWAY_MAC};
use rustix::fd::AsFd;
use tracing::warn;

/// Executes one step.
///
/// # Errors
/// When the kernel refuses; a later plan tries again.
pub async fn execute(names: &Names, network: &Network, step: &WayStep) -> Result<(), NetworkError> {
    let netlink = &network.netlink;
    match step {
        WayStep::Remove(device) => netlink.remove(index(network, device).await?).await?,
        WayStep::Make(way) => {
            let (name, device) = (way.device.to_string(), way.device.to_string());
            let made = network.inside.run(move || tun::make_clients(&name)).await?;
            made.map_err(|source| NetworkError::Tap { device, source })?;
        }
        WayStep::Link(way) => match &way.end {
            End::Peer { vpc, .. } => link(names, network, &way.device, vpc).await?,
            End::Clients { .. } => {}
        },
        WayStep::Dress(way) => dress(network, way).await?,
        WayStep::Raise(device) => netlink.raise(index(network, device).await?).await?,
        WayStep::AddHop(device) => {
            netlink.add_neighbour(index(network, device).await?, PEER_HOP.into(), GATEWAY_MAC).await?;
        }
        WayStep::AddRoute(way) => {
            let via = matches!(way.end, End::Peer { .. }).then_some(PEER_HOP);
            let route = NewRoute { to: way.range, via, source: GATEWAY_IPV4, metric: 0 };
            netlink.add_route(index(network, &way.device).await?, route).await?;
        }
    }
    Ok(())
}

async fn link(
    names: &Names,
    network: &Network,
    device: &DeviceName,
    vpc: &VpcId,
) -> Result<(), NetworkError> {
    let name = names.namespace(&NetworkId::Private(vpc.clone()));
    let there = namespace::open(&name)?.ok_or(NetworkError::NoNamespace(name.clone()))?;
    let again = namespace::open(&name)?.ok_or(NetworkError::NoNamespace(name))?;
    let (device, others) = (device.as_str(), Netlink::of(&Inside::start(again)?).await?);
    if let Some(orphan) = others.link(device).await? {
        warn!(device, network = %vpc, "its other end is not in the peer's namespace; made anew");
        others.remove(orphan.index).await?;
        chaos::border();
    }
    Ok(network.netlink.add_veth(device, device, there.as_fd()).await?)
}

async fn dress(network: &Network, way: &Way) -> Result<(), NetworkError> {
    let name = way.device.clone();
    network.inside.run(move || settings::apply(&settings::WAY, name.as_str())).await??;
    let device = index(network, &way.device).await?;
    match &way.end {
        End::Clients { mtu } => network.netlink.set_mtu(device, *mtu).await?,
        End::Peer { peering, .. } => {
            let alias = Some(peering.as_str());
            network.netlink.dress(device, GATEWAY_MAC, alias, WAITING_FRAMES).await?;
        }
    }
    Ok(())
}
