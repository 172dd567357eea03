//! What a rule of a VPC's firewall may be.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::vpc::BAD_VPC;
use crate::fault::Fault;
use model::api::rule::{CreateRule, DEFAULT_PRIORITY};
use model::firewall::{MAX_PORT_RANGES, MAX_RULES, PortRange, RuleAction, RuleDirection, RuleProtocol};
use model::id::{IdError, RuleId, VmId, VpcId};
use model::net::{CidrError, Ipv4Cidr};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use thiserror::Error;

/// Characters of a description: it stands in a table.
const MAX_DESCRIPTION_CHARS: usize = 256;
/// Bits of an address, of which a range of one address has all as its prefix.
const ALL_BITS: u8 = 32;

/// The other side of a connection, as people name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Peer {
    /// Anyone.
    Any,
    /// Clients of the VPN.
    Clients,
    /// A VM, whatever its address.
    Vm(VmId),
    /// Whoever is in a VPC.
    Vpc(VpcId),
    /// Whoever has such an address.
    Range(Ipv4Cidr),
}

/// Why a text names nobody.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PeerError {
    /// It looks like a VPC's id.
    #[error(transparent)]
    Vpc(IdError),
    /// It looks like a range.
    #[error(transparent)]
    Range(CidrError),
    /// It looks like nothing.
    #[error("it is any, vpn, the id of a VM or a VPC, an IPv4 address, or a range such as 10.0.0.0/24")]
    Nobody,
}

impl FromStr for Peer {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        match text {
            "any" => Ok(Self::Any),
            "vpn" => Ok(Self::Clients),
            _ if text.starts_with("vpc-") => text.parse().map(Self::Vpc).map_err(PeerError::Vpc),
            _ if text.contains('/') => text.parse().map(Self::Range).map_err(PeerError::Range),
            _ => match text.parse::<Ipv4Addr>() {
                Ok(address) => Ok(Self::Range(one(address))),
                Err(_) => text.parse().map(Self::Vm).map_err(|_| PeerError::Nobody),
            },
        }
    }
}

impl TryFrom<String> for Peer {
    type Error = PeerError;
    fn try_from(text: String) -> Result<Self, PeerError> {
        text.parse()
    }
}

impl From<Peer> for String {
    fn from(peer: Peer) -> Self {
        peer.to_string()
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Clients => f.write_str("vpn"),
            Self::Vm(vm) => fmt::Display::fmt(vm, f),
            Self::Vpc(vpc) => fmt::Display::fmt(vpc, f),
            Self::Range(range) if range.prefix() == ALL_BITS => fmt::Display::fmt(&range.network(), f),
            Self::Range(range) => fmt::Display::fmt(range, f),
        }
    }
}

/// The range of one address.
#[must_use]
pub fn one(address: Ipv4Addr) -> Ipv4Cidr {
    Ipv4Cidr::constant(address, ALL_BITS)
}

/// A rule that makes sense.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedRule {
    /// What becomes of what fits.
    pub action: RuleAction,
    /// Seen from the member.
    pub direction: RuleDirection,
    /// The one member that it is for; all when absent.
    pub vm: Option<VmId>,
    /// The other side.
    pub peer: Peer,
    /// Which packets.
    pub protocol: RuleProtocol,
    /// Destination ports; all when empty.
    pub ports: Vec<PortRange>,
    /// The lowest judge first.
    pub priority: u16,
    /// For people.
    pub description: Option<String>,
}

/// Why a VPC does not get a rule.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleRefusal {
    /// No such VPC, or another account's.
    #[error("there is no VPC {0}")]
    NoVpc(VpcId),
    /// No such rule.
    #[error("{vpc} has no rule {rule}")]
    NoRule {
        /// The network.
        vpc: VpcId,
        /// Which.
        rule: RuleId,
    },
    /// The VM that it is for is no member.
    #[error("no VM {vm} is in {vpc}; GET /v1/vpcs/{vpc} lists those that are")]
    NotMember {
        /// Who.
        vm: VmId,
        /// Of what.
        vpc: VpcId,
    },
    /// The other side cannot meet the network.
    #[error(
        "{peer} is neither in {vpc} nor reached from it; name a member, a VPC that {vpc} is peered with, or an address"
    )]
    Stranger {
        /// Who.
        peer: Peer,
        /// The network.
        vpc: VpcId,
    },
    /// There are as many as there may be.
    #[error("the VPC has {current} rules, and may have {limit}; join ranges of ports, or delete some")]
    TooMany {
        /// So many.
        limit: u64,
        /// There are, or would be, so many.
        current: u64,
    },
}

impl RuleRefusal {
    /// What the caller is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let with = |status, code, vpc| Fault::of_vpc(status, code, vpc, self.to_string());
        match self {
            Self::NoVpc(vpc) => with(404, "NOT_FOUND", vpc),
            Self::NoRule { vpc, rule } => with(404, "NOT_FOUND", vpc).with("ruleId", rule.as_str()),
            Self::NotMember { vm, vpc } => with(400, BAD_VPC, vpc).with("vmId", vm.as_str()),
            Self::Stranger { vpc, peer } => with(400, BAD_VPC, vpc).with("peer", peer.to_string()),
            Self::TooMany { limit, current } => Fault::over_limit(self.to_string(), *limit, *current),
        }
    }
}

/// Reads one rule.
///
/// # Errors
/// `BAD_REQUEST`, saying what would be right.
pub fn rule(request: &CreateRule) -> Result<WantedRule, Fault> {
    read(request, "")
}

