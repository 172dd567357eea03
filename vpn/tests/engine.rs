//! The engine against clients of two kinds: boringtun's own, and one that shares no code with it.

mod support;

use model::key::SecretKey;
use proptest::prelude::*;
use std::num::NonZeroU32;
use support::{Client, INSIDE, Independent, Server, address, at, entry, packet, public, stamp, tcp, view};
use vpn::pure::count::Count;
use vpn::pure::engine::Rules;
use vpn::pure::noise::REJECT_AFTER_MESSAGES;
use vpn::pure::{ipv4, offload};

fn out(number: u16) -> Vec<u8> {
    packet(address(number), INSIDE, b"out")
}

fn back(number: u16) -> Vec<u8> {
    packet(INSIDE, address(number), b"and back")
}

#[test]
fn an_independent_client_gets_through_both_ways() {
    for preshared in [None, Some([9; 32])] {
        let mut registered = entry(1, 1);
        registered.preshared_key = preshared.map(SecretKey::new);
        let mut server = Server::new(vec![registered]);
        let mut client = Independent::new(1, preshared.unwrap_or_default(), 0xdead_beef);
        let answers = server.receive(at(1), &client.initiation(stamp(1)));
        client.response(&answers[0].1);
        let network = server.network(1);
        assert!(server.transmit(network, &back(1)).is_empty(), "no key is confirmed yet");
        assert_eq!(server.count(Count::NotConnected), 1);
        assert!(server.receive(at(1), &client.seal(0, &out(1))).is_empty());
        assert_eq!(server.seen.delivered, [(network, out(1))]);
        let sealed = server.transmit(network, &back(1));
        assert_eq!((sealed.len(), sealed[0].0), (1, at(1)));
        let mut opened = client.open(&sealed[0].1);
        assert_eq!(opened.len() % 16, 0, "padded");
        assert!(opened.split_off(back(1).len()).iter().all(|byte| *byte == 0));
        assert_eq!(opened, back(1));
    }
    let mut registered = entry(1, 1);
    registered.preshared_key = Some(SecretKey::new([9; 32]));
    let mut server = Server::new(vec![registered]);
    let mut client = Independent::new(1, [8; 32], 5);
    let answers = server.receive(at(1), &client.initiation(stamp(1)));
    let opened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| client.response(&answers[0].1)));
    assert!(opened.is_err(), "another preshared key makes other keys");
}

/// Guard 1. Without it boringtun overflows: a panic, or a window that begins again and takes old messages.
#[test]
fn counters_at_the_protocols_limit_are_refused() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Independent::new(1, [0; 32], 1);
    client.connect(&mut server, at(1), 1);
    for counter in [u64::MAX - 1, REJECT_AFTER_MESSAGES + 1, REJECT_AFTER_MESSAGES] {
        server.receive(at(1), &client.seal(counter, &out(1)));
    }
    assert_eq!((server.count(Count::CounterLimit), server.seen.delivered.len()), (3, 0));
    server.receive(at(1), &client.seal(REJECT_AFTER_MESSAGES - 1, &out(1)));
    assert_eq!(server.seen.delivered.len(), 1, "the last that may be");
    server.receive(at(1), &client.seal(REJECT_AFTER_MESSAGES - 1, &out(1)));
    server.receive(at(1), &client.seal(0, &out(1)));
    assert_eq!((server.count(Count::Replayed), server.seen.delivered.len()), (2, 1));
}

