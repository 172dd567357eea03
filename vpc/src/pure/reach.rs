//! What a view says of a network's ways to its VPN clients and peers, checked.

use crate::pure::names::{DeviceName, NetworkId};
use crate::pure::wanted::{LeftOut, WantedNetwork, is_unroutable};
use crate::pure::ways::{End, Way};
use model::id::VpcId;
use model::net::Ipv4Cidr;
use model::view::{ClientsEntry, NetworkEntry, PeeringEntry};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use thiserror::Error;

/// Most peers of a network: each costs a device here and there, and every packet passes its rules.
pub const MAX_PEERS: usize = 64;
/// Sizes of the tunnels' packets: what every IPv4 host takes (RFC 791 section 3.1), and what a guest's NIC does.
const CLIENTS_MTU: std::ops::RangeInclusive<u16> = 576..=model::net::GUEST_MTU;

/// Why a peer is left out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PeeringRejection {
    /// It is the network itself.
    #[error("it is the network itself")]
    Itself,
    /// Its range has addresses that no host may have.
    #[error("its range is not one of hosts: it is over 0/8, 127/8, 169.254/16, 224/4 or 240/4")]
    Range,
    /// Its range has addresses of somebody else's.
    #[error("its range overlaps with that of the network, its VPN clients or another peer")]
    Overlap,
    /// Another peering's id begins with the same characters, or it is there twice.
    #[error("another peering has its device name")]
    NameTaken,
    /// There are [`MAX_PEERS`].
    #[error("the network has {MAX_PEERS} peers already")]
    Full,
    /// The other network does not name it, or is of another range.
    #[error("the other network does not name it, or one of them names another range than the other has")]
    OneSided,
}

/// Why VPN clients are left out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ClientsRejection {
    /// Their pool has addresses that no host may have.
    #[error("their pool is not one of hosts: it is over 0/8, 127/8, 169.254/16, 224/4 or 240/4")]
    Range,
    /// Their pool has addresses of the network's.
    #[error("their pool overlaps with the network's range")]
    Overlap,
    /// Their tunnels' packets are too small or too large.
    #[error("their MTU is not one of {} to {}", CLIENTS_MTU.start(), CLIENTS_MTU.end())]
    Mtu,
    /// The address that hides them is one of theirs or a member's, or none.
    #[error("the address that is to hide them is a member's, one of theirs, or none of a host")]
    Hidden,
}

/// The ways of a network, as its own entry names them, and the address that hides its clients.
#[must_use]
pub fn ways(
    entry: &NetworkEntry,
    network: &WantedNetwork,
    left_out: &mut Vec<LeftOut>,
) -> (BTreeMap<DeviceName, Way>, Option<Ipv4Addr>) {
    let (mut ways, mut hidden) = (BTreeMap::new(), None);
    let mut taken = vec![entry.range];
    if let Some(clients) = entry.clients {
        match check_clients(&clients, network) {
            Ok(way) => {
                (taken, hidden) = (vec![entry.range, clients.pool], clients.hidden_behind);
                ways.insert(way.device.clone(), way);
            }
            Err(why) => left_out.push(LeftOut::Clients(entry.vpc.clone(), why)),
        }
    }
    for peering in &entry.peerings {
        match check_peering(&entry.vpc, peering, &ways, &taken) {
            Ok(way) => {
                taken.push(peering.range);
                ways.insert(way.device.clone(), way);
            }
            Err(why) => left_out.push(LeftOut::Peering(entry.vpc.clone(), peering.id.clone(), why)),
        }
    }
    (ways, hidden)
}

