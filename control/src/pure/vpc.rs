//! What a VPC may be, and a VM's NIC in it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::fault::Fault;
use crate::store::NewNic;
use model::api::vm::CreateVm;
use model::api::vpc::{DEFAULT_VPC_CIDR, NicIpv4, ROUTED_MODE};
use model::id::{IdError, VpcId};
use model::net::{CidrError, Ipv4Cidr, MAX_VPC_PREFIX, MIN_VPC_PREFIX, PRIVATE_RANGES};
use std::net::Ipv4Addr;
use thiserror::Error;

/// What is wrong with a request about a VPC: the contract has one word for all.
pub const BAD_VPC: &str = "BAD_REQUEST";
/// What is wrong with a creation's NIC, likewise.
const BAD_NIC: &str = "CREATE_VM_BAD_REQUEST";
/// How the contract's own hosts make NICs. What is asked for is what each VM has: a device of its own.
const BACKENDS: [&str; 2] = ["dedicatedDevice", "vlan"];
/// What is never a host's address on a network of ours (RFC 6890), as far as people try it, with the reason.
const RESERVED: [(Ipv4Cidr, &str); 5] = [
    (Ipv4Cidr::constant(Ipv4Addr::new(0, 0, 0, 0), 8), "means this host on this network"),
    (Ipv4Cidr::constant(Ipv4Addr::new(127, 0, 0, 0), 8), "is each machine's loopback"),
    (
        Ipv4Cidr::constant(Ipv4Addr::new(169, 254, 0, 0), 16),
        "is link-local: each VM's gateway, name server and metadata are there",
    ),
    (Ipv4Cidr::constant(Ipv4Addr::new(224, 0, 0, 0), 4), "is multicast"),
    (Ipv4Cidr::constant(Ipv4Addr::new(240, 0, 0, 0), 4), "is reserved"),
];

/// Why a VM cannot have the NIC that was asked for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum NicRefusal {
    /// No such VPC, or another account's.
    #[error("there is no VPC {0}; GET /v1/vpcs lists those there are")]
    NoVpc(VpcId),
    /// The address is another network's.
    #[error("{ipv4} is not within {range}, the range of {vpc}")]
    Outside {
        /// What was asked for.
        ipv4: Ipv4Addr,
        /// The network.
        vpc: VpcId,
        /// Its range.
        range: Ipv4Cidr,
    },
    /// The address means the network or all of it.
    #[error(
        "{ipv4} is the first or last address of {range}, which mean the network itself and all of it; no VM can have \
         them"
    )]
    Edge {
        /// What was asked for.
        ipv4: Ipv4Addr,
        /// The network's range.
        range: Ipv4Cidr,
    },
    /// Another member has it, also while that one is down.
    #[error(
        "another VM or service of {vpc} has {ipv4}; ask for another one, or leave it out for the next free one"
    )]
    Taken {
        /// What was asked for.
        ipv4: Ipv4Addr,
        /// The network.
        vpc: VpcId,
    },
    /// It stands for VPN clients.
    #[error("{ipv4} is the address under which members of {vpc} see its VPN clients; ask for another one")]
    Hidden {
        /// What was asked for.
        ipv4: Ipv4Addr,
        /// The network.
        vpc: VpcId,
    },
    /// All addresses are taken.
    #[error(
        "{vpc} is full: all {limit} addresses of {range} are taken; delete or detach one, or make a VPC with a larger \
         range"
    )]
    Full {
        /// The network.
        vpc: VpcId,
        /// Its range.
        range: Ipv4Cidr,
        /// So many.
        limit: u64,
    },
}

impl NicRefusal {
    /// What the caller is told; what is wrong with the address alone, with this code.
    #[must_use]
    pub fn fault(&self, code: &'static str) -> Fault {
        match self {
            Self::NoVpc(vpc)
            | Self::Taken { vpc, .. }
            | Self::Hidden { vpc, .. }
            | Self::Outside { vpc, .. } => {
                Fault::new(400, code, self.to_string()).with("vpcId", vpc.as_str())
            }
            Self::Edge { .. } => Fault::new(400, code, self.to_string()),
            Self::Full { vpc, limit, .. } => Fault::new(403, "VM_LIMIT_EXCEEDED", self.to_string())
                .with("vpcId", vpc.as_str())
                .with("limit", *limit)
                .with("current", *limit),
        }
    }

    /// What the caller of a creation is told.
    #[must_use]
    pub fn of_creation(&self) -> Fault {
        self.fault(BAD_NIC)
    }
}

