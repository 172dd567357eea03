//! What must be done to bring a network's ports from how they are to how they are wanted.
//!
//! ```text
//!   (absent) ─CreateTap─► down, bare ─DressTap─► down, named ─FilterPorts─► guarded ─RaiseTap─► up
//!                                       ─SpeakIpv6─► ─AddRoute─► ─AddNeighbour─► in service
//!   any of these ─RemoveTap─► ─DropFilters─► ─ForgetFlows─► (absent)
//! ```
//! A kill between any two steps leaves one of these states, from which the next plan goes on. No device is up
//! before its filter stands.
//!
//! A service's device is made when the service joins, since its other end is in a namespace that only the service has:
//!
//! ```text
//!   (absent) ─Link─► down ─FilterPorts─► guarded ─Dress─► ─Raise─► ─SpeakIpv6─► ─Furnish─►
//!                                            ─AddRoute─► ─AddNeighbour─► ─Sign─► in service
//! ```
//! Until it is signed (its alias), a plan removes it: what is lacking may be at the other end. From then on, what is
//! changed on this side is repaired as for a TAP. A service whose device is not there waits for it to join.

use crate::pure::names::DeviceName;
use crate::pure::wanted::{Port, Seat, Service, WantedNetwork};
use crate::pure::ways::{SeenWay, WayStep};
use model::net::{GATEWAY_MAC, MacAddress};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Frames that wait in one queue of a TAP while nobody reads it; more are dropped, and the device counts them
/// (`ip -s link`, TX dropped). Each connection that is dialled while the VM sleeps costs one frame, so this is more than
/// the common backlogs of servers (511), and 8 KiB of slots in the kernel. A kernel's own choice would be 500.
pub const WAITING_FRAMES: u32 = 1024;

/// A TAP, or a service's device, as the kernel and this process know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTap {
    /// Its own Ethernet address: the gateway's.
    pub mac: Option<MacAddress>,
    /// The VM's or the service's whole id.
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
    /// It has the gateway's IPv6 address.
    pub speaks_ipv6: bool,
    /// Host routes over it.
    pub routes: BTreeSet<IpAddr>,
    /// Permanent neighbours on it.
    pub neighbours: BTreeMap<IpAddr, MacAddress>,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// TAPs and services' devices of the namespace.
    pub taps: BTreeMap<DeviceName, SeenTap>,
    /// Ways to others than members.
    pub ways: BTreeMap<DeviceName, SeenWay>,
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
    /// Sets Ethernet address, alias, length of the queues and the device's own settings. The kernel forgets the device's
    /// neighbours over it.
    DressTap(DeviceName, Alias),
    /// Sets a service's alias, which says that its device is complete.
    Sign(DeviceName, String),
    /// Writes the anti-spoofing chains of all members that lack theirs, in one transaction.
    FilterPorts(Vec<Seat>),
    /// Sets it up.
    RaiseTap(DeviceName),
    /// Turns IPv6 on and gives the device the gateway's address.
    SpeakIpv6(DeviceName),
    /// A host route to the member.
    AddRoute(DeviceName, IpAddr),
    /// A neighbour entry of the member.
    AddNeighbour(DeviceName, IpAddr, MacAddress),
    /// Removes the device with its routes and neighbours.
    RemoveTap(DeviceName),
    /// Removes chains, in one transaction.
    DropFilters(Vec<DeviceName>),
    /// Forgets every tracked flow of an address.
    ForgetFlows(IpAddr),
    /// Of a way to others than members.
    Way(WayStep),
}

/// Whose a device is; none while it is not complete.
pub type Alias = Option<String>;

/// One change of the kernel's state while a service joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinStep {
    /// Makes the link, both ends down, the other one in the service's namespace.
    Link,
    /// One of a plan's.
    Plain(Step),
    /// The service's end: addresses, up, and routes.
    Furnish,
}

