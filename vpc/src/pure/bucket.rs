//! A token bucket: so many at once, so many a second.

use std::time::{Duration, Instant};

/// One source's allowance.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Tokens in hand, in thousandths.
    milli: u64,
    filled: Instant,
}

/// How much a source may do.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

impl Bucket {
    /// A full bucket.
    #[must_use]
    pub fn full(allowance: Allowance, now: Instant) -> Self {
        Self { milli: u64::from(allowance.burst) * 1000, filled: now }
    }

    /// Takes one token; false when there is none.
    pub fn take(&mut self, allowance: Allowance, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled);
        // Whole milliseconds only; the rest stays in `filled`, so that frequent takers are not starved.
        let milliseconds = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.filled += Duration::from_millis(milliseconds);
        let gained = milliseconds.saturating_mul(u64::from(allowance.per_second));
        self.milli = self.milli.saturating_add(gained).min(u64::from(allowance.burst) * 1000);
        let enough = self.milli >= 1000;
        if enough {
            self.milli -= 1000;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_allowed(gaps in proptest::collection::vec(0u64..400, 1..200)) {
            let allowance = Allowance { per_second: 10, burst: 5 };
            let start = some_instant();
            let mut bucket = Bucket::full(allowance, start);
            let (mut now, mut taken) = (start, 0u64);
            for gap in gaps {
                now += Duration::from_millis(gap);
                taken += u64::from(bucket.take(allowance, now));
                let bound = 5 + (now - start).as_millis() as u64 * 10 / 1000;
                prop_assert!(taken <= bound, "{} of {}", taken, bound);
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn some_instant() -> Instant {
        Instant::now()
    }
}
