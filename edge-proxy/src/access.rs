//! The access log: one line per request, of bounded length, without query strings, which may hold secrets.

use crate::dial::Destination;
use crate::guard::RequestTicket;
use model::host::HostName;
use model::id::{TraceId, VmId};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tracing::info;

/// The log's target: `RUST_LOG=info,access=off` turns it off.
pub const TARGET: &str = "access";
/// Longest path that is logged.
const MAX_PATH_CHARS: usize = 256;
/// Longest method that is logged.
const MAX_METHOD_CHARS: usize = 16;

/// What is known of a request, step by step.
#[derive(Debug)]
pub struct Record {
    /// When its head was whole.
    pub started: Instant,
    /// When the VM's answer began.
    pub answered: Option<Instant>,
    /// When the answer had been written.
    pub finished: Option<Instant>,
    /// The valid name that it asked for.
    pub host: Option<HostName>,
    /// Where it was sent.
    pub destination: Option<Destination>,
    /// Why the gateway answered by itself.
    pub problem: Option<&'static str>,
    /// Its place among its client's and its host's, held while it lasts.
    pub ticket: Option<RequestTicket>,
    trace: Option<TraceId>,
}

/// What is known at the end.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// `h1`, `h2` or `ws`.
    pub protocol: &'static str,
    /// As the client wrote it.
    pub method: &'a str,
    /// The target, query and all; it is cut here.
    pub target: &'a str,
    /// 0 when no answer was begun.
    pub status: u16,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the answer's body.
    pub sent: u64,
}

impl Record {
    /// A request whose head is whole.
    #[must_use]
    pub fn begin() -> Self {
        Self {
            started: Instant::now(),
            answered: None,
            finished: None,
            host: None,
            destination: None,
            problem: None,
            ticket: None,
            trace: None,
        }
    }

    /// The request's trace id, made when it is first asked for.
    pub fn trace(&mut self) -> &TraceId {
        self.trace.get_or_insert_with(|| TraceId::from_random(rand::random()))
    }

    /// Writes the line.
    pub fn write(&self, outcome: &Outcome<'_>) {
        let finished = self.finished.unwrap_or_else(Instant::now);
        let path = outcome.target.split(['?', '#']).next().unwrap_or_default();
        info!(
            target: TARGET,
            client = %outcome.client,
            protocol = outcome.protocol,
            method = cut(outcome.method, MAX_METHOD_CHARS),
            host = self.host.as_ref().map_or("-", HostName::as_str),
            path = cut(path, MAX_PATH_CHARS),
            status = outcome.status,
            received = outcome.received,
            sent = outcome.sent,
            micros = micros(finished.duration_since(self.started)),
            answer_micros = self.answered.map(|at| micros(at.duration_since(self.started))),
            vm = self.destination.as_ref().and_then(Destination::vm).map(VmId::as_str),
            problem = self.problem,
            trace = self.trace.as_ref().map(TraceId::as_str),
        );
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn cut(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(cut("äöü", 2), "äö");
        assert_eq!(cut("abc", 5), "abc");
    }
}
