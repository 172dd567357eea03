//! How long to wait between calls of the host.
//!
//! ```text
//! Patient ──line held──► Quick ──QUICK_TRIES used──► Patient (FIRST_WAIT, doubled to LONGEST_WAIT)
//! ```
//!
//! A held line that breaks mostly means that the machine was restored: the host listens already, and the VM is let
//! on the network only after the call. A line that never stood means that no host is there.

use std::time::Duration;

/// Wait before the second call to a host that does not answer; it doubles up to [`LONGEST_WAIT`].
pub const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between calls: after a host's restart the guest is known again within it.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Wait between quick calls: little beside what the host does for a restore.
pub const QUICK_WAIT: Duration = Duration::from_millis(5);
/// Quick calls after a line broke: a quarter of a second of them. The first is made without any wait.
pub const QUICK_TRIES: u32 = 50;
/// How long a line must have stood to give all quick calls back; else a host that always hangs up would be called
/// without rest.
pub const HELD_LONG: Duration = Duration::from_secs(5);

/// The waits of a caller.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Quick calls that are left.
    quick: u32,
    /// Whether the line broke just now.
    broke: bool,
    wait: Duration,
}

impl Pace {
    /// Of a caller that has not called yet.
    #[must_use]
    pub fn new() -> Self {
        Self { quick: 0, broke: false, wait: FIRST_WAIT }
    }

    /// A line on which all was settled ended after so long.
    pub fn line_broke(&mut self, held: Duration, first: bool) {
        if first || held >= HELD_LONG {
            self.quick = QUICK_TRIES;
        }
        self.broke = true;
        self.wait = FIRST_WAIT;
    }

    /// How long to wait before the next call.
    pub fn next_wait(&mut self) -> Duration {
        let broke = std::mem::take(&mut self.broke);
        if self.quick > 0 {
            self.quick -= 1;
            return if broke { Duration::ZERO } else { QUICK_WAIT };
        }
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST_WAIT);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_that_was_held_is_taken_up_again_at_once() {
        let mut pace = Pace::new();
        assert_eq!((pace.next_wait(), pace.next_wait()), (FIRST_WAIT, FIRST_WAIT * 2));
        pace.line_broke(HELD_LONG, false);
        assert_eq!((pace.next_wait(), pace.next_wait()), (Duration::ZERO, QUICK_WAIT));
        let quick = (0..1000).take_while(|_| pace.next_wait() == QUICK_WAIT).count();
        assert_eq!(quick, QUICK_TRIES as usize - 2);
        assert_eq!(pace.next_wait(), FIRST_WAIT * 2);
    }

    proptest! {
        /// However the host behaves, it is not called without rest, and never forgotten for longer than the bound.
        #[test]
        fn calls_are_bounded(ends in proptest::collection::vec(proptest::option::of(0u64..4), 1..300)) {
            let mut pace = Pace::new();
            let mut at_once = 0u32;
            for (turn, end) in ends.into_iter().enumerate() {
                if let Some(seconds) = end {
                    pace.line_broke(Duration::from_secs(seconds), turn == 0);
                }
                let wait = pace.next_wait();
                prop_assert!(wait <= LONGEST_WAIT);
                at_once += u32::from(wait.is_zero());
            }
            prop_assert!(at_once <= QUICK_TRIES);
        }
    }
}
