//! The loop: one thread, one epoll, one closed set of events. All state of all sessions is this thread's.

use super::front::{Front, FrontError, Outlet};
use crate::client::SessionStatus;
use crate::pure::Now;
use crate::pure::coalesce::Frames;
use crate::pure::count::{Count, Counts};
use crate::pure::engine::{Engine, Rules, Wire};
use crate::pure::offload::{MAX_FRAME_BYTES, VNET_BYTES};
use crate::pure::runs::{Endpoint, Runs};
use crate::pure::table::NetworkId;
use model::id::VpcId;
use model::view::VpnView;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::{BTreeMap, HashMap};
use std::hash::RandomState;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::sync::mpsc::error::TrySendError as MpscError;
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// Between two looks at the live sessions' timers: the protocol counts in seconds.
const TICK: Duration = Duration::from_millis(250);
/// Orders that wait: views and TUNs come one by one, and each is taken within a batch.
const MAX_ORDERS: usize = 64;
/// Lost TUNs in the channel to whoever gets others; more wait in the loop for its next tick.
pub const MAX_LOST: usize = 64;
/// Batches of one source in a row, so that no client or network keeps the others waiting.
const BATCHES: usize = 4;
/// Frames of one TUN in a row; 2 MiB when each is large.
const FRAMES: usize = 32;
/// Events that one wait returns.
const EVENTS: usize = 64;

/// What the loop is told to do.
#[derive(Debug)]
pub enum Order {
    /// Take this view over.
    View(Arc<VpnView>),
    /// Here is a network's TUN.
    Tunnel(VpcId, OwnedFd),
    /// How much was counted?
    Report(oneshot::Sender<BTreeMap<&'static str, u64>>),
    /// Which sessions are there, of one network or of all?
    Sessions(Option<VpcId>, oneshot::Sender<Vec<SessionStatus>>),
    /// Stop.
    End,
}

/// What happens to the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Datagrams came.
    Datagrams,
    /// An order came.
    Orders,
    /// Frames of a network came.
    Frames(NetworkId),
    /// A quarter of a second has gone.
    Tick,
}

const SOCKET: u64 = 0;
const ORDERS: u64 = 1;
const FIRST_NETWORK: u64 = 2;

impl Event {
    fn encode(self) -> u64 {
        match self {
            Self::Datagrams => SOCKET,
            Self::Orders => ORDERS,
            Self::Frames(network) => FIRST_NETWORK + u64::from(network.0),
            Self::Tick => u64::MAX,
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            SOCKET => Self::Datagrams,
            ORDERS => Self::Orders,
            u64::MAX => Self::Tick,
            network => Self::Frames(NetworkId(u32::try_from(network - FIRST_NETWORK).unwrap_or(u32::MAX))),
        }
    }
}

/// The loop cannot go on.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Its socket.
    #[error(transparent)]
    Front(#[from] FrontError),
    /// Its descriptors cannot be watched.
    #[error("descriptors cannot be watched: {0}")]
    Watch(#[source] io::Error),
}

/// Gives orders to a loop. Dropping it ends the loop.
#[derive(Debug)]
pub struct Orders {
    sender: Option<SyncSender<Order>>,
    word: Arc<OwnedFd>,
}

impl Orders {
    /// Gives one; false when the loop has ended or is too busy for it.
    #[must_use]
    pub fn give(&self, order: Order) -> bool {
        let sent = self.sender.as_ref().is_some_and(|sender| match sender.try_send(order) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        });
        sent && self.wake()
    }

    fn wake(&self) -> bool {
        // Full of words is as good as one.
        matches!(rustix::io::write(&self.word, &1u64.to_ne_bytes()), Ok(_) | Err(Errno::AGAIN))
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.sender = None;
        if !self.wake() {
            warn!("the loop cannot be told to end");
        }
    }
}

/// The loop's parts.
#[derive(Debug)]
pub struct Server {
    front: Front,
    engine: Engine,
    lane: Lane,
    epoll: OwnedFd,
    orders: Receiver<Order>,
    word: Arc<OwnedFd>,
    lost: tokio::sync::mpsc::Sender<VpcId>,
    /// Lost ones that are not told of yet, no more than there are networks.
    untold: Vec<VpcId>,
    frame: Box<[u8]>,
    tick: Instant,
}

