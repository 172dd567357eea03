//! A guest's half of the protocol, against clients and servers on real Unix sockets.

use super::*;
use crate::devices::harness::{DATA, Rig, readable, writable};
use crate::devices::vsock::packet::{HOST_CID, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const CID: u64 = 3;
const TX_PACKET: u64 = DATA;
/// Room for the packets to the guest: as many as the driver keeps lent.
const RX_PACKETS: u64 = 0x4_0000;
const RX_SIZE: u64 = 4096 + HEADER as u64;
const RX_LENT: u16 = 128;
const ROOM: u32 = 64 * 1024;

struct Guest {
    rig: Rig<Vsock>,
    folder: tempfile::TempDir,
    next_rx: u64,
}

impl Guest {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let device = Vsock::bind(CID, &folder.path().join("vsock")).unwrap();
        let mut guest = Self { rig: Rig::new(device), folder, next_rx: 0 };
        for n in 0..RX_LENT {
            guest.lend_rx(u64::from(n));
        }
        guest
    }

    fn path(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("vsock{suffix}"))
    }

    fn lend_rx(&mut self, slot: u64) {
        self.rig.lend(RX, &[writable(RX_PACKETS + slot * RX_SIZE, RX_SIZE as u32)]);
    }

    fn client(&self) -> UnixStream {
        let client = UnixStream::connect(self.path("")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    /// Sends a packet.
    fn send(&mut self, header: Header, data: &[u8]) {
        let header =
            Header { src_cid: CID, dst_cid: HOST_CID, kind: TYPE_STREAM, len: data.len() as u32, ..header };
        let header =
            Header { buf_alloc: if header.buf_alloc == 0 { ROOM } else { header.buf_alloc }, ..header };
        self.rig.put(TX_PACKET, &header.to_bytes());
        self.rig.put(TX_PACKET + HEADER as u64, data);
        self.rig.lend(TX, &[readable(TX_PACKET, (HEADER + data.len()) as u32)]);
        self.rig.kick(TX).unwrap();
        assert_eq!(self.rig.used(TX).len(), 1);
    }

    /// Lets the device look at its sockets and takes what came to the guest.
    fn receive(&mut self) -> Vec<(Header, Vec<u8>)> {
        self.rig.source(MUXER).unwrap();
        self.rig.kick(RX).unwrap();
        let mut packets = Vec::new();
        for (_, len) in self.rig.used(RX) {
            let slot = self.next_rx % u64::from(RX_LENT);
            let bytes = self.rig.get(RX_PACKETS + slot * RX_SIZE, len as usize);
            let header = Header::parse(&bytes[..HEADER].try_into().unwrap());
            packets.push((header, bytes[HEADER..].to_vec()));
            self.next_rx += 1;
            self.lend_rx(slot);
        }
        packets
    }

    fn receive_one(&mut self) -> (Header, Vec<u8>) {
        let packets = self.receive();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.into_iter().next().unwrap()
    }

    /// A client's connection to port 52 that the guest has accepted.
    fn connected(&mut self) -> (UnixStream, Header) {
        let mut client = self.client();
        client.write_all(b"CONNECT 52\n").unwrap();
        self.rig.source(MUXER).unwrap();
        let (request, _) = self.receive_one();
        assert_eq!(request.op, Op::Request as u16);
        let answer =
            Header { src_port: 52, dst_port: request.src_port, op: Op::Response as u16, ..Header::default() };
        self.send(answer, &[]);
        let mut line = [0; 14];
        client.read_exact(&mut line).unwrap();
        assert_eq!(line, *format!("OK {}\n", request.src_port).as_bytes());
        (client, answer)
    }
}

fn op(template: Header, op: Op) -> Header {
    Header { op: op as u16, ..template }
}

#[test]
fn a_client_reaches_a_port_of_the_guest_and_both_speak() {
    let mut guest = Guest::new();
    let (mut client, template) = guest.connected();
    client.write_all(b"question").unwrap();
    let (header, data) = guest.receive_one();
    assert_eq!((header.op, header.src_port, header.dst_port), (Op::Data as u16, template.dst_port, 52));
    assert_eq!((header.src_cid, header.dst_cid, header.buf_alloc), (HOST_CID, CID, 128 * 1024));
    assert_eq!(data, b"question");
    guest.send(op(template, Op::Data), b"answer");
    let mut answer = [0; 6];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"answer");
}

#[test]
fn a_port_on_which_the_guest_does_not_listen_ends_the_client() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 99\n").unwrap();
    guest.rig.source(MUXER).unwrap();
    let (request, _) = guest.receive_one();
    let refusal =
        Header { src_port: 99, dst_port: request.src_port, op: Op::Reset as u16, ..Header::default() };
    guest.send(refusal, &[]);
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_client_that_says_nonsense_is_hung_up_on() {
    let mut guest = Guest::new();
    for line in ["HELLO\n", "CONNECT x\n", "CONNECT 99999999999\n", "CONNECT 1234567890123456789012345678901"]
    {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        guest.rig.source(MUXER).unwrap();
        assert!(guest.receive().is_empty());
        assert!(matches!(client.read(&mut [0; 8]), Ok(0) | Err(_)), "{line}");
    }
    assert_eq!(guest.rig.counters.get(Counter::VsockBadHandshake), 4);
}

