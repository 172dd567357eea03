//! Clients for tests: boringtun's own, and one made of `snow`, which shares no code with it.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod world;

use blake2::digest::consts::U16;
use blake2::digest::{FixedOutput, KeyInit, Update};
use blake2::{Blake2s256, Blake2sMac, Digest};
use boringtun::noise::{Tunn, TunnResult};
use boringtun::x25519::{PublicKey as Curve, StaticSecret};
use model::id::{Generation, VpcId, WireGuardSessionId};
use model::key::{PublicKey, SecretKey};
use model::view::{SessionEntry, VIEW_VERSION, VpnView};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::hash::RandomState;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};
use vpn::pure::Now;
use vpn::pure::count::Count;
use vpn::pure::engine::{Engine, Rules, Wire};
use vpn::pure::ipv4;
use vpn::pure::runs::Endpoint;
use vpn::pure::table::NetworkId;

pub const SERVER: [u8; 32] = [42; 32];
pub const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);

pub fn vpc(number: u8) -> VpcId {
    VpcId::from_random([number; 20])
}

pub fn public(private: [u8; 32]) -> PublicKey {
    PublicKey(Curve::from(&StaticSecret::from(private)).to_bytes())
}

/// The private key of the n-th client.
pub fn private(number: u16) -> [u8; 32] {
    let mut bytes = [number.to_le_bytes()[0]; 32];
    bytes[1] = number.to_le_bytes()[1];
    bytes[2] = 0x5a;
    bytes
}

pub fn address(number: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 96, 0, 1).to_bits() + u32::from(number))
}

pub fn at(port: u16) -> Endpoint {
    Endpoint { remote: SocketAddr::from(([198, 51, 100, 7], port)), local: None }
}

pub fn entry(number: u16, network: u8) -> SessionEntry {
    let mut id = [b'a'; 20];
    id[..2].copy_from_slice(&number.to_le_bytes());
    id[2] = network;
    SessionEntry {
        id: format!("wg-{number:05}{network:015}")
            .parse()
            .unwrap_or_else(|_| WireGuardSessionId::from_random(id)),
        vpc: vpc(network),
        client_key: public(private(number)),
        preshared_key: None,
        address: address(number),
        allowed: "10.0.0.0/24".parse().expect("range"),
        expires_unix_ms: u64::MAX,
        idle_seconds: NonZeroU32::MAX,
    }
}

pub fn view(sessions: Vec<SessionEntry>) -> VpnView {
    VpnView {
        version: VIEW_VERSION,
        generation: Generation(1),
        server_key: SecretKey::new(SERVER),
        sessions: sessions.into(),
    }
}

/// What an engine has sent and delivered.
#[derive(Default)]
pub struct Seen {
    room: Vec<u8>,
    pub sent: Vec<(Endpoint, Vec<u8>)>,
    pub delivered: Vec<(NetworkId, Vec<u8>)>,
}

impl Wire for Seen {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        self.room.resize(bytes.max(148), 0);
        &mut self.room
    }
    fn send(&mut self, to: Endpoint, bytes: usize) {
        self.sent.push((to, self.room[..bytes].to_vec()));
    }
    fn deliver(&mut self, network: NetworkId, packet: &[u8]) -> Result<(), Count> {
        self.delivered.push((network, packet.to_vec()));
        Ok(())
    }
}

/// A server with a clock that the test moves.
pub struct Server {
    pub engine: Engine,
    pub now: Now,
    pub seen: Seen,
}

impl Server {
    pub fn new(sessions: Vec<SessionEntry>) -> Self {
        Self::with(Rules { mtu: 1280, client_to_client: false }, sessions)
    }

    pub fn with(rules: Rules, sessions: Vec<SessionEntry>) -> Self {
        let now = Now { steady: Instant::now(), unix_ms: 1_000_000 };
        let mut engine = Engine::new(rules, RandomState::new(), StdRng::seed_from_u64(7), now);
        engine.apply(&view(sessions), now);
        Self { engine, now, seen: Seen::default() }
    }

    pub fn pass(&mut self, seconds: u64) {
        self.now.steady += Duration::from_secs(seconds);
        self.now.unix_ms += seconds * 1000;
    }

    /// What comes back for a datagram.
    pub fn receive(&mut self, from: Endpoint, datagram: &[u8]) -> Vec<(Endpoint, Vec<u8>)> {
        self.engine.receive(from, datagram, self.now, &mut self.seen);
        std::mem::take(&mut self.seen.sent)
    }

