//! One client connection over HTTPS, from the handshake to its end.
//!
//! ```text
//!   accepted ─ handshake ─┬─ h2 ────► engine, until it ends or is idle
//!                         └─ http/1.1: wait for a head ─► gate ─┬─► engine ─► wait again
//!                                          ▲                    ├─► tunnel ─► end
//!                                          └────────────────────┴─► refused ─► end
//! ```
//!
//! A connection that waits for its next head holds no engine and no buffer.

use crate::access::{Outcome, Record};
use crate::metrics::Count;
use crate::proxy::Edge;
use crate::pure::flood::PREFACE_BYTES;
use crate::pure::head::{self, Head, HeadFault};
use crate::pure::page::Problem;
use crate::raw;
use crate::stream::{Client, ClientStream};
use crate::times::Protocol;
use crate::tls::Tls;
use crate::tunnel;
use bytes::BytesMut;
use pingora::apps::{HttpServerApp, ServerApp};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

/// What the connections of a process share.
pub struct Door {
    /// The requests' side.
    pub edge: Edge,
    /// The engine, which calls `edge`.
    pub engine: Arc<HttpProxy<Edge>>,
    /// Handshakes.
    pub tls: Tls,
    /// Turns true when the process is asked to stop: no connection is kept after its next answer.
    pub stop: watch::Receiver<bool>,
    /// Turns true when connections without a request are closed.
    pub close_idle: watch::Receiver<bool>,
    /// Turns true when the time to stop is over: tunnels are cut.
    pub cut: watch::Receiver<bool>,
}

/// Serves a connection until it ends.
pub async fn serve(door: Arc<Door>, tcp: TcpStream, address: SocketAddr) {
    let metrics = &door.edge.metrics;
    metrics.count(Count::Accepted);
    let settings = &door.edge.settings;
    let deadline = Instant::now() + settings.head_wait;
    // Boxed apart, so that the connection does not hold the handshake's state for all its life.
    let shaken = timeout_at(deadline, Box::pin(door.tls.accept(tcp))).await;
    let Ok(shaken) = shaken else { return metrics.count(Count::HeadLate) };
    let Some((tls, certificate)) = shaken else { return };
    let client = Client { address, certificate, requests: Arc::new(AtomicU64::new(0)) };
    let stream = ClientStream::new(Box::new(tls), client, settings.write_stall, Arc::clone(metrics));
    if stream.speaks_http2() {
        serve_http2(&door, Box::new(stream), deadline).await;
    } else {
        serve_http1(&door, Box::new(stream), deadline).await;
    }
}

async fn serve_http2(door: &Door, mut stream: Box<ClientStream>, deadline: Instant) {
    stream.watch_http2(door.edge.settings.head_wait);
    while stream.waiting().len() < PREFACE_BYTES {
        match timeout_at(deadline, stream.fill()).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false) | Err(_)) => return door.edge.metrics.count(Count::HeadCut),
            Err(_) => return door.edge.metrics.count(Count::HeadLate),
        }
    }
    let over = door.engine.process_new(stream, &door.stop).await;
    debug_assert!(over.is_none(), "a connection of HTTP/2 is not used again");
}

async fn serve_http1(door: &Door, mut stream: Box<ClientStream>, deadline: Instant) {
    let mut first = Some(deadline);
    loop {
        match next_head(door, &mut stream, first.take()).await {
            Next::Head(bytes, head) if head.websocket => {
                return Box::pin(tunnel::serve(&door.edge, stream, &bytes, door.cut.clone())).await;
            }
            Next::Head(bytes, head) => match exchange(door, stream, bytes, head).await {
                Some(again) => stream = again,
                None => return,
            },
            Next::Refused(fault) => return Box::pin(refuse(door, stream, fault)).await,
            Next::Over(reason) => {
                if let Some(reason) = reason {
                    door.edge.metrics.count(reason);
                }
                return stream.close().await;
            }
        }
    }
}

