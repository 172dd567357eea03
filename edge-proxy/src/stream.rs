//! A client's TLS connection, as the HTTP engine sees it.
//!
//! - Reading is gated: the engine gets the bytes of the request in its hands and none of the next one's, so every
//!   head passes the gate of [`crate::pure::head`] first, a pipelined one too.
//! - Bodies in chunks are followed by [`crate::pure::chunks`], so that their end is known and nothing doubtful passes.
//! - Frames of HTTP/2 are watched by [`crate::http2`].
//! - Writing is gathered: head and body of a small answer leave as one TLS record in one system call. What the engine
//!   does not flush leaves by itself when no more has come for a moment ([`GATHER_WAIT`]).
//! - A client that takes nothing for [`crate::settings::Settings::write_stall`] is an error, whoever writes.

use crate::certificates::Certificate;
use crate::http2::Watch;
use crate::metrics::{Count, Metrics};
use crate::pure::chunks::Chunks;
use crate::pure::head::Framing;
use crate::socket::Socket;
use bytes::{Buf, BytesMut};
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID,
};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::{Sleep, timeout};
use tokio_rustls::server::TlsStream;

/// Gathered before it is written: the plaintext of one TLS record.
const GATHER_BYTES: usize = 16 << 10;
/// Longest that a part of an answer waits for the next part. The engine flushes no answer of a known length before it is
/// whole, and a VM may take its time over one; most that write head and body apart do so well within this.
const GATHER_WAIT: Duration = Duration::from_millis(5);
/// Kept of requests that a client sends ahead of their turn.
const AHEAD_BYTES: usize = 16 << 10;
/// Step in which heads are read: most fit in one.
const HEAD_STEP: usize = 4 << 10;
/// Read and thrown away after the last answer, so that the client can read it before the reset that unread bytes
/// cause (RFC 9112 section 9.6), and for how long.
const LINGER_BYTES: usize = 256 << 10;
/// See [`LINGER_BYTES`].
const LINGER: Duration = Duration::from_secs(1);
/// For the goodbye of TLS.
const GOODBYE: Duration = Duration::from_secs(2);

/// What is known of a connection for all its requests.
#[derive(Clone, Debug)]
pub struct Client {
    /// The client's address.
    pub address: SocketAddr,
    /// The certificate that it was shown.
    pub certificate: Arc<Certificate>,
    /// Requests that the engine has handed on.
    pub requests: Arc<AtomicU64>,
}

/// A client's TLS connection.
pub struct ClientStream {
    tls: Box<TlsStream<Socket>>,
    read: BytesMut,
    gate: Gate,
    gathered: Vec<u8>,
    /// Whether something was written since all was flushed, and how long that still waits for more.
    unflushed: bool,
    lull: Option<Pin<Box<Sleep>>>,
    stall: Option<Pin<Box<Sleep>>>,
    write_stall: Duration,
    watch: Option<Box<Watch>>,
    /// Why the client is cut, as soon as it has been told.
    cut: Option<io::Error>,
    client: Arc<Client>,
    facts: Arc<ProxyDigest>,
    metrics: Arc<Metrics>,
}

/// How much of what comes in belongs to the request in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// All: HTTP/2, or a tunnel.
    Open,
    /// So many bytes.
    Left(u64),
    /// Up to the end of a body in chunks.
    Chunked(Chunks),
}

impl ClientStream {
    /// Takes a connection over whose handshake is done.
    #[must_use]
    pub fn new(
        tls: Box<TlsStream<Socket>>,
        client: Client,
        write_stall: Duration,
        metrics: Arc<Metrics>,
    ) -> Self {
        let facts = Box::new(client.clone()) as Box<dyn std::any::Any + Send + Sync>;
        // The engine hands this digest to every request of the connection; its own field stays empty.
        let facts = ProxyDigest::new(Box::new(empty_header()), Some(facts));
        Self {
            tls,
            read: BytesMut::new(),
            gate: Gate::Open,
            gathered: Vec::new(),
            unflushed: false,
            lull: None,
            stall: None,
            write_stall,
            watch: None,
            cut: None,
            client: Arc::new(client),
            facts: Arc::new(facts),
            metrics,
        }
    }

    /// What is known of the connection.
    #[must_use]
    pub fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Whether HTTP/2 was agreed on.
    #[must_use]
    pub fn speaks_http2(&self) -> bool {
        self.tls.get_ref().1.alpn_protocol() == Some(b"h2")
    }

