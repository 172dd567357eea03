//! A TCP connection that can be cut from elsewhere, at once, whatever its reader and writer wait for.

use rustix::net::Shutdown;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// One connection. Its clones are the same one.
#[derive(Clone, Debug)]
pub struct Leg(Arc<TcpStream>);

impl Leg {
    /// Wraps a connected socket. What is written is sent at once: a key pressed must not wait for the next one.
    #[must_use]
    pub fn new(stream: TcpStream) -> Self {
        // A socket of another kind than TCP's has nothing to set.
        stream.set_nodelay(true).ok();
        Self(Arc::new(stream))
    }

    /// Ends it: whoever reads or writes gets an end or an error now. What the peer has not read yet is dropped.
    pub fn cut(&self) {
        // The kernel would keep what was written and not read, of a peer that reads no more.
        rustix::net::sockopt::set_socket_linger(&*self.0, Some(Duration::ZERO)).ok();
        // An error means that it is not connected any more.
        rustix::net::shutdown(&*self.0, Shutdown::Both).ok();
    }
}

impl AsyncRead for Leg {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(length) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Leg {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, Shutdown::Write).map_err(Into::into))
    }
}