/// The engine's way out.
#[derive(Debug)]
struct Lane {
    outlet: Arc<Outlet>,
    runs: Runs,
    tunnels: HashMap<NetworkId, Tunnel>,
    frames: Frames,
    counts: Counts,
}

#[derive(Debug)]
struct Tunnel {
    vpc: VpcId,
    queue: OwnedFd,
}

impl Server {
    /// Makes a loop on this socket, to be run on a thread of its own, and what gives it orders. Networks whose TUN
    /// failed come out of the other end of `lost`.
    ///
    /// # Errors
    /// When descriptors are short.
    pub fn new(
        front: Front,
        rules: Rules,
        lost: tokio::sync::mpsc::Sender<VpcId>,
    ) -> Result<(Self, Orders), ServerError> {
        let failed = |error: Errno| ServerError::Watch(error.into());
        let word = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(failed)?);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        watch(&epoll, front.as_fd(), Event::Datagrams)?;
        watch(&epoll, word.as_fd(), Event::Orders)?;
        let (sender, orders) = sync_channel(MAX_ORDERS);
        let engine = Engine::new(rules, RandomState::new(), StdRng::from_os_rng(), now());
        let lane = Lane {
            outlet: front.outlet(),
            runs: Runs::default(),
            tunnels: HashMap::new(),
            frames: Frames::default(),
            counts: Counts::default(),
        };
        let frame = vec![0; VNET_BYTES + MAX_FRAME_BYTES].into();
        let tick = Instant::now() + TICK;
        let server = Self {
            front,
            engine,
            lane,
            epoll,
            orders,
            word: Arc::clone(&word),
            lost,
            untold: Vec::new(),
            frame,
            tick,
        };
        Ok((server, Orders { sender: Some(sender), word }))
    }

    /// Serves until it is told to end.
    ///
    /// # Errors
    /// When the socket or epoll fails.
    pub fn run(mut self) -> Result<(), ServerError> {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(EVENTS);
        loop {
            ready.clear();
            let left = self.tick.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(ServerError::Watch(error.into())),
            }
            for event in &ready {
                if !self.handle(Event::decode(event.data.u64()))? {
                    return Ok(());
                }
            }
            if Instant::now() >= self.tick {
                self.tick = Instant::now() + TICK;
                self.handle(Event::Tick)?;
            }
        }
    }

    fn handle(&mut self, event: Event) -> Result<bool, ServerError> {
        match event {
            Event::Datagrams => self.datagrams()?,
            Event::Frames(network) => self.frames(network),
            Event::Orders => return self.obey(),
            Event::Tick => {
                self.engine.tick(now(), &mut self.lane);
                self.lane.flush();
                self.tell_losses();
            }
        }
        Ok(true)
    }

    fn datagrams(&mut self) -> Result<(), ServerError> {
        for _ in 0..BATCHES {
            let now = now();
            let (engine, lane) = (&mut self.engine, &mut self.lane);
            let more = self.front.receive(|from, datagram| engine.receive(from, datagram, now, lane))?;
            self.lane.flush();
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn frames(&mut self, network: NetworkId) {
        let now = now();
        for _ in 0..FRAMES {
            let Some(tunnel) = self.lane.tunnels.get(&network) else { return };
            match rustix::io::read(&tunnel.queue, &mut self.frame[..]) {
                Ok(bytes) => self.engine.transmit(network, &mut self.frame[..bytes], now, &mut self.lane),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    self.lose(network, error);
                    break;
                }
            }
        }
        self.lane.flush();
    }

    fn lose(&mut self, network: NetworkId, error: Errno) {
        let Some(tunnel) = self.lane.tunnels.remove(&network) else { return };
        warn!(vpc = %tunnel.vpc, error = %io::Error::from(error), "the network's TUN is gone");
        self.untold.push(tunnel.vpc);
        self.tell_losses();
    }

    fn tell_losses(&mut self) {
        while let Some(vpc) = self.untold.pop() {
            match self.lost.try_send(vpc) {
                Ok(()) => {}
                // Whoever listens is busy, or ends and with it this loop.
                Err(MpscError::Full(vpc) | MpscError::Closed(vpc)) => {
                    self.untold.push(vpc);
                    return;
                }
            }
        }
    }

    /// Does what was ordered; false when it is to end.
    fn obey(&mut self) -> Result<bool, ServerError> {
        let mut words = [0; 8];
        match rustix::io::read(&self.word, &mut words) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(ServerError::Watch(error.into())),
        }
        loop {
            match self.orders.try_recv() {
                Ok(Order::View(view)) => self.apply(&view),
                Ok(Order::Tunnel(vpc, queue)) => self.join(vpc, queue)?,
                Ok(Order::Report(to)) => {
                    let mut all = self.engine.counts().snapshot();
                    for (name, value) in self.lane.counts.snapshot() {
                        *all.entry(name).or_default() += value;
                    }
                    // Whoever asked may have gone.
                    drop(to.send(all));
                }
                // Whoever asked may have gone.
                Ok(Order::Sessions(vpc, to)) => drop(to.send(self.engine.sessions(vpc.as_ref(), now()))),
                Ok(Order::End) | Err(TryRecvError::Disconnected) => return Ok(false),
                Err(TryRecvError::Empty) => return Ok(true),
            }
        }
    }

    fn apply(&mut self, view: &VpnView) {
        self.engine.apply(view, now());
        // A network that left and came again has another number; its TUN comes again too.
        let networks: HashMap<&VpcId, NetworkId> =
            self.engine.table().networks().map(|(network, vpc)| (vpc, network)).collect();
        self.lane.tunnels.retain(|network, tunnel| networks.get(&tunnel.vpc) == Some(network));
        let (registered, live) = (self.engine.table().registered(), self.engine.table().live_count());
        debug!(generation = %view.generation, registered, live, "view in force");
    }

    fn join(&mut self, vpc: VpcId, queue: OwnedFd) -> Result<(), ServerError> {
        let wanted = self.engine.table().networks().find(|(_, known)| **known == vpc);
        // It may have left the view meanwhile.
        let Some((network, _)) = wanted else { return Ok(()) };
        watch(&self.epoll, queue.as_fd(), Event::Frames(network))?;
        debug!(%vpc, "TUN joined");
        self.lane.tunnels.insert(network, Tunnel { vpc, queue });
        Ok(())
    }
}

