//! Who may come in, and the state of those who have.
//!
//! ```text
//!   view ─► Registered ─ first valid initiation ─► Live ─ 180 s silent, or keys given up ─► Registered
//!               │                                   │
//!               └── left the view, deadline, idle ──┴─► gone, its state with it: the next packet finds nothing
//! ```
//!
//! A registration is some 200 bytes, a live state 11 KiB more; most clients of a large house are not there.

use super::budget::{Allowance, Bucket};
use super::count::{Count, Counts};
use super::noise::Identity;
use super::runs::Endpoint;
use super::{Now, noise};
use crate::client::{SessionState, SessionStatus};
use boringtun::noise::Tunn;
use model::id::{VpcId, WireGuardSessionId};
use model::key::{PublicKey, SecretKey};
use model::net::Ipv4Cidr;
use model::view::{SessionEntry, VpnView};
use rand::RngCore;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Sessions that are registered: 13 MB, and 700 MB if all of them were live.
pub const MAX_SESSIONS: usize = 65_536;
/// A state whose client was silent for so long has no keys that are still good (`Reject-After-Time`).
pub const SILENCE: Duration = Duration::from_secs(180);
/// Draws of an index before an initiation is dropped; at the bound of sessions one in 256 draws is taken already.
const INDEX_DRAWS: usize = 16;
/// How often a client's peers in the network are told that their packets are too large.
pub const TOO_BIG: Allowance = Allowance { per_second: 10, burst: 20 };

/// A network's number, which no other ever had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkId(pub u32);

/// Where a session stands in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(u32);

/// A registered client.
#[derive(Debug)]
pub struct Session {
    id: WireGuardSessionId,
    /// Its network.
    pub network: NetworkId,
    key: PublicKey,
    preshared: Option<SecretKey>,
    /// The only source of what it sends.
    pub address: Ipv4Addr,
    /// The only destinations.
    pub allowed: Ipv4Cidr,
    expires_unix_ms: u64,
    idle: Duration,
    /// When something came that only the client can have sent.
    seen: Instant,
    idled: bool,
    live: Option<Box<Live>>,
}

