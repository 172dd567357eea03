//! The two addresses of the link between a network's namespace and the host, chosen so that they collide with nothing there.
//!
//! They come from the link-local range (RFC 3927), where no route of an operator leads; the kernel forwards it all
//! the same, and every packet is translated to and from them.

use model::net::Ipv4Cidr;
use std::net::Ipv4Addr;

/// First of the candidates, 169.254.64.0; the gateway's 169.254.1.1 and the metadata address are outside.
const FIRST: u32 = 0xa9fe_4000;
/// Candidates: pairs (RFC 3021) up to 169.254.127.255.
const PAIRS: u32 = 0x4000 / 2;

/// A pair of addresses, a /31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    low: u32,
}

impl Transfer {
    /// The host's end.
    #[must_use]
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.low)
    }

    /// The namespace's end: behind it all its guests stand.
    #[must_use]
    pub fn inner(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.low | 1)
    }

    /// The pair of which this is the host's end; none when it is no candidate.
    #[must_use]
    pub fn of_host(address: Ipv4Addr) -> Option<Self> {
        let bits = address.to_bits();
        (bits & 1 == 0 && (FIRST..FIRST + 2 * PAIRS).contains(&bits)).then_some(Self { low: bits })
    }

    /// Chooses the first free pair, beginning at a place that depends on the link's name, so that two appliances that
    /// start at once do not choose the same. None when all are taken.
    #[must_use]
    pub fn choose(link: &str, taken: &[Ipv4Cidr]) -> Option<Self> {
        // FNV-1a, 32 bits: any spread will do.
        let start = link
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        (0..PAIRS).map(|step| Self { low: FIRST + 2 * ((start % PAIRS + step) % PAIRS) }).find(|pair| {
            !taken.iter().any(|range| range.contains(pair.host()) || range.contains(pair.inner()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_choice_is_free_and_is_read_back(link in "[a-z0-9]{1,4}-[a-z0-9]{2,10}", taken in proptest::collection::vec((0u8..=255, 24u8..=32), 0..20)) {
            let taken: Vec<Ipv4Cidr> = taken
                .into_iter()
                .map(|(third, prefix)| format!("169.254.{third}.0/{prefix}").parse().expect("network"))
                .collect();
            let pair = Transfer::choose(&link, &taken).expect("some are free");
            prop_assert!(!taken.iter().any(|range| range.contains(pair.host()) || range.contains(pair.inner())));
            prop_assert_eq!(Transfer::of_host(pair.host()), Some(pair));
            prop_assert_eq!(Transfer::of_host(pair.inner()), None);
        }
    }

    #[test]
    fn there_is_a_pair_for_every_network() {
        let mut taken: Vec<Ipv4Cidr> = Vec::new();
        for number in 0..=crate::pure::wanted::MAX_NETWORKS {
            let pair = Transfer::choose(&format!("gh-{number}"), &taken).expect("one is free");
            taken.push(format!("{}/31", pair.host()).parse().expect("network"));
        }
    }

    #[test]
    fn nothing_is_chosen_when_all_is_taken() {
        assert_eq!(Transfer::choose("gh", &["169.254.0.0/16".parse().expect("network")]), None);
    }
}
