//! Domain mappings: public names that lead to a VM's port.

use crate::host::HostName;
use crate::id::{MappingId, VmId};
use serde::{Deserialize, Serialize};

/// The guest's port when a mapping names none.
pub const DEFAULT_VM_PORT: u16 = 3000;

/// `POST /domains/v1/mappings/{domain}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateMapping {
    /// The VM that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<String>,
    /// TCP port inside the VM, 1..=65535; [`DEFAULT_VM_PORT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_port: Option<i64>,
    /// A deployment in place of a VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployment_id: Option<String>,
}

/// A mapping. `GET /domains/v1/mappings` answers a bare array of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Mapping {
    /// Its id.
    pub id: MappingId,
    /// The public name.
    pub domain: HostName,
    /// The VM that answers.
    pub vm_id: Option<VmId>,
    /// TCP port inside the VM.
    pub vm_port: Option<u16>,
    /// By what right the account maps this name.
    pub ownership_id: String,
    /// RFC 3339.
    pub created_at: String,
}

/// What the list may be narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct MappingQuery {
    /// This very name.
    #[serde(default)]
    pub domain: Option<String>,
    /// This right.
    #[serde(default)]
    pub domain_ownership: Option<String>,
    /// At most so many.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Skip so many.
    #[serde(default)]
    pub offset: Option<u32>,
}
