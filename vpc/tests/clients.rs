//! VPN clients on a real kernel: whom they reach through a network's TUN, as whom, and who may have it.

mod support;

use model::net::GATEWAY_IPV4;
use model::view::{NetworkEntry, PortEntry};
use socket2::SockRef;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use support::client::{CLIENT, Client, Place, clients, peering, service};
use support::guest::Guest;
use support::servers::{
    ask_tcp, ask_udp, echo_udp, echoes, pings, reaches_tcp, reaches_udp, whoami, whoami_udp,
};
use support::{PATIENCE, SERVER, SSH_USER, VPN_USER, World, assert_same, inside, member, private, sh};
use tokio::time::timeout;
use vpc::client::{Refusal, VpcError, VpcReply, VpcRequest};

const RANGE: &str = "10.0.0.0/24";
const PEER_RANGE: &str = "10.1.0.0/24";
const FIVE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
const NINE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 5);
const SOON: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(500);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn five() -> PortEntry {
    member(1, FIVE.octets(), &[])
}

/// A network with one member and clients.
fn network(hidden_behind: Option<Ipv4Addr>) -> NetworkEntry {
    NetworkEntry { clients: clients(hidden_behind), ..private(1, RANGE, &[five()]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_reach_members_and_nothing_else() {
    let other = member(2, PEER.octets(), &[]);
    let mut networks = vec![network(None), private(2, PEER_RANGE, std::slice::from_ref(&other))];
    networks[0].peerings = vec![peering(1, 2, PEER_RANGE)].into();
    networks[1].peerings = vec![peering(1, 1, RANGE)].into();
    networks[0].services = vec![service(1, NINE.octets(), &[])].into();
    let vpc = networks[0].vpc.clone();
    let world = World::with_networks(vec![], networks).await;
    let (guest, peer) = (Guest::boot(&world, &five()).await, Guest::boot(&world, &other).await);
    let place = Place::new(&world, "one");
    world.join(&service(1, NINE.octets(), &[]).id, &place.0).await.expect("joined");
    let client = Client::connect(&world, world.tun(&vpc).await.expect("a TUN"), "one").await;
    for (namespace, address) in [(&guest.namespace, FIVE), (&place.0, NINE)] {
        whoami(namespace, at(address, 80));
        whoami_udp(namespace, at(address, 7));
        assert_eq!(client.run(move || pings(address, 3, SOON)).await, 3, "{address}");
        assert_eq!(client.run(move || ask_tcp(at(address, 80))).await, CLIENT.to_string());
        assert_eq!(client.run(move || ask_udp(at(address, 7))).await, CLIENT.to_string());
    }
    assert!(client.run(|| reaches_tcp(at(FIVE, 81))).await, "a refusal is an answer");

    // Each of these would answer if it were reached.
    whoami(&world.internet(), at(SERVER, 80));
    whoami(&peer.namespace, at(PEER, 80));
    assert_eq!(guest.run(|| ask_tcp(at(PEER, 80))).await, FIVE.to_string());
    for address in [SERVER, PEER, Ipv4Addr::new(100, 96, 0, 3), GATEWAY_IPV4] {
        let before = world.refused(&vpc, "client_elsewhere");
        assert!(!client.run(move || reaches_tcp(at(address, 80))).await, "{address}");
        assert!(world.refused(&vpc, "client_elsewhere") > before, "{address} is counted");
    }
    assert!(!client.run(|| reaches_udp(at(GATEWAY_IPV4, 53))).await, "nor the name server");
    let nobody = client.run(|| TcpStream::connect(at(Ipv4Addr::new(10, 0, 0, 99), 80)).expect_err("nobody"));
    assert_eq!(nobody.await.kind(), std::io::ErrorKind::HostUnreachable, "it is said at once");

    // Forged: a member's, another network's, and one of the Internet.
    for forged in [NINE, PEER, Ipv4Addr::new(198, 51, 100, 99)] {
        let before = world.refused(&vpc, "not_a_client");
        sh(&format!("ip -n {} addr add {forged}/32 dev wg0", client.namespace));
        let sent = client.run(move || {
            let socket = UdpSocket::bind(at(forged, 0)).expect("bound");
            socket.set_read_timeout(Some(AT_ONCE)).expect("set");
            socket.send_to(b"who", at(FIVE, 7)).expect("sent");
            socket.recv_from(&mut [0; 100]).is_ok()
        });
        assert!(!sent.await, "{forged}");
        assert_eq!(world.refused(&vpc, "not_a_client"), before + 1, "{forged} is counted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_fit_the_tunnels_in_both_directions() {
    let networks = vec![network(None)];
    let vpc = networks[0].vpc.clone();
    let world = World::with_networks(vec![], networks).await;
    let guest = Guest::boot(&world, &five()).await;
    let client = Client::connect(&world, world.tun(&vpc).await.expect("a TUN"), "one").await;
    let listener = guest.run(|| TcpListener::bind(at(FIVE, 80)).expect("bound")).await;
    let accepting = inside(&guest.namespace, move || {
        let (stream, _) = listener.accept().expect("accepted");
        SockRef::from(&stream).tcp_mss().expect("known")
    });
    let stream = client.run(|| TcpStream::connect_timeout(&at(FIVE, 80), PATIENCE).expect("connected")).await;
    let (theirs, ours) =
        (accepting.join().expect("no panic"), SockRef::from(&stream).tcp_mss().expect("known"));
    // Both devices take 1500 bytes, and 12 of a segment are for timestamps.
    assert_eq!((theirs, ours), (1280 - 40 - 12, 1280 - 40 - 12));
    echo_udp(&guest.namespace, at(FIVE, 7));
    assert!(client.run(|| echoes(at(FIVE, 7), 1400)).await, "found after the first is lost");
    let route = sh(&format!("ip -n {} route get {CLIENT}", guest.namespace));
    assert!(route.contains("mtu 1280"), "the member was told: {route}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_see_hidden_clients_as_one() {
    let (inner, outer) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(100, 64, 7, 7));
    let mut world = World::with_networks(vec![], vec![network(Some(inner))]).await;
    let vpc = world.networks[0].vpc.clone();
    let guest = Guest::boot(&world, &five()).await;
    whoami(&guest.namespace, at(FIVE, 80));
    whoami_udp(&guest.namespace, at(FIVE, 7));
    let client = Client::connect(&world, world.tun(&vpc).await.expect("a TUN"), "one").await;
    // Flows that were begun before a change are not translated anew, and an echo request has no port that would differ.
    assert_eq!(client.run(|| pings(FIVE, 2, SOON)).await, 2);
    for hidden in [Some(inner), Some(outer), None] {
        world.networks = vec![network(hidden)];
        world.publish(vec![]);
        world.settled().await;
        let seen = hidden.unwrap_or(CLIENT).to_string();
        assert_eq!(client.run(|| ask_tcp(at(FIVE, 80))).await, seen);
        assert_eq!(client.run(|| ask_udp(at(FIVE, 7))).await, seen);
        if let Some(address) = hidden {
            assert!(!guest.run(move || reaches_tcp(at(address, 80))).await, "nobody is begun with");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tun_has_one_holder_whom_a_dying_vpc_does_not_disturb() {
    let mut world = World::with_networks(vec![], vec![network(None), private(2, RANGE, &[])]).await;
    let (vpc, without) = (world.networks[0].vpc.clone(), world.networks[1].vpc.clone());
    let tun = world.tun(&vpc).await.expect("a TUN");
    match world.tun(&vpc).await {
        Err(VpcError::Refused { reason: Refusal::Kernel, message }) => {
            assert!(message.contains("in the hands of a process that still runs"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    match world.tun(&without).await {
        Err(VpcError::Refused { reason: Refusal::UnknownNetwork, .. }) => {}
        other => panic!("{other:?}"),
    }
    let guest = Guest::boot(&world, &five()).await;
    let mut client = Client::connect(&world, tun, "one").await;
    assert_eq!(client.run(|| pings(FIVE, 3, SOON)).await, 3);
    let state = world.kernel_state();
    world.kill();
    assert_eq!(client.run(|| pings(FIVE, 3, SOON)).await, 3, "without vpc");
    world.start(&[]);
    world.settled().await;
    assert_eq!(client.run(|| pings(FIVE, 3, SOON)).await, 3, "and with the next");
    assert_same(&world.kernel_state(), &state, "adopted as it was");
    client.stop();
    drop((client, guest));
    // Clients go, and with them the device, whoever has it.
    let held = world.tun(&vpc).await.expect("a TUN");
    world.networks[0].clients = None;
    world.publish(vec![]);
    world.settled().await;
    let state = world.kernel_state();
    assert!(!state.iter().any(|line| line.contains("clients") && line.contains("mtu")), "{state:#?}");
    assert!(rustix::io::read(&held, &mut [0; 100]).is_err_and(|error| error != rustix::io::Errno::AGAIN));
    assert!(world.tun(&vpc).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_vpn_may_ask_for_tuns_and_nothing_else() {
    let world = World::with_networks(vec![], vec![network(None)]).await;
    let (vpc, socket) = (world.networks[0].vpc.clone(), world.places().vpc_socket());
    std::fs::set_permissions(world.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("others may come in");
    let vm = five().vm;
    let generation = model::id::Generation(world.generation);
    let requests = [
        VpcRequest::Dial { vm: vm.clone(), port: 8000 },
        VpcRequest::Tap { vm, generation },
        VpcRequest::Rules { vpc: vpc.clone() },
        VpcRequest::Join { service: service(1, NINE.octets(), &[]).id, generation },
        VpcRequest::Status,
        VpcRequest::Wakes,
    ];
    let asked = std::thread::spawn(move || {
        let become_user = |uid: u32| {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
        };
        let doors = std::thread::spawn({
            let (socket, vpc) = (socket.clone(), vpc.clone());
            move || {
                become_user(64_501);
                vpc::client::tun(&socket, &vpc).map(drop)
            }
        });
        let doors = doors.join().expect("asked");
        assert!(matches!(doors, Err(VpcError::Refused { reason: Refusal::NotAllowed, .. })), "{doors:?}");
        become_user(VPN_USER);
        let wire = feed::wire::BlockingWire::connect(&socket).expect("any user may connect");
        for request in requests {
            wire.send(&request, &[]).expect("sent");
            let (told, _) = wire.receive::<VpcReply>().expect("answered");
            let refused = matches!(told, VpcReply::Refused { reason: Refusal::NotAllowed, .. });
            assert!(refused, "{request:?}: {told:?}");
        }
        vpc::client::tun(&socket, &vpc).map(drop)
    });
    asked.join().expect("asked").expect("a TUN");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_of_ssh_may_dial_and_nothing_else() {
    let world = World::with_networks(vec![], vec![network(None)]).await;
    let (vpc, socket) = (world.networks[0].vpc.clone(), world.places().vpc_socket());
    std::fs::set_permissions(world.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("others may come in");
    let (vm, generation) = (five().vm, model::id::Generation(world.generation));
    let requests = [
        VpcRequest::Tap { vm: vm.clone(), generation },
        VpcRequest::Tun { vpc: vpc.clone() },
        VpcRequest::Rules { vpc },
        VpcRequest::Join { service: service(1, NINE.octets(), &[]).id, generation },
        VpcRequest::Status,
        VpcRequest::Wakes,
    ];
    let asked = std::thread::spawn(move || {
        let uid = rustix::process::Uid::from_raw(SSH_USER);
        rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
        let wire = feed::wire::BlockingWire::connect(&socket).expect("any user may connect");
        let ask = |request: VpcRequest| {
            wire.send(&request, &[]).expect("sent");
            wire.receive::<VpcReply>().expect("answered").0
        };
        for request in requests {
            let told = ask(request);
            assert!(matches!(told, VpcReply::Refused { reason: Refusal::NotAllowed, .. }), "{told:?}");
        }
        ask(VpcRequest::Dial { vm: model::id::VmId::from_random([99; 20]), port: 22 })
    });
    let told = asked.join().expect("asked");
    assert!(matches!(told, VpcReply::Refused { reason: Refusal::UnknownVm, .. }), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_wakes_a_sleeping_member() {
    let sleeper = PortEntry { asleep: true, ..five() };
    let entry = NetworkEntry { clients: clients(None), ..private(1, RANGE, std::slice::from_ref(&sleeper)) };
    let vpc = entry.vpc.clone();
    let world = World::with_networks(vec![], vec![entry]).await;
    let mut guest = Guest::asleep(&world, &sleeper).await;
    let _listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let mut wakes = world.client().wakes().await.expect("vpc listens");
    let client = Client::connect(&world, world.tun(&vpc).await.expect("a TUN"), "one").await;
    let knocking = inside(&client.namespace, || TcpStream::connect_timeout(&at(FIVE, 8000), PATIENCE));
    let told = timeout(PATIENCE, wakes.next()).await.expect("told in time").expect("vpc is there");
    assert_eq!(told, sleeper.vm);
    guest.wake(world.tap_of(&sleeper.vm).await.expect("a TAP"));
    let connected = tokio::task::spawn_blocking(|| knocking.join()).await.expect("joined").expect("no panic");
    connected.expect("connected");
    assert_eq!(guest.syns.load(std::sync::atomic::Ordering::SeqCst), 1, "nothing was sent twice");
}