/// Plans. Empty when all is as wanted.
#[must_use]
pub fn plan(wanted: &WantedNetwork, seen: &Seen) -> Vec<Step> {
    let stays = |device: &DeviceName, tap: &SeenTap| match wanted.ports.get(device) {
        Some(port) => !must_go(port, tap),
        None => wanted.services.get(device).is_some_and(|service| is_joined(service, tap)),
    };
    let gone = seen.taps.iter().filter(|(device, tap)| !stays(device, tap)).map(|(device, _)| device);
    let orphans = seen
        .filters
        .keys()
        .filter(|device| !seen.taps.contains_key(*device) && !wanted.ports.contains_key(*device));
    let mut steps = removal(gone, orphans, seen);
    let ports: Vec<_> = wanted
        .ports
        .iter()
        .map(|(device, port)| (port, seen.taps.get(device).filter(|tap| !must_go(port, tap))))
        .collect();
    for (port, tap) in &ports {
        make(port, *tap, &mut steps);
    }
    let joined = wanted.services.iter().filter_map(|(device, service)| {
        let tap = seen.taps.get(device).filter(|tap| is_joined(service, tap))?;
        Some((service, tap))
    });
    let joined: Vec<_> = joined.collect();
    for (service, tap) in &joined {
        dress(&service.seat.device, service.id.as_str(), Some(tap), &mut steps);
    }
    let seats = ports.iter().map(|(port, tap)| (port.seat(), *tap));
    let seats: Vec<_> =
        seats.chain(joined.iter().map(|(service, tap)| (service.seat.clone(), Some(*tap)))).collect();
    let unguarded = seats.iter().filter(|(seat, tap)| {
        let filter = seen.filters.get(&seat.device).filter(|_| tap.is_some()).copied().flatten();
        filter != Some((seat.mac, seat.ipv4))
    });
    let unguarded: Vec<Seat> = unguarded.map(|(seat, _)| seat.clone()).collect();
    if !unguarded.is_empty() {
        steps.push(Step::FilterPorts(unguarded));
    }
    for (seat, tap) in &seats {
        connect(seat, *tap, &mut steps);
    }
    steps
}

/// What makes a service a member, when [`leave`] has left nothing of it.
#[must_use]
pub fn join(service: &Service) -> Vec<JoinStep> {
    let (seat, device) = (service.seat.clone(), service.seat.device.clone());
    let sign = Step::Sign(device.clone(), service.id.to_string());
    let before = [Step::FilterPorts(vec![seat.clone()]), Step::DressTap(device, None)];
    let mut steps: Vec<_> = std::iter::once(JoinStep::Link).chain(before.map(JoinStep::Plain)).collect();
    let mut connected = Vec::new();
    connect(&seat, None, &mut connected);
    // Routes lead to it once there is somebody.
    let reached = connected.iter().position(|step| matches!(step, Step::AddRoute(..)));
    let reaching = connected.split_off(reached.unwrap_or(connected.len()));
    steps.extend(connected.into_iter().map(JoinStep::Plain));
    steps.push(JoinStep::Furnish);
    steps.extend(reaching.into_iter().chain([sign]).map(JoinStep::Plain));
    steps
}

/// What removes all of a service's device, joined or not.
#[must_use]
pub fn leave(service: &Service, seen: &Seen) -> Vec<Step> {
    let device = &service.seat.device;
    let gone = seen.taps.keys().filter(|other| *other == device);
    let orphans = seen.filters.keys().filter(|other| *other == device && !seen.taps.contains_key(device));
    removal(gone, orphans, seen)
}

fn removal<'a>(
    gone: impl Iterator<Item = &'a DeviceName>,
    orphans: impl Iterator<Item = &'a DeviceName>,
    seen: &Seen,
) -> Vec<Step> {
    let gone: Vec<_> = gone.collect();
    let mut steps: Vec<Step> = gone.iter().map(|device| Step::RemoveTap((*device).clone())).collect();
    let with_chain = gone.iter().filter(|device| seen.filters.contains_key(**device)).copied();
    let chains: Vec<DeviceName> = with_chain.chain(orphans).cloned().collect();
    if !chains.is_empty() {
        steps.push(Step::DropFilters(chains));
    }
    let taps = gone.iter().filter_map(|device| seen.taps.get(*device));
    steps.extend(taps.flat_map(|tap| tap.routes.iter().copied().map(Step::ForgetFlows)));
    steps
}

