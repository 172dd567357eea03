//! What other processes ask of vpc: a connected socket to a VM's port, or the TAP of a VM's NIC.
//!
//! One request and one reply per packet over the socket of [`model::config::Places::vpc_socket`]; requests on one
//! connection are answered in order. Asking again after a lost connection is safe.

use feed::wire::{BlockingWire, Wire, WireError};
use model::id::{Generation, RuleId, ServiceId, VmId, VpcId};
use model::route::Permit;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Longest that vpc waits for a VM to accept a connection, or for a view that it has not seen yet.
pub const SERVER_WAIT: Duration = Duration::from_secs(5);
/// Longest that vpc waits for a VM that sleeps: its memory, of several GiB, is read from a disk before it answers, and
/// the supervisor of the VMs gives a start as long.
pub const WAKE_WAIT: Duration = Duration::from_secs(30);
/// Longest that a caller waits for vpc: a restart of it, and its own wait.
const CLIENT_WAIT: Duration = Duration::from_secs(20);
/// The same for a dial, whose VM may have to wake.
const DIAL_WAIT: Duration = WAKE_WAIT.saturating_add(CLIENT_WAIT);
/// Longest that a starting VM waits for its TAP; less than the supervisor waits for a machine to report its start.
const TAP_WAIT: Duration = Duration::from_secs(25);
/// Between tries to reach a vpc that restarts. It needs a tenth of a second or more; no event tells when it listens.
const ASK_AGAIN: Duration = Duration::from_millis(25);

/// All that can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum VpcRequest {
    /// A connected TCP socket to a port of a VM.
    Dial {
        /// The VM.
        vm: VmId,
        /// The port; it must be among the dialable ones of vpc's own table.
        port: u16,
    },
    /// The queues of the TAP of a VM's NIC.
    Tap {
        /// The VM.
        vm: VmId,
        /// vpc waits until it has seen at least this decision.
        generation: Generation,
    },
    /// A TUN in a private network, for its VPN clients.
    Tun {
        /// The network.
        vpc: VpcId,
    },
    /// A service joins its network: the network namespace that it lives in rides with this message, and gets a device
    /// with the service's address. Asked again it is made anew.
    Join {
        /// The service.
        service: ServiceId,
        /// vpc waits until it has seen at least this decision.
        generation: Generation,
    },
    /// What the rules of a private network's firewall have judged.
    Rules {
        /// The network.
        vpc: VpcId,
    },
    /// What there is.
    Status,
    /// From now on this connection tells, with one [`VpcReply::Wake`] each, for which sleeping VMs packets wait:
    /// those for which they wait already first.
    Wakes,
}

/// What vpc answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum VpcReply {
    /// The connected socket rides with this message.
    Dialed,
    /// The TAP's queues ride with this message, one descriptor each.
    Tap,
    /// The TUN rides with this message. Nobody else holds it.
    Tun,
    /// The service's device stands.
    Joined,
    /// What the rules have judged.
    Rules {
        /// Those that stand in the kernel.
        counts: Vec<RuleCount>,
    },
    /// What there is.
    Status(VpcStatus),
    /// Packets wait for this VM, which has no process. Told once each time that it falls asleep.
    Wake {
        /// Which VM.
        vm: VmId,
    },
    /// No.
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// What a person reads.
        message: String,
    },
}

/// What one rule has judged, since its network stands here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleCount {
    /// The rule.
    pub id: RuleId,
    /// Packets that it decided on.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Kinds of no, each counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// vpc's table has no such VM.
    UnknownVm,
    /// vpc's table has no such network, or it does not stand.
    UnknownNetwork,
    /// vpc's table has no such service.
    UnknownService,
    /// The port may not be dialled.
    PortNotDialable,
    /// The VM refuses connections to that port: nothing listens.
    ConnectionRefused,
    /// The VM does not answer.
    TimedOut,
    /// The wanted decision did not arrive in time.
    ViewTooOld,
    /// The caller's user may not ask.
    NotAllowed,
    /// vpc is at its bound of requests.
    Busy,
    /// The kernel said no.
    Kernel,
}

/// What there is, for `gatehouse doctor` and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VpcStatus {
    /// The decision that is in force in the kernel.
    pub generation: Generation,
    /// Ports that exist.
    pub ports: usize,
    /// Refusals by reason, since the start.
    pub refusals: Vec<(Refusal, u64)>,
}

