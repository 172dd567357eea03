//! The interface: its socket, TUN and peers, and the loop that serves them.

use crate::peer::{self, Lane, Peer};
use crate::uapi::{self, Setting};
use crate::ways::Ways;
use anyhow::Result;
use model::key::{PublicKey, SecretKey};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use vpn::io::front::Front;
use vpn::pure::coalesce::Frames;
use vpn::pure::count::Counts;
use vpn::pure::noise::{self, Identity, MIN_ROOM, Message};
use vpn::pure::offload::{Frame, MAX_FRAME_BYTES, VNET_BYTES};
use vpn::pure::runs::{Endpoint, Runs};

const TICK: Duration = Duration::from_millis(250);
/// Frames of the TUN in a row.
const FRAMES: usize = 32;

pub struct Device {
    front: Front,
    port: u16,
    mark: u32,
    private: Option<SecretKey>,
    core: Core,
    lane: Lane,
    frame: Box<[u8]>,
}

struct Core {
    identity: Option<Identity>,
    peers: BTreeMap<[u8; 32], Peer>,
    by_index: HashMap<u32, PublicKey>,
    ways: Ways,
    rng: StdRng,
    plain: Box<[u8]>,
}

impl Device {
    pub fn new(tun: OwnedFd) -> Result<Self> {
        let front = Front::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))?;
        let lane = Lane {
            outlet: front.outlet(),
            tun,
            runs: Runs::default(),
            frames: Frames::default(),
            counts: Counts::default(),
            opened: vec![0; MAX_FRAME_BYTES + MIN_ROOM].into(),
        };
        let core = Core {
            identity: None,
            peers: BTreeMap::new(),
            by_index: HashMap::new(),
            ways: Ways::default(),
            rng: StdRng::from_os_rng(),
            plain: vec![0; VNET_BYTES + MAX_FRAME_BYTES].into(),
        };
        let (port, frame) = (front.local()?.port(), vec![0; VNET_BYTES + MAX_FRAME_BYTES].into());
        Ok(Self { front, port, mark: 0, private: None, core, lane, frame })
    }

    /// Serves until its TUN is gone.
    pub fn run(mut self, listener: &UnixListener) -> Result<()> {
        let mut tick = Instant::now();
        loop {
            let left = tick.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
            let mut ready = [
                PollFd::new(&self.front, PollFlags::IN),
                PollFd::new(&self.lane.tun, PollFlags::IN),
                PollFd::new(listener, PollFlags::IN),
            ];
            match poll(&mut ready, Some(&wait)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [datagrams, frames, words] = ready.map(|fd| !fd.revents().is_empty());
            if datagrams {
                let (core, lane) = (&mut self.core, &mut self.lane);
                self.front.receive(|from, datagram| core.receive(from, datagram, lane))?;
                self.lane.flush();
            }
            if frames && !self.frames()? {
                return Ok(());
            }
            if words {
                // Who asks may go before it is answered.
                drop(uapi::answer(&listener.accept()?.0, &mut self));
            }
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                self.core.tick(&mut self.lane);
                self.lane.flush();
            }
        }
    }

    /// Takes frames; false when the TUN is gone.
    fn frames(&mut self) -> Result<bool> {
        for _ in 0..FRAMES {
            match rustix::io::read(&self.lane.tun, &mut self.frame[..]) {
                Ok(bytes) => self.core.transmit(&mut self.frame[..bytes], &mut self.lane),
                Err(Errno::AGAIN | Errno::INTR) => break,
                // Its device was deleted (drivers/net/tun.c).
                Err(Errno::BADFD | Errno::IO) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.lane.flush();
        Ok(true)
    }

    /// Does what `wg` says; the errno when it cannot.
    pub fn set(&mut self, settings: &[Setting]) -> Result<(), Errno> {
        let mut at = None;
        for setting in settings {
            match setting {
                Setting::PrivateKey(key) => {
                    self.private.clone_from(key);
                    self.core.identity = key.as_ref().map(Identity::new);
                    self.core.forget_all();
                }
                Setting::ListenPort(port) => self.listen(*port)?,
                Setting::Mark(mark) => {
                    self.mark = *mark;
                    socket2::SockRef::from(&self.front).set_mark(*mark).map_err(|_| Errno::PERM)?;
                }
                Setting::ReplacePeers => {
                    self.core.forget_all();
                    self.core.peers.clear();
                    self.core.ways = Ways::default();
                }
                Setting::Peer(key) => {
                    at = Some(*key);
                    self.core.peers.entry(key.0).or_insert_with(|| Peer::new(*key));
                }
                Setting::Of(change) => self.core.change(at.ok_or(Errno::INVAL)?, change),
            }
        }
        // A peer that was told to keep its way open begins with it now.
        self.core.tick(&mut self.lane);
        self.lane.flush();
        Ok(())
    }

    fn listen(&mut self, port: u16) -> Result<(), Errno> {
        if port == self.port {
            return Ok(());
        }
        let front =
            Front::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).map_err(|_| Errno::ADDRINUSE)?;
        self.port = front.local().map_err(|_| Errno::IO)?.port();
        self.lane.outlet = front.outlet();
        self.front = front;
        if self.mark != 0 {
            socket2::SockRef::from(&self.front).set_mark(self.mark).map_err(|_| Errno::PERM)?;
        }
        Ok(())
    }

    /// All that `wg` shows.
    pub fn told(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            writeln!(text, "{key}={value}").expect("a string takes all");
        };
        if let Some(key) = &self.private {
            line("private_key", &uapi::hex(key.expose()));
        }
        line("listen_port", &self.port);
        if self.mark != 0 {
            line("fwmark", &self.mark);
        }
        for peer in self.core.peers.values() {
            line("public_key", &uapi::hex(&peer.key.0));
            if let Some(key) = &peer.preshared {
                line("preshared_key", &uapi::hex(key.expose()));
            }
            line("protocol_version", &1);
            if let Some(endpoint) = peer.endpoint {
                let remote = endpoint.remote;
                line("endpoint", &SocketAddr::new(remote.ip().to_canonical(), remote.port()));
            }
            let stats = peer.state.as_ref().map(|(state, _)| state.stats());
            let (handshake, sent, received) = stats.map_or((None, 0, 0), |all| (all.0, all.1, all.2));
            let since = handshake.and_then(|ago| SystemTime::now().checked_sub(ago));
            let since = since.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
            line("last_handshake_time_sec", &since.as_secs());
            line("last_handshake_time_nsec", &since.subsec_nanos());
            line("tx_bytes", &sent);
            line("rx_bytes", &received);
            line("persistent_keepalive_interval", &peer.keepalive);
            for (address, length) in self.core.ways.of(peer.key) {
                line("allowed_ip", &format_args!("{address}/{length}"));
            }
        }
        text
    }
}

