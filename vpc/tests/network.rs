//! What a guest reaches and what it does not, on a real kernel: NAT to the Internet, names, dialled connections;
//! not another guest, not the host, not private or link-local ranges, not with a forged address.

mod support;

use model::id::VmId;
use model::net::{GATEWAY_IPV4, GATEWAY_MAC};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;
use support::guest::Guest;
use support::servers::{
    ask_tcp, ask_udp, name_server, pings, reaches_tcp, reaches_udp, resolve, whoami, whoami_udp,
};
use support::{HOST, METADATA, PRIVATE, SERVER, World, permit, port};
use vpc::client::{Refusal, VpcError, VpcReply, VpcRequest};

const SOON: Duration = Duration::from_secs(5);

fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_reaches_the_internet_and_nothing_else() {
    let ports = vec![port(5, 1, &[]), port(6, 4, &[])];
    let world = World::with_ports(ports.clone()).await;
    let guest = Guest::boot(&world, &ports[0]).await;
    let other = Guest::boot(&world, &ports[1]).await;
    let internet = world.internet();
    whoami(&internet, at(SERVER, 80));
    whoami_udp(&internet, at(SERVER, 7));
    name_server(&internet);

    for guest in [&guest, &other] {
        assert_eq!(guest.run(|| ask_tcp(at(SERVER, 80))).await, HOST.to_string(), "by NAT");
        assert_eq!(guest.run(|| ask_udp(at(SERVER, 7))).await, HOST.to_string());
        assert_eq!(guest.run(|| pings(SERVER, 3, SOON)).await, 3);
        assert_eq!(guest.run(|| pings(GATEWAY_IPV4, 3, SOON)).await, 3);
        for tcp in [false, true] {
            assert_eq!(guest.run(move || resolve(GATEWAY_IPV4, tcp)).await, Some(SERVER), "tcp: {tcp}");
        }
    }

    // A guest that takes everything for its own link finds the gateway behind every address.
    let (space, mac) = (&guest.namespace, GATEWAY_MAC);
    support::sh(&format!("ip -n {space} route add {SERVER} dev eth0"));
    assert_eq!(guest.run(|| ask_tcp(at(SERVER, 80))).await, HOST.to_string());
    let neighbours = support::sh(&format!("ip -n {space} neigh show {SERVER}"));
    assert!(neighbours.contains(&mac.to_string()), "{neighbours}");

    // Each of these would answer if it were reached.
    whoami(&other.namespace, at(other.port.ipv4, 80));
    whoami(&world.host(), at(HOST, 80));
    whoami(&world.host(), at(Ipv4Addr::new(192, 168, 50, 1), 80));
    whoami(&internet, at(PRIVATE, 80));
    whoami(&internet, at(METADATA, 80));
    whoami_udp(&world.host(), at(HOST, 7));
    let neighbour = other.port.ipv4;
    let cases = [
        (neighbour, "to_other_vm"),
        (PRIVATE, "to_private_range"),
        (Ipv4Addr::new(192, 168, 50, 1), "to_private_range"),
        (METADATA, "to_link_local"),
        (Ipv4Addr::new(10, 201, 0, 99), "to_own_network"),
        (GATEWAY_IPV4, "to_gateway_service"),
    ];
    for (address, reason) in cases {
        let before = world.network_counter(reason);
        assert!(!guest.run(move || reaches_tcp(at(address, 80))).await, "{address}");
        assert!(world.network_counter(reason) > before, "{address} is counted as {reason}");
    }
    let before = world.host_counter("to_host");
    assert!(!guest.run(|| reaches_tcp(at(HOST, 80))).await);
    assert!(!guest.run(|| reaches_udp(at(HOST, 7))).await);
    assert!(world.host_counter("to_host") >= before + 2);
    assert_eq!(guest.run(move || pings(neighbour, 1, Duration::from_millis(500))).await, 0);
    assert_eq!(guest.run(|| pings(HOST, 1, Duration::from_millis(500))).await, 0);

    let answered = guest.run(|| pings(GATEWAY_IPV4, 200, Duration::from_millis(500))).await;
    assert!(answered < 100, "{answered} of 200 at once");
    assert!(world.network_counter("too_many_pings") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_frames_are_dropped_and_counted() {
    let ports = vec![port(5, 1, &[]), port(6, 1, &[])];
    let world = World::with_ports(ports.clone()).await;
    // No system stands behind this port: what is counted is ours alone.
    let (socket, vm) = (world.places().vpc_socket(), ports[0].vm.clone());
    let queues =
        tokio::task::spawn_blocking(move || vpc::client::tap(&socket, &vm, model::id::Generation(1)));
    let queues = queues.await.expect("joined").expect("a TAP");
    let (mac, ipv4) = (ports[0].mac.0, ports[0].ipv4);
    let victim = (ports[1].mac.0, ports[1].ipv4);
    let frames: Vec<(&str, Vec<u8>)> = vec![
        ("spoofed_mac", ip_frame(victim.0, ipv4)),
        ("spoofed_mac", ip_frame(GATEWAY_MAC.0, ipv4)),
        ("spoofed_address", ip_frame(mac, victim.1)),
        ("spoofed_address", ip_frame(mac, Ipv4Addr::UNSPECIFIED)),
        ("spoofed_arp", arp_frame(mac, mac, victim.1)),
        ("spoofed_arp", arp_frame(mac, mac, GATEWAY_IPV4)),
        ("spoofed_arp", arp_frame(mac, victim.0, ipv4)),
        ("ipv6_frame", ethernet(mac, 0x86dd, &[0x60; 40])),
        ("unknown_frame", ethernet(mac, 0x88cc, &[0; 46])),
        ("unknown_frame", ethernet(mac, 0x8100, &[0, 1, 8, 0, 0x45, 0])),
    ];
    for (reason, frame) in frames {
        let before = world.port_counter(reason);
        rustix::io::write(&queues[0], &frame).expect("the TAP takes it");
        assert_eq!(world.port_counter(reason), before + 1, "{reason} {frame:02x?}");
    }
    let neighbours = support::sh(&format!("ip -n {} neigh", world.network()));
    assert!(neighbours.lines().all(|line| line.contains("PERMANENT")), "nothing is learnt:\n{neighbours}");
}

/// Behind a vnet header of zeros (virtio 1.2, section 5.1.6): no offload.
fn ethernet(from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(GATEWAY_MAC.0);
    frame.extend(from);
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An empty IPv4 packet to [`SERVER`]. The checksum does not matter before the filter.
fn ip_frame(mac: [u8; 6], from: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(from.octets());
    packet.extend(SERVER.octets());
    ethernet(mac, 0x0800, &packet)
}

/// An ARP reply (RFC 826) that says who has an address.
fn arp_frame(mac: [u8; 6], sender: [u8; 6], says: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
    packet.extend(sender);
    packet.extend(says.octets());
    packet.extend(GATEWAY_MAC.0);
    packet.extend(GATEWAY_IPV4.octets());
    ethernet(mac, 0x0806, &packet)
}

#[tokio::test(flavor = "multi_thread")]
async fn dialled_connections_and_refusals() {
    let ports = vec![port(5, 1, &[8000, 8001]), port(6, 1, &[8000])];
    let world = World::with_ports(ports.clone()).await;
    let guest = Guest::boot(&world, &ports[0]).await;
    let listening = guest.run(|| TcpListener::bind("0.0.0.0:8000").expect("bound")).await;
    let echoing = std::thread::spawn(move || {
        let (mut stream, from) = listening.accept().expect("accepted");
        let mut text = [0; 5];
        stream.read_exact(&mut text).expect("read");
        stream.write_all(&text).expect("written");
        from
    });
    let client = world.client();
    let mut stream =
        client.dial(&permit(&ports[0].vm, 8000)).await.expect("dialled").into_std().expect("a stream");
    stream.set_nonblocking(false).expect("set");
    stream.write_all(b"hello").expect("written");
    let mut text = [0; 5];
    stream.read_exact(&mut text).expect("read");
    assert_eq!(&text, b"hello");
    assert_eq!(echoing.join().expect("echoed").ip(), GATEWAY_IPV4, "the guest sees the gateway");

    let stranger = VmId::from_random([200; 20]);
    let refusals = [
        (&ports[0].vm, 8001, Refusal::ConnectionRefused),
        (&ports[0].vm, 9000, Refusal::PortNotDialable),
        (&ports[1].vm, 8000, Refusal::TimedOut),
        (&stranger, 8000, Refusal::UnknownVm),
    ];
    for (vm, number, expected) in refusals {
        match client.dial(&permit(vm, number)).await {
            Err(VpcError::Refused { reason, .. }) => assert_eq!(reason, expected, "{vm}:{number}"),
            other => panic!("{vm}:{number}: {other:?}"),
        }
    }
    let status = client.status().await.expect("status");
    assert_eq!(status.ports, 2);
    assert!(refusals.iter().all(|(_, _, reason)| status.refusals.contains(&(*reason, 1))), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_known_users_are_served_and_bad_requests_harm_nobody() {
    let ports = vec![port(5, 1, &[80])];
    let world = World::with_ports(ports.clone()).await;
    let socket = world.places().vpc_socket();
    std::fs::set_permissions(world.folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("others may come in");
    for (uid, served) in [(64_501, true), (65_534, false)] {
        let (socket, vm) = (socket.clone(), ports[0].vm.clone());
        let asked = std::thread::spawn(move || {
            let uid = rustix::process::Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
            let vpc = model::id::VpcId::from_random([1; 20]);
            for request in [VpcRequest::Wakes, VpcRequest::Rules { vpc }] {
                let wire = feed::wire::BlockingWire::connect(&socket).expect("any user may connect");
                wire.send(&request, &[]).expect("sent");
                let (told, _) = wire.receive::<VpcReply>().expect("answered");
                assert!(matches!(told, VpcReply::Refused { reason: Refusal::NotAllowed, .. }), "{told:?}");
            }
            vpc::client::tap(&socket, &vm, model::id::Generation(1)).map(|queues| queues.len())
        });
        match asked.join().expect("asked") {
            Ok(queues) => assert!(served && queues == 1),
            Err(VpcError::Refused { reason: Refusal::NotAllowed, .. }) => assert!(!served),
            Err(other) => panic!("{uid}: {other}"),
        }
    }
    for bad in
        [&b"{}"[..], b"\xff\xff", b"{\"ask\":\"dial\",\"vm\":\"../../etc\",\"port\":1}", &[b'['; 90_000]]
    {
        let raw = feed::wire::BlockingWire::connect(&socket).expect("connected");
        rustix::net::send(&raw, bad, rustix::net::SendFlags::NOSIGNAL).expect("sent");
        assert!(raw.receive::<VpcReply>().is_err(), "closed without an answer");
    }
    assert_eq!(world.client().status().await.expect("still there").ports, 1);
}