/// Reads a whole list.
///
/// # Errors
/// `BAD_REQUEST`, also when there are more than [`MAX_RULES`].
pub fn rules(requests: &[CreateRule]) -> Result<Vec<WantedRule>, Fault> {
    if requests.len() > MAX_RULES {
        return Err(RuleRefusal::TooMany { limit: MAX_RULES as u64, current: requests.len() as u64 }.fault());
    }
    let all = requests.iter().enumerate();
    all.map(|(number, request)| read(request, &format!("rules[{number}]."))).collect()
}

fn read(request: &CreateRule, place: &str) -> Result<WantedRule, Fault> {
    let bad = |what: &str, why: String| Fault::new(400, BAD_VPC, format!("{place}{what} {why}"));
    let named = |text: &str| format!("{:?}: ", text.chars().take(64).collect::<String>());
    let vm = request.vm.as_deref().map(str::parse::<VmId>).transpose();
    let vm = vm.map_err(|error| bad("vm", format!("is not one: {error}")))?;
    let peer = request.peer.as_deref().unwrap_or("any");
    let peer = peer.parse().map_err(|error: PeerError| bad("peer", format!("{}{error}", named(peer))))?;
    let protocol = request.protocol.unwrap_or_default();
    let texts = request.ports.as_deref().unwrap_or_default();
    if texts.len() > MAX_PORT_RANGES {
        return Err(bad("ports", format!("has {} ranges, and may have {MAX_PORT_RANGES}", texts.len())));
    }
    let port = |text: &String| {
        text.parse::<PortRange>().map_err(|error| bad("ports", format!("{}{error}", named(text))))
    };
    let ports = texts.iter().map(port).collect::<Result<Vec<_>, _>>()?;
    let has_ports = match protocol {
        RuleProtocol::Tcp | RuleProtocol::Udp => true,
        RuleProtocol::Any | RuleProtocol::Icmp => false,
    };
    if !ports.is_empty() && !has_ports {
        return Err(bad("ports", "are of tcp and udp alone: set protocol to one of them".to_owned()));
    }
    let description = request.description.clone().filter(|text| !text.is_empty());
    if let Some(text) = &description
        && (text.chars().count() > MAX_DESCRIPTION_CHARS || text.chars().any(char::is_control))
    {
        let why = format!("has more than {MAX_DESCRIPTION_CHARS} characters, or control characters");
        return Err(bad("description", why));
    }
    let priority = request.priority.unwrap_or(DEFAULT_PRIORITY);
    let (action, direction) = (request.action, request.direction);
    Ok(WantedRule { action, direction, vm, peer, protocol, ports, priority, description })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn asked(mut with: Value) -> CreateRule {
        let object = with.as_object_mut().expect("an object");
        object.entry("action").or_insert(json!("deny"));
        object.entry("direction").or_insert(json!("in"));
        serde_json::from_value(with).expect("a request")
    }

    #[test]
    fn a_rule_says_what_it_does_not_say_otherwise() {
        let read = rule(&asked(json!({}))).expect("good");
        assert_eq!((&read.peer, read.protocol, read.priority), (&Peer::Any, RuleProtocol::Any, 1000));
        assert!(read.ports.is_empty() && read.vm.is_none() && read.description.is_none());
        let full = json!({"vm": "a".repeat(20), "peer": "10.0.0.7", "protocol": "tcp", "ports": ["443", "8000-8099"],
            "priority": 0, "description": "web"});
        let read = rule(&asked(full)).expect("good");
        assert_eq!(read.peer.to_string(), "10.0.0.7");
        assert_eq!(read.ports.iter().map(ToString::to_string).collect::<Vec<_>>(), ["443", "8000-8099"]);
        let text = serde_json::to_string(&read).expect("json");
        assert_eq!(serde_json::from_str::<WantedRule>(&text).expect("its own"), read);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (with, part) in [
            (json!({"vm": "x"}), "vm is not one"),
            (json!({"peer": "everyone"}), "any, vpn"),
            (json!({"peer": "vpc-1"}), "'vpc-'"),
            (json!({"peer": "10.0.0.7/24"}), "did you mean 10.0.0.0/24?"),
            (json!({"ports": ["80"]}), "tcp and udp alone"),
            (json!({"ports": ["80"], "protocol": "icmp"}), "tcp and udp alone"),
            (json!({"ports": ["9-8"], "protocol": "tcp"}), "443 or 8000-8099"),
            (json!({"ports": vec!["80"; 17], "protocol": "tcp"}), "may have 16"),
            (json!({"description": "x".repeat(257)}), "256 characters"),
            (json!({"description": "a\nb"}), "control characters"),
        ] {
            let fault = rule(&asked(with.clone())).expect_err("refused");
            assert_eq!((fault.status, fault.code), (400, "BAD_REQUEST"), "{with}");
            assert!(fault.message.contains(part), "{with}: {}", fault.message);
        }
        let list = [asked(json!({})), asked(json!({"peer": "?"}))];
        assert!(rules(&list).expect_err("refused").message.starts_with("rules[1].peer"));
        assert_eq!(rules(&vec![asked(json!({})); MAX_RULES + 1]).expect_err("many").code, "LIMIT_EXCEEDED");
    }

    proptest! {
        #[test]
        fn whoever_is_named_is_shown_so(text in "any|vpn|[a-z0-9]{20}|vpc-[a-z0-9]{20}|[0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,2})?|.*") {
            if let Ok(peer) = text.parse::<Peer>() {
                prop_assert_eq!(peer.to_string().parse::<Peer>(), Ok(peer));
            }
        }
    }
}
