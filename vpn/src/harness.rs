//! A malicious client and a malicious network against the engine, for fuzz targets and tests.
//!
//! The input is a list of orders, one byte each with what it needs behind it:
//!
//! ```text
//!   0 n bytes   a datagram of these bytes          3 n bytes  a frame of the network, its virtio-net header among them
//!   1 n bytes   sealed with the client's keys       4          a second goes by
//!   2           the client handshakes               5 n bytes  a datagram that the client sealed, with bytes changed
//! ```

use crate::pure::Now;
use crate::pure::coalesce::Frames;
use crate::pure::count::Count;
use crate::pure::engine::{Engine, Rules, Wire};
use crate::pure::runs::{Endpoint, Runs};
use crate::pure::table::NetworkId;
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

const SERVER: [u8; 32] = [42; 32];
const CLIENT: [u8; 32] = [43; 32];
const ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);

/// The way out as the process has it, without sockets.
#[derive(Default)]
struct Lane {
    runs: Runs,
    frames: Frames,
    /// The last datagram.
    sent: Vec<u8>,
    delivered: usize,
}

impl Wire for Lane {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.runs.room(bytes).is_none() {
            self.runs.clear();
        }
        self.runs.room(bytes).expect("an empty one has room")
    }
    fn send(&mut self, to: Endpoint, bytes: usize) {
        self.sent = self.runs.room(bytes).map(|room| room[..bytes].to_vec()).unwrap_or_default();
        self.runs.push(to, bytes);
    }
    fn deliver(&mut self, network: NetworkId, packet: &[u8]) -> Result<(), Count> {
        // What comes out is whole, the client's own, and for the network.
        assert!(packet.len() >= 20 && packet[0] >> 4 == 4, "delivered {packet:?}");
        assert_eq!(packet[12..16], ADDRESS.octets(), "another source");
        assert_eq!(packet[16..19], [10, 0, 0], "another destination");
        assert_eq!(
            usize::from(u16::from_be_bytes([packet[2], packet[3]])),
            packet.len(),
            "padding went along"
        );
        self.delivered += 1;
        self.frames.push(network, packet, |_, _, _| {});
        Ok(())
    }
}

struct World {
    engine: Engine,
    lane: Lane,
    client: Tunn,
    now: Now,
    network: NetworkId,
}

impl World {
    fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "some moment to count from")]
        let now = Now { steady: Instant::now(), unix_ms: 1_000_000 };
        let rules = Rules { mtu: 1280, client_to_client: true };
        let mut engine = Engine::new(rules, RandomState::new(), StdRng::seed_from_u64(7), now);
        engine.apply(&view(), now);
        let network = engine.table().networks().next().expect("it has a session").0;
        let server = Curve::from(&StaticSecret::from(SERVER));
        let client = Tunn::new(StaticSecret::from(CLIENT), server, None, None, 1, None);
        Self { engine, lane: Lane::default(), client, now, network }
    }

    fn receive(&mut self, datagram: &[u8]) {
        let remote = SocketAddr::from(([198, 51, 100, 7], 4000));
        self.engine.receive(Endpoint { remote, local: None }, datagram, self.now, &mut self.lane);
    }

    fn handshake(&mut self) {
        let mut room = vec![0; 2048];
        let initiation = match self.client.format_handshake_initiation(&mut room, true) {
            TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => return,
        };
        self.lane.sent.clear();
        self.receive(&initiation);
        let answer = std::mem::take(&mut self.lane.sent);
        if let TunnResult::WriteToNetwork(bytes) = self.client.decapsulate(None, &answer, &mut room) {
            let keepalive = bytes.to_vec();
            self.receive(&keepalive);
        }
    }

    fn sealed(&mut self, inner: &[u8]) -> Option<Vec<u8>> {
        let mut room = vec![0; inner.len() + 200];
        match self.client.encapsulate(inner, &mut room) {
            TunnResult::WriteToNetwork(bytes) => Some(bytes.to_vec()),
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => None,
        }
    }
}

fn view() -> VpnView {
    let session = SessionEntry {
        id: WireGuardSessionId::from_random([1; 20]),
        vpc: VpcId::from_random([1; 20]),
        client_key: PublicKey(Curve::from(&StaticSecret::from(CLIENT)).to_bytes()),
        preshared_key: None,
        address: ADDRESS,
        allowed: "10.0.0.0/24".parse().expect("range"),
        expires_unix_ms: u64::MAX,
        idle_seconds: NonZeroU32::MAX,
    };
    VpnView {
        version: VIEW_VERSION,
        generation: Generation(1),
        server_key: SecretKey::new(SERVER),
        sessions: vec![session].into(),
    }
}

/// Plays an input; how many packets got into the network.
pub fn engine(input: &[u8]) -> usize {
    let mut world = World::new();
    let mut rest = input;
    while let Some((order, behind)) = rest.split_first() {
        rest = behind;
        let mut bytes = || {
            let (length, behind) =
                rest.split_first().map_or((0, rest), |(n, rest)| (usize::from(*n) * 8, rest));
            let (taken, left) = behind.split_at(behind.len().min(length));
            rest = left;
            taken.to_vec()
        };
        match order % 6 {
            0 => world.receive(&bytes()),
            1 => {
                if let Some(datagram) = world.sealed(&bytes()) {
                    world.receive(&datagram);
                }
            }
            2 => world.handshake(),
            3 => {
                let mut frame = bytes();
                world.engine.transmit(world.network, &mut frame, world.now, &mut world.lane);
            }
            4 => {
                world.now.steady += Duration::from_secs(1);
                world.now.unix_ms += 1000;
                world.engine.tick(world.now, &mut world.lane);
            }
            _ => {
                let change = bytes();
                if let Some(mut datagram) = world.sealed(&[]) {
                    for (byte, change) in datagram.iter_mut().zip(change) {
                        *byte ^= change;
                    }
                    world.receive(&datagram);
                }
            }
        }
    }
    world.lane.delivered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn nobody_breaks_the_engine(input in prop::collection::vec(any::<u8>(), 0..1500)) { engine(&input); }

        #[test]
        fn nobody_with_keys_breaks_it_either(
            orders in prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..400)), 0..12)
        ) {
            let mut input = vec![2];
            for (order, mut bytes) in orders {
                bytes.resize(bytes.len() / 8 * 8, 0);
                // What is sealed or comes from the network is often nearly right.
                if bytes.len() >= 48 && (order == 1 || order == 3) {
                    let at = if order == 3 { 12 } else { 0 };
                    let length = u16::try_from(bytes.len() - at).expect("short").to_be_bytes();
                    bytes[at..at + 4].copy_from_slice(&[0x45, 0, length[0], length[1]]);
                }
                input.push(order);
                if order != 2 && order != 4 {
                    input.push(u8::try_from(bytes.len() / 8).expect("short"));
                    input.extend(bytes);
                }
            }
            engine(&input);
        }
    }

    /// The inputs that the fuzz target starts from, or once failed on.
    #[test]
    fn the_corpus_of_the_fuzz_target_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/wireguard");
        let mut names = Vec::new();
        for entry in std::fs::read_dir(corpus).expect("corpus") {
            let path = entry.expect("entry").path();
            let delivered = engine(&std::fs::read(&path).expect("read"));
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            // The language leads to where packets get through.
            assert!(delivered > 0 || name != "seed-packet", "{name}");
            names.push(name);
        }
        assert!(names.len() >= 3, "{names:?}");
    }
}
