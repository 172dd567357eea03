//! What stands in the Internet of a test, and what a guest does with it.

use super::{DNS, PATIENCE, SERVER, inside};
use model::net::GATEWAY_IPV6;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Longest that a guest waits for what must come.
const LONG: Duration = Duration::from_secs(30);
/// Longest that a guest waits for what must not come: a SYN, and its first repetition a second later.
const SHORT: Duration = Duration::from_millis(1500);

/// A TCP server in a namespace that says each caller's address and closes.
pub fn whoami(namespace: &str, address: SocketAddr) {
    let (ready, waiting) = std::sync::mpsc::channel();
    inside(namespace, move || {
        let listener = TcpListener::bind(address).expect("bound");
        ready.send(()).expect("somebody waits");
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let peer = stream.peer_addr().expect("a peer").ip();
            // The caller may have gone.
            drop(stream.write_all(peer.to_string().as_bytes()));
        }
    });
    waiting.recv().expect("listens");
}

/// A TCP server in a namespace that says this to each caller and closes.
pub fn says(namespace: &str, address: SocketAddr, text: &'static str) {
    let (ready, waiting) = std::sync::mpsc::channel();
    inside(namespace, move || {
        let listener = TcpListener::bind(address).expect("bound");
        ready.send(()).expect("somebody waits");
        for stream in listener.incoming() {
            // The caller may have gone.
            drop(stream.expect("accepted").write_all(text.as_bytes()));
        }
    });
    waiting.recv().expect("listens");
}

/// A UDP server that sends back what it gets, of any length.
pub fn echo_udp(namespace: &str, address: SocketAddr) {
    let (ready, waiting) = std::sync::mpsc::channel();
    inside(namespace, move || {
        let socket = UdpSocket::bind(address).expect("bound");
        ready.send(()).expect("somebody waits");
        let mut bytes = vec![0; 1 << 16];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).expect("received");
            // An error may be told here of an earlier answer, and the caller asks again.
            drop(socket.send_to(&bytes[..length], from));
        }
    });
    waiting.recv().expect("listens");
}

/// Sends a datagram again and again until it comes back. A path's MTU is found by losing one.
pub fn echoes(to: SocketAddr, length: usize) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("bound");
    socket.connect(to).expect("a route");
    socket.set_read_timeout(Some(Duration::from_millis(500))).expect("set");
    let (sent, mut back) = (vec![7; length], vec![0; 1 << 16]);
    (0..20).any(|_| {
        // "Message too long" is what the path said of the one before.
        drop(socket.send(&sent));
        socket.recv(&mut back).is_ok_and(|length| back[..length] == sent)
    })
}

/// A UDP server that answers with the caller's address.
pub fn whoami_udp(namespace: &str, address: SocketAddr) {
    let (ready, waiting) = std::sync::mpsc::channel();
    inside(namespace, move || {
        let socket = UdpSocket::bind(address).expect("bound");
        ready.send(()).expect("somebody waits");
        let mut bytes = [0; 1500];
        loop {
            let (_, from) = socket.recv_from(&mut bytes).expect("received");
            socket.send_to(from.ip().to_string().as_bytes(), from).expect("sent");
        }
    });
    waiting.recv().expect("listens");
}

/// A name server that says that every name is [`SERVER`], over UDP and TCP.
pub fn name_server(namespace: &str) {
    let (ready, waiting) = std::sync::mpsc::channel();
    let also = ready.clone();
    inside(namespace, move || {
        let socket = UdpSocket::bind((DNS, 53)).expect("bound");
        ready.send(()).expect("somebody waits");
        let mut bytes = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut bytes).expect("received");
            socket.send_to(&name_answer(&bytes[..length]), from).expect("sent");
        }
    });
    inside(namespace, move || {
        let listener = TcpListener::bind((DNS, 53)).expect("bound");
        also.send(()).expect("somebody waits");
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            let mut length = [0; 2];
            stream.read_exact(&mut length).expect("a length");
            let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut bytes).expect("a question");
            let answer = name_answer(&bytes);
            let framed = [&(answer.len() as u16).to_be_bytes()[..], &answer].concat();
            stream.write_all(&framed).expect("sent");
        }
    });
    waiting.recv().expect("listens");
    waiting.recv().expect("listens");
}

/// The header of the question turned into an answer, the question, and one address record (RFC 1035 section 4).
fn name_answer(question: &[u8]) -> Vec<u8> {
    let name_end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name") + 1;
    let mut answer = question[..name_end + 4].to_vec();
    answer[2] |= 0x80;
    answer[3] = 0x80;
    answer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    answer.extend(SERVER.octets());
    answer
}

/// Connects and reads all that is said.
pub fn ask_tcp(to: SocketAddr) -> String {
    let mut stream = TcpStream::connect_timeout(&to, LONG).expect("connected");
    stream.set_read_timeout(Some(LONG)).expect("set");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("said");
    text
}

/// Whether a TCP connection is made within a short time. A refusal is an answer, too, and none may come.
pub fn reaches_tcp(to: SocketAddr) -> bool {
    match TcpStream::connect_timeout(&to, SHORT) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
    }
}

