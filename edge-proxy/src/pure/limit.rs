//! The bounds that a request can reach before it goes anywhere.

use thiserror::Error;

/// Which bound a request has reached. Each is counted.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Limit {
    /// Requests per second of one address.
    #[error("too many requests per second from one address")]
    AddressRate,
    /// Requests at once of one address.
    #[error("too many requests at once from one address")]
    AddressAtOnce,
    /// Requests per second to one host.
    #[error("too many requests per second to one host")]
    HostRate,
    /// Requests at once to one host.
    #[error("too many requests at once to one host")]
    HostAtOnce,
    /// More addresses or hosts at once than a table holds.
    #[error("too many addresses or hosts at once")]
    Keys,
}