    /// What goes out for a packet of a network.
    pub fn transmit(&mut self, network: NetworkId, packet: &[u8]) -> Vec<(Endpoint, Vec<u8>)> {
        let mut given = vec![0; 12];
        given.extend(packet);
        self.engine.transmit(network, &mut given, self.now, &mut self.seen);
        std::mem::take(&mut self.seen.sent)
    }

    pub fn count(&mut self, what: Count) -> u64 {
        self.engine.counts().get(what)
    }

    pub fn network(&self, number: u8) -> NetworkId {
        let wanted = vpc(number);
        self.engine.table().networks().find(|(_, vpc)| **vpc == wanted).expect("it has sessions").0
    }
}

/// A UDP packet with sound header checksum, no UDP checksum.
pub fn packet(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 28];
    let total = u16::try_from(28 + payload.len()).expect("short");
    packet[0] = 0x45;
    ipv4::set_word(&mut packet, 2, total);
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = ipv4::UDP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    ipv4::seal_header(&mut packet, 20);
    packet[20..24].copy_from_slice(&[0, 9, 0, 9]);
    ipv4::set_word(&mut packet, 24, total - 20);
    packet.extend(payload);
    packet
}

/// A TCP packet with these flags and options.
pub fn tcp(from: Ipv4Addr, to: Ipv4Addr, flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet.extend(options);
    packet.extend(payload);
    let total = u16::try_from(packet.len()).expect("short");
    packet[0] = 0x45;
    ipv4::set_word(&mut packet, 2, total);
    packet[6] = 0x40;
    packet[8] = 64;
    packet[9] = ipv4::TCP;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    ipv4::seal_header(&mut packet, 20);
    packet[20..24].copy_from_slice(&[0, 80, 0xc0, 1]);
    packet[32] = u8::try_from(5 + options.len() / 4).expect("short") << 4;
    packet[33] = flags;
    vpn::pure::tcp::seal(&mut packet, 20);
    packet
}

/// boringtun as a client.
pub struct Client {
    pub tunn: Tunn,
    pub number: u16,
}

impl Client {
    pub fn new(number: u16) -> Self {
        let server = Curve::from(&StaticSecret::from(SERVER));
        let private = StaticSecret::from(private(number));
        Self { tunn: Tunn::new(private, server, None, None, u32::from(number) + 1, None), number }
    }

