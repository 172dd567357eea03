//! The link between a network's namespace and the host: a pair of devices, their addresses, and what the host's rules say
//! of it. All links of an appliance stand in one table of the host.

use crate::chaos;
use crate::io::netlink::Netlink;
use crate::io::network::NetworkError;
use crate::io::nft::{self, NftError, Where};
use crate::io::settings;
use crate::pure::names::{INNER_UPLINK, Names, NetworkId};
use crate::pure::rules::{self, Link};
use crate::pure::transfer::Transfer;
use crate::sys;
use model::net::Ipv4Cidr;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use tokio::sync::Mutex;
use tracing::{info, warn};

/// The host's table, as this process has written it last; nothing before the first time. Who holds the lock is the only
/// one who chooses addresses for a link and writes the table.
#[derive(Debug, Default)]
pub struct HostTable(Mutex<Option<Vec<Link>>>);

/// Makes or completes the link of a network with its addresses, rules and routes.
///
/// # Errors
/// See [`NetworkError`]; a later call goes on where this one ended.
pub async fn ensure(
    (names, table): (&Names, &HostTable),
    id: &NetworkId,
    inner: &Netlink,
) -> Result<(), NetworkError> {
    let host = Netlink::here()?;
    let name = names.host_uplink(id);
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
    let (ours, theirs) = (host.need(&name).await?, inner.need(INNER_UPLINK).await?);
    settings::apply(&settings::HOST_UPLINK, &name)?;
    let transfer = table.admit(names, &host, (&name, ours.index)).await?;
    inner.add_address(theirs.index, transfer.inner().into(), 31).await?;
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
    Ok(())
}

/// Removes a link, whether or not it is there, with its place in the host's rules.
///
/// # Errors
/// See [`NetworkError`]; a later call goes on where this one ended.
pub async fn remove((names, table): (&Names, &HostTable), device: &str) -> Result<(), NetworkError> {
    let host = Netlink::here()?;
    if let Some(link) = host.link(device).await? {
        let mut standing = table.0.lock().await;
        let mut others = links(names, &host).await?;
        others.retain(|link| link.device != device);
        // While the device is there, its address says that there is something to remove.
        write(names, &mut standing, others).await?;
        chaos::border();
        // Its peer goes with it, without waiting for the namespace's own end.
        host.remove(link.index).await?;
    }
    chaos::border();
    Ok(())
}

impl HostTable {
    /// Gives a link its addresses and its place in the table.
    async fn admit(
        &self,
        names: &Names,
        host: &Netlink,
        (name, index): (&str, u32),
    ) -> Result<Transfer, NetworkError> {
        let mut standing = self.0.lock().await;
        let transfer = choose_transfer(name, host, index).await?;
        // The rules are made of the addresses that are there; nothing flows before the device is up.
        host.add_address(index, transfer.host().into(), 31).await?;
        chaos::border();
        write(names, &mut standing, links(names, host).await?).await?;
        chaos::border();
        Ok(transfer)
    }
}

/// Brings the table to these links: by what has changed, if this process knows what stands.
async fn write(
    names: &Names,
    standing: &mut Option<Vec<Link>>,
    links: Vec<Link>,
) -> Result<(), NetworkError> {
    if let Some(before) = standing.take() {
        if before == links {
            *standing = Some(links);
            return Ok(());
        }
        match nft::apply(Where::Host, rules::host_change(names, &before, &links)).await {
            Ok(()) => {
                *standing = Some(links);
                return Ok(());
            }
            Err(NftError::Refused(complaint)) => {
                warn!(complaint, "somebody has changed our table of the host's rules; written anew");
            }
            Err(error) => return Err(error.into()),
        }
    }
    nft::apply(Where::Host, rules::host(names, &links)).await?;
    *standing = Some(links);
    Ok(())
}

/// The links of our networks that have their addresses.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn links(names: &Names, host: &Netlink) -> Result<Vec<Link>, NetworkError> {
    let (devices, addresses) = (host.links().await?, host.addresses().await?);
    let ours = devices.into_iter().filter(|device| names.is_host_uplink(&device.name));
    let links = ours.filter_map(|device| {
        let mut own = addresses.iter().filter(|(index, _, _)| *index == device.index);
        let transfer = own.find_map(|(_, address, _)| Transfer::of_host(*address))?;
        Some(Link { device: device.name, transfer })
    });
    Ok(links.collect())
}

/// The pair that the device has already, or one that collides with no address and no route of the host.
async fn choose_transfer(name: &str, host: &Netlink, uplink: u32) -> Result<Transfer, NetworkError> {
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
    Transfer::choose(name, &taken).ok_or(NetworkError::NoTransfer)
}

fn range(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Cidr> {
    let mask = u32::MAX.checked_shl(32_u32.checked_sub(u32::from(prefix))?).unwrap_or(0);
    format!("{}/{prefix}", Ipv4Addr::from_bits(address.to_bits() & mask)).parse().ok()
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
