//! IPv6 among the members of a private network on a real kernel: they reach each other, by name too, and nobody else; what
//! they forge is dropped and counted; the firewall judges it alike; it wakes VMs, and the gateway's own words do not.

mod support;

use model::firewall::{PortRange, RuleAction, RuleDirection, RuleEntry, RulePeer, RuleProtocol};
use model::id::{RuleId, VmId, VpcId};
use model::net::{GATEWAY_IPV4, GATEWAY_IPV6, GATEWAY_MAC, Ula};
use model::view::{NetworkEntry, PortEntry};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
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
/// Bytes of a datagram that needs many frames.
const BIG: usize = 20_000;
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);
// ICMPv6 types (RFC 4861).
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
// What an IPv6 header says of what is behind it (IANA's list).
const HOP_BY_HOP: u8 = 0;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const OPTIONS: u8 = 60;

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
    let (five_own, six_own) = (five.speak_ipv6(own).await, six.speak_ipv6(own).await);
    let nine_own = own.address(NINE);
    for (namespace, address) in [
        (&six.namespace, six_own),
        (&twin.namespace, twin.speak_ipv6(other).await),
        (&peer.namespace, peer.speak_ipv6(peers).await),
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
    let gateway = std::net::SocketAddrV6::new(GATEWAY_IPV6, 53, 0, five.nic_number());
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
    default.set_ipv6(own);
    assert!(!default.run(move || reaches_tcp(at(six_own, 80))).await);
    assert!(world.port_counter("ipv6_frame") > 0);
}

/// A frame behind a vnet header of zeros: an IPv6 packet with what `next` says (RFC 8200 section 3).
fn ipv6(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, (next, hops): (u8, u8), payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(GATEWAY_MAC.0);
    frame.extend(mac);
    frame.extend(0x86ddu16.to_be_bytes());
    frame.extend([0x60, 0, 0, 0]);
    frame.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
    frame.extend([next, hops]);
    frame.extend([from.octets(), to.octets()].concat());
    frame.extend(payload);
    frame
}

/// One with an ICMPv6 message (RFC 4443) and its checksum.
fn icmp(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, hops: u8, message: &[u8]) -> Vec<u8> {
    let pseudo = [&from.octets()[..], &to.octets(), message, &[0, message.len() as u8, 0, ICMPV6]].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = !((sum >> 16) as u16 + sum as u16);
    let mut message = message.to_vec();
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv6(mac, from, to, (ICMPV6, hops), &message)
}

/// One with a datagram (RFC 768), without a checksum.
fn udp(mac: [u8; 6], from: Ipv6Addr, to: Ipv6Addr, ports: [u16; 2]) -> Vec<u8> {
    ipv6(mac, from, to, (UDP, 64), &datagram(ports))
}

fn datagram([from, to]: [u16; 2]) -> Vec<u8> {
    [from, to, 9, 0].into_iter().flat_map(u16::to_be_bytes).chain([b'x']).collect()
}

/// An extension header of eight bytes in front of what `next` says (RFC 8200 section 4), with padding or a routing
/// header's kind and count. A fragment's header says that it is the first one and that others follow.
fn behind(kind: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let header = match kind {
        FRAGMENT => [next, 0, 0, 1, 0, 0, 0, 7],
        ROUTING => [next, 0, 0, 1, 0, 0, 0, 0],
        _ => [next, 0, 1, 4, 0, 0, 0, 0],
    };
    [&header[..], payload].concat()
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
    drops_each(&world, &vpc, &queues[0], forged);
    let neighbours = sh(&format!("ip -n {} -6 neigh", world.private(&vpc)));
    assert!(neighbours.lines().all(|line| line.contains("PERMANENT")), "nothing is learnt:\n{neighbours}");
    let lines = neighbours.lines().filter(|line| line.contains(&mac_text(&one[0]))).count();
    assert_eq!(lines, 2, "its two addresses:\n{neighbours}");
}

