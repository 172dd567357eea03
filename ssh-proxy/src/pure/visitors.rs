//! Who is here without a login, and who of them must make room for a new one.
//!
//! Where all places are taken, the oldest of the address that has the most goes, unless the new one comes from there.
//! OpenSSH drops new connections at random (`MaxStartups`, sshd_config(5)), by which who fills the places shuts out
//! others as often as itself; this way an address of which nobody is here always gets in, and who is alone at an address
//! stays as long as another one has two.

use crate::pure::throttle::Source;
use std::collections::{HashMap, VecDeque};
use thiserror::Error;

/// Bounds of who is here.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// Of all addresses.
    pub all: u32,
    /// Of one address.
    pub of_one: u32,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NoPlace {
    /// All are taken, and nobody has more than this address.
    #[error("too many connections without a login")]
    Full,
    /// The address has as many as one may have.
    #[error("too many connections of this address without a login")]
    AddressFull,
}

/// A place that was given.
#[derive(Debug, PartialEq, Eq)]
pub struct Place<T> {
    /// Which one; no other ever has this number.
    pub number: u64,
    /// Who loses theirs for it.
    pub displaced: Option<T>,
}

/// The places that are taken, each with what its holder is known by.
#[derive(Debug)]
pub struct Visitors<T> {
    places: Places,
    /// The oldest first.
    by_source: HashMap<Source, VecDeque<(u64, T)>>,
    taken: u32,
    next: u64,
}

impl<T> Visitors<T> {
    /// Nobody is here.
    #[must_use]
    pub fn new(places: Places) -> Self {
        Self { places, by_source: HashMap::new(), taken: 0, next: 0 }
    }

    /// Somebody comes.
    ///
    /// # Errors
    /// When there is no place and nobody has to make room.
    pub fn come(&mut self, source: Source, visitor: T) -> Result<Place<T>, NoPlace> {
        let own = self.by_source.get(&source).map_or(0, VecDeque::len);
        if own >= usize::try_from(self.places.of_one).unwrap_or(usize::MAX) {
            return Err(NoPlace::AddressFull);
        }
        let displaced =
            if self.taken < self.places.all { None } else { Some(self.displace(own).ok_or(NoPlace::Full)?) };
        let number = self.next;
        self.next += 1;
        self.taken += 1;
        self.by_source.entry(source).or_default().push_back((number, visitor));
        Ok(Place { number, displaced })
    }

    /// Somebody logged in or went. Who was displaced has left already.
    pub fn leave(&mut self, source: Source, number: u64) {
        let Some(here) = self.by_source.get_mut(&source) else { return };
        let Some(at) = here.iter().position(|(other, _)| *other == number) else { return };
        here.remove(at);
        self.taken -= 1;
        if here.is_empty() {
            self.by_source.remove(&source);
        }
    }

    /// Takes the place of the oldest of those who are the most of one address, if those are more than `own`; of several
    /// such addresses the one whose oldest is older. All are looked at: it is a few hundred, and only where all is full.
    fn displace(&mut self, own: usize) -> Option<T> {
        let most = |(source, here): (&Source, &VecDeque<(u64, T)>)| {
            let (oldest, _) = here.front()?;
            Some((here.len(), std::cmp::Reverse(*oldest), *source))
        };
        let (_, _, source) = self
            .by_source
            .iter()
            .filter_map(most)
            .filter(|(count, ..)| *count > own)
            .max_by_key(|(count, oldest, _)| (*count, *oldest))?;
        let here = self.by_source.get_mut(&source)?;
        let (_, visitor) = here.pop_front()?;
        if here.is_empty() {
            self.by_source.remove(&source);
        }
        self.taken -= 1;
        Some(visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn source(number: u32) -> Source {
        IpAddr::from(number.to_be_bytes()).into()
    }

    fn full(counts: &[u32]) -> Visitors<u32> {
        let mut visitors = Visitors::new(Places { all: counts.iter().sum(), of_one: 4 });
        for (number, count) in (0..).zip(counts) {
            for _ in 0..*count {
                let place = visitors.come(source(number), number).expect("room");
                assert_eq!(place.displaced, None);
            }
        }
        visitors
    }

    #[test]
    fn a_new_address_takes_the_place_of_the_oldest_of_the_largest() {
        let mut visitors = full(&[1, 2, 4, 3]);
        let displaced: Vec<_> = (10..16)
            .map(|number| visitors.come(source(number), number).expect("a new address").displaced)
            .collect();
        // 1 2 4 3 → 1 2 3 3 → 1 2 2 3 → 1 2 2 2 → then those with two, the oldest first.
        let expected = [2, 2, 3, 1, 2, 3].map(Some);
        assert_eq!(displaced, expected);
        // Each has one place now: the oldest goes.
        let place = visitors.come(source(20), 20).expect("a new address");
        assert_eq!(place.displaced, Some(0));
        assert_eq!(visitors.taken, 10);
    }

    #[test]
    fn who_has_the_most_displaces_nobody() {
        let mut visitors = full(&[3, 3, 1]);
        assert_eq!(visitors.come(source(0), 0), Err(NoPlace::Full));
        let place = visitors.come(source(2), 2).expect("it has fewer");
        assert_eq!(place.displaced, Some(0));
        let mut visitors = full(&[4, 1]);
        assert_eq!(visitors.come(source(0), 0), Err(NoPlace::AddressFull));
    }

    #[test]
    fn places_are_given_back_once() {
        let mut visitors = full(&[2]);
        let place = visitors.come(source(1), 1).expect("a new address");
        // The first one was displaced: its leaving changes nothing.
        visitors.leave(source(0), 0);
        assert_eq!(visitors.taken, 2);
        visitors.leave(source(0), 1);
        visitors.leave(source(0), 1);
        visitors.leave(source(1), place.number);
        assert_eq!((visitors.taken, visitors.by_source.len()), (0, 0));
    }
}
