//! Asks the questions of a proof, over UDP and TCP.

use crate::pure::message::{MAX_TCP_BYTES, MAX_UDP_BYTES, Mismatch};
use crate::pure::proof::{Labels, Next, Proof, Proving};
use crate::pure::walk::{Ask, Heard, Walk};
use model::host::HostName;
use rand::seq::SliceRandom;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// DNS's port (RFC 1035 section 4.2).
pub const DNS_PORT: u16 = 53;
/// How long one server is waited for. Twice the slowest way around the world, with room.
const QUERY_WAIT: Duration = Duration::from_secs(2);
/// How long one proof may take, its wait for a place in the queue apart: people wait for it.
const PROOF_WAIT: Duration = Duration::from_secs(20);
/// How long a proof waits for a place.
const PLACE_WAIT: Duration = Duration::from_secs(10);
/// Proofs at once: each holds a socket.
const MAX_PROOFS: usize = 16;
/// Datagrams that are no answer, after which a server is given up: somebody is guessing.
const MAX_STRAYS: usize = 32;
/// The root's name servers (IANA's root hints). Their addresses change about once in ten years, one at a time.
const ROOTS: [[u8; 4]; 13] = [
    [198, 41, 0, 4],
    [170, 247, 170, 2],
    [192, 33, 4, 12],
    [199, 7, 91, 13],
    [192, 203, 230, 10],
    [192, 5, 5, 241],
    [192, 112, 36, 4],
    [198, 97, 190, 53],
    [192, 36, 148, 17],
    [192, 58, 128, 30],
    [193, 0, 14, 129],
    [199, 7, 83, 42],
    [202, 12, 27, 33],
];

/// How proofs are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name servers of the root.
    pub roots: Vec<IpAddr>,
    /// The port on which all name servers are asked.
    pub port: u16,
    /// Whether servers inside one's own networks may be asked too.
    pub any_address: bool,
    /// Where the code stands.
    pub labels: Labels,
}

impl Default for Settings {
    fn default() -> Self {
        let roots = ROOTS.map(|octets| IpAddr::V4(octets.into())).to_vec();
        Self { roots, port: DNS_PORT, any_address: false, labels: Labels::default() }
    }
}

/// Why a proof was not even begun.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ProveError {
    /// Too many are under way.
    #[error("{MAX_PROOFS} domains are being looked at; try again in a few seconds")]
    Busy,
}

/// Makes proofs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Prover {
    settings: Arc<Settings>,
    places: Arc<Semaphore>,
}

impl Prover {
    /// One with these settings.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings), places: Arc::new(Semaphore::new(MAX_PROOFS)) }
    }

    /// Where the code for a domain is to stand.
    #[must_use]
    pub fn labels(&self) -> &Labels {
        &self.settings.labels
    }

    /// Asks the domain's own name servers for any of the codes.
    ///
    /// # Errors
    /// [`ProveError::Busy`]. What the servers said, or that they did not, stands in the [`Proof`].
    pub async fn prove(&self, domain: &HostName, codes: Vec<String>) -> Result<Proof, ProveError> {
        let place = timeout(PLACE_WAIT, self.places.acquire()).await;
        // The semaphore is never closed.
        let Ok(Ok(_place)) = place else { return Err(ProveError::Busy) };
        let deadline = Instant::now() + PROOF_WAIT;
        let mut roots = self.settings.roots.clone();
        roots.shuffle(&mut rand::rng());
        let walk = Walk::new(roots, self.settings.any_address);
        let mut proving = Proving::new(domain, &self.settings.labels, codes, walk);
        loop {
            match proving.proceed() {
                Next::Done(proof) => return Ok(proof),
                Next::Ask(ask) => match timeout_at(deadline, self.ask(&ask)).await {
                    Ok(heard) => proving.hear(heard),
                    Err(_) => {
                        proving.hear(Heard::Silence);
                        let seconds = PROOF_WAIT.as_secs();
                        proving.give_up(&format!("the servers took longer than {seconds} seconds together"));
                    }
                },
            }
        }
    }

    async fn ask(&self, ask: &Ask) -> Heard {
        let server = SocketAddr::new(ask.server, self.settings.port);
        let id = rand::random();
        let Some(question) = ask.question.bytes(id, ask.edns) else {
            return Heard::Broken("could not be asked: the question cannot be written".to_owned());
        };
        let asking = async {
            if ask.tcp {
                over_tcp(server, ask, id, &question).await
            } else {
                over_udp(server, ask, id, &question).await
            }
        };
        match timeout(QUERY_WAIT, asking).await {
            Err(_) => Heard::Silence,
            Ok(Ok(heard)) => heard,
            Ok(Err(error)) => Heard::Broken(format!("could not be asked: {error}")),
        }
    }
}

/// A new socket for each question, so that its port is as hard to guess as its id. Connected, so that the kernel drops
/// what comes from elsewhere.
async fn over_udp(server: SocketAddr, ask: &Ask, id: u16, question: &[u8]) -> io::Result<Heard> {
    let any =
        if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = [0; MAX_UDP_BYTES as usize];
    for _ in 0..MAX_STRAYS {
        let length = socket.recv(&mut buffer).await?;
        match ask.question.read(id, &buffer[..length], &ask.zone) {
            Ok(said) => return Ok(Heard::Said(said)),
            Err(Mismatch::Garbage | Mismatch::Other) => {}
        }
    }
    Ok(Heard::Broken(format!("sent {MAX_STRAYS} datagrams that are no answer to the question")))
}

/// RFC 7766: two octets of length before each message.
async fn over_tcp(server: SocketAddr, ask: &Ask, id: u16, question: &[u8]) -> io::Result<Heard> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).unwrap_or(u16::MAX);
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    if length > MAX_TCP_BYTES {
        return Ok(Heard::Broken(format!(
            "has an answer of {length} bytes; at most {MAX_TCP_BYTES} are read"
        )));
    }
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    Ok(match ask.question.read(id, &answer, &ask.zone) {
        Ok(said) => Heard::Said(said),
        Err(mismatch) => Heard::Broken(format!("sent what is {mismatch}")),
    })
}