/// Whether a device is the service's, and its other end was furnished for it.
fn is_joined(service: &Service, tap: &SeenTap) -> bool {
    let seat = &service.seat;
    let neighbour = |(address, mac): (&IpAddr, &MacAddress)| {
        seat.neighbours().any(|own| own == *address) && *mac == seat.mac
    };
    let addresses = !is_anothers(seat, tap) && tap.neighbours.iter().all(neighbour);
    tap.alias.as_deref() == Some(service.id.as_str()) && addresses
}

/// Whether a device stands in the way of the port and cannot be changed into it.
fn must_go(port: &Port, tap: &SeenTap) -> bool {
    let another = tap.alias.as_ref().is_some_and(|alias| *alias != port.vm.as_str());
    let queues = tap.held != 0 && tap.held != usize::from(port.queues);
    another || queues || is_anothers(&port.seat(), tap) || tap.multi_queue != (port.queues > 1)
}

/// Whether a route over the device leads to another address.
fn is_anothers(seat: &Seat, tap: &SeenTap) -> bool {
    tap.routes.iter().any(|address| !seat.addresses().any(|own| own == *address))
}

/// Up to the filter.
fn make(port: &Port, tap: Option<&SeenTap>, steps: &mut Vec<Step>) {
    match tap {
        None => steps.push(Step::CreateTap(port.clone())),
        // Somebody who is not us holds the queues: the VM goes on, and we wait until it lets them go.
        Some(tap) if tap.held == 0 && tap.attached == 0 => steps.push(Step::AttachTap(port.clone())),
        Some(_) => {}
    }
    dress(&port.device, port.vm.as_str(), tap, steps);
}

fn dress(device: &DeviceName, alias: &str, tap: Option<&SeenTap>, steps: &mut Vec<Step>) {
    let dressed = |tap: &SeenTap| {
        tap.mac == Some(GATEWAY_MAC)
            && tap.alias.as_deref() == Some(alias)
            && tap.waiting_frames == WAITING_FRAMES
    };
    if !tap.is_some_and(dressed) {
        steps.push(Step::DressTap(device.clone(), Some(alias.to_owned())));
    }
}

