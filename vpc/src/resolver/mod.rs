//! The name servers of the guests, one for each network at the gateway's address: each knows its network's own names (see
//! [`crate::pure::zone`]) and forwards all other questions to the host's name servers.
//!
//! Sockets for guests are made in the network's namespace, those for name servers in the host's. In which network a
//! question was asked says the socket; whose it is says the source address, which a guest cannot forge.

pub mod speakers;
pub mod upstream;

use crate::io::namespace::Inside;
use crate::pure::bucket::{Allowance, Bucket};
use crate::pure::dns::{MAX_QUESTION_BYTES, Question, Unasked, read_question};
use crate::pure::names::NetworkId;
use crate::switch::Switch;
use crate::tasks::each_network;
use hickory_proto::op::ResponseCode;
use model::net::GATEWAY_IPV4;
use socket2::{Domain, Protocol, Socket, Type};
use speakers::Speakers;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use upstream::{Transport, Upstreams, read_message, write_message};

/// Questions of one guest: a busy crawler stays below it, a broken loop does not.
const ALLOWANCE: Allowance = Allowance { per_second: 200, burst: 400 };
/// Questions that wait for an answer at once, of all guests: each has a socket of its own.
const MAX_WAITING: usize = 2048;
/// Of those, at most this many are one guest's.
const MAX_WAITING_OF_ONE: u32 = 256;
/// TCP connections of one guest at once.
const MAX_CONNECTIONS_OF_ONE: u32 = 8;
/// Questions over one TCP connection.
const MAX_QUESTIONS: usize = 100;
/// Longest silence on a TCP connection (RFC 7766 section 6.2.3 leaves it to the server).
const IDLE: Duration = Duration::from_secs(10);
/// Time after which sockets that could not be made are tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Answers guests' questions in all networks.
#[derive(Clone, Debug)]
pub struct Resolver {
    switch: Switch,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstreams: Upstreams,
    waiting: Arc<Semaphore>,
    counters: Counters,
}

/// One network's name server.
#[derive(Clone, Debug)]
struct Service {
    switch: Switch,
    shared: Arc<Shared>,
    network: NetworkId,
    guests: Guests,
    speakers: Arc<Speakers>,
}

/// Those of one network, by address.
type Guests = Arc<Mutex<HashMap<Ipv4Addr, Guest>>>;

/// What one guest has used.
#[derive(Debug)]
struct Guest {
    bucket: Bucket,
    waiting: u32,
    connections: u32,
}

/// Questions that were not answered as asked, by reason, since the start.
#[derive(Debug, Default)]
struct Counters {
    garbage: AtomicU64,
    unserved: AtomicU64,
    too_many: AtomicU64,
    failed: AtomicU64,
}

/// One thing of which a guest may have a few; given back when dropped.
struct Share {
    guests: Guests,
    guest: Ipv4Addr,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Question,
    Connection,
}

impl Resolver {
    /// A resolver that asks `upstreams`.
    #[must_use]
    pub fn new(switch: Switch, upstreams: Upstreams) -> Self {
        let waiting = Arc::new(Semaphore::new(MAX_WAITING));
        let shared = Shared { upstreams, waiting, counters: Counters::default() };
        Self { switch, shared: Arc::new(shared) }
    }

    /// Serves the guests of all networks for ever.
    pub async fn run(self) {
        each_network(&self.switch, |network, sockets| self.begin(network, sockets)).await;
    }

    fn begin(&self, network: &NetworkId, sockets: Inside) -> impl Future<Output = ()> + Send + use<> {
        let service = Service {
            switch: self.switch.clone(),
            shared: Arc::clone(&self.shared),
            network: network.clone(),
            guests: Guests::default(),
            speakers: Arc::default(),
        };
        service.run(sockets)
    }
}

