//! What becomes of each datagram of a client and each frame of a network.
//!
//! ```text
//!   datagram ─► shape ─┬ data ──────────────────────────► index ─┐
//!                      ├ cookie ────────────────────────► index ─┤
//!                      └ handshake ─► mac1 ─► budget ─┬ response ┤
//!                                     (or cookie)     └ key ─────┤
//!                                                                ▼
//!   over? ─► noise ─► answers to the client; the inner packet: whole, from the session's address, into its network
//!
//!   frame ─► whole ─► (network, destination) = session ─► over? ─► keys? ─► fits? ─► split ─► clamp ─► pad ─► seal
//! ```
//!
//! The endpoint moves with every message that only the client can have sent, save a cookie, which a party on the path
//! can make it send from elsewhere. An initiation that makes a state may be an old one, sent again by somebody else: it
//! is answered, as the protocol has it, and keeps nothing alive until data under the new keys comes.

use super::budget::Budget;
use super::count::{Count, Counts};
use super::ipv4::{self, Fault};
use super::noise::{self, COOKIE_BYTES, Identity, MIN_ROOM, Message, OVERHEAD};
use super::offload::{Frame, MAX_FRAME_BYTES, VNET_BYTES};
use super::runs::Endpoint;
use super::table::{NetworkId, Place, SILENCE, Session, TOO_BIG, Table};
use super::{Now, tcp};
use crate::client::SessionStatus;
use boringtun::noise::{Tunn, TunnResult};
use model::id::VpcId;
use model::view::VpnView;
use rand::rngs::StdRng;
use std::hash::RandomState;
use std::net::Ipv4Addr;

/// Largest UDP datagram, and what opening it needs behind.
const OPENED_BYTES: usize = 65_535 + MIN_ROOM;
/// Queued answers of a state at most (the library's own queue).
const MAX_ANSWERS: usize = 256;

/// What the operator chose.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Largest IP packet in a tunnel, 576..=9000.
    pub mtu: u16,
    /// Whether clients of one network reach each other.
    pub client_to_client: bool,
}

/// Where things go.
pub trait Wire {
    /// Where the next datagram is written: at least so many bytes and at least [`MIN_ROOM`].
    fn room(&mut self, bytes: usize) -> &mut [u8];
    /// Sends the bytes that were written there.
    fn send(&mut self, to: Endpoint, bytes: usize);
    /// Passes a packet into a network.
    ///
    /// # Errors
    /// The reason for which it is dropped.
    fn deliver(&mut self, network: NetworkId, packet: &[u8]) -> Result<(), Count>;
}

/// All of the server but its sockets.
pub struct Engine {
    rules: Rules,
    identity: Option<Identity>,
    table: Table,
    budget: Budget,
    rng: StdRng,
    counts: Counts,
    /// What was opened last.
    opened: Box<[u8]>,
    /// What is sealed next.
    plain: Box<[u8]>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("rules", &self.rules)
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// A server without sessions; `hasher` and `rng` are seeded by the caller.
    #[must_use]
    pub fn new(rules: Rules, hasher: RandomState, rng: StdRng, now: Now) -> Self {
        Self {
            rules,
            identity: None,
            table: Table::default(),
            budget: Budget::new(hasher, now.steady),
            rng,
            counts: Counts::default(),
            opened: vec![0; OPENED_BYTES].into(),
            plain: vec![0; VNET_BYTES + MAX_FRAME_BYTES].into(),
        }
    }

    /// Takes a view over; see [`Table::apply`].
    pub fn apply(&mut self, view: &VpnView, now: Now) {
        if self.identity.as_ref().is_none_or(|identity| !identity.is(&view.server_key)) {
            self.table.silence_all();
            self.identity = Some(Identity::new(&view.server_key));
        }
        if let Some(identity) = &self.identity {
            self.table.apply(view, identity, now, &mut self.counts);
        }
    }

    /// The table, to look at.
    #[must_use]
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The sessions of one network, or of all, to look at.
    #[must_use]
    pub fn sessions(&self, vpc: Option<&VpcId>, now: Now) -> Vec<SessionStatus> {
        let network = vpc.map(|vpc| self.table.networks().find(|(_, known)| *known == vpc));
        match network {
            Some(None) => Vec::new(),
            Some(Some((network, _))) => self.table.statuses(Some(network), now),
            None => self.table.statuses(None, now),
        }
    }

