//! Private networks as the others must know them: members and their names, peers, the firewall, VPN clients.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::plan::Facts;
use super::rule::{Peer, one};
use super::service::label;
use super::wireguard::first_host;
use crate::store::{PeeringRecord, RuleRecord, ServiceRecord, SessionRecord, VmRecord, VpcRecord};
use model::firewall::{RuleEntry, RulePeer};
use model::id::{VmId, VpcId};
use model::net::{Ipv4Cidr, MacAddress};
use model::view::{ClientsEntry, NetworkEntry, PeeringEntry, PortEntry, ServiceEntry, SessionEntry};
use std::collections::{HashMap, HashSet};

/// The VMs in a network, each with its port.
pub type Members<'a> = Vec<(&'a VmRecord, PortEntry)>;

/// The networks in which somebody is, or into which somebody may come.
#[must_use]
pub fn networks<'a>(facts: &Facts<'a>, mut members: HashMap<&'a VpcId, Members<'a>>) -> Vec<NetworkEntry> {
    let index = Index::of(facts);
    let network = |vpc: &'a VpcRecord| {
        let members = members.remove(&vpc.id).unwrap_or_default();
        let services = index.services.get(&vpc.id).map(Vec::as_slice).unwrap_or_default();
        let peerings = index.peerings(&vpc.id);
        let open = index.open.contains(&vpc.id);
        if members.is_empty() && services.is_empty() && peerings.is_empty() && !open {
            return None;
        }
        // A service gets its routes when it joins, and clients may come later.
        let clients = (open || !services.is_empty()).then(|| clients(facts, vpc, &members, services));
        Some(NetworkEntry {
            vpc: vpc.id.clone(),
            range: vpc.range,
            ports: named(members, services).into(),
            services: services.iter().map(|service| entry(service)).collect::<Vec<_>>().into(),
            rules: index.rules(vpc, &peerings).into(),
            peerings: peerings.into(),
            clients,
        })
    };
    facts.vpcs.iter().filter_map(network).collect()
}

/// The sessions, as the door must know them.
#[must_use]
pub fn sessions(facts: &Facts<'_>) -> Vec<SessionEntry> {
    let ranges: HashMap<&VpcId, Ipv4Cidr> = facts.vpcs.iter().map(|vpc| (&vpc.id, vpc.range)).collect();
    let session = |(session, preshared): &(SessionRecord, model::key::SecretKey)| {
        Some(SessionEntry {
            id: session.id.clone(),
            vpc: session.vpc.clone(),
            client_key: session.client_key,
            preshared_key: Some(preshared.clone()),
            address: session.ipv4,
            allowed: *ranges.get(&session.vpc)?,
            expires_unix_ms: u64::try_from(session.expires_ms).unwrap_or(0),
            idle_seconds: facts.door.idle_seconds,
        })
    };
    facts.sessions.iter().filter_map(session).collect()
}

/// What is looked up by network, so that a house of many costs no more than their sum.
struct Index<'a> {
    vpcs: HashMap<&'a VpcId, &'a VpcRecord>,
    vms: HashMap<&'a VmId, &'a VmRecord>,
    services: HashMap<&'a VpcId, Vec<&'a ServiceRecord>>,
    rules: HashMap<&'a VpcId, Vec<&'a RuleRecord>>,
    peerings: HashMap<&'a VpcId, Vec<&'a PeeringRecord>>,
    open: HashSet<&'a VpcId>,
}

impl<'a> Index<'a> {
    fn of(facts: &Facts<'a>) -> Self {
        let mut index = Self {
            vpcs: facts.vpcs.iter().map(|vpc| (&vpc.id, vpc)).collect(),
            vms: facts.vms.iter().map(|vm| (&vm.id, vm)).collect(),
            services: HashMap::new(),
            rules: HashMap::new(),
            peerings: HashMap::new(),
            open: facts.sessions.iter().map(|(session, _)| &session.vpc).collect(),
        };
        for service in facts.services {
            index.services.entry(&service.vpc).or_default().push(service);
        }
        for rule in facts.rules {
            index.rules.entry(&rule.vpc).or_default().push(rule);
        }
        for peering in facts.peerings.iter().filter(|peering| peering.active) {
            index.peerings.entry(&peering.asker).or_default().push(peering);
            index.peerings.entry(&peering.asked).or_default().push(peering);
        }
        index
    }

