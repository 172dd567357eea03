//! Messages with descriptors over a Unix socket of type `SOCK_SEQPACKET` (unix(7)): a packet is a JSON message,
//! and the kernel keeps its borders; descriptors ride as `SCM_RIGHTS`. The peer's user is known from the kernel.

use crate::sys::register;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Largest message. The kernel's default send buffer is 208 KiB and counts overhead; half of it always fits.
pub const MAX_MESSAGE_BYTES: usize = 96 << 10;
/// Most descriptors in one message: a TAP of eight queues, a socket, and the four files of a machine.
pub const MAX_DESCRIPTORS: usize = 13;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 512;

/// What can go wrong on a wire. After any of them the connection is of no more use.
#[derive(Debug, Error)]
pub enum WireError {
    /// A socket could not be made or connected.
    #[error("cannot connect to {path}: {source}")]
    Connect {
        /// Of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket could not be made or bound.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// Of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No connection could be accepted.
    #[error("cannot accept a connection: {0}")]
    Accept(#[source] io::Error),
    /// Sending failed.
    #[error("cannot send: {0}")]
    Send(#[source] io::Error),
    /// Receiving failed.
    #[error("cannot receive: {0}")]
    Receive(#[source] io::Error),
    /// The message is over [`MAX_MESSAGE_BYTES`] or has more than [`MAX_DESCRIPTORS`].
    #[error("the message is too large")]
    TooLarge,
    /// The peer has closed.
    #[error("the other side closed the connection")]
    Closed,
    /// The packet is not the message that was expected.
    #[error("the message cannot be read: {0}")]
    Malformed(#[source] serde_json::Error),
}

/// A connection, for async code.
#[derive(Debug)]
pub struct Wire {
    socket: AsyncFd<OwnedFd>,
}

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user at the time of connecting.
    pub uid: u32,
    /// Process at the time of connecting.
    pub pid: i32,
}

impl Wire {
    /// Connects to a listener.
    ///
    /// # Errors
    /// [`WireError::Connect`] when nobody listens there or the user may not.
    pub fn connect(path: &Path) -> Result<Self, WireError> {
        let failed = |source: io::Error| WireError::Connect { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
        let socket = make_socket().map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(|e| failed(e.into()))?;
        Self::of(socket).map_err(failed)
    }

    /// Takes a connected `SOCK_SEQPACKET` socket over. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When the descriptor cannot be made non-blocking or registered.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket: register(socket)? })
    }

    /// Who is at the other end.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peer(&self) -> io::Result<Peer> {
        let credentials = rustix::net::sockopt::socket_peercred(self.socket.get_ref())?;
        Ok(Peer { uid: credentials.uid.as_raw(), pid: credentials.pid.as_raw_nonzero().get() })
    }

    /// Sends a message and, with it, duplicates of the descriptors.
    ///
    /// # Errors
    /// When the peer is gone or the message is over its bounds.
    pub async fn send<T: Serialize + Sync>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let bytes = encode(message, descriptors.len())?;
        self.socket
            .async_io(Interest::WRITABLE, |fd| Ok(send_packet(fd.as_fd(), &bytes, descriptors)?))
            .await
            .map_err(sending)
    }

    /// Receives a message and the descriptors that came with it (close-on-exec).
    ///
    /// # Errors
    /// [`WireError::Closed`] at the end; otherwise when the packet is too large or not a `T`.
    pub async fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), WireError> {
        let (bytes, descriptors) = self
            .socket
            .async_io(Interest::READABLE, |fd| Ok(receive_packet(fd.as_fd())?))
            .await
            .map_err(receiving)?;
        decode(&bytes, descriptors)
    }

    /// Resolves when the peer has closed. Only for connections on which nothing more is expected.
    pub async fn closed(&self) {
        loop {
            let received =
                self.socket.async_io(Interest::READABLE, |fd| Ok(receive_packet(fd.as_fd())?)).await;
            match received {
                Ok((bytes, _)) if !bytes.is_empty() => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
}

/// A connection, for plain threads. Calls block.
#[derive(Debug)]
pub struct BlockingWire {
    socket: OwnedFd,
}

impl BlockingWire {
    /// Connects to a listener.
    ///
    /// # Errors
    /// [`WireError::Connect`] when nobody listens there or the user may not.
    pub fn connect(path: &Path) -> Result<Self, WireError> {
        let failed = |source: io::Error| WireError::Connect { path: path.to_owned(), source };
        let address = SocketAddrUnix::new(path).map_err(|e| failed(e.into()))?;
        let socket = make_socket().map_err(failed)?;
        rustix::net::connect(&socket, &address).map_err(|e| failed(e.into()))?;
        Ok(Self { socket })
    }

    /// Takes a connected, blocking `SOCK_SEQPACKET` socket over.
    #[must_use]
    pub fn of(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Sends a message and, with it, duplicates of the descriptors.
    ///
    /// # Errors
    /// When the peer is gone or the message is over its bounds.
    pub fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let bytes = encode(message, descriptors.len())?;
        rustix::io::retry_on_intr(|| send_packet(self.socket.as_fd(), &bytes, descriptors))
            .map_err(|e| sending(e.into()))
    }

    /// Receives a message and the descriptors that came with it (close-on-exec).
    ///
    /// # Errors
    /// [`WireError::Closed`] at the end; otherwise when the packet is too large or not a `T`.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), WireError> {
        let (bytes, descriptors) = rustix::io::retry_on_intr(|| receive_packet(self.socket.as_fd()))
            .map_err(|e| receiving(e.into()))?;
        decode(&bytes, descriptors)
    }

    /// Whether the other side still has its end, as far as the kernel knows now. Does not wait, takes nothing.
    ///
    /// # Errors
    /// When the socket cannot be asked.
    pub fn is_open(&self) -> Result<bool, WireError> {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mut byte = [0];
        let mut into = [IoSliceMut::new(&mut byte)];
        let peeked = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(self, &mut into, &mut RecvAncillaryBuffer::default(), flags)
        });
        match peeked {
            // No message is empty: this is the end.
            Ok(message) => Ok(message.bytes > 0),
            Err(Errno::AGAIN) => Ok(true),
            Err(Errno::CONNRESET) => Ok(false),
            Err(error) => Err(WireError::Receive(error.into())),
        }
    }
}

impl AsFd for BlockingWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Where connections come in.
#[derive(Debug)]
pub struct WireListener {
    socket: AsyncFd<OwnedFd>,
}

impl WireListener {
    /// Listens at a path with the given permission bits. A socket that an earlier process left there is replaced
    /// in one step, so that there is never a moment without one.
    ///
    /// # Errors
    /// [`WireError::Listen`] when the directory is missing or not writable.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, WireError> {
        let failed = |source: io::Error| WireError::Listen { path: path.to_owned(), source };
        let socket = listen_at(path, mode).map_err(failed)?;
        Ok(Self { socket: register(socket).map_err(failed)? })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`WireError::Accept`], for example when the process is out of descriptors.
    pub async fn accept(&self) -> Result<Wire, WireError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = self
            .socket
            .async_io(Interest::READABLE, |fd| Ok(rustix::net::accept_with(fd, flags)?))
            .await
            .map_err(WireError::Accept)?;
        Wire::of(socket).map_err(WireError::Accept)
    }
}