/// The state of a client that has come.
pub struct Live {
    /// Its keys and timers.
    pub state: Tunn,
    /// Where it was last.
    pub endpoint: Endpoint,
    /// When it was heard of last.
    pub heard: Instant,
    /// How often its peers may be told that a packet is too large.
    pub told: Bucket,
    index: u32,
    /// Where it stands in the list of live ones.
    rank: usize,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Session {
    /// Its state, when its client has come.
    pub fn live(&mut self) -> Option<&mut Live> {
        self.live.as_deref_mut()
    }

    /// Notes that something came from its client and nobody else, and from where.
    pub fn touch(&mut self, from: Endpoint, now: Now, counts: &mut Counts) {
        self.seen = now.steady;
        if let Some(live) = self.live.as_deref_mut() {
            live.heard = now.steady;
            if live.endpoint != from {
                live.endpoint = from;
                counts.count(Count::Roamed);
            }
        }
    }

    fn status(&self, now: Now) -> SessionStatus {
        let silent = now.steady.saturating_duration_since(self.seen);
        let live = self.live.as_deref();
        let (handshake, sent, received) = live.map_or((None, 0, 0), |live| {
            let (handshake, sent, received, _, _) = live.state.stats();
            (handshake, sent, received)
        });
        // Nobody looks at an idle session's clock but when its client comes.
        let idled = self.idled || silent >= self.idle;
        SessionStatus {
            id: self.id.clone(),
            state: match (idled, live) {
                (true, _) => SessionState::Idled,
                (false, Some(_)) => SessionState::Live,
                (false, None) => SessionState::Registered,
            },
            endpoint: live.map(|live| live.endpoint.remote),
            silent_seconds: silent.as_secs(),
            handshake_seconds: handshake.map(|since| since.as_secs()),
            received_bytes: received as u64,
            sent_bytes: sent as u64,
        }
    }

    fn is_entry(&self, entry: &SessionEntry, network: Option<&NetworkId>) -> bool {
        network == Some(&self.network)
            && self.key == entry.client_key
            && self.preshared == entry.preshared_key
            && self.address == entry.address
            && self.allowed == entry.allowed
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub struct Table {
    places: Vec<Option<Session>>,
    /// Who had a handshake from where, by a hash of that address: a hint, which may be old. Empty until the first.
    callers: Box<[Option<Place>]>,
    hasher: RandomState,
    free: Vec<Place>,
    by_id: HashMap<WireGuardSessionId, Place>,
    by_key: HashMap<PublicKey, Place>,
    by_index: HashMap<u32, Place>,
    by_address: HashMap<(NetworkId, Ipv4Addr), Place>,
    live: Vec<Place>,
    networks: HashMap<VpcId, NetworkId>,
    next_network: u32,
}

impl Table {
    /// Takes a view over: what is not in it any more, or changed, is gone at once; what stayed keeps its state.
    pub fn apply(&mut self, view: &VpnView, identity: &Identity, now: Now, counts: &mut Counts) {
        let wanted: HashMap<&WireGuardSessionId, &SessionEntry> =
            view.sessions.iter().map(|entry| (&entry.id, entry)).collect();
        let stays = |session: &Session| {
            wanted
                .get(&session.id)
                .is_some_and(|entry| session.is_entry(entry, self.networks.get(&entry.vpc)))
        };
        let gone = |place: &Option<Session>| place.as_ref().is_some_and(|session| !stays(session));
        let gone: Vec<usize> = (0..self.places.len()).filter(|at| gone(&self.places[*at])).collect();
        for place in gone {
            self.remove(Place(u32::try_from(place).unwrap_or(u32::MAX)));
        }
        let used: HashSet<&VpcId> = view.sessions.iter().map(|entry| &entry.vpc).collect();
        self.networks.retain(|vpc, _| used.contains(vpc));
        for entry in &view.sessions {
            match self.by_id.get(&entry.id).and_then(|place| self.places[place.0 as usize].as_mut()) {
                // The first of two with the same id is the one.
                Some(session) => {
                    session.expires_unix_ms = entry.expires_unix_ms;
                    session.idle = Duration::from_secs(u64::from(entry.idle_seconds.get()));
                }
                None if !identity.is_own(&entry.client_key) => self.insert(entry, now, counts),
                None => counts.count(Count::Conflict),
            }
        }
    }

    fn insert(&mut self, entry: &SessionEntry, now: Now, counts: &mut Counts) {
        let network = self.network(&entry.vpc);
        let address = (network, entry.address);
        let full = self.by_id.len() >= MAX_SESSIONS;
        if full || self.by_key.contains_key(&entry.client_key) || self.by_address.contains_key(&address) {
            counts.count(Count::Conflict);
            return;
        }
        let session = Session {
            id: entry.id.clone(),
            network,
            key: entry.client_key,
            preshared: entry.preshared_key.clone(),
            address: entry.address,
            allowed: entry.allowed,
            expires_unix_ms: entry.expires_unix_ms,
            idle: Duration::from_secs(u64::from(entry.idle_seconds.get())),
            seen: now.steady,
            idled: false,
            live: None,
        };
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            Place(u32::try_from(self.places.len() - 1).unwrap_or(u32::MAX))
        });
        self.places[place.0 as usize] = Some(session);
        self.by_id.insert(entry.id.clone(), place);
        self.by_key.insert(entry.client_key, place);
        self.by_address.insert(address, place);
    }

    fn network(&mut self, vpc: &VpcId) -> NetworkId {
        *self.networks.entry(vpc.clone()).or_insert_with(|| {
            self.next_network += 1;
            NetworkId(self.next_network)
        })
    }

    fn remove(&mut self, place: Place) {
        self.silence(place);
        let Some(session) = self.places[place.0 as usize].take() else { return };
        self.by_id.remove(&session.id);
        self.by_key.remove(&session.key);
        self.by_address.remove(&(session.network, session.address));
        self.free.push(place);
    }

    /// Forgets all states, of which another server key made none good.
    pub fn silence_all(&mut self) {
        while let Some(place) = self.live.last().copied() {
            self.silence(place);
        }
    }

    /// Drops a session's state and keeps its registration.
    pub fn silence(&mut self, place: Place) {
        let Some(live) = self.places[place.0 as usize].as_mut().and_then(|session| session.live.take())
        else {
            return;
        };
        self.by_index.remove(&live.index);
        self.live.swap_remove(live.rank);
        if let Some(moved) = self.live.get(live.rank).copied()
            && let Some(other) = self.session(moved).and_then(Session::live)
        {
            other.rank = live.rank;
        }
    }

    /// Makes a state, which is live once [`Self::awake`] got it.
    ///
    /// # Errors
    /// When the session's key makes no secret, or no index is free.
    pub fn state(
        &self,
        place: Place,
        identity: &Identity,
        rng: &mut impl RngCore,
    ) -> Result<(Tunn, u32), Count> {
        let session = self.places[place.0 as usize].as_ref().ok_or(Count::UnknownKey)?;
        let index = (0..INDEX_DRAWS)
            .map(|_| rng.next_u32() >> 8)
            .find(|index| !self.by_index.contains_key(index))
            .ok_or(Count::NoIndex)?;
        let state = identity.state(&session.key, session.preshared.as_ref(), index);
        Ok((state.ok_or(Count::WeakKey)?, index))
    }

    /// Gives a session the state that answered its client.
    pub fn awake(&mut self, place: Place, (state, index): (Tunn, u32), endpoint: Endpoint, now: Now) {
        self.silence(place);
        let rank = self.live.len();
        let told = Bucket::full(TOO_BIG, now.steady);
        let Some(session) = self.session(place) else { return };
        session.live = Some(Box::new(Live { state, endpoint, heard: now.steady, told, index, rank }));
        self.by_index.insert(index, place);
        self.live.push(place);
    }

    /// Notes from where a session's client has got keys.
    pub fn called(&mut self, place: Place, from: SocketAddr) {
        if self.callers.is_empty() {
            self.callers = vec![None; MAX_SESSIONS].into();
        }
        let at = self.caller(from);
        self.callers[at] = Some(place);
    }

    /// Whose client was there when it last got keys, and still is. Another's may be there by now, so its key decides.
    #[must_use]
    pub fn by_caller(&self, from: SocketAddr) -> Option<Place> {
        let place = (*self.callers.get(self.caller(from))?)?;
        let live = self.places.get(place.0 as usize)?.as_ref()?.live.as_deref()?;
        (live.endpoint.remote == from).then_some(place)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a place is the hash's lower bits")]
    fn caller(&self, from: SocketAddr) -> usize {
        self.hasher.hash_one(from) as usize % MAX_SESSIONS
    }

    /// The session with this key.
    #[must_use]
    pub fn by_key(&self, key: &PublicKey) -> Option<Place> {
        self.by_key.get(key).copied()
    }

    /// The live one with the index of this message.
    #[must_use]
    pub fn by_receiver(&self, datagram: &[u8], message: noise::Message) -> Option<Place> {
        self.by_index.get(&noise::receiver(datagram, message)).copied()
    }

    /// The one that has this address in this network.
    #[must_use]
    pub fn by_address(&self, network: NetworkId, address: Ipv4Addr) -> Option<Place> {
        self.by_address.get(&(network, address)).copied()
    }

    /// The session there.
    pub fn session(&mut self, place: Place) -> Option<&mut Session> {
        self.places[place.0 as usize].as_mut()
    }

    /// The session there if it is not over; one that is has no state from now on.
    pub fn going(&mut self, place: Place, now: Now, counts: &mut Counts) -> Option<&mut Session> {
        let session = self.places[place.0 as usize].as_mut()?;
        let expired = now.unix_ms >= session.expires_unix_ms;
        let idle = !session.idled && now.steady.saturating_duration_since(session.seen) >= session.idle;
        session.idled |= idle;
        if expired || session.idled {
            if idle {
                counts.count(Count::Idled);
            }
            if session.live.is_some() {
                if expired {
                    counts.count(Count::Expired);
                }
                self.silence(place);
            }
            return None;
        }
        self.places[place.0 as usize].as_mut()
    }

    /// A live one by its rank, while there is one: who walks from the last rank to the first may drop each on the way.
    #[must_use]
    pub fn ranked(&self, rank: usize) -> Option<Place> {
        self.live.get(rank).copied()
    }

    /// How many are live.
    #[must_use]
    pub fn live_count(&self) -> usize {
        self.live.len()
    }

    /// How many are registered.
    #[must_use]
    pub fn registered(&self) -> usize {
        self.by_id.len()
    }

    /// The sessions of one network, or of all, to look at.
    #[must_use]
    pub fn statuses(&self, network: Option<NetworkId>, now: Now) -> Vec<SessionStatus> {
        let sessions = self.places.iter().flatten();
        sessions
            .filter(|session| network.is_none_or(|network| session.network == network))
            .map(|session| session.status(now))
            .collect()
    }

    /// The networks that have sessions.
    pub fn networks(&self) -> impl Iterator<Item = (NetworkId, &VpcId)> {
        self.networks.iter().map(|(vpc, network)| (*network, vpc))
    }
}
