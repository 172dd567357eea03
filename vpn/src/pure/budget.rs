//! How many handshakes are computed: each costs some 200 µs of a core, and anybody who knows the server's public key
//! can ask for one.
//!
//! ```text
//!   handshake ─► allowance of its prefix, then of all ─ left ─► computed
//!                        │ used up
//!                        ▼
//!                 a valid cookie? ─ no ─► answered with a cookie (no state, no curve)
//!                        │ yes: its address is proven
//!                        ▼
//!                 allowance of proven ones ─ left ─► computed; used up ─► dropped
//! ```
//!
//! Allowances lie in tables of fixed size, by a keyed hash of the prefix. Sources that share a place share its
//! allowance: nothing is evicted, so nobody gains by making up addresses.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Places in each table. 24 bytes each.
const PLACES: usize = 4096;
/// All sources together, unproven: a fifth of a core, and ten times what 10,000 clients need in the long run (one
/// every 120 s each); at once, as many as come back within a second when the server restarts.
pub const ALL: Allowance = Allowance { per_second: 1000, burst: 2000 };
/// One prefix, unproven: the people behind one provider's translator.
pub const PREFIX: Allowance = Allowance { per_second: 50, burst: 100 };
/// One proven prefix, over that.
pub const PROVEN: Allowance = Allowance { per_second: 100, burst: 100 };

/// How much a source may do.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// In the long run.
    pub per_second: u32,
    /// At once.
    pub burst: u32,
}

/// What is left of an allowance.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// Tokens in hand, in thousandths.
    milli: u64,
    filled: Instant,
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

/// All allowances.
#[derive(Debug)]
pub struct Budget {
    hasher: RandomState,
    all: Bucket,
    unproven: Box<[Bucket]>,
    proven: Box<[Bucket]>,
}

impl Budget {
    /// Full ones; the hasher's keys are drawn by the caller.
    #[must_use]
    pub fn new(hasher: RandomState, now: Instant) -> Self {
        Self {
            hasher,
            all: Bucket::full(ALL, now),
            unproven: vec![Bucket::full(PREFIX, now); PLACES].into(),
            proven: vec![Bucket::full(PROVEN, now); PLACES].into(),
        }
    }

    /// Whether a handshake from here is computed without a proof of its address.
    pub fn unproven(&mut self, from: IpAddr, now: Instant) -> bool {
        let place = self.place(from);
        self.unproven[place].take(PREFIX, now) && self.all.take(ALL, now)
    }

    /// Whether one is, given the proof.
    pub fn proven(&mut self, from: IpAddr, now: Instant) -> bool {
        let place = self.place(from);
        self.proven[place].take(PROVEN, now)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a place is the hash's lower bits")]
    fn place(&self, from: IpAddr) -> usize {
        self.hasher.hash_one(prefix(from)) as usize % PLACES
    }
}

/// What one household or company has: a /24 of IPv4, a /56 of IPv6 (RFC 6177).
fn prefix(from: IpAddr) -> u64 {
    match from {
        IpAddr::V4(address) => u64::from(address.to_bits() >> 8),
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => u64::from(mapped.to_bits() >> 8),
            // The upper 56 of 128 bits; documented to fit.
            None => u64::try_from(address.to_bits() >> 72).unwrap_or(u64::MAX) | 1 << 63,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::tests::some_instant;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_more_than_allowed(gaps in proptest::collection::vec(0u64..40, 1..400)) {
            let start = some_instant();
            let mut budget = Budget::new(RandomState::new(), start);
            let from = IpAddr::from([192, 0, 2, 7]);
            let (mut now, mut taken) = (start, 0u64);
            for gap in gaps {
                now += Duration::from_millis(gap);
                taken += u64::from(budget.unproven(from, now));
                let bound = u64::from(PREFIX.burst)
                    + (now - start).as_millis() as u64 * u64::from(PREFIX.per_second) / 1000;
                prop_assert!(taken <= bound, "{} of {}", taken, bound);
            }
        }
    }

    #[test]
    fn one_prefix_does_not_use_up_what_others_have() {
        let now = some_instant();
        let mut budget = Budget::new(RandomState::new(), now);
        let flooding = |n: u8| IpAddr::from([192, 0, 2, n]);
        let passed = (0..=255).filter(|n| budget.unproven(flooding(*n), now)).count();
        assert_eq!(passed, 100, "the prefix counts, not the address");
        let others = (0..100u8).filter(|n| budget.unproven(IpAddr::from([10, *n, 0, 1]), now)).count();
        assert!(others >= 97, "some may share a place: {others}");
        assert!(budget.proven(flooding(1), now));
    }

    #[test]
    fn all_prefixes_together_are_bounded_too() {
        let now = some_instant();
        let mut budget = Budget::new(RandomState::new(), now);
        let from = |n: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(n << 8));
        assert_eq!((0..100_000).filter(|n| budget.unproven(from(*n), now)).count(), 2000);
    }

    #[test]
    fn prefixes_of_both_families_are_told_apart() {
        let v4: IpAddr = "192.0.2.1".parse().expect("address");
        let mapped: IpAddr = "::ffff:192.0.2.200".parse().expect("address");
        let v6: IpAddr = "2001:db8::1".parse().expect("address");
        let same: IpAddr = "2001:db8:0:ff::1".parse().expect("address");
        let other: IpAddr = "2001:db8:0:100::1".parse().expect("address");
        assert_eq!(prefix(v4), prefix(mapped));
        assert_eq!(prefix(v6), prefix(same));
        assert_ne!(prefix(v6), prefix(other));
    }
}
