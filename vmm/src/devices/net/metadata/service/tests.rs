//! A guest's own TCP/IP against the service, with a clock that the tests turn.

use super::*;
use crate::devices::harness::targets::MAC;
use crate::devices::net::MetadataContent;
use crate::devices::net::metadata::guest::Guest;
use proptest::prelude::*;

/// A service with what it needs.
struct Host {
    service: Service,
    store: MetadataStore,
    counters: Counters,
}

impl Host {
    fn new(mtu: u16) -> Self {
        let content = MetadataContent {
            instance_id: "vm-1".to_owned(),
            hostname: "box".to_owned(),
            ipv4: "10.0.0.2".parse().unwrap(),
            mac: MAC,
            ssh_keys: vec!["ssh-ed25519 AAAA a".to_owned()],
            user_data: Some("0123456789abcdef".repeat(1024)),
        };
        let store = MetadataStore::new(content);
        Self { service: Service::new(MAC, mtu, 7), store, counters: Counters::default() }
    }

    fn take(&mut self, now: Duration, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        for frame in frames {
            self.service.take(frame, now, &self.store, &self.counters);
        }
        self.replies(now)
    }

    /// As a guest with enough buffers takes them.
    fn replies(&mut self, now: Duration) -> Vec<Vec<u8>> {
        let mut replies = Vec::new();
        while let Some(reply) = self.service.next_reply() {
            replies.push(reply);
            self.service.poll(now, &self.store, &self.counters);
        }
        replies
    }

    fn fetch(&mut self, guest: &mut Guest, pieces: &[&[u8]]) -> String {
        let answer = guest.fetch(pieces, |frames| self.take(Duration::ZERO, frames));
        String::from_utf8(answer).unwrap()
    }
}

/// The beginning of a connection, as a stranger to the guest's own stack would make it.
fn syn(port: u16) -> Vec<u8> {
    let mut frame = [&GATEWAY_MAC.0[..], &MAC.0, &ETHERTYPE_IPV4].concat();
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
    frame.extend(METADATA_IPV4.octets());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 16, 0, 0, 0, 0, 0]);
    frame
}

#[test]
fn a_request_is_answered_in_one_and_in_many_segments() {
    let mut host = Host::new(1500);
    let mut guest = Guest::new(MAC, 1500);
    let request = b"GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: a\r\n\r\n";
    let whole = host.fetch(&mut guest, &[request]);
    assert!(whole.starts_with("HTTP/1.1 200 OK\r\n") && whole.ends_with("\r\n\r\nvm-1"), "{whole}");
    let letters: Vec<&[u8]> = request.chunks(1).collect();
    assert_eq!(host.fetch(&mut guest, &letters), whole);
    assert_eq!(host.service.connections(), 0);
}

#[test]
fn a_long_answer_comes_whole_and_a_long_head_is_taken_whole() {
    let mut host = Host::new(9000);
    // A head of one large segment, as the guest leaves it to its NIC to cut.
    let mut guest = Guest::new(MAC, 9000);
    let head = format!("GET /latest/user-data HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(4000));
    let answer = host.fetch(&mut guest, &[head.as_bytes()]);
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, "0123456789abcdef".repeat(1024));
    let too_long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_MAX));
    assert!(host.fetch(&mut guest, &[too_long.as_bytes()]).starts_with("HTTP/1.1 431 "));
}

#[test]
fn a_guest_that_has_said_its_last_word_gets_the_whole_answer() {
    let mut host = Host::new(1500);
    let mut guest = Guest::new(MAC, 1500);
    guest.half_closes = true;
    let answer = host.fetch(&mut guest, &[b"GET /latest/user-data HTTP/1.1\r\n\r\n"]);
    assert!(answer.ends_with(&"0123456789abcdef".repeat(1024)));
    assert_eq!(host.service.connections(), 0);
}

