//! Proofs against name servers on loopback addresses: a root, a top-level domain, zones, and servers that misbehave.

mod world;

use dns_verify::pure::message::Kind;
use dns_verify::pure::walk::Found;
use dns_verify::{Hint, Labels, Proof, Prover, Settings};
use hickory_proto::op::ResponseCode;
use world::{Reply, World};

const NAME: &str = "_freestyle_custom_hostname.zone.test.";

async fn prove(world: &World, domain: &str) -> Proof {
    let settings = Settings {
        roots: vec![world.root()],
        port: world.port(),
        any_address: true,
        labels: Labels::default(),
    };
    let domain = domain.parse().expect("domain");
    Prover::new(settings).prove(&domain, vec!["the-code".to_owned()]).await.expect("a place")
}

/// A root and a top-level domain that lead to a zone's server.
async fn usual() -> World {
    let mut world = World::new().await;
    world.delegate(1, "test.", "ns.test.", Some(2));
    world.delegate(2, "zone.test.", "ns.zone.test.", Some(3));
    world
}

#[tokio::test]
async fn the_zones_own_server_is_asked_from_the_root_on() {
    let mut world = usual().await;
    world.text(3, NAME, &["v=spf1 -all"]);
    world.text(3, NAME, &["the-", "code"]);
    world.start();
    let proof = prove(&world, "zone.test").await;
    assert_eq!(proof.code.as_deref(), Some("the-code"), "{proof}");
    let asked: Vec<_> = proof.asked.iter().map(|asked| asked.server).collect();
    assert_eq!(asked, [world.address(1), world.address(2), world.address(3)]);
}

#[tokio::test]
async fn a_long_answer_comes_over_tcp() {
    let mut world = usual().await;
    for number in 0..20 {
        world.text(3, NAME, &[&format!("{number}{}", "x".repeat(200))]);
    }
    world.text(3, NAME, &["the-code"]);
    world.start();
    let proof = prove(&world, "zone.test").await;
    assert_eq!(proof.code.as_deref(), Some("the-code"), "{proof}");
    let over_tcp: Vec<_> = proof.asked.iter().map(|asked| asked.tcp).collect();
    assert_eq!(over_tcp, [false, false, false, true]);
}

#[tokio::test]
async fn aliases_lead_through_zones_and_servers_without_glue_are_found() {
    let mut world = usual().await;
    world.delegate(2, "other.test.", "ns.zone.test.", None);
    world.addresses(3, "ns.zone.test.", 4);
    world.alias(3, NAME, "step.zone.test.");
    world.alias(3, "step.zone.test.", "proof.other.test.");
    world.text(4, "proof.other.test.", &["the-code"]);
    world.start();
    let proof = prove(&world, "zone.test").await;
    assert_eq!(proof.code.as_deref(), Some("the-code"), "{proof}\n{:?}", proof.asked);
    assert!(proof.asked.iter().any(|asked| asked.kind == Kind::A), "{:?}", proof.asked);
}

#[tokio::test]
async fn forged_lame_failing_and_old_servers_do_not_decide() {
    let mut world = World::new().await;
    world.delegate(1, "test.", "ns.test.", Some(2));
    for server in [3, 4, 5, 6] {
        world.delegate(2, "zone.test.", &format!("ns{server}.zone.test."), Some(server));
    }
    world.behave(3, Reply::Lame);
    world.behave(4, Reply::Code(ResponseCode::ServFail));
    world.behave(5, Reply::WrongIdsFirst);
    world.behave(6, Reply::WithoutEdns);
    for server in [3, 4, 5, 6] {
        world.text(server, NAME, &["the-code"]);
    }
    world.start();
    let proof = prove(&world, "zone.test").await;
    assert_eq!(proof.code.as_deref(), Some("the-code"), "{proof}");
    assert_eq!(proof.asked.last().expect("asked").server, world.address(5), "{:?}", proof.asked);
}

#[tokio::test]
async fn a_server_that_knows_no_edns_is_asked_without() {
    let mut world = usual().await;
    world.behave(3, Reply::WithoutEdns);
    world.text(3, NAME, &["the-code"]);
    world.start();
    let proof = prove(&world, "zone.test").await;
    assert_eq!((proof.code.as_deref(), proof.asked.len()), (Some("the-code"), 4), "{:?}", proof.asked);
}

#[tokio::test]
async fn what_is_not_there_is_said_with_who_said_so() {
    let mut world = usual().await;
    world.text(3, "_freestyle_custom_hostname.zone.test.zone.test.", &["the-code"]);
    world.start();
    let proof = prove(&world, "zone.test").await;
    assert!(proof.code.is_none() && proof.denied());
    assert!(matches!(proof.hint, Some(Hint::Doubled { .. })), "{proof}");
    assert!(matches!(proof.names[0].1, Found::NoName { .. }));
    let text = proof.to_string();
    assert!(text.contains("127.") && text.contains("does not exist") && text.contains("appends"), "{text}");
}

#[tokio::test]
async fn a_house_that_asks_the_internet_alone_asks_nobody_here() {
    let mut world = usual().await;
    world.text(3, NAME, &["the-code"]);
    world.start();
    let settings = Settings { roots: vec![world.root()], port: world.port(), ..Settings::default() };
    let domain = "zone.test".parse().expect("domain");
    let proof = Prover::new(settings).prove(&domain, vec!["the-code".to_owned()]).await.expect("a place");
    assert!(proof.code.is_none() && !proof.denied(), "{proof}");
    let asked: Vec<_> = proof.asked.iter().map(|asked| asked.server).collect();
    assert!(asked.iter().all(|server| *server == world.root()), "the configured root alone: {asked:?}");
}