    /// Bytes that have come in and were not given out.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        &self.read
    }

    /// Takes the first `length` of the waiting bytes.
    pub fn take(&mut self, length: usize) -> BytesMut {
        self.read.split_to(length)
    }

    /// Waits for more bytes; false at the end. Takes no memory while it waits.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn fill(&mut self) -> io::Result<bool> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// From here on the engine gets so much of what comes in.
    pub fn begin(&mut self, framing: Framing) {
        self.gate = match framing {
            Framing::None => Gate::Left(0),
            Framing::Length(length) => Gate::Left(length),
            Framing::Chunked => Gate::Chunked(Chunks::default()),
        };
    }

    /// From here on whoever reads gets all that comes in.
    pub fn open(&mut self) {
        self.gate = Gate::Open;
    }

    /// From here on frames are watched: the client speaks HTTP/2. A header block may take `block_wait`.
    pub fn watch_http2(&mut self, block_wait: Duration) {
        let taken = Arc::clone(&self.client.requests);
        self.watch = Some(Box::new(Watch::new(block_wait, taken, Arc::clone(&self.metrics))));
    }

    /// Whether the request in progress, if there is one, has been given out whole.
    #[must_use]
    pub fn is_between_requests(&self) -> bool {
        match self.gate {
            Gate::Open => false,
            Gate::Left(left) => left == 0,
            Gate::Chunked(chunks) => chunks.is_whole(),
        }
    }

    /// Reads from the client; frames of HTTP/2 are watched as they come.
    fn poll_client(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.is_some() {
            return self.poll_cut(cx);
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.tls).poll_read(cx, buf);
        let Some(watch) = &mut self.watch else { return read };
        let watched = match read {
            Poll::Pending => ready!(watch.poll_late(cx)),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) => watch.received(&buf.filled()[before..]),
        };
        let Err(error) = watched else { return Poll::Ready(Ok(())) };
        if let Some(farewell) = watch.farewell() {
            self.gathered.extend_from_slice(farewell.as_ref());
        }
        self.cut = Some(error);
        self.poll_cut(cx)
    }

    /// Tells the client why it is cut, as far as it listens.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let told = ready!(self.poll_drain(cx)).and(ready!(Pin::new(&mut self.tls).poll_flush(cx)));
        let cause = self.cut.take().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
        if let Err(error) = told {
            tracing::debug!(%error, "the client does not hear why it is cut");
        }
        Poll::Ready(Err(cause))
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut step = [std::mem::MaybeUninit::uninit(); HEAD_STEP];
        let mut step = ReadBuf::uninit(&mut step);
        ready!(self.poll_client(cx, &mut step))?;
        self.read.extend_from_slice(step.filled());
        Poll::Ready(Ok(!step.filled().is_empty()))
    }

    /// Between requests, or when the request in progress is read whole: only the client's going away is of interest.
    fn poll_watch(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.read.len() < AHEAD_BYTES {
            let more = ready!(self.poll_fill(cx))?;
            if !more {
                // A client that sent the next request before it closed still waits for this one's answer.
                return if self.read.is_empty() { Poll::Ready(Ok(())) } else { Poll::Pending };
            }
        }
        Poll::Pending
    }

    fn poll_gated(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>, left: u64) -> Poll<io::Result<()>> {
        let most = buf.remaining().min(usize::try_from(left).unwrap_or(usize::MAX)).min(GATHER_BYTES);
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
        ready!(Pin::new(&mut self.tls).poll_read(cx, &mut part))?;
        let count = part.filled().len();
        buf.advance(count);
        self.gate = Gate::Left(left - count as u64);
        Poll::Ready(Ok(()))
    }

    /// A piece of a body in chunks: what comes is read first and then given out as far as it is the body's.
    fn poll_chunks(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            let most = buf.remaining().min(GATHER_BYTES);
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(most));
            ready!(Pin::new(&mut self.tls).poll_read(cx, &mut part))?;
            let count = part.filled().len();
            let passed = pass(&mut self.gate, part.filled(), &self.metrics)?;
            self.read.extend_from_slice(&part.filled()[passed..]);
            debug_assert!(passed > 0 || count == 0, "a body that is not whole takes a byte");
            buf.advance(passed);
            return Poll::Ready(Ok(()));
        }
        self.give_waiting(buf)?;
        Poll::Ready(Ok(()))
    }

    fn give_waiting(&mut self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let most = self.read.len().min(buf.remaining());
        let step = pass(&mut self.gate, &self.read[..most], &self.metrics)?;
        buf.put_slice(&self.read[..step]);
        self.read.advance(step);
        if self.read.is_empty() {
            self.read = BytesMut::new();
        }
        Ok(())
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut sent = 0;
        while sent < self.gathered.len() {
            match Pin::new(&mut self.tls).poll_write(cx, &self.gathered[sent..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => sent += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.gathered.drain(..sent);
                    if sent > 0 {
                        self.stall = None;
                    }
                    return self.poll_stall(cx);
                }
            }
        }
        if sent > 0 {
            self.stall = None;
            self.gathered = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Pending: the engine waits for the client, which is when it has nothing to write. Soon flushes what it has written.
    fn poll_lull(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let lull = self.lull.get_or_insert_with(|| Box::pin(tokio::time::sleep(GATHER_WAIT)));
        ready!(lull.as_mut().poll(cx));
        ready!(self.poll_send(cx))?;
        Poll::Pending
    }

    /// Writes and flushes all there is.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        match Pin::new(&mut self.tls).poll_flush(cx) {
            Poll::Ready(flushed) => {
                self.stall = None;
                self.lull = None;
                self.unflushed = false;
                Poll::Ready(flushed)
            }
            Poll::Pending => self.poll_stall(cx),
        }
    }

    fn note_sent(&mut self, bytes: &[u8]) {
        if let Some(watch) = &mut self.watch {
            watch.sent(bytes);
        }
    }

    /// Pending, until the client has taken nothing for too long.
    fn poll_stall(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let wait = self.write_stall;
        let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(wait)));
        ready!(stall.as_mut().poll(cx));
        self.metrics.count(Count::WriteStalled);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing of its answer")))
    }

    /// Ends the connection so that the client can still read the last answer.
    pub async fn close(&mut self) {
        let goodbye = timeout(GOODBYE, AsyncWriteExt::shutdown(self)).await;
        if matches!(goodbye, Ok(Ok(()))) {
            let linger = async {
                let mut thrown = self.read.len();
                self.read = BytesMut::new();
                while thrown < LINGER_BYTES && matches!(self.fill().await, Ok(true)) {
                    thrown += self.read.len();
                    self.read.clear();
                }
            };
            if timeout(LINGER, linger).await.is_err() {
                tracing::debug!("the client did not close in time");
            }
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let read = match this.gate {
            Gate::Open | Gate::Left(1..) if !this.read.is_empty() => Poll::Ready(this.give_waiting(buf)),
            Gate::Open => this.poll_client(cx, buf),
            Gate::Left(0) => this.poll_watch(cx),
            Gate::Left(left) => this.poll_gated(cx, buf, left),
            Gate::Chunked(chunks) if chunks.is_whole() => this.poll_watch(cx),
            Gate::Chunked(_) => this.poll_chunks(cx, buf),
        };
        if read.is_pending() && this.unflushed && this.gate != Gate::Open { this.poll_lull(cx) } else { read }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.unflushed = true;
        if this.gathered.len() + bytes.len() > GATHER_BYTES {
            ready!(this.poll_drain(cx))?;
        }
        if bytes.len() < GATHER_BYTES {
            this.gathered.extend_from_slice(bytes);
            this.note_sent(bytes);
            return Poll::Ready(Ok(bytes.len()));
        }
        match Pin::new(&mut this.tls).poll_write(cx, bytes) {
            Poll::Ready(written) => {
                this.stall = None;
                if let Ok(count) = &written {
                    this.note_sent(&bytes[..*count]);
                }
                Poll::Ready(written)
            }
            Poll::Pending => this.poll_stall(cx).map_ok(|()| 0),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[async_trait::async_trait]
impl Shutdown for ClientStream {
    async fn shutdown(&mut self) {
        self.open();
        self.close().await;
    }
}

impl UniqueID for ClientStream {
    fn id(&self) -> i32 {
        self.tls.get_ref().0.tcp().as_raw_fd()
    }
}

impl Ssl for ClientStream {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        None
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        Some(if self.speaks_http2() { ALPN::H2 } else { ALPN::H1 })
    }
}

impl GetTimingDigest for ClientStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for ClientStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.facts))
    }
}

impl GetSocketDigest for ClientStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        None
    }
}

impl Peek for ClientStream {}

impl fmt::Debug for ClientStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientStream")
            .field("client", &self.client.address)
            .field("gate", &self.gate)
            .finish()
    }
}

/// How many of the bytes belong to the request in progress; they are noted as given out.
fn pass(gate: &mut Gate, bytes: &[u8], metrics: &Metrics) -> io::Result<usize> {
    match gate {
        Gate::Open => Ok(bytes.len()),
        Gate::Left(left) => {
            let step = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= step as u64;
            Ok(step)
        }
        Gate::Chunked(chunks) => chunks.passed(bytes).map_err(|fault| {
            metrics.count(Count::BadChunks);
            io::Error::new(io::ErrorKind::InvalidData, fault)
        }),
    }
}

fn empty_header() -> ResponseHeader {
    ResponseHeader::build(http::StatusCode::OK, Some(0)).expect("200 is a status")
}