impl Core {
    fn receive(&mut self, from: Endpoint, datagram: &[u8], lane: &mut Lane) {
        let Ok(message) = noise::shape(datagram) else { return };
        let Some(identity) = &self.identity else { return };
        let key = match message {
            Message::Initiation if !identity.mac1(datagram) => None,
            Message::Initiation => identity.initiator(datagram),
            Message::Response if !identity.mac1(datagram) => None,
            Message::Response | Message::Cookie | Message::Data => {
                self.by_index.get(&noise::receiver(datagram, message)).copied()
            }
        };
        let Some(key) = key else { return };
        self.have_state(key);
        if let Some(peer) = self.peers.get_mut(&key.0) {
            peer.receive(from, datagram, message, &self.ways, lane);
        }
    }

    fn transmit(&mut self, given: &mut [u8], lane: &mut Lane) {
        let Some((vnet, packet)) = given.split_at_mut_checked(VNET_BYTES) else { return };
        if packet.first().is_some_and(|first| first >> 4 == 6) {
            let Some(peer) = peer::ipv6(vnet, packet).and_then(|to| self.peer_of(to)) else { return };
            let bytes = packet.len();
            self.plain[..bytes].copy_from_slice(packet);
            self.have_state(peer);
            if let Some(peer) = self.peers.get_mut(&peer.0) {
                peer.send(&mut self.plain, bytes, lane);
            }
            return;
        }
        let Ok(mut frame) = Frame::read(given) else { return };
        let Some(peer) = self.peer_of(frame.header.destination.into()) else { return };
        self.have_state(peer);
        let Some(peer) = self.peers.get_mut(&peer.0) else { return };
        while let Some(bytes) = frame.next(&mut self.plain) {
            peer.send(&mut self.plain, bytes, lane);
        }
    }

    fn peer_of(&self, address: IpAddr) -> Option<PublicKey> {
        self.ways.find(address)
    }

    fn have_state(&mut self, key: PublicKey) {
        let (Some(peer), Some(identity)) = (self.peers.get_mut(&key.0), &self.identity) else { return };
        if peer.state.is_some() || identity.is_own(&key) {
            return;
        }
        let index = self.rng.next_u32() >> 8;
        if let Some(state) = identity.state(&key, peer.preshared.as_ref(), index) {
            peer.state = Some((state, index));
            self.by_index.insert(index, key);
        }
    }

    fn forget(&mut self, key: PublicKey) {
        if let Some((_, index)) = self.peers.get_mut(&key.0).and_then(|peer| peer.state.take()) {
            self.by_index.remove(&index);
        }
    }

    fn forget_all(&mut self) {
        for peer in self.peers.values_mut() {
            peer.state = None;
        }
        self.by_index.clear();
    }

    fn change(&mut self, key: PublicKey, change: &uapi::Change) {
        // A peer that was removed a line ago.
        let Some(peer) = self.peers.get_mut(&key.0) else { return };
        match change {
            uapi::Change::Remove => {
                self.forget(key);
                self.ways.remove(&key);
                self.peers.remove(&key.0);
            }
            uapi::Change::PresharedKey(preshared) => {
                if peer.preshared != *preshared {
                    peer.preshared.clone_from(preshared);
                    self.forget(key);
                }
            }
            uapi::Change::Endpoint(remote) => {
                // The socket is IPv6's.
                let mapped = match remote.ip() {
                    IpAddr::V4(address) => address.to_ipv6_mapped(),
                    IpAddr::V6(address) => address,
                };
                let remote = SocketAddr::from((mapped, remote.port()));
                peer.endpoint = Some(Endpoint { remote, local: None });
            }
            uapi::Change::Keepalive(seconds) => peer.keepalive = *seconds,
            uapi::Change::ReplaceRanges => self.ways.remove(&key),
            uapi::Change::Range(address, length) => self.ways.insert(*address, *length, key),
        }
    }

    fn tick(&mut self, lane: &mut Lane) {
        let keys: Vec<PublicKey> = self.peers.values().map(|peer| peer.key).collect();
        for key in keys {
            let Some(peer) = self.peers.get_mut(&key.0) else { continue };
            if !peer.tick(lane) {
                self.forget(key);
            } else if peer.due() {
                self.have_state(key);
                if let Some(peer) = self.peers.get_mut(&key.0) {
                    peer.send(&mut self.plain, 0, lane);
                }
            }
        }
    }
}