/// Sends a datagram and reads the answer.
pub fn ask_udp(to: SocketAddr) -> String {
    let socket = UdpSocket::bind(any_of(to)).expect("bound");
    socket.set_read_timeout(Some(LONG)).expect("set");
    socket.send_to(b"who", to).expect("sent");
    let mut bytes = [0; 1500];
    let (length, _) = socket.recv_from(&mut bytes).expect("answered");
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// Whether a datagram is answered within a short time.
pub fn reaches_udp(to: SocketAddr) -> bool {
    let socket = UdpSocket::bind(any_of(to)).expect("bound");
    socket.set_read_timeout(Some(SHORT)).expect("set");
    socket.send_to(b"who", to).expect("sent");
    socket.recv_from(&mut [0; 1500]).is_ok()
}

/// Any address of the family of this one.
fn any_of(to: SocketAddr) -> SocketAddr {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    SocketAddr::from((any, 0))
}

/// The same as [`pings`] by IPv6 (RFC 4443). The kernel fills in the checksum, and takes IPv6's header away.
pub fn pings_ipv6(to: Ipv6Addr, count: u16, wait: Duration) -> usize {
    let mut socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("raw socket");
    socket.connect(&SocketAddr::from((to, 0)).into()).expect("a route");
    for sequence in 1..=count {
        let [high, low] = sequence.to_be_bytes();
        socket.send(&[128, 0, 0, 0, 0x47, 0x48, high, low]).expect("sent");
    }
    socket.set_read_timeout(Some(wait)).expect("set");
    let (mut answers, mut bytes) = (0, [0; 1500]);
    while answers < usize::from(count) {
        match socket.read(&mut bytes) {
            Ok(length) if length > 0 && bytes[0] == 129 => answers += 1,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    answers
}

/// Asks for the gateway in its group with an address of one's own, as a system does before its first packet (RFC 4861
/// section 7.2.2), until it answers.
pub fn ask_for_gateway(own: Ipv6Addr, nic: u32) {
    const SOLICITATION: u8 = 135;
    const ADVERTISEMENT: u8 = 136;
    let mut socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).expect("raw socket");
    socket.set_multicast_hops_v6(255).expect("set");
    socket.bind(&SocketAddr::from((own, 0)).into()).expect("bound");
    socket.set_read_timeout(Some(SHORT)).expect("set");
    let group = SocketAddrV6::new("ff02::1:ff00:1".parse().expect("a group"), 0, 0, nic);
    let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &GATEWAY_IPV6.octets()].concat();
    let (begun, mut bytes) = (Instant::now(), [0; 1500]);
    while begun.elapsed() < PATIENCE {
        socket.send_to(&message, &SocketAddr::V6(group).into()).expect("sent");
        while let Ok(length) = socket.read(&mut bytes) {
            if length >= 24 && bytes[0] == ADVERTISEMENT && bytes[8..24] == GATEWAY_IPV6.octets() {
                return;
            }
        }
    }
    panic!("the gateway does not answer {own}");
}

/// Sends echo requests (RFC 792) and counts the answers that come within `wait` after the last.
pub fn pings(to: Ipv4Addr, count: u16, wait: Duration) -> usize {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).expect("raw socket");
    socket.connect(&SocketAddr::from((to, 0)).into()).expect("a route");
    for sequence in 1..=count {
        let mut packet = [8, 0, 0, 0, 0x47, 0x48, 0, 0];
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        socket.send(&packet).expect("sent");
    }
    socket.set_read_timeout(Some(wait)).expect("set");
    let mut answers = 0;
    let mut socket = socket;
    let mut bytes = [0; 1500];
    while answers < usize::from(count) {
        match socket.read(&mut bytes) {
            Ok(length) if length > 20 && bytes[20] == 0 => answers += 1,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    answers
}

/// Asks a name server for the address of example.com, over UDP or TCP.
pub fn resolve(server: Ipv4Addr, tcp: bool) -> Option<Ipv4Addr> {
    let (code, address) = look_up(server, "example.com", 1, tcp)?;
    address.filter(|_| code == 0).map(Ipv4Addr::from)
}

/// Asks a name server for a record of a kind (RFC 1035 section 3.2.2). Its code, and the last four octets of an answer
/// that has a record.
pub fn look_up(server: Ipv4Addr, name: &str, kind: u8, tcp: bool) -> Option<(u8, Option<[u8; 4]>)> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.extend([0, 0, kind, 0, 1]);
    let answer = if tcp {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, 53)), LONG).ok()?;
        stream.set_read_timeout(Some(LONG)).expect("set");
        stream.write_all(&(question.len() as u16).to_be_bytes()).ok()?;
        stream.write_all(&question).ok()?;
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut bytes).ok()?;
        bytes
    } else {
        let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.set_read_timeout(Some(LONG)).expect("set");
        socket.send_to(&question, (server, 53)).ok()?;
        let mut bytes = [0; 1500];
        let (length, from) = socket.recv_from(&mut bytes).ok()?;
        assert_eq!(from.ip(), IpAddr::V4(server));
        bytes[..length].to_vec()
    };
    assert_eq!(answer[..2], question[..2], "the guest's own id");
    let octets: [u8; 4] = answer[answer.len() - 4..].try_into().expect("four");
    Some((answer[3] & 0x0f, (answer[7] > 0).then_some(octets)))
}
