//! VPCs: private networks of VMs. `POST /v1/vpcs` is the contract's; the rest goes beyond it.

use super::service::ServiceRow;
use super::vm::VmState;
use crate::id::{VmId, VpcId};
use crate::net::Ipv4Cidr;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// A VPC's range when the caller does not say, as the npm package has it.
pub const DEFAULT_VPC_CIDR: &str = "10.0.0.0/16";
/// The one kind of NIC.
pub const ROUTED_MODE: &str = "routed";

/// A NIC of a new VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Nic {
    /// The VPC.
    pub vpc: String,
    /// [`ROUTED_MODE`].
    pub mode: String,
    /// Its address; missing: the next free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NicIpv4>,
    /// Whether it is the VM's way to the Internet. It is in either case, since it is the VM's only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<bool>,
    /// `dedicatedDevice` or `vlan`: how the contract's own hosts make it. Here each is a device of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
}

/// A NIC's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(
    untagged,
    expecting = "nics[].ipv4 must be an address such as \"10.0.0.5\", or true for the next free one"
)]
pub enum NicIpv4 {
    /// True: the next free one. False: none, which is refused.
    Any(bool),
    /// This one.
    One(String),
}

/// `POST /v1/vpcs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateVpc {
    /// Where the addresses of its members come from; [`DEFAULT_VPC_CIDR`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// A label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VpcCreated {
    /// The new VPC.
    pub vpc_id: VpcId,
}

/// `GET /v1/vpcs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VpcList {
    /// The newest first.
    pub vpcs: Vec<VpcRow>,
}

/// A VPC in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VpcRow {
    /// Its id.
    pub vpc_id: VpcId,
    /// Where the addresses of its members come from.
    pub cidr: Ipv4Cidr,
    /// Its label.
    pub name: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// So many VMs are in it.
    pub member_count: u64,
}

/// `GET /v1/vpcs/{vpc_id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VpcInfo {
    /// Its id.
    pub vpc_id: VpcId,
    /// Where the addresses of its members come from.
    pub cidr: Ipv4Cidr,
    /// Its label.
    pub name: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// The VMs in it, by their addresses.
    pub members: Vec<VpcMember>,
    /// The services of this host in it, by their addresses.
    #[serde(default)]
    pub services: Vec<ServiceRow>,
}

/// A VM in a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VpcMember {
    /// The VM.
    pub vm_id: VmId,
    /// Its label.
    pub name: Option<String>,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// What was said of [`Nic::default`].
    pub default: bool,
    /// What it is doing.
    pub state: VmState,
}

/// `POST /v1/vpcs/{vpc_id}/members`. The VM must be stopped; it starts with its new address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AttachVm {
    /// The VM.
    pub vm_id: String,
    /// Its address; missing: the next free one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<NicIpv4>,
}

/// Answer of `DELETE /v1/vpcs/{vpc_id}/members/{vm_id}`: the VM is in the default network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmDetached {
    /// The VM.
    pub vm_id: VmId,
    /// Its address from now on.
    pub ipv4: Ipv4Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_text_or_a_wish_for_any() {
        let read = |text: &str| serde_json::from_str::<Nic>(text);
        let nic =
            read(r#"{"vpc":"v","mode":"routed","ipv4":"10.0.0.5","default":true,"new":1}"#).expect("good");
        assert_eq!((nic.ipv4, nic.default), (Some(NicIpv4::One("10.0.0.5".to_owned())), Some(true)));
        let nic = read(r#"{"vpc":"v","mode":"routed","ipv4":true,"backend":null}"#).expect("good");
        assert_eq!((nic.ipv4, nic.backend), (Some(NicIpv4::Any(true)), None));
        assert_eq!(read(r#"{"vpc":"v","mode":"routed","ipv4":null}"#).expect("good").ipv4, None);
        let error = read(r#"{"vpc":"v","mode":"routed","ipv4":5}"#).expect_err("a number").to_string();
        assert!(error.contains("10.0.0.5"), "{error}");
    }
}
