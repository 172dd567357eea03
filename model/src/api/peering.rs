//! VPCs that reach each other. It goes beyond the contract.

use crate::id::{PeeringId, VpcId};
use crate::net::Ipv4Cidr;
use serde::{Deserialize, Serialize};
use std::fmt;

/// `POST /v1/vpcs/{vpc_id}/peerings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreatePeering {
    /// The other one. When it is another account's, its owner must ask for the same.
    pub peer_vpc_id: String,
}

/// Whether the networks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum PeeringState {
    /// They do.
    Active,
    /// This side has asked, and waits for the other.
    Pending,
    /// The other side has asked, and waits for this one.
    Asked,
}

impl fmt::Display for PeeringState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Pending => "pending",
            Self::Asked => "asked",
        })
    }
}

/// A peering, as one side sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PeeringInfo {
    /// Its id; both sides have the same.
    pub peering_id: PeeringId,
    /// The other network.
    pub peer_vpc_id: VpcId,
    /// Its range, once they reach each other.
    pub peer_cidr: Option<Ipv4Cidr>,
    /// Whether they do.
    pub state: PeeringState,
    /// RFC 3339.
    pub created_at: String,
}

/// `GET /v1/vpcs/{vpc_id}/peerings`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PeeringList {
    /// The oldest first.
    pub peerings: Vec<PeeringInfo>,
}
