//! Listeners: the public socket, the operator's socket, and plain TCP where it is wanted.

use crate::api::{Api, Door};
use crate::figures;
use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use model::config::ControlConfig;
use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tracing::{debug, info, warn};

/// Connections at once on one listener. edge-proxy keeps a few hundred at most.
const MAX_CONNECTIONS: usize = 1024;
/// Longest for a request's headers to come: a client that sends them by the byte holds a place for no longer.
const HEADER_WAIT: Duration = Duration::from_secs(15);
/// Longest for requests to end when control is told to. VMs do not mind: their intents are written down.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(10);
/// Wait after a connection could not be accepted, for want of descriptors as a rule.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Who may connect to the public socket: whoever may enter its folder; each request carries its key.
const PUBLIC_MODE: u32 = 0o666;
/// Who may connect to the operator's socket: its owner.
const OPERATOR_MODE: u32 = 0o600;

/// Why control cannot listen.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A socket cannot be made.
    #[error("cannot listen on {path}: {source}")]
    Unix {
        /// Of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// All listeners, bound and not served yet.
#[derive(Debug)]
pub struct Listeners {
    public: UnixListener,
    operator: UnixListener,
    tcp: Option<TcpListener>,
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// Binds them.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn bind(config: &ControlConfig) -> Result<Self, ServeError> {
        Ok(Self {
            public: unix(&config.places.api_socket(), PUBLIC_MODE)?,
            operator: unix(&config.places.admin_socket(), OPERATOR_MODE)?,
            tcp: tcp(config.api_listen).await?,
            metrics: tcp(config.metrics_listen).await?,
        })
    }

    /// Where plain HTTP is served.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Where figures are told.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `stop` is true, then lets requests end for a while.
    pub async fn serve(self, api: &Api, stop: watch::Receiver<bool>) {
        let router = api.router();
        let mut doors = JoinSet::new();
        doors.spawn(Server::new(router.clone(), Door::Public, stop.clone()).unix(self.public));
        doors.spawn(Server::new(router.clone(), Door::Operator, stop.clone()).unix(self.operator));
        if let Some(metrics) = self.metrics {
            let router = figures::router(api.house().clone());
            doors.spawn(Server::new(router, Door::Public, stop.clone()).tcp(metrics));
        }
        if let Some(tcp) = self.tcp {
            doors.spawn(Server::new(router, Door::Public, stop).tcp(tcp));
        }
        while doors.join_next().await.is_some() {}
    }
}

/// One listener's loop.
struct Server {
    router: Router,
    door: Door,
    stop: watch::Receiver<bool>,
    places: Arc<Semaphore>,
    graceful: GracefulShutdown,
    strangers: AtomicU64,
}

impl Server {
    fn new(router: Router, door: Door, stop: watch::Receiver<bool>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { router, door, stop, places, graceful: GracefulShutdown::new(), strangers: AtomicU64::new(0) }
    }

    async fn unix(mut self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, _)) if self.may_enter(&stream) => self.connection(stream).await,
                Ok(_) => {}
                Err(error) => pause(&error).await,
            }
        }
        self.end().await;
    }

    async fn tcp(mut self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = self.stop.wait_for(|stop| *stop) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    // Answers are small and complete; waiting to fill a packet gains nothing.
                    if let Err(error) = stream.set_nodelay(true) {
                        debug!(%error, "a connection ended at once");
                    }
                    self.connection(stream).await;
                }
                Err(error) => pause(&error).await,
            }
        }
        self.end().await;
    }

    /// The operator's door opens for root, and for the user as whom control itself runs.
    fn may_enter(&self, stream: &UnixStream) -> bool {
        if self.door == Door::Public {
            return true;
        }
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let allowed = uid.as_ref().is_ok_and(|uid| *uid == 0 || *uid == rustix::process::geteuid().as_raw());
        if !allowed {
            let refused = self.strangers.fetch_add(1, Ordering::Relaxed) + 1;
            warn!(?uid, refused, "a stranger at the operator's door is turned away");
        }
        allowed
    }

    async fn connection(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        // The semaphore is never closed. At the bound, new connections wait in the kernel's queue.
        let Ok(place) = Arc::clone(&self.places).acquire_owned().await else { return };
        let (router, door) = (self.router.clone(), self.door);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(door);
            router.clone().oneshot(request)
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_WAIT);
        let serving = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let serving = self.graceful.watch(serving);
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                debug!(%error, "a connection broke");
            }
            drop(place);
        });
    }

    async fn end(self) {
        if tokio::time::timeout(SHUTDOWN_WAIT, self.graceful.shutdown()).await.is_err() {
            info!(door = ?self.door, "requests are cut short");
        }
    }
}

async fn pause(error: &io::Error) {
    warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

async fn tcp(address: Option<SocketAddr>) -> Result<Option<TcpListener>, ServeError> {
    let Some(address) = address else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    bound.map(Some).map_err(|source| ServeError::Tcp { address, source })
}

/// Listens at a path. What an earlier control left there is replaced in one step.
fn unix(path: &Path, mode: u32) -> Result<UnixListener, ServeError> {
    let failed = |source| ServeError::Unix { path: path.to_owned(), source };
    let staged = path.with_extension(format!("{}.new", std::process::id()));
    match std::fs::remove_file(&staged) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&staged).map_err(failed)?;
    std::fs::set_permissions(&staged, Permissions::from_mode(mode)).map_err(failed)?;
    std::fs::rename(&staged, path).map_err(failed)?;
    Ok(listener)
}