/// Where the addresses of a new VPC come from; none of them may be of `clients`, where VPN clients have theirs.
///
/// # Errors
/// `BAD_REQUEST`, saying what would be right.
pub fn range(text: Option<&str>, clients: Ipv4Cidr) -> Result<Ipv4Cidr, Fault> {
    let text = text.unwrap_or(DEFAULT_VPC_CIDR);
    let bad = |why: String| Fault::new(400, BAD_VPC, why);
    let shown: String = text.chars().take(64).collect();
    let range: Ipv4Cidr = text.parse().map_err(|error: CidrError| bad(format!("cidr {shown:?}: {error}")))?;
    let prefix = range.prefix();
    if prefix < MIN_VPC_PREFIX {
        return Err(bad(format!(
            "cidr {range} is too large: a VPC has at most a /{MIN_VPC_PREFIX}, 65,534 addresses, which is more than one \
             host has VMs; take a part of it"
        )));
    }
    if prefix > MAX_VPC_PREFIX {
        return Err(bad(format!(
            "cidr {range} is too small: a VPC has at least a /{MAX_VPC_PREFIX}, 14 addresses, since it cannot grow"
        )));
    }
    if let Some((reserved, what)) = RESERVED.iter().find(|(reserved, _)| reserved.overlaps(range)) {
        return Err(bad(format!(
            "cidr {range} cannot be used: {reserved} {what}; take {}",
            private(clients)
        )));
    }
    if clients.overlaps(range) {
        return Err(bad(format!(
            "cidr {range} cannot be used: {clients} is where VPN clients have their addresses; take {}",
            private(clients)
        )));
    }
    if !PRIVATE_RANGES.iter().any(|private| private.encloses(range)) {
        return Err(bad(format!(
            "cidr {range} is not private, and its members could not reach its owners on the Internet; take {}",
            private(clients)
        )));
    }
    Ok(range)
}

/// The NIC that a new VM is to have in a VPC.
///
/// # Errors
/// `CREATE_VM_BAD_REQUEST`.
pub fn nic(request: &CreateVm) -> Result<Option<NewNic>, Fault> {
    let bad = |why: String| Fault::new(400, BAD_NIC, why);
    let nic = match request.nics.as_deref().unwrap_or_default() {
        [] => return Ok(None),
        [nic] => nic,
        more => {
            return Err(bad(format!("nics has {} entries, and a VM has one NIC: leave one", more.len())));
        }
    };
    if nic.mode != ROUTED_MODE {
        return Err(bad(format!(
            "nics[0].mode {:?} is not offered; the one mode is {ROUTED_MODE:?}",
            nic.mode
        )));
    }
    if let Some(backend) = nic.backend.as_deref()
        && !BACKENDS.contains(&backend)
    {
        return Err(bad(format!("nics[0].backend {backend:?} is not one of {}", BACKENDS.join(" and "))));
    }
    let vpc = nic.vpc.parse().map_err(|error: IdError| bad(format!("nics[0].vpc: {error}")))?;
    let ipv4 = address(nic.ipv4.as_ref()).map_err(|why| bad(format!("nics[0].ipv4 {why}")))?;
    Ok(Some(NewNic { vpc, ipv4, default: nic.default.unwrap_or(false) }))
}

/// The address that was asked for; none: any.
///
/// # Errors
/// What is wrong with it, to stand behind its name.
pub fn address(wanted: Option<&NicIpv4>) -> Result<Option<Ipv4Addr>, String> {
    match wanted {
        None | Some(NicIpv4::Any(true)) => Ok(None),
        Some(NicIpv4::Any(false)) => {
            let why = "false: a NIC without an address is of no use here; leave it out for the next free one";
            Err(why.to_owned())
        }
        Some(NicIpv4::One(text)) => text.parse().map(Some).map_err(|_| {
            let shown: String = text.chars().take(64).collect();
            format!("{shown:?} is not an IPv4 address such as \"10.0.0.5\"")
        }),
    }
}

/// Whether a VM of the VPC can have this address at all.
///
/// # Errors
/// Why not.
pub fn fits(vpc: &VpcId, range: Ipv4Cidr, ipv4: Ipv4Addr) -> Result<(), NicRefusal> {
    if !range.contains(ipv4) {
        return Err(NicRefusal::Outside { ipv4, vpc: vpc.clone(), range });
    }
    if ipv4 == range.network() || ipv4 == range.broadcast() {
        return Err(NicRefusal::Edge { ipv4, range });
    }
    Ok(())
}