/// Sends frames, each of which must be dropped for its reason.
fn drops_each(
    world: &World,
    vpc: &VpcId,
    queue: &OwnedFd,
    forged: impl IntoIterator<Item = (&'static str, Vec<u8>)>,
) {
    for (reason, frame) in forged {
        let before = world.spoofed(vpc, reason);
        rustix::io::write(queue, &frame).expect("the TAP takes it");
        assert_eq!(world.spoofed(vpc, reason), before + 1, "{reason} {frame:02x?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_hides_behind_other_headers_is_dropped_and_counted() {
    let one = twins(1);
    let networks = vec![private(1, RANGE, &one)];
    let (vpc, own) = (networks[0].vpc.clone(), ula(&networks[0]));
    let world = World::with_networks(vec![], networks).await;
    let queues = world.tap_of(&one[0].vm).await.expect("a TAP");
    let (mac, link, anywhere) = (one[0].mac.0, one[0].mac.link_local(), Ipv6Addr::UNSPECIFIED);
    let (five, six, all) = (own.address(FIVE), own.address(SIX), address("ff02::1"));
    let echo = [128, 0, 0, 0, 0, 1, 0, 1];
    let solicit = |target, option| about(NEIGHBOUR_SOLICITATION, target, option);
    let advertise = |target, option| about(NEIGHBOUR_ADVERTISEMENT, target, option);
    let forged = [
        // Behind other headers nothing of neighbour discovery is good, and a filter that looks at the first alone is blind.
        ("spoofed_nd", ipv6(mac, five, all, (OPTIONS, 255), &behind(OPTIONS, ICMPV6, &advertise(six, None)))),
        (
            "spoofed_nd",
            ipv6(mac, five, all, (FRAGMENT, 255), &behind(FRAGMENT, ICMPV6, &advertise(five, None))),
        ),
        (
            "spoofed_nd",
            ipv6(mac, anywhere, all, (OPTIONS, 255), &behind(OPTIONS, ICMPV6, &solicit(five, None))),
        ),
        (
            "ipv6_extension",
            ipv6(mac, five, six, (HOP_BY_HOP, 64), &behind(HOP_BY_HOP, UDP, &datagram([9, 9]))),
        ),
        ("ipv6_extension", ipv6(mac, five, six, (ROUTING, 64), &behind(ROUTING, UDP, &datagram([9, 9])))),
        ("ipv6_extension", ipv6(mac, five, six, (OPTIONS, 64), &behind(OPTIONS, ICMPV6, &echo))),
        (
            "ipv6_extension",
            ipv6(mac, five, six, (FRAGMENT, 64), &behind(FRAGMENT, OPTIONS, &[UDP, 0, 1, 4, 0, 0, 0, 0])),
        ),
        ("spoofed_ipv6", ipv6(mac, six, five, (FRAGMENT, 64), &behind(FRAGMENT, UDP, &datagram([9, 9])))),
        ("spoofed_ipv6", udp(mac, six, five, [9, 9])),
        ("spoofed_ipv6", udp(mac, link, five, [9, 9])),
        ("spoofed_ipv6", ipv6(mac, six, five, (6, 64), &[0; 20])),
        ("spoofed_dhcpv6", udp(mac, five, six, [547, 546])),
        ("spoofed_dhcpv6", udp(mac, link, all, [547, 546])),
        ("ipv6_multicast", udp(mac, link, address("ff02::1:2"), [546, 547])),
    ];
    drops_each(&world, &vpc, &queues[0], forged);
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
    let counters = ["spoofed_ipv6", "spoofed_nd", "ipv6_multicast", "ipv6_extension"];
    let before = counters.map(|name| world.spoofed(&vpc, name));
    // As the agent says it.
    assert!(world.speakers(&vpc).is_empty());
    let said = icmp(mac, five, all, 255, &advertise(five, Some((2, mac))));
    rustix::io::write(&queues[0], &said).expect("the TAP takes it");
    assert_eq!(world.speakers(&vpc), [five]);
    let rightful = [
        icmp(mac, anywhere, all, 255, &solicit(five, None)),
        ipv6(mac, five, six, (FRAGMENT, 64), &behind(FRAGMENT, UDP, &datagram([9, 9]))),
        udp(mac, five, six, [9, 9]),
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
    let to = six.speak_ipv6(own).await;
    five.speak_ipv6(own).await;
    nine.speak_ipv6(own).await;
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
    let mut world = World::with_networks(vec![], networks).await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    let begun = Instant::now();
    // The kernel says which groups it is in, from a moment after it has its address.
    while world.refused(&vpc, "own_ipv6") == 0 {
        assert!(begun.elapsed() < PATIENCE, "it says nothing of itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(timeout(Duration::from_millis(1500), wakes.next()).await.is_err(), "nobody wakes of it");
    let knocking_guest = Guest::boot(&world, &awake).await;
    knocking_guest.speak_ipv6(own).await;
    // It runs for a while, and sleeps again. vpc need not have been there all the time.
    let set_asleep = async |world: &mut World, asleep| {
        let sleeper = PortEntry { asleep, ..sleeper.clone() };
        world.networks[0].ports = vec![awake.clone(), sleeper].into();
        world.publish(vec![]);
        world.settled().await;
    };
    set_asleep(&mut world, false).await;
    let mut guest = Guest::boot(&world, &sleeper).await;
    let to = guest.speak_ipv6(own).await;
    guest.stop();
    set_asleep(&mut world, true).await;
    world.kill();
    world.start(&[]);
    world.settled().await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    assert!(timeout(AT_ONCE, wakes.next()).await.is_err(), "nobody has knocked");
    let _listening = guest.run(move || TcpListener::bind(at(to, 8000)).expect("bound")).await;
    let knocking =
        inside(&knocking_guest.namespace, move || TcpStream::connect_timeout(&at(to, 8000), PATIENCE));
    let told = timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there");
    assert_eq!(told, sleeper.vm);
    guest.wake(world.tap_of(&sleeper.vm).await.expect("a TAP"));
    let connected = tokio::task::spawn_blocking(|| knocking.join()).await.expect("joined").expect("no panic");
    connected.expect("connected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_has_an_ipv6_address_once_it_was_heard() {
    let one = twins(1);
    let networks = vec![private(1, RANGE, &one)];
    let (vpc, own) = (networks[0].vpc.clone(), ula(&networks[0]));
    let mut world = World::with_networks(vec![], networks).await;
    let (five, mut six) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &one[1]).await);
    let (five_own, six_own) = (five.speak_ipv6(own).await, own.address(SIX));
    // A system that knows nothing of IPv6 is tried by IPv4 alone, and who tries it otherwise hears it at once.
    assert_eq!(aaaa(&five, "web").await, Some(five_own));
    assert_eq!(aaaa(&five, "db").await, None);
    let begun = Instant::now();
    let refused = five.run(move || TcpStream::connect(at(six_own, 80)).expect_err("it has no IPv6")).await;
    assert_eq!(refused.kind(), std::io::ErrorKind::HostUnreachable);
    assert!(begun.elapsed() < SOON && world.refused(&vpc, "ipv6_silent") > 0);
    six.speak_ipv6(own).await;
    assert_eq!(five.run(move || pings_ipv6(six_own, 3, SOON)).await, 3);
    becomes(&five, "db", Some(six_own)).await;

    // vpc is killed: they go on, and the next one knows it.
    world.kill();
    assert_eq!(five.run(move || pings_ipv6(six_own, 3, SOON)).await, 3);
    world.start(&[]);
    world.settled().await;
    assert_eq!(aaaa(&five, "db").await, Some(six_own));
    assert_eq!(five.run(move || pings_ipv6(six_own, 3, SOON)).await, 3);

    // Another VM with its address and its name is another.
    six.stop();
    let successor = PortEntry { vm: VmId::from_random([77; 20]), ..one[1].clone() };
    world.networks[0].ports = vec![one[0].clone()].into();
    world.publish(vec![]);
    world.settled().await;
    assert_eq!(world.speakers(&vpc), [five_own]);
    let nobody = five.run(move || TcpStream::connect(at(six_own, 80)).expect_err("it is gone")).await;
    assert_eq!(nobody.kind(), std::io::ErrorKind::HostUnreachable);
    // Nor has it what a kill between two steps may have left over.
    let left = format!("nft add element inet {TABLE} speakers '{{ {six_own} }}'");
    sh(&format!("nsenter --net=/run/netns/{} {left}", world.private(&vpc)));
    world.networks[0].ports = vec![one[0].clone(), successor].into();
    world.publish(vec![]);
    world.settled().await;
    assert_eq!(world.speakers(&vpc), [five_own]);
    becomes(&five, "db", None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_in_fragments_are_put_together_and_judged() {
    let mut network = private(1, RANGE, &twins(1));
    let own = ula(&network);
    let mut world = World::with_networks(vec![], vec![network.clone()]).await;
    let [first, second] = twins(1);
    let (five, six) = (Guest::boot(&world, &first).await, Guest::boot(&world, &second).await);
    let (five_own, six_own) = (five.speak_ipv6(own).await, six.speak_ipv6(own).await);
    let socket = six.run(move || UdpSocket::bind(at(six_own, 7)).expect("bound")).await;
    socket.set_read_timeout(Some(SOON)).expect("set");
    let send = async |port: u16| {
        five.run(move || {
            let socket = UdpSocket::bind(at(five_own, port)).expect("bound");
            socket.send_to(&[port as u8; BIG], at(six_own, 7)).expect("sent");
        })
        .await;
    };
    let mut bytes = vec![0; 1 << 16];
    send(5001).await;
    assert_eq!(socket.recv_from(&mut bytes).expect("it comes"), (BIG, at(five_own, 5001)));
    // Only the first fragment has the ports.
    network.rules = vec![RuleEntry {
        id: RuleId::from_random([1; 20]),
        action: RuleAction::Deny,
        direction: RuleDirection::In,
        member: Some(SIX),
        peer: RulePeer::Any,
        protocol: RuleProtocol::Udp,
        ports: vec![PortRange::try_from((7, 7)).expect("ports")],
    }]
    .into();
    world.networks = vec![network.clone()];
    world.publish(vec![]);
    world.settled().await;
    send(5002).await;
    let begun = Instant::now();
    while world.client().rules(&network.vpc).await.expect("counts")[0].packets == 0 {
        assert!(begun.elapsed() < PATIENCE, "it is not judged");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    network.rules = vec![].into();
    world.networks = vec![network];
    world.publish(vec![]);
    world.settled().await;
    send(5003).await;
    assert_eq!(socket.recv_from(&mut bytes).expect("it comes"), (BIG, at(five_own, 5003)));
}

/// The IPv6 address of a name, as a guest is told it.
async fn aaaa(guest: &Guest, name: &'static str) -> Option<Ipv6Addr> {
    let name = format!("{name}.vpc.internal");
    let answer = guest.run(move || look_up(GATEWAY_IPV4, &name, 28, false)).await;
    let (code, octets) = answer.expect("an answer");
    assert_eq!(code, 0);
    let network = guest.run(|| sh("ip -6 -o addr show dev eth0 scope global")).await;
    let own: Ipv6Addr =
        network.split([' ', '/']).find_map(|word| word.parse().ok()).expect("its own address");
    octets
        .map(|octets| Ipv6Addr::from_bits(own.to_bits() >> 32 << 32 | u128::from(u32::from_be_bytes(octets))))
}

/// Waits until a guest is told this address of a name: who speaks is looked up every few seconds.
async fn becomes(guest: &Guest, name: &'static str, address: Option<Ipv6Addr>) {
    let begun = Instant::now();
    while aaaa(guest, name).await != address {
        assert!(begun.elapsed() < PATIENCE, "{name} does not become {address:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

impl World {
    /// Members that were heard to speak IPv6.
    fn speakers(&self, vpc: &VpcId) -> Vec<Ipv6Addr> {
        let set = format!("nft list set inet {TABLE} speakers");
        let text = sh(&format!("nsenter --net=/run/netns/{} {set}", self.private(vpc)));
        text.split([' ', ',', '\n', '\t']).filter_map(|word| word.parse().ok()).collect()
    }

    /// A counter of the members' own chains.
    fn spoofed(&self, vpc: &VpcId, counter: &str) -> u64 {
        self.counter(&self.private(vpc), "netdev", TABLE, counter)
    }
}
