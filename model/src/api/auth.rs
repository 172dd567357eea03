//! Who one is, and requests that go on behind the caller's back.

use crate::id::{AccountId, IdentityId, RequestId};
use serde::{Deserialize, Serialize};

/// `GET /auth/v1/whoami`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct WhoAmI {
    /// The account behind the key, or behind the identity.
    pub account_id: AccountId,
    /// The identity behind a token.
    pub identity_id: Option<IdentityId>,
}

/// The 202 of a request that goes on, and of each question that comes too early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BackgroundRequest {
    /// Where to ask: `GET /auth/v1/background-requests/{id}`.
    pub request_id: RequestId,
    /// `running`.
    pub status: String,
}

/// `GET /observability/v1/logs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Logs {
    /// The oldest first.
    pub logs: Vec<LogLine>,
    /// More can be had with this.
    pub next_page_token: Option<String>,
}

/// A line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct LogLine {
    /// What happened.
    pub message: String,
    /// RFC 3339.
    pub timestamp: String,
}