#[test]
fn content_may_be_replaced_and_tokens_differ() {
    let mut host = Host::new(1500);
    let mut guest = Guest::new(MAC, 1500);
    let old = host.store.get().unwrap();
    host.store.replace(MetadataContent { instance_id: "vm-2".to_owned(), ..(*old).clone() });
    let get = b"GET /latest/meta-data/instance-id HTTP/1.1\r\n\r\n";
    assert!(host.fetch(&mut guest, &[get]).ends_with("\r\n\r\nvm-2"));
    let put = b"PUT /latest/api/token HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    let tokens = [host.fetch(&mut guest, &[put]), host.fetch(&mut guest, &[put])];
    assert!(tokens[0].starts_with("HTTP/1.1 200 "));
    assert_ne!(tokens[0], tokens[1]);
}

#[test]
fn connections_follow_each_other_without_a_wait() {
    let mut host = Host::new(1500);
    let mut guest = Guest::new(MAC, 1500);
    for _ in 0..4 * CONNECTIONS {
        let answer = host.fetch(&mut guest, &[b"GET /v1/ssh-keys HTTP/1.1\r\n\r\n"]);
        assert!(answer.ends_with("\r\n\r\nssh-ed25519 AAAA a\n"), "{answer}");
    }
    assert_eq!(host.service.connections(), 0);
}

