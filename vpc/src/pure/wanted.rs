//! What a view asks for, checked: an entry that cannot be served is left out alone, with its reason.

use crate::pure::names::DeviceName;
use model::id::{Generation, VmId};
use model::net::{GATEWAY_IPV4, GATEWAY_MAC, Ipv4Cidr, MacAddress};
use model::view::{PortEntry, VpcView};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use thiserror::Error;

/// Most queue pairs of a TAP: their descriptors travel in one message.
pub const MAX_QUEUES: u8 = 8;
/// Most ports of one network: each costs a device, a chain and eight descriptors at most, as many again while its VM
/// sleeps, and the process may hold about 65,000 of those.
pub const MAX_PORTS: usize = 4096;

/// A port of the switch, as it must stand in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Whose it is.
    pub vm: VmId,
    /// Its TAP.
    pub device: DeviceName,
    /// The guest's Ethernet address.
    pub mac: MacAddress,
    /// The guest's address.
    pub ipv4: Ipv4Addr,
    /// Queue pairs, 1..=[`MAX_QUEUES`].
    pub queues: u8,
    /// TCP ports that may be dialled.
    pub dialable: BTreeSet<u16>,
    /// The VM has no process, or is about to have none, and a packet is to wake it.
    pub asleep: bool,
}

impl Port {
    /// The mark of every packet and tracked flow of this port: its address, which no other port of the network has.
    #[must_use]
    pub fn mark(&self) -> u32 {
        self.ipv4.to_bits()
    }
}

/// Why an entry is left out.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Rejection {
    /// The address is not one that a guest of the network may have.
    #[error("its address is not a host address of the network")]
    Address,
    /// Another port has the address.
    #[error("another port has its address")]
    AddressTaken,
    /// The Ethernet address is a group's, zero, or the gateway's.
    #[error("its Ethernet address is a group's, zero or the gateway's")]
    Mac,
    /// Another port has the Ethernet address.
    #[error("another port has its Ethernet address")]
    MacTaken,
    /// Zero queues, or more than [`MAX_QUEUES`].
    #[error("its number of queues is out of range")]
    Queues,
    /// Another VM's id begins with the same characters.
    #[error("another port has its device name")]
    NameTaken,
    /// The network is full.
    #[error("the network has all the ports that it may have")]
    Full,
}

/// The state that the kernel must be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which decision it is.
    pub generation: Generation,
    /// The network's range.
    pub network: Ipv4Cidr,
    /// Ports by device.
    pub ports: BTreeMap<DeviceName, Port>,
    /// Entries that are left out.
    pub rejected: Vec<(VmId, Rejection)>,
}

impl Wanted {
    /// Checks a view. Of two entries that are in each other's way the first is served.
    #[must_use]
    pub fn of(view: &VpcView) -> Self {
        let mut wanted = Self {
            generation: view.generation,
            network: view.default_network,
            ports: BTreeMap::new(),
            rejected: Vec::new(),
        };
        let (mut addresses, mut macs) = (HashSet::new(), HashSet::new());
        for entry in &view.ports {
            match wanted.check(entry, &addresses, &macs) {
                Ok(port) => {
                    addresses.insert(port.ipv4);
                    macs.insert(port.mac);
                    wanted.ports.insert(port.device.clone(), port);
                }
                Err(reason) => wanted.rejected.push((entry.vm.clone(), reason)),
            }
        }
        wanted
    }

