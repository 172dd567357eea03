//! From what is stored to what the others must know.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::domain::{Proofs, stands};
use super::host::api_host;
use super::networks::{Members, networks, sessions};
use super::phase::Phase;
use crate::store::{
    DomainRecord, MappingRecord, PeeringRecord, RuleRecord, ServiceRecord, SessionRecord, VmRecord, VpcRecord,
};
use model::config::VpnDoor;
use model::host::{HostName, MappedName};
use model::id::{Generation, VmId, VpcId};
use model::key::SecretKey;
use model::net::{Ipv4Cidr, MacAddress};
use model::view::{
    CertificateEntry, ChallengeEntry, EdgeView, PortEntry, RouteEntry, VIEW_VERSION, VpcView, VpnView,
};
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
    /// For vpn.
    pub vpn: VpnView,
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
    /// All domains that were proved.
    pub domains: &'a [DomainRecord],
    /// Names whose VM was deleted.
    pub gone: &'a [MappedName],
    /// All certificates.
    pub certificates: &'a [CertificateEntry],
    /// What certificate authorities ask to see.
    pub challenges: &'a [ChallengeEntry],
    /// All VPCs.
    pub vpcs: &'a [VpcRecord],
    /// All VPN sessions that are not over, each with its second secret.
    pub sessions: &'a [(SessionRecord, SecretKey)],
    /// All rules, in the order in which those of a VPC judge.
    pub rules: &'a [RuleRecord],
    /// All services.
    pub services: &'a [ServiceRecord],
    /// All peerings.
    pub peerings: &'a [PeeringRecord],
    /// The door of the VPN.
    pub door: &'a VpnDoor,
    /// Its secret.
    pub server_key: &'a SecretKey,
    /// The preview domain.
    pub domain: &'a HostName,
    /// The default network.
    pub network: Ipv4Cidr,
}

/// Makes the views. A VM has a port, in its VPC or in the default network, from the moment it is made until nothing is
/// left of it, and routes until it is to be deleted. A VPC is there for vpc while somebody is in it, may come into it by
/// the VPN, or reaches it from another one.
#[must_use]
pub fn plan(facts: &Facts<'_>) -> Plan {
    let (routes, mut dialable) = routes(facts);
    let mut default = Vec::new();
    let mut members: HashMap<&VpcId, Members<'_>> = HashMap::new();
    for vm in facts.vms {
        let port = port(vm, dialable.remove(&vm.id).unwrap_or_default());
        match &vm.vpc {
            None => default.push(port),
            Some(vpc) => members.entry(vpc).or_default().push((vm, port)),
        }
    }
    let networks = networks(facts, members);
    Plan {
        edge: EdgeView {
            version: VIEW_VERSION,
            generation: facts.generation,
            api_hosts: api_host(facts.domain).into_iter().collect(),
            routes: routes.into(),
            gone: facts.gone.to_vec().into(),
            certificates: facts.certificates.to_vec().into(),
            challenges: facts.challenges.to_vec().into(),
            names: None,
        },
        vpc: VpcView {
            version: VIEW_VERSION,
            generation: facts.generation,
            default_network: facts.network,
            ports: default.into(),
            networks: networks.into(),
        },
        vpn: VpnView {
            version: VIEW_VERSION,
            generation: facts.generation,
            server_key: facts.server_key.clone(),
            sessions: sessions(facts).into(),
        },
    }
}

