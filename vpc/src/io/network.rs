//! A network's frame, without its ports: the namespace, the gateway's address, the rules, and (see [`uplink`]) the link
//! to the host.
//!
//! Every step looks first and changes only what is missing, so a start after a kill at any point completes it.

use crate::chaos;
use crate::io::flows::FlowsError;
use crate::io::namespace::{self, Inside, NamespaceError};
use crate::io::netlink::{Netlink, NetlinkError};
use crate::io::nft::{self, NftError, Where};
use crate::io::settings::{self, SettingError};
use crate::io::uplink::{self, HostTable};
use crate::pure::names::{Names, NetworkId};
use crate::pure::rules::{self, Inward, Logged};
use model::net::{GATEWAY_IPV4, Ipv4Cidr, Ula};
use std::collections::BTreeSet;
use std::io;
use thiserror::Error;
use tokio::task::JoinError;
use tracing::warn;

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
    /// Its namespace is gone the moment after it was made.
    #[error("network namespace {0} is not there")]
    NoNamespace(String),
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
    /// For changes, which may take milliseconds.
    pub inside: Inside,
    /// For sockets, which must not wait for changes.
    pub sockets: Inside,
    /// Its netlink.
    pub netlink: Netlink,
    /// Where its guests' addresses come from.
    pub range: Ipv4Cidr,
    /// The same for IPv6; none when it speaks none.
    pub ula: Option<Ula>,
    /// What of it is told to the flow log.
    pub logged: Logged,
    /// Its namespace was made for it: nothing stands there that it did not put there.
    pub new: bool,
}

impl Network {
    /// Makes or completes a network whose guests have addresses of `range` and, when they speak IPv6, `ula`, with the rules `sides` of who comes from where.
    /// Must be called in the host's namespace.
    ///
    /// # Errors
    /// See [`NetworkError`]; a later call goes on where this one ended.
    pub async fn ensure(
        (names, table): (&Names, &HostTable),
        id: &NetworkId,
        (range, ula): (Ipv4Cidr, Option<Ula>),
        sides: &str,
        logged: Logged,
    ) -> Result<Self, NetworkError> {
        let name = names.namespace(id);
        let made = name.clone();
        let (namespace, new) = tokio::task::spawn_blocking(move || namespace::ensure(&made)).await??;
        let again = namespace::open(&name)?.ok_or(NetworkError::NoNamespace(name))?;
        let (inside, sockets) = (Inside::start(namespace)?, Inside::start(again)?);
        let netlink = Netlink::of(&inside).await?;
        chaos::border();
        inside.run(|| settings::apply(&settings::NETWORK, "")).await??;
        chaos::border();
        let inward = match id {
            NetworkId::Default => Inward::Apart,
            NetworkId::Private(_) => Inward::Together,
        };
        // Rules come before the link over which anything could flow.
        let text = [sides, &rules::network((range, ula), inward, logged)].concat();
        nft::apply(Where::Network(&inside), text).await?;
        chaos::border();
        if ula.is_some() {
            inside.run(|| settings::apply(&settings::FORWARD_IPV6, "")).await??;
            chaos::border();
        }
        if logged != Logged::No {
            // The rules have brought flows' tracking along, if it was a module.
            inside.run(|| settings::apply(&settings::FLOW_LOG, "")).await??;
        }
        ensure_gateway(&netlink).await?;
        uplink::ensure((names, table), id, &netlink).await?;
        Ok(Self { inside, sockets, netlink, range, ula, logged, new })
    }
}

/// Networks of which anything is there, wanted or not, and links to the host that belong to none of them.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn survey(names: &Names) -> Result<(BTreeSet<NetworkId>, Vec<String>), NetworkError> {
    let all = tokio::task::spawn_blocking(namespace::all).await??;
    let found: BTreeSet<NetworkId> = all.iter().filter_map(|name| names.network_of_namespace(name)).collect();
    let known: BTreeSet<String> = found.iter().map(|id| names.host_uplink(id)).collect();
    // A device of such a name without such an address may be somebody else's.
    let links = uplink::links(names, &Netlink::here()?).await?;
    let orphans = links.into_iter().map(|link| link.device).filter(|device| !known.contains(device));
    Ok((found, orphans.collect()))
}

/// Removes a network with everything in it, and what the host's rules say of it.
///
/// # Errors
/// See [`NetworkError`]; what could be removed is gone, and a later call goes on.
pub async fn remove((names, table): (&Names, &HostTable), id: &NetworkId) -> Result<(), NetworkError> {
    uplink::remove((names, table), &names.host_uplink(id)).await?;
    let name = names.namespace(id);
    if let Some(namespace) = namespace::open(&name)? {
        let inside = Inside::start(namespace)?;
        let netlink = Netlink::of(&inside).await?;
        for link in netlink.links().await?.iter().filter(|link| link.name != "lo") {
            // A VM may still hold a queue and with it the namespace; its device goes now.
            netlink.remove(link.index).await?;
            chaos::border();
        }
    }
    tokio::task::spawn_blocking(move || namespace::remove(&name)).await??;
    chaos::border();
    Ok(())
}

/// Removes all networks, whether or not a view ever named them, and the host's table.
///
/// # Errors
/// See [`NetworkError`]; what could be removed is gone, and a later call goes on.
pub async fn teardown(names: &Names) -> Result<(), NetworkError> {
    let (networks, orphans) = survey(names).await?;
    let table = HostTable::default();
    for id in &networks {
        remove((names, &table), id).await?;
    }
    remove_orphans((names, &table), &orphans).await?;
    nft::apply(Where::Host, rules::without_host(names)).await?;
    Ok(())
}

/// Removes links to networks that are not there any more.
///
/// # Errors
/// See [`NetworkError`].
pub async fn remove_orphans(
    (names, table): (&Names, &HostTable),
    orphans: &[String],
) -> Result<(), NetworkError> {
    for device in orphans {
        warn!(device, "a link to no network of ours is removed");
        uplink::remove((names, table), device).await?;
    }
    Ok(())
}

async fn ensure_gateway(netlink: &Netlink) -> Result<(), NetworkError> {
    let loopback = netlink.need("lo").await?;
    netlink.raise(loopback.index).await?;
    chaos::border();
    // On the loopback device the address is every TAP's, and needs no device of its own.
    netlink.add_address(loopback.index, GATEWAY_IPV4.into(), 32).await?;
    chaos::border();
    Ok(())
}