/// A blocking listener of the same kind, for processes of plain threads.
///
/// # Errors
/// When the directory is missing or not writable.
pub fn listen_at(path: &Path, mode: u32) -> io::Result<OwnedFd> {
    let socket = make_socket()?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    remove_leftovers(path)?;
    let staged = staged(path, std::process::id());
    remove_if_there(&staged)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(&staged)?)?;
    rustix::fs::chmod(&staged, rustix::fs::Mode::from_raw_mode(mode))?;
    rustix::net::listen(&socket, BACKLOG)?;
    std::fs::rename(&staged, path)?;
    Ok(socket)
}

/// Where a socket of this process is made, before it takes its place.
fn staged(path: &Path, process: u32) -> PathBuf {
    path.with_extension(format!("{process}.new"))
}

/// Removes what processes left that were killed before their socket took its place, one each.
fn remove_leftovers(path: &Path) -> io::Result<()> {
    // A relative path of one word is in the working folder.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in std::fs::read_dir(folder)? {
        let found = folder.join(entry?.file_name());
        let number = found.file_stem().and_then(|stem| Path::new(stem).extension()?.to_str()?.parse().ok());
        let Some(process) = number.and_then(rustix::process::Pid::from_raw) else { continue };
        let ours =
            found.file_name() == staged(path, process.as_raw_nonzero().get().unsigned_abs()).file_name();
        // One that another process makes right now is not ours to remove.
        if ours && rustix::process::test_kill_process(process) == Err(Errno::SRCH) {
            remove_if_there(&found)?;
        }
    }
    Ok(())
}