impl Service {
    /// Serves one network's guests until the task is ended.
    async fn run(self, sockets: Inside) {
        loop {
            match open(&sockets).await {
                Ok((udp, tcp)) => {
                    info!(network = %self.network, "answering guests' questions for names");
                    let udp = Arc::new(udp);
                    tokio::select! {
                        () = self.serve_udp(udp) => {}
                        () = self.serve_tcp(tcp) => {}
                    }
                }
                Err(error) => {
                    warn!(network = %self.network, %error, "guests' questions cannot be answered; trying again");
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn serve_udp(&self, socket: Arc<UdpSocket>) {
        let mut bytes = [0; MAX_QUESTION_BYTES + 1];
        loop {
            let (length, from) = match socket.recv_from(&mut bytes).await {
                Ok(received) => received,
                // An ICMP error about an earlier answer; the socket is as good as before.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                Err(error) => {
                    warn!(%error, "the socket for guests' questions fails");
                    return;
                }
            };
            let IpAddr::V4(guest) = from.ip() else { continue };
            let Some(question) = self.read(guest, bytes.get(..length).unwrap_or_default()) else { continue };
            let (service, socket) = (self.clone(), Arc::clone(&socket));
            tokio::spawn(async move {
                let answer = match question {
                    Ok((question, share)) => {
                        let answer = service.resolve(&question, Transport::Udp).await;
                        drop(share);
                        answer.and_then(|answer| question.fit(answer))
                    }
                    Err(refusal) => Some(refusal),
                };
                if let Some(answer) = answer
                    && let Err(error) = socket.send_to(&answer, from).await
                {
                    debug!(%error, %guest, "an answer cannot be sent");
                }
            });
        }
    }

    async fn serve_tcp(&self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, SocketAddr::V4(from))) => {
                    let guest = *from.ip();
                    let Some(share) = self.take(guest, Kind::Connection) else { continue };
                    let service = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = service.converse(guest, stream).await {
                            debug!(%error, %guest, "a connection for questions ended");
                        }
                        drop(share);
                    });
                }
                Ok((_, SocketAddr::V6(_))) => {}
                Err(error) => {
                    warn!(%error, "no connection for questions accepted");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn converse(&self, guest: Ipv4Addr, mut stream: TcpStream) -> io::Result<()> {
        for _ in 0..MAX_QUESTIONS {
            let bytes = timeout(IDLE, read_message(&mut stream, MAX_QUESTION_BYTES)).await??;
            let answer = match self.read(guest, &bytes) {
                Some(Ok((question, share))) => {
                    let answer = self.resolve(&question, Transport::Tcp).await;
                    drop(share);
                    answer
                }
                Some(Err(refusal)) => Some(refusal),
                None => None,
            };
            let Some(answer) = answer else { return Ok(()) };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
        Ok(())
    }

    /// Reads a question and takes the guest's share for it; or what to say instead; or nothing to say.
    fn read(&self, guest: Ipv4Addr, bytes: &[u8]) -> Option<Result<(Question, Share), Vec<u8>>> {
        let counters = &self.shared.counters;
        match read_question(bytes) {
            Ok(question) => match self.take(guest, Kind::Question) {
                Some(share) => Some(Ok((question, share))),
                None => question.failed(ResponseCode::Refused).map(Err),
            },
            Err(Unasked::Unserved(answer)) => {
                counters.unserved.fetch_add(1, Ordering::Relaxed);
                Some(Err(answer))
            }
            Err(Unasked::Garbage) => {
                counters.garbage.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }

    async fn resolve(&self, question: &Question, transport: Transport) -> Option<Vec<u8>> {
        // What cannot be looked up here, since the network is just going, must not be asked elsewhere.
        let (zone, sockets) = self
            .switch
            .table()
            .networks
            .get(&self.network)
            .map(|network| (Arc::clone(&network.zone), network.sockets.clone()))?;
        let speaks_ipv6 = match zone.ipv6_asked(question) {
            Some(address) => self.speakers.have(&sockets, address).await,
            None => false,
        };
        if let Some(answer) = zone.answer(question, speaks_ipv6) {
            return Some(answer);
        }
        let Ok(_slot) = self.shared.waiting.try_acquire() else {
            self.shared.counters.too_many.fetch_add(1, Ordering::Relaxed);
            return question.failed(ResponseCode::ServFail);
        };
        match self.shared.upstreams.ask(question, transport).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                let failed = self.shared.counters.failed.fetch_add(1, Ordering::Relaxed) + 1;
                debug!(%error, failed, "a question has no answer");
                question.failed(ResponseCode::ServFail)
            }
        }
    }

    fn take(&self, guest: Ipv4Addr, kind: Kind) -> Option<Share> {
        let now = Instant::now();
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        // One entry for each address in the network's table, and those whose port went are forgotten.
        let table = self.switch.table();
        let addresses = &table.networks.get(&self.network)?.addresses;
        if !addresses.contains(&guest) {
            guests.retain(|address, used| addresses.contains(address) || used.in_use());
            return None;
        }
        let used = guests.entry(guest).or_insert_with(|| Guest {
            bucket: Bucket::full(ALLOWANCE, now),
            waiting: 0,
            connections: 0,
        });
        let granted = match kind {
            Kind::Question => used.waiting < MAX_WAITING_OF_ONE && used.bucket.take(ALLOWANCE, now),
            Kind::Connection => used.connections < MAX_CONNECTIONS_OF_ONE,
        };
        if !granted {
            let count = self.shared.counters.too_many.fetch_add(1, Ordering::Relaxed) + 1;
            debug!(%guest, count, "too many questions");
            return None;
        }
        *used.of(kind) += 1;
        Some(Share { guests: Arc::clone(&self.guests), guest, kind })
    }
}

impl Guest {
    fn of(&mut self, kind: Kind) -> &mut u32 {
        match kind {
            Kind::Question => &mut self.waiting,
            Kind::Connection => &mut self.connections,
        }
    }

    fn in_use(&self) -> bool {
        self.waiting > 0 || self.connections > 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(used) = guests.get_mut(&self.guest) {
            let count = used.of(self.kind);
            *count = count.saturating_sub(1);
        }
    }
}

/// Sockets at the gateway's address, in the network's namespace.
async fn open(sockets: &Inside) -> io::Result<(UdpSocket, TcpListener)> {
    let made = sockets.run(|| {
        let address = SocketAddr::from((GATEWAY_IPV4, 53)).into();
        let udp = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        udp.bind(&address)?;
        let tcp = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        tcp.set_reuse_address(true)?;
        tcp.bind(&address)?;
        tcp.listen(BACKLOG)?;
        Ok::<_, io::Error>((udp, tcp))
    });
    let (udp, tcp) = made.await.map_err(io::Error::other)??;
    Ok((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?))
}