/// Why a request to vpc came to nothing.
#[derive(Debug, Error)]
pub enum VpcError {
    /// vpc is not there, or went away.
    #[error("the network process cannot be reached: {0}")]
    Unreachable(#[from] WireError),
    /// vpc did not answer in time.
    #[error("the network process did not answer in time")]
    NoAnswer,
    /// vpc said no.
    #[error("{message}")]
    Refused {
        /// Which kind of no.
        reason: Refusal,
        /// What a person reads.
        message: String,
    },
    /// The answer does not fit the request.
    #[error("the network process gave an answer that does not fit")]
    Unexpected,
    /// The handed-out socket cannot be used.
    #[error("the handed-out socket cannot be used: {0}")]
    Socket(#[source] io::Error),
}

/// The client half. Cheap to clone; each request has its own connection.
#[derive(Clone, Debug)]
pub struct VpcClient {
    socket: PathBuf,
}

impl VpcClient {
    /// A client of the vpc that listens at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Connects to the VM's port that the permit names.
    ///
    /// # Errors
    /// See [`VpcError`]; [`Refusal::ConnectionRefused`] and [`Refusal::TimedOut`] are the VM's doing.
    pub async fn dial(&self, permit: &Permit) -> Result<TcpStream, VpcError> {
        let request = VpcRequest::Dial { vm: permit.vm().clone(), port: permit.port() };
        let (reply, descriptors) = self.ask(&request, DIAL_WAIT).await?;
        let VpcReply::Dialed = reply else { return Err(refusal(reply)) };
        let socket = only(descriptors)?;
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true).map_err(VpcError::Socket)?;
        TcpStream::from_std(stream).map_err(VpcError::Socket)
    }

    /// What there is.
    ///
    /// # Errors
    /// See [`VpcError`].
    pub async fn status(&self) -> Result<VpcStatus, VpcError> {
        match self.ask(&VpcRequest::Status, CLIENT_WAIT).await?.0 {
            VpcReply::Status(status) => Ok(status),
            other => Err(refusal(other)),
        }
    }

    /// What the rules of a private network's firewall have judged; none of a network that does not stand.
    ///
    /// # Errors
    /// See [`VpcError`].
    pub async fn rules(&self, vpc: &VpcId) -> Result<Vec<RuleCount>, VpcError> {
        match self.ask(&VpcRequest::Rules { vpc: vpc.clone() }, CLIENT_WAIT).await?.0 {
            VpcReply::Rules { counts } => Ok(counts),
            VpcReply::Refused { reason: Refusal::UnknownNetwork, .. } => Ok(Vec::new()),
            other => Err(refusal(other)),
        }
    }

    /// The VMs that have no process and for which packets wait: those for which they wait already first, then each
    /// further one. Does not try again while vpc restarts: its end is the caller's to see, since all must be told anew.
    ///
    /// # Errors
    /// See [`VpcError`]. A refusal comes with the first [`Wakes::next`].
    pub async fn wakes(&self) -> Result<Wakes, VpcError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(&VpcRequest::Wakes, &[]).await?;
        Ok(Wakes { wire })
    }

