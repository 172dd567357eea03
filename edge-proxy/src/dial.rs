//! Connections to VMs and to the API: new ones by permit alone, pooled ones by (VM, port, run).
//!
//! The engine's pool tells connections apart by an address and a group number, and looks whether a pooled socket's
//! peer is that address. Here a destination's address is not known before vpc has dialled it. So the first request to
//! a destination dials at once and learns the address; later ones take the pool's connection or dial when there is
//! none. Group numbers are never given twice, so two destinations never share a connection, whatever their addresses.

use crate::metrics::{Count, Metrics};
use crate::pure::page::Problem;
use crate::table::Table;
use crate::waking::Waking;
use async_trait::async_trait;
use model::id::VmId;
use model::route::Permit;
use pingora::connectors::L4Connect;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::protocols::l4::stream::Stream;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorType};
use rustix::net::sockopt;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinError;
use vpc::client::{Refusal, VpcClient, VpcError};

/// A VM from which nothing has come for so long is probed, by the kernel and over the connection (RFC 9293 section 3.8.4),
/// while an answer of it is waited for. A probe is no traffic that keeps a VM awake, but it wakes one that fell asleep
/// over the request: nothing else would before the client gave up. Longer than [`crate::settings::Settings::upstream_idle`],
/// so that a pooled connection never is.
pub const PROBE_AFTER: Duration = Duration::from_secs(15);
/// Between two probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(15);
/// Probes without an answer until the connection is given up: twice the time that a VM has to wake, and more.
const PROBES: u32 = 8;

/// Destinations that are kept without a look whether they are of use, some 200 bytes each.
const MANY_KNOWN: usize = 1024;

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// control's API.
    Api,
    /// A port of a VM.
    Vm(Permit),
}

impl Destination {
    /// The VM, for the log.
    #[must_use]
    pub fn vm(&self) -> Option<&VmId> {
        match self {
            Self::Api => None,
            Self::Vm(permit) => Some(permit.vm()),
        }
    }

    /// The VM's port; 0 for the API.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Api => 0,
            Self::Vm(permit) => permit.port(),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// vpc gave none.
    #[error("cannot connect to the VM: {0}")]
    Vpc(#[from] VpcError),
    /// The API's socket takes no connection.
    #[error("cannot connect to the API: {0}")]
    Api(#[source] std::io::Error),
    /// Not yet: the caller's patience is over, and the dial goes on without it.
    #[error("the VM does not accept the connection yet")]
    Waking,
    /// A dial to the same port that an earlier request began has failed.
    #[error(transparent)]
    Earlier(Arc<DialError>),
    /// The kernel does not probe the connection.
    #[error("the connection to the VM cannot be probed: {0}")]
    Probes(#[source] std::io::Error),
    /// The dial's task ended without an outcome.
    #[error("the dial did not end well: {0}")]
    Ended(#[source] JoinError),
}

impl DialError {
    /// What the client is told.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Api(_) => Problem::ApiAway,
            Self::Waking => Problem::Waking,
            Self::Earlier(error) => error.problem(),
            Self::Ended(_) | Self::Probes(_) => Problem::Internal,
            Self::Vpc(VpcError::Refused { reason, .. }) => match reason {
                Refusal::ConnectionRefused => Problem::NothingListens,
                Refusal::UnknownVm | Refusal::PortNotDialable => Problem::VmGone,
                Refusal::TimedOut => Problem::VmSilent,
                Refusal::ViewTooOld
                | Refusal::NotAllowed
                | Refusal::Busy
                | Refusal::Kernel
                // Not about a VM, so never an answer to a dial.
                | Refusal::UnknownNetwork
                | Refusal::UnknownService => {
                    Problem::NetworkAway
                }
            },
            Self::Vpc(
                VpcError::Unreachable(_) | VpcError::NoAnswer | VpcError::Unexpected | VpcError::Socket(_),
            ) => Problem::NetworkAway,
        }
    }
}

/// A connection that is good for one exchange with its destination.
#[derive(Debug)]
pub enum Dialed {
    /// To a VM.
    Tcp(TcpStream),
    /// To the API.
    Unix(UnixStream),
}

/// Which connection a request wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// One that nobody has used.
    pub fresh: bool,
    /// One that may stay silent, as those of events and of gRPC do: a VM sleeps over it until somebody has something to
    /// say. Over the others an answer is waited for, see [`PROBE_AFTER`].
    pub silent: bool,
    /// For each connection that is made to a VM; without it vpc's bound holds.
    pub patience: Option<Duration>,
}

/// Makes connections. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

struct Shared {
    vpc: VpcClient,
    api: PathBuf,
    known: Mutex<Known>,
    waking: Waking,
    metrics: Arc<Metrics>,
}

/// Destinations that have been dialled.
#[derive(Default)]
struct Known {
    vms: HashMap<(VmId, u16, u64), Place>,
    /// With so many it is time to see which are still of use.
    look_at: usize,
    api: Option<Place>,
    last_group: u64,
}

#[derive(Clone, Debug)]
struct Place {
    group: u64,
    address: SocketAddr,
}

impl Dialer {
    /// Dials VMs through `vpc`, the API at its socket.
    #[must_use]
    pub fn new(vpc: VpcClient, api: PathBuf, metrics: Arc<Metrics>) -> Self {
        Self {
            shared: Arc::new(Shared {
                vpc,
                api,
                known: Mutex::default(),
                waking: Waking::default(),
                metrics,
            }),
        }
    }