/// A connected pair, for a child process or a test.
///
/// # Errors
/// When the process is out of descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn make_socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn encode<T: Serialize>(message: &T, descriptors: usize) -> Result<Vec<u8>, WireError> {
    let bytes = serde_json::to_vec(message).map_err(WireError::Malformed)?;
    if bytes.len() > MAX_MESSAGE_BYTES || descriptors > MAX_DESCRIPTORS {
        return Err(WireError::TooLarge);
    }
    Ok(bytes)
}

fn decode<T: DeserializeOwned>(
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<(T, Vec<OwnedFd>), WireError> {
    if bytes.is_empty() {
        return Err(WireError::Closed);
    }
    let message = serde_json::from_slice(bytes).map_err(WireError::Malformed)?;
    Ok((message, descriptors))
}

fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let pushed = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(pushed, "the space is made for MAX_DESCRIPTORS");
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_packet(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; MAX_MESSAGE_BYTES];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptors = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    bytes.truncate(received.bytes);
    Ok((bytes, descriptors))
}

fn sending(error: io::Error) -> WireError {
    match error.raw_os_error() {
        Some(code) if code == Errno::PIPE.raw_os_error() => WireError::Closed,
        Some(code) if code == Errno::MSGSIZE.raw_os_error() => WireError::TooLarge,
        _ => WireError::Send(error),
    }
}

fn receiving(error: io::Error) -> WireError {
    match error.raw_os_error() {
        Some(code) if code == Errno::CONNRESET.raw_os_error() => WireError::Closed,
        Some(code) if code == Errno::MSGSIZE.raw_os_error() => WireError::TooLarge,
        _ => WireError::Receive(error),
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.get_ref().as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn messages_and_descriptors_cross_a_listener() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s.sock");
        let listener = WireListener::bind(&path, 0o600).expect("bind");
        let again = WireListener::bind(&path, 0o600).expect("a second bind replaces the first");
        drop(listener);
        let client = Wire::connect(&path).expect("connect");
        let server = again.accept().await.expect("accept");
        assert_eq!(server.peer().expect("peer").uid, rustix::process::getuid().as_raw());
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        client.send(&("hello", 5), &[writer.as_fd()]).await.expect("send");
        drop(writer);
        let ((word, number), descriptors): ((String, u32), _) = server.receive().await.expect("receive");
        assert_eq!((word.as_str(), number, descriptors.len()), ("hello", 5, 1));
        let mut far = std::fs::File::from(descriptors.into_iter().next().expect("one"));
        far.write_all(b"through").expect("write");
        drop(far);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
        drop(client);
        assert!(matches!(server.receive::<u32>().await, Err(WireError::Closed)));
    }

    #[test]
    fn what_killed_processes_left_goes_and_what_others_make_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let mut dead = std::process::Command::new("true").spawn().expect("starts");
        let (gone, alive) = (dead.id(), std::os::unix::process::parent_id());
        dead.wait().expect("ended");
        let left =
            [format!("s.{gone}.new"), format!("s.{alive}.new"), format!("t.{gone}.new"), "s.x.new".into()];
        for name in &left {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        let _socket = listen_at(&folder.path().join("s.sock"), 0o600).expect("bound");
        let there = left.map(|name| folder.path().join(name).exists());
        assert_eq!(there, [false, true, true, true]);
    }

    #[test]
    fn an_end_is_seen_before_anything_is_received() {
        let (near, far) = pair().expect("sockets");
        let (near, far) = (BlockingWire::of(near), BlockingWire::of(far));
        assert!(near.is_open().expect("ask"), "nothing has come yet");
        far.send(&1, &[]).expect("send");
        assert!(near.is_open().expect("ask"), "a message waits");
        assert_eq!(near.receive::<u32>().expect("receive").0, 1, "and is still there");
        drop(far);
        assert!(!near.is_open().expect("ask"));
    }

    #[tokio::test]
    async fn bounds_and_bad_messages_are_errors() {
        let (left, right) = pair().expect("pair");
        let (left, right) = (Wire::of(left).expect("left"), BlockingWire::of(right));
        assert!(matches!(left.send(&"x".repeat(MAX_MESSAGE_BYTES), &[]).await, Err(WireError::TooLarge)));
        left.send(&"x".repeat(MAX_MESSAGE_BYTES - 2), &[]).await.expect("just fits");
        assert_eq!(right.receive::<String>().expect("arrives").0.len(), MAX_MESSAGE_BYTES - 2);
        left.send(&"text", &[]).await.expect("send");
        assert!(matches!(right.receive::<u32>(), Err(WireError::Malformed(_))));
        drop(left);
        assert!(matches!(right.receive::<u32>(), Err(WireError::Closed)));
    }
}
