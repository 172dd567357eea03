//! Executes the steps of a plan, one change of the kernel's state each.

use crate::chaos;
use crate::io::flows;
use crate::io::network::{Network, NetworkError};
use crate::io::nft::{self, Where};
use crate::io::observe::Memory;
use crate::io::settings;
use crate::io::ways;
use crate::keeper::Keeper;
use crate::pure::names::{DeviceName, Names};
use crate::pure::plan::{Alias, Step, WAITING_FRAMES};
use crate::pure::rules;
use crate::pure::wanted::{Port, Seat};
use crate::sys::tun::{self, Opening};
use model::net::{GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC};
use std::sync::Arc;
use tracing::{debug, warn};

/// Executes one step. What it learns goes into `memory`, what must outlive the process to the keeper.
///
/// # Errors
/// When the kernel refuses; a later plan tries again.
pub async fn execute(
    names: &Names,
    network: &Network,
    memory: &mut Memory,
    keeper: &mut Keeper,
    step: &Step,
) -> Result<(), NetworkError> {
    debug!(?step, "step");
    let inside = &network.inside;
    match step {
        Step::CreateTap(port) => {
            memory.fresh.insert(port.device.clone());
            open(network, keeper, port, Opening::New).await?;
        }
        Step::AttachTap(port) => open(network, keeper, port, Opening::Existing).await?,
        Step::DressTap(device, alias) => dress(network, device, alias).await?,
        Step::Sign(device, alias) => network.netlink.sign(index(network, device).await?, alias).await?,
        Step::FilterPorts(seats) => {
            let mut text: String = seats.iter().map(|seat| rules::port(seat, network.logged)).collect();
            let fresh = seats.iter().filter(|seat| memory.fresh.contains(&seat.device));
            text.extend(fresh.filter_map(|seat| seat.ipv6).map(rules::without_speaker));
            nft::apply(Where::Network(inside), text).await?;
            for seat in seats {
                memory.fresh.remove(&seat.device);
                memory.remember_filter(seat);
            }
        }
        Step::RaiseTap(device) => network.netlink.raise(index(network, device).await?).await?,
        Step::SpeakIpv6(device) => {
            let name = device.clone();
            network.inside.run(move || settings::apply(&settings::SPEAK_IPV6, name.as_str())).await??;
            chaos::border();
            network.netlink.add_address(index(network, device).await?, GATEWAY_IPV6.into(), 128).await?;
        }
        Step::AddRoute(device, address) => {
            let device = index(network, device).await?;
            network.netlink.add_host_route(device, *address, GATEWAY_IPV4).await?;
        }
        Step::AddNeighbour(device, address, mac) => {
            let device = index(network, device).await?;
            network.netlink.add_neighbour(device, *address, *mac).await?;
        }
        Step::RemoveTap(device) => network.netlink.remove(index(network, device).await?).await?,
        Step::DropFilters(devices) => {
            let mut text: String =
                devices.iter().map(|device| rules::without_port(device.as_str())).collect();
            let gone = devices.iter().filter_map(|device| memory.filters.get(device));
            let gone = gone.filter_map(|(_, ipv4)| Some(network.ula?.address(*ipv4)));
            text.extend(gone.map(rules::without_speaker));
            nft::apply(Where::Network(inside), text).await?;
            for device in devices {
                memory.forget_filter(device);
            }
        }
        Step::ForgetFlows(address) => {
            // Flows that cannot be deleted end by their own timers; the port must go all the same.
            if let Err(error) = flows::forget(inside, *address).await {
                warn!(%address, %error, "tracked flows of a removed port stay until they time out");
            }
        }
        Step::Way(step) => ways::execute(names, network, step).await?,
    }
    chaos::border();
    Ok(())
}

/// Remembers that a member speaks IPv6, since it was just given the address.
///
/// # Errors
/// When nft refuses.
pub async fn speaks(network: &Network, seat: &Seat) -> Result<(), NetworkError> {
    let Some(address) = seat.ipv6 else { return Ok(()) };
    nft::apply(Where::Network(&network.inside), rules::speaker(address)).await?;
    chaos::border();
    Ok(())
}

async fn open(
    network: &Network,
    keeper: &mut Keeper,
    port: &Port,
    opening: Opening,
) -> Result<(), NetworkError> {
    let (name, count) = (port.device.to_string(), port.queues);
    let opened = network.inside.run(move || tun::open(&name, count, opening)).await?;
    let device = port.device.to_string();
    let queues = Arc::new(opened.map_err(|source| NetworkError::Tap { device, source })?);
    chaos::border();
    keeper.keep(&port.device, queues).await;
    Ok(())
}

async fn dress(network: &Network, device: &DeviceName, alias: &Alias) -> Result<(), NetworkError> {
    let name = device.clone();
    network.inside.run(move || settings::apply(&settings::TAP, name.as_str())).await??;
    let device = index(network, device).await?;
    Ok(network.netlink.dress(device, GATEWAY_MAC, alias.as_deref(), WAITING_FRAMES).await?)
}

/// The number of a device, which must be there.
///
/// # Errors
/// When it is not, or the kernel refuses.
pub async fn index(network: &Network, device: &DeviceName) -> Result<u32, NetworkError> {
    Ok(network.netlink.need(device.as_str()).await?.index)
}
