//! One peer: its state, where it is, and the frames and datagrams that go through it.

use crate::ways::Ways;
use boringtun::noise::{Tunn, TunnResult};
use model::key::{PublicKey, SecretKey};
use rustix::fd::OwnedFd;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vpn::io::front::Outlet;
use vpn::pure::coalesce::Frames;
use vpn::pure::count::Counts;
use vpn::pure::ipv4;
use vpn::pure::noise::{self, MIN_ROOM, Message, OVERHEAD};
use vpn::pure::runs::{Endpoint, Runs};
use vpn::pure::table::NetworkId;

/// The one network that is here.
const NETWORK: NetworkId = NetworkId(1);
/// No tunnel's packets are larger.
const PADDED_TO: u16 = 65_000;

/// The ways out.
pub struct Lane {
    pub outlet: Arc<Outlet>,
    pub tun: OwnedFd,
    pub runs: Runs,
    pub frames: Frames,
    pub counts: Counts,
    pub opened: Box<[u8]>,
}

impl Lane {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.runs.room(bytes).is_none() {
            self.send_runs();
        }
        self.runs.room(bytes).expect("an empty buffer has room for any datagram")
    }

    fn send_runs(&mut self) {
        for (run, bytes) in self.runs.iter() {
            self.outlet.send(run, bytes, &mut self.counts);
        }
        self.runs.clear();
    }

    /// Sends and writes all that waits.
    pub fn flush(&mut self) {
        self.send_runs();
        let tun = &self.tun;
        self.frames.flush(|_, frame, _| write(tun, frame));
    }

    fn deliver(&mut self, packet: &[u8]) {
        let tun = &self.tun;
        self.frames.push(NETWORK, packet, |_, frame, _| write(tun, frame));
    }
}

fn write(tun: &OwnedFd, frame: &[u8]) {
    // A device that is down takes nothing; what it would have taken is lost, as on any link.
    let _lost = rustix::io::write(tun, frame);
}

/// One peer.
pub struct Peer {
    pub key: PublicKey,
    pub preshared: Option<SecretKey>,
    pub endpoint: Option<Endpoint>,
    /// Seconds; none when zero.
    pub keepalive: u16,
    /// The state and its index.
    pub state: Option<(Tunn, u32)>,
    sent: Option<Instant>,
}

impl Peer {
    pub fn new(key: PublicKey) -> Self {
        Self { key, preshared: None, endpoint: None, keepalive: 0, state: None, sent: None }
    }

    /// Takes a message that is for its state.
    pub fn receive(
        &mut self,
        from: Endpoint,
        datagram: &[u8],
        message: Message,
        ways: &Ways,
        lane: &mut Lane,
    ) {
        let Some((state, _)) = self.state.as_mut() else { return };
        let mut opened = std::mem::take(&mut lane.opened);
        let mut given = datagram;
        loop {
            match state.decapsulate(None, given, &mut opened) {
                TunnResult::Err(_) => break,
                TunnResult::Done => {
                    if given.len() == datagram.len() && message == Message::Data {
                        self.endpoint = Some(from);
                    }
                    break;
                }
                TunnResult::WriteToNetwork(bytes) => {
                    self.endpoint = Some(from);
                    self.sent = Some(Instant::now());
                    lane.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
                    lane.runs.push(from, bytes.len());
                }
                TunnResult::WriteToTunnelV4(packet, _) => {
                    self.endpoint = Some(from);
                    let source = ipv4::parse(packet).map(|header| header.source);
                    if source.is_ok_and(|source| ways.find(source.into()) == Some(self.key)) {
                        lane.deliver(packet);
                    }
                    break;
                }
                TunnResult::WriteToTunnelV6(packet, source) => {
                    self.endpoint = Some(from);
                    if ways.find(source.into()) == Some(self.key) {
                        lane.deliver(packet);
                    }
                    break;
                }
            }
            given = &[];
        }
        lane.opened = opened;
    }

    /// Seals the packet at the beginning of `plain`, or keeps it and asks for keys.
    pub fn send(&mut self, plain: &mut [u8], bytes: usize, lane: &mut Lane) {
        let (Some((state, _)), Some(to)) = (self.state.as_mut(), self.endpoint) else { return };
        let padded = noise::padded(bytes, PADDED_TO);
        plain[bytes..padded].fill(0);
        let room = lane.room(padded + OVERHEAD);
        let length = noise::seal(state, &plain[..padded], room).or_else(|| {
            // What the front never does: the library keeps the packet and writes an initiation.
            match state.encapsulate(&plain[..padded], room) {
                TunnResult::WriteToNetwork(initiation) => Some(initiation.len()),
                TunnResult::Done
                | TunnResult::Err(_)
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..) => None,
            }
        });
        if let Some(length) = length {
            lane.runs.push(to, length);
            self.sent = Some(Instant::now());
        }
    }

    /// Looks at its timers; to be called every 250 ms. False when its state is worth nothing any more.
    pub fn tick(&mut self, lane: &mut Lane) -> bool {
        let Some((state, _)) = self.state.as_mut() else { return true };
        let mut room = [0; MIN_ROOM];
        match (state.update_timers(&mut room), self.endpoint) {
            (TunnResult::WriteToNetwork(bytes), Some(to)) => {
                lane.room(bytes.len())[..bytes.len()].copy_from_slice(bytes);
                lane.runs.push(to, bytes.len());
            }
            (TunnResult::Err(_), _) => return false,
            (
                TunnResult::WriteToNetwork(_)
                | TunnResult::Done
                | TunnResult::WriteToTunnelV4(..)
                | TunnResult::WriteToTunnelV6(..),
                _,
            ) => {}
        }
        true
    }

    /// Whether it is time to say that it is there.
    pub fn due(&self) -> bool {
        let after = Duration::from_secs(self.keepalive.into());
        self.keepalive > 0 && self.sent.is_none_or(|sent| sent.elapsed() >= after)
    }
}

/// To whom an IPv6 packet goes, its checksum completed; none when it is none.
pub fn ipv6(vnet: &[u8], packet: &mut [u8]) -> Option<IpAddr> {
    let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    if vnet[0] & 1 != 0 {
        let field = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
        let (start, at) = (field(6), field(6) + field(8));
        let sum = !ipv4::sum(packet.get(start..)?);
        packet.get(at..at + 2)?;
        ipv4::set_word(packet, at, if sum == 0 { 0xffff } else { sum });
    }
    Some(destination.into())
}
