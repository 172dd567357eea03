//! The devices of a network over which others than its members come: the TUN of its VPN clients, and a link to each peer.
//!
//! ```text
//!   clients:  (absent) ─Make─► down ─Dress─► ─Raise─► ─AddRoute─► in service
//!   a peer:   (absent) ─Link─► down ─Dress─► ─Raise─► ─AddHop─► ─AddRoute─► in service
//!             Link makes both ends; the other network completes its own.
//!   any of these ─Remove─► (absent), and with a link's one end its other
//! ```
//! The rules of [`crate::pure::sides`] stand before any of it, so no packet comes over a device that they do not know.

use crate::pure::names::DeviceName;
use model::id::{PeeringId, VpcId};
use model::net::{GATEWAY_MAC, Ipv4Cidr, MacAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Where a route over a link to a peer leads: an address that nobody has, whose Ethernet address is that of both ends. So
/// there is one neighbour for a whole network, and nobody is asked for one.
pub const PEER_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

/// A way in and out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// Its device.
    pub device: DeviceName,
    /// Who comes over it, and is reached.
    pub range: Ipv4Cidr,
    /// Where it leads.
    pub end: End,
}

/// Where a way leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// To VPN clients.
    Clients {
        /// Largest IP packet in their tunnels, in bytes.
        mtu: u16,
    },
    /// To another network.
    Peer {
        /// By which peering.
        peering: PeeringId,
        /// Which one.
        vpc: VpcId,
        /// Whether this side makes the link; the other completes its end only.
        makes: bool,
    },
}

/// A device of these as the kernel shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenWay {
    /// Its Ethernet address; a TUN has none.
    pub mac: Option<MacAddress>,
    /// The peering's whole id.
    pub alias: Option<String>,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Routes over it.
    pub routes: Vec<Ipv4Cidr>,
    /// Permanent neighbours on it.
    pub neighbours: BTreeMap<Ipv4Addr, MacAddress>,
}

/// What a network knows of its peers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// Networks that stand.
    pub standing: BTreeSet<VpcId>,
    /// Links of which another network lacks its end.
    pub lacking: BTreeSet<DeviceName>,
}

/// One change of the kernel's state. Each can be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WayStep {
    /// Removes the device with its routes, and a link's other end.
    Remove(DeviceName),
    /// Makes the clients' TUN, down and persistent.
    Make(Way),
    /// Makes a link to a peer, both ends down.
    Link(Way),
    /// Sets addresses, size, alias and the device's own settings.
    Dress(Way),
    /// Sets it up.
    Raise(DeviceName),
    /// The neighbour behind which the whole peer is.
    AddHop(DeviceName),
    /// The route to who is behind it.
    AddRoute(Way),
}

impl WayStep {
    /// Whose step it is.
    #[must_use]
    pub fn device(&self) -> &DeviceName {
        match self {
            Self::Remove(device) | Self::Raise(device) | Self::AddHop(device) => device,
            Self::Make(way) | Self::Link(way) | Self::Dress(way) | Self::AddRoute(way) => &way.device,
        }
    }
}

/// Plans. Empty when all is as wanted, or waits for another network.
#[must_use]
pub fn plan(
    wanted: &BTreeMap<DeviceName, Way>,
    seen: &BTreeMap<DeviceName, SeenWay>,
    peers: &Peers,
) -> Vec<WayStep> {
    let stays = |device: &DeviceName| {
        let (way, seen) = (wanted.get(device)?, seen.get(device)?);
        (!must_go(way, seen, peers)).then_some(seen)
    };
    let gone = seen.keys().filter(|device| stays(device).is_none());
    let mut steps: Vec<WayStep> = gone.cloned().map(WayStep::Remove).collect();
    for way in wanted.values() {
        let seen = stays(&way.device);
        if seen.is_none() {
            match &way.end {
                End::Clients { .. } => steps.push(WayStep::Make(way.clone())),
                End::Peer { vpc, makes: true, .. } if peers.standing.contains(vpc) => {
                    steps.push(WayStep::Link(way.clone()));
                }
                End::Peer { .. } => continue,
            }
        }
        complete(way, seen, &mut steps);
    }
    steps
}

