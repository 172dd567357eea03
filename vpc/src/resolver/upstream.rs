//! The name servers that questions go on to, from the host's namespace, each question from a socket of its own:
//! a random port from the kernel and a random id, so that an answer cannot be forged blindly (RFC 5452).

use crate::pure::dns::{Question, name_servers};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tracing::warn;

/// The host's own settings.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long what it said is believed.
const RESOLV_CONF_AGE: Duration = Duration::from_secs(5);
/// Name servers that are asked for one question, each once: as many as resolv.conf(5) may name.
const MAX_SERVERS: usize = 3;
/// Longest that one server is waited for. A guest's own resolver waits 5 s.
const SERVER_PATIENCE: Duration = Duration::from_millis(1500);
/// Wrong answers to one question that are read before it is given up: somebody is guessing.
const MAX_MISMATCHES: usize = 16;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// No name server is known.
    #[error("no name server is known")]
    NoServer,
    /// The question cannot be written.
    #[error("the question cannot be encoded")]
    Encode,
    /// A name server cannot be talked to.
    #[error("name server {server} cannot be talked to: {source}")]
    Talk {
        /// Which.
        server: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// It does not answer in time.
    #[error("name server {0} does not answer")]
    Late(SocketAddr),
    /// It answers something else, again and again.
    #[error("name server {0} gives answers that do not fit")]
    Mismatch(SocketAddr),
}

/// How a question travels; as the guest's came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// One datagram.
    Udp,
    /// A connection.
    Tcp,
}

/// Name servers.
#[derive(Debug)]
pub struct Upstreams {
    given: Vec<SocketAddr>,
    host: Mutex<Option<(Instant, Vec<SocketAddr>)>>,
}

impl Upstreams {
    /// These, or the host's own when there are none.
    #[must_use]
    pub fn new(given: Vec<SocketAddr>) -> Self {
        Self { given, host: Mutex::new(None) }
    }

    /// Asks one server after another.
    ///
    /// # Errors
    /// What the last one did.
    pub async fn ask(&self, question: &Question, transport: Transport) -> Result<Vec<u8>, UpstreamError> {
        let mut last = UpstreamError::NoServer;
        for server in self.servers().into_iter().take(MAX_SERVERS) {
            let asked = async {
                match transport {
                    Transport::Udp => ask_udp(server, question).await,
                    Transport::Tcp => ask_tcp(server, question).await,
                }
            };
            match timeout(SERVER_PATIENCE, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => last = error,
                Err(_) => last = UpstreamError::Late(server),
            }
        }
        Err(last)
    }

    fn servers(&self) -> Vec<SocketAddr> {
        if !self.given.is_empty() {
            return self.given.clone();
        }
        let mut known = self.host.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, servers)) = known.as_ref().filter(|(read, _)| read.elapsed() < RESOLV_CONF_AGE) {
            return servers.clone();
        }
        // A file of a few lines in the page cache: no reason to leave the thread for it.
        let servers = match std::fs::read_to_string(RESOLV_CONF) {
            Ok(text) => name_servers(&text).map(|address| SocketAddr::new(address, 53)).collect(),
            Err(error) => {
                warn!(%error, "{RESOLV_CONF} cannot be read");
                Vec::new()
            }
        };
        known.insert((Instant::now(), servers)).1.clone()
    }
}

async fn ask_udp(server: SocketAddr, question: &Question) -> Result<Vec<u8>, UpstreamError> {
    let talk = |source| UpstreamError::Talk { server, source };
    let any = match server {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await.map_err(talk)?;
    // Connected: the kernel drops what comes from anywhere else.
    socket.connect(server).await.map_err(talk)?;
    let id = rand::random();
    socket.send(&question.for_upstream(id).ok_or(UpstreamError::Encode)?).await.map_err(talk)?;
    let mut bytes = vec![0; usize::from(u16::MAX)];
    for _ in 0..MAX_MISMATCHES {
        let length = socket.recv(&mut bytes).await.map_err(talk)?;
        if let Ok(answer) = question.accept(id, bytes.get(..length).unwrap_or_default().to_vec()) {
            return Ok(answer);
        }
    }
    Err(UpstreamError::Mismatch(server))
}

async fn ask_tcp(server: SocketAddr, question: &Question) -> Result<Vec<u8>, UpstreamError> {
    let talk = |source| UpstreamError::Talk { server, source };
    let mut stream = TcpStream::connect(server).await.map_err(talk)?;
    let id = rand::random();
    let bytes = question.for_upstream(id).ok_or(UpstreamError::Encode)?;
    write_message(&mut stream, &bytes).await.map_err(talk)?;
    let answer = read_message(&mut stream, usize::from(u16::MAX)).await.map_err(talk)?;
    question.accept(id, answer).map_err(|_| UpstreamError::Mismatch(server))
}

/// Writes a message with its length in front (RFC 1035 section 4.2.2).
///
/// # Errors
/// When it is over 65,535 octets or the peer is gone.
pub async fn write_message(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(bytes);
    stream.write_all(&framed).await
}

/// Reads a message with its length in front.
///
/// # Errors
/// When it is over `most` octets or the peer is gone.
pub async fn read_message(stream: &mut TcpStream, most: usize) -> io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