#[test]
fn the_guest_reaches_a_socket_of_the_host_and_is_refused_where_there_is_none() {
    let mut guest = Guest::new();
    let listener = UnixListener::bind(guest.path("_1024")).unwrap();
    let template = Header { src_port: 7, dst_port: 1024, ..Header::default() };
    guest.send(op(template, Op::Request), &[]);
    let (response, _) = guest.receive_one();
    assert_eq!((response.op, response.src_port, response.dst_port), (Op::Response as u16, 1024, 7));
    guest.send(op(template, Op::Data), b"hello");
    let (mut server, _) = listener.accept().unwrap();
    let mut data = [0; 5];
    server.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"hello");
    guest.send(op(Header { dst_port: 1025, ..template }, Op::Request), &[]);
    assert_eq!(guest.receive_one().0.op, Op::Reset as u16);
    assert_eq!(guest.rig.counters.get(Counter::VsockNoListener), 1);
}

#[test]
fn data_for_the_guest_keeps_to_its_credit() {
    let mut guest = Guest::new();
    let (mut client, template) = guest.connected();
    let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    client.write_all(&sent).unwrap();
    let mut got = Vec::new();
    let mut asked = false;
    for (header, data) in guest.receive() {
        asked |= header.op == Op::CreditRequest as u16;
        got.extend(data);
    }
    assert_eq!(got.len(), ROOM as usize);
    assert!(asked, "the device asks for room when there is none");
    let update = Header { fwd_cnt: 50_000, ..op(template, Op::CreditUpdate) };
    guest.send(update, &[]);
    got.extend(guest.receive().into_iter().flat_map(|(_, data)| data));
    assert_eq!(got, sent);
}

#[test]
fn data_from_the_guest_waits_for_a_slow_client_up_to_the_credit() {
    let mut guest = Guest::new();
    let (mut client, template) = guest.connected();
    let mut sent = 0usize;
    // The client does not read: its socket fills up, and then the credit is used up.
    let mut forwarded = 0u32;
    let packet = vec![9u8; 4096];
    while sent + packet.len() - forwarded as usize <= 128 * 1024 {
        guest.send(op(template, Op::Data), &packet);
        sent += packet.len();
        for (header, _) in guest.receive() {
            forwarded = header.fwd_cnt;
        }
        if sent > 4 << 20 {
            panic!("nothing holds the guest back");
        }
    }
    // The device never tells of room it has not.
    guest.send(op(template, Op::CreditRequest), &[]);
    let (update, _) = guest.receive_one();
    assert_eq!(update.op, Op::CreditUpdate as u16);
    assert!(sent + packet.len() - update.fwd_cnt as usize > 128 * 1024);
    let mut read = vec![0; sent];
    client.set_nonblocking(true).unwrap();
    let mut done = 0;
    while done < sent {
        match client.read(&mut read[done..]) {
            Ok(n) => done += n,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                guest.receive();
            }
        }
    }
    assert!(read.iter().all(|b| *b == 9));
    guest.send(op(template, Op::CreditRequest), &[]);
    assert_eq!(guest.receive().last().unwrap().0.fwd_cnt as usize, sent);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (mut client, template) = guest.connected();
    let mut resets = 0;
    for _ in 0..2000 {
        guest.send(op(template, Op::Data), &[1; 4096]);
        resets += guest.receive().iter().filter(|(h, _)| h.op == Op::Reset as u16).count();
        if resets != 0 {
            break;
        }
    }
    assert_eq!(resets, 1);
    assert_eq!(guest.rig.counters.get(Counter::VsockCreditOverrun), 1);
    client.read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn either_side_closes_its_half_and_the_other_goes_on() {
    let mut guest = Guest::new();
    let (mut client, template) = guest.connected();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    let (header, _) = guest.receive_one();
    assert_eq!((header.op, header.flags), (Op::Shutdown as u16, SHUTDOWN_SEND));
    guest.send(op(template, Op::Data), b"still here");
    let mut data = [0; 10];
    client.read_exact(&mut data).unwrap();
    guest.send(Header { flags: SHUTDOWN_SEND | SHUTDOWN_RECEIVE, ..op(template, Op::Shutdown) }, &[]);
    assert_eq!(client.read(&mut data).unwrap(), 0);
    assert_eq!(guest.receive_one().0.op, Op::Reset as u16);

    let (mut client, template) = guest.connected();
    guest.send(Header { flags: SHUTDOWN_SEND, ..op(template, Op::Shutdown) }, &[]);
    assert_eq!(client.read(&mut data).unwrap(), 0);
    client.write_all(b"still here too").unwrap();
    assert_eq!(guest.receive_one().1, b"still here too");
    drop(client);
    let last = guest.receive();
    let (header, _) = last.last().unwrap();
    assert_eq!((header.op, header.flags), (Op::Shutdown as u16, SHUTDOWN_SEND | SHUTDOWN_RECEIVE));
    guest.send(op(template, Op::Reset), &[]);
    assert!(guest.receive().is_empty());
}

