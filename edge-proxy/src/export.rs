//! Spans on their way to a collector: OTLP over HTTP (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>), in batches,
//! to one address. No request waits for it: what finds no room is dropped, and counted.

use crate::metrics::{Count, Metrics};
use crate::pure::spans::{Finished, export};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

/// Requests that wait to be told of, of some 500 bytes each: what a busy house serves in the second of a batch.
const QUEUE: usize = 4096;
/// Requests of one batch: some 500 KiB as bytes, where collectors take 4 MiB or more.
const BATCH: usize = 512;
/// Longest that the first of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);
/// Longest that a collector may take to answer: OTLP's usual bound.
const ANSWER: Duration = Duration::from_secs(10);
/// Tries of one batch. A collector that restarts is back after them; one that is away for longer is not waited for.
const TRIES: u32 = 3;
/// Before the second try; doubled for each further one.
const PAUSE: Duration = Duration::from_secs(1);
/// Most of an answer that is read: it says how many spans were refused, and why.
const MAX_ANSWER_BYTES: usize = 64 << 10;
/// Where collectors take spans (OTLP/HTTP request, default path).
const PATH: &str = "/v1/traces";
/// Of messages in protobuf's binary encoding.
const CONTENT_TYPE: &str = "application/x-protobuf";

/// Where finished requests are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Spans {
    queue: mpsc::Sender<Finished>,
    metrics: Arc<Metrics>,
}

/// The other end.
#[derive(Debug)]
pub struct Exporting {
    queue: mpsc::Receiver<Finished>,
    collector: SocketAddr,
    metrics: Arc<Metrics>,
    /// Whether the collector took the last batch; what changes is told, not each failure.
    works: bool,
}

/// Why a batch was not taken.
#[derive(Debug, Error)]
enum ExportError {
    #[error("no answer within {ANSWER:?}")]
    Late,
    #[error("no connection: {0}")]
    Connect(#[source] std::io::Error),
    #[error("no exchange: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    #[error("the answer cannot be read: {0}")]
    Answer(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is {0}")]
    Status(StatusCode),
}

impl ExportError {
    /// Whether the same batch may be taken later (OTLP/HTTP, failures; the table of retryable codes).
    fn may_pass(&self) -> bool {
        match self {
            Self::Late | Self::Connect(_) | Self::Exchange(_) | Self::Answer(_) => true,
            Self::Request(_) => false,
            Self::Status(status) => matches!(status.as_u16(), 429 | 502..=504),
        }
    }
}

/// The two ends of a way to a collector.
#[must_use]
pub fn new(collector: SocketAddr, metrics: Arc<Metrics>) -> (Spans, Exporting) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let exporting = Exporting { queue: receiver, collector, metrics: Arc::clone(&metrics), works: true };
    (Spans { queue: sender, metrics }, exporting)
}

impl Spans {
    /// Hands a request in, if there is room.
    pub fn tell(&self, finished: Finished) {
        if self.queue.try_send(finished).is_err() {
            self.metrics.count(Count::TracesNoRoom);
        }
    }
}

impl Exporting {
    /// Tells the collector until nobody hands in any more, and all is told.
    pub async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while self.queue.recv_many(&mut batch, BATCH).await > 0 {
            let until = Instant::now() + GATHER;
            while batch.len() < BATCH {
                let room = BATCH - batch.len();
                match timeout_at(until, self.queue.recv_many(&mut batch, room)).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
            self.tell(&batch).await;
            batch.clear();
        }
    }

    async fn tell(&mut self, batch: &[Finished]) {
        let body = Bytes::from(export(batch).encode_to_vec());
        let requests = batch.len() as u64;
        let mut pause = PAUSE;
        for attempt in 1..=TRIES {
            let posted = timeout(ANSWER, post(self.collector, body.clone())).await;
            let error = match posted.unwrap_or(Err(ExportError::Late)) {
                Ok(refused) => {
                    self.metrics.add(Count::TracesExported, requests);
                    self.metrics.add(Count::SpansRefused, refused);
                    self.works = true;
                    return;
                }
                Err(error) => error,
            };
            if !error.may_pass() || attempt == TRIES {
                self.metrics.add(Count::TracesNotTaken, requests);
                if self.works {
                    warn!(collector = %self.collector, %error, "traces are lost until the collector takes them again");
                }
                self.works = false;
                return;
            }
            debug!(collector = %self.collector, %error, "a batch of traces is sent again");
            sleep(pause).await;
            pause *= 2;
        }
    }
}

/// Sends a batch, on a connection of its own; says how many spans the collector did not want.
async fn post(collector: SocketAddr, body: Bytes) -> Result<u64, ExportError> {
    let stream = TcpStream::connect(collector).await.map_err(ExportError::Connect)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the exchange, whose error says what there is to say.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection to the collector ended");
        }
    });
    let request = Request::post(PATH)
        .header(header::HOST, collector.to_string())
        .header(header::CONTENT_TYPE, CONTENT_TYPE)
        .header(header::CONNECTION, "close")
        .body(Full::new(body))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    if !status.is_success() {
        return Err(ExportError::Status(status));
    }
    let body =
        Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await.map_err(ExportError::Answer)?;
    // One that answers in another form, or with nothing, has taken all.
    let told = ExportTraceServiceResponse::decode(body.to_bytes()).unwrap_or_default();
    let refused = told.partial_success.map_or(0, |partial| partial.rejected_spans);
    Ok(u64::try_from(refused).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::trace::{SpanNumber, TraceNumber};

    #[tokio::test]
    async fn what_finds_no_room_is_dropped_at_once_and_counted() {
        let metrics = Arc::<Metrics>::default();
        let (spans, _exporting) = new(([127, 0, 0, 1], 9).into(), Arc::clone(&metrics));
        let finished = Finished {
            trace: TraceNumber::new([1; 16]),
            span: SpanNumber::new([1; 8]),
            parent: None,
            begun: 1,
            ended: 2,
            method: "GET".to_owned(),
            host: None,
            path: "/".to_owned(),
            status: 200,
            version: "2",
            client: [127, 0, 0, 1].into(),
            problem: None,
            vm: None,
            tries: Vec::new(),
        };
        for _ in 0..QUEUE + 3 {
            spans.tell(finished.clone());
        }
        assert_eq!(metrics.get(Count::TracesNoRoom), 3);
    }
}
