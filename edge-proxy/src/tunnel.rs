//! WebSockets: one connection of the client's joined to one of the VM's (RFC 6455), for as long as both like.
//!
//! The engine has a race that cuts tunnels right after the upgrade (pingora issue 946), and no hook around it. So an
//! upgrade is made here: hyper asks the VM, and its answer, whatever it is, goes to the client.

use crate::access::{Outcome, Record};
use crate::dial::{Destination, Dialed};
use crate::metrics::Count;
use crate::proxy::Edge;
use crate::pure::frames::{FrameTracker, GOING_AWAY};
use crate::pure::head::MAX_FIELDS;
use crate::pure::page::Problem;
use crate::raw;
use crate::stream::{Client, ClientStream};
use crate::times::Protocol;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use pingora::http::RequestHeader;
use std::io;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::debug;

/// Copied at once in each direction. Two of them are what an idle WebSocket costs besides its sockets.
const COPY_BYTES: usize = 8 << 10;

/// A side that goes on talking to one that has closed. RFC 6455 section 7.1.1 expects an answer at once.
const HALF_CLOSED: Duration = Duration::from_secs(10);

/// Serves one request to upgrade; the connection is over afterwards.
pub async fn serve(edge: &Edge, mut stream: Box<ClientStream>, head: &[u8], cut: watch::Receiver<bool>) {
    let mut record = Record::begin();
    edge.metrics.count(Count::Requests);
    stream.open();
    let client = stream.client().as_ref().clone();
    let mut done = Done::default();
    match ask(edge, &client, head, &mut record).await {
        Err(problem) => {
            record.try_failed(problem.code());
            let page = edge.page(problem, &mut record, head);
            done.status = page.status;
            done.sent = page.body.len() as u64;
            record.finished = Some(Instant::now());
            if let Err(error) = raw::write_page(&mut stream, &page).await {
                debug!(%error, "the client did not take the answer");
            }
        }
        Ok(answer) => {
            record.answered = Some(Instant::now());
            done.status = answer.status().as_u16();
            if let Err(error) = pass_on(edge, &mut stream, answer, cut, &mut done).await {
                debug!(%error, "a tunnel ended");
            }
            record.finished = Some(Instant::now());
        }
    }
    stream.close().await;
    let (method, target) = request_line(head);
    let outcome = Outcome {
        client: client.address.ip(),
        protocol: Protocol::Upgrade,
        // No other version has upgrades.
        version: "1.1",
        method,
        target,
        status: done.status,
        received: done.received,
        sent: done.sent,
    };
    edge.log.note(&record, &outcome);
}

/// What passed.
#[derive(Debug, Default)]
struct Done {
    status: u16,
    received: u64,
    sent: u64,
}

/// Asks the VM or the API for the upgrade.
async fn ask(
    edge: &Edge,
    client: &Client,
    head: &[u8],
    record: &mut Record,
) -> Result<Response<Incoming>, Problem> {
    let mut request = parse(head)?;
    let destination = edge.route(client, &request, record)?;
    let host =
        request.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned();
    edge.tell_client(client, &mut request, &host).map_err(|_| Problem::Internal)?;
    record.tried();
    edge.tell_trace(record, &mut request).map_err(|_| Problem::Internal)?;
    let dialed = edge.dialer.dial(&destination).await.map_err(|error| {
        debug!(%error, "no connection for a tunnel");
        error.problem()
    })?;
    record.connected(false);
    let request = to_hyper(&request)?;
    let asked = async {
        match dialed {
            Dialed::Tcp(socket) => send(socket, request).await,
            Dialed::Unix(socket) => send(socket, request).await,
        }
    };
    match timeout(edge.settings.answer_wait, asked).await {
        Err(_) => Err(Problem::AnswerLate),
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            debug!(%error, "a VM did not answer a request to upgrade");
            Err(if destination == Destination::Api { Problem::ApiAway } else { Problem::AnswerBroken })
        }
    }
}

async fn send<S>(socket: S, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    // Ends by itself: with the answer, or when it has handed the socket to the upgrade.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "a connection to a VM ended");
        }
    });
    sender.send_request(request).await
}

async fn pass_on(
    edge: &Edge,
    stream: &mut ClientStream,
    answer: Response<Incoming>,
    cut: watch::Receiver<bool>,
    done: &mut Done,
) -> io::Result<()> {
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return refuse(stream, answer, done).await;
    }
    stream.write_all(&raw::head(answer.status(), answer.headers(), &["connection: Upgrade"])).await?;
    stream.flush().await?;
    let upgraded = hyper::upgrade::on(answer).await.map_err(io::Error::other)?;
    edge.metrics.count(Count::Tunnels);
    join(stream, TokioIo::new(upgraded), cut, done).await
}

