//! IPv6 among the members of a private network on a real kernel: they reach each other, by name too, and nobody else; what
//! they forge is dropped and counted; the firewall judges it alike; it wakes VMs, and the gateway's own words do not.

mod support;

use model::firewall::{RuleAction, RuleDirection, RuleEntry, RulePeer, RuleProtocol};
use model::id::RuleId;
use model::net::{GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, Ula};
use model::view::{NetworkEntry, PortEntry};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use support::client::{Client, Place, clients, peering, service};
use support::guest::Guest;
use support::servers::{
    ask_tcp, ask_udp, look_up, pings, pings_ipv6, reaches_tcp, reaches_udp, whoami, whoami_udp,
};
use support::{PATIENCE, World, inside, member, port, private, sh};
use tokio::time::timeout;
use vpc::pure::names::TABLE;

const RANGE: &str = "10.0.0.0/24";
const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const SIX: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);
const NINE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);
// ICMPv6 types (RFC 4861).
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::from((address.into(), port))
}

fn twins(network: u8) -> [PortEntry; 2] {
    [member(network, FIVE.octets(), &["web"]), member(network, SIX.octets(), &["db"])]
}

fn ula(network: &NetworkEntry) -> Ula {
    Ula::of(&network.vpc)
}

#[tokio::test(flavor = "multi_thread")]
async fn members_and_services_reach_each_other_by_ipv6_and_nobody_else() {
    let (one, two, third) = (twins(1), twins(2), [member(3, [10, 1, 0, 5], &[])]);
    let mut networks =
        vec![private(1, RANGE, &one), private(2, RANGE, &two), private(3, "10.1.0.0/24", &third)];
    networks[0].services = vec![service(1, NINE.octets(), &["cache"])].into();
    networks[0].peerings = vec![peering(1, 3, "10.1.0.0/24")].into();
    networks[2].peerings = vec![peering(1, 1, RANGE)].into();
    networks[0].clients = clients(None);
    let (own, other, peers) = (ula(&networks[0]), ula(&networks[1]), ula(&networks[2]));
    let vpc = networks[0].vpc.clone();
    let world = World::with_networks(vec![port(5, 1, &[])], networks).await;
    let (five, six) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &one[1]).await);
    let (twin, peer) = (Guest::boot(&world, &two[1]).await, Guest::boot(&world, &third[0]).await);
    let place = Place::new(&world, "one");
    world.join(&service(1, NINE.octets(), &[]).id, &place.0).await.expect("joined");
    let (five_own, six_own) = (five.speak_ipv6(own), six.speak_ipv6(own));
    let nine_own = own.address(NINE);
    for (namespace, address) in [
        (&six.namespace, six_own),
        (&twin.namespace, twin.speak_ipv6(other)),
        (&peer.namespace, peer.speak_ipv6(peers)),
        (&place.0, nine_own),
        (&five.namespace, five_own),
    ] {
        whoami(namespace, at(address, 80));
        whoami_udp(namespace, at(address, 7));
    }

    assert_eq!(five.run(move || pings_ipv6(six_own, 3, SOON)).await, 3);
    for to in [six_own, nine_own] {
        assert_eq!(five.run(move || ask_tcp(at(to, 80))).await, five_own.to_string());
        assert_eq!(five.run(move || ask_udp(at(to, 7))).await, five_own.to_string());
    }
    assert_eq!(place.run(move || ask_tcp(at(five_own, 80))).await, nine_own.to_string());
    assert_eq!(place.run(move || pings_ipv6(six_own, 3, SOON)).await, 3);
    assert_eq!(five.run(|| pings(SIX, 3, SOON)).await, 3, "and by IPv4 as before");
    for (name, address) in [("db.vpc.internal", SIX), ("cache.vpc.internal", NINE)] {
        let answer = five.run(move || look_up(GATEWAY_IPV4, name, 28, false)).await;
        assert_eq!(answer, Some((0, Some(address.octets()))), "{name}");
    }

    let nobody = own.address(Ipv4Addr::new(10, 0, 0, 77));
    let begun = Instant::now();
    let refused = five.run(move || TcpStream::connect(at(nobody, 80)).expect_err("nobody is there")).await;
    assert_eq!(refused.kind(), std::io::ErrorKind::HostUnreachable);
    assert!(begun.elapsed() < SOON && world.refused(&vpc, "ipv6_nobody") > 0, "it is said at once");
    let outside = [
        (other.address(SIX), "ipv6_elsewhere"),
        (peers.address(Ipv4Addr::new(10, 1, 0, 5)), "ipv6_elsewhere"),
        ("2001:db8::1".parse().expect("an address"), "ipv6_elsewhere"),
    ];
    for (address, reason) in outside {
        let before = world.refused(&vpc, reason);
        assert!(!five.run(move || reaches_tcp(at(address, 80))).await, "{address}");
        assert!(world.refused(&vpc, reason) > before, "{address} is counted as {reason}");
    }
    // Its link-local address says nothing but who it is.
    let link = sh(&format!("ip -n {} -o link show eth0", five.namespace));
    let index = link.split(':').next().and_then(|number| number.parse().ok()).expect("a number");
    let gateway = std::net::SocketAddrV6::new(GATEWAY_IPV6, 53, 0, index);
    let before = world.spoofed(&vpc, "spoofed_ipv6");
    assert!(!five.run(move || reaches_tcp(gateway.into())).await, "the name server speaks IPv4");
    assert!(world.spoofed(&vpc, "spoofed_ipv6") > before);
    // VPN clients have no address of theirs, and none of another's is taken from them.
    let client = Client::connect(&world, world.tun(&vpc).await.expect("a TUN"), "one").await;
    sh(&format!("ip -n {} addr add {nobody}/64 dev wg0 nodad", client.namespace));
    assert!(!client.run(move || reaches_udp(at(six_own, 7))).await);
    let neighbours = sh(&format!("ip -n {} -6 neigh", world.private(&vpc)));
    assert!(neighbours.lines().all(|line| line.contains("PERMANENT")), "nothing is learnt:\n{neighbours}");

    let default = Guest::boot(&world, &port(5, 1, &[])).await;
    default.speak_ipv6(own);
    assert!(!default.run(move || reaches_tcp(at(six_own, 80))).await);
    assert!(world.port_counter("ipv6_frame") > 0);
}

