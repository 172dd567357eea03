//! Counters by reason. Each list of reasons is closed, so none can be forgotten.

use crate::pure::page::Problem;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count { $($(#[$doc])* $variant,)* }

        impl Count {
            const ALL: &'static [(Count, &'static str)] = &[$((Count::$variant, $name),)*];
        }
    };
}

counters! {
    /// Connections accepted on an HTTPS listener.
    Accepted = "accepted",
    /// Connections closed at once: too many are open.
    OverConnections = "refused_over_connections",
    /// `accept` failed.
    AcceptFailed = "accept_failed",
    /// Handshakes done.
    Handshakes = "handshakes",
    /// Handshakes that took up an earlier session.
    Resumed = "handshakes_resumed",
    /// The client's name has no certificate, or it sent none.
    NoCertificate = "refused_no_certificate",
    /// Other failed handshakes.
    HandshakeFailed = "handshake_failed",
    /// The handshake or a head did not come in time.
    HeadLate = "cut_head_late",
    /// The client took nothing of its answer.
    WriteStalled = "cut_write_stalled",
    /// The connection ended inside a head.
    HeadCut = "closed_in_head",
    /// Requests answered, by whomever.
    Requests = "requests",
    /// Of these by HTTP/2.
    Http2 = "requests_http2",
    /// Upgrades that became tunnels.
    Tunnels = "tunnels",
    /// Requests that the client gave up.
    ClientGone = "client_gone",
    /// Requests on plain HTTP.
    Plain = "plain_requests",
    /// New connections to VMs and to the API.
    Dials = "dials",
    /// Requests that used a pooled connection.
    DialsSaved = "dials_saved",
    /// Requests sent again over a new connection, since the pooled one had been closed.
    Retries = "retries",
    /// Names of a client's that only the gateway may write.
    Spoofed = "spoofed_fields_removed",
    /// Certificates that cannot be used.
    BadCertificates = "bad_certificates",
}

/// Reasons of [`Problem`], each with its counter, in the order of [`problem_index`].
const PROBLEMS: usize = 17;

/// All counters of a process.
#[derive(Default)]
pub struct Metrics {
    counts: [AtomicU64; Count::ALL.len()],
    problems: [AtomicU64; PROBLEMS],
}

impl Metrics {
    /// Adds one.
    pub fn count(&self, what: Count) {
        self.add(what, 1);
    }

    /// Adds several.
    pub fn add(&self, what: Count, several: u64) {
        self.counts[what as usize].fetch_add(several, Ordering::Relaxed);
    }

    /// Counts an answer that the gateway gave by itself.
    pub fn problem(&self, problem: Problem) {
        self.problems[problem_index(problem).0].fetch_add(1, Ordering::Relaxed);
    }

    /// How often so far.
    #[must_use]
    pub fn get(&self, what: Count) -> u64 {
        self.counts[what as usize].load(Ordering::Relaxed)
    }

    /// All counters that are not zero, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        let counts = Count::ALL.iter().map(|(count, name)| (*name, self.get(*count)));
        let problems = problem_names().into_iter().zip(&self.problems);
        let problems = problems.map(|(name, value)| (name, value.load(Ordering::Relaxed)));
        counts.chain(problems).filter(|(_, value)| *value > 0).collect()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.snapshot()).finish()
    }
}

fn problem_index(problem: Problem) -> (usize, &'static str) {
    use crate::pure::head::HeadFault;
    match problem {
        Problem::Head(HeadFault::TooLarge) => (0, "answered_431_header_too_large"),
        Problem::Head(HeadFault::Method) => (1, "answered_405_method"),
        Problem::Head(_) => (2, "answered_400_head"),
        Problem::Authority(_) => (3, "answered_400_host"),
        Problem::Misdirected => (4, "answered_421_misdirected"),
        Problem::UnknownHost => (5, "answered_404_unknown_host"),
        Problem::NothingListens => (6, "answered_502_nothing_listens"),
        Problem::VmGone => (7, "answered_502_vm_gone"),
        Problem::VmSilent => (8, "answered_504_vm_silent"),
        Problem::AnswerLate => (9, "answered_504_late"),
        Problem::AnswerBroken => (10, "answered_502_broken"),
        Problem::NetworkAway => (11, "answered_503_network_away"),
        Problem::ApiAway => (12, "answered_503_api_away"),
        Problem::BodyLate => (13, "answered_408_body"),
        Problem::BodyBroken => (14, "answered_400_body"),
        Problem::Internal => (15, "answered_500"),
        Problem::VmDeleted => (16, "answered_404_vm_deleted"),
    }
}

fn problem_names() -> [&'static str; PROBLEMS] {
    use crate::pure::authority::AuthorityFault;
    use crate::pure::head::HeadFault;
    let mut names = [""; PROBLEMS];
    let one_of_each = [
        Problem::Head(HeadFault::TooLarge),
        Problem::Head(HeadFault::Method),
        Problem::Head(HeadFault::Field),
        Problem::Authority(AuthorityFault::Missing),
        Problem::Misdirected,
        Problem::UnknownHost,
        Problem::NothingListens,
        Problem::VmGone,
        Problem::VmSilent,
        Problem::AnswerLate,
        Problem::AnswerBroken,
        Problem::NetworkAway,
        Problem::ApiAway,
        Problem::BodyLate,
        Problem::BodyBroken,
        Problem::Internal,
        Problem::VmDeleted,
    ];
    for problem in one_of_each {
        let (index, name) = problem_index(problem);
        names[index] = name;
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_name_and_place() {
        let metrics = Metrics::default();
        let names: std::collections::BTreeSet<_> =
            Count::ALL.iter().map(|(_, name)| *name).chain(problem_names()).collect();
        assert_eq!(names.len(), Count::ALL.len() + PROBLEMS);
        assert!(!names.contains(""));
        for (place, (count, _)) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, place);
        }
        metrics.count(Count::Dials);
        metrics.problem(Problem::Internal);
        assert_eq!(format!("{metrics:?}"), r#"{"answered_500": 1, "dials": 1}"#);
    }
}
