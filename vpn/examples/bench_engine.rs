//! What the engine costs without sockets: handshakes a second of one core, and sessions whose clients are not there.
//!
//! `cargo run --release -p vpn --example bench_engine` prints a Markdown table. The clock that the engine sees moves by
//! a millisecond with each handshake, so that its budget for them is not what is measured.

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
use vpn::pure::runs::Endpoint;
use vpn::pure::table::NetworkId;

const CLIENTS: u32 = 10_000;
const HANDSHAKES: u32 = 4000;
const TICKS: u32 = 400;
const SERVER: [u8; 32] = [42; 32];

/// Counts what it is given.
#[derive(Default)]
struct Sink {
    room: Vec<u8>,
    sent: u32,
}

impl Wire for Sink {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        self.room.resize(bytes.max(2048), 0);
        &mut self.room
    }
    fn send(&mut self, _: Endpoint, _: usize) {
        self.sent += 1;
    }
    fn deliver(&mut self, _: NetworkId, _: &[u8]) -> Result<(), Count> {
        Ok(())
    }
}

fn private(number: u32) -> StaticSecret {
    let mut bytes = [0x5a; 32];
    // Of the first byte three bits do not count (RFC 7748, section 5).
    bytes[1..5].copy_from_slice(&number.to_le_bytes());
    StaticSecret::from(bytes)
}

fn view() -> VpnView {
    let vpc: VpcId = VpcId::from_random([1; 20]);
    let sessions = (0..CLIENTS).map(|number| {
        let digits = number.to_be_bytes();
        let mut id = [0; 20];
        // Base 36 digits of the number, so that ids differ.
        for (at, place) in [1, 36, 36 * 36, 36 * 36 * 36].into_iter().enumerate() {
            id[at + 1] = u8::try_from(number / place % 36).unwrap_or(0);
        }
        SessionEntry {
            id: WireGuardSessionId::from_random(id),
            vpc: vpc.clone(),
            client_key: PublicKey(Curve::from(&private(number)).to_bytes()),
            preshared_key: None,
            address: Ipv4Addr::new(100, 96, digits[2], digits[3]),
            allowed: "10.0.0.0/24".parse().expect("range"),
            expires_unix_ms: u64::MAX,
            idle_seconds: NonZeroU32::MAX,
        }
    });
    VpnView {
        version: VIEW_VERSION,
        generation: Generation(1),
        server_key: SecretKey::new(SERVER),
        sessions: sessions.collect::<Vec<_>>().into(),
    }
}

fn initiation(number: u32) -> Vec<u8> {
    let server = Curve::from(&StaticSecret::from(SERVER));
    let mut client = Tunn::new(private(number), server, None, None, number, None);
    let mut room = vec![0; 2048];
    match client.format_handshake_initiation(&mut room, true) {
        TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// Each from a prefix of its own.
fn at(number: u32) -> Endpoint {
    let remote = Ipv4Addr::from_bits(Ipv4Addr::new(11, 0, 0, 1).to_bits() + (number << 8));
    Endpoint { remote: SocketAddr::from((remote, 51820)), local: None }
}

/// Memory of this process that is its own, in KiB.
fn memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What this thread has had of a core (proc(5), `schedstat`); others may be busy beside it.
fn on_core() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number"))
}

/// Each client handshakes once; how many the engine does in a second of a core.
fn handshakes(engine: &mut Engine, now: &mut Now, sink: &mut Sink) -> f64 {
    let initiations: Vec<Vec<u8>> = (0..HANDSHAKES).map(initiation).collect();
    let (answered, before) = (engine.counts().get(Count::Handshakes), sink.sent);
    let begun = on_core();
    for (number, datagram) in (0..).zip(&initiations) {
        now.steady += Duration::from_millis(1);
        engine.receive(at(number), datagram, *now, sink);
    }
    let took = on_core() - begun;
    let counts = engine.counts().snapshot();
    assert_eq!(engine.counts().get(Count::Handshakes) - answered, u64::from(HANDSHAKES), "{counts:?}");
    assert_eq!(sink.sent - before, HANDSHAKES, "each is answered: {counts:?}");
    f64::from(HANDSHAKES) / took.as_secs_f64()
}

fn main() {
    let view = view();
    let mut now = Now { steady: Instant::now(), unix_ms: 1_000_000 };
    let rules = Rules { mtu: 1280, client_to_client: false };
    let mut engine = Engine::new(rules, RandomState::new(), StdRng::seed_from_u64(7), now);
    let before = memory_kib();
    let begun = on_core();
    engine.apply(&view, now);
    assert_eq!(engine.table().registered(), CLIENTS as usize, "{:?}", engine.counts().snapshot());
    let (applied, registered) = (on_core() - begun, memory_kib() - before);
    let mut sink = Sink::default();
    let begun = on_core();
    for _ in 0..TICKS {
        now.steady += Duration::from_millis(250);
        engine.tick(now, &mut sink);
    }
    let tick = (on_core() - begun) / TICKS;
    let first = handshakes(&mut engine, &mut now, &mut sink);
    let live = memory_kib() - before - registered;
    let again = handshakes(&mut engine, &mut now, &mut sink);
    println!("| figure | here | goal |");
    println!("|---|---|---|");
    println!("| handshakes a second of a core, clients that come | {first:.0} | |");
    println!("| handshakes a second of a core, clients that are there | {again:.0} | 4000 |");
    println!("| {CLIENTS} registered sessions, KiB | {registered} | 10240 |");
    println!(
        "| their share of a core, percent | {:.4} | 0.5 |",
        tick.as_secs_f64() / Duration::from_millis(250).as_secs_f64() * 100.0
    );
    println!("| taking a view of them over, ms | {} | |", applied.as_millis());
    println!("| a live session, KiB | {:.1} | |", live as f64 / f64::from(HANDSHAKES));
}
