//! Which peer has which addresses ("cryptokey routing"): the longest range that fits decides.

use model::key::PublicKey;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All ranges of all peers.
pub struct Ways {
    peers: HashMap<(IpAddr, u8), PublicKey>,
    /// How many ranges have this length, of IPv4 and of IPv6.
    lengths: [[u32; 129]; 2],
}

impl Default for Ways {
    fn default() -> Self {
        Self { peers: HashMap::new(), lengths: [[0; 129]; 2] }
    }
}

impl Ways {
    /// Gives a range to a peer, and takes it from whoever had it.
    pub fn insert(&mut self, address: IpAddr, length: u8, peer: PublicKey) {
        if self.peers.insert((masked(address, length), length), peer).is_none() {
            self.lengths[usize::from(address.is_ipv6())][usize::from(length)] += 1;
        }
    }

    /// Takes all from a peer.
    pub fn remove(&mut self, peer: &PublicKey) {
        let lengths = &mut self.lengths;
        self.peers.retain(|(address, length), holder| {
            let stays = holder != peer;
            if !stays {
                lengths[usize::from(address.is_ipv6())][usize::from(*length)] -= 1;
            }
            stays
        });
    }

    /// Whose this address is.
    pub fn find(&self, address: IpAddr) -> Option<PublicKey> {
        let most: u8 = if address.is_ipv6() { 128 } else { 32 };
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        (0..=most)
            .rev()
            .filter(|length| lengths[usize::from(*length)] > 0)
            .find_map(|length| self.peers.get(&(masked(address, length), length)).copied())
    }

    /// What a peer has.
    pub fn of(&self, peer: PublicKey) -> impl Iterator<Item = (IpAddr, u8)> {
        self.peers.iter().filter(move |(_, holder)| **holder == peer).map(|(range, _)| *range)
    }
}

fn masked(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & mask).into()
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & mask).into()
        }
    }
}
