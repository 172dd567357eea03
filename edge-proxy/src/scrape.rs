//! What a Prometheus server asks for: all counters, at a listener of their own that faces nobody else.

use crate::metrics::Metrics;
use crate::pure::head;
use crate::pure::page::Page;
use crate::raw;
use crate::table::Tables;
use crate::times::Protocol;
use model::figures::{CONTENT_TYPE, Figures};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Askers at once: a server or two, and a person.
const MAX_AT_ONCE: usize = 8;
/// For a whole exchange: a document of some 20 KiB.
const WAIT: Duration = Duration::from_secs(10);
/// Largest request.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Wait after `accept` failed.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Whence the figures come. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The table in force.
    pub tables: Tables,
    /// Places for client connections, free ones and all.
    pub open: Arc<Semaphore>,
    /// How many there are of them.
    pub most_open: usize,
    /// When the process began.
    pub started: SystemTime,
}

impl Source {
    /// All that is known now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let mut figures = Figures::default();
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        figures.gauges("gatehouse_edge_info", "What runs.", [(version, 1_u64)]);
        let began = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        figures.gauge(
            "gatehouse_edge_start_time_seconds",
            "When it was started, since the Unix epoch.",
            began.as_secs(),
        );
        self.of_requests(&mut figures);
        figures.counters(
            "gatehouse_edge_events_total",
            "What happened, by name; docs/edge.md says what each one is.",
            self.metrics.all().map(|(name, count)| (vec![("event", name)], count)),
        );
        let open = self.most_open.saturating_sub(self.open.available_permits()) as u64;
        figures.gauge("gatehouse_edge_connections", "Client connections that are open.", open);
        let table = self.tables.now();
        let certificates = table.certificates.len() as u64;
        figures.gauge("gatehouse_edge_routes", "Names that lead somewhere.", table.routes() as u64);
        figures.gauge("gatehouse_edge_certificates", "Certificates that can be shown.", certificates);
        figures.gauge("gatehouse_edge_view_generation", "The decision in force.", table.generation.0);
        figures
    }

    fn of_requests(&self, figures: &mut Figures) {
        let times = &self.metrics.times;
        let by = |protocol: Protocol| ("protocol", protocol.as_str());
        figures.counters(
            "gatehouse_edge_requests_total",
            "Requests that are over, by the class of their status; none: the client got no answer.",
            times.answers().map(|(protocol, class, count)| (vec![by(protocol), ("class", class)], count)),
        );
        figures.histograms(
            "gatehouse_edge_request_seconds",
            "From a request's head to the end of its answer.",
            times.whole().map(|(protocol, took)| (vec![by(protocol)], took)),
        );
        figures.histograms(
            "gatehouse_edge_first_byte_seconds",
            "From a request's head to the beginning of the VM's answer, with what a wake took.",
            times.first().map(|(protocol, took)| (vec![by(protocol)], took)),
        );
    }
}

/// Answers for ever.
pub async fn serve(source: Source, listener: TcpListener) {
    let places = Arc::new(Semaphore::new(MAX_AT_ONCE));
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                // Over the bound it is closed at once.
                let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
                let source = source.clone();
                tokio::spawn(async move {
                    match timeout(WAIT, exchange(&source, tcp)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%error, "an asker for metrics went away"),
                        Err(_) => debug!("an asker for metrics was too slow"),
                    }
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "metrics cannot be asked for");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn exchange(source: &Source, mut tcp: TcpStream) -> io::Result<()> {
    let mut bytes = Vec::with_capacity(1024);
    let page = loop {
        match head::find_end(&bytes, 0) {
            Ok(Some(length)) => break answer(source, &bytes[..length]),
            Ok(None) if bytes.len() < MAX_HEAD_BYTES => {}
            Ok(None) | Err(_) => break said(400, "this is no request\n".to_owned()),
        }
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    raw::write_page(&mut tcp, &page).await?;
    tcp.shutdown().await
}

fn answer(source: &Source, bytes: &[u8]) -> Page {
    let mut fields = [httparse::EMPTY_HEADER; head::MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    if request.parse(bytes).is_err() {
        return said(400, "this is no request\n".to_owned());
    }
    let path = request.path.unwrap_or_default().split('?').next().unwrap_or_default();
    match (request.method, path) {
        (Some("GET"), "/metrics") => {
            let mut page = said(200, source.figures().text());
            page.fields = vec![("content-type", CONTENT_TYPE.to_owned())];
            page
        }
        (Some("GET"), _) => said(404, "metrics are at /metrics\n".to_owned()),
        _ => said(405, "metrics are asked for with GET\n".to_owned()),
    }
}

fn said(status: u16, text: String) -> Page {
    let fields = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
    Page { status, fields, body: text.into() }
}
