//! Peerings on a real kernel: two private networks that name each other reach each other, and nobody else does.

mod support;

use model::view::{NetworkEntry, PortEntry};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use support::client::peering;
use support::guest::Guest;
use support::servers::{ask_tcp, ask_udp, pings, reaches_tcp, whoami, whoami_udp};
use support::{PATIENCE, SERVER, World, assert_same, inside, member, private, sh};
use tokio::time::timeout;
use vpc::pure::names::DeviceName;

const RANGES: [&str; 3] = ["10.0.0.0/24", "10.1.0.0/24", "10.2.0.0/24"];
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

/// The member of the network of this number, 1 to 3.
fn five(number: u8) -> PortEntry {
    member(number, [10, number - 1, 0, 5], &[])
}

/// Three networks of one member each, the first and second peers, and the second and third.
fn networks() -> Vec<NetworkEntry> {
    let range = |number: u8| RANGES[usize::from(number) - 1];
    let network = |number: u8, peers: &[(u8, u8)]| {
        let mut entry = private(number, range(number), &[five(number)]);
        let peers = peers.iter().map(|(id, other)| peering(*id, *other, range(*other)));
        entry.peerings = peers.collect::<Vec<_>>().into();
        entry
    };
    vec![network(1, &[(1, 2)]), network(2, &[(1, 1), (2, 3)]), network(3, &[(2, 2)])]
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_reach_each_other_and_a_third_is_reached_by_nobody() {
    // Another one has the addresses of the first and no peer.
    let alike = member(4, [10, 0, 0, 5], &[]);
    let mut all = networks();
    all.push(private(4, RANGES[0], std::slice::from_ref(&alike)));
    let mut world = World::with_networks(vec![], all).await;
    let (one, two) = (Guest::boot(&world, &five(1)).await, Guest::boot(&world, &five(2)).await);
    let (three, alike) = (Guest::boot(&world, &five(3)).await, Guest::boot(&world, &alike).await);
    for guest in [&one, &two, &three, &alike] {
        whoami(&guest.namespace, at(guest.port.ipv4, 80));
        whoami_udp(&guest.namespace, at(guest.port.ipv4, 7));
    }
    world.carriers();
    for (from, to) in [(&one, &two), (&two, &one), (&two, &three), (&three, &two)] {
        let (address, own) = (to.port.ipv4, from.port.ipv4.to_string());
        assert_eq!(from.run(move || pings(address, 3, SOON)).await, 3, "{own} to {address}");
        assert_eq!(from.run(move || ask_tcp(at(address, 80))).await, own);
        assert_eq!(from.run(move || ask_udp(at(address, 7))).await, own);
    }
    for (from, to) in [(&one, &three), (&three, &one), (&alike, &two)] {
        let address = to.port.ipv4;
        assert!(!from.run(move || reaches_tcp(at(address, 80))).await, "{}", from.port.ipv4);
    }
    let vpcs: Vec<_> = world.networks.iter().map(|network| network.vpc.clone()).collect();

    // Whoever routes through a peer is stopped there: to the Internet, to the peer's peer, to its gateway's name server.
    let (space, device) = (world.private(&vpcs[0]), DeviceName::of_peering(&peering(1, 1, RANGES[0]).id));
    whoami(&world.internet(), at(SERVER, 80));
    for address in [SERVER, five(3).ipv4] {
        sh(&format!("ip -n {space} route add {address} via 169.254.1.2 dev {device} onlink"));
        let before = world.refused(&vpcs[1], "peer_elsewhere");
        assert!(!one.run(move || reaches_tcp(at(address, 80))).await, "{address}");
        assert!(world.refused(&vpcs[1], "peer_elsewhere") > before, "{address} is counted");
        sh(&format!("ip -n {space} route del {address}"));
    }
    // What comes from a peer's namespace with another's address is not heard.
    sh(&format!("ip -n {space} addr add 10.2.0.77/32 dev lo"));
    let forged = inside(&space, || {
        let socket = UdpSocket::bind("10.2.0.77:0").expect("bound");
        socket.set_read_timeout(Some(AT_ONCE)).expect("set");
        socket.send_to(b"who", at(five(2).ipv4, 7)).expect("sent");
        socket.recv_from(&mut [0; 100]).is_ok()
    });
    assert!(!tokio::task::spawn_blocking(|| forged.join()).await.expect("joined").expect("no panic"));
    assert_eq!(world.refused(&vpcs[1], "not_of_the_peer"), 1);
    sh(&format!("ip -n {space} addr del 10.2.0.77/32 dev lo"));

    // One side stops naming the other.
    world.networks[0].peerings = vec![].into();
    world.publish(vec![]);
    world.settled().await;
    for (from, to) in [(&one, &two), (&two, &one)] {
        let address = to.port.ipv4;
        assert!(!from.run(move || reaches_tcp(at(address, 80))).await);
    }
    let state = world.kernel_state();
    assert!(!state.iter().any(|line| line.contains(device.as_str())), "{state:#?}");
    let address = three.port.ipv4;
    assert_eq!(
        two.run(move || ask_tcp(at(address, 80))).await,
        two.port.ipv4.to_string(),
        "the other stands"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stands_when_both_networks_do_and_goes_with_either() {
    let mut world = World::with_networks(vec![], networks()[2..].to_vec()).await;
    let alone = world.kernel_state();
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let mut there = vec![];
        for number in order {
            there.push(number);
            world.networks = networks()
                .into_iter()
                .enumerate()
                .filter(|(at, _)| there.contains(at))
                .map(|(_, n)| n)
                .collect();
            world.publish(vec![]);
            world.settled().await;
        }
        let (one, two) = (Guest::boot(&world, &five(1)).await, Guest::boot(&world, &five(2)).await);
        world.carriers();
        assert_eq!(one.run(|| pings(five(2).ipv4, 2, SOON)).await, 2, "{order:?}");
        drop((one, two));
        world.networks = networks()[2..].to_vec();
        world.publish(vec![]);
        world.settled().await;
        assert_same(&world.kernel_state(), &alone, &format!("after {order:?}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_outlives_vpc_and_one_that_lost_an_end_is_made_anew() {
    let mut world = World::with_networks(vec![], networks()).await;
    let (one, two) = (Guest::boot(&world, &five(1)).await, Guest::boot(&world, &five(2)).await);
    world.carriers();
    assert_eq!(one.run(|| pings(five(2).ipv4, 3, SOON)).await, 3);
    let state = world.kernel_state();
    world.kill();
    assert_eq!(one.run(|| pings(five(2).ipv4, 3, SOON)).await, 3, "without vpc");
    world.start(&[]);
    world.settled().await;
    assert_same(&world.kernel_state(), &state, "adopted as it was");
    // The end of either has gone to where vpc does not see it.
    let elsewhere = format!("{}-gelsewhere", world.prefix);
    sh(&format!("ip netns add {elsewhere}"));
    let device = DeviceName::of_peering(&peering(1, 1, RANGES[0]).id);
    for number in [0, 1] {
        world.kill();
        let space = world.private(&world.networks[number].vpc);
        sh(&format!("ip -n {space} link set {device} netns {elsewhere}"));
        world.start(&[]);
        world.settled().await;
        // Which waits for the carrier, too: a packet before it is lost.
        assert_same(&world.kernel_state(), &state, "made anew");
        assert_eq!(one.run(|| pings(five(2).ipv4, 3, SOON)).await, 3);
        assert!(!sh(&format!("ip -n {elsewhere} -o link")).contains(device.as_str()));
    }
    sh(&format!("ip netns del {elsewhere}"));
    drop(two);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_wakes_a_sleeping_member() {
    let sleeper = PortEntry { asleep: true, ..five(1) };
    let mut all = networks();
    all[0].ports = vec![sleeper.clone()].into();
    let world = World::with_networks(vec![], all).await;
    let peer = Guest::boot(&world, &five(2)).await;
    let mut guest = Guest::asleep(&world, &sleeper).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    let knocking = inside(&peer.namespace, || TcpStream::connect_timeout(&at(five(1).ipv4, 8000), PATIENCE));
    let told = timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there");
    assert_eq!(told, sleeper.vm);
    guest.wake(world.tap_of(&sleeper.vm).await.expect("a TAP"));
    let connected = tokio::task::spawn_blocking(|| knocking.join()).await.expect("joined").expect("no panic");
    connected.expect("connected");
    assert_eq!(guest.syns.load(std::sync::atomic::Ordering::SeqCst), 1, "nothing was sent twice");
}