/// A frame behind a vnet header of zeros: an ICMPv6 message (RFC 4443) with its checksum.
fn icmp(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, hops: u8, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("short");
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([58, hops]);
    packet.extend([from.octets(), to.octets()].concat());
    packet.extend(message);
    let pseudo = [&packet[8..], &[0, 0, 0, message.len() as u8, 0, 0, 0, 58]].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = !((sum >> 16) as u16 + sum as u16);
    packet[42..44].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![0; 12];
    frame.extend(GATEWAY_MAC.0);
    frame.extend(mac);
    frame.extend(0x86ddu16.to_be_bytes());
    frame.extend(packet);
    frame
}

/// A message of neighbour discovery (RFC 4861) about an address, with an option of a kind that has an Ethernet address.
fn about(kind: u8, target: Ipv6Addr, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    if let Some((option, mac)) = option {
        message.extend([option, 1]);
        message.extend(mac);
    }
    message
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_ipv6_is_dropped_and_counted() {
    let one = twins(1);
    let networks = vec![private(1, RANGE, &one)];
    let (vpc, own) = (networks[0].vpc.clone(), ula(&networks[0]));
    let world = World::with_networks(vec![], networks).await;
    // No system stands behind this port: what is counted is ours alone.
    let queues = world.tap_of(&one[0].vm).await.expect("a TAP");
    let (mac, victim) = (one[0].mac.0, one[1].mac.0);
    let (five, six) = (own.address(FIVE), own.address(SIX));
    let (link, other_link) = (one[0].mac.link_local(), one[1].mac.link_local());
    let [all, routers, group] = ["ff02::1", "ff02::2", "ff02::1:ff00:1"].map(address);
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let solicit = |target, option| about(NEIGHBOUR_SOLICITATION, target, option);
    let advertise = |target, option| about(NEIGHBOUR_ADVERTISEMENT, target, option);
    let (source, target) = (|mac| Some((1, mac)), |mac| Some((2, mac)));
    let two_options = [solicit(GATEWAY_IPV6, source(mac)), vec![1, 1], victim.to_vec()].concat();
    let anywhere = Ipv6Addr::UNSPECIFIED;
    let router: [u8; 16] = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    let forged = [
        ("spoofed_mac", icmp(victim, five, six, 64, &echo)),
        ("spoofed_ipv6", icmp(mac, six, five, 64, &echo)),
        ("spoofed_ipv6", icmp(mac, link, GATEWAY_IPV6, 64, &echo)),
        ("spoofed_ipv6", icmp(mac, anywhere, six, 64, &echo)),
        ("spoofed_ipv6", icmp(mac, GATEWAY_IPV6, six, 64, &echo)),
        ("spoofed_ipv6", icmp(mac, address("::ffff:10.0.0.6"), six, 64, &echo)),
        ("spoofed_nd", icmp(mac, six, GATEWAY_IPV6, 255, &solicit(GATEWAY_IPV6, source(mac)))),
        ("spoofed_nd", icmp(mac, other_link, group, 255, &solicit(GATEWAY_IPV6, source(mac)))),
        ("spoofed_nd", icmp(mac, five, group, 255, &solicit(GATEWAY_IPV6, source(victim)))),
        ("spoofed_nd", icmp(mac, five, group, 255, &two_options)),
        ("spoofed_nd", icmp(mac, five, all, 255, &solicit(six, source(mac)))),
        ("spoofed_nd", icmp(mac, anywhere, all, 255, &solicit(six, None))),
        ("spoofed_nd", icmp(mac, five, all, 255, &advertise(six, target(mac)))),
        ("spoofed_nd", icmp(mac, five, all, 255, &advertise(GATEWAY_IPV6, target(mac)))),
        ("spoofed_nd", icmp(mac, five, all, 255, &advertise(five, target(victim)))),
        ("spoofed_nd", icmp(mac, five, six, 255, &advertise(five, target(mac)))),
        ("spoofed_nd", icmp(mac, six, all, 255, &advertise(five, target(mac)))),
        ("spoofed_nd", icmp(mac, link, all, 255, &router)),
        ("spoofed_nd", icmp(mac, GATEWAY_IPV6, six, 255, &router)),
        ("spoofed_nd", icmp(mac, link, six, 255, &about(137, six, None))),
        ("ipv6_multicast", icmp(mac, link, routers, 255, &[133, 0, 0, 0, 0, 0, 0, 0])),
        ("ipv6_multicast", icmp(mac, five, all, 64, &echo)),
        ("ipv6_multicast", icmp(mac, link, address("ff02::16"), 1, &[143, 0, 0, 0, 0, 0, 0, 0])),
    ];
    for (reason, frame) in forged {
        let before = world.spoofed(&vpc, reason);
        rustix::io::write(&queues[0], &frame).expect("the TAP takes it");
        assert_eq!(world.spoofed(&vpc, reason), before + 1, "{reason} {frame:02x?}");
    }
    let neighbours = sh(&format!("ip -n {} -6 neigh", world.private(&vpc)));
    assert!(neighbours.lines().all(|line| line.contains("PERMANENT")), "nothing is learnt:\n{neighbours}");
    let lines = neighbours.lines().filter(|line| line.contains(&mac_text(&one[0]))).count();
    assert_eq!(lines, 2, "its two addresses:\n{neighbours}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_members_own_words_pass_and_the_gateway_answers() {
    let one = twins(1);
    let networks = vec![private(1, RANGE, &one)];
    let (vpc, own) = (networks[0].vpc.clone(), ula(&networks[0]));
    let world = World::with_networks(vec![], networks).await;
    let queues = world.tap_of(&one[0].vm).await.expect("a TAP");
    let (mac, link) = (one[0].mac.0, one[0].mac.link_local());
    let (five, six, anywhere) = (own.address(FIVE), own.address(SIX), Ipv6Addr::UNSPECIFIED);
    let [all, group] = ["ff02::1", "ff02::1:ff00:1"].map(address);
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let solicit = |target, option| about(NEIGHBOUR_SOLICITATION, target, option);
    let advertise = |target, option| about(NEIGHBOUR_ADVERTISEMENT, target, option);
    let counters = ["spoofed_ipv6", "spoofed_nd", "ipv6_multicast"];
    let before = counters.map(|name| world.spoofed(&vpc, name));
    let rightful = [
        icmp(mac, anywhere, all, 255, &solicit(five, None)),
        icmp(mac, five, all, 255, &advertise(five, Some((2, mac)))),
        icmp(mac, link, GATEWAY_IPV6, 255, &advertise(link, None)),
        icmp(mac, five, six, 64, &echo),
        icmp(mac, link, group, 255, &solicit(GATEWAY_IPV6, Some((1, mac)))),
        icmp(mac, five, GATEWAY_IPV6, 255, &solicit(GATEWAY_IPV6, None)),
        icmp(mac, five, group, 255, &solicit(GATEWAY_IPV6, Some((1, mac)))),
    ];
    for frame in rightful {
        rustix::io::write(&queues[0], &frame).expect("the TAP takes it");
    }
    let mut answered = Vec::new();
    let begun = Instant::now();
    while answered.len() < 3 {
        let mut frame = [0; 2000];
        match rustix::io::read(&queues[0], &mut frame) {
            // A vnet header, Ethernet's, IPv6's, and the kind of the message.
            Ok(length) if length > 66 && frame[66] == NEIGHBOUR_ADVERTISEMENT => {
                assert_eq!(frame[74..90], GATEWAY_IPV6.octets());
                // Who asked it alone knows its Ethernet address.
                assert!(length < 98 || frame[92..98] == GATEWAY_MAC.0, "{frame:02x?}");
                let mut to = [0; 16];
                to.copy_from_slice(&frame[50..66]);
                answered.push(Ipv6Addr::from(to));
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(begun.elapsed() < PATIENCE, "answered {answered:?}");
    }
    assert_eq!(answered, [link, five, five]);
    assert_eq!(counters.map(|name| world.spoofed(&vpc, name)), before);
}

fn address(text: &str) -> Ipv6Addr {
    text.parse().expect("an address")
}

fn mac_text(port: &PortEntry) -> String {
    port.mac.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_of_members_hold_for_ipv6() {
    let rule = |number, protocol| RuleEntry {
        id: RuleId::from_random([number; 20]),
        action: RuleAction::Deny,
        direction: RuleDirection::In,
        member: Some(SIX),
        peer: RulePeer::Range("10.0.0.5/32".parse().expect("range")),
        protocol,
        ports: Vec::new(),
    };
    let members = [FIVE, SIX, NINE].map(|address| member(1, address.octets(), &[]));
    let mut network = private(1, RANGE, &members);
    let (vpc, own) = (network.vpc.clone(), ula(&network));
    let mut world = World::with_networks(vec![], vec![network.clone()]).await;
    let five = Guest::boot(&world, &members[0]).await;
    let six = Guest::boot(&world, &members[1]).await;
    let nine = Guest::boot(&world, &members[2]).await;
    let to = six.speak_ipv6(own);
    five.speak_ipv6(own);
    nine.speak_ipv6(own);
    whoami(&six.namespace, at(to, 80));
    whoami_udp(&six.namespace, at(to, 7));
    assert!(five.run(move || reaches_tcp(at(to, 80))).await);
    let flows =
        || sh(&format!("nsenter --net=/run/netns/{} cat /proc/net/nf_conntrack", world.private(&vpc)));
    assert!(!flows().contains("ipv6"), "what nobody judges is not tracked");

    network.rules = vec![rule(1, RuleProtocol::Tcp), rule(2, RuleProtocol::Icmp)].into();
    world.networks = vec![network.clone()];
    world.publish(vec![]);
    world.settled().await;
    assert!(!five.run(move || reaches_tcp(at(to, 80))).await);
    assert_eq!(five.run(move || pings_ipv6(to, 1, AT_ONCE)).await, 0);
    assert!(five.run(move || reaches_udp(at(to, 7))).await, "another protocol");
    assert!(nine.run(move || reaches_tcp(at(to, 80))).await, "another member");
    let counts = world.client().rules(&vpc).await.expect("counts");
    assert!(counts.len() == 2 && counts.iter().all(|count| count.packets > 0), "{counts:?}");

    // Nobody, by any protocol.
    let all = RuleEntry { member: None, peer: RulePeer::Any, ..rule(3, RuleProtocol::Any) };
    network.rules = vec![all].into();
    world.networks = vec![network.clone()];
    world.publish(vec![]);
    world.settled().await;
    assert!(!nine.run(move || reaches_tcp(at(to, 80))).await);
    assert!(!five.run(move || reaches_udp(at(to, 7))).await);
    // Who is gone has left no flows.
    network.rules = vec![rule(4, RuleProtocol::Icmp)].into();
    world.networks = vec![network.clone()];
    world.publish(vec![]);
    world.settled().await;
    assert!(nine.run(move || reaches_udp(at(to, 7))).await);
    let flows = |world: &World| {
        let space = world.private(&vpc);
        sh(&format!("nsenter --net=/run/netns/{space} cat /proc/net/nf_conntrack | grep ipv6 || true"))
    };
    assert!(flows(&world).contains(":0a00:0006"), "{}", flows(&world));
    network.ports = members.iter().filter(|port| port.ipv4 != SIX).cloned().collect::<Vec<_>>().into();
    world.networks = vec![network];
    world.publish(vec![]);
    world.settled().await;
    assert!(!flows(&world).contains(":0a00:0006"), "{}", flows(&world));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ipv6_packet_wakes_a_member_and_the_gateways_own_do_not() {
    let [awake, sleeper] = twins(1);
    let sleeper = PortEntry { asleep: true, ..sleeper };
    let networks = vec![private(1, RANGE, &[awake.clone(), sleeper.clone()])];
    let (vpc, own) = (networks[0].vpc.clone(), ula(&networks[0]));
    let world = World::with_networks(vec![], networks).await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    let begun = Instant::now();
    // The kernel says which groups it is in, from a moment after it has its address.
    while world.refused(&vpc, "own_ipv6") == 0 {
        assert!(begun.elapsed() < PATIENCE, "it says nothing of itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(timeout(Duration::from_millis(1500), wakes.next()).await.is_err(), "nobody wakes of it");
    let knocking_guest = Guest::boot(&world, &awake).await;
    knocking_guest.speak_ipv6(own);
    let mut guest = Guest::asleep(&world, &sleeper).await;
    let to = guest.speak_ipv6(own);
    let _listening = guest.run(move || TcpListener::bind(at(to, 8000)).expect("bound")).await;
    let knocking =
        inside(&knocking_guest.namespace, move || TcpStream::connect_timeout(&at(to, 8000), PATIENCE));
    let told = timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there");
    assert_eq!(told, sleeper.vm);
    guest.wake(world.tap_of(&sleeper.vm).await.expect("a TAP"));
    let connected = tokio::task::spawn_blocking(|| knocking.join()).await.expect("joined").expect("no panic");
    connected.expect("connected");
}

impl World {
    /// A counter of the members' own chains.
    fn spoofed(&self, vpc: &model::id::VpcId, counter: &str) -> u64 {
        self.counter(&self.private(vpc), "netdev", TABLE, counter)
    }
}
