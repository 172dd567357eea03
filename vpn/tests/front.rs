//! The socket and TUNs alone: runs arrive as the datagrams that they are made of, also where the kernel does not cut
//! them; a TUN that somebody else has opened is set up without any right.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;
use support::world::{inside, sh, succeeds};
use vpn::io::front::Front;
use vpn::pure::count::Counts;
use vpn::pure::runs::{Endpoint, Runs};

fn send(front: &Front, to: SocketAddr, sizes: &[usize]) -> Counts {
    let (mut runs, mut counts) = (Runs::default(), Counts::default());
    for (number, size) in sizes.iter().enumerate() {
        runs.room(*size).expect("room")[..*size].fill(u8::try_from(number).expect("few"));
        runs.push(Endpoint { remote: to, local: None }, *size);
    }
    for (run, bytes) in runs.iter() {
        front.outlet().send(run, bytes, &mut counts);
    }
    counts
}

fn got(socket: &UdpSocket) -> (usize, u8) {
    let mut bytes = [0; 2000];
    let (length, _) = socket.recv_from(&mut bytes).expect("it came");
    assert!(bytes[..length].iter().all(|byte| *byte == bytes[0]));
    (length, bytes[0])
}

#[test]
fn runs_arrive_one_by_one_and_answers_are_handed_out_so() {
    let mut front = Front::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
    let client = UdpSocket::bind("127.0.0.1:0").expect("bound");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
    let sizes: Vec<usize> = [1312; 20].into_iter().chain([700, 148, 148, 92]).collect();
    let counts = send(&front, client.local_addr().expect("bound"), &sizes);
    assert!(counts.snapshot().is_empty(), "{:?}", counts.snapshot());
    for (number, size) in sizes.iter().enumerate() {
        assert_eq!(got(&client), (*size, u8::try_from(number).expect("few")));
    }
    for number in 0..30u8 {
        client
            .send_to(&vec![number; 100 + usize::from(number)], front.local().expect("bound"))
            .expect("sent");
    }
    let mut seen = Vec::new();
    while seen.len() < 30 {
        front
            .receive(|from, datagram| {
                assert_eq!(from.remote, client.local_addr().expect("bound"));
                assert_eq!(from.local, Some([127, 0, 0, 1].into()));
                seen.push((datagram.len(), datagram[0]));
            })
            .expect("received");
    }
    assert!(seen.iter().enumerate().all(|(n, (length, byte))| *length == 100 + n && usize::from(*byte) == n));
}

#[test]
fn a_socket_that_is_handed_over_is_used_and_anything_else_is_not() {
    let ours = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let front = Front::inherited(ours.as_fd()).expect("usable").expect("it is one");
    assert_eq!(front.local().expect("bound"), ours.local_addr().expect("bound"));
    let counts = send(&front, ours.local_addr().expect("bound"), &[100]);
    assert!(counts.snapshot().is_empty(), "{:?}", counts.snapshot());
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    assert!(Front::inherited(other.as_fd()).expect("looked at").is_none());
    let file = std::fs::File::open("/dev/null").expect("opened");
    assert!(Front::inherited(file.as_fd()).expect("looked at").is_none());
}

/// A way whose packets are smaller than the run's datagrams: the kernel does not make such segments (`EINVAL`). One by
/// one they are cut into fragments on the way and arrive.
#[test]
fn what_the_kernel_does_not_cut_is_sent_one_by_one() {
    let name = format!("vf{}", std::process::id());
    sh(&format!("ip netns add {name}; ip -n {name} link set lo mtu 1300 up"));
    let result = inside(&name, || {
        let front = Front::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
        let client = UdpSocket::bind("127.0.0.1:0").expect("bound");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        let to = client.local_addr().expect("bound");
        let counts = send(&front, to, &[1400, 1400, 900]);
        assert!(counts.snapshot().is_empty(), "{:?}", counts.snapshot());
        assert_eq!([got(&client), got(&client), got(&client)], [(1400, 0), (1400, 1), (900, 2)]);
        let counts = send(&front, to, &[1000, 1000, 500]);
        assert!(counts.snapshot().is_empty(), "and later runs too: {:?}", counts.snapshot());
        assert_eq!([got(&client), got(&client), got(&client)], [(1000, 0), (1000, 1), (500, 2)]);
    })
    .join();
    assert!(succeeds(&format!("ip netns del {name}")));
    result.expect("as said");
}