    fn check(
        &self,
        entry: &PortEntry,
        addresses: &HashSet<Ipv4Addr>,
        macs: &HashSet<MacAddress>,
    ) -> Result<Port, Rejection> {
        let device = DeviceName::of(&entry.vm);
        let [first, ..] = entry.mac.0;
        let network = self.network;
        let edge =
            network.prefix() < 31 && (entry.ipv4 == network.network() || entry.ipv4 == network.broadcast());
        if !network.contains(entry.ipv4) || edge || entry.ipv4 == GATEWAY_IPV4 || entry.ipv4.is_unspecified()
        {
            return Err(Rejection::Address);
        }
        if first & 1 == 1 || entry.mac == MacAddress([0; 6]) || entry.mac == GATEWAY_MAC {
            return Err(Rejection::Mac);
        }
        if !(1..=MAX_QUEUES).contains(&entry.queues) {
            return Err(Rejection::Queues);
        }
        if addresses.contains(&entry.ipv4) {
            return Err(Rejection::AddressTaken);
        }
        if macs.contains(&entry.mac) {
            return Err(Rejection::MacTaken);
        }
        if self.ports.contains_key(&device) {
            return Err(Rejection::NameTaken);
        }
        if self.ports.len() >= MAX_PORTS {
            return Err(Rejection::Full);
        }
        Ok(Port {
            vm: entry.vm.clone(),
            device,
            mac: entry.mac,
            ipv4: entry.ipv4,
            queues: entry.queues,
            dialable: entry.dialable.iter().copied().filter(|port| *port != 0).collect(),
            asleep: entry.asleep,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::view::VIEW_VERSION;
    use proptest::prelude::*;

    fn entry(vm: u8, last: u8, queues: u8) -> PortEntry {
        let ipv4 = Ipv4Addr::new(10, 201, 0, last);
        PortEntry {
            vm: VmId::from_random([vm; 20]),
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            queues,
            dialable: vec![22, 0, 22],
            asleep: false,
            names: Vec::new(),
        }
    }

    fn wanted(ports: Vec<PortEntry>) -> Wanted {
        Wanted::of(&VpcView {
            version: VIEW_VERSION,
            generation: Generation(1),
            default_network: "10.201.0.0/24".parse().expect("network"),
            ports: ports.into(),
            networks: Vec::new().into(),
        })
    }

    #[test]
    fn bad_entries_are_left_out_alone() {
        let group = PortEntry { mac: MacAddress([1, 0, 0, 0, 0, 1]), ..entry(7, 7, 1) };
        let same_mac = PortEntry { mac: entry(1, 1, 1).mac, ..entry(8, 8, 1) };
        let same_name = PortEntry {
            vm: format!("{}zzzzzz", &VmId::from_random([1; 20]).as_str()[..14]).parse().expect("id"),
            ..entry(9, 9, 1)
        };
        let wanted = wanted(vec![
            entry(1, 1, 1),
            entry(2, 1, 1),
            entry(3, 0, 1),
            entry(4, 255, 1),
            entry(5, 5, 0),
            entry(6, 6, 9),
            group,
            same_mac,
            same_name,
            entry(10, 10, 8),
        ]);
        let reasons: Vec<_> = wanted.rejected.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(
            reasons,
            [
                Rejection::AddressTaken,
                Rejection::Address,
                Rejection::Address,
                Rejection::Queues,
                Rejection::Queues,
                Rejection::Mac,
                Rejection::MacTaken,
                Rejection::NameTaken
            ]
        );
        assert_eq!(wanted.ports.len(), 2);
        assert!(wanted.ports.values().all(|port| port.dialable == BTreeSet::from([22])));
    }

    proptest! {
        #[test]
        fn no_two_ports_share_anything(ports in proptest::collection::vec((0u8..40, 0u8..40, 0u8..10), 0..60)) {
            let all = ports.len();
            let wanted = wanted(ports.into_iter().map(|(vm, last, queues)| entry(vm, last, queues)).collect());
            let addresses: HashSet<_> = wanted.ports.values().map(|port| port.ipv4).collect();
            let marks: HashSet<_> = wanted.ports.values().map(Port::mark).collect();
            prop_assert_eq!(addresses.len(), wanted.ports.len());
            prop_assert_eq!(marks.len(), wanted.ports.len());
            prop_assert!(!marks.contains(&0));
            prop_assert_eq!(all, wanted.ports.len() + wanted.rejected.len());
        }
    }
}
