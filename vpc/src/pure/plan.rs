//! What must be done to bring a network's ports from how they are to how they are wanted.
//!
//! ```text
//!   (absent) ─CreateTap─► down, bare ─DressTap─► down, named ─FilterPorts─► guarded ─RaiseTap─► up
//!                                                        ─AddRoute─► ─AddNeighbour─► in service
//!   any of these ─RemoveTap─► ─DropFilters─► ─ForgetFlows─► (absent)
//! ```
//! A kill between any two steps leaves one of these states, from which the next plan goes on. No device is up
//! before its filter stands.

use crate::pure::names::DeviceName;
use crate::pure::wanted::{Port, WantedNetwork};
use model::net::{GATEWAY_MAC, MacAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Frames that wait in one queue of a TAP while nobody reads it; more are dropped, and the device counts them
/// (`ip -s link`, TX dropped). Each connection that is dialled while the VM sleeps costs one frame, so this is more than
/// the common backlogs of servers (511), and 8 KiB of slots in the kernel. A kernel's own choice would be 500.
pub const WAITING_FRAMES: u32 = 1024;

/// A TAP as the kernel and this process know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTap {
    /// Its own Ethernet address: the gateway's.
    pub mac: Option<MacAddress>,
    /// The VM's whole id.
    pub alias: Option<String>,
    /// Frames that may wait in a queue.
    pub waiting_frames: u32,
    /// Made for several queues.
    pub multi_queue: bool,
    /// Administratively up.
    pub up: bool,
    /// Queues that some process holds.
    pub attached: u32,
    /// Queues whose descriptors are at hand.
    pub held: usize,
    /// Host routes over it.
    pub routes: BTreeSet<Ipv4Addr>,
    /// Permanent neighbours on it.
    pub neighbours: BTreeMap<Ipv4Addr, MacAddress>,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// TAPs of the namespace.
    pub taps: BTreeMap<DeviceName, SeenTap>,
    /// Per-port chains; what they admit, if this process wrote them.
    pub filters: BTreeMap<DeviceName, Option<(MacAddress, Ipv4Addr)>>,
}

/// One change of the kernel's state. Each can be repeated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the TAP, down and persistent, and keeps its queues.
    CreateTap(Port),
    /// Opens queues of a TAP that nobody holds.
    AttachTap(Port),
    /// Sets Ethernet address, alias, length of the queues and the device's own settings.
    DressTap(Port),
    /// Writes the anti-spoofing chains of all ports that lack theirs, in one transaction.
    FilterPorts(Vec<Port>),
    /// Sets it up.
    RaiseTap(DeviceName),
    /// The guest's host route.
    AddRoute(Port),
    /// The guest's neighbour entry.
    AddNeighbour(Port),
    /// Removes the device with its routes and neighbours.
    RemoveTap(DeviceName),
    /// Removes chains, in one transaction.
    DropFilters(Vec<DeviceName>),
    /// Forgets every tracked flow of an address.
    ForgetFlows(Ipv4Addr),
}

/// Plans. Empty when all is as wanted.
#[must_use]
pub fn plan(wanted: &WantedNetwork, seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut chains: Vec<DeviceName> = Vec::new();
    let mut addresses = Vec::new();
    for (device, tap) in &seen.taps {
        if wanted.ports.get(device).is_none_or(|port| must_go(port, tap)) {
            steps.push(Step::RemoveTap(device.clone()));
            chains.extend(seen.filters.contains_key(device).then(|| device.clone()));
            addresses.extend(tap.routes.iter().copied());
        }
    }
    let orphan =
        |device: &&DeviceName| !seen.taps.contains_key(*device) && !wanted.ports.contains_key(*device);
    chains.extend(seen.filters.keys().filter(orphan).cloned());
    if !chains.is_empty() {
        steps.push(Step::DropFilters(chains));
    }
    steps.extend(addresses.into_iter().map(Step::ForgetFlows));
    let ports: Vec<_> = wanted
        .ports
        .iter()
        .map(|(device, port)| (port, seen.taps.get(device).filter(|tap| !must_go(port, tap))))
        .collect();
    for (port, tap) in &ports {
        make(port, *tap, &mut steps);
    }
    let unguarded = ports.iter().filter(|(port, tap)| {
        let filter = seen.filters.get(&port.device).filter(|_| tap.is_some()).copied().flatten();
        filter != Some((port.mac, port.ipv4))
    });
    let unguarded: Vec<Port> = unguarded.map(|(port, _)| (*port).clone()).collect();
    if !unguarded.is_empty() {
        steps.push(Step::FilterPorts(unguarded));
    }
    for (port, tap) in &ports {
        connect(port, *tap, &mut steps);
    }
    steps
}

