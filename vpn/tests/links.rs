//! Many clients over links that lose, double and reorder, and datagrams of all kinds.
//!
//! The clock of the engine is the test's; the noise states' own is the machine's (boringtun's `mock-instant` would be
//! turned on for the process of the other tests too, and stop its timers), so keys are renewed by will, not by age.

mod support;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::{HashMap, HashSet};
use support::{Client, INSIDE, Independent, Server, address, at, entry, packet, stamp};
use vpn::pure::count::Count;
use vpn::pure::runs::Endpoint;

const CLIENTS: u16 = 24;
const NETWORKS: u8 = 3;

/// A datagram on its way.
struct Flying {
    from: Endpoint,
    to_server: bool,
    bytes: Vec<u8>,
}

struct Party {
    client: Client,
    network: u8,
    at: Endpoint,
    sent: HashSet<Vec<u8>>,
    got: HashSet<Vec<u8>>,
}

/// In each round everybody sends, some move or renew their keys, and the links do what they like.
fn simulate(seed: u64, loss: f64, doubled: f64) -> (Server, Vec<Party>, HashMap<u16, HashSet<Vec<u8>>>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let network = |number: u16| u8::try_from(number).expect("few") % NETWORKS;
    // Clients of different networks share addresses: three by three.
    let inner = |number: u16| number / u16::from(NETWORKS);
    let sessions = (0..CLIENTS).map(|number| {
        let mut entry = entry(number, network(number));
        entry.address = address(inner(number));
        entry
    });
    let mut server = Server::new(sessions.collect());
    let mut parties: Vec<Party> = (0..CLIENTS)
        .map(|number| Party {
            client: Client::new(number),
            network: network(number),
            at: at(1000 + number),
            sent: HashSet::new(),
            got: HashSet::new(),
        })
        .collect();
    let mut to_clients: HashMap<u16, HashSet<Vec<u8>>> = HashMap::new();
    let mut flying: Vec<Flying> = Vec::new();
    for round in 0..60u32 {
        server.pass(1);
        for (number, party) in parties.iter_mut().enumerate() {
            let number = u16::try_from(number).expect("few");
            if rng.random_bool(0.05) {
                party.at = at(rng.random_range(10_000..60_000));
            }
            if round == 0 || rng.random_bool(0.2) {
                let bytes = party.client.initiation();
                flying.push(Flying { from: party.at, to_server: true, bytes });
            }
            if party.client.tunn.time_since_last_handshake().is_some() {
                let text = format!("{number} says {round}");
                let inside = packet(address(inner(number)), INSIDE, text.as_bytes());
                let bytes = party.client.seal(&inside);
                party.sent.insert(inside);
                flying.push(Flying { from: party.at, to_server: true, bytes });
            }
            let text = format!("to {number} in {round}");
            let inside = packet(INSIDE, address(inner(number)), text.as_bytes());
            to_clients.entry(number).or_default().insert(inside.clone());
            let id = server.network(party.network);
            for (to, bytes) in server.transmit(id, &inside) {
                flying.push(Flying { from: to, to_server: false, bytes });
            }
        }
        let kept = flying.len() / 4;
        flying.shuffle(&mut rng);
        for datagram in flying.split_off(kept) {
            let times = if rng.random_bool(loss) { 0 } else { 1 + usize::from(rng.random_bool(doubled)) };
            for _ in 0..times {
                arrive(&mut server, &mut parties, &datagram, &mut flying);
            }
        }
        let now = server.now;
        server.engine.tick(now, &mut server.seen);
        server.seen.sent.clear();
    }
    (server, parties, to_clients)
}

