//! The metadata address as a host on the guest's link: ARP, and a few TCP connections that each carry one request.
//!
//! ```text
//! Listening ──SYN──► Asking ──head complete, or too long──► Answering ──all sent──► Closing ──► Listening
//!                      │                                        │                      │            ▲
//!                      └─────────── LIFE is over (reset), or the guest resets ─────────┴────────────┘
//! ```
//! Checksums of the guest are not verified: it may leave them to its NIC, and its frames come out of memory, not over
//! a wire. For the same reason a large segment that the NIC was to cut is taken as it is. Packets of the answers have
//! all their checksums.

use super::MetadataStore;
use super::http::{self, HEAD_MAX};
use crate::devices::net::frame::{
    ARP_PACKET, ARP_REQUEST, ETHERNET_HEADER, ETHERTYPE_ARP, ETHERTYPE_IPV4, VNET_HEADER,
};
use crate::devices::{Counter, Counters};
use model::net::{GATEWAY_MAC, METADATA_IPV4, MacAddress};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};
use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// Connections at once. A guest asks for one path after the other; the rest are for logins at the same time.
pub const CONNECTIONS: usize = 8;
/// Longest life of a connection, from its first segment on: the answer comes from memory, so a guest that takes
/// longer has forgotten it.
pub const LIFE: Duration = Duration::from_secs(5);
/// Frames that wait for buffers of the guest: all connections' windows at once. Beyond it TCP waits.
pub const REPLIES_MAX: usize = 64;
/// Longest frame that is looked at: headers with all their options, and all that the window allows.
pub const FRAME_MAX: usize = ETHERNET_HEADER + 60 + 60 + WINDOW;

/// The port of HTTP.
const PORT: u16 = 80;
/// Room for what a guest sends on one connection, and for what it has not acknowledged, in bytes.
const WINDOW: usize = HEAD_MAX;
/// Shortest wait for the stack's next deadline, so that one which it cannot meet costs little.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The service of one NIC.
pub struct Service {
    interface: Interface,
    sockets: SocketSet<'static>,
    connections: Vec<Connection>,
    link: Link,
    seed: u64,
    tokens: u64,
}

/// The frames between guest and stack.
struct Link {
    guest: MacAddress,
    mtu: usize,
    /// At most one, between [`Service::take`] and the poll that it makes.
    incoming: Option<Vec<u8>>,
    /// With their virtio-net headers; at most [`REPLIES_MAX`].
    outgoing: VecDeque<Vec<u8>>,
}

/// What is known of one socket's connection.
struct Connection {
    handle: SocketHandle,
    request: Vec<u8>,
    answer: Option<Vec<u8>>,
    written: usize,
    /// When it is reset; set with its first segment.
    ends: Option<Duration>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("replies", &self.link.outgoing.len()).finish_non_exhaustive()
    }
}

