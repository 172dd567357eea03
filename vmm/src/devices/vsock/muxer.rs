//! All connections of one device, and the Unix sockets behind them.
//!
//! Nothing here grows without bound at the wish of the guest or of a client: connections, handshakes and
//! waiting RST packets have a limit each, and every half-open state a deadline.

use super::connection::{Connection, Fate, Phase, Ports};
use super::packet::{HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::{Counter, Counters};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, recv};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most connections; with the buffer of each, 32 MiB at worst.
const MAX_CONNECTIONS: usize = 256;
/// Most clients that have not yet said which port they want.
const MAX_HANDSHAKES: usize = 64;
/// Most RST packets that wait for room in the guest.
const MAX_RESETS: usize = 256;
/// Longest first line of a client: `CONNECT ` and ten digits.
const MAX_LINE: usize = 32;
/// How long a client may take to write its first line.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Clients accepted, and events taken, at one time.
const EVENTS_AT_ONCE: usize = 64;
/// First port number of the host's side of its own connections: away from what services listen on.
const FIRST_HOST_PORT: u32 = 1 << 30;

const LISTENER: u64 = 0;

/// Something with a Unix socket that is watched.
#[derive(Debug)]
enum Peer {
    /// A client that has not said its port yet.
    Handshake { stream: UnixStream, deadline: Instant },
    /// A connection.
    Connection(Box<Connection>),
}

#[derive(Debug)]
pub(super) struct Muxer {
    guest_cid: u64,
    listener: UnixListener,
    base: PathBuf,
    epoll: OwnedFd,
    peers: HashMap<u64, Peer>,
    by_ports: HashMap<Ports, u64>,
    handshakes: usize,
    next_token: u64,
    next_port: u32,
    /// Connections that may have something to send, each once.
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
}

