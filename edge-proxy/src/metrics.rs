//! Counters by reason. Each list of reasons is closed, so none can be forgotten.

use crate::pure::limit::Limit;
use crate::pure::page::Problem;
use crate::times::Times;
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
    /// Handshakes of certificate authorities that saw what they had asked for.
    TlsChallenges = "challenges_tls",
    /// Files of certificate authorities that were served over plain HTTP.
    HttpChallenges = "challenges_http",
    /// Questions of name servers that were answered.
    DnsAnswers = "dns_answers",
    /// Questions about names that are not ours.
    DnsRefused = "dns_refused",
    /// What came to the DNS port and was no question.
    DnsMalformed = "dns_malformed",
    /// DNS connections closed at once: too many are open.
    DnsOverConnections = "dns_refused_over_connections",
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
    /// Parts of the names, or names in them, that cannot be read.
    BadNames = "bad_names",
    /// Connections closed at once: too many of one address are open.
    OverAddress = "refused_over_connections_per_address",
    /// Connections whose client a load balancer told.
    Proxied = "proxy_headers",
    /// Connections of a load balancer's own: health checks, or clients that it does not tell.
    ProxyLocal = "proxy_headers_without_client",
    /// A load balancer's header is missing or wrong.
    BadProxyHeader = "refused_proxy_header",
    /// A load balancer's header did not come in time.
    ProxyHeaderLate = "cut_proxy_header_late",
    /// A load balancer's connection ended inside its header.
    ProxyHeaderCut = "closed_in_proxy_header",
    /// A body in chunks was malformed.
    BadChunks = "cut_chunks_malformed",
    /// A body came slower than is asked.
    BodySlow = "cut_body_slow",
    /// HTTP/2: too many RST_STREAM.
    FloodResets = "cut_http2_resets",
    /// HTTP/2: a header block without an end.
    FloodContinuations = "cut_http2_continuations",
    /// HTTP/2: too many SETTINGS.
    FloodSettings = "cut_http2_settings",
    /// HTTP/2: too many PING.
    FloodPings = "cut_http2_pings",
    /// HTTP/2: too many empty DATA.
    FloodEmptyData = "cut_http2_empty_data",
    /// HTTP/2: too many PRIORITY.
    FloodPriorities = "cut_http2_priorities",
    /// HTTP/2: too many WINDOW_UPDATE.
    FloodWindows = "cut_http2_window_updates",
    /// HTTP/2: too many frames of unknown types.
    FloodUnknown = "cut_http2_unknown_frames",
    /// HTTP/2: requests that were malformed, too large, or given up before they were looked at.
    Untaken = "http2_requests_untaken",
    /// Lines of the access log for which there was no room.
    LinesLost = "access_lines_lost",
    /// Requests whose spans a collector was told of.
    TracesExported = "traces_exported",
    /// Requests whose spans found no room on their way to it.
    TracesNoRoom = "traces_lost_no_room",
    /// Requests whose spans it did not take: it was away, too slow, or refused them.
    TracesNotTaken = "traces_lost_not_taken",
    /// Spans that it refused of those that it took.
    SpansRefused = "spans_refused_by_collector",
    /// Trailer fields that may not go further.
    TrailersRemoved = "trailer_fields_removed",
    /// Messages broken off since their trailers were too large.
    TrailersTooLarge = "cut_trailers_too_large",
    /// Answers broken off since too many or too large ones of 1xx came before them.
    InterimTooMany = "cut_interim_answers",
}

/// Reasons of [`Problem`], each with its counter, in the order of [`problem_index`].
const PROBLEMS: usize = 23;

/// All counters of a process.
pub struct Metrics {
    counts: [AtomicU64; Count::ALL.len()],
    problems: [AtomicU64; PROBLEMS],
    /// Requests by status and time.
    pub times: Times,
}

impl Default for Metrics {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        let problems = std::array::from_fn(|_| zero());
        Self { counts: std::array::from_fn(|_| zero()), problems, times: Times::default() }
    }
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

    /// All counters, by name.
    pub fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = Count::ALL.iter().map(|(count, name)| (*name, self.get(*count)));
        let problems = problem_names().into_iter().zip(&self.problems);
        counts.chain(problems.map(|(name, value)| (name, value.load(Ordering::Relaxed))))
    }

    /// All counters that are not zero, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        self.all().filter(|(_, value)| *value > 0).collect()
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
        Problem::Limited(Limit::AddressRate) => (16, "answered_429_rate_per_address"),
        Problem::Limited(Limit::AddressAtOnce) => (17, "answered_429_at_once_per_address"),
        Problem::Limited(Limit::HostRate) => (18, "answered_429_rate_per_host"),
        Problem::Limited(Limit::HostAtOnce) => (19, "answered_429_at_once_per_host"),
        Problem::Limited(Limit::Keys) => (20, "answered_429_table_full"),
        Problem::VmDeleted => (21, "answered_404_vm_deleted"),
        Problem::Waking => (22, "answered_503_waking"),
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
        Problem::Limited(Limit::AddressRate),
        Problem::Limited(Limit::AddressAtOnce),
        Problem::Limited(Limit::HostRate),
        Problem::Limited(Limit::HostAtOnce),
        Problem::Limited(Limit::Keys),
        Problem::VmDeleted,
        Problem::Waking,
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