/// Whether a device stands in the way of the port and cannot be changed into it.
fn must_go(port: &Port, tap: &SeenTap) -> bool {
    let another = tap.alias.as_ref().is_some_and(|alias| *alias != port.vm.as_str());
    let queues = tap.held != 0 && tap.held != usize::from(port.queues);
    let address = tap.routes.iter().any(|address| *address != port.ipv4);
    another || queues || address || tap.multi_queue != (port.queues > 1)
}

/// Up to the filter.
fn make(port: &Port, tap: Option<&SeenTap>, steps: &mut Vec<Step>) {
    match tap {
        None => steps.push(Step::CreateTap(port.clone())),
        // Somebody who is not us holds the queues: the VM goes on, and we wait until it lets them go.
        Some(tap) if tap.held == 0 && tap.attached == 0 => steps.push(Step::AttachTap(port.clone())),
        Some(_) => {}
    }
    let dressed = |tap: &SeenTap| {
        tap.mac == Some(GATEWAY_MAC)
            && tap.alias.as_deref() == Some(port.vm.as_str())
            && tap.waiting_frames == WAITING_FRAMES
    };
    if !tap.is_some_and(dressed) {
        steps.push(Step::DressTap(port.clone()));
    }
}

/// From the filter on.
fn connect(port: &Port, tap: Option<&SeenTap>, steps: &mut Vec<Step>) {
    if !tap.is_some_and(|tap| tap.up) {
        steps.push(Step::RaiseTap(port.device.clone()));
    }
    if !tap.is_some_and(|tap| tap.routes.contains(&port.ipv4)) {
        steps.push(Step::AddRoute(port.clone()));
    }
    if tap.is_none_or(|tap| tap.neighbours.get(&port.ipv4) != Some(&port.mac)) {
        steps.push(Step::AddNeighbour(port.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::VmId;
    use proptest::prelude::*;

    fn port(number: u8, last: u8, queues: u8) -> Port {
        let vm = VmId::from_random([number; 20]);
        let ipv4 = Ipv4Addr::new(10, 201, 0, last);
        Port {
            device: DeviceName::of(&vm),
            vm,
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            queues,
            dialable: BTreeSet::new(),
            asleep: false,
            names: Vec::new(),
        }
    }

    fn wanted(ports: Vec<Port>) -> WantedNetwork {
        WantedNetwork {
            range: "10.201.0.0/16".parse().expect("network"),
            ports: ports.into_iter().map(|port| (port.device.clone(), port)).collect(),
            firewall: crate::pure::firewall::Firewall::default(),
        }
    }

    /// What the kernel does when a step is executed.
    fn execute(seen: &mut Seen, step: &Step) {
        let tap = |seen: &mut Seen, device: &DeviceName| -> SeenTap {
            seen.taps.get(device).cloned().unwrap_or_else(|| panic!("{device} is not there"))
        };
        match step {
            Step::CreateTap(port) => {
                let tap = SeenTap {
                    mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
                    multi_queue: port.queues > 1,
                    waiting_frames: 500,
                    attached: u32::from(port.queues),
                    held: usize::from(port.queues),
                    ..SeenTap::default()
                };
                assert!(seen.taps.insert(port.device.clone(), tap).is_none(), "made twice");
            }
            Step::AttachTap(port) => {
                let mut tap = tap(seen, &port.device);
                (tap.attached, tap.held) = (u32::from(port.queues), usize::from(port.queues));
                seen.taps.insert(port.device.clone(), tap);
            }
            Step::DressTap(port) => {
                let mut tap = tap(seen, &port.device);
                (tap.mac, tap.alias) = (Some(GATEWAY_MAC), Some(port.vm.to_string()));
                tap.waiting_frames = WAITING_FRAMES;
                seen.taps.insert(port.device.clone(), tap);
            }
            Step::FilterPorts(ports) => {
                for port in ports {
                    assert!(seen.taps.contains_key(&port.device), "a chain needs its device");
                    seen.filters.insert(port.device.clone(), Some((port.mac, port.ipv4)));
                }
            }
            Step::RaiseTap(device) => {
                assert!(matches!(seen.filters.get(device), Some(Some(_))), "up without a filter");
                let mut tap = tap(seen, device);
                tap.up = true;
                seen.taps.insert(device.clone(), tap);
            }
            Step::AddRoute(port) => {
                let mut tap = tap(seen, &port.device);
                assert!(tap.up, "a route needs an up device");
                tap.routes.insert(port.ipv4);
                seen.taps.insert(port.device.clone(), tap);
            }
            Step::AddNeighbour(port) => {
                let mut tap = tap(seen, &port.device);
                tap.neighbours.insert(port.ipv4, port.mac);
                seen.taps.insert(port.device.clone(), tap);
            }
            Step::RemoveTap(device) => {
                assert!(seen.taps.remove(device).is_some(), "removed twice");
            }
            Step::DropFilters(devices) => {
                for device in devices {
                    assert!(seen.filters.remove(device).is_some(), "dropped twice");
                }
            }
            Step::ForgetFlows(_) => {}
        }
    }

    fn in_service(seen: &Seen, wanted: &WantedNetwork) -> bool {
        seen.taps.keys().eq(wanted.ports.keys())
            && seen.filters.keys().eq(wanted.ports.keys())
            && wanted.ports.values().all(|port| {
                let tap = &seen.taps[&port.device];
                tap.up
                    && tap.held == usize::from(port.queues)
                    && tap.routes == BTreeSet::from([port.ipv4])
                    && tap.neighbours.get(&port.ipv4) == Some(&port.mac)
                    && tap.mac == Some(GATEWAY_MAC)
                    && tap.waiting_frames == WAITING_FRAMES
            })
    }

    fn ports() -> impl Strategy<Value = Vec<Port>> {
        proptest::collection::btree_map(0u8..6, (1u8..250, 1u8..4), 0..6)
            .prop_map(|ports| ports.into_iter().map(|(vm, (last, queues))| port(vm, last, queues)).collect())
    }

    proptest! {
        #[test]
        fn every_state_leads_to_the_wanted_one_however_often_it_is_cut_short(
            views in proptest::collection::vec((ports(), 0usize..40, any::<bool>()), 1..6)
        ) {
            let mut seen = Seen::default();
            for (ports, cut, forgets) in views {
                let wanted = wanted(ports);
                for step in plan(&wanted, &seen).iter().take(cut) {
                    execute(&mut seen, step);
                }
                if forgets {
                    // The process was killed: descriptors and the memory of filters are gone.
                    for tap in seen.taps.values_mut() {
                        (tap.attached, tap.held) = (0, 0);
                    }
                    seen.filters.values_mut().for_each(|filter| *filter = None);
                }
                for step in plan(&wanted, &seen) {
                    execute(&mut seen, &step);
                }
                prop_assert!(in_service(&seen, &wanted), "{:?}", seen);
                prop_assert_eq!(plan(&wanted, &seen), vec![]);
            }
        }
    }

    #[test]
    fn a_tap_in_a_running_vms_hands_is_left_to_it() {
        let wanted = wanted(vec![port(1, 5, 1)]);
        let mut seen = Seen::default();
        for step in plan(&wanted, &seen) {
            execute(&mut seen, &step);
        }
        for tap in seen.taps.values_mut() {
            tap.held = 0;
        }
        assert_eq!(plan(&wanted, &seen), vec![]);
    }
}