/// Peers without which nothing can be done: they make the link, or are not there yet.
pub fn waits_for<'a>(
    wanted: &'a BTreeMap<DeviceName, Way>,
    seen: &BTreeMap<DeviceName, SeenWay>,
) -> Vec<(&'a VpcId, &'a DeviceName)> {
    let absent = wanted.values().filter(|way| !seen.contains_key(&way.device));
    let peers = absent.filter_map(|way| match &way.end {
        End::Peer { vpc, makes: false, .. } => Some((vpc, &way.device)),
        End::Peer { makes: true, .. } | End::Clients { .. } => None,
    });
    peers.collect()
}

fn must_go(way: &Way, seen: &SeenWay, peers: &Peers) -> bool {
    let another = match &way.end {
        End::Clients { .. } => false,
        End::Peer { peering, makes, .. } => {
            let alias = seen.alias.as_ref().is_some_and(|alias| alias != peering.as_str());
            alias || *makes && peers.lacking.contains(&way.device)
        }
    };
    another || seen.routes.iter().any(|route| *route != way.range)
}

fn complete(way: &Way, seen: Option<&SeenWay>, steps: &mut Vec<WayStep>) {
    let dressed = |seen: &SeenWay| match &way.end {
        End::Clients { mtu } => seen.mtu == u32::from(*mtu),
        End::Peer { peering, .. } => {
            seen.mac == Some(GATEWAY_MAC) && seen.alias.as_deref() == Some(peering.as_str())
        }
    };
    if !seen.is_some_and(dressed) {
        steps.push(WayStep::Dress(way.clone()));
    }
    if !seen.is_some_and(|seen| seen.up) {
        steps.push(WayStep::Raise(way.device.clone()));
    }
    let hop = |seen: &SeenWay| seen.neighbours.get(&PEER_HOP) == Some(&GATEWAY_MAC);
    if matches!(way.end, End::Peer { .. }) && !seen.is_some_and(hop) {
        steps.push(WayStep::AddHop(way.device.clone()));
    }
    if !seen.is_some_and(|seen| seen.routes.contains(&way.range)) {
        steps.push(WayStep::AddRoute(way.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vpc(number: usize) -> VpcId {
        VpcId::from_random([number as u8; 20])
    }

    fn range(number: usize) -> Ipv4Cidr {
        format!("10.{number}.0.0/24").parse().expect("range")
    }

    /// The ways of a network of three, with these peers and maybe clients.
    fn ways(own: usize, peers: &[bool; 3], clients: Option<u16>) -> BTreeMap<DeviceName, Way> {
        // The peering of the other two has the third's number.
        let with = (0..3).filter(|other| *other != own && peers[3 - own - other]);
        let peers = with.map(|other| {
            let peering = PeeringId::from_random([(3 - own - other) as u8; 20]);
            let end = End::Peer { peering: peering.clone(), vpc: vpc(other), makes: own > other };
            Way { device: DeviceName::of_peering(&peering), range: range(other), end }
        });
        let clients = clients.map(|mtu| {
            let end = End::Clients { mtu };
            Way { device: DeviceName::clients(), range: "100.96.0.0/16".parse().expect("range"), end }
        });
        peers.chain(clients).map(|way| (way.device.clone(), way)).collect()
    }

    type Kernel = [BTreeMap<DeviceName, SeenWay>; 3];

    /// What the kernel does when a step is executed.
    fn execute(kernel: &mut Kernel, own: usize, step: &WayStep) {
        let other = |way: &Way| match &way.end {
            End::Peer { vpc: other, .. } => {
                (0..3).find(|number| vpc(*number) == *other).expect("one of three")
            }
            End::Clients { .. } => panic!("not a peer"),
        };
        if !matches!(step, WayStep::Make(_) | WayStep::Link(_)) {
            assert!(kernel[own].contains_key(step.device()), "{step:?}: not there");
        }
        match step {
            WayStep::Remove(device) => kernel.iter_mut().enumerate().for_each(|(number, devices)| {
                if number == own || *device != DeviceName::clients() {
                    devices.remove(device);
                }
            }),
            WayStep::Make(way) => {
                let tun = SeenWay { mtu: 1500, ..SeenWay::default() };
                assert!(kernel[own].insert(way.device.clone(), tun).is_none(), "made twice");
            }
            WayStep::Link(way) => {
                for end in [own, other(way)] {
                    assert!(
                        kernel[end].insert(way.device.clone(), SeenWay::default()).is_none(),
                        "linked twice"
                    );
                }
            }
            WayStep::Dress(way) => {
                let seen = kernel[own].get_mut(&way.device).expect("there");
                match &way.end {
                    End::Clients { mtu } => seen.mtu = u32::from(*mtu),
                    End::Peer { peering, .. } => {
                        (seen.mac, seen.alias) = (Some(GATEWAY_MAC), Some(peering.to_string()));
                    }
                }
            }
            WayStep::Raise(device) => kernel[own].get_mut(device).expect("there").up = true,
            WayStep::AddHop(device) => {
                kernel[own].get_mut(device).expect("there").neighbours.insert(PEER_HOP, GATEWAY_MAC);
            }
            WayStep::AddRoute(way) => {
                let seen = kernel[own].get_mut(&way.device).expect("there");
                let hop = way.device == DeviceName::clients() || seen.neighbours.contains_key(&PEER_HOP);
                assert!(seen.up && hop, "a route needs an up device and its hop");
                seen.routes.push(way.range);
            }
        }
    }

    fn standing() -> Peers {
        Peers { standing: (0..3).map(vpc).collect(), ..Peers::default() }
    }

    proptest! {
        #[test]
        fn every_state_leads_to_the_wanted_one_however_often_it_is_cut_short(
            views in proptest::collection::vec(
                (any::<[bool; 3]>(), any::<[Option<bool>; 3]>(), any::<[u8; 3]>(), 0usize..3), 1..6
            )
        ) {
            let mut kernel = Kernel::default();
            for (peers, clients, cuts, first) in views {
                let wanted: Vec<_> = (0..3)
                    .map(|own| ways(own, &peers, clients[own].map(|small| if small { 1280 } else { 1420 })))
                    .collect();
                for own in [first, (first + 1) % 3] {
                    let steps = plan(&wanted[own], &kernel[own], &standing());
                    for step in steps.iter().take(usize::from(cuts[own] % 16)) {
                        execute(&mut kernel, own, step);
                    }
                }
                // Whoever makes a link calls the other, so two rounds are enough.
                for own in [0, 1, 2, 0, 1, 2] {
                    for step in plan(&wanted[own], &kernel[own], &standing()) {
                        execute(&mut kernel, own, &step);
                    }
                }
                for own in 0..3 {
                    prop_assert!(plan(&wanted[own], &kernel[own], &standing()).is_empty());
                    prop_assert!(kernel[own].keys().eq(wanted[own].keys()));
                    for (device, way) in &wanted[own] {
                        let seen = &kernel[own][device];
                        prop_assert!(seen.up && seen.routes == [way.range], "{:?}", seen);
                    }
                    prop_assert!(waits_for(&wanted[own], &kernel[own]).is_empty());
                }
            }
        }
    }

    #[test]
    fn a_link_waits_for_both_networks_and_is_made_anew_when_one_lacks_its_end() {
        let all = [true; 3];
        let (maker, other) = (ways(1, &all, None), ways(0, &all, None));
        let mut kernel = Kernel::default();
        assert!(plan(&maker, &kernel[1], &Peers::default()).is_empty(), "nobody stands");
        assert!(plan(&other, &kernel[0], &standing()).is_empty(), "the other makes it");
        let own = Peers { standing: [vpc(0)].into(), ..Peers::default() };
        for step in plan(&maker, &kernel[1], &own) {
            execute(&mut kernel, 1, &step);
        }
        let device = kernel[1].keys().next().expect("a link").clone();
        assert!(plan(&maker, &kernel[1], &Peers::default()).is_empty(), "what stands stays");
        kernel[0].remove(&device);
        let called = waits_for(&other, &kernel[0]);
        assert!(called.contains(&(&vpc(1), &device)), "{called:?}");
        let lacking = Peers { lacking: [device.clone()].into(), ..own };
        let steps = plan(&maker, &kernel[1], &lacking);
        assert!(
            matches!(&steps[..], [WayStep::Remove(gone), WayStep::Link(_), ..] if *gone == device),
            "{steps:?}"
        );
    }
}