#[test]
fn a_tun_from_elsewhere_is_set_up_without_any_right() {
    let name = format!("vt{}", std::process::id());
    sh(&format!("ip netns add {name}"));
    let result = inside(&name, || {
        let queue = vpn::sys::tun::open("gtun0").expect("root makes it");
        let nobody = rustix::process::Uid::from_raw(65_534);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
        assert!(vpn::sys::tun::open("gtun1").is_err(), "no right is left");
        vpn::sys::tun::prepare(&queue).expect("set up");
        let other = std::fs::File::open("/dev/null").expect("there");
        assert!(vpn::sys::tun::prepare(&other).is_err(), "no TUN");
    })
    .join();
    assert!(succeeds(&format!("ip netns del {name}")));
    result.expect("as said");
}

/// A host with several addresses answers from the one that the client knows, by both families on one socket.
#[test]
fn answers_come_from_the_address_that_was_asked() {
    for (listen, asked) in
        [("0.0.0.0:0", "127.0.0.2"), ("0.0.0.0:0", "127.0.0.1"), ("[::]:0", "127.0.0.3"), ("[::]:0", "::1")]
    {
        let mut front = Front::bind(listen.parse().expect("address")).expect("bound");
        let client =
            UdpSocket::bind(if asked.contains(':') { "[::1]:0" } else { "127.0.0.1:0" }).expect("bound");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
        // Connected: what comes from elsewhere is not seen.
        client.connect((asked, front.local().expect("bound").port())).expect("connected");
        client.send(b"question").expect("sent");
        let mut from = None;
        while from.is_none() {
            front.receive(|endpoint, _| from = Some(endpoint)).expect("received");
        }
        let (mut runs, mut counts) = (Runs::default(), Counts::default());
        for size in [500, 500, 100] {
            runs.room(size).expect("room")[..size].fill(1);
            runs.push(from.expect("asked"), size);
        }
        for (run, bytes) in runs.iter() {
            front.outlet().send(run, bytes, &mut counts);
        }
        let sizes =
            [(); 3].map(|()| client.recv(&mut [0; 1000]).unwrap_or_else(|e| panic!("{listen} {asked}: {e}")));
        assert_eq!(sizes, [500, 500, 100]);
        assert!(counts.snapshot().is_empty());
    }
}

/// A host whose address was replaced goes on with the other one, before its client has heard of it.
#[test]
fn answers_come_from_another_address_when_the_one_that_was_asked_is_gone() {
    let name = format!("vg{}", std::process::id());
    sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
    sh(&format!(
        "for a in 10.9.0.1/32 10.9.0.2/32 fd00::1/128 fd00::2/128; do ip -n {name} addr add $a dev lo; done"
    ));
    let space = name.clone();
    let result = inside(&name, move || {
        for asked in ["10.9.0.1", "fd00::1"] {
            let mut front = Front::bind("[::]:0".parse().expect("address")).expect("bound");
            let other = if asked.contains(':') { "[fd00::2]:0" } else { "10.9.0.2:0" };
            let client = UdpSocket::bind(other).expect("bound");
            client.set_read_timeout(Some(Duration::from_secs(10))).expect("set");
            let at = front.local().expect("bound").port();
            client.send_to(b"question", (asked, at)).expect("sent");
            let mut from = None;
            while from.is_none() {
                front.receive(|endpoint, _| from = Some(endpoint)).expect("received");
            }
            sh(&format!("ip -n {space} addr del {asked} dev lo"));
            let (mut runs, mut counts) = (Runs::default(), Counts::default());
            for size in [500, 500, 100] {
                runs.room(size).expect("room")[..size].fill(1);
                runs.push(from.expect("asked"), size);
            }
            for (run, bytes) in runs.iter() {
                front.outlet().send(run, bytes, &mut counts);
            }
            assert!(counts.snapshot().is_empty(), "{:?}", counts.snapshot());
            for size in [500, 500, 100] {
                let (length, now) = client.recv_from(&mut [0; 1000]).expect("it came");
                assert_eq!((length, now.ip()), (size, client.local_addr().expect("bound").ip()));
            }
        }
    })
    .join();
    assert!(succeeds(&format!("ip netns del {name}")));
    result.expect("as said");
}
