//! What a caller is told when it does not get what it asked for: a status, a code of the contract, and a message that
//! says what was wrong and what would be right.

use model::api::error::ErrorBody;
use model::id::VpcId;
use serde_json::{Map, Value};
use std::fmt;

/// A refusal or failure, as it goes to the caller.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// HTTP status, 400..=599.
    pub status: u16,
    /// One of the contract's codes: callers that do not know it may ask again for ever.
    pub code: &'static str,
    /// What a person reads.
    pub message: String,
    /// What the code has besides.
    pub fields: Map<String, Value>,
}

impl Fault {
    /// Without further fields.
    #[must_use]
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), fields: Map::new() }
    }

    /// The same with one more field.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// Something that the caller has no part in.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "INTERNAL_ERROR", message)
    }

    /// A part of the contract that this version has not.
    #[must_use]
    pub fn not_offered(what: &str) -> Self {
        Self::new(501, "INTERNAL_ERROR", format!("{what} is not offered by this version of Gatehouse"))
    }

    /// No such VM, or not the caller's: which of them is nobody else's business.
    #[must_use]
    pub fn no_vm(id: &str) -> Self {
        Self::new(404, "VM_NOT_FOUND", format!("there is no VM {id:?}")).with("vmId", id)
    }

    /// Something about a VPC.
    #[must_use]
    pub fn of_vpc(status: u16, code: &'static str, vpc: &VpcId, message: impl Into<String>) -> Self {
        Self::new(status, code, message).with("vpcId", vpc.as_str())
    }

    /// There are as many of something as there may be.
    #[must_use]
    pub fn over_limit(message: impl Into<String>, limit: u64, current: u64) -> Self {
        Self::new(403, "LIMIT_EXCEEDED", message).with("limit", limit).with("current", current)
    }

    /// The body of the answer.
    #[must_use]
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            code: self.code.to_owned(),
            error: self.code.to_owned(),
            message: self.message.clone(),
            fields: self.fields.clone(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}
