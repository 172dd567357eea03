//! How often who failed to log in, and whether they are heard now. As OpenSSH's `PerSourcePenalties`
//! (sshd_config(5)): each failure costs an address some seconds, and above a sum it is not heard until they are over.

use model::id::VmId;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// What a connection costs in which an attempt failed.
const FAILED: Duration = Duration::from_secs(5);
/// What a connection costs that went away, or was silent, before it tried.
const NOTHING_TRIED: Duration = Duration::from_secs(1);
/// Below this sum an address is heard: somebody who mistypes is not shut out.
const HEARD_BELOW: Duration = Duration::from_secs(15);
/// No sum is more than this, so nobody is shut out for longer.
const MOST: Duration = Duration::from_secs(600);
/// Addresses that are remembered, of some 40 bytes. Over it those whose time is over go, and else nobody is added: to
/// forget is better than to shut everyone out.
const MAX_ADDRESSES: usize = 65_536;
/// Failures at one VM, whoever's, that are answered at the usual pace; over it each further one ends its connection. The
/// bucket fills again by one a second. Good tokens and keys are never refused by this.
const VM_FAILURES: u32 = 60;
/// VMs (or what was named as one) that are remembered; as [`MAX_ADDRESSES`].
const MAX_VMS: usize = 16_384;

/// Who comes: an IPv4 address, or the /64 of an IPv6 address, which is what one household or host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source(IpAddr);

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            v4 @ IpAddr::V4(_) => v4,
        })
    }
}

/// What a failure leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The usual answer, after the usual time.
    Answer,
    /// The end of the connection.
    Cut,
}

/// Sums by address, and failures by VM.
#[derive(Debug, Default)]
pub struct Throttle {
    /// When an address' sum is used up.
    until: HashMap<Source, Instant>,
    /// When a VM's bucket is full again.
    full: HashMap<VmId, Instant>,
}

impl Throttle {
    /// Whether who comes from there is heard.
    #[must_use]
    pub fn hears(&self, source: Source, now: Instant) -> bool {
        self.until.get(&source).is_none_or(|until| until.saturating_duration_since(now) < HEARD_BELOW)
    }

    /// An attempt failed, at this VM if one was named. `source` is who pays for it: the first of a connection is paid for.
    pub fn failed(&mut self, source: Option<Source>, vm: Option<&VmId>, now: Instant) -> Verdict {
        if let Some(source) = source {
            self.charge(source, FAILED, now);
        }
        let Some(vm) = vm else { return Verdict::Answer };
        if !self.full.contains_key(vm) && self.full.len() >= MAX_VMS {
            self.full.retain(|_, full| *full > now);
            if self.full.len() >= MAX_VMS {
                return Verdict::Answer;
            }
        }
        let full = self.full.entry(vm.clone()).or_insert(now);
        let next = (*full).max(now) + Duration::from_secs(1);
        if next.saturating_duration_since(now) > Duration::from_secs(VM_FAILURES.into()) {
            return Verdict::Cut;
        }
        *full = next;
        Verdict::Answer
    }

    /// A connection ended before anything was tried.
    pub fn nothing_tried(&mut self, source: Source, now: Instant) {
        self.charge(source, NOTHING_TRIED, now);
    }

    /// A login succeeded: earlier failures were mistakes.
    pub fn succeeded(&mut self, source: Source) {
        self.until.remove(&source);
    }

    fn charge(&mut self, source: Source, cost: Duration, now: Instant) {
        if !self.until.contains_key(&source) && self.until.len() >= MAX_ADDRESSES {
            self.until.retain(|_, until| *until > now);
            if self.until.len() >= MAX_ADDRESSES {
                return;
            }
        }
        let until = self.until.entry(source).or_insert(now);
        *until = ((*until).max(now) + cost).min(now + MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a test needs some instant to count from")]
    fn some_instant() -> Instant {
        Instant::now()
    }

    fn source(text: &str) -> Source {
        text.parse::<IpAddr>().expect("address").into()
    }

    #[test]
    fn a_few_mistakes_are_forgiven_and_many_shut_out_for_a_while() {
        let (mut throttle, start) = (Throttle::default(), some_instant());
        let here = source("192.0.2.1");
        for _ in 0..2 {
            throttle.failed(Some(here), None, start);
        }
        assert!(throttle.hears(here, start));
        throttle.failed(Some(here), None, start);
        assert!(!throttle.hears(here, start) && throttle.hears(source("192.0.2.2"), start));
        assert!(throttle.hears(here, start + Duration::from_secs(1)));
        for _ in 0..1000 {
            throttle.failed(Some(here), None, start);
        }
        assert!(throttle.hears(here, start + MOST), "nobody is shut out for longer than the most");
        throttle.succeeded(here);
        assert!(throttle.hears(here, start));
    }

    #[test]
    fn a_network_of_ipv6_and_a_mapped_address_are_one_source() {
        assert_eq!(source("2001:db8::1"), source("2001:db8::2:3"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    }

    #[test]
    fn a_vm_at_which_many_fail_cuts_them_short_and_recovers() {
        let (mut throttle, start) = (Throttle::default(), some_instant());
        let vm = VmId::from_random([1; 20]);
        let mut fail = |number: u32, now| {
            throttle.failed(Some(Source(IpAddr::from(number.to_be_bytes()))), Some(&vm), now)
        };
        for number in 0..VM_FAILURES {
            assert_eq!(fail(number, start), Verdict::Answer);
        }
        assert_eq!(fail(100, start), Verdict::Cut);
        assert_eq!(fail(101, start + Duration::from_secs(1)), Verdict::Answer);
    }

    #[test]
    fn its_memory_is_bounded() {
        let (mut throttle, start) = (Throttle::default(), some_instant());
        for number in 0..70_000u32 {
            throttle.nothing_tried(Source(IpAddr::from(number.to_be_bytes())), start);
        }
        assert_eq!(throttle.until.len(), MAX_ADDRESSES);
        throttle.nothing_tried(Source(IpAddr::from(70_001u32.to_be_bytes())), start + Duration::from_secs(2));
        assert_eq!(throttle.until.len(), 1);
    }
}