impl Lane {
    /// Sends and writes all that waits.
    fn flush(&mut self) {
        self.send_runs();
        let (tunnels, counts) = (&self.tunnels, &mut self.counts);
        self.frames.flush(|network, frame, packets| write(tunnels, counts, network, frame, packets));
    }

    fn send_runs(&mut self) {
        for (run, bytes) in self.runs.iter() {
            self.outlet.send(run, bytes, &mut self.counts);
        }
        self.runs.clear();
    }
}

fn write(
    tunnels: &HashMap<NetworkId, Tunnel>,
    counts: &mut Counts,
    network: NetworkId,
    frame: &[u8],
    packets: usize,
) {
    if packets > 1 {
        counts.add(Count::Coalesced, packets as u64);
    }
    let Some(tunnel) = tunnels.get(&network) else {
        counts.add(Count::NoTunnel, packets as u64);
        return;
    };
    if let Err(error) = rustix::io::write(&tunnel.queue, frame) {
        debug!(vpc = %tunnel.vpc, error = %io::Error::from(error), "the TUN takes no frame");
        counts.add(Count::TunnelFull, packets as u64);
    }
}

impl Wire for Lane {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.runs.room(bytes).is_none() {
            self.send_runs();
        }
        self.runs.room(bytes).expect("an empty buffer has room for any datagram")
    }

    fn send(&mut self, to: Endpoint, bytes: usize) {
        self.runs.push(to, bytes);
    }

    fn deliver(&mut self, network: NetworkId, packet: &[u8]) -> Result<(), Count> {
        if !self.tunnels.contains_key(&network) {
            return Err(Count::NoTunnel);
        }
        let (tunnels, counts) = (&self.tunnels, &mut self.counts);
        self.frames.push(network, packet, |network, frame, packets| {
            write(tunnels, counts, network, frame, packets);
        });
        Ok(())
    }
}

fn watch(epoll: &OwnedFd, fd: BorrowedFd<'_>, event: Event) -> Result<(), ServerError> {
    let data = epoll::EventData::new_u64(event.encode());
    epoll::add(epoll, fd, data, epoll::EventFlags::IN).map_err(|error| ServerError::Watch(error.into()))
}

fn now() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { steady: Instant::now(), unix_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_epolls_data() {
        for event in [
            Event::Datagrams,
            Event::Orders,
            Event::Tick,
            Event::Frames(NetworkId(1)),
            Event::Frames(NetworkId(u32::MAX)),
        ] {
            assert_eq!(Event::decode(event.encode()), event);
        }
    }
}
