//! The metadata address through the queues of the NIC, with the host's clock.

use super::*;
use crate::devices::harness::HIGH;
use crate::devices::net::MetadataContent;
use crate::devices::net::metadata::guest::Guest;
use model::net::{GATEWAY_MAC, METADATA_IPV4};
use std::time::Duration;

/// Buffers of the guest for what it receives, of this many bytes each.
const BUFFERS: u64 = 60;
const BUFFER: u64 = 2048;
/// A header that leaves the checksum of a TCP segment to the device (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
const PARTIAL: [u8; VNET_HEADER] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
/// The same for a segment that the device is to cut (`VIRTIO_NET_HDR_GSO_TCPV4`, 1460 bytes each).
const LARGE: [u8; VNET_HEADER] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];

/// A NIC with its driver.
struct Machine {
    rig: Rig<Net>,
    peer: OwnedFd,
    shared: NetShared,
    /// Where the buffer of each descriptor is.
    buffers: Vec<u64>,
}

impl Machine {
    fn new() -> Self {
        let shared = NetShared::default();
        shared.metadata.replace(MetadataContent {
            instance_id: "vm-1".to_owned(),
            hostname: "box".to_owned(),
            ipv4: "10.0.0.2".parse().unwrap(),
            mac: MAC,
            ssh_keys: vec!["ssh-ed25519 AAAA a".to_owned()],
            user_data: Some("0123456789abcdef".repeat(1024)),
        });
        let (rig, peer) = nic_with(ALL, &shared);
        Self { rig, peer, shared, buffers: vec![0; 256] }
    }

    fn lend(&mut self, addr: u64) {
        let head = self.rig.lend(RX, &[writable(addr, BUFFER as u32)]);
        self.buffers[usize::from(head)] = addr;
    }

    fn lend_all(&mut self) {
        for n in 0..BUFFERS {
            self.lend(DATA + n * BUFFER);
        }
    }

    /// Sends frames of the guest.
    fn send(&mut self, header: [u8; VNET_HEADER], frames: &[Vec<u8>]) {
        for frame in frames {
            let frame = [&header[..], frame].concat();
            self.rig.put(HIGH, &frame);
            self.rig.lend(TX, &[readable(HIGH, frame.len() as u32)]);
            self.rig.kick(TX).unwrap();
            assert_eq!(self.rig.used(TX).len(), 1);
        }
    }

    /// Takes the frames for the guest and lends their buffers again.
    fn received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for (head, len) in self.rig.used(RX) {
            let addr = self.buffers[usize::from(head)];
            let mut frame = self.rig.get(addr, len as usize);
            assert_eq!(frame[NUM_BUFFERS_AT..VNET_HEADER], [1, 0]);
            frame[NUM_BUFFERS_AT..VNET_HEADER].fill(0);
            frames.push(frame);
            self.lend(addr);
        }
        self.rig.kick(RX).unwrap();
        frames
    }

    fn fetch(&mut self, guest: &mut Guest, header: [u8; VNET_HEADER], pieces: &[&[u8]]) -> String {
        let answer = guest.fetch(pieces, |frames| {
            self.send(header, &frames);
            self.received()
        });
        String::from_utf8(answer).unwrap()
    }
}