/// What comes next on a connection.
enum Next {
    Head(BytesMut, Head),
    Refused(HeadFault),
    Over(Option<Count>),
}

/// Waits for a whole head: for its first byte as long as the connection may idle, then until its deadline.
async fn next_head(door: &Door, stream: &mut ClientStream, first: Option<Instant>) -> Next {
    let settings = &door.edge.settings;
    let mut deadline = first;
    let mut looked_at = 0;
    stream.open();
    loop {
        while looked_at == 0 && stream.waiting().starts_with(b"\r\n") {
            // Some clients end a body with a line end too many (RFC 9112 section 2.2).
            drop(stream.take(2));
        }
        match head::find_end(stream.waiting(), looked_at) {
            Err(fault) => return Next::Refused(fault),
            Ok(Some(length)) if length <= settings.max_head_bytes => return judge(stream.take(length)),
            Ok(None) if stream.waiting().len() <= settings.max_head_bytes => {}
            Ok(_) => return Next::Refused(HeadFault::TooLarge),
        }
        looked_at = stream.waiting().len();
        if looked_at > 0 && deadline.is_none() {
            deadline = Some(Instant::now() + settings.head_wait);
        }
        let until = deadline.unwrap_or_else(|| Instant::now() + settings.keepalive);
        match more(door, stream, until, looked_at == 0).await {
            More::Some => {}
            More::Late if deadline.is_some() => return Next::Over(Some(Count::HeadLate)),
            More::End if looked_at > 0 => return Next::Over(Some(Count::HeadCut)),
            More::Late | More::End => return Next::Over(None),
        }
    }
}

enum More {
    Some,
    End,
    Late,
}

async fn more(door: &Door, stream: &mut ClientStream, until: Instant, idle: bool) -> More {
    let mut stop = door.close_idle.clone();
    let stopped = async {
        // An error means that nobody is left to ask for a stop.
        if stop.wait_for(|stop| *stop).await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        biased;
        filled = timeout_at(until, stream.fill()) => match filled {
            Ok(Ok(true)) => More::Some,
            Ok(Ok(false) | Err(_)) => More::End,
            Err(_) => More::Late,
        },
        () = stopped, if idle => More::End,
    }
}

fn judge(bytes: BytesMut) -> Next {
    match head::judge(&bytes) {
        Ok(head) => Next::Head(bytes, head),
        Err(fault) => Next::Refused(fault),
    }
}

/// One request and its answer, by the engine. Gives the stream back when it is good for another.
async fn exchange(
    door: &Door,
    mut stream: Box<ClientStream>,
    bytes: BytesMut,
    head: Head,
) -> Option<Box<ClientStream>> {
    stream.begin(head.framing);
    let mut session = ServerSession::new_http1(stream as Stream);
    session.set_keepalive(if *door.stop.borrow() { None } else { Some(0) });
    session.set_pipelined_prefix(bytes);
    let (stream, _kept_for_the_next) = door.engine.process_new_http(session, &door.stop).await?.consume();
    let stream = stream.into_any().downcast::<ClientStream>();
    debug_assert!(stream.is_ok(), "the engine gives back what it was given");
    // What is left of a body must never be read as a head.
    stream.ok().filter(|stream| stream.is_between_requests())
}

async fn refuse(door: &Door, mut stream: Box<ClientStream>, fault: HeadFault) {
    let mut record = Record::begin();
    let head = stream.waiting().to_vec();
    let page = door.edge.page(Problem::Head(fault), &mut record, &head);
    if let Err(error) = raw::write_page(&mut stream, &page).await {
        debug!(%error, "the client did not take the answer");
    }
    door.edge.metrics.count(Count::Requests);
    record.finished = Some(std::time::Instant::now());
    let outcome = Outcome {
        client: stream.client().address.ip(),
        protocol: Protocol::Http1,
        version: "1.1",
        method: "-",
        target: "-",
        status: page.status,
        received: 0,
        sent: page.body.len() as u64,
    };
    door.edge.log.note(&record, &outcome);
    stream.close().await;
}
