//! Where the host is heard: vsock in a VM; a Unix socket where the agent is tried without one.

use model::agent::{AGENT_PORT, BOOT_PORT, HOST_CID};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use vsock::{VMADDR_CID_ANY, VsockListener, VsockStream};

/// Why the host cannot be heard.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No vsock.
    #[error("cannot listen on vsock port {AGENT_PORT}: is the vsock transport's module loaded?")]
    Vsock(#[source] io::Error),
    /// No Unix socket.
    #[error("cannot listen on {path}")]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        cause: io::Error,
    },
}

/// Takes the host's connections.
pub enum Listener {
    /// In a VM.
    Vsock(VsockListener),
    /// Elsewhere.
    Unix(UnixListener),
}

impl Listener {
    /// Listens on [`AGENT_PORT`].
    ///
    /// # Errors
    /// When there is no vsock, or another program has the port.
    pub fn vsock() -> Result<Self, TransportError> {
        VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)
            .map(Self::Vsock)
            .map_err(TransportError::Vsock)
    }

    /// Listens on a new Unix socket.
    ///
    /// # Errors
    /// When the path is taken or cannot be made.
    pub fn unix(path: &Path) -> Result<Self, TransportError> {
        UnixListener::bind(path)
            .map(Self::Unix)
            .map_err(|cause| TransportError::Unix { path: path.to_owned(), cause })
    }

    /// Waits for a connection; nothing when it does not come from the host.
    ///
    /// # Errors
    /// What accept(2) answers.
    pub fn accept(&self) -> io::Result<Option<Connection>> {
        match self {
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept()?;
                // A process of the guest itself could come by the loopback transport, with any user's rights.
                Ok((u64::from(peer.cid()) == HOST_CID).then(|| Connection::from(OwnedFd::from(stream))))
            }
            Self::Unix(listener) => Ok(Some(Connection::from(OwnedFd::from(listener.accept()?.0)))),
        }
    }
}

/// Where the host is called.
#[derive(Clone, Debug)]
pub enum Host {
    /// [`BOOT_PORT`], from a VM.
    Vsock,
    /// A Unix socket, from elsewhere.
    Unix(PathBuf),
}

/// A byte stream to the host.
pub struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Calls the host.
    ///
    /// # Errors
    /// When there is no vsock, or nobody listens there.
    pub fn call(host: &Host) -> io::Result<Self> {
        let socket = match host {
            Host::Vsock => {
                let host = u32::try_from(HOST_CID).map_err(io::Error::other)?;
                OwnedFd::from(VsockStream::connect_with_cid_port(host, BOOT_PORT)?)
            }
            Host::Unix(path) => OwnedFd::from(UnixStream::connect(path)?),
        };
        Ok(Self::from(socket))
    }

    /// Bounds how long one read and one write may wait; none: for ever.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        set_socket_timeout(&self.socket, Timeout::Recv, read)?;
        set_socket_timeout(&self.socket, Timeout::Send, write)?;
        Ok(())
    }

    /// Whether reads and writes return at once when they cannot go on.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        rustix::io::ioctl_fionbio(&self.socket, on).map_err(io::Error::from)
    }
}

impl From<OwnedFd> for Connection {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        rustix::io::read(&self.socket, buffer).map_err(io::Error::from)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Without a signal when the host is gone, whatever this process does with SIGPIPE.
        rustix::net::send(&self.socket, bytes, rustix::net::SendFlags::NOSIGNAL).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
