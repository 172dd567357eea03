//! From what is stored to what the others must know.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::host::api_host;
use super::phase::Phase;
use crate::store::{MappingRecord, VmRecord, VpcRecord};
use model::host::HostName;
use model::id::{Generation, VmId, VpcId};
use model::net::{Ipv4Cidr, MacAddress};
use model::view::{CertificateEntry, EdgeView, NetworkEntry, PortEntry, RouteEntry, VIEW_VERSION, VpcView};
use std::collections::{BTreeSet, HashMap};

/// The port of a VM's SSH server, which may be dialled whatever is mapped.
const SSH_PORT: u16 = 22;
/// Queue pairs of a VM's TAP. One carries what an emulated NIC of one worker thread can.
const TAP_QUEUES: u8 = 1;
/// Longest label of a DNS name (RFC 1035 section 2.3.4).
const MAX_LABEL_CHARS: usize = 63;

/// The views of one decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// For edge-proxy.
    pub edge: EdgeView,
    /// For vpc.
    pub vpc: VpcView,
}

/// What a plan is made of.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The decision's number.
    pub generation: Generation,
    /// All VMs.
    pub vms: &'a [VmRecord],
    /// All mappings.
    pub mappings: &'a [MappingRecord],
    /// All certificates.
    pub certificates: &'a [CertificateEntry],
    /// All VPCs.
    pub vpcs: &'a [VpcRecord],
    /// The preview domain.
    pub domain: &'a HostName,
    /// The default network.
    pub network: Ipv4Cidr,
}

/// Makes the views. A VM has a port, in its VPC or in the default network, from the moment it is made until nothing is
/// left of it, and routes until it is to be deleted. A VPC without members is not there for vpc.
#[must_use]
pub fn plan(facts: &Facts<'_>) -> Plan {
    let (routes, mut dialable) = routes(facts);
    let mut default = Vec::new();
    let mut members: HashMap<&VpcId, Vec<(&VmRecord, PortEntry)>> = HashMap::new();
    for vm in facts.vms {
        let port = port(vm, dialable.remove(&vm.id).unwrap_or_default());
        match &vm.vpc {
            None => default.push(port),
            Some(vpc) => members.entry(vpc).or_default().push((vm, port)),
        }
    }
    let network = |vpc: &VpcRecord| {
        let ports = named(members.remove(&vpc.id)?);
        Some(NetworkEntry::of_vms(vpc.id.clone(), vpc.range, ports))
    };
    let networks: Vec<NetworkEntry> = facts.vpcs.iter().filter_map(network).collect();
    Plan {
        edge: EdgeView {
            version: VIEW_VERSION,
            generation: facts.generation,
            api_hosts: api_host(facts.domain).into_iter().collect(),
            routes: routes.into(),
            certificates: facts.certificates.to_vec().into(),
        },
        vpc: VpcView {
            version: VIEW_VERSION,
            generation: facts.generation,
            default_network: facts.network,
            ports: default.into(),
            networks: networks.into(),
        },
    }
}

/// The routes of VMs that stay, and the ports to which they lead.
fn routes<'a>(facts: &Facts<'a>) -> (Vec<RouteEntry>, HashMap<&'a VmId, BTreeSet<u16>>) {
    let vms: HashMap<&VmId, &VmRecord> = facts.vms.iter().map(|vm| (&vm.id, vm)).collect();
    let mut dialable: HashMap<&VmId, BTreeSet<u16>> = HashMap::new();
    let mut routes = Vec::new();
    for mapping in facts.mappings {
        let Some(vm) = vms.get(&mapping.vm).filter(|vm| vm.phase != Phase::Deleting) else { continue };
        dialable.entry(&vm.id).or_default().insert(mapping.port);
        routes.push(RouteEntry {
            host: mapping.host.clone(),
            vm: vm.id.clone(),
            port: mapping.port,
            run: vm.run,
        });
    }
    (routes, dialable)
}

fn port(vm: &VmRecord, mut dialable: BTreeSet<u16>) -> PortEntry {
    dialable.insert(SSH_PORT);
    PortEntry {
        vm: vm.id.clone(),
        mac: MacAddress::of_ipv4(vm.ipv4),
        ipv4: vm.ipv4,
        queues: TAP_QUEUES,
        dialable: dialable.into_iter().collect(),
        asleep: vm.phase == Phase::Suspended,
        names: Vec::new(),
    }
}

/// The ports of a VPC's members with their names: the VM's id, and its label where that can mean it alone.
fn named(members: Vec<(&VmRecord, PortEntry)>) -> Vec<PortEntry> {
    let mut bearers: HashMap<String, usize> = HashMap::new();
    for (vm, _) in &members {
        *bearers.entry(vm.id.to_string()).or_default() += 1;
        if let Some(label) = label(vm) {
            *bearers.entry(label).or_default() += 1;
        }
    }
    let named = |(vm, mut port): (&VmRecord, PortEntry)| {
        port.names = vec![vm.id.to_string()];
        port.names.extend(label(vm).filter(|label| bearers.get(label) == Some(&1)));
        port
    };
    members.into_iter().map(named).collect()
}