#[test]
fn a_flood_of_syns_is_bounded_and_passes() {
    let mut host = Host::new(1500);
    for port in 1..=1000 {
        host.service.take(syn(port), Duration::ZERO, &host.store, &host.counters);
        assert!(host.service.connections() <= CONNECTIONS);
        assert!(host.service.link.outgoing.len() <= REPLIES_MAX);
    }
    assert_eq!(host.service.connections(), CONNECTIONS);
    assert!(host.counters.get(Counter::NetMetadataBusy) > 900);
    // Nobody takes the answers: the connections end nevertheless, and no deadline is in the past for ever.
    assert_eq!(host.service.next_deadline(Duration::ZERO), Some(LIFE));
    host.service.poll(LIFE, &host.store, &host.counters);
    assert_eq!(host.counters.get(Counter::NetMetadataTimeout), CONNECTIONS as u64);
    assert_eq!(host.service.connections(), 0);
    assert_eq!(host.service.next_deadline(LIFE), None);
    host.replies(LIFE);
    let mut guest = Guest::new(MAC, 1500);
    let answer = host.fetch(&mut guest, &[b"GET /latest/meta-data/mac HTTP/1.1\r\n\r\n"]);
    assert!(answer.starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_guest_that_says_half_and_falls_silent_is_reset() {
    let mut host = Host::new(1500);
    let mut guest = Guest::new(MAC, 1500);
    let handle = guest.connect();
    let mut replies = Vec::new();
    for _ in 0..10 {
        let frames = guest.exchange(Duration::ZERO, replies);
        replies = host.take(Duration::ZERO, frames);
        let socket = guest.socket(handle);
        if socket.can_send() && socket.send_queue() == 0 {
            socket.send_slice(b"GET /").unwrap();
        }
    }
    assert_eq!(host.service.connections(), 1);
    host.service.poll(LIFE + Duration::from_millis(1), &host.store, &host.counters);
    assert_eq!(host.counters.get(Counter::NetMetadataTimeout), 1);
    let replies = host.replies(LIFE);
    guest.exchange(LIFE, replies);
    assert_eq!(guest.socket(handle).state(), smoltcp::socket::tcp::State::Closed);
    assert_eq!(host.service.connections(), 0);
}

#[test]
fn a_guest_that_ends_before_its_head_is_complete_gets_the_end() {
    let mut host = Host::new(1500);
    let mut guest = Guest::new(MAC, 1500);
    let handle = guest.connect();
    let mut replies = Vec::new();
    for round in 0..20 {
        let frames = guest.exchange(Duration::ZERO, replies);
        replies = host.take(Duration::ZERO, frames);
        if round == 5 {
            guest.socket(handle).send_slice(b"GET / HT").unwrap();
            guest.socket(handle).close();
        }
    }
    assert_eq!(host.service.connections(), 0);
    assert!(!guest.socket(handle).is_open());
}

#[test]
fn a_lost_answer_comes_again() {
    let mut host = Host::new(1500);
    host.service.take(syn(1), Duration::ZERO, &host.store, &host.counters);
    assert_eq!(host.replies(Duration::ZERO).len(), 1);
    let due = host.service.next_deadline(Duration::ZERO).unwrap();
    assert!(due > Duration::ZERO && due < LIFE, "{due:?}");
    host.service.poll(due, &host.store, &host.counters);
    assert_eq!(host.replies(due).len(), 1);
}

#[test]
fn a_cleared_service_knows_no_connection() {
    let mut host = Host::new(1500);
    host.service.take(syn(1), Duration::ZERO, &host.store, &host.counters);
    host.service.clear();
    assert!(!host.service.has_replies());
    assert_eq!(host.service.connections(), 0);
    assert_eq!(host.service.next_deadline(Duration::ZERO), None);
}

#[test]
fn who_has_the_address_is_answered_to_the_asker_alone() {
    let mut host = Host::new(1500);
    let request = |target: [u8; 4], beginning: [u8; 8]| {
        let mut frame = [&[0xff; 6][..], &MAC.0, &ETHERTYPE_ARP, &beginning, &MAC.0].concat();
        frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(target);
        frame
    };
    let good = [0, 1, 8, 0, 6, 4, 0, 1];
    let metadata = METADATA_IPV4.octets();
    let answers = host.take(Duration::ZERO, vec![request(metadata, good)]);
    let mut expected = [&[0; 12][..], &MAC.0, &GATEWAY_MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]].concat();
    expected.extend(GATEWAY_MAC.0);
    expected.extend(metadata);
    expected.extend(MAC.0);
    expected.extend([10, 0, 0, 2]);
    assert_eq!(answers, [expected]);
    let others = vec![
        request([169, 254, 1, 1], good),
        request(metadata, [0, 1, 8, 0, 6, 4, 0, 2]),
        request(metadata, [0, 6, 8, 0, 6, 4, 0, 1]),
        request(metadata, good)[..41].to_vec(),
    ];
    assert_eq!(host.take(Duration::ZERO, others), Vec::<Vec<u8>>::new());
    for _ in 0..2 * REPLIES_MAX {
        host.service.take(request(metadata, good), Duration::ZERO, &host.store, &host.counters);
    }
    assert_eq!(host.counters.get(Counter::NetMetadataBusy), REPLIES_MAX as u64);
}

#[test]
fn a_frame_beyond_the_bound_is_dropped_and_counted() {
    let mut host = Host::new(1500);
    let mut frame = syn(1);
    frame.resize(FRAME_MAX + 1, 0);
    assert_eq!(host.take(Duration::ZERO, vec![frame.clone()]), Vec::<Vec<u8>>::new());
    assert_eq!(host.counters.get(Counter::NetMetadataTooLong), 1);
    frame.truncate(FRAME_MAX);
    assert_eq!(host.take(Duration::ZERO, vec![frame]).len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn no_frames_break_the_service(input in prop::collection::vec(any::<u8>(), 0..1500)) {
        crate::devices::harness::targets::metadata(&input);
    }

    /// However a request is cut, its answer is the same.
    #[test]
    fn cuts_do_not_matter(cuts in prop::collection::vec(1usize..60, 1..6)) {
        let request: &[u8] = b"HEAD /latest/meta-data/public-keys/0/openssh-key HTTP/1.1\r\nAccept: */*\r\n\r\n";
        let mut pieces = Vec::new();
        let mut rest = request;
        for cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            pieces.push(piece);
            rest = after;
        }
        pieces.push(rest);
        pieces.retain(|piece| !piece.is_empty());
        let mut host = Host::new(1500);
        let mut guest = Guest::new(MAC, 1500);
        let answer = host.fetch(&mut guest, &pieces);
        prop_assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{}", answer);
        prop_assert!(answer.contains("Content-Length: 19\r\n"));
    }
}
