//! The process with real clients: wireguard-go and wg-quick, in namespaces. Needs root and Debian's packages
//! wireguard-go and wireguard-tools.

mod support;

use model::key::SecretKey;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::Client;
use support::world::{HOST, PORT, World, inside, sh, succeeds, transfer};
use support::{INSIDE, address, entry, vpc};
use vpn::client::SessionState;
use vpn::pure::budget::ALL;

const RANGE: &str = "10.0.0.0/24";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_with_the_products_file_reaches_its_network_both_ways() {
    let mut world = World::new();
    let network = world.network(&vpc(1), INSIDE);
    let mut registered = entry(1, 1);
    registered.preshared_key = Some(SecretKey::new([9; 32]));
    world.publish(vec![registered.clone(), entry(2, 1)]);
    world.start();
    let client = world.client(1, RANGE);
    world.preshare(&client, [9; 32]);
    client.up();
    world.eventually("a ping is answered", || client.pings(INSIDE));
    assert!(succeeds(&format!("nsenter --net=/run/netns/{network} ping -c1 -W2 {}", address(1))), "and back");
    let told = world.sessions(Some(&vpc(1))).await;
    let [mine, other] = &told[..] else { panic!("{told:?}") };
    assert_eq!((mine.state, other.state), (SessionState::Live, SessionState::Registered));
    assert!(mine.endpoint.is_some_and(|at| at.ip() == IpAddr::from([198, 51, 1, 2])), "{mine:?}");
    assert!(
        mine.received_bytes >= 84 && mine.sent_bytes >= 84 && mine.handshake_seconds.is_some(),
        "{mine:?}"
    );
    assert_eq!((other.endpoint, other.received_bytes, other.handshake_seconds), (None, 0, None));
    assert_eq!(world.sessions(None).await.len(), 2);
    assert_eq!(world.sessions(Some(&vpc(2))).await, []);
    let large =
        format!("nsenter --net=/run/netns/{} ping -c3 -i0.2 -W1 -M do -s 1252 {INSIDE}", client.namespace);
    assert!(succeeds(&large), "as large as the tunnel");
    transfer((&network, INSIDE), &client.namespace, 20_000_000);
    transfer((&client.namespace, address(1)), &network, 20_000_000);

    // The network's own devices are larger than the tunnel: its host is told, and connections offer less.
    sh(&format!("ip -n {network} link set gtun0 mtu 1500"));
    let told = std::process::Command::new("nsenter")
        .args([&format!("--net=/run/netns/{network}"), "ping", "-c2", "-W1", "-M", "do", "-s", "1400"])
        .arg(address(1).to_string())
        .output()
        .expect("ping starts");
    let said = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
    assert!(said.contains("mtu = 1280") || said.contains("mtu=1280"), "{said}");
    sh(&format!("ip -n {network} route flush cache"));
    transfer((&client.namespace, address(1)), &network, 5_000_000);
    transfer((&network, INSIDE), &client.namespace, 5_000_000);

    // Another address than its own does not get in, though it is a client's.
    let namespace = &client.namespace;
    sh(&format!("ip -n {namespace} addr add {}/32 dev {}", address(2), client.device()));
    let listening = inside(&network, || UdpSocket::bind((INSIDE, 7)).expect("bound")).join().expect("bound");
    listening.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    inside(namespace, || {
        for from in [address(2), address(1)] {
            let socket = UdpSocket::bind((from, 0)).expect("bound");
            socket.send_to(from.to_string().as_bytes(), (INSIDE, 7)).expect("sent");
        }
    })
    .join()
    .expect("sent");
    let mut text = [0; 64];
    let (length, from) = listening.recv_from(&mut text).expect("the second");
    assert_eq!((from.ip(), &text[..length]), (address(1).into(), address(1).to_string().as_bytes()));

    tells_figures(&world).await;
    let counted = world.stop();
    for (name, least) in [
        ("bytes_in", 50_000_000),
        ("bytes_out", 50_000_000),
        ("segments_coalesced", 1000),
        ("segment_size_lowered", 1),
        ("answered_too_big", 1),
        ("dropped_spoofed", 1),
    ] {
        let value = number(&counted, name);
        assert!(value >= least, "{name}: {value} of {least} in {counted}");
    }
    assert!(
        !counted.contains("dropped_tunnel_full") && !counted.contains("dropped_send_failed"),
        "{counted}"
    );
}