    /// Asks, and asks again while vpc restarts, so that its death costs its callers time and not their requests. `wait`
    /// is for all of it; a vpc that is not there at all is not waited for longer than [`CLIENT_WAIT`].
    async fn ask(&self, request: &VpcRequest, wait: Duration) -> Result<(VpcReply, Vec<OwnedFd>), VpcError> {
        let until = Instant::now() + wait;
        let mut there_until = Instant::now() + CLIENT_WAIT;
        loop {
            let error = match timeout_at(until, self.ask_once(request)).await {
                Err(_) => return Err(VpcError::NoAnswer),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
            };
            if !matches!(error, WireError::Connect { .. }) {
                // It was there, and died over the request.
                there_until = Instant::now() + CLIENT_WAIT;
            }
            if !restarts(&error) || Instant::now() + ASK_AGAIN >= until.min(there_until) {
                return Err(error.into());
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    async fn ask_once(&self, request: &VpcRequest) -> Result<(VpcReply, Vec<OwnedFd>), WireError> {
        let wire = Wire::connect(&self.socket)?;
        wire.send(request, &[]).await?;
        wire.receive().await
    }
}

/// Wakes, as they are told. Its end means that vpc is gone: ask again.
#[derive(Debug)]
pub struct Wakes {
    wire: Wire,
}

impl Wakes {
    /// Waits for the next VM for which packets wait. It may have a process all the same, which has just begun or is
    /// just about to end. Nothing is lost when the call is given up.
    ///
    /// # Errors
    /// When vpc is gone, or refuses.
    pub async fn next(&mut self) -> Result<VmId, VpcError> {
        match self.wire.receive().await?.0 {
            VpcReply::Wake { vm } => Ok(vm),
            other => Err(refusal(other)),
        }
    }
}

/// Asks for the queues of a VM's TAP, from a plain thread. Blocks up to [`TAP_WAIT`]: it asks again while vpc
/// restarts or has not put the decision in force yet.
///
/// # Errors
/// See [`VpcError`].
pub fn tap(socket: &Path, vm: &VmId, generation: Generation) -> Result<Vec<OwnedFd>, VpcError> {
    again_while_it_starts(|| tap_once(socket, vm, generation))
}

fn tap_once(socket: &Path, vm: &VmId, generation: Generation) -> Result<Vec<OwnedFd>, VpcError> {
    let wire = BlockingWire::connect(socket)?;
    wire.send(&VpcRequest::Tap { vm: vm.clone(), generation }, &[])?;
    match wire.receive()? {
        (VpcReply::Tap, queues) if !queues.is_empty() => Ok(queues),
        (reply, _) => Err(refusal(reply)),
    }
}

/// Asks for the TUN of a private network's clients, from a plain thread. Asks once: its caller asks again anyway.
///
/// # Errors
/// See [`VpcError`].
pub fn tun(socket: &Path, vpc: &VpcId) -> Result<OwnedFd, VpcError> {
    let wire = BlockingWire::connect(socket)?;
    wire.send(&VpcRequest::Tun { vpc: vpc.clone() }, &[])?;
    match wire.receive()? {
        (VpcReply::Tun, descriptors) => only(descriptors),
        (reply, _) => Err(refusal(reply)),
    }
}

/// Has a service join its network: `namespace` gets a device with the service's address. For root alone. Blocks as
/// [`tap`] does.
///
/// # Errors
/// See [`VpcError`].
pub fn join(
    socket: &Path,
    service: &ServiceId,
    generation: Generation,
    namespace: BorrowedFd<'_>,
) -> Result<(), VpcError> {
    again_while_it_starts(|| {
        let wire = BlockingWire::connect(socket)?;
        wire.send(&VpcRequest::Join { service: service.clone(), generation }, &[namespace])?;
        match wire.receive()? {
            (VpcReply::Joined, _) => Ok(()),
            (reply, _) => Err(refusal(reply)),
        }
    })
}

/// Asks until there is an answer, for [`TAP_WAIT`] at most: vpc may restart, or not have put the decision in force yet.
fn again_while_it_starts<T>(mut ask: impl FnMut() -> Result<T, VpcError>) -> Result<T, VpcError> {
    let begun = std::time::Instant::now();
    loop {
        match ask() {
            Err(VpcError::Unreachable(error)) if restarts(&error) && begun.elapsed() < TAP_WAIT => {
                std::thread::sleep(ASK_AGAIN);
            }
            // vpc itself has waited before it said so.
            Err(VpcError::Refused { reason: Refusal::ViewTooOld, .. }) if begun.elapsed() < TAP_WAIT => {}
            answer => return answer,
        }
    }
}

/// Whether that is what a vpc looks like that is between two lives; a missing right, for one, is not.
fn restarts(error: &WireError) -> bool {
    match error {
        WireError::Closed => true,
        WireError::Connect { source, .. } => {
            matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
        }
        WireError::Send(source) | WireError::Receive(source) => {
            matches!(source.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
        }
        WireError::Listen { .. } | WireError::Accept(_) | WireError::TooLarge | WireError::Malformed(_) => {
            false
        }
    }
}

fn only(descriptors: Vec<OwnedFd>) -> Result<OwnedFd, VpcError> {
    let mut descriptors = descriptors.into_iter();
    match (descriptors.next(), descriptors.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(VpcError::Unexpected),
    }
}

fn refusal(reply: VpcReply) -> VpcError {
    match reply {
        VpcReply::Refused { reason, message } => VpcError::Refused { reason, message },
        VpcReply::Dialed
        | VpcReply::Tap
        | VpcReply::Tun
        | VpcReply::Joined
        | VpcReply::Rules { .. }
        | VpcReply::Status(_)
        | VpcReply::Wake { .. } => VpcError::Unexpected,
    }
}