/// The VM does not upgrade: its answer is passed on as an ordinary one, and the connection ends with it.
async fn refuse(stream: &mut ClientStream, answer: Response<Incoming>, done: &mut Done) -> io::Result<()> {
    let sized = answer.headers().contains_key(header::CONTENT_LENGTH);
    let framing: &[&str] =
        if sized { &["connection: close"] } else { &["connection: close", "transfer-encoding: chunked"] };
    stream.write_all(&raw::head(answer.status(), answer.headers(), framing)).await?;
    let mut body = answer.into_body();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(io::Error::other)?.into_data() else { continue };
        if piece.is_empty() {
            continue;
        }
        done.sent += piece.len() as u64;
        if sized {
            stream.write_all(&piece).await?;
        } else {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            stream.write_all(&piece).await?;
            stream.write_all(b"\r\n").await?;
        }
    }
    if !sized {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    stream.flush().await
}

/// Copies both ways until both have ended, one has failed, or the gateway must stop.
async fn join(
    stream: &mut ClientStream,
    upgraded: TokioIo<Upgraded>,
    mut cut: watch::Receiver<bool>,
    done: &mut Done,
) -> io::Result<()> {
    let (mut from_client, mut to_client) = tokio::io::split(stream);
    let (mut from_vm, mut to_vm) = tokio::io::split(upgraded);
    let mut frames = FrameTracker::default();
    let Done { received, sent, .. } = done;
    let stopped = {
        let up = pin!(copy(&mut from_client, &mut to_vm, received, |_| {}));
        let down = pin!(copy(&mut from_vm, &mut to_client, sent, |bytes| frames.passed(bytes)));
        tokio::select! {
            ended = either_then_other(up, down) => { ended?; false }
            _ = cut.wait_for(|cut| *cut) => true,
        }
    };
    if stopped && frames.between_frames() {
        to_client.write_all(&GOING_AWAY).await?;
        to_client.flush().await?;
    }
    Ok(())
}

/// Waits for the end of both directions; the later one has [`HALF_CLOSED`] after the earlier.
async fn either_then_other<A, B>(mut up: Pin<&mut A>, mut down: Pin<&mut B>) -> io::Result<()>
where
    A: Future<Output = io::Result<()>>,
    B: Future<Output = io::Result<()>>,
{
    let late = tokio::select! {
        ended = &mut up => { ended?; timeout(HALF_CLOSED, down).await }
        ended = &mut down => { ended?; timeout(HALF_CLOSED, up).await }
    };
    late.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "one side closed, the other did not"))
    })
}

async fn copy<R, W>(from: &mut R, to: &mut W, passed: &mut u64, mut seen: impl FnMut(&[u8])) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        seen(&buffer[..count]);
        *passed += count as u64;
    }
}

/// The gate has let the head through, so what fails here is a fault of ours.
fn parse(head: &[u8]) -> Result<RequestHeader, Problem> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    parsed.parse(head).map_err(|_| Problem::Internal)?;
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    let mut request = RequestHeader::build(method, target.as_bytes(), Some(parsed.headers.len()))
        .map_err(|_| Problem::Internal)?;
    for field in parsed.headers.iter() {
        request.append_header(field.name.to_owned(), field.value).map_err(|_| Problem::Internal)?;
    }
    Ok(request)
}

/// The request as the VM gets it: origin form, no fields of the client's hop, an upgrade of ours.
fn to_hyper(request: &RequestHeader) -> Result<Request<Empty<Bytes>>, Problem> {
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut asked = Request::builder().uri(path).body(Empty::new()).map_err(|_| Problem::Internal)?;
    *asked.headers_mut() = end_to_end(&request.headers);
    asked.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    asked.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    Ok(asked)
}

/// Without the fields that are for one hop only (RFC 9110 section 7.6.1), also those that `Connection` names.
fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // The gateway's own fields and the host are not the client's to take away.
        .filter(|name| *name != header::HOST && !crate::pure::forwarded::is_reserved(name))
        .collect();
    let mut kept = headers.clone();
    for name in named.iter().chain(&raw::HOP_BY_HOP) {
        kept.remove(name);
    }
    kept
}

fn request_line(head: &[u8]) -> (&str, &str) {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let mut parts = std::str::from_utf8(line).unwrap_or_default().split(' ');
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}