/// Guard 2. Without it the library hands out an empty slice, or what is behind the packet.
#[test]
fn inner_lengths_that_lie_are_refused() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Independent::new(1, [0; 32], 1);
    client.connect(&mut server, at(1), 1);
    for (counter, total) in [0, 1, 19, 32, u16::MAX].into_iter().enumerate() {
        let mut lying = out(1);
        ipv4::set_word(&mut lying, 2, total);
        server.receive(at(1), &client.seal(counter as u64 + 1, &lying));
    }
    for (counter, length) in [1, 5, 19].into_iter().enumerate() {
        server.receive(at(1), &client.seal(counter as u64 + 10, &out(1)[..length]));
    }
    let mut short = out(1);
    short[0] = 0x44;
    server.receive(at(1), &client.seal(20, &short));
    assert_eq!((server.count(Count::BadInner), server.seen.delivered.len()), (9, 0));
    let mut padded = out(1);
    padded.resize(64, 0xee);
    server.receive(at(1), &client.seal(21, &padded));
    assert_eq!(server.seen.delivered[0].1, out(1), "what is behind the packet is cut off");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Guard 3. Without it the datagram's length tells the packet's.
    #[test]
    fn plain_packets_are_padded_within_the_tunnels_size(sizes in proptest::collection::vec(0usize..1253, 1..20), mtu in 576u16..1400) {
        let mut server = Server::with(Rules { mtu, client_to_client: false }, vec![entry(1, 1)]);
        let mut client = Client::new(1);
        client.connect(&mut server, at(1));
        let network = server.network(1);
        for size in sizes {
            let packet = packet(INSIDE, address(1), &vec![7; size]);
            let sealed = server.transmit(network, &packet);
            if packet.len() > usize::from(mtu) {
                prop_assert!(sealed.is_empty());
                continue;
            }
            let inner = sealed[0].1.len() - 32;
            prop_assert_eq!(inner, packet.len().next_multiple_of(16).min(usize::from(mtu)));
            prop_assert_eq!(client.receive(&sealed[0].1).1, Some(packet));
        }
    }
}

/// The state of who was there last is tried first, and must neither answer for another nor keep it out.
#[test]
fn clients_that_change_places_keep_their_sessions() {
    let mut server = Server::new(vec![entry(1, 1), entry(2, 1)]);
    let mut clients = [Independent::new(1, [0; 32], 1), Independent::new(2, [0; 32], 2)];
    for second in 1..7u64 {
        for place in 0..2u16 {
            // Every other second they stand where they stood before.
            let number = (place + u16::try_from(second / 2 % 2).expect("short")) % 2;
            let client = &mut clients[usize::from(number)];
            *client = Independent::new(number + 1, [0; 32], u32::from(number) + 1);
            let initiation = client.initiation(stamp(second));
            let answers = server.receive(at(place), &initiation);
            assert_eq!((answers.len(), answers[0].0), (1, at(place)));
            client.response(&answers[0].1);
            server.receive(at(place), &client.seal(0, &out(number + 1)));
            assert_eq!(server.seen.delivered.pop().expect("through").1, out(number + 1));
            assert!(server.receive(at(place), &initiation).is_empty(), "an old one is not answered");
        }
    }
    assert_eq!((server.count(Count::Handshakes), server.count(Count::Handshake)), (12, 12));
    assert_eq!(server.count(Count::Awoken), 2);
    // A stranger at a client's address is nobody, and the client goes on.
    assert!(server.receive(at(0), &Client::new(9).initiation()).is_empty());
    assert_eq!(server.count(Count::UnknownKey), 1);
    let mut closed = view(vec![entry(2, 1)]);
    closed.generation = model::id::Generation(2);
    server.engine.apply(&closed, server.now);
    let mut late = Independent::new(1, [0; 32], 1);
    for place in 0..2 {
        assert!(
            server.receive(at(place), &late.initiation(stamp(20))).is_empty(),
            "a closed session's client"
        );
        late = Independent::new(1, [0; 32], 1);
    }
}

/// Guard 4. With one limiter for both, or the library's own of ten a second, half or less of these would pass.
#[test]
fn each_handshake_counts_once_and_too_many_must_prove_their_address() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Client::new(1);
    for number in 0..100 {
        let initiation = client.initiation();
        assert_eq!(server.receive(at(1), &initiation)[0].1[0], 2, "number {number} is answered");
    }
    let initiation = client.initiation();
    let cookie = server.receive(at(1), &initiation);
    assert_eq!((cookie[0].1[0], cookie[0].1.len()), (3, 64));
    assert_eq!((server.count(Count::Handshakes), server.count(Count::CookieSent)), (100, 1));
    assert!(client.receive(&cookie[0].1).0.is_empty());
    // The cookie makes the second MAC; the address is proven, but only that one.
    let proven = client.initiation();
    assert_eq!(server.receive(at(2), &proven)[0].1[0], 3, "another port");
    assert_eq!(server.receive(at(1), &proven)[0].1[0], 2);
    let mut dropped = 0;
    for _ in 0..200 {
        let initiation = client.initiation();
        dropped += u32::from(server.receive(at(1), &initiation).is_empty());
    }
    assert_eq!((dropped, server.count(Count::Flood)), (101, 101), "proven ones have an allowance too");
}

