//! Private networks on a real kernel: members reach each other and the Internet, and nothing of another network, of the
//! default one or of the host; two networks may have the same addresses; names, and wakes by a member.

mod support;

use model::net::{GATEWAY_IPV4, Ula};
use model::view::PortEntry;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::guest::Guest;
use support::servers::{
    ask_tcp, ask_udp, echo_udp, echoes, look_up, name_server, pings, reaches_tcp, reaches_udp, resolve, says,
    whoami, whoami_udp,
};
use support::{
    HOST, METADATA, PATIENCE, PRIVATE, SERVER, World, inside, member, permit, port, private, sh, within,
};
use tokio::time::timeout;
use vpc::client::{Refusal, VpcError};
use vpc::pure::names::{DeviceName, TABLE};

const RANGE: &str = "10.0.0.0/24";
const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const SIX: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const BOTH: [[u8; 4]; 2] = [[10, 0, 0, 5], [10, 0, 0, 6]];
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

/// Two networks with the same addresses.
fn twins() -> [Vec<PortEntry>; 2] {
    [1, 2].map(|network| BOTH.map(|ipv4| member(network, ipv4, &[])).to_vec())
}

fn asleep(port: &PortEntry) -> PortEntry {
    PortEntry { asleep: true, ..port.clone() }
}

fn refused(vpc: &World, network: &str, counter: &str) -> u64 {
    vpc.counter(network, "inet", TABLE, counter)
}

#[tokio::test(flavor = "multi_thread")]
async fn members_reach_each_other_and_the_internet_and_nothing_else() {
    let [one, two] = twins();
    let third = vec![member(3, ELSEWHERE.octets(), &[])];
    let networks = vec![private(1, RANGE, &one), private(2, RANGE, &two), private(3, "10.1.0.0/24", &third)];
    let (space, other_space) = ("10.0.0.6 of the first", "10.0.0.6 of the second");
    let names = [0, 1, 2].map(|number: usize| networks[number].vpc.clone());
    let world = World::with_networks(vec![port(5, 1, &[])], networks).await;
    assert_eq!(world.client().status().await.expect("status").ports, 6);
    let (one_five, one_six) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &one[1]).await);
    let (two_five, two_six) = (Guest::boot(&world, &two[0]).await, Guest::boot(&world, &two[1]).await);
    let alone = Guest::boot(&world, &third[0]).await;
    let default = Guest::boot(&world, &port(5, 1, &[])).await;
    let internet = world.internet();
    whoami(&internet, at(SERVER, 80));
    whoami_udp(&internet, at(SERVER, 7));
    for (guest, text) in [(&one_six, space), (&two_six, other_space)] {
        whoami(&guest.namespace, at(SIX, 80));
        whoami_udp(&guest.namespace, at(SIX, 7));
        says(&guest.namespace, at(SIX, 81), text);
    }

    for (guest, text) in [(&one_five, space), (&two_five, other_space)] {
        assert_eq!(guest.run(|| pings(SIX, 3, SOON)).await, 3);
        assert_eq!(
            guest.run(|| ask_tcp(at(SIX, 80))).await,
            FIVE.to_string(),
            "no translation between members"
        );
        assert_eq!(guest.run(|| ask_udp(at(SIX, 7))).await, FIVE.to_string());
        assert_eq!(guest.run(|| ask_tcp(at(SIX, 81))).await, text, "its own network's member");
        assert_eq!(guest.run(|| ask_tcp(at(SERVER, 80))).await, HOST.to_string(), "by NAT");
        assert_eq!(guest.run(|| ask_udp(at(SERVER, 7))).await, HOST.to_string());
        assert_eq!(guest.run(|| pings(SERVER, 3, SOON)).await, 3);
        assert_eq!(guest.run(|| pings(GATEWAY_IPV4, 3, SOON)).await, 3);
    }
    let network = world.private(&names[0]);
    let flows =
        within(&network, || std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("flows"));
    assert!(!flows.await.contains("dst=10.0.0.6"), "members' own flows take no place in the table");

    // Each of these would answer if it were reached.
    whoami(&alone.namespace, at(ELSEWHERE, 80));
    whoami(&default.namespace, at(default.port.ipv4, 80));
    for address in [HOST, Ipv4Addr::new(192, 168, 50, 1)] {
        whoami(&world.host(), at(address, 80));
    }
    whoami_udp(&world.host(), at(HOST, 7));
    whoami(&internet, at(PRIVATE, 80));
    whoami(&internet, at(METADATA, 80));
    let cases = [
        (ELSEWHERE, "to_private_range"),
        (default.port.ipv4, "to_private_range"),
        (PRIVATE, "to_private_range"),
        (Ipv4Addr::new(192, 168, 50, 1), "to_private_range"),
        (METADATA, "to_link_local"),
        (GATEWAY_IPV4, "to_gateway_service"),
    ];
    for (address, reason) in cases {
        let before = refused(&world, &network, reason);
        assert!(!one_five.run(move || reaches_tcp(at(address, 80))).await, "{address}");
        assert!(refused(&world, &network, reason) > before, "{address} is counted as {reason}");
    }
    let before = world.host_counter("to_host");
    assert!(!one_five.run(|| reaches_tcp(at(HOST, 80))).await);
    assert!(!one_five.run(|| reaches_udp(at(HOST, 7))).await);
    assert!(world.host_counter("to_host") >= before + 2);
    for address in [SIX, ELSEWHERE] {
        assert!(!default.run(move || reaches_tcp(at(address, 80))).await, "from the default network");
        assert_eq!(default.run(move || pings(address, 1, AT_ONCE)).await, 0);
        assert!(!within(&world.host(), move || reaches_tcp(at(address, 80))).await, "from the host");
    }
    assert!(!alone.run(|| reaches_tcp(at(SIX, 80))).await, "from a third network");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_address_that_nobody_has_it_is_said_at_once() {
    let [one, _] = twins();
    let networks = vec![private(1, RANGE, &one)];
    let vpc = networks[0].vpc.clone();
    let world = World::with_networks(vec![], networks).await;
    let (guest, network) = (Guest::boot(&world, &one[0]).await, world.private(&vpc));
    for last in [99, 255] {
        let nobody = at(Ipv4Addr::new(10, 0, 0, last), 80);
        let before = refused(&world, &network, "to_own_network");
        let error = guest.run(move || TcpStream::connect(nobody).expect_err("nobody")).await;
        assert_eq!(error.kind(), ErrorKind::HostUnreachable, "{nobody}");
        assert_eq!(refused(&world, &network, "to_own_network"), before + 1, "one SYN, and not again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_cannot_take_another_address() {
    let [one, _] = twins();
    let networks = vec![private(1, RANGE, &one)];
    let network = networks[0].vpc.clone();
    let world = World::with_networks(vec![], networks).await;
    let (five, six) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &one[1]).await);
    whoami_udp(&six.namespace, at(SIX, 7));
    assert_eq!(five.run(|| ask_udp(at(SIX, 7))).await, FIVE.to_string(), "with its own it is answered");
    sh(&format!("ip -n {} addr add 10.0.0.7/32 dev eth0", five.namespace));
    let forged = five.run(|| {
        let socket = UdpSocket::bind("10.0.0.7:0").expect("bound");
        socket.set_read_timeout(Some(AT_ONCE)).expect("set");
        socket.send_to(b"who", at(SIX, 7)).expect("sent");
        socket.recv_from(&mut [0; 100]).is_ok()
    });
    assert!(!forged.await);
    assert_eq!(world.counter(&world.private(&network), "netdev", TABLE, "spoofed_address"), 1);
}