    /// A session, for tests that must look into its state.
    #[cfg(feature = "test-parts")]
    pub fn session_for_test(&mut self, place: Place) -> Option<&mut Session> {
        self.table.session(place)
    }

    /// The counters.
    pub fn counts(&mut self) -> &mut Counts {
        &mut self.counts
    }

    /// Takes a datagram.
    pub fn receive(&mut self, from: Endpoint, datagram: &[u8], now: Now, wire: &mut impl Wire) {
        self.counts.count(Count::DatagramsIn);
        if let Err(reason) = self.received(from, datagram, now, wire) {
            self.counts.count(reason);
        }
    }

    fn received(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        now: Now,
        wire: &mut impl Wire,
    ) -> Result<(), Count> {
        let message = noise::shape(datagram)?;
        match message {
            Message::Initiation => {
                self.admit(from, datagram, now, wire)?;
                self.initiation(from, datagram, now, wire)
            }
            Message::Response => {
                self.admit(from, datagram, now, wire)?;
                self.by_index(from, datagram, message, now, wire)
            }
            Message::Cookie | Message::Data => self.by_index(from, datagram, message, now, wire),
        }
    }

    /// Whether a handshake message may cost what it costs.
    fn admit(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        now: Now,
        wire: &mut impl Wire,
    ) -> Result<(), Count> {
        let identity =
            self.identity.as_ref().filter(|identity| identity.mac1(datagram)).ok_or(Count::Mac1)?;
        let address = from.remote.ip();
        if self.budget.unproven(address, now.steady) {
            return Ok(());
        }
        let mut cookie = [0; COOKIE_BYTES];
        if !identity.proven(from.remote, datagram, &mut cookie) {
            answer(&cookie, from, &mut self.counts, wire);
            return Err(Count::CookieSent);
        }
        if self.budget.proven(address, now.steady) { Ok(()) } else { Err(Count::Flood) }
    }

    fn initiation(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        now: Now,
        wire: &mut impl Wire,
    ) -> Result<(), Count> {
        if self.renewal(from, datagram, now, wire).is_some() {
            return Ok(());
        }
        let identity = self.identity.as_ref().ok_or(Count::UnknownKey)?;
        let key = identity.initiator(datagram).ok_or(Count::Unreadable)?;
        let place = self.table.by_key(&key).ok_or(Count::UnknownKey)?;
        let session = self.table.going(place, now, &mut self.counts).ok_or(Count::Ended)?;
        if let Some(live) = session.live() {
            handshake(&mut live.state, datagram, from, &mut self.opened, &mut self.counts, wire)?;
            session.touch(from, now, &mut self.counts);
        } else {
            let mut made = self.table.state(place, identity, &mut self.rng)?;
            handshake(&mut made.0, datagram, from, &mut self.opened, &mut self.counts, wire)?;
            self.table.awake(place, made, from, now);
            self.counts.count(Count::Awoken);
        }
        self.table.called(place, from.remote);
        self.counts.count(Count::Handshakes);
        Ok(())
    }

    /// Answers the initiation of a client that stands where it stood at its last one: its state opens it without the
    /// multiplication that finds out whose it is, one of five. What it does not answer has changed nothing, and goes the
    /// long way: two more multiplications at most, which is less than an answer costs.
    fn renewal(&mut self, from: Endpoint, datagram: &[u8], now: Now, wire: &mut impl Wire) -> Option<()> {
        let place = self.table.by_caller(from.remote)?;
        let session = self.table.going(place, now, &mut self.counts)?;
        let live = session.live()?;
        handshake(&mut live.state, datagram, from, &mut self.opened, &mut self.counts, wire).ok()?;
        session.touch(from, now, &mut self.counts);
        self.counts.count(Count::Handshakes);
        Some(())
    }

