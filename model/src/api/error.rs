//! Bodies of refusals and failures.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What every answer that is not a success holds. `code` and `error` are the same word: callers choose the class of
/// the error by `code`, the written contract says `error`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// One of the contract's words, `SCREAMING_SNAKE_CASE`.
    pub code: String,
    /// The same.
    #[serde(default)]
    pub error: String,
    /// What a person reads.
    #[serde(default)]
    pub message: String,
    /// What the code has besides, `vmId` for example.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}