#[test]
fn what_a_client_may_not_send_is_dropped_for_its_reason() {
    let mut server = Server::new(vec![entry(1, 1), entry(2, 1)]);
    let mut client = Client::new(1);
    client.connect(&mut server, at(1));
    let mut six = vec![0; 60];
    six[0] = 0x60;
    six[5] = 20;
    let cases = [
        (packet(address(2), INSIDE, b"x"), Count::Spoofed),
        (packet(INSIDE, INSIDE, b"x"), Count::Spoofed),
        (packet(address(1), "10.0.1.1".parse().expect("address"), b"x"), Count::Outside),
        (packet(address(1), "169.254.169.254".parse().expect("address"), b"x"), Count::Outside),
        (packet(address(1), address(2), b"x"), Count::Outside),
        (six, Count::InnerIpv6),
    ];
    for (packet, reason) in cases {
        let before = server.count(reason);
        let sealed = client.seal(&packet);
        assert!(server.receive(at(1), &sealed).is_empty());
        assert_eq!(server.count(reason), before + 1, "{reason:?}");
    }
    assert!(server.seen.delivered.is_empty());
}

#[test]
fn clients_reach_each_other_only_where_the_operator_wants_it() {
    let rules = Rules { mtu: 1280, client_to_client: true };
    let mut server = Server::with(rules, vec![entry(1, 1), entry(2, 1), entry(3, 2)]);
    let mut clients: Vec<_> = (1..=3).map(Client::new).collect();
    for client in &mut clients {
        client.connect(&mut server, at(client.number));
    }
    let across = packet(address(1), address(2), b"hello");
    let sealed = clients[0].seal(&across);
    let sent = server.receive(at(1), &sealed);
    assert_eq!((sent.len(), sent[0].0), (1, at(2)));
    assert_eq!(clients[1].receive(&sent[0].1).1, Some(across));
    let sealed = clients[0].seal(&packet(address(1), address(3), b"hello"));
    assert!(server.receive(at(1), &sealed).is_empty(), "another network");
    assert_eq!(server.count(Count::Outside), 1);
}

#[test]
fn networks_with_the_same_addresses_never_meet() {
    let mut other = entry(2, 2);
    other.address = address(1);
    let mut server = Server::new(vec![entry(1, 1), other]);
    let (mut one, mut two) = (Client::new(1), Client::new(2));
    one.connect(&mut server, at(1));
    two.connect(&mut server, at(2));
    let (first, second) = (server.network(1), server.network(2));
    let (sealed, also) = (one.seal(&out(1)), two.seal(&out(1)));
    server.receive(at(1), &sealed);
    server.receive(at(2), &also);
    assert_eq!(server.seen.delivered, [(first, out(1)), (second, out(1))]);
    assert_eq!(server.transmit(first, &back(1))[0].0, at(1));
    let sealed = server.transmit(second, &back(1));
    assert_eq!(sealed[0].0, at(2));
    assert_eq!(two.receive(&sealed[0].1).1, Some(back(1)));
    assert!(server.transmit(first, &back(2)).is_empty());
    assert_eq!(server.count(Count::NoSession), 1);
}

