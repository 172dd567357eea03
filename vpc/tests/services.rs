//! Services on a real kernel: namespaces of this host that join a private network, one of its members from then on.

mod support;

use model::net::GATEWAY_IPV4;
use model::view::{NetworkEntry, PortEntry};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use support::client::{CLIENT, Client, Place, clients, peering, service};
use support::guest::Guest;
use support::servers::{ask_tcp, ask_udp, look_up, pings, reaches_tcp, whoami, whoami_udp};
use support::{HOST, PATIENCE, SERVER, World, assert_same, inside, member, private, sh};
use tokio::time::timeout;
use vpc::client::{Refusal, VpcError};
use vpc::pure::names::{DeviceName, TABLE};

const RANGE: &str = "10.0.0.0/24";
const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const NINE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn five() -> PortEntry {
    member(1, FIVE.octets(), &["web"])
}

/// A network with one member and one service.
fn network() -> NetworkEntry {
    let services = vec![service(1, NINE.octets(), &["db"])].into();
    NetworkEntry { services, ..private(1, RANGE, &[five()]) }
}

fn refusal(outcome: Result<(), VpcError>) -> (Refusal, String) {
    match outcome {
        Err(VpcError::Refused { reason, message }) => (reason, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_a_member_from_its_joining_to_its_leaving() {
    let mut world = World::with_networks(vec![], vec![network()]).await;
    let (vpc, id) = (world.networks[0].vpc.clone(), service(1, NINE.octets(), &[]).id);
    let without = world.kernel_state();
    let (guest, place) = (Guest::boot(&world, &five()).await, Place::new(&world, "one"));
    world.join(&id, &place.0).await.expect("joined");
    let joined = world.kernel_state();
    whoami(&place.0, at(NINE, 80));
    whoami_udp(&place.0, at(NINE, 7));
    whoami(&guest.namespace, at(FIVE, 80));
    let name = guest.run(|| look_up(GATEWAY_IPV4, "db.vpc.internal", 1, false)).await;
    assert_eq!(name, Some((0, Some(NINE.octets()))));
    assert_eq!(guest.run(|| pings(NINE, 3, SOON)).await, 3);
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, FIVE.to_string());
    assert_eq!(guest.run(|| ask_udp(at(NINE, 7))).await, FIVE.to_string());
    let name = place.run(|| look_up(GATEWAY_IPV4, "web.vpc.internal", 1, true)).await;
    assert_eq!(name, Some((0, Some(FIVE.octets()))));
    assert_eq!(place.run(|| pings(FIVE, 3, SOON)).await, 3);
    assert_eq!(place.run(|| ask_tcp(at(FIVE, 80))).await, NINE.to_string());
    let outward =
        place.run(|| TcpStream::connect(at(SERVER, 80)).expect_err("it has no default route")).await;
    assert_eq!(outward.kind(), std::io::ErrorKind::NetworkUnreachable);

    // With another address it is not heard.
    sh(&format!("ip -n {} addr add 10.0.0.7/32 dev lo", place.0));
    let forged = place.run(|| {
        let socket = UdpSocket::bind("10.0.0.7:0").expect("bound");
        socket.set_read_timeout(Some(AT_ONCE)).expect("set");
        socket.send_to(b"who", at(FIVE, 80)).expect("sent");
        socket.recv_from(&mut [0; 100]).is_ok()
    });
    assert!(!forged.await);
    assert_eq!(world.counter(&world.private(&vpc), "netdev", TABLE, "spoofed_address"), 1);
    sh(&format!("ip -n {} addr del 10.0.0.7/32 dev lo", place.0));

    // Again, from the same place: it is made anew.
    world.join(&id, &place.0).await.expect("joined again");
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, FIVE.to_string());
    assert_same(&world.kernel_state(), &joined, "as before");
    // A vpc that dies does not disturb it, and what is changed meanwhile is repaired.
    world.kill();
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, FIVE.to_string());
    let (space, device) = (world.private(&vpc), DeviceName::of_service(&id));
    sh(&format!("ip -n {space} route del {NINE} dev {device}"));
    world.start(&[]);
    world.settled().await;
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, FIVE.to_string());
    assert_same(&world.kernel_state(), &joined, "adopted");
    // It leaves.
    world.networks[0].services = vec![].into();
    world.publish(vec![]);
    world.settled().await;
    assert!(!guest.run(|| reaches_tcp(at(NINE, 80))).await);
    assert_same(&world.kernel_state(), &without, "nothing is left");
    assert_eq!(sh(&format!("ip -n {} -o link | grep -cv ' lo:' || true", place.0)).trim(), "0");
    assert_eq!(refusal(world.join(&id, &place.0).await).0, Refusal::UnknownService);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_ends_is_no_error_and_the_service_may_join_from_another() {
    let world = World::with_networks(vec![], vec![network()]).await;
    let id = service(1, NINE.octets(), &[]).id;
    let guest = Guest::boot(&world, &five()).await;
    let first = Place::new(&world, "one");
    world.join(&id, &first.0).await.expect("joined");
    assert_eq!(guest.run(|| pings(NINE, 1, SOON)).await, 1);
    let (space, device) = (world.private(&world.networks[0].vpc), DeviceName::of_service(&id));
    drop(first);
    let begun = Instant::now();
    while !sh(&format!("ip -n {space} -o link show {device} 2>&1 || true")).contains("does not exist") {
        assert!(begun.elapsed() < PATIENCE, "the device goes with the namespace");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let second = Place::new(&world, "two");
    world.join(&id, &second.0).await.expect("joined");
    assert_eq!(guest.run(|| pings(NINE, 3, SOON)).await, 3);
    // And from a third, while the second is there.
    let third = Place::new(&world, "three");
    world.join(&id, &third.0).await.expect("joined");
    whoami(&third.0, at(NINE, 80));
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, FIVE.to_string());
    assert!(second.run(|| TcpStream::connect(at(FIVE, 80)).is_err()).await, "the one before is out");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_that_would_be_in_somebodys_way_is_refused_and_leaves_nothing() {
    let ten = service(2, [10, 0, 0, 10], &[]);
    let eleven = service(3, [10, 2, 0, 11], &[]);
    let mut networks = vec![
        network(),
        NetworkEntry { services: vec![ten.clone()].into(), ..private(2, "10.0.0.0/16", &[]) },
        NetworkEntry { services: vec![eleven.clone()].into(), ..private(3, "10.2.0.0/24", &[]) },
    ];
    networks[0].ports = vec![five()].into();
    let world = World::with_networks(vec![], networks).await;
    let id = service(1, NINE.octets(), &[]).id;
    let (guest, place) = (Guest::boot(&world, &five()).await, Place::new(&world, "one"));
    let nothing = world.kernel_state();
    let somebodys = [
        ("ip addr add 10.0.0.77/32 dev lo", "ip addr del 10.0.0.77/32 dev lo"),
        (
            "ip link add d0 type veth peer name d1; ip link set d0 up; ip link set d1 up; ip route add 10.0.0.0/8 dev d0",
            "ip link del d0",
        ),
    ];
    for (add, remove) in somebodys {
        sh(&format!("nsenter --net=/run/netns/{} sh -ec '{add}'", place.0));
        let (reason, message) = refusal(world.join(&id, &place.0).await);
        assert_eq!(reason, Refusal::Kernel);
        assert!(message.contains("10.0.0.0/24 of the network overlaps with 10."), "{message}");
        assert_same(&world.kernel_state(), &nothing, "nothing is made");
        sh(&format!("nsenter --net=/run/netns/{} sh -ec '{remove}'", place.0));
    }
    world.join(&id, &place.0).await.expect("joined");
    let (_, message) = refusal(world.join(&ten.id, &place.0).await);
    assert!(message.contains("10.0.0.0/16 of the network overlaps with 10.0.0."), "{message}");
    // One of other addresses is no clash, and the host itself may be a member.
    world.join(&eleven.id, &place.0).await.expect("joined");
    assert_eq!(guest.run(|| pings(NINE, 1, SOON)).await, 1);
    world.join(&id, &world.host()).await.expect("joined");
    whoami(&world.host(), at(NINE, 80));
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, FIVE.to_string(), "the host as a member");
    assert!(!guest.run(|| reaches_tcp(at(HOST, 80))).await, "by this address alone");
    // What is no namespace is refused in words.
    let (socket, generation) = (world.places().vpc_socket(), model::id::Generation(world.generation));
    let file = std::fs::File::open("/etc/hostname").expect("a file");
    let asked = tokio::task::spawn_blocking(move || {
        vpc::client::join(&socket, &id, generation, std::os::fd::AsFd::as_fd(&file))
    });
    let (_, message) = refusal(asked.await.expect("asked"));
    assert!(message.contains("the service's namespace cannot be entered"), "{message}");
    assert_eq!(guest.run(|| pings(NINE, 1, SOON)).await, 1, "and the old one stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_reached_by_peers_and_clients_that_were_there() {
    let other = member(2, [10, 1, 0, 5], &[]);
    let mut networks = vec![network(), private(2, "10.1.0.0/24", std::slice::from_ref(&other))];
    networks[0].peerings = vec![peering(1, 2, "10.1.0.0/24")].into();
    networks[0].clients = clients(None);
    networks[1].peerings = vec![peering(1, 1, RANGE)].into();
    let vpc = networks[0].vpc.clone();
    let world = World::with_networks(vec![], networks).await;
    let place = Place::new(&world, "one");
    world.join(&service(1, NINE.octets(), &[]).id, &place.0).await.expect("joined");
    whoami(&place.0, at(NINE, 80));
    let guest = Guest::boot(&world, &other).await;
    assert_eq!(guest.run(|| ask_tcp(at(NINE, 80))).await, other.ipv4.to_string());
    let client = Client::connect(&world, world.tun(&vpc).await.expect("a TUN"), "one").await;
    assert_eq!(client.run(|| ask_tcp(at(NINE, 80))).await, CLIENT.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_wakes_a_sleeping_member() {
    let sleeper = PortEntry { asleep: true, ..five() };
    let world =
        World::with_networks(vec![], vec![NetworkEntry { ports: vec![sleeper.clone()].into(), ..network() }])
            .await;
    let place = Place::new(&world, "one");
    world.join(&service(1, NINE.octets(), &[]).id, &place.0).await.expect("joined");
    let mut guest = Guest::asleep(&world, &sleeper).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    let knocking = inside(&place.0, || TcpStream::connect_timeout(&at(FIVE, 8000), PATIENCE));
    let told = timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there");
    assert_eq!(told, sleeper.vm);
    guest.wake(world.tap_of(&sleeper.vm).await.expect("a TAP"));
    let connected = tokio::task::spawn_blocking(|| knocking.join()).await.expect("joined").expect("no panic");
    connected.expect("connected");
    assert_eq!(guest.syns.load(std::sync::atomic::Ordering::SeqCst), 1, "nothing was sent twice");
}
