//! From what is stored to what the others must know.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::host::api_host;
use super::phase::Phase;
use crate::store::{MappingRecord, VmRecord};
use model::host::HostName;
use model::id::{Generation, VmId};
use model::net::{Ipv4Cidr, MacAddress};
use model::view::{CertificateEntry, EdgeView, PortEntry, RouteEntry, VIEW_VERSION, VpcView};
use std::collections::{BTreeSet, HashMap};

/// The port of a VM's SSH server, which may be dialled whatever is mapped.
const SSH_PORT: u16 = 22;
/// Queue pairs of a VM's TAP. One carries what an emulated NIC of one worker thread can.
const TAP_QUEUES: u8 = 1;

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
    /// The preview domain.
    pub domain: &'a HostName,
    /// The default network.
    pub network: Ipv4Cidr,
}

/// Makes the views. A VM has a port from the moment it is made until nothing is left of it, and routes until it is
/// to be deleted.
#[must_use]
pub fn plan(facts: &Facts<'_>) -> Plan {
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
    let port = |vm: &VmRecord| {
        let mut ports = dialable.remove(&vm.id).unwrap_or_default();
        ports.insert(SSH_PORT);
        PortEntry {
            vm: vm.id.clone(),
            mac: MacAddress::of_ipv4(vm.ipv4),
            ipv4: vm.ipv4,
            queues: TAP_QUEUES,
            dialable: ports.into_iter().collect(),
            asleep: vm.phase == Phase::Suspended,
            names: Vec::new(),
        }
    };
    let ports: Vec<PortEntry> = facts.vms.iter().map(port).collect();
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
            ports: ports.into(),
            networks: Vec::new().into(),
        },
    }
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
                domain: &"style.dev".parse().expect("domain"),
                network: "10.201.0.0/16".parse().expect("network"),
            });
            let asleep: Vec<bool> = plan.vpc.ports.iter().map(|port| port.asleep).collect();
            assert_eq!(asleep, [phase == Phase::Suspended], "{phase:?}");
        }
    }
}