/// Drops peers of which only one side knows. One whose other network is not served has no way and is no mistake.
pub fn drop_one_sided(networks: &mut BTreeMap<NetworkId, WantedNetwork>, left_out: &mut Vec<LeftOut>) {
    let mut one_sided = Vec::new();
    for (id, network) in &*networks {
        let NetworkId::Private(own) = id else { continue };
        for way in network.ways.values() {
            let End::Peer { peering, vpc, .. } = &way.end else { continue };
            let other = networks.get(&NetworkId::Private(vpc.clone()));
            let back = other.and_then(|other| other.ways.get(&way.device)).is_some_and(|back| {
                let named =
                    matches!(&back.end, End::Peer { peering: id, vpc, .. } if id == peering && vpc == own);
                named && back.range == network.range && other.is_some_and(|other| way.range == other.range)
            });
            if !back {
                one_sided.push((id.clone(), way.device.clone()));
                if other.is_some() {
                    let why = PeeringRejection::OneSided;
                    left_out.push(LeftOut::Peering(own.clone(), peering.clone(), why));
                }
            }
        }
    }
    for (id, device) in one_sided {
        if let Some(network) = networks.get_mut(&id) {
            network.ways.remove(&device);
        }
    }
}

fn check_clients(entry: &ClientsEntry, network: &WantedNetwork) -> Result<Way, ClientsRejection> {
    if is_unroutable(entry.pool) {
        return Err(ClientsRejection::Range);
    }
    if entry.pool.overlaps(network.range) {
        return Err(ClientsRejection::Overlap);
    }
    if !CLIENTS_MTU.contains(&entry.mtu) {
        return Err(ClientsRejection::Mtu);
    }
    let hides = |address: Ipv4Addr| {
        !is_unroutable(Ipv4Cidr::constant(address, 32))
            && !entry.pool.contains(address)
            && !network.addresses().any(|member| member == address)
    };
    if entry.hidden_behind.is_some_and(|address| !hides(address)) {
        return Err(ClientsRejection::Hidden);
    }
    let end = End::Clients { mtu: entry.mtu };
    Ok(Way { device: DeviceName::clients(), range: entry.pool, end })
}

