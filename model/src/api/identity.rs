//! Identities, their tokens, keys and grants, and SSH. Keys of SSH and its sessions go beyond the contract.

use crate::id::{AccountId, IdentityId, SshKeyId, SshSessionId, TokenId, VmId, VmPermissionId};
use crate::ssh::LinuxUser;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What stands behind `?` of `GET /identity/v1/identities`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IdentityQuery {
    /// At most so many; all when absent.
    pub limit: Option<u32>,
    /// So many are skipped.
    pub offset: Option<u32>,
    /// Also those that the house keeps itself. There are none.
    pub include_managed: Option<bool>,
}

/// A part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct PageQuery {
    /// At most so many; all when absent.
    pub limit: Option<u32>,
    /// So many are skipped.
    pub offset: Option<u32>,
}

/// An identity; also the answer of `POST /identity/v1/identities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IdentityRow {
    /// Its id.
    pub id: IdentityId,
    /// Whether the house keeps it itself: never.
    pub managed: bool,
}

/// `GET /identity/v1/identities`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct IdentityList {
    /// The oldest first.
    pub identities: Vec<IdentityRow>,
    /// So many were skipped.
    pub offset: u64,
    /// So many there are.
    pub total: u64,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TokenRow {
    /// Its id.
    pub id: TokenId,
}

/// `GET /identity/v1/identities/{identity}/tokens`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TokenList {
    /// The oldest first.
    pub tokens: Vec<TokenRow>,
}

/// `POST /identity/v1/identities/{identity}/tokens`. It has a secret, which is shown here alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct TokenCreated {
    /// By which it is revoked.
    pub id: TokenId,
    /// The token.
    pub token: String,
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated").field("id", &self.id).finish_non_exhaustive()
    }
}

/// `POST` and `PUT /identity/v1/identities/{identity}/permissions/vm/{vm_id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GrantVm {
    /// As which Linux users the identity may act; as any when absent.
    pub allowed_users: Option<Vec<String>>,
}

/// What an identity may do with a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmPermission {
    /// Its id.
    pub id: VmPermissionId,
    /// The VM.
    pub vm_id: VmId,
    /// Who may.
    pub identity_id: IdentityId,
    /// As which Linux users; as any when null.
    pub allowed_users: Option<Vec<LinuxUser>>,
    /// RFC 3339.
    pub granted_at: String,
    /// Who granted it: the account.
    pub granted_by: String,
}

/// `GET /identity/v1/identities/{identity}/permissions/vm`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmPermissionList {
    /// The oldest first.
    pub permissions: Vec<VmPermission>,
    /// So many were skipped.
    pub offset: u64,
    /// So many there are.
    pub total: u64,
}

/// What may be done with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum GitAccess {
    /// Clone and fetch.
    Read,
    /// Push too.
    Write,
}

/// `POST` and `PUT /identity/v1/identities/{identity}/permissions/git/{repo}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GrantGit {
    /// What is granted.
    pub permission: GitAccess,
}

/// `GET /identity/v1/identities/{identity}/permissions/git/{repo}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GitPermission {
    /// Who may.
    pub identity: IdentityId,
    /// The repository.
    pub repo: String,
    /// What it may.
    pub access_level: Option<GitAccess>,
}

/// `GET /identity/v1/identities/{identity}/permissions/git`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GitRepositoryList {
    /// By their ids.
    pub repositories: Vec<GitRepositoryRow>,
}

/// A repository for which an identity has a grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GitRepositoryRow {
    /// Its id.
    pub id: String,
    /// Its name: not known yet.
    pub name: Option<String>,
    /// Whose it is.
    pub account_id: AccountId,
    /// What is granted.
    pub permissions: GitAccess,
    /// `private`.
    pub visibility: String,
}

/// `POST /identity/v1/identities/{identity}/keys` and `POST /v1/ssh/keys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct AddSshKey {
    /// One line as in `id_ed25519.pub`.
    pub key: String,
    /// For people; the line's comment when absent.
    pub name: Option<String>,
}

/// A public key that logs in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SshKeyRow {
    /// Its id.
    pub id: SshKeyId,
    /// Type and base64.
    pub key: String,
    /// As `ssh-keygen -l` prints it.
    pub fingerprint: String,
    /// For people.
    pub name: Option<String>,
    /// RFC 3339.
    pub created_at: String,
}

/// Keys of an identity or of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SshKeyList {
    /// The oldest first.
    pub keys: Vec<SshKeyRow>,
}

/// `GET /v1/ssh/host`: where SSH clients go, and how they know the house.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SshHost {
    /// The name; those below it lead there too.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The key that certifies the house's host keys, type and base64.
    pub authority: String,
    /// A line for `known_hosts`.
    pub known_hosts: String,
}

/// `GET /v1/ssh/sessions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SshSessionList {
    /// To the account's VMs, the longest first.
    pub sessions: Vec<SshSessionRow>,
}

/// A connection of a client, logged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SshSessionRow {
    /// By which it is ended.
    pub session_id: SshSessionId,
    /// To which VM.
    pub vm_id: VmId,
    /// As which of its Linux users.
    pub user: LinuxUser,
    /// Who, when it is not the account itself.
    pub identity_id: Option<IdentityId>,
    /// From where.
    pub client: IpAddr,
    /// Seconds since the login.
    pub seconds: u64,
    /// Open channels.
    pub channels: u32,
    /// Bytes of channels from the client.
    pub received_bytes: u64,
    /// Bytes of channels to it.
    pub sent_bytes: u64,
}
