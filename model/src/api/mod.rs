//! Bodies of the HTTP API, shared by the server and the command line.
//!
//! Keys are camelCase and unknown ones are ignored, in both directions. A missing value and `null` mean the same,
//! save where a field says otherwise. An empty success is [`Empty`], never an empty body: callers parse every
//! answer as JSON.

pub mod admin;
pub mod auth;
pub mod domain;
pub mod error;
pub mod exec;
pub mod file;
pub mod identity;
pub mod peering;
pub mod rule;
#[cfg(feature = "schema")]
mod schema;
pub mod service;
pub mod snapshot;
pub mod spec;
pub mod vm;
pub mod vpc;
pub mod wireguard;

use serde::{Deserialize, Serialize};

/// Answer header: the request's id, which the logs carry too.
pub const TRACE_ID_HEADER: &str = "x-freestyle-trace-id";
/// Request header: answer 202 and go on behind the caller's back after so many seconds.
pub const BACKGROUND_AFTER_HEADER: &str = "x-freestyle-background-after-secs";
/// Answer header: where to ask for the result of a request that goes on.
pub const BACKGROUND_REQUEST_HEADER: &str = "x-freestyle-background-request-id";
/// Request header: the Linux user as whom to act inside the VM.
pub const LINUX_USER_HEADER: &str = "x-freestyle-vm-linux-user-id";
/// Request header: an identity's token in place of an API key.
pub const IDENTITY_TOKEN_HEADER: &str = "x-freestyle-identity-access-token";
/// Request header on the operator's socket: the account for which to act, by its id.
pub const ACCOUNT_HEADER: &str = "x-gatehouse-account";

/// `{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Empty {}

/// Keeps `null` and a missing field apart: `None` is missing, `Some(None)` is `null`.
pub(crate) mod double_option {
    use serde::{Deserialize, Deserializer};

    pub fn deserialize<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
    where
        D: Deserializer<'de>,
        T: Deserialize<'de>,
    {
        Option::deserialize(deserializer).map(Some)
    }
}
