//! When two VPCs may reach each other.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::vpc::BAD_VPC;
use crate::fault::Fault;
use model::id::{PeeringId, VpcId};
use model::net::Ipv4Cidr;
use thiserror::Error;

/// Why two VPCs do not reach each other.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PeeringRefusal {
    /// No such VPC, or not the caller's where it must be.
    #[error("there is no VPC {0}")]
    NoVpc(VpcId),
    /// No such peering.
    #[error("{vpc} has no peering {peering}")]
    NoPeering {
        /// The network.
        vpc: VpcId,
        /// Which.
        peering: PeeringId,
    },
    /// One network is meant twice.
    #[error("{0} reaches itself already; peerVpcId is another VPC")]
    Itself(VpcId),
    /// An address would be two members'.
    #[error(
        "{one} and {other} cannot be peered: {range} and {clash} have addresses in common, and those that reach each \
         other must have none; make a VPC with another range"
    )]
    Overlap {
        /// The one.
        one: VpcId,
        /// The other.
        other: VpcId,
        /// The range of one of them.
        range: Ipv4Cidr,
        /// That of the other, or of one that it reaches.
        clash: Ipv4Cidr,
    },
    /// A network has as many as it may have.
    #[error("{vpc} has {current} peerings, and may have {limit}; delete some")]
    TooMany {
        /// Which.
        vpc: VpcId,
        /// So many.
        limit: u64,
        /// There are so many.
        current: u64,
    },
}

impl PeeringRefusal {
    /// What the caller is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let with = |status, code, vpc| Fault::of_vpc(status, code, vpc, self.to_string());
        match self {
            Self::NoVpc(vpc) => with(404, "NOT_FOUND", vpc),
            Self::NoPeering { vpc, peering } => {
                with(404, "NOT_FOUND", vpc).with("peeringId", peering.as_str())
            }
            Self::Itself(vpc) => with(400, BAD_VPC, vpc),
            Self::Overlap { one, other, .. } => {
                with(409, "VPC_RANGES_OVERLAP", one).with("peerVpcId", other.as_str())
            }
            Self::TooMany { vpc, limit, current } => {
                Fault::over_limit(self.to_string(), *limit, *current).with("vpcId", vpc.as_str())
            }
        }
    }
}

/// One side of a peering to be.
#[derive(Clone, Debug)]
pub struct Side {
    /// The network.
    pub vpc: VpcId,
    /// Its range.
    pub range: Ipv4Cidr,
    /// The ranges of those that it reaches.
    pub peers: Vec<Ipv4Cidr>,
}

/// Whether both can reach each other: each must know for any address whose it is.
///
/// # Errors
/// [`PeeringRefusal::Overlap`].
pub fn disjoint(one: &Side, other: &Side) -> Result<(), PeeringRefusal> {
    let direct = std::iter::once((one.range, other.range));
    let behind_other = other.peers.iter().map(|peer| (one.range, *peer));
    let behind_one = one.peers.iter().map(|peer| (other.range, *peer));
    let clash = direct.chain(behind_other).chain(behind_one).find(|(range, peer)| range.overlaps(*peer));
    match clash {
        None => Ok(()),
        Some((range, clash)) => {
            let (one, other) = (one.vpc.clone(), other.vpc.clone());
            Err(PeeringRefusal::Overlap { one, other, range, clash })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_address_may_be_two_members() {
        let side = |number: u8, range: &str, peers: &[&str]| Side {
            vpc: VpcId::from_random([number; 20]),
            range: range.parse().expect("range"),
            peers: peers.iter().map(|peer| peer.parse().expect("range")).collect(),
        };
        let (a, b) = (side(1, "10.0.0.0/24", &[]), side(2, "10.0.1.0/24", &["10.0.2.0/24"]));
        assert_eq!(disjoint(&a, &b), Ok(()));
        for other in [
            side(3, "10.0.0.0/16", &[]),
            side(3, "10.0.3.0/24", &["10.0.0.0/25"]),
            side(3, "10.0.0.128/25", &[]),
        ] {
            assert!(matches!(disjoint(&a, &other), Err(PeeringRefusal::Overlap { .. })), "{other:?}");
            assert!(disjoint(&other, &a).is_err());
        }
        assert!(disjoint(&b, &side(3, "10.0.2.0/28", &[])).is_err(), "the peer of the one");
    }
}
