//! The UDP socket: many datagrams per call in both directions (recvmmsg(2); udp(7), `UDP_GRO` and `UDP_SEGMENT`).

use crate::pure::count::{Count, Counts};
use crate::pure::runs::{Endpoint, Run};
use quinn_udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use rustix::net::{AddressFamily, SocketType};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;
use tracing::info;

/// Messages that are taken by one call. The kernel joins up to 64 datagrams of one client in each.
const MESSAGES: usize = 8;
/// Bytes of each: the largest UDP payload and what the kernel joins.
const MESSAGE_BYTES: usize = 65_536;
/// What the kernel may hold for us either way: 40 ms at 1 Gbit/s. It grants what its own bound allows.
const BUFFER_BYTES: usize = 4 << 20;
/// Longest wait for a socket whose buffer is full: everybody's datagrams leave through it, so there is nothing else to
/// do; over it they are dropped, and TCP inside of them slows down.
const FULL_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// The socket cannot be used.
#[derive(Debug, Error)]
pub enum FrontError {
    /// It cannot be bound.
    #[error("cannot listen on {listen} (UDP): {source}; is another WireGuard there?")]
    Bind {
        /// Where.
        listen: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It cannot be set up.
    #[error("the UDP socket cannot be set up: {0}")]
    SetUp(#[source] io::Error),
    /// It cannot be read any more.
    #[error("the UDP socket cannot be read: {0}")]
    Receive(#[source] io::Error),
}

/// The socket's way in, with its buffers.
pub struct Front {
    outlet: Arc<Outlet>,
    buffers: Box<[u8]>,
}

/// The socket's way out.
pub struct Outlet {
    socket: UdpSocket,
    state: UdpSocketState,
    told_no_segments: AtomicBool,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outlet").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("outlet", &self.outlet).finish_non_exhaustive()
    }
}

impl Front {
    /// Binds it. One that listens on `[::]` serves IPv4 too.
    ///
    /// # Errors
    /// When the port is taken, or the address not this host's.
    pub fn bind(listen: SocketAddr) -> Result<Self, FrontError> {
        let failed = |source| FrontError::Bind { listen, source };
        let socket =
            Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
        if listen.is_ipv6() {
            socket.set_only_v6(false).map_err(failed)?;
        }
        socket.bind(&listen.into()).map_err(failed)?;
        Self::of(UdpSocket::from(socket))
    }

    /// The socket that whoever started this process bound for it; none when that is not what the descriptor is.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn inherited(descriptor: BorrowedFd<'_>) -> Result<Option<Self>, FrontError> {
        let kind = rustix::net::sockopt::socket_type(descriptor);
        let domain = rustix::net::sockopt::socket_domain(descriptor);
        let ours = kind == Ok(SocketType::DGRAM)
            && (domain == Ok(AddressFamily::INET) || domain == Ok(AddressFamily::INET6));
        if !ours {
            return Ok(None);
        }
        let socket = descriptor.try_clone_to_owned().map_err(FrontError::SetUp)?;
        Self::of(UdpSocket::from(socket)).map(Some)
    }

    fn of(socket: UdpSocket) -> Result<Self, FrontError> {
        let settings = SockRef::from(&socket);
        settings.set_recv_buffer_size(BUFFER_BYTES).map_err(FrontError::SetUp)?;
        settings.set_send_buffer_size(BUFFER_BYTES).map_err(FrontError::SetUp)?;
        let state = UdpSocketState::new((&socket).into()).map_err(FrontError::SetUp)?;
        if socket.local_addr().map_err(FrontError::SetUp)?.is_ipv4() {
            // WireGuard's own datagrams may be cut on the way: where a path carries less than the tunnel's packets and
            // their covers, that is slow, and the other way is silence. quinn-udp, made for QUIC, forbids it.
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DONT)
                .map_err(|e| FrontError::SetUp(e.into()))?;
        }
        let outlet = Arc::new(Outlet { socket, state, told_no_segments: AtomicBool::new(false) });
        Ok(Self { outlet, buffers: vec![0; MESSAGES * MESSAGE_BYTES].into() })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.outlet.socket.local_addr()
    }

