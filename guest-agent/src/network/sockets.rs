//! Closing the sockets of addresses that are gone, so that programs learn at once what they would else learn from
//! timeouts after minutes.
//!
//! This is `SOCK_DESTROY` of sock_diag(7), which needs `CONFIG_INET_DIAG_DESTROY` (Debian's kernels have it; the
//! modules tcp_diag and udp_diag are loaded by the kernel's request). Where the kernel refuses, the connections stay
//! until their own timeouts: no packet of theirs leaves any more, since the kernel sends none from an address that it
//! does not have, but a program that only waits for its peer learns nothing.

use crate::pure::sock_diag::{self, Answer, IPV4, IPV6, Kind, SocketId, TCP, UDP};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::IpAddr;
use thiserror::Error;

/// All that a machine's programs have; TCP first, where most waits are.
const KINDS: [Kind; 4] = [
    Kind { family: IPV4, protocol: TCP },
    Kind { family: IPV6, protocol: TCP },
    Kind { family: IPV4, protocol: UDP },
    Kind { family: IPV6, protocol: UDP },
];
/// Most sockets of one kind: what a machine with 64 Ki ports has to one peer. The rest waits for its timeouts.
const MAX_SOCKETS: usize = 1 << 16;
/// Room for one datagram of a dump: the kernel fills at most 32 KiB (linux/net/netlink/af_netlink.c).
const DATAGRAM_BYTES: usize = 32 << 10;

/// Why sockets stay open.
#[derive(Debug, Error)]
pub enum SocketsError {
    /// No netlink.
    #[error("cannot talk to the kernel's socket list")]
    Netlink(#[source] io::Error),
    /// The kernel has no such list, or does not close.
    #[error("the kernel refuses to {action}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Closes every TCP and UDP socket whose local address is one of these, and tells how many.
///
/// # Errors
/// See [`SocketsError`]; the other kinds of sockets are tried all the same, and the first error is told.
pub fn close_all(addresses: &[IpAddr]) -> Result<usize, SocketsError> {
    let mut list = List::open().map_err(SocketsError::Netlink)?;
    let mut closed = 0;
    let mut failure = None;
    for kind in KINDS {
        match list.close(kind, addresses) {
            Ok(count) => closed += count,
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(closed), Err)
}

struct List {
    socket: Socket,
    sequence: u32,
}

impl List {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    fn close(&mut self, kind: Kind, addresses: &[IpAddr]) -> Result<usize, SocketsError> {
        let found = self.find(kind, addresses)?;
        let mut closed = 0;
        for id in found {
            let sequence = self.next();
            self.send(&sock_diag::destroy(kind, sequence, &id))?;
            match self.answers(sequence, |_, _| {})? {
                0 => closed += 1,
                // Closed in the meantime.
                libc::ENOENT => {}
                errno => return Err(refused("close a socket", errno)),
            }
        }
        Ok(closed)
    }

    fn find(&mut self, kind: Kind, addresses: &[IpAddr]) -> Result<Vec<SocketId>, SocketsError> {
        let sequence = self.next();
        self.send(&sock_diag::list(kind, sequence))?;
        let mut found = Vec::new();
        let status = self.answers(sequence, |id, source| {
            if found.len() < MAX_SOCKETS && addresses.contains(&source) {
                found.push(id);
            }
        })?;
        match status {
            0 => Ok(found),
            // A kernel without that protocol has no sockets of it.
            libc::ENOENT if kind.family == IPV6 => Ok(vec![]),
            errno => Err(refused("list sockets", errno)),
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, request: &[u8]) -> Result<(), SocketsError> {
        self.socket.send(request, 0).map(drop).map_err(SocketsError::Netlink)
    }

    /// Reads to the end of an answer, which is an `errno` or 0.
    fn answers(&self, sequence: u32, mut each: impl FnMut(SocketId, IpAddr)) -> Result<i32, SocketsError> {
        let mut buffer = Vec::with_capacity(DATAGRAM_BYTES);
        loop {
            buffer.clear();
            let length = self.socket.recv(&mut buffer, 0).map_err(SocketsError::Netlink)?;
            let mut rest = buffer.get(..length).unwrap_or(&buffer);
            while let Some((of, answer)) = sock_diag::next(&mut rest) {
                match answer {
                    _ if of != sequence => {}
                    Answer::Socket { id, source } => each(id, source),
                    Answer::Done => return Ok(0),
                    Answer::Status(errno) => return Ok(errno),
                    Answer::Other => {}
                }
            }
        }
    }
}

fn refused(action: &'static str, errno: i32) -> SocketsError {
    SocketsError::Refused { action, cause: io::Error::from_raw_os_error(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::process::Command;

    #[test]
    fn sockets_of_the_old_address_fail_at_once_and_others_live() {
        let test = || {
            crate::sys::namespace::new_network().expect("network namespace");
            for words in
                ["link set lo up", "address add 10.9.0.1/32 dev lo", "address add 10.9.0.2/32 dev lo"]
            {
                assert!(Command::new("ip").args(words.split(' ')).status().expect("ip").success());
            }
            let (old, kept) = (TcpListener::bind("10.9.0.1:0"), TcpListener::bind("10.9.0.2:0"));
            let (old, kept) = (old.expect("old"), kept.expect("kept"));
            let mut own = TcpStream::connect(old.local_addr().expect("address")).expect("connected");
            let mut other = TcpStream::connect(kept.local_addr().expect("address")).expect("connected");
            let mapped = TcpListener::bind("[::ffff:10.9.0.1]:0").expect("mapped");
            let datagrams = UdpSocket::bind("10.9.0.1:0").expect("UDP");
            let (far, _) = kept.accept().expect("accepted");
            // Two listeners and the UDP socket; the connection may have ended with its listener.
            let closed = close_all(&["10.9.0.1".parse().expect("address")]).expect("closed");
            assert!((3..=5).contains(&closed), "{closed}");
            let error = own.read(&mut [0]).expect_err("closed");
            assert!(matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
            ));
            assert!(datagrams.recv(&mut [0]).is_err());
            assert!(mapped.accept().is_err() && old.accept().is_err());
            drop(far);
            assert_eq!(other.read(&mut [0]).expect("only the end"), 0);
        };
        std::thread::spawn(test).join().expect("test");
    }
}