#[test]
fn the_endpoint_follows_what_is_authentic_and_nothing_else() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Client::new(1);
    client.connect(&mut server, at(1));
    let network = server.network(1);
    let first = client.seal(&out(1));
    server.receive(at(2), &first);
    assert_eq!(server.transmit(network, &back(1))[0].0, at(2), "by data");
    let keepalive = client.seal(&[]);
    server.receive(at(3), &keepalive);
    assert_eq!(server.transmit(network, &back(1))[0].0, at(3), "by a keepalive");
    let initiation = client.initiation();
    server.receive(at(4), &initiation);
    assert_eq!(server.transmit(network, &back(1))[0].0, at(4), "by a handshake");
    assert_eq!(server.count(Count::Roamed), 3);
    server.receive(at(5), &first);
    server.receive(at(5), &initiation);
    let mut forged = client.seal(&out(1));
    *forged.last_mut().expect("long") ^= 1;
    server.receive(at(5), &forged);
    assert_eq!(
        (server.count(Count::Replayed), server.count(Count::Handshake), server.count(Count::Forged)),
        (1, 1, 1)
    );
    let mut cookie = vec![0; 64];
    cookie[0] = 3;
    cookie[4..8].copy_from_slice(&first[4..8]);
    server.receive(at(5), &cookie);
    assert_eq!(server.count(Count::Cookie), 1);
    assert_eq!(server.transmit(network, &back(1))[0].0, at(4), "nothing of that moved it");
}

/// The server starts a handshake, the client asks for a proof of address: its genuine cookie from elsewhere.
#[test]
fn a_genuine_cookie_moves_nothing() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Client::new(1);
    client.connect(&mut server, at(1));
    let network = server.network(1);
    let place = server.engine.table().by_key(&public(support::private(1))).expect("registered");
    let mut room = [0; 148];
    let initiation = {
        let session = server.engine.session_for_test(place).expect("there");
        let live = session.live().expect("live");
        match live.state.format_handshake_initiation(&mut room, true) {
            boringtun::noise::TunnResult::WriteToNetwork(bytes) => bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    let limiter = boringtun::noise::rate_limiter::RateLimiter::new(
        &boringtun::x25519::PublicKey::from(public(support::private(1)).0),
        0,
    );
    let mut cookie = [0; 64];
    let asked = limiter.verify_packet(Some([203, 0, 113, 1].into()), &initiation, &mut cookie);
    assert!(asked.is_err());
    server.receive(at(9), &cookie);
    assert_eq!(server.count(Count::Cookie), 0, "it was genuine");
    assert_eq!(server.transmit(network, &back(1))[0].0, at(1));
    // And a response to that handshake does move it.
    let (sent, _) = client.receive(&initiation);
    server.receive(at(6), &sent[0]);
    assert_eq!(server.transmit(network, &back(1))[0].0, at(6));
}

#[test]
fn a_session_that_is_over_is_gone_at_once() {
    let mut deadline = entry(1, 1);
    deadline.expires_unix_ms = 1_060_000;
    let mut idle = entry(2, 1);
    idle.idle_seconds = NonZeroU32::new(100).expect("not zero");
    let mut server = Server::new(vec![deadline, idle.clone(), entry(3, 1)]);
    let mut clients: Vec<_> = (1..=3).map(Client::new).collect();
    for client in &mut clients {
        client.connect(&mut server, at(client.number));
    }
    let network = server.network(1);
    let alive = |server: &mut Server, client: &mut Client| {
        let before = server.seen.delivered.len();
        let sealed = client.seal(&out(client.number));
        server.receive(at(client.number), &sealed);
        let answered = server.transmit(network, &back(client.number)).len() == 1;
        let delivered = server.seen.delivered.len() > before;
        let initiation = client.initiation();
        let shaken = !server.receive(at(client.number), &initiation).is_empty();
        assert!(delivered == answered && shaken == answered, "all or nothing");
        answered
    };
    assert!(clients.iter_mut().all(|client| alive(&mut server, client)));
    server.pass(60);
    assert!(!alive(&mut server, &mut clients[0]), "at its deadline, without any tick");
    assert_eq!((server.count(Count::Expired), server.engine.table().live_count()), (1, 2));
    assert!(alive(&mut server, &mut clients[1]) && alive(&mut server, &mut clients[2]));
    server.pass(99);
    assert!(alive(&mut server, &mut clients[1]), "just not idle");
    server.pass(100);
    assert!(!alive(&mut server, &mut clients[1]));
    assert_eq!(server.count(Count::Idled), 1);
    assert!(alive(&mut server, &mut clients[2]));
    let now = server.now;
    server.engine.apply(&view(vec![idle]), now);
    assert!(!alive(&mut server, &mut clients[2]), "it left the view");
    assert!(!alive(&mut server, &mut clients[1]), "it stays over");
    assert_eq!((server.engine.table().live_count(), server.engine.table().registered()), (0, 1));
}

#[test]
fn a_silent_clients_state_is_dropped_and_made_again() {
    let mut server = Server::new(vec![entry(1, 1), entry(2, 1)]);
    let (mut one, mut two) = (Client::new(1), Client::new(2));
    one.connect(&mut server, at(1));
    two.connect(&mut server, at(2));
    server.pass(179);
    let keepalive = two.seal(&[]);
    server.receive(at(2), &keepalive);
    server.engine.tick(server.now, &mut server.seen);
    assert_eq!(server.engine.table().live_count(), 2);
    server.pass(1);
    server.engine.tick(server.now, &mut server.seen);
    assert_eq!((server.engine.table().live_count(), server.count(Count::Silent)), (1, 1));
    let late = one.seal(&out(1));
    server.receive(at(1), &late);
    assert_eq!(server.count(Count::UnknownIndex), 1);
    one.connect(&mut server, at(1));
    assert_eq!(server.engine.table().live_count(), 2);
}

/// With the state the library forgets which initiations it has seen; an old one sent again must not keep a session.
#[test]
fn an_old_initiation_keeps_no_session_going() {
    let mut registered = entry(1, 1);
    registered.idle_seconds = NonZeroU32::new(300).expect("not zero");
    let mut server = Server::new(vec![registered]);
    let mut client = Independent::new(1, [0; 32], 1);
    let old = client.initiation(stamp(1));
    let answers = server.receive(at(1), &old);
    client.response(&answers[0].1);
    server.receive(at(1), &client.seal(0, &out(1)));
    assert!(server.receive(at(9), &old).is_empty(), "the state knows it");
    for _ in 0..2 {
        server.pass(140);
        server.engine.tick(server.now, &mut server.seen);
        server.receive(at(9), &old);
    }
    server.pass(20);
    assert!(server.receive(at(9), &old).is_empty());
    assert_eq!((server.count(Count::Idled), server.engine.table().live_count()), (1, 0));
}

#[test]
fn strangers_get_no_answer() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let unknown = Client::new(2).initiation();
    assert!(server.receive(at(1), &unknown).is_empty());
    let mut wrong = Client::new(1).initiation();
    wrong[120] ^= 1;
    assert!(server.receive(at(1), &wrong).is_empty());
    let mut unreadable = Client::new(1).initiation();
    unreadable[50] ^= 1;
    support::sign(&mut unreadable);
    assert!(server.receive(at(1), &unreadable).is_empty());
    let mut half = Client::new(1).initiation();
    half[100] ^= 1;
    support::sign(&mut half);
    assert!(server.receive(at(1), &half).is_empty(), "the static key alone proves nothing");
    assert_eq!(server.engine.table().live_count(), 0, "and makes no state");
    let reasons = [Count::UnknownKey, Count::Mac1, Count::Unreadable, Count::Handshake];
    assert_eq!(reasons.map(|reason| server.count(reason)), [1, 1, 1, 1]);
}