impl Service {
    /// A service for the guest with the Ethernet address `guest`, in IP packets of at most `mtu` bytes. `seed` is
    /// random: sequence numbers and tokens are made of it.
    ///
    /// # Panics
    /// Never: a stack has room for one address and one route.
    #[must_use]
    pub fn new(guest: MacAddress, mtu: u16, seed: u64) -> Self {
        let mut link = Link { guest, mtu: mtu.into(), incoming: None, outgoing: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut link, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(METADATA_IPV4.into(), 32)).expect("room for one address");
        });
        // Whatever address the guest asks from, there is one link to it.
        interface.routes_mut().add_default_ipv4_route(METADATA_IPV4).expect("room for one route");
        let mut sockets = SocketSet::new(Vec::with_capacity(CONNECTIONS));
        let connections = (0..CONNECTIONS).map(|_| Connection::new(&mut sockets)).collect();
        Self { interface, sockets, connections, link, seed, tokens: 0 }
    }

    /// Takes a frame of the guest to the metadata address, from its Ethernet header on. `now` is the time since a
    /// moment that stays the same.
    pub fn take(&mut self, frame: Vec<u8>, now: Duration, store: &MetadataStore, counters: &Counters) {
        if frame.len() > FRAME_MAX {
            return counters.count(Counter::NetMetadataTooLong);
        }
        match (frame.get(12..14), self.is_full()) {
            (_, true) => counters.count(Counter::NetMetadataBusy),
            (Some(kind), false) if kind == ETHERTYPE_ARP => {
                let answer = arp_answer(&frame, self.link.guest);
                self.link.outgoing.extend(answer);
            }
            (Some(kind), false) if kind == ETHERTYPE_IPV4 => {
                self.link.incoming = Some(frame);
                self.poll(now, store, counters);
            }
            (Some(_) | None, false) => {}
        }
    }

    /// Does what is due: takes requests, sends answers, ends connections.
    pub fn poll(&mut self, now: Duration, store: &MetadataStore, counters: &Counters) {
        let at = instant(now);
        self.interface.poll(at, &mut self.link, &mut self.sockets);
        for connection in &mut self.connections {
            let token = || {
                self.tokens += 1;
                token(self.seed, self.tokens)
            };
            connection.serve(self.sockets.get_mut(connection.handle), now, store, token, counters);
        }
        self.interface.poll(at, &mut self.link, &mut self.sockets);
        for connection in &mut self.connections {
            connection.listen_again(self.sockets.get_mut(connection.handle));
        }
    }

    /// When [`Self::poll`] is due at the latest.
    pub fn next_deadline(&mut self, now: Duration) -> Option<Duration> {
        let ends = self.connections.iter().filter_map(|connection| connection.ends).min();
        if self.is_full() {
            // The stack can do nothing before the guest takes a frame.
            return ends;
        }
        let due = self.interface.poll_at(instant(now), &self.sockets);
        let due = due.map(|at| Duration::from_micros(at.total_micros().max(0).cast_unsigned()));
        let due = due.map(|at| at.max(now + SHORTEST_WAIT));
        [ends, due].into_iter().flatten().min()
    }

    /// Frames that wait for the guest; at most [`REPLIES_MAX`].
    #[must_use]
    pub fn replies(&self) -> usize {
        self.link.outgoing.len()
    }

    /// Whether frames wait for the guest.
    #[must_use]
    pub fn has_replies(&self) -> bool {
        self.replies() > 0
    }

    /// Whether no further frame may wait. Once it is not, [`Self::poll`] is due.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.replies() >= REPLIES_MAX
    }

    /// The next frame for the guest, with its virtio-net header.
    pub fn next_reply(&mut self) -> Option<Vec<u8>> {
        self.link.outgoing.pop_front()
    }

    /// Forgets all connections and frames.
    pub fn clear(&mut self) {
        self.link.incoming = None;
        self.link.outgoing.clear();
        for connection in &mut self.connections {
            let socket: &mut Socket<'_> = self.sockets.get_mut(connection.handle);
            socket.abort();
            connection.listen_again(socket);
        }
    }

    /// Connections that are not over.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.iter().filter(|connection| connection.ends.is_some()).count()
    }
}

impl Connection {
    fn new(sockets: &mut SocketSet<'static>) -> Self {
        let room = || SocketBuffer::new(vec![0; WINDOW]);
        let mut socket = Socket::new(room(), room());
        // There is nothing to wait for: the guest is as near as can be, and all of an answer is there.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut new =
            Self { handle: sockets.add(socket), request: Vec::new(), answer: None, written: 0, ends: None };
        new.listen_again(sockets.get_mut(new.handle));
        new
    }

    fn serve(
        &mut self,
        socket: &mut Socket<'_>,
        now: Duration,
        store: &MetadataStore,
        token: impl FnOnce() -> String,
        counters: &Counters,
    ) {
        if matches!(socket.state(), State::Listen | State::Closed | State::TimeWait) {
            return;
        }
        if now >= *self.ends.get_or_insert(now + LIFE) {
            counters.count(Counter::NetMetadataTimeout);
            return socket.abort();
        }
        self.read(socket);
        if self.answer.is_none() && socket.state() != State::SynReceived {
            self.answer = http::answer(&self.request, store.get().as_deref(), token);
        }
        let Some(answer) = &self.answer else {
            if !socket.may_recv() && socket.state() != State::SynReceived {
                // The guest said its last word before the head was complete.
                socket.close();
            }
            return;
        };
        if socket.can_send() {
            // It can be sent, so there is no error.
            self.written += socket.send_slice(&answer[self.written..]).unwrap_or(0);
        }
        if self.written == answer.len() {
            socket.close();
        }
    }

