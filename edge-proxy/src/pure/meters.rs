//! How much one client, or one host, takes: things at once, and things per second, in a table of bounded size.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use thiserror::Error;

/// Most keys of a table: four times the connections that a gateway has at most, so that those in use always fit.
pub const MAX_KEYS: usize = 65_536;
/// Keys that are looked at for one that is not in use, when the table is full. If most are idle, one of them is.
const LOOK_AT: usize = 64;

/// What is allowed of a key. Zero is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Things at once.
    pub at_once: u32,
    /// Things begun per second, on average; so many may also begin at once.
    pub per_second: u32,
}

impl Allowance {
    /// Whether anything is bounded.
    #[must_use]
    pub fn is_bounded(self) -> bool {
        self.at_once > 0 || self.per_second > 0
    }
}

/// Why one more is refused. Nothing was changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Over {
    /// Too many at once.
    #[error("too many at once")]
    AtOnce,
    /// Too many in a short time.
    #[error("too many in a short time")]
    Rate,
    /// The table is full of keys in use.
    #[error("too many keys at once")]
    Keys,
}

/// The network that counts as one client: an IPv4 address, or the /64 of an IPv6 one, of which a subscriber has all.
#[must_use]
pub fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// A table of keys. Times count from any one start.
#[derive(Debug)]
pub struct Meters<K> {
    allowance: Allowance,
    keys: HashMap<K, Meter>,
    most: usize,
}

/// One key's.
#[derive(Clone, Copy, Debug)]
struct Meter {
    now: u32,
    /// When a thing may begin at the earliest, if no other begins: moves on by a step for each.
    due: Duration,
}

impl<K: Eq + Hash + Clone> Meters<K> {
    /// An empty table of at most `most` keys.
    #[must_use]
    pub fn new(allowance: Allowance, most: usize) -> Self {
        Self { allowance, keys: HashMap::new(), most }
    }

    /// Counts one more of a key's; [`Self::end`] must follow.
    ///
    /// # Errors
    /// When a bound is reached.
    pub fn begin(&mut self, key: &K, now: Duration) -> Result<(), Over> {
        if !self.keys.contains_key(key) && self.keys.len() >= self.most {
            self.evict()?;
        }
        let Allowance { at_once, per_second } = self.allowance;
        let meter = self.keys.entry(key.clone()).or_insert(Meter { now: 0, due: Duration::ZERO });
        if at_once > 0 && meter.now >= at_once {
            return Err(Over::AtOnce);
        }
        if per_second > 0 {
            let step = Duration::from_secs(1) / per_second;
            let due = meter.due.max(now);
            // A second's worth may begin at once.
            if due + step > now + Duration::from_secs(1) {
                return Err(Over::Rate);
            }
            meter.due = due + step;
        }
        meter.now += 1;
        Ok(())
    }

    /// One of a key's has ended.
    pub fn end(&mut self, key: &K) {
        let Some(meter) = self.keys.get_mut(key) else { return };
        meter.now = meter.now.saturating_sub(1);
        if meter.now == 0 && self.allowance.per_second == 0 {
            self.keys.remove(key);
        }
    }

    /// How many keys are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Forgets a key that is not in use. Its rate begins anew, which gives it a second's worth at most.
    fn evict(&mut self) -> Result<(), Over> {
        let mut some = self.keys.iter().take(LOOK_AT);
        let idle = some.find(|(_, meter)| meter.now == 0).map(|(key, _)| key.clone());
        self.keys.remove(&idle.ok_or(Over::Keys)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: Duration = Duration::from_secs(100);

    fn meters(at_once: u32, per_second: u32, most: usize) -> Meters<u32> {
        Meters::new(Allowance { at_once, per_second }, most)
    }

    #[test]
    fn a_bound_at_once_is_the_keys_own() {
        let mut table = meters(2, 0, 10);
        assert_eq!(
            [1, 1, 1, 2].map(|key| table.begin(&key, START)),
            [Ok(()), Ok(()), Err(Over::AtOnce), Ok(())]
        );
        table.end(&1);
        assert_eq!(table.begin(&1, START), Ok(()));
        for key in [1, 1, 2] {
            table.end(&key);
        }
        assert!(table.is_empty(), "nothing is kept of keys that have nothing");
    }

    #[test]
    fn a_rate_lets_a_second_begin_at_once_and_then_so_many_per_second() {
        let mut table = meters(0, 10, 10);
        let begun = |table: &mut Meters<u32>, at| (0..100).filter(|_| table.begin(&1, at).is_ok()).count();
        assert_eq!(begun(&mut table, START), 10);
        assert_eq!(table.begin(&1, START), Err(Over::Rate));
        assert_eq!(begun(&mut table, START + Duration::from_millis(500)), 5);
        assert_eq!(begun(&mut table, START + Duration::from_secs(60)), 10, "more is never saved up");
        let mut none = meters(0, 0, 10);
        assert_eq!(begun(&mut none, START), 100);
    }

    #[test]
    fn a_full_table_forgets_who_is_idle_and_never_who_is_not() {
        let mut table = meters(0, 5, 3);
        for key in 0..3 {
            table.begin(&key, START).expect("room");
        }
        assert_eq!(table.begin(&3, START), Err(Over::Keys));
        table.end(&1);
        assert_eq!((table.begin(&3, START), table.len()), (Ok(()), 3));
        assert!(!table.keys.contains_key(&1));
    }

    #[test]
    fn a_subscriber_is_one_client() {
        let key = |text: &str| client_key(text.parse().expect("address"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.2"), key("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn the_bounds_hold_whatever_comes(
            steps in proptest::collection::vec((0u32..8, any::<bool>(), 0u64..300), 1..300),
        ) {
            let mut table = meters(3, 7, 5);
            let mut open = [0u32; 8];
            let mut now = START;
            for (key, ends, passed) in steps {
                now += Duration::from_millis(passed);
                let place = key as usize;
                if ends {
                    if open[place] > 0 {
                        open[place] -= 1;
                        table.end(&key);
                    }
                } else if table.begin(&key, now).is_ok() {
                    open[place] += 1;
                }
                prop_assert!(open[place] <= 3 && table.len() <= 5);
                prop_assert!(open.iter().filter(|count| **count > 0).count() <= table.len());
            }
        }
    }
}
