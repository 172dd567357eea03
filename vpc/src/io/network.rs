//! A network's frame, without its ports: the namespace, the gateway's address, the link to the host, the rules.
//!
//! Every step looks first and changes only what is missing, so a start after a kill at any point completes it.

use crate::chaos;
use crate::io::flows::FlowsError;
use crate::io::namespace::{self, Inside, NamespaceError};
use crate::io::netlink::{Link, Netlink, NetlinkError};
use crate::io::nft::{self, NftError, Where};
use crate::io::settings::{self, SettingError};
use crate::pure::names::{INNER_UPLINK, Names};
use crate::pure::rules;
use crate::pure::transfer::Transfer;
use crate::sys;
use model::net::{GATEWAY_IPV4, Ipv4Cidr};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use thiserror::Error;
use tokio::task::JoinError;
use tracing::{info, warn};

/// What can go wrong with a network or a port.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// With its namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// Over netlink.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// With its rules.
    #[error(transparent)]
    Rules(#[from] NftError),
    /// With a setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// With tracked flows.
    #[error(transparent)]
    Flows(#[from] FlowsError),
    /// With a TAP.
    #[error("TAP {device} cannot be opened: {source}")]
    Tap {
        /// Its name.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// No pair of addresses is free for the link to the host.
    #[error("no transfer addresses are free between 169.254.64.0 and 169.254.127.255")]
    NoTransfer,
    /// A device that was there a moment ago is not.
    #[error("device {0} is not there")]
    NoDevice(String),
    /// The host's namespace cannot be named.
    #[error("the host's own network namespace cannot be opened: {0}")]
    OwnNamespace(#[source] io::Error),
    /// A task of ours ended too early.
    #[error("a task ended early: {0}")]
    Task(#[from] JoinError),
}

/// A network that stands.
#[derive(Clone, Debug)]
pub struct Network {
    /// The names of its parts.
    pub names: Names,
    /// For changes, which may take milliseconds.
    pub inside: Inside,
    /// For sockets, which must not wait for changes.
    pub sockets: Inside,
    /// Its netlink.
    pub netlink: Netlink,
    /// The link to the host.
    pub transfer: Transfer,
    /// Where its guests' addresses come from.
    pub range: Ipv4Cidr,
}

impl Network {
    /// Makes or completes a network whose guests have addresses of `range`. Must be called in the host's namespace.
    ///
    /// # Errors
    /// See [`NetworkError`]; a later call goes on where this one ended.
    pub async fn ensure(names: &Names, range: Ipv4Cidr) -> Result<Self, NetworkError> {
        let name = names.namespace();
        let namespace = tokio::task::spawn_blocking(move || namespace::ensure(&name)).await??;
        let again =
            namespace::open(&names.namespace())?.ok_or_else(|| NetworkError::NoDevice(names.namespace()))?;
        let (inside, sockets) = (Inside::start(namespace)?, Inside::start(again)?);
        let netlink = Netlink::of(&inside).await?;
        chaos::border();
        inside.run(|| settings::apply(&settings::NETWORK, "")).await??;
        chaos::border();
        // Rules come before the link over which anything could flow.
        nft::apply(Where::Network(&inside), rules::network(range)).await?;
        chaos::border();
        ensure_gateway(&netlink).await?;
        let transfer = ensure_uplink(names, &netlink).await?;
        Ok(Self { names: names.clone(), inside, sockets, netlink, transfer, range })
    }
}

/// Removes a network with everything in it, and its table in the host's namespace.
///
/// # Errors
/// See [`NetworkError`]; what could be removed is gone, and a later call goes on.
pub async fn teardown(names: &Names) -> Result<(), NetworkError> {
    let host = Netlink::here()?;
    if let Some(link) = host.link(&names.host_uplink()).await? {
        // Its peer goes with it, without waiting for the namespace's own end.
        host.remove(link.index).await?;
    }
    chaos::border();
    if let Some(namespace) = namespace::open(&names.namespace())? {
        let inside = Inside::start(namespace)?;
        let netlink = Netlink::of(&inside).await?;
        for link in netlink.links().await?.iter().filter(|link| link.name != "lo") {
            // A VM may still hold a queue and with it the namespace; its device goes now.
            netlink.remove(link.index).await?;
            chaos::border();
        }
    }
    let name = names.namespace();
    tokio::task::spawn_blocking(move || namespace::remove(&name)).await??;
    chaos::border();
    nft::apply(Where::Host, rules::without_host(names)).await?;
    Ok(())
}

async fn ensure_gateway(netlink: &Netlink) -> Result<(), NetworkError> {
    let loopback = need(netlink, "lo").await?;
    netlink.raise(loopback.index).await?;
    chaos::border();
    // On the loopback device the address is every TAP's, and needs no device of its own.
    netlink.add_address(loopback.index, GATEWAY_IPV4, 32).await?;
    chaos::border();
    Ok(())
}

/// The pair of devices between the namespace and the host, with addresses, rules and routes.
async fn ensure_uplink(names: &Names, inner: &Netlink) -> Result<Transfer, NetworkError> {
    let host = Netlink::here()?;
    let name = names.host_uplink();
    let (ours, theirs) = (host.link(&name).await?, inner.link(INNER_UPLINK).await?);
    if let (Some(orphan), None) = (&ours, &theirs) {
        warn!(device = name, "its other end is not in our namespace; made anew");
        host.remove(orphan.index).await?;
    }
    if ours.is_none() || theirs.is_none() {
        let here = sys::namespace::current().map_err(NetworkError::OwnNamespace)?;
        inner.add_veth(INNER_UPLINK, &name, here.as_fd()).await?;
        chaos::border();
    }
    let (ours, theirs) = (need(&host, &name).await?, need(inner, INNER_UPLINK).await?);
    let transfer = choose_transfer(names, &host, ours.index).await?;
    settings::apply(&settings::HOST_UPLINK, &name)?;
    nft::apply(Where::Host, rules::host(names, transfer)).await?;
    chaos::border();
    host.add_address(ours.index, transfer.host(), 31).await?;
    chaos::border();
    inner.add_address(theirs.index, transfer.inner(), 31).await?;
    chaos::border();
    host.raise(ours.index).await?;
    chaos::border();
    inner.raise(theirs.index).await?;
    chaos::border();
    inner.add_default_route(theirs.index, transfer.host()).await?;
    chaos::border();
    if settings::ensure_forwarding()? {
        info!("turned net.ipv4.ip_forward on: guests reach the Internet through this host; it stays on");
    }
    chaos::border();
    Ok(transfer)
}

/// The pair that the device has already, or one that collides with no address and no route of the host.
async fn choose_transfer(names: &Names, host: &Netlink, uplink: u32) -> Result<Transfer, NetworkError> {
    let addresses = host.addresses().await?;
    let mut own = addresses.iter().filter(|(device, _, _)| *device == uplink);
    if let Some(transfer) = own.find_map(|(_, address, _)| Transfer::of_host(*address)) {
        return Ok(transfer);
    }
    let routes = host.routes().await?;
    // A default route leads everywhere and so collides with nothing in particular.
    let routed =
        routes.iter().filter(|route| route.prefix > 0).map(|route| (route.destination, route.prefix));
    let addressed = addresses.iter().map(|(_, address, prefix)| (*address, *prefix));
    let taken: Vec<Ipv4Cidr> =
        routed.chain(addressed).filter_map(|(address, prefix)| range(address, prefix)).collect();
    Transfer::choose(names.prefix(), &taken).ok_or(NetworkError::NoTransfer)
}

fn range(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Cidr> {
    let mask = u32::MAX.checked_shl(32_u32.checked_sub(u32::from(prefix))?).unwrap_or(0);
    format!("{}/{prefix}", Ipv4Addr::from_bits(address.to_bits() & mask)).parse().ok()
}

async fn need(netlink: &Netlink, name: &str) -> Result<Link, NetworkError> {
    netlink.link(name).await?.ok_or_else(|| NetworkError::NoDevice(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_the_range_they_stand_in() {
        let of = |address: [u8; 4], prefix| range(address.into(), prefix).map(|range| range.to_string());
        assert_eq!(of([10, 1, 2, 3], 8).as_deref(), Some("10.0.0.0/8"));
        assert_eq!(of([10, 1, 2, 3], 32).as_deref(), Some("10.1.2.3/32"));
        assert_eq!(of([10, 1, 2, 3], 0).as_deref(), Some("0.0.0.0/0"));
        assert_eq!(of([10, 1, 2, 3], 33), None);
    }
}
