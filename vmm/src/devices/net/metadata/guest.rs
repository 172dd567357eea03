//! A guest's TCP/IP for tests: it leaves the checksums of what it sends to its NIC, and verifies those of what it gets.

use crate::devices::net::frame::{ETHERNET_HEADER, ETHERTYPE_IPV4, VNET_HEADER};
use model::net::{GATEWAY_MAC, METADATA_IPV4, MacAddress};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Exchanges after which a test calls a request endless.
const MAX_EXCHANGES: usize = 1000;

/// The guest.
pub struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    link: Link,
    next_port: u16,
    /// Says its last word when a request is out, before the answer is read.
    pub half_closes: bool,
}

struct Link {
    mac: MacAddress,
    mtu: usize,
    incoming: VecDeque<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

impl Guest {
    pub fn new(mac: MacAddress, mtu: usize) -> Self {
        let mut link = Link { mac, mtu, incoming: VecDeque::new(), outgoing: VecDeque::new() };
        let mut interface = Interface::new(Config::new(HardwareAddress::Ip), &mut link, Instant::ZERO);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(ADDRESS.into(), 32)).unwrap());
        interface.routes_mut().add_default_ipv4_route(ADDRESS).unwrap();
        Self { interface, sockets: SocketSet::new(Vec::new()), link, next_port: 40_000, half_closes: false }
    }

    /// Begins a connection.
    pub fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 1 << 16]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        self.next_port += 1;
        let remote = (IpAddress::from(METADATA_IPV4), 80);
        socket.connect(self.interface.context(), remote, self.next_port).unwrap();
        self.sockets.add(socket)
    }

    pub fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Takes frames, each with its virtio-net header, and makes the frames that follow, without.
    pub fn exchange(&mut self, now: Duration, frames: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        for frame in frames {
            assert_eq!(frame[..10], [0; 10], "an answer asks for no offload");
            assert_eq!(frame[12..18], self.link.mac.0);
            assert_eq!(frame[18..24], GATEWAY_MAC.0);
            assert_eq!(frame[24..26], ETHERTYPE_IPV4);
            assert!(frame.len() <= VNET_HEADER + ETHERNET_HEADER + self.link.mtu);
            self.link.incoming.push_back(frame[VNET_HEADER + ETHERNET_HEADER..].to_vec());
        }
        let at = Instant::from_micros(now.as_micros() as i64);
        self.interface.poll(at, &mut self.link, &mut self.sockets);
        self.link.outgoing.drain(..).collect()
    }

    /// Sends a request piece by piece, each when the one before was taken, and reads to the end of the answer. `host`
    /// takes a frame and gives what comes back.
    pub fn fetch(&mut self, pieces: &[&[u8]], mut host: impl FnMut(Vec<Vec<u8>>) -> Vec<Vec<u8>>) -> Vec<u8> {
        let (handle, half_closes) = (self.connect(), self.half_closes);
        let mut pieces = pieces.iter();
        let mut answer = Vec::new();
        let mut from_host = Vec::new();
        for _ in 0..MAX_EXCHANGES {
            let to_host = self.exchange(Duration::ZERO, std::mem::take(&mut from_host));
            from_host = host(to_host);
            let socket = self.socket(handle);
            if socket.may_send()
                && socket.send_queue() == 0
                && let Some(piece) = pieces.next()
            {
                assert_eq!(socket.send_slice(piece), Ok(piece.len()));
            }
            if half_closes
                && socket.state() == State::Established
                && pieces.len() == 0
                && socket.send_queue() == 0
            {
                socket.close();
            }
            while socket.can_recv() {
                socket.recv(|bytes| (bytes.len(), answer.extend_from_slice(bytes))).unwrap();
            }
            match socket.state() {
                State::CloseWait if socket.send_queue() == 0 => socket.close(),
                State::Closed | State::TimeWait => return answer,
                State::Listen
                | State::SynSent
                | State::SynReceived
                | State::Established
                | State::FinWait1
                | State::FinWait2
                | State::CloseWait
                | State::Closing
                | State::LastAck => {}
            }
        }
        panic!("the request has no end");
    }
}

impl Device for Link {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.pop_front()?;
        Some((Incoming(packet), Outgoing(self)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.tcp = Checksum::Rx;
        capabilities
    }
}

pub struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct Outgoing<'a>(&'a mut Link);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = [&GATEWAY_MAC.0[..], &self.0.mac.0, &ETHERTYPE_IPV4].concat();
        frame.resize(ETHERNET_HEADER + len, 0);
        let result = f(&mut frame[ETHERNET_HEADER..]);
        self.0.outgoing.push_back(frame);
        result
    }
}
