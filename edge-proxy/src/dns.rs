//! The small name server for names whose `_acme-challenge` was delegated to this host. It answers from the table in
//! force; see [`crate::pure::question`] for what it knows.

use crate::metrics::{Count, Metrics};
use crate::pure::question::{self, Reply, Way};
use crate::table::Tables;
use hickory_proto::rr::Name;
use model::host::HostName;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Largest question: names have 255 bytes at most, and options a few more.
const QUESTION_BYTES: usize = 1232;
/// Streams at once. Resolvers come by datagram first, and by stream for what was cut.
const MAX_STREAMS: usize = 64;
/// Longest that a stream may be silent or take to be answered (RFC 7766 section 6.2.3 advises seconds).
const STREAM_WAIT: Duration = Duration::from_secs(5);
/// Wait after a socket failed: for memory or descriptors as a rule, of which no event tells.
const AGAIN: Duration = Duration::from_millis(50);

/// What the server answers from. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Names {
    tables: Tables,
    metrics: Arc<Metrics>,
    host: Arc<Name>,
}

impl Names {
    /// Answers from `tables`, as the name server that is called `host`.
    #[must_use]
    pub fn new(tables: Tables, metrics: Arc<Metrics>, host: Option<&HostName>) -> Self {
        let host = host.and_then(|host| Name::from_ascii(format!("{host}.")).ok()).unwrap_or_else(Name::root);
        Self { tables, metrics, host: Arc::new(host) }
    }

    fn answer(&self, bytes: &[u8], way: Way) -> Option<Vec<u8>> {
        let tables = self.tables.now();
        let (count, reply) =
            match question::answer(bytes, way, &self.host, |name| tables.challenges.dns(name).to_vec()) {
                Reply::Answer(bytes) => (Count::DnsAnswers, Some(bytes)),
                Reply::Refusal(bytes) => (Count::DnsRefused, Some(bytes)),
                Reply::None => (Count::DnsMalformed, None),
            };
        self.metrics.count(count);
        reply
    }
}

/// Answers datagrams for ever, one after the other.
pub async fn datagrams(names: Names, socket: UdpSocket) {
    let mut bytes = [0; QUESTION_BYTES];
    loop {
        let failed = match socket.recv_from(&mut bytes).await {
            Ok((length, asker)) => match names.answer(&bytes[..length], Way::Datagram) {
                Some(reply) => socket.send_to(&reply, asker).await.err(),
                None => None,
            },
            Err(error) => Some(error),
        };
        if let Some(error) = failed {
            debug!(%error, "a DNS datagram is lost");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Answers streams for ever.
pub async fn streams(names: Names, listener: TcpListener) {
    let open = Arc::new(Semaphore::new(MAX_STREAMS));
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => match Arc::clone(&open).try_acquire_owned() {
                Ok(permit) => {
                    let names = names.clone();
                    tokio::spawn(async move {
                        if let Err(error) = stream(&names, tcp).await {
                            debug!(%error, "a DNS stream broke");
                        }
                        drop(permit);
                    });
                }
                Err(_) => names.metrics.count(Count::DnsOverConnections),
            },
            Err(error) => {
                warn!(%error, "cannot accept a DNS stream");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// Answers the questions of one stream, each behind its length (RFC 1035 section 4.2.2).
async fn stream(names: &Names, mut tcp: TcpStream) -> io::Result<()> {
    while let Some(bytes) = timeout(STREAM_WAIT, question(&mut tcp)).await?? {
        let Some(reply) = names.answer(&bytes, Way::Stream) else { return Ok(()) };
        let length = u16::try_from(reply.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let framed = [&length.to_be_bytes(), reply.as_slice()].concat();
        timeout(STREAM_WAIT, tcp.write_all(&framed)).await??;
    }
    Ok(())
}

/// The next question; none at the end, or when it is too long to be one.
async fn question(tcp: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match tcp.read_u16().await {
        Ok(length) => usize::from(length),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    if length > QUESTION_BYTES {
        return Ok(None);
    }
    let mut bytes = vec![0; length];
    tcp.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}
