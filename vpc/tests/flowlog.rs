//! The flow log on a real kernel: what is said of a flow that passed and of packets that did not.

mod support;

use model::firewall::{RuleAction, RuleDirection, RuleEntry, RulePeer, RuleProtocol};
use model::id::RuleId;
use model::net::Ula;
use model::view::{NetworkEntry, PortEntry};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use support::guest::Guest;
use support::servers::{ask_tcp, reaches_tcp, reaches_udp, whoami};
use support::{PATIENCE, SERVER, World, member, port, private, sh};
use vpc::pure::names::TABLE;

const RANGE: &str = "10.0.0.0/24";
const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const SIX: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn rule(number: u8, action: RuleAction, direction: RuleDirection, port: &str) -> RuleEntry {
    RuleEntry {
        id: RuleId::from_random([number; 20]),
        action,
        direction,
        member: None,
        peer: RulePeer::Any,
        protocol: RuleProtocol::Tcp,
        ports: vec![port.parse().expect("port")],
    }
}

/// The lines of one network that are there so far.
fn lines(world: &World, network: &str) -> Vec<Value> {
    // There is no file before the first line.
    let text = std::fs::read_to_string(world.places().flow_log().join("flows.jsonl")).unwrap_or_default();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    lines.filter(|line| line["network"] == network).collect()
}

