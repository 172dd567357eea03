//! Commands inside a VM.

use serde::{Deserialize, Serialize};

/// `POST /v1/vms/{vm_id}/exec-await`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Exec {
    /// What a non-login `sh` runs.
    pub command: String,
    /// A named terminal in which to run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<String>,
    /// After this long it is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// Its answer, whatever the exit status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecResult {
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: Option<String>,
    /// Standard error; bytes that are not UTF-8 are replaced.
    pub stderr: Option<String>,
    /// Exit status; 128 + n when signal n ended it.
    pub status_code: Option<i32>,
    /// Some output was over the bound and is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}
