//! Whether a body comes too slowly.

use std::time::Duration;

/// What is asked of a client that sends a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// For so long nothing is asked.
    pub grace: Duration,
    /// Bytes per second after that, on average; 0 asks for nothing.
    pub bytes_per_second: u32,
}

impl Pace {
    /// Whether `bytes` since `passed` is too little.
    #[must_use]
    pub fn is_too_slow(self, passed: Duration, bytes: u64) -> bool {
        let asked = passed.saturating_sub(self.grace);
        asked.as_millis() * u128::from(self.bytes_per_second) > u128::from(bytes) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_slower_than_the_rate_after_the_grace() {
        let pace = Pace { grace: Duration::from_secs(60), bytes_per_second: 100 };
        let slow = |seconds, bytes| pace.is_too_slow(Duration::from_secs(seconds), bytes);
        assert!(!slow(60, 0) && slow(61, 0) && slow(61, 99) && !slow(61, 100));
        assert!(slow(3660, 359_999) && !slow(3660, 360_000) && !slow(u64::MAX >> 32, u64::MAX));
        let none = Pace { bytes_per_second: 0, ..pace };
        assert!(!none.is_too_slow(Duration::MAX, 0));
    }
}
