//! The access log: one line per request, of bounded length, without query strings, which may hold secrets. Who serves
//! requests never waits for the disk.

use crate::attempts::{Attempts, Clock};
use crate::dial::Destination;
use crate::export::Spans;
use crate::guard::RequestTicket;
use crate::metrics::{Count, Metrics};
use crate::pure::spans::Finished;
use crate::pure::trace::{SpanNumber, Told, TraceNumber};
use crate::times::Protocol;
use feed::lines::Writer;
use http::HeaderMap;
use model::host::HostName;
use model::id::{TraceId, VmId};
use model::ratio::Ratio;
use serde::Serialize;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What its files are called.
pub const NAME: &str = "access";
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
    answer_id: Option<TraceId>,
    trace: Option<Told>,
    /// Of a request whose spans are recorded.
    attempts: Option<Attempts>,
}

/// What is known at the end.
#[derive(Clone, Copy, Debug)]
pub struct Outcome<'a> {
    /// The client's address.
    pub client: IpAddr,
    /// How it came.
    pub protocol: Protocol,
    /// Of HTTP.
    pub version: &'static str,
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

/// Takes what is known of requests that are over. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Log {
    /// None: nothing is logged, but all is counted.
    pub lines: Option<Writer>,
    /// None: no spans are recorded.
    pub spans: Option<Spans>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

#[derive(Serialize)]
struct Line<'a> {
    /// When the request was over, in milliseconds since 1970 UTC.
    at_ms: u64,
    client: IpAddr,
    protocol: &'static str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    status: u16,
    received: u64,
    sent: u64,
    micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_micros: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'static str>,
    /// The id of the answer, as the page shows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer_id: Option<&'a str>,
    /// The trace that the VM was told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
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
            answer_id: None,
            trace: None,
            attempts: None,
        }
    }

    /// The id of an answer of the gateway's own, made when it is first asked for.
    pub fn answer_id(&mut self) -> &TraceId {
        self.answer_id.get_or_insert_with(|| TraceId::from_random(rand::random()))
    }

    /// The trace that the request belongs to, as its fields say it: found, or begun, when it is first asked for, so that
    /// a second try tells of the same one. `roots` is the part of traces that is recorded of those that begin here; none:
    /// no spans are.
    pub fn trace(&mut self, headers: &HeaderMap, roots: Option<Ratio>) -> &Told {
        let trace = self.trace.get_or_insert_with(|| {
            let told = Told::of(headers, rand::random(), roots);
            self.attempts = (roots.is_some() && told.sampled()).then(Attempts::default);
            told
        });
        &*trace
    }

    /// The request is tried with its destination.
    pub fn tried(&mut self) {
        self.attempts.iter_mut().for_each(Attempts::begin);
    }

    /// It has a connection there.
    pub fn connected(&mut self, reused: bool) {
        self.attempts.iter_mut().for_each(|attempts| attempts.connected(reused));
    }

    /// The try has come to nothing.
    pub fn try_failed(&mut self, why: &'static str) {
        self.attempts.iter_mut().for_each(|attempts| attempts.failed(why));
    }

    /// The span of the try that is under way, when it is recorded.
    #[must_use]
    pub fn try_span(&self) -> Option<SpanNumber> {
        self.attempts.as_ref()?.span()
    }

    /// What a collector is to be told; nothing when no spans are recorded.
    fn spans(&self, outcome: &Outcome<'_>, finished: Instant) -> Option<Finished> {
        let (trace, attempts) = (self.trace.as_ref()?, self.attempts.as_ref()?);
        let clock = Clock::look();
        let to = self.destination.as_ref();
        Some(Finished {
            trace: trace.number(),
            span: trace.own(),
            parent: trace.client(),
            begun: clock.at(self.started),
            ended: clock.at(finished),
            method: cut(outcome.method, MAX_METHOD_CHARS).to_owned(),
            host: self.host.as_ref().map(ToString::to_string),
            path: path(outcome.target).to_owned(),
            status: outcome.status,
            version: outcome.version,
            client: outcome.client,
            problem: self.problem,
            vm: to.and_then(|to| Some((to.vm()?.to_string(), to.port()))),
            tries: attempts.tries(finished, clock),
        })
    }
}

impl Log {
    /// Counts a request that is over, and writes its line.
    pub fn note(&self, record: &Record, outcome: &Outcome<'_>) {
        let finished = record.finished.unwrap_or_else(Instant::now);
        let whole = finished.duration_since(record.started);
        let first = record.answered.map(|at| at.duration_since(record.started));
        self.metrics.times.note(outcome.protocol, outcome.status, whole, first);
        if let Some(spans) = &self.spans
            && let Some(finished) = record.spans(outcome, finished)
        {
            spans.tell(finished);
        }
        let Some(lines) = &self.lines else { return };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let destination = record.destination.as_ref();
        let line = Line {
            at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            client: outcome.client,
            protocol: outcome.protocol.as_str(),
            method: cut(outcome.method, MAX_METHOD_CHARS),
            host: record.host.as_ref().map_or("-", HostName::as_str),
            path: path(outcome.target),
            status: outcome.status,
            received: outcome.received,
            sent: outcome.sent,
            micros: micros(whole),
            answer_micros: first.map(micros),
            vm: destination.and_then(Destination::vm).map(VmId::as_str),
            port: destination.map(Destination::port).filter(|port| *port != 0),
            problem: record.problem,
            answer_id: record.answer_id.as_ref().map(TraceId::as_str),
            trace: record.trace.as_ref().map(Told::number).as_ref().map(TraceNumber::to_string),
        };
        if !lines.write(&line) {
            self.metrics.count(Count::LinesLost);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Without the query, and of bounded length.
fn path(target: &str) -> &str {
    cut(target.split(['?', '#']).next().unwrap_or_default(), MAX_PATH_CHARS)
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

    #[tokio::test]
    async fn a_line_has_no_query_and_what_finds_no_room_is_counted() {
        let place = tempfile::tempdir().expect("folder");
        let (writer, writing) = feed::lines::new(place.path().to_owned(), NAME, 1 << 20);
        let log = Log { lines: Some(writer), spans: None, metrics: Arc::default() };
        let mut record = Record::begin();
        record.host = Some("a.style.dev".parse().expect("name"));
        let trace = record.trace(&HeaderMap::new(), None).number().to_string();
        let outcome = Outcome {
            client: IpAddr::from([192, 0, 2, 1]),
            protocol: Protocol::Http2,
            version: "2",
            method: "GET",
            target: "/path?token=secret#part",
            status: 200,
            received: 1,
            sent: 2,
        };
        log.note(&record, &outcome);
        // Nobody writes yet: the queue fills up.
        let mut lost = 0;
        while lost == 0 {
            log.note(&record, &outcome);
            lost = log.metrics.get(Count::LinesLost);
        }
        drop(log);
        writing.run().await;
        let text = std::fs::read_to_string(place.path().join("access.jsonl")).expect("lines");
        let line: serde_json::Value = serde_json::from_str(text.lines().next().expect("one")).expect("json");
        assert_eq!(line["path"], "/path");
        assert_eq!(
            (line["trace"].as_str(), line["host"].as_str()),
            (Some(trace.as_str()), Some("a.style.dev"))
        );
        assert!(!text.contains("secret"));
    }
}