    /// Hands a message to the state whose index it bears.
    fn by_index(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        message: Message,
        now: Now,
        wire: &mut impl Wire,
    ) -> Result<(), Count> {
        let place = self.table.by_receiver(datagram, message).ok_or(Count::UnknownIndex)?;
        let session = self.table.going(place, now, &mut self.counts).ok_or(Count::Ended)?;
        let live = session.live().ok_or(Count::UnknownIndex)?;
        let packet = match live.state.decapsulate(None, datagram, &mut self.opened) {
            TunnResult::Err(error) => return Err(noise::refused(&error, message)),
            // A keepalive, or a cookie, which moves nothing.
            TunnResult::Done => {
                if message == Message::Data {
                    session.touch(from, now, &mut self.counts);
                    self.counts.count(Count::Keepalives);
                }
                return Ok(());
            }
            TunnResult::WriteToNetwork(bytes) => {
                answer(bytes, from, &mut self.counts, wire);
                answers(&mut live.state, from, &mut self.opened, &mut self.counts, wire);
                session.touch(from, now, &mut self.counts);
                return Ok(());
            }
            TunnResult::WriteToTunnelV4(packet, _) => packet,
            TunnResult::WriteToTunnelV6(..) => {
                session.touch(from, now, &mut self.counts);
                return Err(Count::InnerIpv6);
            }
        };
        session.touch(from, now, &mut self.counts);
        let bytes = packet.len();
        match inner(session, packet, self.rules.mtu, &mut self.counts)? {
            Way::Network(network) => wire.deliver(network, &self.opened[..bytes])?,
            Way::Elsewhere(network, address) => self.neighbour(network, address, bytes, now, wire)?,
        }
        self.counts.count(Count::PacketsIn);
        self.counts.add(Count::BytesIn, bytes as u64);
        Ok(())
    }

    /// Passes what was opened last to another client of the network, if they may reach each other.
    fn neighbour(
        &mut self,
        network: NetworkId,
        address: Ipv4Addr,
        bytes: usize,
        now: Now,
        wire: &mut impl Wire,
    ) -> Result<(), Count> {
        let place = self.rules.client_to_client.then(|| self.table.by_address(network, address)).flatten();
        let session =
            place.and_then(|place| self.table.going(place, now, &mut self.counts)).ok_or(Count::Outside)?;
        if bytes > usize::from(self.rules.mtu) {
            return Err(Count::TooBigMuted);
        }
        self.plain[..bytes].copy_from_slice(&self.opened[..bytes]);
        seal(session, &mut self.plain, bytes, self.rules.mtu, &mut self.counts, wire)
    }

    /// Takes a frame of a network's TUN, with the header in front of it.
    pub fn transmit(&mut self, network: NetworkId, given: &mut [u8], now: Now, wire: &mut impl Wire) {
        if let Err(reason) = self.transmitted(network, given, now, wire) {
            self.counts.count(reason);
        }
    }

    fn transmitted(
        &mut self,
        network: NetworkId,
        given: &mut [u8],
        now: Now,
        wire: &mut impl Wire,
    ) -> Result<(), Count> {
        let mut frame = Frame::read(given).map_err(|fault| match fault {
            Fault::Ipv6 => Count::FrameIpv6,
            Fault::Malformed => Count::BadFrame,
        })?;
        let place = self.table.by_address(network, frame.header.destination).ok_or(Count::NoSession)?;
        let session = self.table.going(place, now, &mut self.counts).ok_or(Count::Ended)?;
        let live = session.live().ok_or(Count::NotConnected)?;
        if live.state.time_since_last_handshake().is_none() {
            return Err(Count::NotConnected);
        }
        if frame.largest() > usize::from(self.rules.mtu) {
            if !frame.header.whole {
                return Err(Count::TooBigUncut);
            }
            if !live.told.take(TOO_BIG, now.steady) {
                return Err(Count::TooBigMuted);
            }
            let mut told = [0; ipv4::TOO_BIG_BYTES];
            let bytes = ipv4::too_big(frame.bytes(), &frame.header, self.rules.mtu, &mut told);
            wire.deliver(network, &told[..bytes])?;
            return Err(Count::TooBigTold);
        }
        while let Some(bytes) = frame.next(&mut self.plain) {
            let packet = &mut self.plain[..bytes];
            if tcp::clamp(packet, &frame.header, self.rules.mtu) {
                self.counts.count(Count::Clamped);
            }
            seal(session, &mut self.plain, bytes, self.rules.mtu, &mut self.counts, wire)?;
        }
        Ok(())
    }

