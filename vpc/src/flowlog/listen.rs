//! Listens to a namespace's kernel: ends of flows (nfnetlink_conntrack) and refused packets (nfnetlink_log).

use crate::io::flows;
use crate::io::namespace::{Inside, NamespaceError};
use crate::pure::netlink::{NLM_F_ACK, attribute, request};
use crate::pure::rules::{LOG_GROUP, TOLD_BYTES};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::io;
use thiserror::Error;
use tokio::io::unix::AsyncFd;

/// Bytes that the kernel may hold of each kind while they are not read: a few thousand ends of flows. It counts them only
/// as they are used.
const HELD_BYTES: usize = 2 << 20;
/// Longest datagram: nfnetlink_log's own buffer for several packets, which [`OF_LOG_BYTES`] sets.
const DATAGRAM_BYTES: usize = 1 << 16;
/// Bytes that nfnetlink_log puts into one datagram: some two hundred packets.
const OF_LOG_BYTES: u32 = 1 << 15;
/// Hundredths of a second after which it tells what it has.
const OF_LOG_HUNDREDTHS: u32 = 50;
// include/uapi/linux/netfilter/nfnetlink.h and nfnetlink_log.h
const NFNLGRP_CONNTRACK_DESTROY: u32 = 3;
const NFULNL_MSG_CONFIG: u16 = (4 << 8) | 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_NLBUFSIZ: u16 = 3;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;

/// Why the kernel cannot be listened to.
#[derive(Debug, Error)]
pub enum ListenError {
    /// No socket for the ends of flows.
    #[error("ends of flows cannot be listened to (module nf_conntrack_netlink): {0}")]
    Flows(#[source] io::Error),
    /// No socket for refused packets.
    #[error("refused packets cannot be listened to (module nfnetlink_log): {0}")]
    Refusals(#[source] io::Error),
    /// A socket fails.
    #[error("what the kernel tells cannot be read: {0}")]
    Read(#[source] io::Error),
    /// The namespace's thread does not serve.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// One socket, and room for what it tells.
#[derive(Debug)]
pub struct Ear {
    socket: AsyncFd<OwnedFd>,
    bytes: Vec<u8>,
}

/// Listens to ends of flows in a namespace.
///
/// # Errors
/// See [`ListenError`].
pub async fn to_ends(inside: &Inside) -> Result<Ear, ListenError> {
    Ear::of(inside.run(ends).await?).map_err(ListenError::Flows)
}

/// Listens to refused packets in a namespace.
///
/// # Errors
/// See [`ListenError`].
pub async fn to_refusals(inside: &Inside) -> Result<Ear, ListenError> {
    Ear::of(inside.run(refusals).await?).map_err(ListenError::Refusals)
}

impl Ear {
    fn of(socket: io::Result<Socket>) -> io::Result<Self> {
        let socket = feed::sys::register(socket?.as_fd().try_clone_to_owned()?)?;
        Ok(Self { socket, bytes: vec![0; DATAGRAM_BYTES] })
    }

    /// The next messages; none when the kernel had more than it could hold. Nothing is lost when the call is given up.
    ///
    /// # Errors
    /// When the socket fails.
    pub async fn hear(&mut self) -> Result<Option<&[u8]>, ListenError> {
        let Self { socket, bytes } = self;
        loop {
            let mut ready = socket.readable().await.map_err(ListenError::Read)?;
            match rustix::net::recv(ready.get_inner(), bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((length, _)) => return Ok(Some(bytes.get(..length).unwrap_or_default())),
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS) => return Ok(None),
                Err(error) => return Err(ListenError::Read(error.into())),
            }
        }
    }
}

fn ends() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, HELD_BYTES)?;
    socket.add_membership(NFNLGRP_CONNTRACK_DESTROY)?;
    Ok(socket)
}

fn refusals() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, HELD_BYTES)?;
    let [a, b, c, d] = TOLD_BYTES.to_be_bytes();
    let settings = [
        attribute(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]),
        attribute(NFULA_CFG_MODE, &[a, b, c, d, NFULNL_COPY_PACKET, 0]),
        attribute(NFULA_CFG_NLBUFSIZ, &OF_LOG_BYTES.to_be_bytes()),
        attribute(NFULA_CFG_TIMEOUT, &OF_LOG_HUNDREDTHS.to_be_bytes()),
    ];
    for setting in settings {
        flows::acknowledged(&socket, &request(NFULNL_MSG_CONFIG, NLM_F_ACK, LOG_GROUP, &setting))?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_the_settings_and_one_listener() {
        std::thread::spawn(|| {
            crate::sys::namespace::enter_new().expect("this test needs root");
            let _ends = ends().expect("ends of flows");
            let first = refusals().expect("refused packets");
            assert!(refusals().is_err(), "another one would take the packets away");
            drop(first);
            refusals().expect("free again");
        })
        .join()
        .expect("the thread's own assertions hold");
    }
}