/// The routes of VMs that stay, and the ports to which they lead.
fn routes<'a>(facts: &Facts<'a>) -> (Vec<RouteEntry>, HashMap<&'a VmId, BTreeSet<u16>>) {
    let vms: HashMap<&VmId, &VmRecord> = facts.vms.iter().map(|vm| (&vm.id, vm)).collect();
    let mut dialable: HashMap<&VmId, BTreeSet<u16>> = HashMap::new();
    let proofs = Proofs::of(facts.domains);
    let mut routes = Vec::new();
    for mapping in
        facts.mappings.iter().filter(|mapping| stands(&mapping.account, &mapping.host, &proofs, facts.domain))
    {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::rule::WantedRule;
    use model::config::VmSize;
    use model::firewall::{RuleAction, RuleDirection, RuleEntry, RulePeer, RuleProtocol};
    use model::id::{AccountId, MappingId, PeeringId, RuleId, ServiceId, VmInstanceId, WireGuardSessionId};
    use model::key::PublicKey;
    use std::net::Ipv4Addr;
    use std::sync::LazyLock;

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

    fn facts(vms: &[VmRecord]) -> Facts<'_> {
        static DOOR: LazyLock<VpnDoor> = LazyLock::new(VpnDoor::default);
        static DOMAIN: LazyLock<HostName> = LazyLock::new(|| "style.dev".parse().expect("domain"));
        static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::new([9; 32]));
        Facts {
            generation: Generation(8),
            vms,
            mappings: &[],
            domains: &[],
            gone: &[],
            certificates: &[],
            challenges: &[],
            vpcs: &[],
            sessions: &[],
            rules: &[],
            services: &[],
            peerings: &[],
            door: &DOOR,
            server_key: &KEY,
            domain: &DOMAIN,
            network: "10.201.0.0/16".parse().expect("network"),
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
        let plan = plan(&Facts { mappings: &mappings, ..facts(&vms) });
        let hosts: Vec<_> = plan.edge.routes.iter().map(|route| route.host.to_string()).collect();
        assert_eq!(hosts, ["a.style.dev", "b.style.dev", "c.style.dev"]);
        assert!(plan.edge.routes.iter().all(|route| route.run == 4));
        assert_eq!(plan.edge.api_hosts, ["api.style.dev".parse().expect("host")]);
        let dialable: Vec<_> = plan.vpc.ports.iter().map(|port| port.dialable.clone()).collect();
        assert_eq!(dialable, [vec![22, 3000], vec![22, 80], vec![22]]);
        assert!(plan.vpc.ports.iter().all(|port| !port.asleep));
        assert_eq!((plan.edge.generation, plan.vpc.generation), (Generation(8), Generation(8)));
    }

    #[test]
    fn a_proved_name_leads_on_while_its_proof_stands() {
        let proof = |number: u8, domain: &str, account: u8, misses| DomainRecord {
            id: model::id::DomainId::from_random([number; 20]),
            domain: domain.parse().expect("domain"),
            account: AccountId::from_random([account; 20]),
            code: "code".to_owned(),
            created_ms: 0,
            proved_ms: 0,
            checked_ms: 0,
            misses,
            last_error: None,
        };
        let vms = [vm(1, Phase::Running)];
        let mappings =
            ["www.one.test", "*.one.test", "a.two.test", "a.three.test", "a.four.test", "p.style.dev"]
                .map(|host| mapping(host, 1, 80));
        let domains = [
            proof(1, "one.test", 0, super::super::domain::HELD_BACK_AFTER - 1),
            proof(2, "two.test", 0, super::super::domain::HELD_BACK_AFTER),
            proof(3, "three.test", 9, 0),
        ];
        let gone = ["old.style.dev".parse().expect("name")];
        let plan = plan(&Facts { mappings: &mappings, domains: &domains, gone: &gone, ..facts(&vms) });
        let hosts: Vec<_> = plan.edge.routes.iter().map(|route| route.host.to_string()).collect();
        assert_eq!(hosts, ["www.one.test", "*.one.test", "p.style.dev"]);
        assert_eq!(plan.edge.gone.iter().count(), 1);
    }

    #[test]
    fn a_packet_wakes_exactly_those_that_sleep() {
        for phase in Phase::ALL {
            let vms = [vm(1, phase)];
            let plan = plan(&facts(&vms));
            let asleep: Vec<bool> = plan.vpc.ports.iter().map(|port| port.asleep).collect();
            assert_eq!(asleep, [phase == Phase::Suspended], "{phase:?}");
        }
    }

    #[test]
    fn a_member_of_a_vpc_is_there_alone_and_has_the_names_that_mean_it_alone() {
        let vpcs = [1, 2, 3].map(|number| vpc(number, "10.201.0.0/24"));
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
        let plan = plan(&Facts { mappings: &[mapping("a.style.dev", 3, 3000)], vpcs: &vpcs, ..facts(&vms) });
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

    fn vpc(number: u8, range: &str) -> VpcRecord {
        VpcRecord {
            id: VpcId::from_random([number; 20]),
            account: AccountId::from_random([0; 20]),
            name: None,
            range: range.parse().expect("range"),
            created_ms: 0,
        }
    }

    fn session(number: u8, vpc: &VpcRecord) -> (SessionRecord, SecretKey) {
        let record = SessionRecord {
            id: WireGuardSessionId::from_random([number; 20]),
            vpc: vpc.id.clone(),
            account: vpc.account.clone(),
            gateway: None,
            client_key: PublicKey([number; 32]),
            preshared: "sealed".to_owned(),
            ipv4: Ipv4Addr::new(100, 96, 0, number),
            created_ms: 0,
            expires_ms: 5000,
        };
        (record, SecretKey::new([number; 32]))
    }

    fn service(number: u8, vpc: &VpcRecord, name: &str) -> ServiceRecord {
        ServiceRecord {
            id: ServiceId::from_random([number; 20]),
            vpc: vpc.id.clone(),
            name: name.to_owned(),
            ipv4: Ipv4Addr::from_bits(vpc.range.network().to_bits() + u32::from(number)),
            created_ms: 0,
        }
    }

    #[test]
    fn a_network_is_there_for_clients_services_and_peers_too() {
        let vpcs =
            [vpc(1, "10.0.1.0/24"), vpc(2, "10.0.2.0/24"), vpc(3, "10.0.3.0/24"), vpc(4, "10.0.4.0/24")];
        let sessions = [session(2, &vpcs[0])];
        let services = [service(9, &vpcs[1], "db"), service(8, &vpcs[1], "web")];
        let vms = [VmRecord {
            vpc: Some(vpcs[1].id.clone()),
            name: Some("DB".to_owned()),
            ..vm(5, Phase::Running)
        }];
        let peering = |number: u8, active| PeeringRecord {
            id: PeeringId::from_random([number; 20]),
            asker: vpcs[2].id.clone(),
            asked: if active { vpcs[1].id.clone() } else { vpcs[3].id.clone() },
            active,
            created_ms: 0,
        };
        let peerings = [peering(1, true), peering(2, false)];
        let all = Facts {
            vpcs: &vpcs,
            sessions: &sessions,
            services: &services,
            peerings: &peerings,
            ..facts(&vms)
        };
        let made = plan(&all);
        let networks: Vec<_> = made.vpc.networks.iter().collect();
        assert_eq!(
            networks.iter().map(|network| &network.vpc).collect::<Vec<_>>(),
            [&vpcs[0].id, &vpcs[1].id, &vpcs[2].id]
        );
        let clients = networks[0].clients.expect("clients");
        assert_eq!((clients.pool, clients.mtu, clients.hidden_behind), (all.door.pool, 1280, None));
        assert!(networks[1].clients.is_some(), "services have a way to those who come later");
        assert!(networks[2].clients.is_none());
        let names: Vec<_> = networks[1].services.iter().map(|service| service.names.clone()).collect();
        assert_eq!(names, [["db"], ["web"]]);
        let vm_names: Vec<_> = networks[1].ports.iter().map(|port| port.names.len()).collect();
        assert_eq!(vm_names, [1], "a service's name is its own");
        for (one, other) in [(1, 2), (2, 1)] {
            let peers: Vec<_> = networks[one].peerings.iter().collect();
            assert_eq!((peers.len(), &peers[0].vpc, peers[0].range), (1, &vpcs[other].id, vpcs[other].range));
        }
        let told: Vec<_> = made.vpn.sessions.iter().collect();
        assert_eq!((told.len(), told[0].allowed, told[0].expires_unix_ms), (1, vpcs[0].range, 5000));
        assert_eq!(told[0].preshared_key, Some(SecretKey::new([2; 32])));

        let door = VpnDoor { hide_clients: true, ..VpnDoor::default() };
        let hidden = plan(&Facts { door: &door, ..all });
        let behind: Vec<_> = hidden.vpc.networks.iter().filter_map(|network| network.clients).collect();
        assert_eq!(behind[0].hidden_behind, Some(Ipv4Addr::new(10, 0, 1, 1)));
        let member = [VmRecord {
            vpc: Some(vpcs[0].id.clone()),
            ipv4: Ipv4Addr::new(10, 0, 1, 1),
            ..vm(5, Phase::Running)
        }];
        let taken = plan(&Facts { door: &door, vpcs: &vpcs, sessions: &sessions, ..facts(&member) });
        let behind: Vec<_> = taken.vpc.networks.iter().filter_map(|network| network.clients).collect();
        assert_eq!(behind[0].hidden_behind, None, "an address is one member's");
    }

    #[test]
    fn a_rule_means_the_addresses_of_whom_it_names() {
        let vpcs = [vpc(1, "10.0.1.0/24"), vpc(2, "10.0.2.0/24")];
        let member =
            |number: u8, of: &VpcRecord| VmRecord { vpc: Some(of.id.clone()), ..vm(number, Phase::Running) };
        let vms = [member(5, &vpcs[0]), member(6, &vpcs[1]), vm(7, Phase::Running)];
        let rule = |number: u8, text: &str, vm: Option<&VmRecord>| RuleRecord {
            id: RuleId::from_random([number; 20]),
            vpc: vpcs[0].id.clone(),
            wanted: WantedRule {
                action: RuleAction::Deny,
                direction: RuleDirection::In,
                vm: vm.map(|vm| vm.id.clone()),
                peer: text.parse().expect("a peer"),
                protocol: RuleProtocol::Tcp,
                ports: vec!["443".parse().expect("a port")],
                priority: 0,
                description: None,
            },
            created_ms: 0,
        };
        let (near, far, outside) = (vms[0].id.as_str(), vms[1].id.as_str(), vms[2].id.as_str());
        let rules = [
            rule(1, "any", Some(&vms[0])),
            rule(2, "vpn", None),
            rule(3, near, None),
            rule(4, far, None),
            rule(5, vpcs[1].id.as_str(), None),
            rule(6, "10.9.0.0/16", None),
            rule(7, outside, None),
            rule(8, "any", Some(&vms[1])),
        ];
        let peers = |peerings: &[PeeringRecord]| -> Vec<(Option<Ipv4Addr>, String)> {
            let plan = plan(&Facts { vpcs: &vpcs, rules: &rules, peerings, ..facts(&vms) });
            let network = plan.vpc.networks.iter().next().expect("a network").clone();
            let shown = |rule: &RuleEntry| {
                (
                    rule.member,
                    match rule.peer {
                        RulePeer::Any => "any".to_owned(),
                        RulePeer::Clients => "clients".to_owned(),
                        RulePeer::Range(range) => range.to_string(),
                    },
                )
            };
            network.rules.iter().map(shown).collect()
        };
        let none = |text: &str| (None, text.to_owned());
        let first = (Some(vms[0].ipv4), "any".to_owned());
        assert_eq!(peers(&[]), [first.clone(), none("clients"), none("10.201.0.5/32"), none("10.9.0.0/16")]);
        let active = PeeringRecord {
            id: PeeringId::from_random([1; 20]),
            asker: vpcs[1].id.clone(),
            asked: vpcs[0].id.clone(),
            active: true,
            created_ms: 0,
        };
        let all = ["clients", "10.201.0.5/32", "10.201.0.6/32", "10.0.2.0/24", "10.9.0.0/16"];
        let expected: Vec<_> = std::iter::once(first).chain(all.map(none)).collect();
        assert_eq!(peers(&[active]), expected);
    }
}
