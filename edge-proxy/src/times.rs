//! How long requests take, and how they are answered: what the counters by reason do not tell.

use feed::figures::Histogram;
use model::figures::Distribution;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// A WebSocket or another upgrade.
    Upgrade,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Upgrade];

    /// As in the access log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::Upgrade => "ws",
        }
    }
}

/// Statuses, by their first digit; those of requests that were not answered first.
pub const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What is told of each request when it is over.
#[derive(Debug, Default)]
pub struct Times {
    answers: [[AtomicU64; CLASSES.len()]; Protocol::ALL.len()],
    whole: [Histogram; Protocol::ALL.len()],
    first: [Histogram; Protocol::ALL.len()],
}

impl Times {
    /// Counts a request: its status (0 when there was none), how long it lasted, and how long until its answer began.
    pub fn note(&self, protocol: Protocol, status: u16, whole: Duration, first: Option<Duration>) {
        let class = usize::from(status / 100).min(CLASSES.len() - 1);
        self.answers[protocol as usize][class].fetch_add(1, Ordering::Relaxed);
        self.whole[protocol as usize].note(whole);
        if let Some(first) = first {
            self.first[protocol as usize].note(first);
        }
    }

    /// Requests by protocol and class of status.
    pub fn answers(&self) -> impl Iterator<Item = (Protocol, &'static str, u64)> {
        Protocol::ALL.into_iter().flat_map(|protocol| {
            let counts = self.answers[protocol as usize].iter();
            CLASSES
                .into_iter()
                .zip(counts)
                .map(move |(class, count)| (protocol, class, count.load(Ordering::Relaxed)))
        })
    }

    /// How long they lasted.
    pub fn whole(&self) -> impl Iterator<Item = (Protocol, Distribution)> {
        Protocol::ALL.into_iter().map(|protocol| (protocol, self.whole[protocol as usize].so_far()))
    }

    /// How long until the VM's answer began.
    pub fn first(&self) -> impl Iterator<Item = (Protocol, Distribution)> {
        Protocol::ALL.into_iter().map(|protocol| (protocol, self.first[protocol as usize].so_far()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_counted_once_where_it_belongs() {
        let times = Times::default();
        let (fast, slow) = (Duration::from_millis(1), Duration::from_secs(61));
        times.note(Protocol::Http2, 204, fast, Some(fast));
        times.note(Protocol::Http2, 0, slow, None);
        times.note(Protocol::Upgrade, 999, fast + Duration::from_micros(1), None);
        let counted: Vec<_> = times.answers().filter(|(_, _, count)| *count > 0).collect();
        let expected =
            [(Protocol::Http2, "none", 1), (Protocol::Http2, "2xx", 1), (Protocol::Upgrade, "5xx", 1)];
        assert_eq!(counted, expected);
        let of = |protocol: Protocol| times.whole().nth(protocol as usize).expect("there").1;
        let http2 = of(Protocol::Http2);
        assert_eq!((http2.buckets[0], http2.over, http2.sum), ((0.001, 1), 1, 61.001));
        assert_eq!(of(Protocol::Upgrade).buckets[1], (0.0025, 1), "a bound belongs to its own bucket");
        let first: u64 =
            times.first().map(|(_, first)| first.buckets.iter().map(|(_, count)| count).sum::<u64>()).sum();
        assert_eq!(first, 1);
        let ordered = Protocol::ALL.iter().enumerate().all(|(place, protocol)| *protocol as usize == place);
        assert!(ordered);
    }
}
