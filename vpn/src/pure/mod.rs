#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! What becomes of each datagram and each packet, without socket, file or task. Time and random numbers are arguments,
//! save inside boringtun's `noise`, which reads the monotonic clock for its rekeying and the system's random numbers
//! for its ephemeral keys by itself.

pub mod budget;
pub mod coalesce;
pub mod count;
pub mod engine;
pub mod ipv4;
pub mod noise;
pub mod offload;
pub mod runs;
pub mod table;
pub mod tcp;

use std::time::Instant;

/// A moment by both clocks: the one that never steps, for intervals, and the wall's, for deadlines of views.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For intervals.
    pub steady: Instant,
    /// Milliseconds since 1970 UTC.
    pub unix_ms: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    pub(crate) fn some_instant() -> Instant {
        Instant::now()
    }
}
