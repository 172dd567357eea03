//! Addresses by DHCP, asked for by a real client: busybox's.

mod support;

use model::view::PortEntry;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use support::guest::Guest;
use support::servers::{ask_tcp, whoami};
use support::{HOST, PATIENCE, SERVER, World, member, port, private, sh};
use vpc::pure::names::TABLE;

const RANGE: &str = "10.0.0.0/24";

/// Sets a NIC up as Debian's and busybox's own scripts do, and notes all that was told.
const SCRIPT: &str = r#"#!/bin/sh
env > "$(dirname "$0")/$1"
case $1 in
    deconfig) ip addr flush dev $interface; ip link set $interface up;;
    bound|renew)
        ip addr replace $ip/$mask dev $interface
        set -- $staticroutes
        while [ $# -ge 2 ]; do
            if [ $2 = 0.0.0.0 ]; then ip route replace $1 dev $interface
            else ip route replace $1 via $2 dev $interface; fi
            shift 2
        done;;
esac
"#;

/// A guest whose NIC is up and has no address.
async fn bare(world: &World, port: &PortEntry) -> Guest {
    let guest = Guest::boot(world, port).await;
    sh(&format!("n=\"ip -n {}\"; $n addr flush dev eth0; $n route flush table main", guest.namespace));
    guest
}

/// Runs the client once, and gives what its script was told.
fn lease(guest: &Guest, folder: &std::path::Path, options: &str) -> Result<String, String> {
    std::fs::create_dir_all(folder).expect("folder");
    let script = folder.join("script");
    std::fs::write(&script, SCRIPT).expect("written");
    sh(&format!("chmod +x {}", script.display()));
    let client = format!(
        "ip netns exec {} busybox udhcpc -i eth0 -f -n -q -t 3 -T 2 -s {} {options}",
        guest.namespace,
        script.display()
    );
    let output = std::process::Command::new("sh").arg("-c").arg(&client).output().expect("sh starts");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        Ok(std::fs::read_to_string(folder.join("bound")).expect("told"))
    } else {
        Err(said)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_asks_gets_its_address_routes_and_names() {
    let members: Vec<PortEntry> = [5, 6].map(|last| member(1, [10, 0, 0, last], &[])).to_vec();
    let world = World::with_networks(vec![port(5, 1, &[])], vec![private(1, RANGE, &members)]).await;
    let (five, default) = (bare(&world, &members[0]).await, bare(&world, &port(5, 1, &[])).await);
    let _six = Guest::boot(&world, &members[1]).await;
    whoami(&world.internet(), SocketAddr::from((SERVER, 80)));
    for (number, (guest, options)) in [(&five, ""), (&five, "-B"), (&default, "")].into_iter().enumerate() {
        let folder = world.folder.path().join(format!("client-{number}"));
        sh(&format!("n=\"ip -n {}\"; $n addr flush dev eth0; $n route flush table main", guest.namespace));
        let asks = format!("{options} -O staticroutes -O mtu");
        let told = lease(guest, &folder, &asks).unwrap_or_else(|said| panic!("{said}"));
        let line = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        let ip = guest.port.ipv4.to_string();
        let gateway = Some("169.254.1.1");
        assert_eq!((line("ip"), line("mask"), line("router")), (Some(ip.as_str()), Some("32"), gateway));
        assert_eq!((line("dns"), line("serverid"), line("mtu")), (gateway, gateway, Some("1500")));
        assert_eq!(line("lease"), Some("3600"));
        assert_eq!(line("staticroutes"), Some("169.254.1.1/32 0.0.0.0 0.0.0.0/0 169.254.1.1"));
        assert_eq!(line("domain"), (number < 2).then_some("vpc.internal"));
        let seen = guest.run(|| ask_tcp(SocketAddr::from((SERVER, 80)))).await;
        assert_eq!(seen, HOST.to_string(), "what it was told leads to the Internet");
    }
    // An address that is another's, as of an image that was one.
    let folder = world.folder.path().join("client-wrong");
    let told = lease(&five, &folder, "-r 10.0.0.6").unwrap_or_else(|said| panic!("{said}"));
    assert!(told.contains("ip=10.0.0.5"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_asks_for_another_and_nobody_asks_too_often() {
    let members: Vec<PortEntry> = [5, 6].map(|last| member(1, [10, 0, 0, last], &[])).to_vec();
    let world = World::with_networks(vec![], vec![private(1, RANGE, &members)]).await;
    let five = bare(&world, &members[0]).await;
    let space = world.private(&world.networks[0].vpc);
    let count = |name: &str| world.counter(&space, "netdev", TABLE, name);
    // Questions as a guest sends them that says in the message that it is the other one, or itself.
    let ask = |last: u8| {
        move || {
            let socket =
                socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).expect("socket");
            socket.set_broadcast(true).expect("set");
            socket.bind_device(Some(b"eth0")).expect("bound");
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 68)).into()).expect("bound");
            let mut bytes = vec![0; 240];
            bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
            bytes[28..34].copy_from_slice(&[2, 0x67, 10, 0, 0, last]);
            bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
            bytes.extend([53, 1, 1, 255]);
            let socket = UdpSocket::from(socket);
            for _ in 0..50 {
                socket.send_to(&bytes, (Ipv4Addr::BROADCAST, 67)).expect("sent");
            }
        }
    };
    let before = count("spoofed_address");
    five.run(ask(6)).await;
    let counted = async |name: &str, least: u64| {
        let begun = Instant::now();
        while count(name) < least {
            assert!(begun.elapsed() < PATIENCE, "{name}: {}", count(name));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    counted("spoofed_address", before + 50).await;
    assert_eq!(count("too_many_dhcp"), 0);
    five.run(ask(5)).await;
    counted("too_many_dhcp", 30).await;
    assert!(lease(&five, &world.folder.path().join("client"), "-t 10").is_ok(), "and then it may ask again");
}
