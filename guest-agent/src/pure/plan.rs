//! What a [`BootConfig`] asks for, in the order in which it is done.
//!
//! A restored machine has the random numbers of the saved one. So that comes first, and nothing that uses randomness
//! or talks to anybody before it; and what makes a machine another one comes before its network.

use model::agent::{BootConfig, Identity};

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

#[cfg(test)]
mod tests {
    use super::*;
    use model::agent::Restored;
    use model::net::{GuestNetwork, MacAddress};
    use proptest::prelude::*;

    fn config(identity: Option<Identity>, nic: bool, clock: u64) -> BootConfig {
        let address = std::net::Ipv4Addr::LOCALHOST;
        let mac = MacAddress([2; 6]);
        let network = GuestNetwork { mac, ipv4: address, gateway: address, dns: vec![], mtu: 1500 };
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

    proptest! {
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