/// A VM's label in lower case, if it can stand in a DNS name (RFC 1123 section 2.1).
fn label(vm: &VmRecord) -> Option<String> {
    let label = vm.name.as_ref()?.to_ascii_lowercase();
    let plain = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let good = plain
        && (1..=MAX_LABEL_CHARS).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-');
    good.then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::config::VmSize;
    use model::id::{AccountId, MappingId, VmInstanceId};
    use std::net::Ipv4Addr;

    fn vm(number: u8, phase: Phase) -> VmRecord {
        VmRecord {
            id: VmId::from_random([number; 20]),
            account: AccountId::from_random([0; 20]),
            name: None,
            image: "debian".to_owned(),
            size: VmSize { vcpus: 1, memory_mib: 256, disk_mib: 1024 },
            vpc: None,
            vpc_default: false,
            ipv4: Ipv4Addr::new(10, 201, 0, number),
            phase,
            instance: VmInstanceId::from_random([number; 20]),
            run: 4,
            origin: None,
            idle_timeout_seconds: None,
            activity_threshold_bytes: None,
            persistence: model::api::vm::Persistence::Persistent,
            exit_status: None,
            created_ms: 0,
            last_used_ms: 0,
        }
    }

    fn mapping(host: &str, number: u8, port: u16) -> MappingRecord {
        MappingRecord {
            id: MappingId::from_random([number; 20]),
            host: host.parse().expect("host"),
            account: AccountId::from_random([0; 20]),
            vm: VmId::from_random([number; 20]),
            port,
            created_ms: 0,
        }
    }

    #[test]
    fn each_vm_has_a_port_and_each_mapping_of_a_vm_that_stays_a_route() {
        let vms = [vm(1, Phase::Running), vm(2, Phase::Stopped), vm(3, Phase::Deleting)];
        let mappings = [
            mapping("a.style.dev", 1, 3000),
            mapping("b.style.dev", 1, 3000),
            mapping("c.style.dev", 2, 80),
            mapping("d.style.dev", 3, 80),
            mapping("e.style.dev", 9, 80),
        ];
        let plan = plan(&Facts {
            generation: Generation(8),
            vms: &vms,
            mappings: &mappings,
            certificates: &[],
            vpcs: &[],
            domain: &"style.dev".parse().expect("domain"),
            network: "10.201.0.0/16".parse().expect("network"),
        });
        let hosts: Vec<_> = plan.edge.routes.iter().map(|route| route.host.as_str()).collect();
        assert_eq!(hosts, ["a.style.dev", "b.style.dev", "c.style.dev"]);
        assert!(plan.edge.routes.iter().all(|route| route.run == 4));
        assert_eq!(plan.edge.api_hosts, ["api.style.dev".parse().expect("host")]);
        let dialable: Vec<_> = plan.vpc.ports.iter().map(|port| port.dialable.clone()).collect();
        assert_eq!(dialable, [vec![22, 3000], vec![22, 80], vec![22]]);
        assert!(plan.vpc.ports.iter().all(|port| !port.asleep));
        assert_eq!((plan.edge.generation, plan.vpc.generation), (Generation(8), Generation(8)));
    }

    #[test]
    fn a_packet_wakes_exactly_those_that_sleep() {
        for phase in Phase::ALL {
            let vms = [vm(1, phase)];
            let plan = plan(&Facts {
                generation: Generation(8),
                vms: &vms,
                mappings: &[],
                certificates: &[],
                vpcs: &[],
                domain: &"style.dev".parse().expect("domain"),
                network: "10.201.0.0/16".parse().expect("network"),
            });
            let asleep: Vec<bool> = plan.vpc.ports.iter().map(|port| port.asleep).collect();
            assert_eq!(asleep, [phase == Phase::Suspended], "{phase:?}");
        }
    }

    #[test]
    fn a_member_of_a_vpc_is_there_alone_and_has_the_names_that_mean_it_alone() {
        let vpc = |number: u8| VpcRecord {
            id: VpcId::from_random([number; 20]),
            account: AccountId::from_random([0; 20]),
            name: None,
            range: "10.201.0.0/24".parse().expect("range"),
            created_ms: 0,
        };
        let vpcs = [vpc(1), vpc(2), vpc(3)];
        let member = |number: u8, of: &VpcRecord, name: &str| VmRecord {
            vpc: Some(of.id.clone()),
            name: Some(name.to_owned()),
            ..vm(number, Phase::Running)
        };
        let id = |number: u8| VmId::from_random([number; 20]).to_string();
        let vms = [
            vm(1, Phase::Running),
            member(2, &vpcs[0], "Web"),
            member(3, &vpcs[0], "twice"),
            member(4, &vpcs[0], "TWICE"),
            member(5, &vpcs[0], "a b"),
            member(6, &vpcs[0], &id(2)),
            member(7, &vpcs[0], "-web"),
            member(8, &vpcs[0], &"x".repeat(64)),
            VmRecord { phase: Phase::Suspended, ..member(2, &vpcs[1], "web") },
        ];
        let plan = plan(&Facts {
            generation: Generation(8),
            vms: &vms,
            mappings: &[mapping("a.style.dev", 3, 3000)],
            certificates: &[],
            vpcs: &vpcs,
            domain: &"style.dev".parse().expect("domain"),
            network: "10.201.0.0/16".parse().expect("network"),
        });
        let ports: Vec<_> = plan.vpc.ports.iter().map(|port| port.vm.to_string()).collect();
        assert_eq!(ports, [id(1)]);
        let networks: Vec<_> = plan.vpc.networks.iter().collect();
        assert_eq!(networks.len(), 2, "one has no members");
        let names: Vec<_> = networks[0].ports.iter().map(|port| port.names.clone()).collect();
        let web = vec![id(2), "web".to_owned()];
        assert_eq!(
            names,
            [web.clone(), vec![id(3)], vec![id(4)], vec![id(5)], vec![id(6)], vec![id(7)], vec![id(8)]]
        );
        let dialable: Vec<_> = networks[0].ports.iter().map(|port| port.dialable.len()).collect();
        assert_eq!(dialable, [1, 2, 1, 1, 1, 1, 1]);
        let other = networks[1].ports.iter().next().expect("a port");
        assert_eq!((&other.names, other.asleep, &networks[1].vpc), (&web, true, &vpcs[1].id));
    }
}
