//! The HTTPS front: it takes connections, shows the certificate of the name that is asked for, and joins each request
//! to the VM's port that the name is mapped to.
//!
//! ```text
//! client ─► listeners ─► connection ─► tls ─► pure::head (gate) ─┬─► proxy (engine: Pingora) ─► dial ─► VM or API
//!                                              table ▲           └─► tunnel (WebSocket) ──────► dial ─┘
//!                                                    └── feed: routes and certificates, swapped whole
//! ```
//!
//! It decides nothing: what a name leads to is control's view, and it goes on with the last one while control is
//! away. It has no privileges: its listeners are handed to it, and connections to VMs come from vpc, by permit.

pub mod access;
pub mod attempts;
pub mod balancer;
pub mod certificates;
pub mod challenges;
pub mod connection;
pub mod dial;
pub mod dns;
pub mod export;
pub mod guard;
pub mod http2;
pub mod listeners;
pub mod metrics;
pub mod plain;
pub mod proxy;
pub mod pure;
pub mod raw;
pub mod scrape;
pub mod settings;
pub mod socket;
pub mod stream;
pub mod table;
pub mod times;
pub mod tls;
pub mod tunnel;
pub mod versions;
pub mod waking;

use crate::access::Log;
use crate::connection::Door;
use crate::dial::Dialer;
use crate::dns::Names;
use crate::guard::{ConnectionTicket, Guard};
use crate::listeners::Listeners;
use crate::metrics::{Count, Metrics};
use crate::plain::Plain;
use crate::proxy::Edge;
use crate::scrape::Source;
use crate::settings::Settings;
use crate::table::Tables;
use crate::tls::{Tls, TlsError};
use feed::blobs::Blobs;
use feed::lines;
use feed::names::NamesReader;
use feed::subscribe::Feed;
use model::config::Places;
use model::view::EdgeView;
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::HttpProxy;
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};
use vpc::client::VpcClient;

/// Tries of a request whose pooled connection turns out to be closed. The second has a connection of its own, so that
/// what it finds is the VM's present state and not another leftover.
const MAX_TRIES: usize = 2;
/// Requests at once over one HTTP/2 connection of a client: what RFC 9113 section 6.5.2 advises, and nginx nearly has.
const CLIENT_STREAMS: u32 = 100;
/// What a client may send ahead in one stream. Bounds what a VM that reads slowly makes us hold.
const CLIENT_STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection.
const CLIENT_CONNECTION_WINDOW: u32 = 1 << 20;
/// What is held of an answer that a client takes slowly, per stream.
const CLIENT_SEND_BUFFER: usize = 128 << 10;
/// Requests that a client gave up before they were looked at. Above the budget of resets in [`pure::flood`], which
/// therefore decides, and counts.
const CLIENT_PENDING_RESETS: usize = 512;
/// Wait after a failed `accept`: the process is out of descriptors, and no event tells when one is free.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);
/// For tunnels to say goodbye when they are cut.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What a running edge-proxy is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Another process serves the same listeners. Accept no more; what is under way has [`Settings::handover_drain`] to
    /// end. A client that waits with an open connection is answered once more, and told that it was the last time.
    HandOver,
    /// End: connections without a request close now, what is under way has [`Settings::drain`].
    Stop,
}

/// Orders that wait. Who sends more is impatient, and heard all the same: [`Order::Stop`] stands already.
pub const ORDERS: usize = 4;

