//! What a [`BootConfig`] asks for, in the order in which it is done.
//!
//! A restored machine has the random numbers of the saved one. So that comes first, and nothing that uses randomness
//! or talks to anybody before it; and what makes a machine another one comes before its network.

use model::agent::{BootConfig, Identity};
use std::time::Duration;

/// One thing to do. A step that fails ends the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Give the kernel fresh entropy, and let its generator use it at once.
    Reseed,
    /// Step the wall clock.
    Clock,
    /// A machine-id of its own.
    MachineId,
    /// The host name.
    HostName,
    /// SSH host keys of its own.
    HostKeys,
    /// The NIC's settings.
    Network,
    /// The NIC becomes another one: address, routes, and an end for the connections of before.
    NewNetwork,
}

/// The steps, first to last.
#[must_use]
pub fn steps(config: &BootConfig) -> Vec<Step> {
    let identity = config.restored.as_ref().map(|restored| restored.identity);
    let mut steps = Vec::new();
    let mut add = |step: Step, wanted: bool| steps.extend(wanted.then_some(step));
    add(Step::Reseed, identity.is_some());
    add(Step::Clock, config.unix_nanoseconds != 0);
    add(Step::MachineId, identity == Some(Identity::New));
    add(Step::HostName, identity != Some(Identity::Same));
    add(Step::HostKeys, identity == Some(Identity::New));
    add(Step::Network, identity.is_none() && config.network.is_some());
    add(Step::NewNetwork, identity == Some(Identity::New) && config.network.is_some());
    steps
}

/// The time now, in nanoseconds since 1970, of a time that the host read on the way of a question and its answer, which
/// came this long ago. On a busy host the way takes seconds; half of it is the likeliest, and the error at most that.
#[must_use]
pub fn time_now(told: u64, round_trip: Duration, ago: Duration) -> u64 {
    let since = (round_trip / 2).saturating_add(ago).as_nanos();
    told.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::agent::Restored;
    use model::net::{GuestNetwork, MacAddress};
    use proptest::prelude::*;

    fn config(identity: Option<Identity>, nic: bool, clock: u64) -> BootConfig {
        let address = std::net::Ipv4Addr::LOCALHOST;
        let mac = MacAddress([2; 6]);
        let network =
            GuestNetwork { mac, ipv4: address, gateway: address, dns: vec![], mtu: 1500, ipv6: None };
        BootConfig {
            hostname: "vm".into(),
            network: nic.then_some(network),
            unix_nanoseconds: clock,
            restored: identity.map(|identity| Restored { entropy: vec![], identity }),
        }
    }

    #[test]
    fn each_kind_of_start_has_its_steps() {
        use Step::{Clock, HostKeys, HostName, MachineId, Network, NewNetwork, Reseed};
        assert_eq!(steps(&config(None, true, 1)), [Clock, HostName, Network]);
        assert_eq!(steps(&config(Some(Identity::Same), true, 1)), [Reseed, Clock]);
        let new = [Reseed, Clock, MachineId, HostName, HostKeys, NewNetwork];
        assert_eq!(steps(&config(Some(Identity::New), true, 1)), new);
    }

    #[test]
    fn a_time_that_was_long_on_its_way_is_still_right() {
        let second = 1_000_000_000;
        assert_eq!(time_now(7 * second, Duration::ZERO, Duration::ZERO), 7 * second);
        assert_eq!(time_now(7 * second, Duration::from_secs(2), Duration::from_secs(3)), 11 * second);
        assert_eq!(time_now(u64::MAX, Duration::MAX, Duration::MAX), u64::MAX);
    }

    proptest! {
        #[test]
        fn the_time_is_within_half_the_way(out in 0..10_000u64, back in 0..10_000u64, ago in 0..10_000u64) {
            let (read, way) = (1_000_000_000_000, Duration::from_millis(out + back));
            let right = read + (back + ago) * 1_000_000;
            let said = time_now(read, way, Duration::from_millis(ago));
            prop_assert!(u128::from(said.abs_diff(right)) <= way.as_nanos() / 2);
        }

        #[test]
        fn entropy_is_first_and_the_network_last(identity in 0..3, nic: bool, clock: u64) {
            let identity = [None, Some(Identity::Same), Some(Identity::New)][identity as usize];
            let steps = steps(&config(identity, nic, clock));
            let place = |step| steps.iter().position(|found| *found == step);
            prop_assert_eq!(place(Step::Reseed), identity.map(|_| 0));
            for network in [Step::Network, Step::NewNetwork] {
                prop_assert!(place(network).is_none_or(|place| nic && place == steps.len() - 1));
            }
        }
    }
}