fn syn(port: u16) -> Vec<u8> {
    let mut frame = [&GATEWAY_MAC.0[..], &MAC.0, &[8, 0]].concat();
    frame.extend([0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
    frame.extend(METADATA_IPV4.octets());
    frame.extend(port.to_be_bytes());
    frame.extend([0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 16, 0, 0, 0, 0, 0]);
    frame
}

#[test]
fn a_guest_fetches_each_path_and_nothing_of_it_is_on_the_wire_or_counts() {
    let mut machine = Machine::new();
    machine.lend_all();
    let mut guest = Guest::new(MAC, 1500);
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").into_bytes();
    for (path, body) in [
        ("/latest/meta-data/instance-id", "vm-1".to_owned()),
        ("/latest/meta-data/hostname", "box".to_owned()),
        ("/latest/meta-data/local-ipv4", "10.0.0.2".to_owned()),
        ("/latest/meta-data/mac", MAC.to_string()),
        ("/latest/meta-data/public-keys/0/openssh-key", "ssh-ed25519 AAAA a\n".to_owned()),
        ("/v1/ssh-keys", "ssh-ed25519 AAAA a\n".to_owned()),
        ("/latest/user-data", "0123456789abcdef".repeat(1024)),
    ] {
        let request = get(path);
        let whole = machine.fetch(&mut guest, PARTIAL, &[&request]);
        assert!(whole.starts_with("HTTP/1.1 200 OK\r\n"), "{whole}");
        assert_eq!(whole.split_once("\r\n\r\n").unwrap().1, body);
        let letters: Vec<&[u8]> = request.chunks(7).collect();
        assert_eq!(machine.fetch(&mut guest, PARTIAL, &letters), whole);
        assert_eq!(machine.fetch(&mut guest, LARGE, &[&request]), whole);
    }
    assert!(machine.fetch(&mut guest, PARTIAL, &[&get("/nothing")]).starts_with("HTTP/1.1 404 "));
    assert_eq!(receive(&machine.peer), Err(Errno::AGAIN));
    assert_eq!(machine.shared.activity.bytes(), 0);
}

#[test]
fn answers_wait_for_buffers_up_to_a_bound_and_the_wire_is_not_forgotten() {
    let mut machine = Machine::new();
    let frames: Vec<_> = (1..=200).map(syn).collect();
    machine.send(PARTIAL, &frames);
    assert!(machine.rig.counters.get(Counter::NetMetadataBusy) > 100);
    rustix::io::write(&machine.peer, &frame(MAC, 0x0800, 100)).unwrap();
    machine.lend_all();
    machine.rig.kick(RX).unwrap();
    let mut frames = machine.received();
    frames.extend(machine.received());
    assert!(frames.iter().any(|frame| frame.len() == VNET_HEADER + 114), "the frame of the network");
    assert!(frames.len() > 60, "{} frames", frames.len());
}

#[test]
fn link_local_addresses_are_not_on_the_wire_save_the_gateway() {
    let mut machine = Machine::new();
    machine.lend_all();
    let to = |address: [u8; 4]| {
        let mut frame = syn(1);
        frame[30..34].copy_from_slice(&address);
        frame
    };
    let asks = |address: [u8; 4]| {
        let mut frame = [&[0xff; 6][..], &MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &MAC.0].concat();
        frame.extend([10, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
        frame.extend(address);
        frame
    };
    let nobody = [169, 254, 7, 7];
    let metadata = METADATA_IPV4.octets();
    machine.send([0; VNET_HEADER], &[to(nobody), asks(nobody), asks(metadata)]);
    assert_eq!(machine.rig.counters.get(Counter::NetLinkLocal), 2);
    assert_eq!(receive(&machine.peer), Err(Errno::AGAIN));
    let answers = machine.received();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0][24..26], [8, 6]);
    assert_eq!(answers[0][34..40], GATEWAY_MAC.0);
    let gateway = [169, 254, 1, 1];
    machine.send([0; VNET_HEADER], &[to(gateway), asks(gateway)]);
    assert!(receive(&machine.peer).is_ok() && receive(&machine.peer).is_ok());
    assert_eq!(machine.shared.activity.bytes(), 54);
}

#[test]
fn nobody_on_the_network_speaks_for_the_metadata_address() {
    let mut machine = Machine::new();
    let mut forged = [&[0; VNET_HEADER][..], &syn(1)].concat();
    forged[38..42].copy_from_slice(&METADATA_IPV4.octets());
    // Into one buffer that is too small for all frames, and straight into the guest's.
    machine.lend(DATA);
    rustix::io::write(&machine.peer, &forged).unwrap();
    machine.rig.kick(RX).unwrap();
    for n in 1..BUFFERS {
        machine.lend(DATA + n * BUFFER);
    }
    rustix::io::write(&machine.peer, &forged).unwrap();
    rustix::io::write(&machine.peer, &frame(MAC, 0x0800, 100)).unwrap();
    machine.rig.kick(RX).unwrap();
    assert_eq!(machine.rig.used(RX), [(0, 126)]);
    assert_eq!(machine.rig.counters.get(Counter::NetRxMetadataSource), 2);
}

#[test]
fn the_timer_wakes_the_device_to_say_it_again() {
    let mut machine = Machine::new();
    machine.lend_all();
    machine.send(PARTIAL, &[syn(1)]);
    assert_eq!(machine.received().len(), 1);
    let timer = machine.rig.device.responder.timer();
    let mut ready = [rustix::event::PollFd::from_borrowed_fd(timer, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut ready, Some(&patience)).unwrap(), 1, "the timer is not set");
    machine.rig.source(1).unwrap();
    assert_eq!(machine.received().len(), 1);
}

#[test]
fn a_reset_or_a_restored_state_knows_no_connection() {
    let mut machine = Machine::new();
    let mut guest = Guest::new(MAC, 1500);
    let handle = guest.connect();
    let frames = guest.exchange(Duration::ZERO, Vec::new());
    machine.lend_all();
    machine.send(PARTIAL, &frames);
    let answers = machine.received();
    let frames = guest.exchange(Duration::ZERO, answers);
    assert!(guest.socket(handle).may_send());
    let state = machine.rig.device.save();
    assert_eq!(state, DeviceState::Net(NetState::default()));
    // The guest goes on with its connection elsewhere.
    let mut other = Machine::new();
    other.rig.device.restore(&state).unwrap();
    other.lend_all();
    other.send(PARTIAL, &frames);
    let answers = other.received();
    guest.exchange(Duration::ZERO, answers);
    assert!(!guest.socket(handle).is_open());
    machine.rig.reset();
    assert!(!machine.rig.device.responder.has_replies());
}
