//! Bounds in time and space, one place for all of them.

use model::config::{EdgeGuard, TraceExport};
use model::host::HostName;
use model::range::IpRange;
use std::time::Duration;

/// The bounds of a running edge-proxy. [`Settings::new`] gives what a real one uses.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Port that redirects name.
    pub public_https_port: u16,
    /// The name of this host's own name server, when it has one.
    pub dns_host: Option<HostName>,
    /// Open client connections at once.
    pub max_connections: usize,
    /// TLS handshake and first head together, and each later head from its first byte. Slow clients are cut here:
    /// a phone on a bad line sends 2 KiB in a second or two, and 15 s is ten times that.
    pub head_wait: Duration,
    /// Largest head. Cookies of 8 KiB and long tokens fit several times.
    pub max_head_bytes: usize,
    /// A connection without a request in progress: as long as browsers keep theirs.
    pub keepalive: Duration,
    /// Between two pieces of a request's body. Bodies have no limit of size, since they stream with back-pressure and
    /// are never held; what a VM does not want, it does not read.
    pub body_wait: Duration,
    /// A client that takes nothing of its answer.
    pub write_stall: Duration,
    /// From the request to the head of the VM's answer, and between two pieces of the answer: Envoy's idle time.
    pub answer_wait: Duration,
    /// The same for server-sent events and gRPC, whose pauses are their nature.
    pub stream_wait: Duration,
    /// For a VM that is waking to accept a connection, before a person who looks at a page is shown another one that
    /// looks again. Everybody else is held as long as vpc waits.
    pub page_after: Duration,
    /// A pooled connection to a VM. Under the 5 s after which Node and uvicorn close theirs, so that a request seldom
    /// meets a closing one.
    pub upstream_idle: Duration,
    /// Pooled connections to all VMs together.
    pub upstream_pool: usize,
    /// What one client address, and one host, may take.
    pub guard: EdgeGuard,
    /// For so long a request's body may come at any pace; then [`EdgeGuard::body_bytes_per_second`] is asked.
    pub body_grace: Duration,
    /// Whose connections begin with a PROXY header.
    pub proxy_protocol_from: Vec<IpRange>,
    /// For that header, which a balancer sends at once.
    pub proxy_header_wait: Duration,
    /// From the request to stop until what is still open is cut.
    pub drain: Duration,
    /// Largest file of the access log, in bytes. Zero: nothing is logged.
    pub access_log_bytes: u64,
    /// Where spans of requests are told, and which part of the traces that begin here is recorded.
    pub traces: Option<TraceExport>,
    /// After another process has taken over: for long downloads and WebSockets to end. A further handover, or a stop,
    /// does not wait for it.
    pub handover_drain: Duration,
    /// Between two reports of the counters.
    pub report_every: Duration,
}

impl Settings {
    /// The bounds of a real edge-proxy.
    #[must_use]
    pub fn new(public_https_port: u16, max_connections: usize) -> Self {
        Self {
            public_https_port,
            dns_host: None,
            max_connections,
            head_wait: Duration::from_secs(15),
            max_head_bytes: 64 << 10,
            keepalive: Duration::from_secs(75),
            body_wait: Duration::from_secs(60),
            write_stall: Duration::from_secs(60),
            answer_wait: Duration::from_secs(300),
            stream_wait: Duration::from_secs(3600),
            page_after: Duration::from_secs(2),
            upstream_idle: Duration::from_secs(4),
            upstream_pool: 8192,
            guard: EdgeGuard::default(),
            body_grace: Duration::from_secs(60),
            proxy_protocol_from: Vec::new(),
            proxy_header_wait: Duration::from_secs(5),
            drain: Duration::from_secs(10),
            access_log_bytes: 0,
            traces: None,
            handover_drain: Duration::from_secs(600),
            report_every: Duration::from_secs(60),
        }
    }
}