/// Serves until the first order, then lets what is under way end. `serving` is called as soon as connections are
/// accepted.
///
/// # Errors
/// When TLS cannot be set up; nothing has been accepted then.
pub async fn run(
    settings: Settings,
    places: &Places,
    listeners: Listeners,
    feed: Feed<EdgeView>,
    metrics: Arc<Metrics>,
    serving: impl FnOnce(),
    mut orders: mpsc::Receiver<Order>,
) -> Result<(), TlsError> {
    let tables = Tables::new(Blobs::at(places.certificates()), NamesReader::at(places.names()));
    let vpc = VpcClient::new(places.vpc_socket());
    let dialer = Dialer::new(vpc, places.api_socket(), Arc::clone(&metrics));
    let (stop, stopped) = watch::channel(false);
    let (close_idle, idle_to_close) = watch::channel(false);
    let (cut, to_be_cut) = watch::channel(false);
    let tls = Tls::new(tables.clone(), Arc::clone(&metrics))?;
    let settings = Arc::new(settings);
    let guard = Guard::new(&settings.guard);
    let (lines, writing) = log_lines(&settings, places).unzip();
    let traces = settings.traces.map(|traces| export::new(traces.endpoint, Arc::clone(&metrics)));
    let (spans, exporting) = traces.unzip();
    let log = Log { lines, spans, metrics: Arc::clone(&metrics) };
    let edge = Edge { tables: tables.clone(), dialer: dialer.clone(), settings, guard, metrics, log };
    let engine = engine(&edge);
    let door = Door {
        edge: edge.clone(),
        engine: Arc::clone(&engine),
        tls,
        stop: stopped,
        close_idle: idle_to_close,
        cut: to_be_cut,
    };
    let open = Arc::new(Semaphore::new(edge.settings.max_connections.min(Semaphore::MAX_PERMITS)));

    // A restart must not meet its first clients without a table.
    if let Some(view) = feed.current() {
        tables.take_over(&view, &edge.metrics);
        feed.in_force(view.generation);
    }
    // They outlive the requests, of which they tell to the last.
    let mut telling = JoinSet::new();
    if let Some(writing) = writing {
        telling.spawn(writing.run());
    }
    if let Some(exporting) = exporting {
        telling.spawn(exporting.run());
    }
    let mut following = JoinSet::new();
    following.spawn(feed.clone().follow(places.feed_socket()));
    following.spawn(tables.follow(feed, dialer, Arc::clone(&edge.metrics)));
    following.spawn(report(Arc::clone(&edge.metrics), edge.settings.report_every));
    let mut accepting = JoinSet::new();
    accept_all(&mut accepting, listeners, places.edge_figures(), Arc::new(door), &open);
    serving();

    // Nobody is left to give an order: as good as one to stop.
    let order = orders.recv().await.unwrap_or(Order::Stop);
    info!(?order, "stopping");
    stop.send_replace(true);
    // The listeners close with their tasks, and stay open where they came from.
    accepting.shutdown().await;
    match order {
        // The table goes on to be followed: an old one may send a last request to the wrong VM.
        Order::HandOver => handed_over(&open, &edge, &mut orders).await,
        Order::Stop => {}
    }
    close_idle.send_replace(true);
    following.shutdown().await;
    engine.cleanup().await;
    drain(&open, &edge, &cut).await;
    info!(counters = ?edge.metrics, "stopped");
    drop((edge, engine));
    if timeout(LAST_WORDS, async { while telling.join_next().await.is_some() {} }).await.is_err() {
        warn!("the last lines of the access log, or the last traces, are lost");
    }
    Ok(())
}

/// The access log's two halves, unless there is to be none.
fn log_lines(settings: &Settings, places: &Places) -> Option<(lines::Writer, lines::Writing)> {
    (settings.access_log_bytes > 0)
        .then(|| lines::new(places.access_log(), access::NAME, settings.access_log_bytes))
}

