//! The operator's own calls, offered on the operator's socket alone.

use crate::figures::Figures;
use crate::host::HostName;
use crate::id::{AccountId, ApiKeyId, Generation};
use serde::{Deserialize, Serialize};

/// `POST /admin/v1/api-keys`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateApiKey {
    /// What the key is for, as people name it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whose it is; the account of the request when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
}

/// Its answer. The only time that the secret is seen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyCreated {
    /// The key's public name.
    pub id: ApiKeyId,
    /// Whose it is.
    pub account_id: AccountId,
    /// What goes behind `Authorization: Bearer`.
    pub secret: String,
}

impl std::fmt::Debug for ApiKeyCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKeyCreated")
            .field("id", &self.id)
            .field("account_id", &self.account_id)
            .finish_non_exhaustive()
    }
}

/// A key in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyRow {
    /// The key's public name.
    pub id: ApiKeyId,
    /// Whose it is.
    pub account_id: AccountId,
    /// What the key is for.
    pub name: Option<String>,
    /// RFC 3339.
    pub created_at: String,
    /// RFC 3339, to the minute or so; absent when it was never used.
    pub last_used_at: Option<String>,
}

/// `GET /admin/v1/api-keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyList {
    /// All keys that work, of all accounts.
    pub api_keys: Vec<ApiKeyRow>,
}

/// `POST /admin/v1/accounts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateAccount {
    /// As people name it; no other account has it.
    pub name: String,
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AccountRow {
    /// Its id.
    pub id: AccountId,
    /// As people name it.
    pub name: String,
    /// RFC 3339.
    pub created_at: String,
}

/// `GET /admin/v1/accounts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AccountList {
    /// All accounts, the oldest first. The first is the default one.
    pub accounts: Vec<AccountRow>,
}

/// `GET /admin/v1/metrics`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct HouseFigures {
    /// What each process that answers has counted since its start.
    pub families: Figures,
}

/// `GET /admin/v1/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ControlStatus {
    /// Of the server.
    pub version: String,
    /// Below which preview hosts stand.
    pub domain: HostName,
    /// The newest published decision.
    pub generation: Generation,
    /// Whether the supervisor of the VMs is there and has told what runs.
    pub supervisor: bool,
    /// VMs of all accounts.
    pub vms: u64,
    /// Those that run.
    pub running_vms: u64,
    /// Memory promised to VMs that are up, in MiB.
    pub promised_memory_mib: u64,
    /// What may be promised, in MiB.
    pub memory_limit_mib: u64,
    /// Memory of VMs that sleep, which is on disk, in MiB.
    pub sleeping_memory_mib: u64,
    /// What may be kept of that, in MiB; no bound when null.
    pub memory_storage_mib: Option<u64>,
    /// What the disks of all VMs may grow to, in MiB.
    pub promised_disk_mib: u64,
    /// What may be promised of that, in MiB; no bound when null.
    pub rootfs_storage_mib: Option<u64>,
    /// Domain mappings.
    pub mappings: u64,
    /// Certificates that edge-proxy was given.
    pub certificates: u64,
}

/// Where a name stands on its way to a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// It has none yet.
    Pending,
    /// It has none, and the last try failed.
    Failed,
    /// It has one.
    Issued,
    /// It has one, and the last try for its successor failed.
    RenewalFailed,
}

/// A name that the authority is to certify.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CertificateRow {
    /// A host, or `*.` before one.
    pub name: String,
    /// Where it stands.
    pub state: CertificateState,
    /// When its certificate ends, RFC 3339; null without one.
    pub not_after: Option<String>,
    /// When the next one is due, RFC 3339; null without one.
    pub renew_at: Option<String>,
    /// Tries in a row that failed.
    pub failures: u32,
    /// Not tried before, RFC 3339; null when nothing failed.
    pub next_try_at: Option<String>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// When, RFC 3339.
    pub last_error_at: Option<String>,
}

/// `GET /admin/v1/certificates`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CertificateList {
    /// The URL of the authority's directory; null when nobody certifies.
    pub authority: Option<String>,
    /// All names that it is to certify, by name.
    pub certificates: Vec<CertificateRow>,
}
