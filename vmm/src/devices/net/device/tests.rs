//! Frames in both directions, over a socket and over a real TAP.

use super::*;
use crate::devices::harness::targets::MAC;
use crate::devices::harness::{DATA, Rig, readable, writable};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

mod metadata;

const ALL: u64 = 1 << abi::VIRTIO_NET_F_MRG_RXBUF | 1 << abi::VIRTIO_NET_F_GUEST_CSUM;

fn config() -> NetConfig {
    NetConfig { mac: MAC, mtu: 1500 }
}

fn nic(features: u64) -> (Rig<Net>, OwnedFd) {
    nic_with(features, &NetShared::default())
}

fn nic_with(features: u64, shared: &NetShared) -> (Rig<Net>, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, peer) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
    let net = Net::over_socket(ours, config(), shared).unwrap();
    (Rig::with_features(net, features), peer)
}

/// A frame with its header, from `source`.
fn frame(source: MacAddress, ethertype: u16, payload: usize) -> Vec<u8> {
    let mut frame = vec![0u8; VNET_HEADER];
    frame.extend([0xff; 6]);
    frame.extend(source.0);
    frame.extend(ethertype.to_be_bytes());
    frame.extend((0..payload).map(|n| n as u8));
    if let Some(first) = frame.get_mut(VNET_HEADER + ETHERNET_HEADER) {
        // The rest may be anything: a later fragment of something.
        *first = 0x45;
    }
    frame
}

fn receive(peer: &OwnedFd) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 1 << 17];
    rustix::io::read(peer, buffer.as_mut_slice()).map(|len| buffer[..len].to_vec())
}

#[test]
fn a_frame_leaves_whole_however_it_is_cut() {
    let (mut rig, peer) = nic(ALL);
    let sent = frame(MAC, 0x0800, 3000);
    rig.put(DATA, &sent);
    for cuts in [vec![3026], vec![12, 3014], vec![12, 14, 3000], vec![1, 1, 50, 100, 2874]] {
        let mut at = DATA;
        let mut chain = Vec::new();
        for len in cuts {
            chain.push(readable(at, len));
            at += u64::from(len);
        }
        rig.lend(TX, &chain);
    }
    rig.kick(TX).unwrap();
    assert_eq!(rig.used(TX).len(), 4);
    for _ in 0..4 {
        assert_eq!(receive(&peer).unwrap(), sent);
    }
    assert_eq!(rig.device.activity.bytes(), 4 * 3014);
}

#[test]
fn a_frame_from_another_address_or_of_a_wrong_length_is_dropped_and_counted() {
    let (mut rig, peer) = nic(ALL);
    let forged = frame(MacAddress([2, 0, 0, 0, 0, 2]), 0x0800, 100);
    rig.put(DATA, &forged);
    rig.lend(TX, &[readable(DATA, forged.len() as u32)]);
    rig.lend(TX, &[readable(DATA, 25)]);
    rig.lend(TX, &[readable(DATA, 70_000)]);
    rig.kick(TX).unwrap();
    assert_eq!(rig.used(TX).len(), 3);
    assert_eq!(receive(&peer), Err(Errno::AGAIN));
    assert_eq!(rig.counters.get(Counter::NetSourceMac), 1);
    assert_eq!(rig.counters.get(Counter::NetBadFrame), 2);
    assert_eq!(rig.device.activity.bytes(), 0);
}

#[test]
fn a_long_frame_fills_several_buffers_that_appear_together() {
    let (mut rig, peer) = nic(ALL);
    let sent = frame(MAC, 0x0800, 4000);
    for n in 0..60u64 {
        rig.lend(RX, &[writable(DATA + n * 1536, 1536)]);
    }
    rustix::io::write(&peer, &sent).unwrap();
    rig.kick(RX).unwrap();
    let used = rig.used(RX);
    assert_eq!(used.iter().map(|u| u.1).collect::<Vec<_>>(), [1536, 1536, 954]);
    let got = rig.get(DATA, sent.len());
    assert_eq!(got[NUM_BUFFERS_AT..VNET_HEADER], [3, 0]);
    assert_eq!(got[VNET_HEADER..], sent[VNET_HEADER..]);
    assert_eq!(rig.device.activity.bytes(), 4014);
}

const NUM_BUFFERS_AT: usize = 10;

#[test]
fn a_frame_waits_for_room_and_is_never_cut() {
    let (mut rig, peer) = nic(ALL);
    let sent = frame(MAC, 0x0806, 2000);
    rustix::io::write(&peer, &sent).unwrap();
    rig.lend(RX, &[writable(DATA, 1024)]);
    rig.kick(RX).unwrap();
    assert_eq!(rig.used(RX), []);
    let DeviceState::Net(state) = rig.device.save() else { panic!("a NIC saves a NIC") };
    assert_eq!(state.held_frame, sent);
    rig.pause_and_resume().unwrap();
    rig.lend(RX, &[writable(DATA + 1024, 4096)]);
    rig.kick(RX).unwrap();
    assert_eq!(rig.used(RX), [(0, 1024), (1, 1002)]);
    assert_eq!(rig.get(DATA + 12, 2014), sent[12..]);
    // ARP does not count.
    assert_eq!(rig.device.activity.bytes(), 0);
}

