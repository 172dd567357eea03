//! The TCP socket below TLS, with a read buffer only while a client sends much.
//!
//! rustls asks for 4 KiB at a time, so an upload costs four system calls for each 16 KiB record. When a read was
//! filled to the brim, more is waiting: the next one takes [`AHEAD_BYTES`] at once. A connection that sends little
//! has no buffer, which matters when many are idle.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Read at once while a client sends much: four TLS records.
const AHEAD_BYTES: usize = 64 << 10;

/// A client's TCP connection.
#[derive(Debug)]
pub struct Socket {
    tcp: TcpStream,
    ahead: Option<Ahead>,
}

#[derive(Debug)]
struct Ahead {
    bytes: Box<[u8]>,
    at: usize,
    end: usize,
}

impl Socket {
    /// Takes a connection over.
    #[must_use]
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, ahead: None }
    }

    /// The connection itself.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

impl Ahead {
    fn give(&mut self, buf: &mut ReadBuf<'_>) {
        let step = (self.end - self.at).min(buf.remaining());
        buf.put_slice(&self.bytes[self.at..self.at + step]);
        self.at += step;
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(ahead) = &mut this.ahead else {
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
            if buf.remaining() == 0 && buf.filled().len() > before {
                this.ahead = Some(Ahead { bytes: vec![0; AHEAD_BYTES].into(), at: 0, end: 0 });
            }
            return Poll::Ready(Ok(()));
        };
        if ahead.at == ahead.end {
            let mut space = ReadBuf::new(&mut ahead.bytes);
            let read = Pin::new(&mut this.tcp).poll_read(cx, &mut space);
            if read.is_pending() {
                // The burst is over.
                this.ahead = None;
                return Poll::Pending;
            }
            ready!(read)?;
            (ahead.at, ahead.end) = (0, space.filled().len());
        }
        ahead.give(buf);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_burst_is_read_ahead_and_the_buffer_goes_when_it_is_over() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let mut client = TcpStream::connect(listener.local_addr().expect("address")).await.expect("connect");
        let mut socket = Socket::new(listener.accept().await.expect("accept").0);
        client.write_all(b"short").await.expect("write");
        let mut small = [0; 4096];
        assert_eq!(socket.read(&mut small).await.expect("read"), 5);
        assert!(socket.ahead.is_none());
        let sent: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        let wanted = sent.clone();
        let writing = tokio::spawn(async move {
            client.write_all(&sent).await.expect("write");
            client
        });
        let mut got = Vec::new();
        let mut ahead = false;
        while got.len() < wanted.len() {
            let count = socket.read(&mut small).await.expect("read");
            got.extend_from_slice(&small[..count]);
            ahead |= socket.ahead.is_some();
        }
        assert!(got == wanted && ahead);
        let mut client = writing.await.expect("writer");
        let (read, written) = tokio::join!(socket.read(&mut small), async {
            tokio::task::yield_now().await;
            client.write_all(b"x").await
        });
        assert_eq!(read.expect("read"), 1);
        written.expect("write");
        assert!(socket.ahead.is_none());
    }
}
