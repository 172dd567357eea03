//! In the steady state no packet costs an allocation, whatever becomes of it.

mod support;
mod sys;

use support::{Client, INSIDE, Server, address, at, entry, packet, tcp};
use vpn::pure::coalesce::Frames;
use vpn::pure::count::Count;
use vpn::pure::engine::Wire;
use vpn::pure::offload;
use vpn::pure::runs::{Endpoint, Runs};
use vpn::pure::table::NetworkId;

#[global_allocator]
static ALLOCATOR: sys::Counting = sys::Counting;

/// The way out as the process has it, without sockets.
#[derive(Default)]
struct Lane {
    runs: Runs,
    frames: Frames,
    written: u64,
    delivered: u64,
}

impl Wire for Lane {
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.runs.room(bytes).is_none() {
            self.runs.clear();
        }
        self.runs.room(bytes).expect("an empty one has room")
    }
    fn send(&mut self, to: Endpoint, bytes: usize) {
        self.runs.push(to, bytes);
    }
    fn deliver(&mut self, network: NetworkId, packet: &[u8]) -> Result<(), Count> {
        self.delivered += 1;
        self.frames.push(network, packet, |_, _, _| self.written += 1);
        Ok(())
    }
}

#[test]
fn packets_cost_no_allocation() {
    let mut server = Server::new(vec![entry(1, 1), entry(2, 1)]);
    let mut client = Client::new(1);
    client.connect(&mut server, at(1));
    let network = server.network(1);
    let mut datagrams: Vec<Vec<u8>> = Vec::new();
    for number in 0..1000u16 {
        datagrams.push(match number % 5 {
            0 => client.seal(&packet(address(1), INSIDE, b"data")),
            1 => client.seal(&tcp(address(1), INSIDE, 0x10, &[], &[7; 1000])),
            2 => client.seal(&packet(address(2), INSIDE, b"spoofed")),
            3 => vec![4; 100],
            _ => client.seal(&[]),
        });
    }
    let payload = vec![7; 30_000];
    let mut vnet = [0; offload::VNET_BYTES];
    offload::announce(&mut vnet, 40, 20, 1240);
    let mut frame = vnet.to_vec();
    frame.extend(tcp(INSIDE, address(1), 0x10, &[], &payload));
    let mut nobody = vec![0; 12];
    nobody.extend(packet(INSIDE, address(9), b"to nobody"));
    let mut lane = Lane::default();
    let (warm, counted) = datagrams.split_at(100);
    let now = server.now;
    for datagram in warm {
        server.engine.receive(at(1), datagram, now, &mut lane);
    }
    let before = sys::allocations();
    for datagram in counted {
        server.engine.receive(at(1), datagram, now, &mut lane);
        server.engine.transmit(network, &mut frame, now, &mut lane);
        server.engine.transmit(network, &mut nobody, now, &mut lane);
    }
    server.engine.tick(now, &mut lane);
    lane.frames.flush(|_, _, _| lane.written += 1);
    assert_eq!(sys::allocations() - before, 0);
    assert_eq!((lane.delivered, server.count(Count::PacketsOut)), (400, 900 * 25));
    assert!(sys::allocations() > 0 && lane.written > 0, "they are counted");
}
