//! A private network's firewall on a real kernel: what its rules let through and what not, in which order, what becomes of
//! connections that a new rule fits, what is counted, and what outlives vpc.

mod support;

use model::firewall::{RuleAction, RuleDirection, RuleEntry, RulePeer, RuleProtocol};
use model::id::RuleId;
use model::view::{NetworkEntry, PortEntry};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use support::guest::Guest;
use support::servers::{pings, reaches_tcp, reaches_udp, whoami, whoami_udp};
use support::{PATIENCE, SERVER, World, inside, member, permit, private, sh, within};
use vpc::client::RuleCount;
use vpc::pure::firewall::counter_of;
use vpc::pure::names::TABLE;
use vpc::pure::rules::MAX_FLOWS_OF_ONE;

const RANGE: &str = "10.0.0.0/24";
const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const SIX: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);
const SEVEN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 7);
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);

use RuleAction::{Allow, Deny};
use RuleDirection::{In, Out};

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn rule(number: u8, action: RuleAction, direction: RuleDirection) -> RuleEntry {
    RuleEntry {
        id: RuleId::from_random([number; 20]),
        action,
        direction,
        member: None,
        peer: RulePeer::Any,
        protocol: RuleProtocol::Any,
        ports: Vec::new(),
    }
}

fn range(text: &str) -> RulePeer {
    RulePeer::Range(text.parse().expect("range"))
}

fn tcp(rule: RuleEntry, ports: &[&str]) -> RuleEntry {
    let ports = ports.iter().map(|text| text.parse().expect("ports")).collect();
    RuleEntry { protocol: RuleProtocol::Tcp, ports, ..rule }
}

fn network(rules: Vec<RuleEntry>) -> NetworkEntry {
    let members = [FIVE, SIX, SEVEN].map(|address| member(1, address.octets(), &[]));
    NetworkEntry { rules: rules.into(), ..private(1, RANGE, &members) }
}

struct Bench {
    world: World,
    five: Guest,
    six: Guest,
    seven: Guest,
}

impl Bench {
    /// Three members, of which the one at .6 serves, as a server in the Internet does.
    async fn new(rules: Vec<RuleEntry>) -> Self {
        let world = World::with_networks(vec![], vec![network(rules)]).await;
        let ports: Vec<PortEntry> = world.networks[0].ports.iter().cloned().collect();
        let five = Guest::boot(&world, &ports[0]).await;
        let six = Guest::boot(&world, &ports[1]).await;
        let seven = Guest::boot(&world, &ports[2]).await;
        for port in [80, 81, 8000] {
            whoami(&six.namespace, at(SIX, port));
        }
        whoami_udp(&six.namespace, at(SIX, 7));
        whoami(&world.internet(), at(SERVER, 80));
        Self { world, five, six, seven }
    }

    async fn rules(&mut self, rules: Vec<RuleEntry>) {
        self.world.networks[0] = network(rules);
        self.world.publish(vec![]);
        self.world.settled().await;
    }

    fn space(&self) -> String {
        self.world.private(&self.world.networks[0].vpc)
    }

    async fn counts(&self) -> Vec<RuleCount> {
        self.world.client().rules(&self.world.networks[0].vpc).await.expect("counts")
    }