    pub fn initiation(&mut self) -> Vec<u8> {
        let mut room = vec![0; 2048];
        match self.tunn.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// What the client sends for a datagram, and what came out of it.
    pub fn receive(&mut self, datagram: &[u8]) -> (Vec<Vec<u8>>, Option<Vec<u8>>) {
        let mut room = vec![0; 70_000];
        let (mut sent, mut given) = (Vec::new(), datagram);
        loop {
            match self.tunn.decapsulate(None, given, &mut room) {
                TunnResult::WriteToNetwork(bytes) => sent.push(bytes.to_vec()),
                TunnResult::WriteToTunnelV4(packet, _) => return (sent, Some(packet.to_vec())),
                TunnResult::Done | TunnResult::Err(_) | TunnResult::WriteToTunnelV6(..) => {
                    return (sent, None);
                }
            }
            given = &[];
        }
    }

    pub fn seal(&mut self, packet: &[u8]) -> Vec<u8> {
        let mut room = vec![0; packet.len() + 200];
        match self.tunn.encapsulate(packet, &mut room) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Comes in from there: afterwards both have keys.
    pub fn connect(&mut self, server: &mut Server, from: Endpoint) {
        let initiation = self.initiation();
        let answers = server.receive(from, &initiation);
        assert_eq!(answers.len(), 1, "answered: {:?}", server.engine.counts().snapshot());
        let (sent, _) = self.receive(&answers[0].1);
        for datagram in sent {
            server.receive(from, &datagram);
        }
    }
}

/// The protocol after its paper (NDSS 2017, section 5.4), on `snow`: an initiator whose counters, timestamps and
/// content the test chooses.
pub struct Independent {
    handshake: Option<snow::HandshakeState>,
    keys: Option<snow::StatelessTransportState>,
    index: u32,
    peer: u32,
}

pub fn blake2s_mac(key: &[u8], data: &[u8]) -> [u8; 16] {
    let mut mac = <Blake2sMac<U16> as KeyInit>::new_from_slice(key).expect("a key");
    Update::update(&mut mac, data);
    mac.finalize_fixed().into()
}

impl Independent {
    pub fn new(number: u16, preshared: [u8; 32], index: u32) -> Self {
        Self::begin(number, preshared, index, None)
    }

    /// The same with an ephemeral key that was chosen.
    pub fn fixed(number: u16, preshared: [u8; 32], index: u32, ephemeral: &[u8; 32]) -> Self {
        Self::begin(number, preshared, index, Some(ephemeral))
    }

    fn begin(number: u16, preshared: [u8; 32], index: u32, ephemeral: Option<&[u8; 32]>) -> Self {
        let server = public(SERVER).0;
        let parameters = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s".parse().expect("known");
        let handshake = snow::Builder::new(parameters)
            .prologue(b"WireGuard v1 zx2c4 Jason@zx2c4.com")
            .and_then(|builder| {
                let builder = match ephemeral {
                    Some(key) => builder.fixed_ephemeral_key_for_testing_only(key),
                    None => builder,
                };
                builder
                    .local_private_key(&private(number))
                    .and_then(|b| b.remote_public_key(&server)?.psk(2, &preshared)?.build_initiator())
            })
            .expect("a handshake");
        Self { handshake: Some(handshake), keys: None, index, peer: 0 }
    }

    pub fn initiation(&mut self, timestamp: [u8; 12]) -> Vec<u8> {
        let mut message = vec![0; 148];
        message[0] = 1;
        message[4..8].copy_from_slice(&self.index.to_le_bytes());
        let handshake = self.handshake.as_mut().expect("begun");
        let length = handshake.write_message(&timestamp, &mut message[8..116]).expect("written");
        assert_eq!(length, 108);
        sign(&mut message);
        message
    }

    pub fn response(&mut self, datagram: &[u8]) {
        assert_eq!((datagram.len(), &datagram[..4]), (92, &[2, 0, 0, 0][..]));
        assert_eq!(datagram[8..12], self.index.to_le_bytes());
        self.peer = u32::from_le_bytes(datagram[4..8].try_into().expect("four"));
        let mut handshake = self.handshake.take().expect("begun");
        handshake.read_message(&datagram[12..60], &mut [0; 64]).expect("the server has the same keys");
        self.keys = Some(handshake.into_stateless_transport_mode().expect("done"));
    }

    pub fn seal(&self, counter: u64, packet: &[u8]) -> Vec<u8> {
        let mut message = vec![0; 16 + packet.len() + 16];
        message[0] = 4;
        message[4..8].copy_from_slice(&self.peer.to_le_bytes());
        message[8..16].copy_from_slice(&counter.to_le_bytes());
        self.keys.as_ref().expect("keys").write_message(counter, packet, &mut message[16..]).expect("sealed");
        message
    }

    pub fn open(&self, datagram: &[u8]) -> Vec<u8> {
        assert_eq!((datagram[0], &datagram[4..8]), (4, &self.index.to_le_bytes()[..]));
        let counter = u64::from_le_bytes(datagram[8..16].try_into().expect("eight"));
        let mut packet = vec![0; datagram.len()];
        let keys = self.keys.as_ref().expect("keys");
        let length = keys.read_message(counter, &datagram[16..], &mut packet).expect("opened");
        packet.truncate(length);
        packet
    }

    pub fn connect(&mut self, server: &mut Server, from: Endpoint, second: u64) {
        let answers = server.receive(from, &self.initiation(stamp(second)));
        assert_eq!(answers.len(), 1, "answered: {:?}", server.engine.counts().snapshot());
        self.response(&answers[0].1);
        server.receive(from, &self.seal(0, &[]));
    }
}

/// Sets the first MAC of an initiation.
pub fn sign(message: &mut [u8]) {
    let end = message.len() - 32;
    let mac = mac1(&message[..end], &public(SERVER));
    message[end..end + 16].copy_from_slice(&mac);
}

/// The first MAC of what is sent to the holder of this key.
pub fn mac1(message: &[u8], receiver: &PublicKey) -> [u8; 16] {
    let key = Blake2s256::new_with_prefix(b"mac1----").chain_update(receiver.0).finalize();
    blake2s_mac(&key, message)
}

pub fn stamp(second: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&((1 << 62) + 37 + second).to_be_bytes());
    bytes
}
