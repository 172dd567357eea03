//! Which address a new VM gets.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use model::net::Ipv4Cidr;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// The first free host address of `network` behind `last`, beginning again at its start; none when all are used.
#[must_use]
pub fn next(network: Ipv4Cidr, last: Ipv4Addr, used: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let free = |address: &Ipv4Addr| !used.contains(address);
    network.hosts().filter(|address| *address > last).find(free).or_else(|| network.hosts().find(free))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn all_addresses_are_given_once_and_then_none(prefix in 26u8..=30, last: u32) {
            let network: Ipv4Cidr = format!("10.201.0.0/{prefix}").parse().expect("network");
            let (mut used, mut last) = (BTreeSet::new(), Ipv4Addr::from_bits(last));
            while let Some(address) = next(network, last, &used) {
                prop_assert!(network.contains(address) && used.insert(address));
                last = address;
            }
            prop_assert_eq!(used.len(), network.hosts().count());
        }
    }

    #[test]
    fn an_address_that_was_given_back_comes_last() {
        let network: Ipv4Cidr = "10.201.0.0/29".parse().expect("network");
        let one = Ipv4Addr::new(10, 201, 0, 1);
        assert_eq!(next(network, one, &BTreeSet::new()), Some(Ipv4Addr::new(10, 201, 0, 2)));
        assert_eq!(next(network, Ipv4Addr::new(10, 201, 0, 6), &BTreeSet::new()), Some(one));
    }
}
