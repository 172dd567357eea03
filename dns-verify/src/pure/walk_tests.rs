//! The walker against worlds of any kind: it ends, within its bounds, and asks nobody whom it must not ask.

use super::address::is_public;
use super::message::{Kind, Said};
use super::walk::{Found, Heard, MAX_ALIASES, MAX_QUERIES, Step, Walk};
use hickory_proto::rr::Name;
use proptest::prelude::*;
use std::net::IpAddr;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("name")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn walk() -> Walk {
    let mut walk = Walk::new(vec![ip("198.41.0.4"), ip("199.9.14.201")], false);
    walk.begin(name("p.zone.test."));
    walk
}

fn referral(zone: &str, server: &str, addresses: &[&str]) -> Heard {
    let servers = vec![(name(server), addresses.iter().map(|text| ip(text)).collect())];
    Heard::Said(Said::Referral { zone: name(zone), servers })
}

fn asking(walk: &mut Walk) -> (String, String, Kind, bool, bool) {
    match walk.step() {
        Step::Ask(ask) => {
            (ask.server.to_string(), ask.question.name.to_ascii(), ask.question.kind, ask.tcp, ask.edns)
        }
        Step::Done(found) => panic!("over: {found:?}"),
    }
}

fn whom(walk: &mut Walk) -> String {
    asking(walk).0
}

#[test]
fn it_descends_and_keeps_what_it_learned() {
    let mut walk = walk();
    assert_eq!(whom(&mut walk), "198.41.0.4");
    walk.hear(referral("test.", "ns.test.", &["8.0.0.1"]));
    assert_eq!(whom(&mut walk), "8.0.0.1");
    walk.hear(referral("zone.test.", "ns.zone.test.", &["8.0.0.2", "8.0.0.3"]));
    assert_eq!(whom(&mut walk), "8.0.0.2");
    walk.hear(Heard::Said(Said::Useless("is lame")));
    assert_eq!(whom(&mut walk), "8.0.0.3");
    let texts = vec!["code".to_owned()];
    walk.hear(Heard::Said(Said::Records { texts: texts.clone(), addresses: vec![] }));
    assert_eq!(walk.step(), Step::Done(Found::Texts { texts, server: ip("8.0.0.3") }));
    walk.begin(name("q.zone.test."));
    assert_eq!(whom(&mut walk), "8.0.0.2", "straight to the zone");
    assert_eq!(walk.asked().len(), 4);
}

#[test]
fn what_one_server_denies_another_may_have() {
    let zone = || {
        let mut walk = walk();
        assert_eq!(whom(&mut walk), "198.41.0.4");
        walk.hear(referral("zone.test.", "ns.zone.test.", &["8.0.0.1", "8.0.0.2", "8.0.0.3", "8.0.0.4"]));
        assert_eq!(whom(&mut walk), "8.0.0.1");
        walk.hear(Heard::Said(Said::NoName));
        assert_eq!(whom(&mut walk), "8.0.0.2");
        walk
    };
    let texts = vec!["code".to_owned()];
    let mut had = zone();
    had.hear(Heard::Said(Said::Records { texts: texts.clone(), addresses: vec![] }));
    assert_eq!(had.step(), Step::Done(Found::Texts { texts, server: ip("8.0.0.2") }));
    let mut denied = zone();
    denied.hear(Heard::Said(Said::NoRecords));
    assert_eq!(whom(&mut denied), "8.0.0.3");
    denied.hear(Heard::Said(Said::NoName));
    assert_eq!(denied.step(), Step::Done(Found::NoName { server: ip("8.0.0.3") }), "the fourth is not asked");
    let mut late = zone();
    late.give_up("no time is left");
    assert_eq!(late.step(), Step::Done(Found::NoName { server: ip("8.0.0.1") }));
    let mut lame = zone();
    lame.hear(Heard::Said(Said::Useless("is lame")));
    assert_eq!(whom(&mut lame), "8.0.0.3");
    lame.hear(Heard::Silence);
    assert_eq!(lame.step(), Step::Done(Found::NoName { server: ip("8.0.0.1") }));
}

#[test]
fn a_server_without_glue_is_looked_for_in_both_families() {
    let mut walk = walk();
    let servers = vec![(name("ns.far.org."), vec![])];
    walk.hear(Heard::Said(Said::NoRecords));
    walk.begin(name("p.zone.test."));
    assert_eq!(whom(&mut walk), "198.41.0.4");
    walk.hear(Heard::Said(Said::Referral { zone: name("zone.test."), servers }));
    assert_eq!(asking(&mut walk), ("198.41.0.4".into(), "ns.far.org.".into(), Kind::A, false, true));
    walk.hear(Heard::Said(Said::NoRecords));
    assert_eq!(asking(&mut walk).2, Kind::Aaaa);
    let addresses = vec![ip("2606:4700::1111")];
    walk.hear(Heard::Said(Said::Records { texts: vec![], addresses }));
    assert_eq!(asking(&mut walk).1, "p.zone.test.");
    assert_eq!(whom(&mut walk), "2606:4700::1111");
}

