//! Services of this host in a VPC: containers, namespaces, the host itself. It goes beyond the contract.

use super::vpc::NicIpv4;
use crate::id::{Generation, ServiceId, VpcId};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// `POST /v1/vpcs/{vpc_id}/services`. One of that name that is there already is left as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateService {
    /// Its name under `vpc.internal`: a DNS label.
    pub name: String,
    /// Its address; missing: the next free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NicIpv4>,
}

/// Its answer: the service has an address and a name, and may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServiceCreated {
    /// Its id.
    pub service_id: ServiceId,
    /// The VPC.
    pub vpc_id: VpcId,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// The decision that knows it: whoever has it join names this.
    pub generation: Generation,
}

/// `GET /v1/vpcs/{vpc_id}/services`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServiceList {
    /// By their addresses.
    pub services: Vec<ServiceRow>,
}

/// A service in a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ServiceRow {
    /// Its id.
    pub service_id: ServiceId,
    /// Its name.
    pub name: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// RFC 3339.
    pub created_at: String,
}