fn engine(edge: &Edge) -> Arc<HttpProxy<Edge>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let conf = ServerConf {
        threads,
        upstream_keepalive_pool_size: edge.settings.upstream_pool.div_ceil(threads),
        max_retries: MAX_TRIES,
        ..ServerConf::default()
    };
    let mut engine = HttpProxy::new(edge.clone(), Arc::new(conf));
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(edge.settings.keepalive);
    engine.server_options = Some(options);
    let mut h2 = default_h2_options();
    h2.max_header_list_size(u32::try_from(edge.settings.max_head_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(CLIENT_STREAMS)
        .initial_window_size(CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(CLIENT_CONNECTION_WINDOW)
        .max_send_buffer_size(CLIENT_SEND_BUFFER)
        .max_pending_accept_reset_streams(CLIENT_PENDING_RESETS);
    engine.h2_options = Some(h2);
    engine.handle_init_modules();
    Arc::new(engine)
}

fn accept_all(
    tasks: &mut JoinSet<()>,
    listeners: Listeners,
    figures: PathBuf,
    door: Arc<Door>,
    open: &Arc<Semaphore>,
) {
    let plain = Plain {
        settings: Arc::clone(&door.edge.settings),
        metrics: Arc::clone(&door.edge.metrics),
        tables: door.edge.tables.clone(),
    };
    let metrics = Arc::clone(&door.edge.metrics);
    for listener in listeners.https {
        let door = Arc::clone(&door);
        tasks.spawn(accept(
            listener,
            Arc::clone(open),
            Arc::clone(&metrics),
            move |mut tcp, peer, permit| {
                let door = Arc::clone(&door);
                tokio::spawn(async move {
                    if let Some((client, _ticket)) = admit(&door.edge, &mut tcp, peer).await {
                        connection::serve(door, tcp, client).await;
                    }
                    drop(permit);
                });
            },
        ));
    }
    for listener in listeners.http {
        let (edge, plain) = (door.edge.clone(), plain.clone());
        tasks.spawn(accept(
            listener,
            Arc::clone(open),
            Arc::clone(&metrics),
            move |mut tcp, peer, permit| {
                let (edge, plain) = (edge.clone(), plain.clone());
                tokio::spawn(async move {
                    if let Some((_, _ticket)) = admit(&edge, &mut tcp, peer).await {
                        plain::serve(plain, tcp).await;
                    }
                    drop(permit);
                });
            },
        ));
    }
    let names = Names::new(plain.tables, plain.metrics, plain.settings.dns_host.as_ref());
    let source = Source {
        metrics,
        tables: door.edge.tables.clone(),
        open: Arc::clone(open),
        most_open: door.edge.settings.max_connections.min(Semaphore::MAX_PERMITS),
        started: SystemTime::now(),
    };
    for listener in listeners.metrics {
        tasks.spawn(scrape::serve(source.clone(), listener));
    }
    tasks.spawn(tell_figures(source, figures));
    for socket in listeners.dns {
        tasks.spawn(dns::datagrams(names.clone(), socket));
    }
    for listener in listeners.dns_tcp {
        tasks.spawn(dns::streams(names.clone(), listener));
    }
}

/// Tells control of the figures, for ever. After a handover the new process has the socket.
async fn tell_figures(source: Source, at: PathBuf) {
    let own_user = rustix::process::geteuid().as_raw();
    feed::figures::serve(&at, own_user, || std::future::ready(source.figures())).await;
}

/// Whose connection it is, and the ticket that it holds while it lasts; nothing when it is refused, which is counted.
async fn admit(edge: &Edge, tcp: &mut TcpStream, peer: SocketAddr) -> Option<(SocketAddr, ConnectionTicket)> {
    let client = balancer::client(&edge.settings, &edge.metrics, tcp, peer).await?;
    let ticket = edge.guard.connection(client.ip());
    if ticket.is_none() {
        edge.metrics.count(Count::OverAddress);
    }
    Some((client, ticket?))
}

/// Accepts for ever; a connection over the bound is closed at once.
async fn accept(
    listener: TcpListener,
    open: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    serve: impl Fn(TcpStream, SocketAddr, OwnedSemaphorePermit),
) {
    loop {
        match listener.accept().await {
            Ok((tcp, address)) => match Arc::clone(&open).try_acquire_owned() {
                Ok(permit) => serve(tcp, address, permit),
                Err(_) => metrics.count(Count::OverConnections),
            },
            Err(error) => {
                metrics.count(Count::AcceptFailed);
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Waits until no connection is left, for so long at most, or until an order comes to stop.
async fn handed_over(open: &Semaphore, edge: &Edge, orders: &mut mpsc::Receiver<Order>) {
    let stopped = async { while orders.recv().await.is_some_and(|order| order != Order::Stop) {} };
    tokio::select! {
        ended = timeout(edge.settings.handover_drain, open.acquire_many(all(edge))) => {
            if ended.is_err() {
                warn!("connections are left that did not end after the handover");
            }
        }
        () = stopped => {}
    }
}

/// All connections that may be open.
fn all(edge: &Edge) -> u32 {
    u32::try_from(edge.settings.max_connections.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX)
}

/// Waits until no connection is left, for so long at most; then tunnels are cut, and what is left goes with the process.
async fn drain(open: &Semaphore, edge: &Edge, cut: &watch::Sender<bool>) {
    if timeout(edge.settings.drain, open.acquire_many(all(edge))).await.is_ok() {
        return;
    }
    cut.send_replace(true);
    if timeout(LAST_WORDS, open.acquire_many(all(edge))).await.is_err() {
        warn!("connections are cut that did not end in time");
    }
}

/// Writes the counters to the log, for ever, when they have changed.
async fn report(metrics: Arc<Metrics>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    let mut last = metrics.snapshot();
    loop {
        ticks.tick().await;
        let now = metrics.snapshot();
        if now != last {
            info!(counters = ?metrics, "so far");
            last = now;
        }
    }
}