#[test]
fn silence_truncation_and_old_servers_each_get_another_try() {
    let mut walk = walk();
    assert_eq!(whom(&mut walk), "198.41.0.4");
    walk.hear(Heard::Silence);
    assert_eq!(whom(&mut walk), "198.41.0.4");
    walk.hear(Heard::Said(Said::NoEdns));
    assert!(!asking(&mut walk).4);
    walk.hear(Heard::Said(Said::Truncated));
    let (server, _, _, tcp, edns) = asking(&mut walk);
    assert_eq!((server.as_str(), tcp, edns), ("198.41.0.4", true, false));
    walk.hear(Heard::Silence);
    assert_eq!(whom(&mut walk), "199.9.14.201");
    walk.hear(Heard::Broken("refused the connection".to_owned()));
    let Step::Done(Found::Failed(why)) = walk.step() else { panic!("over") };
    assert!(why.contains("199.9.14.201") && why.contains("refused the connection"), "{why}");
}

#[test]
fn an_address_of_ours_is_never_asked() {
    for hidden in ["127.0.0.1", "10.0.0.53", "169.254.169.254", "::1", "fd00::1"] {
        let mut walk = walk();
        assert_eq!(whom(&mut walk), "198.41.0.4");
        walk.hear(referral("test.", "ns.test.", &[hidden]));
        assert!(matches!(walk.step(), Step::Done(Found::Failed(_))), "{hidden}");
    }
    let mut walk = Walk::new(vec![ip("127.0.0.2")], true);
    walk.begin(name("p.zone.test."));
    assert_eq!(whom(&mut walk), "127.0.0.2");
    walk.hear(referral("test.", "ns.test.", &["127.0.0.1"]));
    assert_eq!(whom(&mut walk), "127.0.0.1");
}

#[test]
fn endless_aliases_end() {
    let mut walk = walk();
    for number in 0..=MAX_ALIASES {
        assert!(matches!(walk.step(), Step::Ask(_)), "{number}");
        walk.hear(Heard::Said(Said::Alias(name(&format!("a{number}.test.")))));
    }
    assert!(matches!(walk.step(), Step::Done(Found::Failed(why)) if why.contains("aliases")));
}

#[test]
fn servers_that_need_each_other_end() {
    let mut walk = walk();
    let circle = [("zone.test.", "ns.other.test."), ("other.test.", "ns.zone.test.")];
    for number in 0..MAX_QUERIES + 1 {
        match walk.step() {
            Step::Ask(ask) => {
                let zone = if name("other.test.").zone_of(&ask.question.name) { 1 } else { 0 };
                let (zone, server) = circle[zone];
                walk.hear(Heard::Said(Said::Referral {
                    zone: name(zone),
                    servers: vec![(name(server), vec![])],
                }));
            }
            Step::Done(found) => {
                assert!(matches!(found, Found::Failed(_)));
                return;
            }
        }
        assert!(number < MAX_QUERIES);
    }
}

fn any_name() -> impl Strategy<Value = Name> {
    let label = prop_oneof![Just("a."), Just("b."), Just("ns."), Just("zone."), Just("p.")];
    proptest::collection::vec(label, 0..5).prop_map(|labels| name(&format!("{}test.", labels.concat())))
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
        any::<u128>().prop_map(|bits| IpAddr::V6(bits.into()))
    ]
}

fn any_heard() -> impl Strategy<Value = Heard> {
    let addresses = || proptest::collection::vec(any_address(), 0..9);
    let servers = proptest::collection::vec((any_name(), addresses()), 0..9);
    prop_oneof![
        1 => Just(Heard::Silence),
        1 => Just(Heard::Broken("broken".to_owned())),
        1 => Just(Heard::Said(Said::Truncated)),
        1 => Just(Heard::Said(Said::NoEdns)),
        1 => Just(Heard::Said(Said::Useless("is lame"))),
        1 => Just(Heard::Said(Said::NoRecords)),
        1 => Just(Heard::Said(Said::NoName)),
        2 => any_name().prop_map(|name| Heard::Said(Said::Alias(name))),
        1 => addresses().prop_map(|addresses| Heard::Said(Said::Records { texts: vec![], addresses })),
        6 => (any_name(), servers).prop_map(|(zone, servers)| Heard::Said(Said::Referral { zone, servers })),
    ]
}

proptest! {
    #[test]
    fn every_walk_ends_within_its_bounds(world in proptest::collection::vec(any_heard(), 1..60)) {
        let mut walk = walk();
        let mut questions = 0;
        let mut world = world.iter().cycle();
        while let Step::Ask(ask) = walk.step() {
            questions += 1;
            prop_assert!(questions <= MAX_QUERIES);
            prop_assert!(is_public(ask.server));
            walk.hear(world.next().expect("endless").clone());
        }
        prop_assert!(walk.asked().len() <= MAX_QUERIES);
        walk.begin(name("q.zone.test."));
        while let Step::Ask(_) = walk.step() {
            questions += 1;
            prop_assert!(questions <= MAX_QUERIES, "the bound is the whole proof's");
            walk.hear(world.next().expect("endless").clone());
        }
    }
}