#[test]
fn buffers_that_hold_no_frame_are_taken_again_after_a_pause() {
    let (mut rig, peer) = nic(ALL);
    for n in 0..60u64 {
        rig.lend(RX, &[writable(DATA + n * 2048, 2048)]);
    }
    rig.kick(RX).unwrap();
    rig.pause_and_resume().unwrap();
    rustix::io::write(&peer, &frame(MAC, 0x0800, 100)).unwrap();
    rig.source(0).unwrap();
    assert_eq!(rig.used(RX), [(0, 126)]);
    rustix::io::write(&peer, &frame(MAC, 0x0800, 200)).unwrap();
    rig.source(0).unwrap();
    assert_eq!(rig.used(RX), [(1, 226)]);
}

#[test]
fn without_merged_buffers_a_frame_that_does_not_fit_is_dropped() {
    let (mut rig, peer) = nic(0);
    rig.lend(RX, &[writable(DATA, 1526)]);
    rustix::io::write(&peer, &frame(MAC, 0x0800, 1600)).unwrap();
    rustix::io::write(&peer, &frame(MAC, 0x0800, 1500)).unwrap();
    rig.kick(RX).unwrap();
    assert_eq!(rig.used(RX), [(0, 1526)]);
    assert_eq!(rig.counters.get(Counter::NetRxTooLong), 1);
}

#[test]
fn a_full_wire_holds_frames_back_and_loses_none() {
    let (mut rig, peer) = nic(ALL);
    let sent = frame(MAC, 0x0800, 1500);
    rig.put(DATA, &sent);
    for _ in 0..256 {
        rig.lend(TX, &[readable(DATA, sent.len() as u32)]);
    }
    rig.kick(TX).unwrap();
    let first = rig.used(TX).len();
    assert!(first < 256, "the socket took all frames at once");
    let mut received = 0;
    let mut used = first;
    while used < 256
        || receive(&peer).is_ok_and(|_| {
            received += 1;
            true
        })
    {
        while receive(&peer).is_ok() {
            received += 1;
        }
        rig.source(0).unwrap();
        used += rig.used(TX).len();
    }
    assert_eq!((used, received), (256, 256));
}

/// Makes a TAP in a network namespace of this thread alone, so that nothing of it outlives the test.
fn with_tap(test: impl FnOnce(OwnedFd) + Send + 'static) {
    std::thread::spawn(move || {
        let tap = crate::devices::sys::open_tap_apart("gate0");
        test(tap.expect("this test makes a network namespace and a TAP: run it as root"));
    })
    .join()
    .unwrap();
}

#[test]
fn a_real_tap_takes_and_gives_frames() {
    with_tap(|tap| {
        let up = std::process::Command::new("ip").args(["link", "set", "gate0", "up"]).status().unwrap();
        assert!(up.success());
        let address = ["addr", "add", "192.0.2.1/24", "dev", "gate0"];
        assert!(std::process::Command::new("ip").args(address).status().unwrap().success());
        let net = Net::over_tap(tap, config(), &NetShared::default()).unwrap();
        let mut rig = Rig::new(net);
        // An ARP request for the host's address is answered by the kernel.
        let mut request = frame(MAC, 0x0806, 0);
        request.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend(MAC.0);
        request.extend([192, 0, 2, 2, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1]);
        rig.put(DATA, &request);
        for n in 0..60u64 {
            rig.lend(RX, &[writable(DATA + 0x1000 + n * 2048, 2048)]);
        }
        rig.lend(TX, &[readable(DATA, request.len() as u32)]);
        rig.kick(TX).unwrap();
        // The kernel may speak of its own first (IPv6).
        let mut next = DATA + 0x1000;
        let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        loop {
            let wire = rig.device.wire.fd();
            let mut ready = [rustix::event::PollFd::from_borrowed_fd(wire, rustix::event::PollFlags::IN)];
            assert_eq!(rustix::event::poll(&mut ready, Some(&patience)).unwrap(), 1, "no answer came");
            rig.source(0).unwrap();
            for (_, len) in rig.used(RX) {
                let got = rig.get(next, len as usize);
                next += 2048;
                if got[24..26] == [0x08, 0x06] {
                    assert_eq!(got[12..18], MAC.0);
                    assert_eq!(got[32..34], [0, 2], "an ARP reply");
                    return;
                }
            }
        }
    });
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let file = tempfile::tempfile().unwrap();
    let refused = Net::over_tap(file.into(), config(), &NetShared::default());
    assert!(matches!(refused, Err(DeviceError::Setup { operation: "TUNSETVNETHDRSZ", .. })));
}
