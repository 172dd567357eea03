//! Connected sockets to VMs: made inside the namespace of the VM's network, connected from there, handed out.
//!
//! A dial to a VM that sleeps is a dial like any other: its SYN waits in the TAP, wakes the VM, and is the first that
//! the VM reads. Only the patience is another.

use crate::client::{Refusal, SERVER_WAIT, WAKE_WAIT};
use crate::io::namespace::NamespaceError;
use crate::switch::{LivePort, Switch};
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use thiserror::Error;
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep_until};

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum DialError {
    /// The port is not among the dialable ones.
    #[error("port {0} of this VM may not be dialled")]
    NotDialable(u16),
    /// Nothing listens.
    #[error("the VM refuses connections to port {0}")]
    Refused(u16),
    /// The VM does not answer.
    #[error("the VM did not answer on port {0} within {SERVER_WAIT:?}")]
    TimedOut(u16),
    /// The VM was asleep, and is it still or does not answer yet.
    #[error("the VM did not wake in time to answer on port {0}; it had {WAKE_WAIT:?}")]
    NotWoken(u16),
    /// No socket can be made.
    #[error("no socket can be made: {0}")]
    Socket(#[source] io::Error),
    /// The kernel knows no way.
    #[error("cannot connect to port {port}: {source}")]
    Connect {
        /// The port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The namespace's thread does not serve.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

impl DialError {
    /// As the asker is told.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NotDialable(_) => Refusal::PortNotDialable,
            Self::Refused(_) => Refusal::ConnectionRefused,
            Self::TimedOut(_) | Self::NotWoken(_) => Refusal::TimedOut,
            Self::Namespace(NamespaceError::Busy) => Refusal::Busy,
            Self::Socket(_) | Self::Connect { .. } | Self::Namespace(_) => Refusal::Kernel,
        }
    }
}

/// Connects to a TCP port of a VM, from the gateway's address. Waits up to [`SERVER_WAIT`], or up to [`WAKE_WAIT`] when
/// the VM sleeps or slept meanwhile; one that has just woken has the rest of that.
///
/// # Errors
/// See [`DialError`].
pub async fn dial(switch: &Switch, live: &LivePort, port: u16) -> Result<OwnedFd, DialError> {
    let to = &live.port;
    if !to.dialable.contains(&port) {
        return Err(DialError::NotDialable(port));
    }
    let mark = to.seat().mark();
    let socket = live.sockets.run(move || make(mark)).await?.map_err(DialError::Socket)?;
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::from((to.ipv4, port)));
    let connected = tokio::select! {
        biased;
        connected = pin!(connecting) => connected,
        slept = patience(switch, live) => {
            return Err(if slept { DialError::NotWoken(port) } else { DialError::TimedOut(port) });
        }
    };
    let stream = connected.map_err(|source| match source.kind() {
        io::ErrorKind::ConnectionRefused => DialError::Refused(port),
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => DialError::TimedOut(port),
        _ => DialError::Connect { port, source },
    })?;
    Ok(stream.into_std().map_err(DialError::Socket)?.into())
}

/// Resolves when the VM has had its time. True when that was more than usual, because it sleeps, or slept at any time
/// since the call or shortly before: it may fall asleep after the dial has begun, with the SYN in its queue.
async fn patience(switch: &Switch, live: &LivePort) -> bool {
    let begun = Instant::now();
    let mut changes = switch.changes();
    let usual = begun + SERVER_WAIT;
    let time = |live: &LivePort| live.wakes_until(begun.into_std()).map_or(usual, Instant::from_std);
    let mut until = usual.max(time(live));
    loop {
        until = switch.table().ports.get(&live.port.vm).map_or(until, |now| until.max(time(now)));
        if Instant::now() >= until {
            return until > usual;
        }
        tokio::select! {
            // It fails only when the switch has ended; then nothing changes any more.
            Ok(()) = changes.changed() => {}
            () = sleep_until(until) => {}
        }
    }
}

/// A socket in the calling thread's namespace, whose flow goes when the port goes (its mark says whose it is).
/// The source address is the route's, so that a source port serves once for each VM and not once in all.
fn make(mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    Ok(socket)
}