fn check_peering(
    own: &VpcId,
    entry: &PeeringEntry,
    ways: &BTreeMap<DeviceName, Way>,
    taken: &[Ipv4Cidr],
) -> Result<Way, PeeringRejection> {
    let device = DeviceName::of_peering(&entry.id);
    if entry.vpc == *own {
        return Err(PeeringRejection::Itself);
    }
    if is_unroutable(entry.range) {
        return Err(PeeringRejection::Range);
    }
    if taken.iter().any(|range| range.overlaps(entry.range)) {
        return Err(PeeringRejection::Overlap);
    }
    if ways.contains_key(&device) {
        return Err(PeeringRejection::NameTaken);
    }
    if ways.len() >= MAX_PEERS {
        return Err(PeeringRejection::Full);
    }
    // Networks are looked at in the order of their ids, so that the other one stands when the link is made.
    let makes = *own > entry.vpc;
    let end = End::Peer { peering: entry.id.clone(), vpc: entry.vpc.clone(), makes };
    Ok(Way { device, range: entry.range, end })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::wanted::Wanted;
    use model::id::{Generation, PeeringId, ServiceId};
    use model::net::MacAddress;
    use model::view::{ServiceEntry, VIEW_VERSION, VpcView};

    fn vpc(number: u8) -> VpcId {
        VpcId::from_random([number; 20])
    }

    /// A network with one service, so that it is there.
    fn entry(number: u8, peers: &[(u8, u8)]) -> NetworkEntry {
        let mut entry = NetworkEntry::of_vms(vpc(number), range(number), vec![]);
        let ipv4 = Ipv4Addr::new(10, number, 0, 9);
        let id = ServiceId::from_random([number; 20]);
        entry.services =
            vec![ServiceEntry { id, mac: MacAddress::of_ipv4(ipv4), ipv4, names: vec![] }].into();
        let peer = |&(peering, other): &(u8, u8)| PeeringEntry {
            id: PeeringId::from_random([peering; 20]),
            vpc: vpc(other),
            range: range(other),
        };
        entry.peerings = peers.iter().map(peer).collect::<Vec<_>>().into();
        entry
    }

    fn range(number: u8) -> Ipv4Cidr {
        format!("10.{number}.0.0/24").parse().expect("range")
    }

    fn wanted(networks: Vec<NetworkEntry>) -> Wanted {
        Wanted::of(&VpcView {
            version: VIEW_VERSION,
            generation: Generation(1),
            default_network: "10.201.0.0/24".parse().expect("network"),
            ports: Vec::new().into(),
            networks: networks.into(),
        })
    }

    fn ways_of(wanted: &Wanted, number: u8) -> Vec<Way> {
        wanted.networks[&NetworkId::Private(vpc(number))].ways.values().cloned().collect()
    }

    #[test]
    fn peers_reach_each_other_when_both_say_so_and_one_of_them_makes_the_link() {
        let wanted = wanted(vec![
            entry(1, &[(1, 2), (2, 2), (3, 3), (5, 1), (6, 9)]),
            entry(2, &[(1, 1), (4, 3)]),
            entry(3, &[(4, 1), (7, 1)]),
        ]);
        let (one, two) = (ways_of(&wanted, 1), ways_of(&wanted, 2));
        assert_eq!((one.len(), two.len(), ways_of(&wanted, 3).len()), (1, 1, 0));
        let makes = |way: &Way| matches!(way.end, End::Peer { makes: true, .. });
        assert!(one[0].device == two[0].device && makes(&one[0]) != makes(&two[0]));
        assert_eq!((one[0].range, two[0].range), (range(2), range(1)));
        let reasons = wanted.left_out.iter().map(|left_out| match left_out {
            LeftOut::Peering(_, _, why) => *why,
            other => panic!("{other}"),
        });
        let reasons: Vec<_> = reasons.collect();
        let one_sided = reasons.iter().filter(|why| **why == PeeringRejection::OneSided).count();
        assert_eq!((one_sided, reasons.len()), (3, 6), "{reasons:?}");
        assert!(reasons.contains(&PeeringRejection::Itself) && reasons.contains(&PeeringRejection::Overlap));
    }

    #[test]
    fn a_peer_of_another_range_than_it_says_is_none() {
        let mut lying = entry(1, &[(1, 2)]);
        let peering = PeeringEntry {
            id: PeeringId::from_random([1; 20]),
            vpc: vpc(2),
            range: "10.0.0.0/9".parse().expect("range"),
        };
        lying.peerings = vec![peering].into();
        lying.range = "10.128.0.0/24".parse().expect("range");
        lying.services = Vec::new().into();
        lying.clients = Some(clients("100.96.0.0/16", 1280, None));
        let wanted = wanted(vec![lying, entry(2, &[(1, 1)])]);
        assert!(ways_of(&wanted, 2).is_empty());
        assert_eq!(ways_of(&wanted, 1).len(), 1, "its clients");
    }

    fn clients(pool: &str, mtu: u16, hidden_behind: Option<[u8; 4]>) -> ClientsEntry {
        let hidden_behind = hidden_behind.map(Ipv4Addr::from);
        ClientsEntry { pool: pool.parse().expect("pool"), mtu, hidden_behind }
    }

    #[test]
    fn clients_are_left_out_alone() {
        let cases = [
            (clients("169.254.0.0/17", 1280, None), Some(ClientsRejection::Range)),
            (clients("10.0.0.0/8", 1280, None), Some(ClientsRejection::Overlap)),
            (clients("100.96.0.0/16", 575, None), Some(ClientsRejection::Mtu)),
            (clients("100.96.0.0/16", 1501, None), Some(ClientsRejection::Mtu)),
            (clients("100.96.0.0/16", 1280, Some([10, 1, 0, 9])), Some(ClientsRejection::Hidden)),
            (clients("100.96.0.0/16", 1280, Some([100, 96, 0, 9])), Some(ClientsRejection::Hidden)),
            (clients("100.96.0.0/16", 1280, Some([127, 0, 0, 1])), Some(ClientsRejection::Hidden)),
            (clients("100.96.0.0/16", 1280, Some([10, 1, 0, 2])), None),
            (clients("100.96.0.0/16", 1420, None), None),
        ];
        for (clients, expected) in cases {
            let entry = NetworkEntry { clients: Some(clients), ..entry(1, &[]) };
            let wanted = wanted(vec![entry]);
            let found = wanted.left_out.first().map(|left_out| match left_out {
                LeftOut::Clients(_, why) => *why,
                other => panic!("{other}"),
            });
            assert_eq!(found, expected, "{clients:?}");
            assert_eq!(ways_of(&wanted, 1).len(), usize::from(expected.is_none()));
        }
    }
}