#[test]
fn packets_that_are_too_large_are_answered_and_segment_sizes_lowered() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Client::new(1);
    client.connect(&mut server, at(1));
    let network = server.network(1);
    let large = packet(INSIDE, address(1), &[0; 1253]);
    assert!(server.transmit(network, &large).is_empty());
    let (_, told) = server.seen.delivered.pop().expect("told");
    let header = ipv4::parse(&told).expect("good");
    assert_eq!((header.source, header.destination, header.protocol), (address(1), INSIDE, 1));
    assert_eq!((told[20], told[21], ipv4::word(&told, 26)), (3, 4, 1280));
    assert_eq!(told[28..56], large[..28]);
    for _ in 0..50 {
        server.transmit(network, &large);
    }
    assert_eq!((server.count(Count::TooBigTold), server.count(Count::TooBigMuted)), (20, 31));
    let mut may_be_cut = large;
    may_be_cut[6] = 0;
    server.transmit(network, &may_be_cut);
    assert_eq!(server.count(Count::TooBigUncut), 1);
    let fits = packet(INSIDE, address(1), &[0; 1252]);
    assert_eq!(server.transmit(network, &fits).len(), 1);

    let syn = tcp(INSIDE, address(1), 2, &[2, 4, 0x05, 0xb4], &[]);
    let sealed = server.transmit(network, &syn);
    let (_, got) = client.receive(&sealed[0].1);
    let lowered = tcp(INSIDE, address(1), 2, &[2, 4, 0x04, 0xd8], &[]);
    assert_eq!(got, Some(lowered), "1240, its checksum as if computed anew");
    let syn = tcp(address(1), INSIDE, 2, &[2, 4, 0x05, 0xb4], &[]);
    server.seen.delivered.clear();
    let sealed = client.seal(&syn);
    server.receive(at(1), &sealed);
    assert_eq!(server.seen.delivered[0].1, tcp(address(1), INSIDE, 2, &[2, 4, 0x04, 0xd8], &[]));
    assert_eq!(server.count(Count::Clamped), 2);
}