    fn peerings(&self, vpc: &VpcId) -> Vec<PeeringEntry> {
        let peering = |peering: &&PeeringRecord| {
            let other = self.vpcs.get(peering.other(vpc))?;
            Some(PeeringEntry { id: peering.id.clone(), vpc: other.id.clone(), range: other.range })
        };
        self.peerings.get(vpc).into_iter().flatten().filter_map(peering).collect()
    }

    /// The rules, by the addresses of whom they name. One that names somebody who is not there means nobody.
    fn rules(&self, vpc: &VpcRecord, peerings: &[PeeringEntry]) -> Vec<RuleEntry> {
        let reached = |id: &VpcId| *id == vpc.id || peerings.iter().any(|peering| peering.vpc == *id);
        let peer = |peer: &Peer| match peer {
            Peer::Any => Some(RulePeer::Any),
            Peer::Clients => Some(RulePeer::Clients),
            Peer::Range(range) => Some(RulePeer::Range(*range)),
            Peer::Vpc(id) => self.vpcs.get(id).filter(|_| reached(id)).map(|vpc| RulePeer::Range(vpc.range)),
            Peer::Vm(id) => {
                let vm = self.vms.get(id).filter(|vm| vm.vpc.as_ref().is_some_and(reached));
                vm.map(|vm| RulePeer::Range(one(vm.ipv4)))
            }
        };
        let rule = |rule: &&RuleRecord| {
            let member = match &rule.wanted.vm {
                None => None,
                Some(id) => Some(self.vms.get(id).filter(|vm| vm.vpc.as_ref() == Some(&vpc.id))?.ipv4),
            };
            Some(RuleEntry {
                id: rule.id.clone(),
                action: rule.wanted.action,
                direction: rule.wanted.direction,
                member,
                peer: peer(&rule.wanted.peer)?,
                protocol: rule.wanted.protocol,
                ports: rule.wanted.ports.clone(),
            })
        };
        self.rules.get(&vpc.id).into_iter().flatten().filter_map(rule).collect()
    }
}

/// How the network sees its VPN clients. An address that a member has hides nobody: packets for it are the member's.
fn clients(
    facts: &Facts<'_>,
    vpc: &VpcRecord,
    members: &Members<'_>,
    services: &[&ServiceRecord],
) -> ClientsEntry {
    let first = first_host(vpc.range);
    let taken = members.iter().any(|(vm, _)| vm.ipv4 == first)
        || services.iter().any(|service| service.ipv4 == first);
    ClientsEntry {
        pool: facts.door.pool,
        mtu: facts.door.mtu,
        hidden_behind: (facts.door.hide_clients && !taken).then_some(first),
    }
}

fn entry(service: &ServiceRecord) -> ServiceEntry {
    ServiceEntry {
        id: service.id.clone(),
        mac: MacAddress::of_ipv4(service.ipv4),
        ipv4: service.ipv4,
        names: vec![service.name.clone()],
    }
}

/// The ports of a VPC's members with their names: the VM's id, and its label where that can mean it alone. A service's
/// name is the service's, whatever a VM is called.
fn named(members: Members<'_>, services: &[&ServiceRecord]) -> Vec<PortEntry> {
    let mut bearers: HashMap<String, usize> = HashMap::new();
    for service in services {
        *bearers.entry(service.name.clone()).or_default() += 1;
    }
    for (vm, _) in &members {
        *bearers.entry(vm.id.to_string()).or_default() += 1;
        if let Some(label) = vm_label(vm) {
            *bearers.entry(label).or_default() += 1;
        }
    }
    let named = |(vm, mut port): (&VmRecord, PortEntry)| {
        port.names = vec![vm.id.to_string()];
        port.names.extend(vm_label(vm).filter(|label| bearers.get(label) == Some(&1)));
        port
    };
    members.into_iter().map(named).collect()
}

fn vm_label(vm: &VmRecord) -> Option<String> {
    vm.name.as_deref().and_then(label)
}
