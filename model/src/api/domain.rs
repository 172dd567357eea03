//! Domains and mappings: public names that lead to a VM's port, and by what right.

use crate::host::{HostName, MappedName};
use crate::id::{AccountId, DomainId, MappingId, VerificationId, VmId};
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
    /// The public name; `*.` and a name for all names below one.
    pub domain: MappedName,
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

/// `POST /domains/v1/verifications`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateVerification {
    /// What is to be proved, with U-labels or A-labels.
    pub domain: String,
}

/// A proof that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Verification {
    /// Its id.
    pub id: VerificationId,
    /// What is to be proved.
    pub domain: HostName,
    /// Whose it will be.
    pub account_id: AccountId,
    /// What the TXT record must have.
    pub verification_code: String,
    /// Where the record must stand.
    pub record_name: String,
    /// RFC 3339.
    pub created_at: String,
    /// Why the last look found no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// `PUT /domains/v1/verifications`: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CompleteVerification {
    /// The domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// The answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VerificationCompleted {
    /// What is proved.
    pub domain: HostName,
}

/// `DELETE /domains/v1/verifications`, and the answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CancelVerification {
    /// The domain.
    pub domain: String,
    /// Its code.
    pub verification_code: String,
}

/// A domain that an account has proved. `GET /domains/v1/domains` answers a bare array of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Domain {
    /// Its id.
    pub id: DomainId,
    /// The name.
    pub domain: HostName,
    /// Whose it is.
    pub account_id: AccountId,
    /// RFC 3339.
    pub created_at: String,
    /// Whether the proof still stood at the last look.
    pub verified_dns: bool,
    /// Whether it comes of another right than a proof.
    pub implicitly_owned: bool,
    /// Whether it may be mapped itself.
    pub deploy_to_domain: bool,
    /// Whether the house serves its DNS.
    pub manage_dns: bool,
    /// Whether names below it may be mapped.
    pub deploy_to_subdomains: bool,
    /// When the proof was last seen, RFC 3339.
    pub proved_at: String,
    /// Why the last look found no proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// What the list of domains may be narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DomainQuery {
    /// At most so many.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Skip so many.
    #[serde(default)]
    pub offset: Option<u32>,
    /// Those of another right than a proof: there are none.
    #[serde(default)]
    pub implicitly_owned: Option<bool>,
}

/// What is known of a name, from its DNS to its VM. `GET /domains/v1/status/{domain}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// The name.
    pub domain: MappedName,
    /// Whether it may be mapped without a proof.
    pub preview: bool,
    /// The account's proof that rules over it.
    pub proof: Option<Domain>,
    /// The account's proof of it that was begun.
    pub verification: Option<Verification>,
    /// What its own name servers say of the proof now; absent when there is none to look for.
    pub dns: Option<DnsLook>,
    /// Whether a certificate in the door's view covers it.
    pub certificate: bool,
    /// Why the certificate authority did not certify it at its last try.
    pub certificate_error: Option<String>,
    /// Where it leads.
    pub mapping: Option<Mapping>,
    /// The state of the VM to which it leads.
    pub vm_state: Option<String>,
    /// What to do next.
    pub next: String,
}

/// A look at a domain's own name servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DnsLook {
    /// Where the TXT record is looked for.
    pub record_name: String,
    /// Whether it is there.
    pub found: bool,
    /// What came of it.
    pub message: String,
    /// Each question, in order.
    pub asked: Vec<DnsQuestion>,
}

/// A question to a name server, and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DnsQuestion {
    /// Whom, an IP address.
    pub server: String,
    /// About which name.
    pub name: String,
    /// For which records.
    pub kind: String,
    /// What came.
    pub answer: String,
}

/// `POST /domains/v1/certs/{domain}/wildcard`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct WildcardCertificate {
    /// All names below it are certified.
    pub domain: HostName,
}