    async fn count(&self, number: u8) -> u64 {
        let id = RuleId::from_random([number; 20]);
        let counts = self.counts().await;
        counts.iter().find(|count| count.id == id).unwrap_or_else(|| panic!("{counts:?}")).packets
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_fits_decides_by_member_peer_protocol_and_port() {
    let mut bench = Bench::new(vec![
        tcp(RuleEntry { member: Some(SIX), peer: range("10.0.0.5/32"), ..rule(1, Allow, In) }, &["80"]),
        tcp(RuleEntry { member: Some(SIX), ..rule(2, Deny, In) }, &["80-81"]),
        RuleEntry { peer: range("198.51.100.0/24"), member: Some(SEVEN), ..rule(3, Deny, Out) },
        RuleEntry { protocol: RuleProtocol::Icmp, ..rule(4, Deny, In) },
    ])
    .await;
    let (five, six, seven) = (&bench.five, &bench.six, &bench.seven);
    assert!(five.run(|| reaches_tcp(at(SIX, 80))).await, "the first allows");
    assert!(!five.run(|| reaches_tcp(at(SIX, 81))).await);
    assert!(!seven.run(|| reaches_tcp(at(SIX, 80))).await);
    assert!(seven.run(|| reaches_tcp(at(SIX, 8000))).await, "what no rule fits may come in");
    assert!(seven.run(|| reaches_udp(at(SIX, 7))).await, "another protocol");
    assert_eq!(five.run(|| pings(SIX, 1, AT_ONCE)).await, 0);
    assert!(five.run(|| reaches_tcp(at(SERVER, 80))).await);
    assert_eq!(five.run(|| pings(SERVER, 3, SOON)).await, 3, "answers follow their questions");
    assert!(!seven.run(|| reaches_tcp(at(SERVER, 80))).await, "only out of this one");
    assert!(six.run(|| reaches_tcp(at(SERVER, 80))).await);
    assert!(bench.count(1).await >= 3, "all packets of its direction: SYN, ACK, FIN");
    assert!(bench.count(2).await >= 2 && bench.count(3).await >= 1);
    assert_eq!(bench.count(4).await, 1);
    // The same, in the other order: the wider one decides now, and its counter has gone on.
    let before = bench.count(2).await;
    bench
        .rules(vec![
            tcp(RuleEntry { member: Some(SIX), ..rule(2, Deny, In) }, &["80-81"]),
            tcp(RuleEntry { member: Some(SIX), peer: range("10.0.0.5/32"), ..rule(1, Allow, In) }, &["80"]),
        ])
        .await;
    assert!(!bench.five.run(|| reaches_tcp(at(SIX, 80))).await);
    assert!(bench.count(2).await > before);
    assert!(bench.seven.run(|| reaches_tcp(at(SERVER, 80))).await, "its rule is gone");
    let ids: Vec<_> = bench.counts().await.into_iter().map(|count| count.id).collect();
    assert_eq!(ids.len(), 2, "and so are the counters of those that left: {ids:?}");
}

/// A connection on which each side says something and hears it.
fn talk(near: &Guest, far: &Guest) -> (TcpStream, TcpStream) {
    let (ready, waiting) = std::sync::mpsc::channel();
    let accepting = inside(&far.namespace, move || {
        let listener = TcpListener::bind(at(SIX, 90)).expect("bound");
        ready.send(()).expect("somebody waits");
        listener.accept().expect("accepted").0
    });
    waiting.recv().expect("listens");
    let connecting = inside(&near.namespace, || TcpStream::connect(at(SIX, 90)).expect("connected"));
    let pair = (connecting.join().expect("connected"), accepting.join().expect("accepted"));
    for stream in [&pair.0, &pair.1] {
        stream.set_read_timeout(Some(Duration::from_secs(2))).expect("set");
    }
    pair
}

fn heard(mut from: &TcpStream, mut to: &TcpStream) -> bool {
    from.write_all(b"x").expect("written");
    to.read_exact(&mut [0]).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_deny_ends_a_running_connection_and_answers_pass_a_rule_against_their_side() {
    let elsewhere = || tcp(rule(9, Deny, In), &["9"]);
    let mut bench = Bench::new(vec![elsewhere()]).await;
    let (near, far) = talk(&bench.five, &bench.six);
    assert!(heard(&near, &far) && heard(&far, &near));
    // Who accepted the connection may begin none itself; its answers pass.
    let no_calls_back = || RuleEntry { member: Some(SIX), ..rule(1, Deny, Out) };
    bench.rules(vec![elsewhere(), no_calls_back()]).await;
    assert!(heard(&near, &far) && heard(&far, &near), "a rewrite ends nothing that it does not fit");
    assert!(!bench.six.run(|| reaches_tcp(at(SERVER, 80))).await);
    assert_eq!(
        bench.count(1).await,
        bench.world.counter(&bench.space(), "inet", TABLE, &counter_of(&rule(1, Deny, Out).id))
    );
    bench.rules(vec![elsewhere(), tcp(RuleEntry { member: Some(SIX), ..rule(2, Deny, In) }, &["90"])]).await;
    assert!(!heard(&near, &far), "it is over");
    assert!(bench.count(2).await >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_outlive_vpc_and_never_open_while_it_starts() {
    let rules = || vec![RuleEntry { member: Some(SIX), peer: range(RANGE), ..rule(1, Deny, In) }];
    let mut bench = Bench::new(rules()).await;
    assert!(!bench.five.run(|| reaches_udp(at(SIX, 7))).await);
    let before = bench.count(1).await;
    // Datagrams all the while: each that came through would be answered.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let storm = inside(&bench.five.namespace, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        socket.set_read_timeout(Some(Duration::from_millis(1))).expect("set");
        let mut answers = 0;
        while !stopped.load(std::sync::atomic::Ordering::SeqCst) {
            socket.send_to(b"who", at(SIX, 7)).expect("sent");
            answers += u32::from(socket.recv_from(&mut [0; 100]).is_ok());
        }
        answers
    });
    bench.world.kill();
    let died =
        sh(&format!("nsenter --net=/run/netns/{} nft list chain inet {TABLE} rules_in", bench.space()));
    assert!(died.contains(&counter_of(&rule(1, Deny, In).id)), "{died}");
    bench.world.start(&[]);
    bench.world.settled().await;
    // And a rewrite of the other direction.
    bench.rules([rules(), vec![tcp(rule(2, Deny, Out), &["9"])]].concat()).await;
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let answers = tokio::task::spawn_blocking(|| storm.join()).await.expect("joined").expect("no panic");
    assert_eq!(answers, 0, "no gap");
    assert!(bench.count(1).await > before, "its counter went on through all of it");
    // One that left while nobody was there takes its counter along.
    bench.world.kill();
    bench.world.networks[0] = network(vec![]);
    bench.world.publish(vec![]);
    bench.world.start(&[]);
    bench.world.settled().await;
    assert_eq!(bench.counts().await, []);
    assert!(bench.five.run(|| reaches_udp(at(SIX, 7))).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_are_not_judged_and_a_rule_that_cannot_be_served_closes() {
    let mut bench = Bench::new(vec![rule(1, Deny, In)]).await;
    let vm = bench.six.port.vm.clone();
    let dialled = bench.world.client().dial(&permit(&vm, 8000)).await;
    drop(dialled.expect("who has its door may use it"));
    assert!(!bench.five.run(|| reaches_tcp(at(SIX, 80))).await);
    let text = serde_json::to_string(&rule(1, Allow, In)).expect("text").replace("allow", "perhaps");
    let unreadable = serde_json::from_str(&format!("[{text}]")).expect("a list");
    bench.world.networks[0] = NetworkEntry { rules: unreadable, ..network(vec![]) };
    // What is rejected on reading is not written again, so the view is made as a newer control would make it.
    let mut view = bench.world.view_of(vec![]);
    view["networks"][0]["rules"] = serde_json::from_str(&format!("[{text}]")).expect("a list");
    bench.world.publish_raw(view);
    bench.world.settled().await;
    assert!(!bench.five.run(|| reaches_udp(at(SIX, 7))).await);
    assert!(bench.world.counter(&bench.space(), "inet", TABLE, "unreadable_rules") >= 1);
    drop(bench.world.client().dial(&permit(&vm, 8000)).await.expect("and it is still reached"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_member_cannot_fill_the_table_of_flows_and_its_flows_go_with_it() {
    let mut bench = Bench::new(vec![tcp(rule(1, Deny, In), &["9"])]).await;
    let space = bench.space();
    let flood = |from: Ipv4Addr| {
        move || {
            for number in 0..MAX_FLOWS_OF_ONE + 100 {
                let port = 10_000 + u16::try_from(number).expect("small");
                let socket = UdpSocket::bind(at(from, port)).expect("bound");
                socket.send_to(b"x", at(SIX, 5)).expect("sent");
            }
        }
    };
    let stream = || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
        for _ in 0..2 * MAX_FLOWS_OF_ONE {
            socket.send_to(b"x", at(SIX, 5)).expect("sent");
        }
    };
    bench.seven.run(stream).await;
    // Its NIC drops what comes too fast, so one try says little.
    let reaches = || (0..10).any(|_| reaches_udp(at(SIX, 7)));
    let refused = || bench.world.counter(&space, "inet", TABLE, "too_many_flows");
    assert!(bench.seven.run(reaches).await);
    assert_eq!(refused(), 0, "a stream without answers is one flow");
    let begun = Instant::now();
    while refused() < 100 {
        assert!(begun.elapsed() < PATIENCE, "{} refused", refused());
        bench.five.run(flood(FIVE)).await;
    }
    assert!(!bench.five.run(|| reaches_udp(at(SIX, 7))).await, "it has enough");
    assert!(bench.seven.run(reaches).await, "and nobody else suffers");
    let flows = async |space: String| {
        within(&space, || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("flows")).await
    };
    assert!(flows(space.clone()).await.contains("dst=10.0.0.6"));
    // The one to which all of them lead goes.
    let mut less = network(vec![tcp(rule(1, Deny, In), &["9"])]);
    less.ports = less.ports.iter().filter(|port| port.ipv4 != SIX).cloned().collect::<Vec<_>>().into();
    bench.world.networks[0] = less;
    bench.world.publish(vec![]);
    bench.world.settled().await;
    assert!(
        !flows(space.clone()).await.contains("dst=10.0.0.6"),
        "nothing to an address that another may have tomorrow"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn members_reach_clients_only_by_a_rule() {
    const CLIENT: Ipv4Addr = Ipv4Addr::new(100, 96, 0, 2);
    let mut bench = Bench::new(vec![tcp(rule(1, Deny, In), &["9"])]).await;
    let space = bench.space();
    // Stands for the clients' TUN: what reaches it has passed.
    let device = |space: &str| {
        sh(&format!(
            "n=\"ip -n {space}\"; $n link show clients >/dev/null 2>&1 || $n link add clients type veth peer far
             $n link set far up; $n link set clients up; $n route replace 100.96.0.0/16 dev clients
             $n neigh replace {CLIENT} lladdr 02:00:00:00:00:02 dev clients"
        ));
    };
    let knock = || {
        UdpSocket::bind("0.0.0.0:0").expect("bound").send_to(b"x", at(CLIENT, 9)).expect("sent");
    };
    let refused = || bench.world.counter(&space, "inet", TABLE, "to_client");
    device(&space);
    bench.five.run(knock).await;
    let begun = Instant::now();
    while refused() == 0 {
        assert!(begun.elapsed() < PATIENCE, "it is counted");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let before = refused();
    bench.rules(vec![RuleEntry { peer: RulePeer::Clients, member: Some(FIVE), ..rule(2, Allow, Out) }]).await;
    device(&space);
    bench.five.run(knock).await;
    let begun = Instant::now();
    while bench.count(2).await == 0 {
        assert!(begun.elapsed() < PATIENCE, "the rule decides");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.six.run(knock).await;
    let begun = Instant::now();
    while bench.world.counter(&space, "inet", TABLE, "to_client") == before {
        assert!(begun.elapsed() < PATIENCE, "and for that member alone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.count(2).await, 1);
    let sent = sh(&format!("ip -n {space} -s link show clients | tail -1"));
    assert_eq!(sent.split_whitespace().nth(1), Some("1"), "{sent}");
}