    /// Takes what has come: to the request up to its bound, and to nowhere when the answer is made.
    fn read(&mut self, socket: &mut Socket<'_>) {
        while socket.can_recv() {
            let room = HEAD_MAX - self.request.len();
            let wanted = self.answer.is_none();
            if wanted && room == 0 {
                return;
            }
            let taken = socket.recv(|bytes| {
                let taken = if wanted { bytes.len().min(room) } else { bytes.len() };
                if wanted {
                    self.request.extend_from_slice(&bytes[..taken]);
                }
                (taken, taken)
            });
            if !taken.is_ok_and(|taken| taken > 0) {
                return;
            }
        }
    }

    /// A connection that is over makes room for the next. Nobody but this guest could have segments on the way, so
    /// there is no wait (RFC 9293 section 3.6.1).
    fn listen_again(&mut self, socket: &mut Socket<'_>) {
        if !socket.is_open() {
            socket.abort();
            socket.listen(PORT).expect("a closed socket can listen on a port that is not 0");
        }
        // A reset in answer to our SYN leads here without an end.
        if socket.is_listening() {
            self.forget();
        }
    }

    fn forget(&mut self) {
        // The room for a request is given back: most guests never ask.
        self.request = Vec::new();
        self.answer = None;
        self.written = 0;
        self.ends = None;
    }
}

/// The answer to an ARP request for the metadata address (RFC 826): the gateway's Ethernet address, behind which
/// all lies that is not the guest.
fn arp_answer(frame: &[u8], guest: MacAddress) -> Option<Vec<u8>> {
    let packet: &[u8; ARP_PACKET] = frame.get(ETHERNET_HEADER..)?.first_chunk()?;
    let (kind, rest) = packet.split_at(6);
    // Ethernet and IPv4, with addresses of 6 and 4 bytes.
    let understood = kind == [0, 1, 8, 0, 6, 4] && rest[..2] == ARP_REQUEST;
    if !understood || packet[24..] != METADATA_IPV4.octets() {
        return None;
    }
    let mut answer = header(guest, ETHERTYPE_ARP);
    answer.extend(kind);
    answer.extend([0, 2]);
    answer.extend(GATEWAY_MAC.0);
    answer.extend(METADATA_IPV4.octets());
    // To the sender, whatever it calls itself.
    answer.extend(&packet[8..18]);
    Some(answer)
}

/// An empty virtio-net header, which asks for nothing, and an Ethernet header to the guest.
fn header(guest: MacAddress, ethertype: [u8; 2]) -> Vec<u8> {
    let mut frame = vec![0; VNET_HEADER];
    frame.extend(guest.0);
    frame.extend(GATEWAY_MAC.0);
    frame.extend(ethertype);
    frame
}

/// A token that says nothing of the next one to whoever has not the seed. Nothing is granted for it.
fn token(seed: u64, number: u64) -> String {
    let half = |half: u8| {
        let mut hasher = DefaultHasher::new();
        (seed, number, half).hash(&mut hasher);
        hasher.finish()
    };
    format!("{:016x}{:016x}", half(0), half(1))
}

fn instant(now: Duration) -> Instant {
    // 292 thousand years fit.
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

impl Device for Link {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let frame = self.incoming.take()?;
        // One frame has one answer, for which there was room when it was taken.
        Some((Incoming(frame), Outgoing(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < REPLIES_MAX).then_some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities.checksum.icmpv4 = Checksum::Tx;
        capabilities
    }
}

/// A frame for the stack.
struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0.get(ETHERNET_HEADER..).unwrap_or_default())
    }
}

/// Room for a frame of the stack.
struct Outgoing<'a>(&'a mut Link);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = header(self.0.guest, ETHERTYPE_IPV4);
        let start = frame.len();
        frame.resize(start + len, 0);
        let result = f(&mut frame[start..]);
        self.0.outgoing.push_back(frame);
        result
    }
}

#[cfg(test)]
mod tests;
