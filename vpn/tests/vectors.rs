//! Whole conversations with fixed keys, computed by an implementation that has nothing in common with this one
//! (vectors/make.py), byte for byte.
//!
//! ```text
//!   the file ── initiation ──► engine ── response, data ──► snow, with the file's ephemeral key
//!       └────── both ends ───► snow writes the same bytes, so what reads the engine's answers is checked by the file too
//! ```
//!
//! The engine's response cannot be the file's: boringtun draws the responder's ephemeral key from the system and takes
//! none. So it is read by snow. What snow opens has one form only: the cipher has no
//! choice left when key, counter and packet are given.

mod support;

use model::key::SecretKey;
use support::{Independent, SERVER, Server, at, entry, packet, private, public};
use vpn::pure::count::Count;

#[derive(Debug)]
struct Conversation {
    number: u16,
    fields: toml::Table,
}

impl Conversation {
    fn bytes(&self, name: &str) -> Vec<u8> {
        unhex(self.fields[name].as_str().expect("text"))
    }

    fn key(&self, name: &str) -> [u8; 32] {
        self.bytes(name).try_into().expect("a key")
    }

    fn index(&self, name: &str) -> u32 {
        self.fields[name].as_integer().and_then(|index| u32::try_from(index).ok()).expect("an index")
    }

    /// Plain and sealed, by counter.
    fn data(&self, name: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let pairs = self.fields[name].as_array().expect("a list").iter().map(|pair| {
            let part = |at: usize| unhex(pair[at].as_str().expect("text"));
            (part(0), part(1))
        });
        pairs.collect()
    }

    fn initiator(&self) -> Independent {
        let (preshared, ephemeral) = (self.key("preshared"), self.key("client_ephemeral"));
        Independent::fixed(self.number, preshared, self.index("client_index"), &ephemeral)
    }

    fn server(&self) -> Server {
        let mut registered = entry(self.number, 1);
        // No preshared key is one of zeros (WireGuard, NDSS 2017, section 5.4).
        let preshared = self.key("preshared");
        registered.preshared_key = (preshared != [0; 32]).then(|| SecretKey::new(preshared));
        Server::new(vec![registered])
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("a digit");
    (0..text.len()).step_by(2).map(byte).collect()
}

fn conversations() -> Vec<Conversation> {
    let file: toml::Table = toml::from_str(include_str!("vectors/ikpsk2.toml")).expect("a table");
    let all = file["conversation"].as_array().expect("a list").clone();
    let all: Vec<Conversation> = (1..)
        .zip(all)
        .map(|(number, fields)| Conversation { number, fields: fields.as_table().expect("a table").clone() })
        .collect();
    assert_eq!(all.len(), 3);
    for conversation in &all {
        assert_eq!(conversation.key("client_private"), private(conversation.number));
        assert_eq!(conversation.key("server_private"), SERVER);
    }
    all
}

#[test]
fn the_independent_client_writes_and_reads_what_the_file_says() {
    for conversation in conversations() {
        let stamp = conversation.bytes("timestamp").try_into().expect("a timestamp");
        let mut client = conversation.initiator();
        assert_eq!(client.initiation(stamp), conversation.bytes("initiation"));
        client.response(&conversation.bytes("response"));
        for (counter, (plain, sealed)) in (0..).zip(conversation.data("to_server")) {
            assert_eq!(client.seal(counter, &plain), sealed);
        }
        for (plain, sealed) in conversation.data("to_client") {
            assert_eq!(client.open(&sealed), plain);
        }
    }
}

#[test]
fn the_engine_answers_the_files_initiations_and_seals_what_snow_opens() {
    for conversation in conversations() {
        let (mut server, number) = (conversation.server(), conversation.number);
        let stamp = conversation.bytes("timestamp").try_into().expect("a timestamp");
        let mut client = conversation.initiator();
        client.initiation(stamp);
        let answers = server.receive(at(number), &conversation.bytes("initiation"));
        let [(to, response)] = &answers[..] else { panic!("{:?}", server.engine.counts().snapshot()) };
        assert_eq!(*to, at(number));
        // Its first MAC is under the client's key (section 5.4.4), and nobody asked for a second.
        assert_eq!(support::mac1(&response[..60], &public(private(number))), response[60..76]);
        assert_eq!(response[76..], [0; 16]);
        client.response(response);

        let network = server.network(1);
        let (inner, back) = (packet(support::address(number), support::INSIDE, b"in"), b"and back");
        let back = packet(support::INSIDE, support::address(number), back);
        assert!(server.receive(at(number), &client.seal(0, &[])).is_empty());
        assert!(server.receive(at(number), &client.seal(1, &inner)).is_empty());
        assert_eq!(server.seen.delivered, [(network, inner)]);
        for counter in 0..3 {
            let sealed = server.transmit(network, &back);
            let mut plain = back.clone();
            plain.resize(back.len().next_multiple_of(16), 0);
            assert_eq!(sealed[0].1[8..16], u64::to_le_bytes(counter));
            assert_eq!(client.open(&sealed[0].1), plain, "counter {counter}");
        }
    }
}

#[test]
fn an_initiation_with_any_bit_changed_is_not_answered() {
    let conversation = &conversations()[1];
    let initiation = conversation.bytes("initiation");
    for at_byte in (0..initiation.len() - 32).filter(|at_byte| !(4..8).contains(at_byte)) {
        let mut server = conversation.server();
        let mut changed = initiation.clone();
        changed[at_byte] ^= 0x10;
        assert!(server.receive(at(1), &changed).is_empty(), "byte {at_byte}");
        support::sign(&mut changed);
        assert!(server.receive(at(1), &changed).is_empty(), "byte {at_byte}, with a sound MAC");
        let answers = server.receive(at(1), &initiation);
        assert_eq!((answers.len(), server.count(Count::Handshakes)), (1, 1), "and it kept nobody out");
    }
}
