//! When a network is looked at.
//!
//! ```text
//!             look: all as wanted                    look: something failed
//!   Quiet ◄──────────────────────── Due ──────────────────────────────────► Broken
//!     │                              ▲ ▲                                      │
//!     │ the view changes it, a nudge │ │ the same, or a pause, which doubles  │
//!     └────── or AUDIT is over ──────┘ └──────────────────────────────────────┘
//! ```

use std::time::{Duration, Instant};

/// Time after which a network is looked at again though nothing was announced: somebody may have changed it.
pub const AUDIT: Duration = Duration::from_secs(30);
/// Time after which a network is looked at again when a sleeping VM's process still has the TAP and we do not: its end
/// is no event to us, and until new queues are open frames for the VM are lost. Senders try again after a second.
pub const LOOK_FOR_SLEEPERS: Duration = Duration::from_millis(200);
/// Time after which a failed change is tried again; doubled each time, up to [`AUDIT`].
pub const RETRY: Duration = Duration::from_secs(1);

/// How a look ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is as wanted.
    Good,
    /// So it is, but queues of a sleeping VM are in other hands.
    SleeperWithoutQueues,
    /// Something failed.
    Failed,
}

/// One network's.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    due: Instant,
    /// When the kernel is next asked for all, and not only for what changes often.
    audit: Instant,
    retry: Duration,
}

impl Schedule {
    /// Due at once, for all.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { due: now, audit: now, retry: RETRY }
    }

    /// Makes it due.
    pub fn hurry(&mut self, now: Instant) {
        self.due = self.due.min(now);
    }

    /// When to look.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// A look begins. True when it is for all.
    pub fn begin(&mut self, now: Instant) -> bool {
        let all = now >= self.audit;
        if all {
            self.audit = now + AUDIT;
        }
        all
    }

    /// A look ended. The pause until the next, if nothing comes between.
    pub fn end(&mut self, now: Instant, outcome: Outcome) -> Duration {
        let pause = match outcome {
            Outcome::Good => AUDIT,
            Outcome::SleeperWithoutQueues => LOOK_FOR_SLEEPERS,
            Outcome::Failed => self.retry,
        };
        self.retry = if outcome == Outcome::Failed { (self.retry * 2).min(AUDIT) } else { RETRY };
        self.due = now + pause;
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_network_is_never_forgotten_and_never_looked_at_without_a_pause(
            looks in proptest::collection::vec((0u8..3, 0u64..100, any::<bool>()), 1..60)
        ) {
            let mut now = some_instant();
            let mut schedule = Schedule::new(now);
            let (mut failures, mut all) = (0u32, now);
            for (outcome, takes, nudged) in looks {
                prop_assert!(schedule.due() <= now + AUDIT);
                if nudged {
                    schedule.hurry(now);
                    prop_assert!(schedule.due() <= now);
                }
                now = now.max(schedule.due());
                if schedule.begin(now) {
                    all = now;
                }
                prop_assert!(now < all + AUDIT, "all of it was not looked at for {:?}", now - all);
                now += Duration::from_millis(takes);
                let outcome = [Outcome::Good, Outcome::SleeperWithoutQueues, Outcome::Failed][usize::from(outcome)];
                failures = if outcome == Outcome::Failed { failures + 1 } else { 0 };
                let pause = schedule.end(now, outcome);
                prop_assert_eq!(schedule.due(), now + pause);
                prop_assert!((LOOK_FOR_SLEEPERS..=AUDIT).contains(&pause));
                if failures > 0 {
                    prop_assert_eq!(pause, AUDIT.min(RETRY * 2_u32.pow((failures - 1).min(10))));
                }
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn some_instant() -> Instant {
        Instant::now()
    }
}