    /// The way out.
    #[must_use]
    pub fn outlet(&self) -> Arc<Outlet> {
        Arc::clone(&self.outlet)
    }

    /// Takes what is there, up to [`MESSAGES`] messages, and hands out each datagram. Says whether there may be more.
    ///
    /// # Errors
    /// When the socket fails, not when one client's network does.
    pub fn receive(&mut self, mut each: impl FnMut(Endpoint, &[u8])) -> Result<bool, FrontError> {
        let mut metas = [RecvMeta::default(); MESSAGES];
        let got = {
            let mut chunks = self.buffers.chunks_mut(MESSAGE_BYTES);
            let mut slices: [IoSliceMut<'_>; MESSAGES] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            match self.outlet.state.recv((&self.outlet.socket).into(), &mut slices, &mut metas) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                // What an ICMP message said of a datagram that was sent earlier (udp(7)).
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionRefused
                            | io::ErrorKind::HostUnreachable
                            | io::ErrorKind::NetworkUnreachable
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    return Ok(true);
                }
                Err(error) => return Err(FrontError::Receive(error)),
            }
        };
        for (meta, message) in metas.iter().zip(self.buffers.chunks(MESSAGE_BYTES)).take(got) {
            let from = Endpoint { remote: meta.addr, local: meta.dst_ip };
            for datagram in message[..meta.len.min(MESSAGE_BYTES)].chunks(meta.stride.max(1)) {
                each(from, datagram);
            }
        }
        Ok(got == MESSAGES)
    }
}

impl Outlet {
    /// Sends a run in as few calls as the kernel takes it.
    pub fn send(&self, run: &Run, bytes: &[u8], counts: &mut Counts) {
        let most = self.state.max_gso_segments().max(1);
        for piece in bytes.chunks(run.segment * most) {
            let several = piece.len() > run.segment;
            match self.transmit(run, piece, several.then_some(run.segment)) {
                Ok(()) => {}
                // No segmentation on the way out (EIO), or not of this size (EINVAL): one by one.
                Err(_) if several => {
                    if !self.told_no_segments.swap(true, Ordering::Relaxed) {
                        info!("the kernel does not cut runs of datagrams for this way; sending one by one");
                    }
                    for datagram in piece.chunks(run.segment) {
                        if let Err(error) = self.transmit(run, datagram, None) {
                            counts.count(failure(&error));
                        }
                    }
                }
                Err(error) => counts.count(failure(&error)),
            }
        }
    }

    fn transmit(&self, run: &Run, contents: &[u8], segment_size: Option<usize>) -> io::Result<()> {
        let transmit =
            Transmit { destination: run.to.remote, ecn: None, contents, segment_size, src_ip: run.to.local };
        match self.once(&transmit) {
            // The host may have lost the address that the client knew. Then the routing table's choice is better than
            // silence: a client follows what is authentic to wherever it comes from.
            Err(error) if transmit.src_ip.is_some() && may_be_its_source(&error) => {
                self.once(&Transmit { src_ip: None, ..transmit })
            }
            other => other,
        }
    }

    fn once(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        match self.state.try_send((&self.socket).into(), transmit) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&FULL_WAIT))?;
                self.state.try_send((&self.socket).into(), transmit)
            }
            other => other,
        }
    }
}

impl AsFd for Front {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.outlet.socket.as_fd()
    }
}

/// What the kernel says of a source that is no address of the host: IPv4 the second, IPv6 the first (tried on 6.x).
fn may_be_its_source(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NetworkUnreachable)
}

fn failure(error: &io::Error) -> Count {
    match error.kind() {
        io::ErrorKind::WouldBlock => Count::SocketFull,
        _ => Count::SendFailed,
    }
}