    /// A new connection. Nothing here or in the engine ends the wait before vpc does: a VM that sleeps is woken by the
    /// dial itself, and has [`vpc::client::WAKE_WAIT`] for that.
    ///
    /// # Errors
    /// Says who refused.
    pub async fn dial(&self, to: &Destination) -> Result<Dialed, DialError> {
        self.shared.metrics.count(Count::Dials);
        match to {
            Destination::Vm(permit) => Ok(Dialed::Tcp(self.shared.vpc.dial(permit).await?)),
            Destination::Api => {
                UnixStream::connect(&self.shared.api).await.map(Dialed::Unix).map_err(DialError::Api)
            }
        }
    }

    /// The same; a VM that does not accept it within `patience`, if there is any, is [`DialError::Waking`]. The dial goes
    /// on then, for the next request.
    async fn dial_within(&self, to: &Destination, patience: Option<Duration>) -> Result<Dialed, DialError> {
        match (to, patience) {
            (Destination::Vm(permit), Some(patience)) => {
                let (dialer, at, to) = (self.clone(), (permit.vm().clone(), permit.port()), to.clone());
                self.shared.waking.dial(at, patience, async move { dialer.dial(&to).await }).await
            }
            (Destination::Vm(_), None) | (Destination::Api, _) => self.dial(to).await,
        }
    }

    /// What the engine must know to take a pooled connection to a destination, or to have a new one made.
    ///
    /// # Errors
    /// When the destination was never reached, or none of its connections is wanted, and it cannot be reached now.
    pub async fn peer(&self, to: &Destination, wish: Wish) -> Result<Box<HttpPeer>, DialError> {
        let known = if wish.fresh { None } else { self.shared.known(to) };
        let (place, ready) = match known {
            Some(place) => (place, None),
            None => {
                let ready = self.dial_within(to, wish.patience).await?;
                let address = ready.address();
                // In a group of its own there is nothing in the pool.
                let place =
                    if wish.fresh { self.shared.alone(address) } else { self.shared.learn(to, address) };
                (place, Some(ready))
            }
        };
        let mut peer = HttpPeer {
            _address: place.address,
            scheme: pingora::upstreams::peer::Scheme::HTTP,
            sni: String::new(),
            proxy: None,
            client_cert_key: None,
            group_key: place.group,
            options: pingora::upstreams::peer::PeerOptions::new(),
        };
        let connect = Connect { dialer: self.clone(), to: to.clone(), wish, ready: Mutex::new(ready) };
        peer.options.custom_l4 = Some(Arc::new(connect));
        Ok(Box::new(peer))
    }