impl Muxer {
    /// Watches `listener`; the guest's own connections go to `<base>_<port>`.
    pub fn new(guest_cid: u64, listener: UnixListener, base: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &listener,
            epoll::EventData::new_u64(LISTENER),
            epoll::EventFlags::IN | epoll::EventFlags::ET,
        )?;
        Ok(Self {
            guest_cid,
            listener,
            base,
            epoll,
            peers: HashMap::new(),
            by_ports: HashMap::new(),
            handshakes: 0,
            next_token: LISTENER + 1,
            next_port: FIRST_HOST_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
        })
    }

    /// Readable when [`Self::events`] has something to do.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub fn guest_cid(&self) -> u64 {
        self.guest_cid
    }

    /// Ends all connections and forgets all packets.
    pub fn clear(&mut self) {
        self.peers.clear();
        self.by_ports.clear();
        self.handshakes = 0;
        self.ready.clear();
        self.resets.clear();
    }

    /// When [`Self::expire`] has something to do.
    pub fn next_deadline(&self) -> Option<Instant> {
        let deadline = |peer: &Peer| match peer {
            Peer::Handshake { deadline, .. } => Some(*deadline),
            Peer::Connection(connection) => connection.deadline,
        };
        self.peers.values().filter_map(deadline).min()
    }

    /// Ends what has passed its deadline.
    pub fn expire(&mut self, now: Instant, counters: &Counters) {
        let late = |peer: &Peer| match peer {
            Peer::Handshake { deadline, .. } => *deadline <= now,
            Peer::Connection(connection) => connection.deadline.is_some_and(|d| d <= now),
        };
        let tokens: Vec<u64> = self.peers.iter().filter(|(_, p)| late(p)).map(|(t, _)| *t).collect();
        for token in tokens {
            match self.remove(token) {
                Some(Peer::Handshake { .. }) => counters.count(Counter::VsockBadHandshake),
                Some(Peer::Connection(connection)) => {
                    counters.count(Counter::VsockTimeout);
                    self.reset(connection.ports, counters);
                }
                None => {}
            }
        }
    }

    /// Serves what happened on the Unix sockets.
    pub fn events(&mut self, now: Instant, counters: &Counters) -> io::Result<()> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_AT_ONCE);
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&at_once)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in events {
            let token = event.data.u64();
            let flags = event.flags;
            if token == LISTENER {
                self.accept(now, counters);
                continue;
            }
            let gone = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            match self.peers.get_mut(&token) {
                Some(Peer::Handshake { .. }) => self.handshake(token, now, counters),
                Some(Peer::Connection(connection)) => {
                    let readable = flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP) || gone;
                    let fate = connection.stream_event(readable, gone);
                    self.settle(token, fate, counters);
                }
                // Removed by an earlier event of this round.
                None => {}
            }
        }
        Ok(())
    }

    /// Whether [`Self::next_packet`] may have something.
    pub fn has_packets(&self) -> bool {
        !self.ready.is_empty() || !self.resets.is_empty()
    }

    /// The next packet to the guest, with up to `room` bytes of data in `data`.
    pub fn next_packet(&mut self, room: usize, data: &mut Vec<u8>, now: Instant) -> Option<Header> {
        data.clear();
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(Peer::Connection(connection)) = self.peers.get_mut(&token) else { continue };
            connection.queued = false;
            let packet = connection.next_packet(room, data, now);
            let ports = connection.ports;
            self.queue(token);
            if let Some(packet) = packet {
                return Some(self.address(packet, ports));
            }
        }
        None
    }

    /// A packet of the guest with its data.
    pub fn receive(&mut self, header: &Header, data: &[u8], now: Instant, counters: &Counters) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return counters.count(Counter::VsockBadAddress);
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let (Some(op), TYPE_STREAM) = (Op::from_number(header.op), header.kind) else {
            counters.count(Counter::VsockBadPacket);
            return self.break_off(ports, counters);
        };
        let Some(token) = self.by_ports.get(&ports).copied() else {
            return self.receive_new(op, header, ports, counters);
        };
        let Some(Peer::Connection(connection)) = self.peers.get_mut(&token) else { return };
        connection.credit(header);
        let fate = match op {
            Op::Reset => Fate::Over,
            Op::Response if connection.phase == Phase::Requested => connection.established(),
            Op::Request | Op::Response => {
                counters.count(Counter::VsockBadPacket);
                Fate::Reset
            }
            // The guest has not accepted, yet it sends.
            Op::Data | Op::Shutdown if connection.phase == Phase::Requested => {
                counters.count(Counter::VsockBadPacket);
                Fate::Reset
            }
            Op::Data if !connection.accepts(data.len()) => {
                counters.count(Counter::VsockCreditOverrun);
                Fate::Reset
            }
            Op::Data => connection.data(data),
            Op::Shutdown => connection.shutdown(header.flags, now),
            Op::CreditUpdate => Fate::Lives,
            Op::CreditRequest => {
                connection.credit_requested();
                Fate::Lives
            }
        };
        self.settle(token, fate, counters);
    }

    /// A packet for which there is no connection.
    fn receive_new(&mut self, op: Op, header: &Header, ports: Ports, counters: &Counters) {
        match op {
            Op::Request => {}
            Op::Reset => return,
            Op::Response | Op::Shutdown | Op::Data | Op::CreditUpdate | Op::CreditRequest => {
                counters.count(Counter::VsockNoConnection);
                return self.reset(ports, counters);
            }
        }
        if self.by_ports.len() >= MAX_CONNECTIONS {
            counters.count(Counter::VsockTableFull);
            return self.reset(ports, counters);
        }
        let stream = match connect(&self.base, ports.host) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, port = ports.host, "nobody listens for the guest");
                counters.count(Counter::VsockNoListener);
                return self.reset(ports, counters);
            }
        };
        match self.watch(&stream) {
            Ok(token) => {
                let connection = Connection::accepted(stream, ports, header);
                self.insert(token, connection);
            }
            Err(error) => {
                tracing::error!(%error, "cannot watch a Unix socket");
                self.reset(ports, counters);
            }
        }
    }

    fn accept(&mut self, now: Instant, counters: &Counters) {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return tracing::error!(%error, "cannot accept a client of the guest's sockets"),
            };
            if self.handshakes >= MAX_HANDSHAKES {
                // The client sees end of file at once, which is better than a queue without end.
                counters.count(Counter::VsockTableFull);
                continue;
            }
            match stream.set_nonblocking(true).and_then(|()| self.watch(&stream)) {
                Ok(token) => {
                    self.handshakes += 1;
                    let deadline = now + HANDSHAKE_DEADLINE;
                    self.peers.insert(token, Peer::Handshake { stream, deadline });
                }
                Err(error) => tracing::error!(%error, "cannot watch a Unix socket"),
            }
        }
    }

    /// Reads a client's first line, if it is there, and asks the guest.
    fn handshake(&mut self, token: u64, now: Instant, counters: &Counters) {
        let Some(Peer::Handshake { stream, .. }) = self.peers.get(&token) else { return };
        match read_line(stream) {
            Ok(Line::Incomplete) => {}
            Ok(Line::Connect(guest)) if self.by_ports.len() < MAX_CONNECTIONS => {
                let Some(Peer::Handshake { stream, .. }) = self.remove(token) else { return };
                let ports = Ports { host: self.free_port(guest), guest };
                let connection = Connection::requested(stream, ports, now);
                self.insert(token, connection);
            }
            Ok(Line::Connect(_)) => {
                counters.count(Counter::VsockTableFull);
                self.remove(token);
            }
            Ok(Line::Bad) => {
                counters.count(Counter::VsockBadHandshake);
                self.remove(token);
            }
            Err(error) => {
                tracing::debug!(%error, "a client went away before it said a port");
                counters.count(Counter::VsockBadHandshake);
                self.remove(token);
            }
        }
    }

    fn free_port(&mut self, guest: u32) -> u32 {
        // There are far more ports than connections, so this ends soon.
        loop {
            let host = self.next_port;
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_HOST_PORT);
            if !self.by_ports.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    fn watch(&mut self, stream: &UnixStream) -> io::Result<u64> {
        let token = self.next_token;
        self.next_token += 1;
        let interest =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        epoll::add(&self.epoll, stream, epoll::EventData::new_u64(token), interest)?;
        Ok(token)
    }

    fn insert(&mut self, token: u64, connection: Connection) {
        self.by_ports.insert(connection.ports, token);
        self.peers.insert(token, Peer::Connection(Box::new(connection)));
        self.queue(token);
    }

    /// Removes a peer; dropping its stream also ends the watch.
    fn remove(&mut self, token: u64) -> Option<Peer> {
        let peer = self.peers.remove(&token);
        match &peer {
            Some(Peer::Handshake { .. }) => self.handshakes -= 1,
            Some(Peer::Connection(connection)) => {
                self.by_ports.remove(&connection.ports);
            }
            None => {}
        }
        peer
    }

    /// Does what became of a connection.
    fn settle(&mut self, token: u64, fate: Fate, counters: &Counters) {
        match fate {
            Fate::Lives => self.queue(token),
            Fate::Over => {
                self.remove(token);
            }
            Fate::Reset => {
                if let Some(Peer::Connection(connection)) = self.remove(token) {
                    self.reset(connection.ports, counters);
                }
            }
        }
    }

    fn queue(&mut self, token: u64) {
        if let Some(Peer::Connection(connection)) = self.peers.get_mut(&token)
            && !connection.queued
            && connection.wants_to_send()
        {
            connection.queued = true;
            self.ready.push_back(token);
        }
    }

    fn break_off(&mut self, ports: Ports, counters: &Counters) {
        if let Some(token) = self.by_ports.get(&ports).copied() {
            self.remove(token);
        }
        self.reset(ports, counters);
    }

    fn reset(&mut self, ports: Ports, counters: &Counters) {
        if self.resets.len() >= MAX_RESETS {
            return counters.count(Counter::VsockRstDropped);
        }
        let reset = Header { op: Op::Reset as u16, ..Header::default() };
        let reset = self.address(reset, ports);
        self.resets.push_back(reset);
    }

    fn address(&self, header: Header, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            ..header
        }
    }
}