/// Waits for a line.
async fn line(world: &World, network: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let begun = Instant::now();
    loop {
        let lines = lines(world, network);
        if let Some(found) = lines.iter().find(|line| fits(line)) {
            return found.clone();
        }
        assert!(begun.elapsed() < PATIENCE, "{lines:#?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis())
        .expect("fits")
}

/// A private network with two rules, beside the default one.
async fn logged(members: &[PortEntry]) -> World {
    let rules = vec![
        rule(1, RuleAction::Allow, RuleDirection::In, "80"),
        rule(2, RuleAction::Deny, RuleDirection::In, "81"),
    ];
    let mut world = World::new();
    world.log_flows();
    world.networks = vec![NetworkEntry { rules: rules.into(), ..private(1, RANGE, members) }];
    world.publish(vec![port(5, 1, &[])]);
    world.start(&[]);
    world.settled().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_that_passed_and_packets_that_did_not_are_told() {
    let members: Vec<PortEntry> = [FIVE, SIX].map(|address| member(1, address.octets(), &[])).to_vec();
    let mut world = logged(&members).await;
    let vpc = world.networks[0].vpc.to_string();
    let begun_ms = now_ms();
    let (five, six) = (Guest::boot(&world, &members[0]).await, Guest::boot(&world, &members[1]).await);
    let default = Guest::boot(&world, &port(5, 1, &[])).await;
    for space in [&world.private(&world.networks[0].vpc), &world.network()] {
        // Its ends would be told in two minutes otherwise.
        sh(&format!(
            "nsenter --net=/run/netns/{space} sh -c 'echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait'"
        ));
    }
    whoami(&six.namespace, at(SIX, 80));
    whoami(&world.internet(), at(SERVER, 80));
    assert_eq!(five.run(|| ask_tcp(at(SIX, 80))).await, FIVE.to_string());
    assert!(!five.run(|| reaches_tcp(at(SIX, 81))).await);
    for _ in 0..3 {
        assert!(!five.run(|| reaches_udp(at(Ipv4Addr::new(192, 168, 77, 1), 9))).await);
    }
    default.run(|| ask_tcp(at(SERVER, 80))).await;

    let passed = line(&world, &vpc, |line| line["destination_port"] == 80).await;
    let numbers = ["begin_ms", "end_ms", "packets_sent", "bytes_sent", "packets_received", "bytes_received"]
        .map(|name| passed[name].as_u64().unwrap_or_else(|| panic!("{name} in {passed}")));
    let [begin, end, sent, bytes_sent, received, bytes_received] = numbers;
    assert!(begun_ms - 1000 <= begin && begin <= end && end <= now_ms() + 1000, "{passed}");
    assert!((4..20).contains(&sent) && (3..20).contains(&received), "{passed}");
    assert!(bytes_sent >= sent * 40 && bytes_received >= received * 40 + 8, "{passed}");
    let expected = json!({
        "network": vpc, "verdict": "accept", "protocol": "tcp", "end": "closed",
        "source": "10.0.0.5", "source_vm": five.port.vm, "source_port": passed["source_port"],
        "destination": "10.0.0.6", "destination_vm": six.port.vm, "destination_port": 80,
        "rules": [RuleId::from_random([1; 20])],
        "begin_ms": begin, "end_ms": end, "packets_sent": sent, "bytes_sent": bytes_sent,
        "packets_received": received, "bytes_received": bytes_received,
    });
    assert_eq!(passed, expected);

    // Whose port it was counts, not the address that it said.
    sh(&format!("ip -n {} addr add 10.0.0.99/32 dev lo", five.namespace));
    let lie = || UdpSocket::bind(("10.0.0.99", 0)).and_then(|socket| socket.send_to(b"lie", at(SIX, 17)));
    five.run(move || lie().expect("sent")).await;
    let spoofed = line(&world, &vpc, |line| line["reason"] == "spoofed_address").await;
    assert_eq!((&spoofed["source"], &spoofed["source_vm"]), (&json!("10.0.0.99"), &json!(five.port.vm)));
    assert_eq!((&spoofed["verdict"], &spoofed["destination_vm"]), (&json!("drop"), &json!(six.port.vm)));

    let refused = line(&world, &vpc, |line| line["destination_port"] == 81).await;
    assert_eq!(
        (&refused["verdict"], &refused["rule"]),
        (&json!("drop"), &json!(RuleId::from_random([2; 20])))
    );
    assert_eq!(
        (&refused["source_vm"], &refused["destination_vm"]),
        (&json!(five.port.vm), &json!(six.port.vm))
    );
    let strange = line(&world, &vpc, |line| line["destination"] == "192.168.77.1").await;
    assert_eq!(strange["reason"], "to_private_range");
    assert_eq!((&strange["rule"], &strange["source_port"]), (&Value::Null, &Value::Null));
    let told: u64 = lines(&world, &vpc)
        .iter()
        .filter(|line| line["destination"] == "192.168.77.1")
        .map(|line| line["packets"].as_u64().expect("a count"))
        .sum();
    assert!((1..=3).contains(&told), "three datagrams in at most two lines: {told}");

    let outward = line(&world, "default", |line| line["destination_port"] == 80).await;
    assert_eq!(outward["source_vm"], json!(default.port.vm));
    assert_eq!((&outward["destination_vm"], &outward["rules"]), (&Value::Null, &json!([])));

    // One that still runs when its VM's port goes is told with its VM.
    assert!(!five.run(|| reaches_udp(at(SIX, 7))).await, "nobody answers");
    world.networks[0].ports = vec![members[1].clone()].into();
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    let last = line(&world, &vpc, |line| line["destination_port"] == 7).await;
    assert_eq!((&last["end"], &last["source_vm"]), (&json!("silent"), &json!(five.port.vm)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_members_say_by_ipv6_is_told_alike() {
    let members: Vec<PortEntry> = [FIVE, SIX].map(|address| member(1, address.octets(), &[])).to_vec();
    let world = logged(&members).await;
    let (vpc, ula) = (world.networks[0].vpc.to_string(), Ula::of(&world.networks[0].vpc));
    let (five, six) = (Guest::boot(&world, &members[0]).await, Guest::boot(&world, &members[1]).await);
    let space = world.private(&world.networks[0].vpc);
    sh(&format!(
        "nsenter --net=/run/netns/{space} sh -c 'echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_time_wait'"
    ));
    let (from, to) = (five.speak_ipv6(ula).await, six.speak_ipv6(ula).await);
    let to_port = move |port| SocketAddr::from((to, port));
    whoami(&six.namespace, to_port(80));
    assert_eq!(five.run(move || ask_tcp(to_port(80))).await, from.to_string());
    assert!(!five.run(move || reaches_tcp(to_port(81))).await);
    for (port, verdict) in [(80, "accept"), (81, "drop")] {
        let told = line(&world, &vpc, |line| line["destination_port"] == port).await;
        assert_eq!((&told["verdict"], &told["protocol"]), (&json!(verdict), &json!("tcp")), "{told}");
        assert_eq!((&told["source"], &told["destination"]), (&json!(from), &json!(to)), "{told}");
        assert_eq!(told["source_vm"], json!(five.port.vm), "{told}");
        assert_eq!(told["destination_vm"], json!(six.port.vm), "{told}");
    }
    let passed = line(&world, &vpc, |line| line["destination_port"] == 80).await;
    assert_eq!(passed["rules"], json!([RuleId::from_random([1; 20])]));
    // A lie is told with the port's VM, and what every system says of its groups is not.
    let another = ula.address(Ipv4Addr::new(10, 0, 0, 99));
    sh(&format!("ip -n {} addr add {another}/128 dev lo nodad", five.namespace));
    let lie = move || UdpSocket::bind((another, 0)).and_then(|socket| socket.send_to(b"lie", to_port(17)));
    five.run(move || lie().expect("sent")).await;
    let spoofed = line(&world, &vpc, |line| line["reason"] == "spoofed_ipv6").await;
    assert_eq!((&spoofed["source"], &spoofed["source_vm"]), (&json!(another), &json!(five.port.vm)));
    assert_eq!((&spoofed["verdict"], &spoofed["destination_vm"]), (&json!("drop"), &json!(six.port.vm)));
    assert!(world.counter(&space, "netdev", TABLE, "ipv6_multicast") > 0, "the guest's groups");
    let rules = sh(&format!("nsenter --net=/run/netns/{space} nft list table netdev {TABLE}"));
    assert!(rules.contains("\"spoofed_ipv6 ") && !rules.contains("\"ipv6_multicast "), "{rules}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_told_when_nothing_is_wanted() {
    let world = World::with_ports(vec![port(5, 1, &[])]).await;
    let guest = Guest::boot(&world, &port(5, 1, &[])).await;
    assert!(!guest.run(|| reaches_tcp(at(Ipv4Addr::new(192, 168, 77, 1), 9))).await);
    assert!(world.network_counter("to_private_range") >= 1);
    let rules = sh(&format!("nsenter --net=/run/netns/{} nft list ruleset", world.network()));
    assert!(!rules.contains("log prefix"), "{rules}");
    assert!(!world.places().flow_log().exists());
}
