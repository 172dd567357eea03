//! The firewall of a VPC. It goes beyond the contract.

use crate::firewall::{RuleAction, RuleDirection, RuleProtocol};
use crate::id::{RuleId, VmId};
use serde::{Deserialize, Serialize};

/// Priority of rules that name none.
pub const DEFAULT_PRIORITY: u16 = 1000;

/// `POST /v1/vpcs/{vpc_id}/rules`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateRule {
    /// What becomes of a connection that fits.
    pub action: RuleAction,
    /// Seen from the member: `in` is what others send to it.
    pub direction: RuleDirection,
    /// The one member that it is for; missing: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The other side: `any`, `vpn`, a VM, a VPC, an address or a range. Missing: `any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Missing: `any`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<RuleProtocol>,
    /// Destination ports such as `443` or `8000-8099`, of `tcp` and `udp` alone; missing: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<String>>,
    /// 0 to 65535, the lowest judge first; [`DEFAULT_PRIORITY`] when missing. Of equals the older judges first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u16>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// `PUT /v1/vpcs/{vpc_id}/rules`: these and no others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PutRules {
    /// Of equal priority the first judge first.
    pub rules: Vec<CreateRule>,
}

/// `GET /v1/vpcs/{vpc_id}/rules`, and the answer of `PUT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RuleList {
    /// In the order in which they judge.
    pub rules: Vec<RuleInfo>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct RuleInfo {
    /// Its id.
    pub rule_id: RuleId,
    /// What becomes of a connection that fits.
    pub action: RuleAction,
    /// Seen from the member.
    pub direction: RuleDirection,
    /// The one member that it is for.
    pub vm: Option<VmId>,
    /// The other side, as it was asked for.
    pub peer: String,
    /// Which packets.
    pub protocol: RuleProtocol,
    /// Destination ports; all when empty.
    pub ports: Vec<String>,
    /// The lowest judge first.
    pub priority: u16,
    /// For people.
    pub description: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// Packets that it decided on, since its network stands; null while the network process does not tell.
    pub packets: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
}