    /// Lets all live states look at their timers; to be called every 250 ms.
    pub fn tick(&mut self, now: Now, wire: &mut impl Wire) {
        for rank in (0..self.table.live_count()).rev() {
            let Some(place) = self.table.ranked(rank) else { continue };
            if self.silent(place, now, wire) {
                self.counts.count(Count::Silent);
                self.table.silence(place);
            }
        }
    }

    /// Lets one look at its timers; whether its state is worth nothing any more.
    fn silent(&mut self, place: Place, now: Now, wire: &mut impl Wire) -> bool {
        let Some(live) = self.table.going(place, now, &mut self.counts).and_then(Session::live) else {
            return false;
        };
        if now.steady.saturating_duration_since(live.heard) >= SILENCE {
            return true;
        }
        match live.state.update_timers(&mut self.opened) {
            TunnResult::WriteToNetwork(bytes) => {
                answer(bytes, live.endpoint, &mut self.counts, wire);
                false
            }
            // The keys were not renewed in time.
            TunnResult::Err(_) => true,
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => false,
        }
    }
}

/// Where an inner packet goes.
enum Way {
    Network(NetworkId),
    /// Out of the network's range: perhaps to another client.
    Elsewhere(NetworkId, Ipv4Addr),
}

/// Checks what a client sealed. The library has cut it to the length that it claims, down to nothing.
fn inner(session: &Session, packet: &mut [u8], mtu: u16, counts: &mut Counts) -> Result<Way, Count> {
    let header = ipv4::parse(packet).map_err(|fault| match fault {
        Fault::Ipv6 => Count::InnerIpv6,
        Fault::Malformed => Count::BadInner,
    })?;
    if header.source != session.address {
        return Err(Count::Spoofed);
    }
    if tcp::clamp(packet, &header, mtu) {
        counts.count(Count::Clamped);
    }
    if session.allowed.contains(header.destination) {
        return Ok(Way::Network(session.network));
    }
    Ok(Way::Elsewhere(session.network, header.destination))
}

/// Lets a state answer a handshake message.
fn handshake(
    state: &mut Tunn,
    datagram: &[u8],
    to: Endpoint,
    room: &mut [u8],
    counts: &mut Counts,
    wire: &mut impl Wire,
) -> Result<(), Count> {
    match state.decapsulate(None, datagram, room) {
        TunnResult::WriteToNetwork(bytes) => answer(bytes, to, counts, wire),
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => return Err(Count::Handshake),
    }
    answers(state, to, room, counts, wire);
    Ok(())
}

/// Sends what a state still has to say.
fn answers(state: &mut Tunn, to: Endpoint, room: &mut [u8], counts: &mut Counts, wire: &mut impl Wire) {
    for _ in 0..MAX_ANSWERS {
        match state.decapsulate(None, &[], room) {
            TunnResult::WriteToNetwork(bytes) => answer(bytes, to, counts, wire),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return,
        }
    }
}

fn answer(bytes: &[u8], to: Endpoint, counts: &mut Counts, wire: &mut impl Wire) {
    wire.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
    wire.send(to, bytes.len());
    counts.count(Count::DatagramsOut);
}

/// Seals the packet at the beginning of `plain` for a session's client.
fn seal(
    session: &mut Session,
    plain: &mut [u8],
    bytes: usize,
    mtu: u16,
    counts: &mut Counts,
    wire: &mut impl Wire,
) -> Result<(), Count> {
    let live = session.live().ok_or(Count::NotConnected)?;
    let padded = noise::padded(bytes, mtu);
    plain[bytes..padded].fill(0);
    let room = wire.room(padded + OVERHEAD);
    let sealed = noise::seal(&mut live.state, &plain[..padded], room).ok_or(Count::NotConnected)?;
    wire.send(live.endpoint, sealed);
    counts.count(Count::DatagramsOut);
    counts.count(Count::PacketsOut);
    counts.add(Count::BytesOut, bytes as u64);
    Ok(())
}