/// Of one client that is there and one that never came.
async fn tells_figures(world: &World) {
    let figures = world.figures().await;
    for line in [
        "gatehouse_vpn_sessions{state=\"live\"} 1",
        "gatehouse_vpn_sessions{state=\"registered\"} 1",
        "gatehouse_vpn_events_total{event=\"dropped_mac1\"} 0",
    ] {
        assert!(figures.lines().any(|other| other == line), "{line}: {figures}");
    }
    assert!(!figures.contains("event=\"handshakes\"} 0\n"), "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_moves_is_followed() {
    let mut world = World::new();
    let network = world.network(&vpc(1), INSIDE);
    world.publish(vec![entry(1, 1)]);
    world.start();
    let client = world.client(1, RANGE);
    client.up();
    world.eventually("a ping is answered", || client.pings(INSIDE));
    client.set_address("198.51.1.2", "198.51.1.77");
    world.eventually("from its new address", || client.pings(INSIDE));
    assert!(succeeds(&format!("nsenter --net=/run/netns/{network} ping -c1 -W2 {}", address(1))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_session_is_cut_at_once_and_its_client_stays_out() {
    let mut world = World::new();
    let network = world.network(&vpc(1), INSIDE);
    world.publish(vec![entry(1, 1), entry(2, 1)]);
    world.start();
    let client = world.client(1, RANGE);
    client.up();
    world.eventually("a ping is answered", || client.pings(INSIDE));
    let listening = inside(&network, || UdpSocket::bind((INSIDE, 7)).expect("bound")).join().expect("bound");
    listening.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    let sending = inside(&client.namespace, || UdpSocket::bind((address(1), 0)).expect("bound"));
    let sending = sending.join().expect("bound");
    sending.send_to(b"before", (INSIDE, 7)).expect("sent");
    listening.recv_from(&mut [0; 64]).expect("it is open");
    world.publish(vec![entry(2, 1)]);
    let log = world.log();
    world.eventually("the view is in force", || {
        std::fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("view in force generation=2 registered=1 live=0")
    });
    sending.send_to(b"after", (INSIDE, 7)).expect("sent");
    assert!(listening.recv_from(&mut [0; 64]).is_err(), "nothing comes");
    client.down();
    client.up();
    assert!(!client.pings(INSIDE), "and no new handshake");
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_with_the_same_range_and_clients_with_the_same_address_are_apart() {
    let mut world = World::new();
    let (one, two) = (world.network(&vpc(1), INSIDE), world.network(&vpc(2), INSIDE));
    let mut second = entry(2, 2);
    second.address = address(1);
    world.publish(vec![entry(1, 1), second]);
    world.start();
    let (first, other) = (world.client(1, RANGE), world.client(2, RANGE));
    // The second client's file has the first one's address.
    sh(&format!("sed -i s,{}/32,{}/32, {}", address(2), address(1), other.config().display()));
    first.up();
    other.up();
    for (client, network, name) in [(&first, &one, "one"), (&other, &two, "two")] {
        world.eventually("a ping is answered", || client.pings(INSIDE));
        let at = INSIDE;
        let listener = inside(network, move || std::net::TcpListener::bind((at, 80)).expect("bound"));
        let listener = listener.join().expect("bound");
        let greeting = std::thread::spawn(move || {
            let (mut stream, from) = listener.accept().expect("accepted");
            std::io::Write::write_all(&mut stream, name.as_bytes()).expect("written");
            from.ip()
        });
        let said = inside(&client.namespace, move || {
            let mut text = String::new();
            let mut stream = std::net::TcpStream::connect((at, 80)).expect("connected");
            std::io::Read::read_to_string(&mut stream, &mut text).expect("read");
            text
        });
        assert_eq!(said.join().expect("said"), name);
        assert_eq!(greeting.join().expect("greeted"), Ipv4Addr::from_bits(address(1).to_bits()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_comes_back_after_the_server_was_killed() {
    let mut world = World::new();
    world.network(&vpc(1), INSIDE);
    world.publish(vec![entry(1, 1)]);
    world.start();
    let client = world.client(1, RANGE);
    client.up();
    world.eventually("a ping is answered", || client.pings(INSIDE));
    world.kill();
    assert!(!client.pings(INSIDE));
    world.start();
    let begun = Instant::now();
    world.eventually("a new handshake", || client.pings(INSIDE));
    // A client that hears nothing for 15 s asks for new keys (protocol, section 6.5), and tries again after 5.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_whose_tun_is_lost_gets_another() {
    let mut world = World::new();
    let network = world.network(&vpc(1), INSIDE);
    world.publish(vec![entry(1, 1)]);
    world.start();
    let client = world.client(1, RANGE);
    client.up();
    world.eventually("a ping is answered", || client.pings(INSIDE));
    sh(&format!("ip -n {network} link del gtun0"));
    world.bring_up(&network);
    world.eventually("through the new one", || client.pings(INSIDE));
    let counted = world.stop();
    assert_eq!(number(&counted, "handshakes"), 1, "the session went on: {counted}");
}

/// Ten thousand initiations a second, each with a sound first MAC, from two hundred prefixes of the Internet.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_handshakes_neither_stops_a_session_nor_keeps_a_new_one_out() {
    let mut world = World::new();
    let network = world.network(&vpc(1), INSIDE);
    world.publish(vec![entry(1, 1), entry(2, 1)]);
    world.start();
    let (client, late) = (world.client(1, RANGE), world.client(2, RANGE));
    client.up();
    world.eventually("a ping is answered", || client.pings(INSIDE));
    sh(&format!("ip -n {} route add local 198.18.0.0/15 dev lo", world.router()));
    let flooding = Arc::new(AtomicBool::new(true));
    let flood = inside(&world.router(), {
        let flooding = Arc::clone(&flooding);
        move || {
            let sockets: Vec<UdpSocket> = (0..200u8)
                .map(|prefix| UdpSocket::bind((Ipv4Addr::new(198, 18, prefix, 1), 0)).expect("bound"))
                .collect();
            // Of keys that nobody registered: the server has to compute to see it.
            let messages: Vec<Vec<u8>> =
                (1000..1100).map(|number| Client::new(number).initiation()).collect();
            let (mut sent, begun) = (0u64, Instant::now());
            while flooding.load(Ordering::Relaxed) {
                for (socket, message) in sockets.iter().zip(messages.iter().cycle()) {
                    // What the host's queue does not take is lost, as it is on the Internet.
                    sent += u64::from(socket.send_to(message, (HOST, PORT)).is_ok());
                }
                let due = Duration::from_micros(sent * 100);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            (sent, begun.elapsed())
        }
    });
    let began = Instant::now();
    transfer((&network, INSIDE), &client.namespace, 20_000_000);
    late.up();
    world.eventually("a new client gets in", || late.pings(INSIDE));
    while began.elapsed() < Duration::from_secs(2) {
        transfer((&network, INSIDE), &client.namespace, 5_000_000);
    }
    flooding.store(false, Ordering::Relaxed);
    let (sent, took) = flood.join().expect("flooded");
    let counted = world.stop();
    println!("{sent} initiations in {took:?}: {counted}");
    assert!(sent > 5000, "{sent} is no flood");
    let seconds = took.as_secs() + 1;
    let computed = number(&counted, "dropped_unknown_key") + number(&counted, "handshakes");
    let most = u64::from(ALL.burst) + u64::from(ALL.per_second) * seconds;
    assert!(computed <= most, "{computed} of {sent} were computed, {most} may be");
    assert!(number(&counted, "answered_cookie") > 0, "{counted}");
}

/// A counter's value in a line of the log.
fn number(line: &str, name: &str) -> u64 {
    let behind = line.split_once(&format!("\"{name}\": ")).map_or("0", |(_, rest)| rest);
    behind.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
}