fn private(clients: Ipv4Cidr) -> String {
    let ranges = PRIVATE_RANGES.map(|range| range.to_string()).join(", ");
    format!("a part of {ranges} outside of {clients}, for example {DEFAULT_VPC_CIDR}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::net::VPN_CLIENTS;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn ranges_are_private_of_a_useful_size_and_nobody_elses() {
        let range_of = |text: &str| range(Some(text), VPN_CLIENTS).map(|range| range.to_string());
        assert_eq!(range(None, VPN_CLIENTS).expect("the default").to_string(), "10.0.0.0/16");
        for good in ["10.0.0.0/16", "10.201.0.0/24", "172.31.255.240/28", "192.168.0.0/16", "100.97.0.0/16"] {
            assert_eq!(range_of(good), Ok(good.to_owned()));
        }
        for (bad, part) in [
            ("", "address/prefix"),
            ("10.0.0.0", "address/prefix"),
            ("fd00::/64", "address/prefix"),
            ("10.0.0.0/33", "more than 32"),
            ("10.0.0.5/24", "did you mean 10.0.0.0/24?"),
            ("10.0.0.0/8", "at most a /16"),
            ("100.64.0.0/11", "at most a /16"),
            ("0.0.0.0/0", "at most a /16"),
            ("10.0.0.0/29", "at least a /28"),
            ("10.0.0.1/32", "at least a /28"),
            ("0.1.0.0/16", "this host"),
            ("127.0.0.0/16", "loopback"),
            ("169.254.0.0/16", "link-local"),
            ("239.0.0.0/16", "multicast"),
            ("255.255.0.0/16", "reserved"),
            ("100.96.0.0/16", "VPN clients"),
            ("100.96.7.0/24", "VPN clients"),
            ("8.8.8.0/24", "not private"),
            ("172.32.0.0/16", "not private"),
            ("100.128.0.0/16", "not private"),
        ] {
            let fault = range(Some(bad), VPN_CLIENTS).expect_err(bad);
            assert_eq!((fault.status, fault.code), (400, "BAD_REQUEST"), "{bad}");
            assert!(fault.message.contains(part), "{bad}: {}", fault.message);
        }
        let long = range(Some(&"x".repeat(10_000)), VPN_CLIENTS).expect_err("long");
        assert!(long.message.len() < 300, "{}", long.message);
    }

    fn read(nics: Value) -> Result<Option<NewNic>, Fault> {
        nic(&serde_json::from_value(json!({ "nics": nics })).expect("a request"))
    }

    #[test]
    fn one_routed_nic_with_an_address_or_any() {
        let vpc = VpcId::from_random([1; 20]);
        let with =
            |ipv4: Value| read(json!([{"vpc": vpc, "mode": "routed", "ipv4": ipv4, "backend": "vlan"}]));
        let wanted = |ipv4| Ok(Some(NewNic { vpc: vpc.clone(), ipv4, default: false }));
        assert_eq!(read(json!([])), Ok(None));
        assert_eq!(read(Value::Null), Ok(None));
        assert_eq!(with(json!(true)), wanted(None));
        assert_eq!(with(Value::Null), wanted(None));
        assert_eq!(with(json!("10.0.0.5")), wanted(Some(Ipv4Addr::new(10, 0, 0, 5))));
        let nic = json!({"vpc": vpc, "mode": "routed", "default": true});
        assert!(read(json!([nic])).expect("good").expect("one").default);
        for (nics, part) in [
            (json!([nic, nic]), "has one NIC"),
            (json!([{"vpc": vpc, "mode": "bridged"}]), "\"routed\""),
            (json!([{"vpc": vpc, "mode": "routed", "backend": "sriov"}]), "dedicatedDevice"),
            (json!([{"vpc": "mine", "mode": "routed"}]), "'vpc-'"),
            (json!([{"vpc": vpc, "mode": "routed", "ipv4": "10.0.0"}]), "10.0.0.5"),
            (json!([{"vpc": vpc, "mode": "routed", "ipv4": "10.0.0.5/24"}]), "10.0.0.5"),
            (json!([{"vpc": vpc, "mode": "routed", "ipv4": "fd00::1"}]), "10.0.0.5"),
            (json!([{"vpc": vpc, "mode": "routed", "ipv4": false}]), "without an address"),
        ] {
            let fault = read(nics.clone()).expect_err("refused");
            assert_eq!((fault.status, fault.code), (400, "CREATE_VM_BAD_REQUEST"), "{nics}");
            assert!(fault.message.contains(part), "{nics}: {}", fault.message);
        }
    }

    proptest! {
        #[test]
        fn a_range_that_is_taken_is_nobody_elses(bits: u32, prefix in 0u8..=32) {
            let address = Ipv4Addr::from_bits(bits);
            if let Ok(range) = range(Some(&format!("{address}/{prefix}")), VPN_CLIENTS) {
                prop_assert!(address.is_private() || (address.octets()[0] == 100 && address.octets()[1] != 96));
                prop_assert!(!address.is_loopback() && !address.is_link_local() && !address.is_multicast());
                prop_assert!(range.host_count() >= 14 && range.host_count() <= 65534);
            }
        }

        #[test]
        fn an_address_fits_exactly_if_a_host_may_have_it(bits: u32, prefix in 24u8..=28) {
            let range: Ipv4Cidr = format!("10.0.0.0/{prefix}").parse().expect("good");
            let vpc = VpcId::from_random([1; 20]);
            for ipv4 in [Ipv4Addr::from_bits(bits), Ipv4Addr::from_bits(0x0a00_0000 | (bits & 0xff))] {
                prop_assert_eq!(fits(&vpc, range, ipv4).is_ok(), range.hosts().any(|host| host == ipv4));
            }
        }
    }
}
