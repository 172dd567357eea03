//! When a thing that failed is tried again: restarts of VMs that crash, and wakes that do not succeed.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

/// Before the first retry.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Before each late one: whoever repairs the cause by hand does not want to wait much longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A VM that was up so long has got over what made it crash before.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Restarts of a VM that crashes again and again: five minutes of them. Then a person has to look.
pub const MAX_RESTARTS: u32 = 10;

/// The wait before the next try after so many that failed.
#[must_use]
pub fn wait(failed: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failed.min(16)).min(LONGEST_WAIT)
}

/// After a crash: restarts so far with this one, and the wait before it. None: there were enough. `up` is how long
/// the VM was up since the last restart.
#[must_use]
pub fn restart(restarts: u32, up: Option<Duration>) -> Option<(u32, Duration)> {
    let counted = if up.is_some_and(|up| up >= FORGOTTEN_AFTER) { 0 } else { restarts };
    (counted < MAX_RESTARTS).then(|| (counted + 1, wait(counted)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_vm_that_always_crashes_is_left_alone_in_the_end() {
        let (mut restarts, mut waits) = (0, Vec::new());
        while let Some((next, wait)) = restart(restarts, Some(Duration::from_secs(5))) {
            restarts = next;
            waits.push(wait.as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
        assert_eq!(restart(restarts, Some(FORGOTTEN_AFTER)), Some((1, FIRST_WAIT)));
    }

    proptest! {
        #[test]
        fn waits_grow_and_are_bounded(failed: u32) {
            prop_assert!(wait(failed) <= wait(failed.saturating_add(1)));
            prop_assert!((FIRST_WAIT..=LONGEST_WAIT).contains(&wait(failed)));
        }
    }
}
