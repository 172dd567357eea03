//! A guest: a network stack of its own whose NIC's frames are carried to and from vpc's TAP, header and all, as a
//! VM's process carries them.

use super::servers::ask_for_gateway;
use super::{World, clean, sh, within};
use model::id::Generation;
use model::net::{GATEWAY_IPV6, Ula};
use model::view::PortEntry;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::PipeWriter;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use vpc::sys::tun::{self, Opening};

pub struct Guest {
    pub namespace: String,
    pub port: PortEntry,
    nic: Vec<OwnedFd>,
    stop: Option<PipeWriter>,
    carrying: Option<JoinHandle<()>>,
    /// First packets of connections to the guest, again or not, that were carried.
    pub syns: Arc<AtomicU64>,
    /// Fragments of IPv4 packets to the guest that were carried.
    pub fragments: Arc<AtomicU64>,
}

impl Guest {
    /// Boots a guest on a port: asks vpc for the TAP and joins it to a NIC.
    pub async fn boot(world: &World, port: &PortEntry) -> Self {
        let (socket, vm) = (world.places().vpc_socket(), port.vm.clone());
        let generation = Generation(world.generation);
        let queues = tokio::task::spawn_blocking(move || vpc::client::tap(&socket, &vm, generation));
        let queues = queues.await.expect("joined").expect("a TAP");
        assert_eq!(queues.len(), usize::from(port.queues));
        let mut guest = Self::asleep(world, port).await;
        guest.wake(queues);
        guest
    }

    /// A guest that is all there, and reads no frame yet.
    pub async fn asleep(world: &World, port: &PortEntry) -> Self {
        let namespace = format!("{}-g{}", world.prefix, &port.vm.as_str()[..8]);
        sh(&format!("ip netns add {namespace}"));
        let nic = within(&namespace, || tun::open("eth0", 1, Opening::New).expect("a NIC")).await;
        let (mac, ipv4) = (port.mac, port.ipv4);
        sh(&format!(
            "n=\"ip -n {namespace}\"; $n link set lo up; $n link set eth0 address {mac} up
             $n addr add {ipv4}/32 dev eth0; $n route add 169.254.1.1 dev eth0 scope link
             $n route add default via 169.254.1.1 dev eth0 onlink"
        ));
        Self {
            namespace,
            port: port.clone(),
            nic,
            stop: None,
            carrying: None,
            syns: Arc::default(),
            fragments: Arc::default(),
        }
    }

    /// Gives it IPv6, and has vpc hear of it; its address.
    pub async fn speak_ipv6(&self, ula: Ula) -> Ipv6Addr {
        let (address, nic) = (self.set_ipv6(ula), self.nic_number());
        self.run(move || ask_for_gateway(address, nic)).await;
        address
    }

    /// The number of its NIC.
    pub fn nic_number(&self) -> u32 {
        let link = sh(&format!("ip -n {} -o link show eth0", self.namespace));
        link.split(':').next().and_then(|number| number.parse().ok()).expect("a number")
    }

    /// Gives it what the agent would set for IPv6, and a default route that no guest has; its address, of which it has said
    /// nothing yet.
    pub fn set_ipv6(&self, ula: Ula) -> Ipv6Addr {
        let (namespace, address) = (&self.namespace, ula.address(self.port.ipv4));
        sh(&format!(
            "n=\"ip -n {namespace} -6\"; $n addr add {address}/128 dev eth0 nodad
             $n route add {ula} via {GATEWAY_IPV6} dev eth0 onlink
             $n route add default via {GATEWAY_IPV6} dev eth0 onlink"
        ));
        address
    }

    /// From now on frames are carried to and from these queues.
    pub fn wake(&mut self, queues: Vec<OwnedFd>) {
        let nic = self.nic[0].try_clone().expect("duplicate");
        let (stopped, stop) = std::io::pipe().expect("pipe");
        let (syns, fragments) = (Arc::clone(&self.syns), Arc::clone(&self.fragments));
        self.carrying = Some(std::thread::spawn(move || {
            carry(&queues, &nic, stopped.as_fd(), |frame| {
                syns.fetch_add(u64::from(is_syn(frame)), Ordering::SeqCst);
                fragments.fetch_add(u64::from(is_fragment(frame)), Ordering::SeqCst);
            });
        }));
        self.stop = Some(stop);
    }

    /// Pulls the plug: the queues are let go.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(carrying) = self.carrying.take() {
            carrying.join().expect("carried well");
        }
    }

    /// Runs a closure in the guest.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        within(&self.namespace, work).await
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop();
        clean(&format!("ip netns del {}", self.namespace));
    }
}

/// Carries frames until told to stop, or until the TAP is gone.
pub fn carry(queues: &[OwnedFd], nic: &OwnedFd, stop: std::os::fd::BorrowedFd<'_>, seen: impl Fn(&[u8])) {
    loop {
        let mut watched: Vec<PollFd<'_>> =
            queues.iter().chain([nic]).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        watched.push(PollFd::from_borrowed_fd(stop, PollFlags::IN));
        match poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
        if watched.last().is_some_and(|stop| !stop.revents().is_empty()) {
            return;
        }
        let alive = queues.iter().all(|queue| copy(queue, nic, &seen)) && copy(nic, &queues[0], |_| {});
        if !alive {
            return;
        }
    }
}

/// Copies the frames that are there; false when a device is gone.
fn copy(from: &OwnedFd, to: &OwnedFd, seen: impl Fn(&[u8])) -> bool {
    let mut frame = vec![0; 1 << 17];
    loop {
        match rustix::io::read(from, &mut frame) {
            Ok(length) => {
                seen(&frame[..length]);
                match rustix::io::write(to, &frame[..length]) {
                    Ok(_) | Err(Errno::AGAIN | Errno::IO | Errno::INVAL) => {}
                    Err(_) => return false,
                }
            }
            Err(Errno::AGAIN) => return true,
            Err(_) => return false,
        }
    }
}

/// Whether a frame, behind its vnet header, is an IPv4 packet that begins a TCP connection (RFC 9293 section 3.1).
pub fn is_syn(frame: &[u8]) -> bool {
    let Some(packet) = ipv4_of(frame) else { return false };
    let Some([words, .., protocol]) = packet.first_chunk::<10>() else { return false };
    let flags = packet.get(usize::from(words & 15) * 4 + 13);
    *protocol == 6 && flags.is_some_and(|flags| flags & 0b1_0010 == 0b0_0010)
}

/// Whether a frame is a part of an IPv4 packet (RFC 791 section 3.1): more follow it, or it is not the first.
fn is_fragment(frame: &[u8]) -> bool {
    ipv4_of(frame).is_some_and(|packet| packet[6] & 0x3f != 0 || packet[7] != 0)
}

fn ipv4_of(frame: &[u8]) -> Option<&[u8]> {
    frame.get(12 + 14..).filter(|_| frame[24..26] == [8, 0])
}