#[test]
fn what_a_client_wrote_before_it_left_reaches_the_guest() {
    let mut guest = Guest::new();
    let (mut client, template) = guest.connected();
    client.write_all(&[5; 10_000]).unwrap();
    drop(client);
    guest.send(op(template, Op::Data), b"nobody reads this");
    let packets = guest.receive();
    let data: usize = packets.iter().map(|(_, data)| data.len()).sum();
    assert_eq!(data, 10_000);
    assert_eq!(packets.last().unwrap().0.flags, SHUTDOWN_SEND | SHUTDOWN_RECEIVE);
}

#[test]
fn packets_for_nobody_are_answered_with_a_reset_and_wrong_addresses_with_nothing() {
    let mut guest = Guest::new();
    for kind in [Op::Data, Op::Response, Op::Shutdown, Op::CreditUpdate, Op::CreditRequest] {
        guest.send(Header { src_port: 1, dst_port: 2, op: kind as u16, ..Header::default() }, &[]);
        let (header, _) = guest.receive_one();
        assert_eq!((header.op, header.src_port, header.dst_port), (Op::Reset as u16, 2, 1));
    }
    guest.send(Header { op: Op::Reset as u16, ..Header::default() }, &[]);
    assert!(guest.receive().is_empty());
    let wrong = Header { src_cid: 9, dst_cid: 2, kind: TYPE_STREAM, op: 1, ..Header::default() };
    guest.rig.put(TX_PACKET, &wrong.to_bytes());
    guest.rig.lend(TX, &[readable(TX_PACKET, HEADER as u32)]);
    guest.rig.kick(TX).unwrap();
    assert!(guest.receive().is_empty());
    assert_eq!(guest.rig.counters.get(Counter::VsockBadAddress), 1);
}

#[test]
fn connections_are_bounded() {
    let mut guest = Guest::new();
    let _listener = UnixListener::bind(guest.path("_5")).unwrap();
    let mut accepted = Vec::new();
    let mut answers = (0, 0);
    for port in 0..300u32 {
        guest.send(Header { src_port: port, dst_port: 5, op: Op::Request as u16, ..Header::default() }, &[]);
        while let Some(stream) = accept_now(&_listener) {
            accepted.push(stream);
        }
        for (header, _) in guest.receive() {
            if header.op == Op::Response as u16 { answers.0 += 1 } else { answers.1 += 1 }
        }
    }
    assert_eq!(answers, (256, 44));
    assert_eq!(guest.rig.counters.get(Counter::VsockTableFull), 44);
}

fn accept_now(listener: &UnixListener) -> Option<UnixStream> {
    listener.set_nonblocking(true).unwrap();
    listener.accept().ok().map(|(stream, _)| stream)
}

#[test]
fn a_restored_guest_is_told_that_its_connections_are_gone() {
    let mut guest = Guest::new();
    let state = guest.rig.device.save();
    guest.rig.device.reset();
    guest.rig.device.restore(&state).unwrap();
    guest.rig.put(DATA, &[0xff; 8]);
    guest.rig.kick(EVENT).unwrap();
    assert_eq!(guest.rig.used(EVENT), []);
    guest.rig.lend(EVENT, &[writable(DATA, 8)]);
    guest.rig.kick(EVENT).unwrap();
    assert_eq!(guest.rig.used(EVENT), [(0, 4)]);
    assert_eq!(guest.rig.get(DATA, 8), [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    guest.rig.lend(EVENT, &[writable(DATA, 8)]);
    guest.rig.kick(EVENT).unwrap();
    assert_eq!(guest.rig.used(EVENT), []);
    let other = Vsock::bind(4, &guest.path("-other")).unwrap();
    let mut other = Rig::new(other);
    assert!(matches!(other.device.restore(&state), Err(DeviceError::Mismatch(_))));
}

#[test]
fn what_is_half_open_ends_at_its_deadline() {
    let mut guest = Guest::new();
    let mut silent = guest.client();
    let mut unanswered = guest.client();
    unanswered.write_all(b"CONNECT 52\n").unwrap();
    guest.rig.source(MUXER).unwrap();
    assert_eq!(guest.receive_one().0.op, Op::Request as u16);
    let later = Instant::now() + Duration::from_secs(11);
    let counters = std::sync::Arc::clone(&guest.rig.counters);
    assert!(guest.rig.device.muxer.next_deadline().unwrap() < later);
    guest.rig.device.muxer.expire(later, &counters);
    assert_eq!(guest.receive_one().0.op, Op::Reset as u16);
    assert_eq!(silent.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(unanswered.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(guest.rig.device.muxer.next_deadline(), None);
}