fn arrive(server: &mut Server, parties: &mut [Party], datagram: &Flying, flying: &mut Vec<Flying>) {
    if datagram.to_server {
        for (to, bytes) in server.receive(datagram.from, &datagram.bytes) {
            flying.push(Flying { from: to, to_server: false, bytes });
        }
        return;
    }
    // Whoever is there now; a client that has moved does not get it.
    let Some(party) = parties.iter_mut().find(|party| party.at == datagram.from) else { return };
    let (sent, packet) = party.client.receive(&datagram.bytes);
    party.got.extend(packet);
    for bytes in sent {
        flying.push(Flying { from: party.at, to_server: true, bytes });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn nothing_is_invented_doubled_or_given_to_another(seed: u64, loss in 0.0f64..0.5, doubled in 0.0f64..0.5) {
        let (mut server, parties, to_clients) = simulate(seed, loss, doubled);
        let mut delivered = HashSet::new();
        for (network, packet) in std::mem::take(&mut server.seen.delivered) {
            prop_assert!(delivered.insert((network, packet)), "once");
        }
        let mut all = HashSet::new();
        for (number, party) in parties.iter().enumerate() {
            let network = server.network(party.network);
            all.extend(party.sent.iter().map(|packet| (network, packet.clone())));
            let number = u16::try_from(number).expect("few");
            prop_assert!(party.got.is_subset(&to_clients[&number]), "{} got what was another's", number);
        }
        prop_assert!(delivered.is_subset(&all));
        prop_assert!(!delivered.is_empty() && parties.iter().any(|party| !party.got.is_empty()));
        // Each datagram has one outcome.
        let passed: u64 =
            [Count::PacketsIn, Count::Keepalives, Count::Handshakes].map(|what| server.count(what)).iter().sum();
        let dropped: u64 = Count::ALL
            .iter()
            .filter(|(what, name)| {
                let of_networks = [Count::NotConnected, Count::NoSession, Count::TooBigMuted, Count::Ended];
                name.starts_with("dropped") && !of_networks.contains(what)
            })
            .map(|(what, _)| server.count(*what))
            .sum();
        prop_assert_eq!(passed + dropped + server.count(Count::CookieSent), server.count(Count::DatagramsIn));
    }
}

#[test]
fn links_that_lose_nothing_deliver_all() {
    let (server, parties, _) = simulate(7, 0.0, 0.0);
    let sent: usize = parties.iter().map(|party| party.sent.len()).sum();
    // What is still on its way, and what was sealed with keys that the eight newer ones replaced.
    assert!(server.seen.delivered.len() * 10 >= sent * 8, "{} of {sent}", server.seen.delivered.len());
}

/// All kinds of datagrams that a valid exchange has.
fn samples(server: &mut Server) -> Vec<Vec<u8>> {
    let mut client = Independent::new(1, [0; 32], 3);
    let initiation = client.initiation(stamp(1));
    let answers = server.receive(at(1), &initiation);
    client.response(&answers[0].1);
    let data = client.seal(0, &packet(address(1), INSIDE, b"data"));
    let mut cookie = vec![0; 64];
    cookie[0] = 3;
    cookie[4..8].copy_from_slice(&data[4..8]);
    let mut response = answers[0].1.clone();
    response[8..12].copy_from_slice(&data[4..8]);
    support::sign(&mut response);
    vec![initiation, data, cookie, response, client.seal(1, &[]), client.seal(2, &[0x45; 200])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_datagram_makes_it_panic_and_each_is_counted(
        raw in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..10),
        changed in proptest::collection::vec((0usize..6, proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4), any::<u16>(), any::<bool>()), 0..20)
    ) {
        let mut server = Server::new(vec![entry(1, 1)]);
        let samples = samples(&mut server);
        let mut all = raw;
        for (which, changes, length, signed) in changed {
            let mut datagram = samples[which].clone();
            for (place, value) in changes {
                let place = usize::from(place) % datagram.len();
                datagram[place] = value;
            }
            if length % 4 == 0 {
                datagram.resize(usize::from(length) % 400, 0);
            }
            if signed && datagram.len() > 32 {
                support::sign(&mut datagram);
            }
            all.push(datagram);
        }
        for datagram in &all {
            let before: u64 = outcomes(&mut server);
            let answers = server.receive(at(1), datagram);
            prop_assert!(answers.len() <= 2);
            prop_assert!(outcomes(&mut server) <= before + 1);
        }
    }

    #[test]
    fn no_frame_makes_it_panic(
        frames in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..200), any::<bool>(), 0u8..6), 1..20)
    ) {
        let mut server = Server::new(vec![entry(1, 1)]);
        Client::new(1).connect(&mut server, at(1));
        let network = server.network(1);
        for (mut frame, aimed, kind) in frames {
            if aimed && frame.len() > 32 {
                let length = u16::try_from(frame.len() - 12).expect("short");
                frame[1] = kind;
                frame[12] = 0x45;
                frame[14..16].copy_from_slice(&length.to_be_bytes());
                frame[21] = [6, 17][usize::from(kind) % 2];
                frame[28..32].copy_from_slice(&address(1).octets());
            }
            let now = server.now;
            server.engine.transmit(network, &mut frame, now, &mut server.seen);
        }
    }
}

fn outcomes(server: &mut Server) -> u64 {
    let all = [Count::PacketsIn, Count::Keepalives, Count::Handshakes, Count::CookieSent];
    let dropped = Count::ALL.iter().filter(|(_, name)| name.starts_with("dropped")).map(|(what, _)| *what);
    let all: Vec<Count> = all.into_iter().chain(dropped).collect();
    all.into_iter().map(|what| server.count(what)).sum()
}
