//! What was tried with a VM for a request whose trace is recorded.

use crate::pure::spans::Try;
use crate::pure::trace::SpanNumber;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The tries of a request; the engine makes two at most.
#[derive(Debug, Default)]
pub struct Attempts(Vec<Attempt>);

#[derive(Debug)]
struct Attempt {
    span: SpanNumber,
    connect: SpanNumber,
    begun: Instant,
    connected: Option<Instant>,
    reused: bool,
    failed: Option<&'static str>,
}

/// Instants as times of day, by one look at both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    now: Instant,
    nanoseconds: u64,
}

impl Clock {
    /// Looks at both.
    #[must_use]
    pub fn look() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { now: Instant::now(), nanoseconds: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX) }
    }

    /// Nanoseconds since 1970 UTC at an instant that has been.
    #[must_use]
    pub fn at(&self, instant: Instant) -> u64 {
        let ago = self.now.saturating_duration_since(instant).as_nanos();
        self.nanoseconds.saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
    }
}

impl Attempts {
    /// Another one begins.
    pub fn begin(&mut self) {
        self.0.push(Attempt {
            span: SpanNumber::new(rand::random()),
            connect: SpanNumber::new(rand::random()),
            begun: Instant::now(),
            connected: None,
            reused: false,
            failed: None,
        });
    }

    /// The latest has a connection, which may have served others.
    pub fn connected(&mut self, reused: bool) {
        if let Some(attempt) = self.0.last_mut() {
            (attempt.connected, attempt.reused) = (Some(Instant::now()), reused);
        }
    }

    /// The latest has come to nothing. The first reason is the one.
    pub fn failed(&mut self, why: &'static str) {
        if let Some(attempt) = self.0.last_mut() {
            attempt.failed.get_or_insert(why);
        }
    }

    /// The span of the latest.
    #[must_use]
    pub fn span(&self) -> Option<SpanNumber> {
        self.0.last().map(|attempt| attempt.span)
    }

    /// All of them, of a request that was over at `finished`. Each lasts until the next one begins.
    #[must_use]
    pub fn tries(&self, finished: Instant, clock: Clock) -> Vec<Try> {
        let ends = self.0.iter().skip(1).map(|next| next.begun).chain([finished]);
        let tries = self.0.iter().zip(ends).map(|(attempt, ended)| Try {
            span: attempt.span,
            connect: attempt.connect,
            begun: clock.at(attempt.begun),
            connected: attempt.connected.map(|at| clock.at(at)),
            reused: attempt.reused,
            ended: clock.at(ended),
            failed: attempt.failed,
        });
        tries.collect()
    }
}