#[test]
fn a_large_frame_reaches_the_client_as_segments() {
    let mut server = Server::new(vec![entry(1, 1)]);
    let mut client = Client::new(1);
    client.connect(&mut server, at(1));
    let network = server.network(1);
    let payload: Vec<u8> = (0..40_000u32).map(|n| (n % 251) as u8).collect();
    let whole = tcp(INSIDE, address(1), 0x18, &[], &payload);
    for (size, fits) in [(1240, true), (1241, false)] {
        let mut vnet = [0; offload::VNET_BYTES];
        offload::announce(&mut vnet, 40, 20, size);
        let mut given = vnet.to_vec();
        given.extend(&whole);
        server.engine.transmit(network, &mut given, server.now, &mut server.seen);
        let sent = std::mem::take(&mut server.seen.sent);
        assert_eq!(sent.len(), if fits { payload.len().div_ceil(size) } else { 0 });
        let mut got: Vec<u8> = Vec::new();
        for (_, datagram) in &sent {
            assert!(datagram.len() <= 1280 + 32);
            let piece = client.receive(datagram).1.expect("opened");
            assert!(vpn::pure::tcp::is_sound(&piece, 20));
            got.extend(&piece[40..]);
        }
        assert!(!fits || got == payload);
    }
    assert_eq!(server.count(Count::TooBigTold), 1);
}

#[test]
fn a_view_is_taken_over_entry_by_entry() {
    let mut same_key = entry(1, 1);
    same_key.id = entry(7, 1).id;
    same_key.address = address(7);
    let mut same_address = entry(8, 1);
    same_address.address = address(1);
    let mut servers_key = entry(9, 1);
    servers_key.client_key = public(support::SERVER);
    let mut server = Server::new(vec![entry(1, 1), same_key, same_address, servers_key, entry(2, 1)]);
    assert_eq!((server.engine.table().registered(), server.count(Count::Conflict)), (2, 3));
    let (mut one, mut two) = (Client::new(1), Client::new(2));
    one.connect(&mut server, at(1));
    two.connect(&mut server, at(2));
    // One is moved to another address, two stays as it is.
    let mut moved = entry(1, 1);
    moved.address = address(20);
    let now = server.now;
    server.engine.apply(&view(vec![entry(2, 1), moved]), now);
    let (sealed, also) = (one.seal(&out(1)), two.seal(&out(2)));
    server.receive(at(1), &sealed);
    server.receive(at(2), &also);
    assert_eq!(server.seen.delivered.len(), 1, "only two goes on");
    one.connect(&mut server, at(1));
    let network = server.network(1);
    assert_eq!(server.transmit(network, &back(20)).len(), 1);
    // Another server key makes all states void.
    let mut other = view(vec![entry(2, 1)]);
    other.server_key = SecretKey::new([43; 32]);
    server.engine.apply(&other, now);
    assert_eq!((server.engine.table().live_count(), server.engine.table().registered()), (0, 1));
    let initiation = two.initiation();
    assert!(server.receive(at(2), &initiation).is_empty(), "it knows the old key only");
    assert_eq!(server.count(Count::Mac1), 1);
}