    /// Forgets destinations that are no longer in the table, once there are many.
    pub fn retain(&self, table: &Table) {
        let mut known = self.shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.vms.len() < known.look_at {
            return;
        }
        let there: HashSet<(&VmId, u16, u64)> =
            table.permits().map(|permit| (permit.vm(), permit.port(), permit.run())).collect();
        known.vms.retain(|(vm, port, run), _| there.contains(&(vm, *port, *run)));
        known.look_at = MANY_KNOWN.max(known.vms.len() * 2);
    }
}

impl Shared {
    fn known(&self, to: &Destination) -> Option<Place> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match to {
            Destination::Api => known.api.clone(),
            Destination::Vm(permit) => known.vms.get(&key(permit)).cloned(),
        }
    }

    /// A place of no destination, for one connection.
    fn alone(&self, address: SocketAddr) -> Place {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.last_group += 1;
        Place { group: known.last_group, address }
    }

    /// Keeps the group number of a destination whose address has changed.
    fn learn(&self, to: &Destination, address: SocketAddr) -> Place {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.last_group += 1;
        let fresh = Place { group: known.last_group, address: address.clone() };
        let place = match to {
            Destination::Api => known.api.get_or_insert(fresh),
            Destination::Vm(permit) => known.vms.entry(key(permit)).or_insert(fresh),
        };
        place.address = address;
        place.clone()
    }
}

fn key(permit: &Permit) -> (VmId, u16, u64) {
    (permit.vm().clone(), permit.port(), permit.run())
}

impl Dialed {
    /// The peer's address; a made-up one where the peer has none.
    fn address(&self) -> SocketAddr {
        let nowhere = || SocketAddr::Inet(std::net::SocketAddr::from(([0, 0, 0, 0], 0)));
        match self {
            Self::Tcp(stream) => stream.peer_addr().map_or_else(|_| nowhere(), SocketAddr::Inet),
            Self::Unix(stream) => {
                let path =
                    stream.peer_addr().ok().and_then(|address| Some(address.as_pathname()?.to_owned()));
                let address = path.and_then(|path| std::os::unix::net::SocketAddr::from_pathname(path).ok());
                address.map_or_else(nowhere, SocketAddr::Unix)
            }
        }
    }
}

/// Makes the engine's connections to one destination.
struct Connect {
    dialer: Dialer,
    to: Destination,
    wish: Wish,
    ready: Mutex<Option<Dialed>>,
}

#[async_trait]
impl L4Connect for Connect {
    async fn connect(&self, _address: &SocketAddr) -> Result<Stream, Box<Error>> {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let dialed = match ready {
            Some(ready) => ready,
            None => {
                let dialed = self.dialer.dial_within(&self.to, self.wish.patience).await.map_err(refused)?;
                self.dialer.shared.learn(&self.to, dialed.address());
                dialed
            }
        };
        Ok(match dialed {
            Dialed::Tcp(stream) => {
                if !self.wish.silent {
                    probe(&stream).map_err(|error| refused(DialError::Probes(error)))?;
                }
                Stream::from(stream)
            }
            Dialed::Unix(stream) => Stream::from(stream),
        })
    }
}

/// Has the kernel ask a peer that is silent whether it is there (tcp(7)).
fn probe(stream: &TcpStream) -> std::io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(())
}

/// The error as the engine carries it; [`crate::proxy`] takes the cause out again.
pub fn refused(error: DialError) -> Box<Error> {
    Error::because(ErrorType::ConnectError, "dialling", error)
}

impl fmt::Debug for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect").field("to", &self.to).finish_non_exhaustive()
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("api", &self.shared.api).finish_non_exhaustive()
    }
}