/// A client's first line.
enum Line {
    Incomplete,
    Connect(u32),
    Bad,
}

/// Takes the first line and nothing behind it.
fn read_line(stream: &UnixStream) -> io::Result<Line> {
    let mut bytes = [0u8; MAX_LINE];
    let peeked = match recv(stream, &mut bytes, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
        Ok((peeked, _)) => peeked,
        Err(Errno::AGAIN | Errno::INTR) => return Ok(Line::Incomplete),
        Err(error) => return Err(error.into()),
    };
    if peeked == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let Some(end) = bytes[..peeked].iter().position(|b| *b == b'\n') else {
        return Ok(if peeked == MAX_LINE { Line::Bad } else { Line::Incomplete });
    };
    let (_, taken) = recv(stream, &mut bytes[..=end], RecvFlags::DONTWAIT)?;
    debug_assert_eq!(taken, end + 1);
    let line = std::str::from_utf8(&bytes[..end]).ok().and_then(|l| l.strip_prefix("CONNECT "));
    Ok(line.and_then(|port| port.parse().ok()).map_or(Line::Bad, Line::Connect))
}

/// Connects to the host's socket for a port, without waiting.
fn connect(base: &Path, port: u32) -> io::Result<UnixStream> {
    let mut path = base.as_os_str().to_owned();
    path.push(format!("_{port}"));
    let address = SocketAddrUnix::new(Path::new(&path))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}
