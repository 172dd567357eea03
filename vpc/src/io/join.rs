//! Makes a service a member: a device in its network, and that device's other end in the namespace that it lives in.

use crate::chaos;
use crate::io::namespace::Inside;
use crate::io::netlink::{Netlink, NewRoute};
use crate::io::network::{Network, NetworkError};
use crate::io::settings;
use crate::pure::wanted::{Service, WantedNetwork};
use crate::pure::ways::End;
use model::net::{GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, GUEST_MTU, Ipv4Cidr, Ula};
use rustix::fd::{AsFd, OwnedFd};
use thiserror::Error;

/// Why a service does not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The network or the kernel.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A device of that name is there.
    #[error(
        "the namespace has a device {0} already; a service joins a network with one namespace of its own"
    )]
    DeviceThere(String),
    /// Something there has the addresses already.
    #[error(
        "{wanted} of the network overlaps with {there} on device {device} of the namespace; one namespace cannot be in both"
    )]
    Clash {
        /// Of the network.
        wanted: Ipv4Cidr,
        /// Of the namespace.
        there: Ipv4Cidr,
        /// Where it is.
        device: String,
    },
}

/// The namespace of a service.
#[derive(Debug)]
pub struct Target {
    namespace: OwnedFd,
    inside: Inside,
    netlink: Netlink,
    /// Its end's name.
    end: String,
    /// Where to over its end, the network itself first.
    routes: Vec<Ipv4Cidr>,
}

impl Target {
    /// Enters the namespace, and says what would be made there for a member of this network.
    ///
    /// # Errors
    /// When the descriptor is none of a network namespace.
    pub async fn enter(
        namespace: OwnedFd,
        end: String,
        network: &WantedNetwork,
    ) -> Result<Self, NetworkError> {
        let again = namespace.try_clone().map_err(NetworkError::OwnNamespace)?;
        let inside = Inside::start(again)?;
        let netlink = Netlink::of(&inside).await?;
        let others = network.ways.values().map(|way| match (&way.end, network.hidden_behind) {
            (End::Clients { .. }, Some(address)) => Ipv4Cidr::constant(address, 32),
            (End::Clients { .. }, None) | (End::Peer { .. }, _) => way.range,
        });
        let others = others.filter(|range| !network.range.overlaps(*range));
        let routes = std::iter::once(network.range).chain(others).collect();
        Ok(Self { namespace, inside, netlink, end, routes })
    }

    /// Looks whether there is room for the device and its routes. A default route leads everywhere and is in no one's way.
    ///
    /// # Errors
    /// When there is none, or the kernel cannot be asked.
    pub async fn check(&self) -> Result<(), JoinError> {
        let netlink = &self.netlink;
        let links = netlink.links().await.map_err(NetworkError::from)?;
        if links.iter().any(|link| link.name == self.end) {
            return Err(JoinError::DeviceThere(self.end.clone()));
        }
        let routes = netlink.routes().await.map_err(NetworkError::from)?;
        let routed = routes.iter().map(|route| (route.device, route.destination, route.prefix));
        let addresses = netlink.addresses().await.map_err(NetworkError::from)?;
        // An address that stands in a range is no route; the range has its own.
        let addressed = addresses.iter().map(|(device, address, _)| (*device, *address, 32));
        for (device, address, prefix) in
            routed.chain(addressed).filter(|(_, _, prefix)| (1..=32).contains(prefix))
        {
            let there = Ipv4Cidr::constant(address, prefix);
            if let Some(wanted) = self.routes.iter().find(|range| range.overlaps(there)) {
                let name = links.iter().find(|link| link.index == device).map(|link| link.name.clone());
                let device = name.unwrap_or_else(|| device.to_string());
                return Err(JoinError::Clash { wanted: *wanted, there, device });
            }
        }
        Ok(())
    }

    /// Makes the link, both ends down.
    ///
    /// # Errors
    /// When an end exists, or the kernel refuses.
    pub async fn link(&self, network: &Network, service: &Service) -> Result<(), NetworkError> {
        let device = service.seat.device.as_str();
        network.netlink.add_veth(device, &self.end, self.namespace.as_fd()).await?;
        chaos::border();
        Ok(())
    }

    /// Gives the service's end its addresses and routes. The network's end is up, and its filter stands.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn furnish(&self, service: &Service) -> Result<(), NetworkError> {
        let end = self.end.clone();
        self.inside.run(move || settings::apply(&settings::SERVICE_END, &end)).await??;
        let (seat, netlink) = (&service.seat, &self.netlink);
        let index = netlink.need(&self.end).await?.index;
        netlink.dress(index, seat.mac, Some(service.id.as_str()), crate::pure::plan::WAITING_FRAMES).await?;
        netlink.set_mtu(index, GUEST_MTU).await?;
        chaos::border();
        netlink.add_address(index, seat.ipv4.into(), 32).await?;
        chaos::border();
        netlink.raise(index).await?;
        chaos::border();
        // A namespace that is in several networks has several gateways of this address; the metric keeps them apart.
        let gateway = Ipv4Cidr::constant(GATEWAY_IPV4, 32);
        let route = NewRoute { to: gateway, via: None, source: seat.ipv4, metric: index };
        netlink.add_route(index, route).await?;
        for range in &self.routes {
            let route = NewRoute { to: *range, via: Some(GATEWAY_IPV4), source: seat.ipv4, metric: 0 };
            netlink.add_route(index, route).await?;
        }
        chaos::border();
        if let Some(address) = seat.ipv6 {
            let name = self.end.clone();
            self.inside.run(move || settings::apply(&settings::SPEAK_IPV6, &name)).await??;
            netlink.add_address(index, address.into(), 128).await?;
            // Nobody is asked for the gateway, and so the end needs no link-local address.
            netlink.add_neighbour(index, GATEWAY_IPV6.into(), GATEWAY_MAC).await?;
            netlink.add_ipv6_route(index, (address, Ula::PREFIX), GATEWAY_IPV6).await?;
            chaos::border();
        }
        Ok(())
    }
}