/// A connection of a guest from one fixed port, which says what comes back.
async fn exchange(guest: &Guest, stream: Option<TcpStream>, text: &'static str) -> (TcpStream, String) {
    guest
        .run(move || {
            let mut stream = stream.unwrap_or_else(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
                socket.bind(&at(FIVE, 40_000).into()).expect("bound");
                socket.connect(&at(SERVER, 90).into()).expect("connected");
                socket.into()
            });
            stream.set_read_timeout(Some(PATIENCE)).expect("set");
            stream.write_all(text.as_bytes()).expect("sent");
            let mut back = vec![0; text.len()];
            stream.read_exact(&mut back).expect("echoed");
            (stream, String::from_utf8(back).expect("text"))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn flows_of_the_same_addresses_and_ports_are_kept_apart() {
    let [one, two] = twins();
    let mut world =
        World::with_networks(vec![], vec![private(1, RANGE, &one), private(2, RANGE, &two)]).await;
    let (first, second) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &two[0]).await);
    let (ready, waiting) = std::sync::mpsc::channel();
    inside(&world.internet(), move || {
        let listener = TcpListener::bind(at(SERVER, 90)).expect("bound");
        ready.send(()).expect("somebody waits");
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            std::thread::spawn(move || {
                std::io::copy(&mut stream.try_clone().expect("duplicate"), &mut stream)
            });
        }
    });
    waiting.recv().expect("listens");
    let (of_first, said) = exchange(&first, None, "first").await;
    assert_eq!(said, "first");
    let (of_second, said) = exchange(&second, None, "second").await;
    assert_eq!(said, "second");
    let (of_first, said) = exchange(&first, Some(of_first), "again").await;
    assert_eq!(said, "again");
    // The one goes, and the other does not notice.
    world.networks.remove(1);
    world.publish(vec![]);
    world.settled().await;
    let (_, said) = exchange(&first, Some(of_first), "still").await;
    assert_eq!(said, "still");
    drop(of_second);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_mean_members_of_the_own_network_and_go_nowhere_else() {
    const GOOD: u8 = 0;
    const NO_NAME: u8 = 3;
    let one = [member(1, BOTH[0], &["web", "www"]), asleep(&member(1, BOTH[1], &["db"]))];
    let two = [member(2, BOTH[1], &["web"])];
    let networks = vec![private(1, RANGE, &one), private(2, RANGE, &two)];
    let mut world = World::with_networks(vec![port(5, 1, &[])], networks).await;
    let (first, second) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &two[0]).await);
    let default = Guest::boot(&world, &port(5, 1, &[])).await;
    // It knows every name, so whatever is asked of it would be answered.
    name_server(&world.internet());
    for guest in [&first, &second, &default] {
        for tcp in [false, true] {
            assert_eq!(guest.run(move || resolve(GATEWAY_IPV4, tcp)).await, Some(SERVER), "forwarded");
        }
    }
    first.speak_ipv6(Ula::of(&world.networks[0].vpc)).await;
    let (a, aaaa, ptr) = (1, 28, 12);
    let (five, six) = (Some(FIVE.octets()), Some(SIX.octets()));
    let cases = [
        (&first, "web.vpc.internal", a, (GOOD, five)),
        (&first, "www.vpc.internal", a, (GOOD, five)),
        (&first, "WEB.vpc.INTERNAL", a, (GOOD, five)),
        (&first, "db.vpc.internal", a, (GOOD, six)),
        // Its IPv6 address ends in the IPv4 one. The other has never been heard to have one.
        (&first, "web.vpc.internal", aaaa, (GOOD, five)),
        (&first, "db.vpc.internal", aaaa, (GOOD, None)),
        (&first, "db.vpc.internal", 16, (GOOD, None)),
        (&first, "mail.vpc.internal", a, (NO_NAME, None)),
        (&second, "web.vpc.internal", a, (GOOD, six)),
        (&second, "db.vpc.internal", a, (NO_NAME, None)),
        (&second, "db.vpc.internal", aaaa, (NO_NAME, None)),
        (&second, "5.0.0.10.in-addr.arpa", ptr, (NO_NAME, None)),
        (&default, "web.vpc.internal", a, (NO_NAME, None)),
    ];
    for (guest, name, kind, expected) in cases {
        for tcp in [false, true] {
            let said = guest.run(move || look_up(GATEWAY_IPV4, name, kind, tcp)).await;
            assert_eq!(said, Some(expected), "{name} {kind} {} tcp: {tcp}", guest.port.ipv4);
        }
    }
    let reverse = first.run(|| look_up(GATEWAY_IPV4, "6.0.0.10.in-addr.arpa", 12, false)).await;
    assert!(matches!(reverse, Some((GOOD, Some(_)))), "{reverse:?}");
    let own = Ula::of(&world.networks[0].vpc).address(SIX);
    let digits: Vec<char> = format!("{:032x}", own.to_bits()).chars().rev().collect();
    let name = digits.into_iter().map(|digit| format!("{digit}.")).collect::<String>() + "ip6.arpa";
    let reverse = first.run(move || look_up(GATEWAY_IPV4, &name, 12, false)).await;
    assert!(matches!(reverse, Some((GOOD, Some(_)))), "{reverse:?}");
    // Names come and go with the view.
    world.networks[1] = private(2, RANGE, &[member(2, BOTH[1], &["new"])]);
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    assert_eq!(second.run(|| look_up(GATEWAY_IPV4, "new.vpc.internal", 1, false)).await, Some((GOOD, six)));
    assert_eq!(
        second.run(|| look_up(GATEWAY_IPV4, "web.vpc.internal", 1, false)).await,
        Some((NO_NAME, None))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_syn_of_a_member_wakes_a_sleeping_one_and_is_the_one_that_it_answers() {
    let [one, two] = twins();
    let sleeper = asleep(&one[1]);
    let networks = vec![
        private(1, RANGE, &[one[0].clone(), sleeper.clone()]),
        private(2, RANGE, &[two[0].clone(), asleep(&two[1])]),
    ];
    let world = World::with_networks(vec![], networks).await;
    let awake = Guest::boot(&world, &one[0]).await;
    let mut guest = Guest::asleep(&world, &sleeper).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    let knocking = inside(&awake.namespace, || TcpStream::connect_timeout(&at(SIX, 8000), PATIENCE));
    let told = timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there");
    assert_eq!(told, sleeper.vm, "and not the one of the same address in the other network");
    // As long as a VM takes to resume. The kernel sends a SYN again after a second.
    assert!(timeout(Duration::from_millis(400), wakes.next()).await.is_err(), "told once");
    guest.wake(world.tap_of(&sleeper.vm).await.expect("a TAP"));
    let connected = tokio::task::spawn_blocking(|| knocking.join()).await.expect("joined").expect("no panic");
    connected.expect("connected");
    assert_eq!(guest.syns.load(Ordering::SeqCst), 1, "nothing was sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_dial_into_the_vms_own_network() {
    let [one, two] = twins();
    let networks = vec![private(1, RANGE, &one), private(2, RANGE, &two)];
    let world = World::with_networks(vec![], networks).await;
    let (first, second) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &two[0]).await);
    for (guest, text) in [(&first, "first"), (&second, "second")] {
        says(&guest.namespace, at(FIVE, 8000), text);
    }
    for (guest, text) in [(&first, "first"), (&second, "second")] {
        let dialled = world.client().dial(&permit(&guest.port.vm, 8000)).await.expect("dialled");
        let mut stream = dialled.into_std().expect("a stream");
        stream.set_nonblocking(false).expect("set");
        let mut said = String::new();
        stream.read_to_string(&mut said).expect("said");
        assert_eq!(said, text);
    }
    match world.client().dial(&permit(&one[1].vm, 9000)).await {
        Err(VpcError::Refused { reason: Refusal::PortNotDialable, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_datagrams_pass_in_fragments_and_a_narrow_path_is_told() {
    let [one, _] = twins();
    let networks = vec![private(1, RANGE, &one)];
    let network = networks[0].vpc.clone();
    let world = World::with_networks(vec![], networks).await;
    let (five, six) = (Guest::boot(&world, &one[0]).await, Guest::boot(&world, &one[1]).await);
    let internet = world.internet();
    echo_udp(&six.namespace, at(SIX, 7));
    echo_udp(&internet, at(SERVER, 7));
    for to in [SIX, SERVER] {
        let before = five.fragments.load(Ordering::SeqCst);
        assert!(five.run(move || echoes(at(to, 7), 1472)).await, "a packet of just the MTU");
        assert_eq!(five.fragments.load(Ordering::SeqCst), before, "is not cut");
        assert!(five.run(move || echoes(at(to, 7), 60_000)).await);
        assert!(five.fragments.load(Ordering::SeqCst) - before >= 41, "60,000 bytes in packets of 1500");
    }
    // Paths that take less: to the member, and beyond the host.
    let (space, device, host) = (world.private(&network), DeviceName::of(&one[1].vm), world.host());
    sh(&format!(
        "ip -n {space} link set {device} mtu 1400; ip -n {host} link set eth0 mtu 1380
                 ip -n {internet} link set eth0 mtu 1380"
    ));
    for (to, mtu) in [(SIX, 1400), (SERVER, 1380)] {
        assert!(five.run(move || echoes(at(to, 7), 1472)).await, "found after the first is lost");
        let route = sh(&format!("ip -n {} route get {to}", five.namespace));
        assert!(route.contains(&format!("mtu {mtu}")), "{route}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_one_network_is_no_pass_over_the_others_and_a_broken_one_holds_up_none() {
    let [one, two] = twins();
    let networks = vec![private(1, RANGE, &one), private(2, RANGE, &two[..1])];
    let mut world = World::with_networks(vec![port(5, 1, &[])], networks).await;
    let (first, second) = (world.private(&world.networks[0].vpc), world.private(&world.networks[1].vpc));
    let route = |space: &str| sh(&format!("ip -n {space} route show 10.0.0.5"));
    sh(&format!("ip -n {first} route del 10.0.0.5; ip -n {second} route del 10.0.0.5"));
    world.networks[1] = private(2, RANGE, &two);
    world.publish(vec![port(5, 1, &[])]);
    world.settled().await;
    assert!(!route(&second).is_empty(), "what changed is looked at as a whole");
    assert!(route(&first).is_empty(), "and the rest is not");
    // Somebody has taken the first one's place: a folder where its namespace's name belongs.
    let third = private(3, RANGE, &[member(3, BOTH[0], &[])]);
    let name = format!("/run/netns/{}", world.private(&third.vpc));
    std::fs::create_dir(&name).expect("made");
    world.networks.insert(0, third.clone());
    world.networks[1] = private(1, RANGE, &one[..1]);
    world.publish(vec![port(5, 1, &[]), port(6, 1, &[])]);
    assert_eq!(world.settled().await.ports, 5, "all but the broken network's");
    assert!(!route(&first).is_empty());
    let vm = member(3, BOTH[0], &[]).vm;
    match world.tap_of(&vm).await {
        Err(VpcError::Refused { reason: Refusal::Kernel, message }) => {
            assert!(message.contains("cannot be made") || message.contains("cannot be opened"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    std::fs::remove_dir(&name).expect("removed");
    let begun = Instant::now();
    while world.tap_of(&vm).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "it is tried again by itself");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