/// From the filter on.
fn connect(seat: &Seat, tap: Option<&SeenTap>, steps: &mut Vec<Step>) {
    if !tap.is_some_and(|tap| tap.up) {
        steps.push(Step::RaiseTap(seat.device.clone()));
    }
    if seat.ipv6.is_some() && !tap.is_some_and(|tap| tap.speaks_ipv6) {
        steps.push(Step::SpeakIpv6(seat.device.clone()));
    }
    for address in seat.addresses().filter(|address| !tap.is_some_and(|tap| tap.routes.contains(address))) {
        steps.push(Step::AddRoute(seat.device.clone(), address));
    }
    let known = |address: &IpAddr| tap.is_some_and(|tap| tap.neighbours.get(address) == Some(&seat.mac));
    for address in seat.neighbours().filter(|address| !known(address)) {
        steps.push(Step::AddNeighbour(seat.device.clone(), address, seat.mac));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::{ServiceId, VmId, VpcId};
    use model::net::Ula;
    use proptest::prelude::*;

    fn ula() -> Ula {
        Ula::of(&VpcId::from_random([1; 20]))
    }

    fn port(number: u8, last: u8, queues: u8) -> Port {
        let vm = VmId::from_random([number; 20]);
        let ipv4 = Ipv4Addr::new(10, 201, 0, last);
        Port {
            device: DeviceName::of(&vm),
            vm,
            mac: MacAddress::of_ipv4(ipv4),
            ipv4,
            ipv6: Some(ula().address(ipv4)),
            queues,
            dialable: BTreeSet::new(),
            asleep: false,
            names: Vec::new(),
        }
    }

    fn wanted(ports: Vec<Port>) -> WantedNetwork {
        let range = "10.201.0.0/16".parse().expect("network");
        WantedNetwork::of_ports(range, ports.into_iter().map(|port| (port.device.clone(), port)).collect())
    }

    fn service(number: u8, last: u8) -> Service {
        let (id, ipv4) = (ServiceId::from_random([number; 20]), Ipv4Addr::new(10, 201, 1, last));
        let (device, ipv6) = (DeviceName::of_service(&id), Some(ula().address(ipv4)));
        let seat = Seat { device, mac: MacAddress::of_ipv4(ipv4), ipv4, ipv6 };
        Service { id, seat, names: Vec::new() }
    }

    fn tap<'a>(seen: &'a mut Seen, device: &DeviceName) -> &'a mut SeenTap {
        seen.taps.get_mut(device).unwrap_or_else(|| panic!("{device} is not there"))
    }

    /// What the kernel does when a step is executed.
    fn execute(seen: &mut Seen, step: &Step) {
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
                let tap = tap(seen, &port.device);
                (tap.attached, tap.held) = (u32::from(port.queues), usize::from(port.queues));
            }
            Step::DressTap(device, alias) => {
                let tap = tap(seen, device);
                (tap.mac, tap.waiting_frames) = (Some(GATEWAY_MAC), WAITING_FRAMES);
                tap.alias = alias.clone().or(tap.alias.take());
                tap.neighbours.clear();
            }
            Step::Sign(device, alias) => {
                let tap = tap(seen, device);
                assert!(tap.up && !tap.routes.is_empty() && !tap.neighbours.is_empty(), "not complete");
                tap.alias = Some(alias.clone());
            }
            Step::FilterPorts(ports) => {
                for port in ports {
                    assert!(seen.taps.contains_key(&port.device), "a chain needs its device");
                    seen.filters.insert(port.device.clone(), Some((port.mac, port.ipv4)));
                }
            }
            Step::RaiseTap(device) => {
                assert!(matches!(seen.filters.get(device), Some(Some(_))), "up without a filter");
                tap(seen, device).up = true;
            }
            Step::SpeakIpv6(device) => {
                assert!(matches!(seen.filters.get(device), Some(Some(_))), "IPv6 without a filter");
                let tap = tap(seen, device);
                assert!(tap.up, "an address needs an up device");
                tap.speaks_ipv6 = true;
            }
            Step::AddRoute(device, address) => {
                let tap = tap(seen, device);
                assert!(tap.up && (address.is_ipv4() || tap.speaks_ipv6), "a route needs an up device");
                tap.routes.insert(*address);
            }
            Step::AddNeighbour(device, address, mac) => {
                let tap = tap(seen, device);
                assert!(address.is_ipv4() || tap.speaks_ipv6);
                tap.neighbours.insert(*address, *mac);
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
            Step::Way(step) => panic!("{step:?} is of another plan"),
        }
    }

    /// The devices whose other end is as it must be.
    type Furnished = BTreeMap<DeviceName, (MacAddress, Ipv4Addr)>;

    fn execute_join(seen: &mut Seen, furnished: &mut Furnished, service: &Service, step: &JoinStep) {
        let device = &service.seat.device;
        match step {
            JoinStep::Link => {
                let tap = SeenTap { waiting_frames: 1000, ..SeenTap::default() };
                assert!(seen.taps.insert(device.clone(), tap).is_none(), "linked twice");
                furnished.remove(device);
            }
            JoinStep::Plain(step) => execute(seen, step),
            JoinStep::Furnish => {
                assert!(matches!(seen.filters.get(device), Some(Some(_))), "up without a filter");
                furnished.insert(device.clone(), (service.seat.mac, service.seat.ipv4));
            }
        }
    }

    fn reached(seat: &Seat, tap: &SeenTap) -> bool {
        tap.up
            && tap.speaks_ipv6
            && tap.routes == seat.addresses().collect()
            && tap.routes.len() == 2
            && tap.neighbours == seat.neighbours().map(|address| (address, seat.mac)).collect()
            && tap.neighbours.len() == 3
    }

    fn in_service(seen: &Seen, wanted: &WantedNetwork) -> bool {
        let of_ports = |device: &&DeviceName| !wanted.services.contains_key(*device);
        seen.taps.keys().filter(of_ports).eq(wanted.ports.keys())
            && seen.filters.keys().eq(seen.taps.keys())
            && wanted.ports.values().all(|port| {
                let tap = &seen.taps[&port.device];
                reached(&port.seat(), tap)
                    && tap.held == usize::from(port.queues)
                    && tap.mac == Some(GATEWAY_MAC)
                    && tap.waiting_frames == WAITING_FRAMES
            })
    }

    fn ports() -> impl Strategy<Value = Vec<Port>> {
        proptest::collection::btree_map(0u8..6, (1u8..250, 1u8..4), 0..6)
            .prop_map(|ports| ports.into_iter().map(|(vm, (last, queues))| port(vm, last, queues)).collect())
    }

    /// Each service that has a device is in service, and its other end is as it must be.
    fn joined(seen: &Seen, furnished: &Furnished, wanted: &WantedNetwork) -> bool {
        wanted.services.values().all(|service| {
            let seat = &service.seat;
            seen.taps.get(&seat.device).is_none_or(|tap| {
                reached(seat, tap)
                    && tap.alias.as_deref() == Some(service.id.as_str())
                    && seen.filters[&seat.device] == Some((seat.mac, seat.ipv4))
                    && furnished.get(&seat.device) == Some(&(seat.mac, seat.ipv4))
            })
        })
    }

    proptest! {
        #[test]
        fn services_stand_wholly_or_not_at_all_however_often_a_join_is_cut_short(
            views in proptest::collection::vec(
                (
                    proptest::collection::btree_map(0u8..4, 1u8..4, 0..4),
                    // Who joins, after how many steps it is cut short, and whether the process was killed there.
                    proptest::collection::vec((0u8..4, 0usize..16, any::<bool>(), any::<bool>()), 0..4),
                ),
                1..6,
            )
        ) {
            let (mut seen, mut furnished) = (Seen::default(), Furnished::new());
            for (services, joins) in views {
                let mut wanted = wanted(vec![port(1, 5, 1)]);
                let services = services.into_iter().map(|(number, last)| service(number, last * 4 + number));
                wanted.services = services.map(|service| (service.seat.device.clone(), service)).collect();
                for step in plan(&wanted, &seen) {
                    execute(&mut seen, &step);
                }
                for (number, cut, killed, ended) in joins {
                    let device = service(number, 0).seat.device;
                    let Some(service) = wanted.services.get(&device) else { continue };
                    if ended && seen.taps.remove(&device).is_some() {
                        // The service's namespace ended, and took both ends along.
                        furnished.remove(&device);
                    }
                    let plain = leave(service, &seen).into_iter().map(JoinStep::Plain);
                    let steps: Vec<_> = plain.chain(join(service)).collect();
                    for step in steps.iter().take(cut) {
                        execute_join(&mut seen, &mut furnished, service, step);
                    }
                    if killed {
                        seen.taps.values_mut().for_each(|tap| (tap.attached, tap.held) = (0, 0));
                        seen.filters.values_mut().for_each(|filter| *filter = None);
                    }
                    for step in plan(&wanted, &seen) {
                        execute(&mut seen, &step);
                    }
                    prop_assert!(joined(&seen, &furnished, &wanted), "{:?}", seen);
                    prop_assert!(cut < steps.len() || seen.taps.contains_key(&device), "it has joined");
                }
                prop_assert!(in_service(&seen, &wanted) && joined(&seen, &furnished, &wanted), "{:?}", seen);
                prop_assert_eq!(plan(&wanted, &seen), vec![]);
            }
        }

        #[test]
        fn every_state_leads_to_the_wanted_one_however_often_it_is_cut_short(
            views in proptest::collection::vec((ports(), 0usize..64, any::<bool>()), 1..6)
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
