//! A second, tiny process that holds duplicates of the TAPs' queues, so that they outlive vpc.
//!
//! A TAP of one queue cannot be opened again while its VM holds it, and one of several queues must not be
//! (see [`crate::sys::tun`]); and the queue of a VM that has no process holds frames that must not be lost. So when
//! vpc is killed, the keeper goes on holding, and the next vpc takes the very same descriptors over. It knows
//! nothing, decides nothing, and ends when it holds nothing and nobody is connected.
//!
//! ```text
//!            Keep, Forget, List                       connection ends
//!   Serving ───────────────────► Serving      Serving ───────────────► Waiting (holds something) | ended (holds nothing)
//!                                             Waiting ── next vpc ───► Serving
//! ```

use crate::io::observe::Queues;
use crate::pure::names::DeviceName;
use feed::wire::{BlockingWire, Wire, WireError, listen_at};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::net::SocketFlags;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::{info, warn};

/// Longest that the keeper may take for an answer. It only moves descriptors, but a new one must start first, which
/// took 6 s in an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can go wrong with the keeper.
#[derive(Debug, Error)]
pub enum KeeperError {
    /// Its socket cannot be made.
    #[error("the keeper's socket {path} cannot be made: {source}")]
    Listen {
        /// Of the socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be started.
    #[error("the keeper cannot be started: {0}")]
    Start(#[source] io::Error),
    /// It cannot be talked to.
    #[error("the keeper cannot be talked to: {0}")]
    Talk(#[from] WireError),
    /// It takes too long.
    #[error("the keeper did not answer within {PATIENCE:?}")]
    Late,
    /// It answers something else than asked.
    #[error("the keeper's answer does not fit")]
    Unexpected,
    /// Waiting for a connection failed.
    #[error("the keeper cannot wait for connections: {0}")]
    Wait(#[source] io::Error),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
enum Request {
    /// Hold what rides with this message.
    Keep { device: String },
    /// Let go.
    Forget { device: String },
    /// Say all that is held.
    List,
    /// Is it there?
    Hello,
    /// Let go of all and end.
    End,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
enum Reply {
    /// Done; the last answer to any request.
    Done,
    /// One of the held; its queues ride with this message.
    Held { device: String },
}

/// vpc's side, and what vpc itself holds: the queues of all networks' TAPs, whose names no two networks share.
#[derive(Debug)]
pub struct Keeper {
    socket: PathBuf,
    config: PathBuf,
    wire: Option<Wire>,
    held: HashMap<DeviceName, Queues>,
}

impl Keeper {
    /// Connects to the keeper that an earlier vpc left behind, if there is one, and takes over what it holds.
    /// Without one, nothing is held and one is started at the first need.
    pub async fn adopt(socket: PathBuf, config: PathBuf) -> Self {
        let mut keeper = Self { socket, config, wire: None, held: HashMap::new() };
        let Ok(wire) = Wire::connect(&keeper.socket) else { return keeper };
        match list(&wire).await {
            Ok(held) => {
                info!(taps = held.len(), "took queues over from the keeper");
                keeper.wire = Some(wire);
                keeper.held = held;
            }
            Err(error) => warn!(%error, "the keeper that is there cannot be used"),
        }
        keeper
    }

    /// A TAP's queues, when they are held.
    #[must_use]
    pub fn queues(&self, device: &DeviceName) -> Option<&Queues> {
        self.held.get(device)
    }

    /// The TAPs whose queues are held.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceName> {
        self.held.keys()
    }

    /// Holds a TAP's queues from now on. When the keeper is gone, a new one is started and given all. Without any keeper
    /// vpc goes on: its own descriptors are as good until it dies.
    pub async fn keep(&mut self, device: &DeviceName, queues: Queues) {
        let kept = match &self.wire {
            Some(wire) => keep(wire, device, &queues).await,
            None => Err(WireError::Closed.into()),
        };
        self.held.insert(device.clone(), queues);
        if kept.is_err() {
            self.start_again().await;
        }
    }

    /// Lets a TAP's queues go.
    pub async fn forget(&mut self, device: &DeviceName) {
        self.held.remove(device);
        let Some(wire) = &self.wire else { return };
        if let Err(error) = ask(wire, &Request::Forget { device: device.to_string() }).await {
            warn!(%error, "the keeper is gone");
            self.start_again().await;
        }
    }

    /// Sees to it that there is a keeper when there is something to keep.
    pub async fn tend(&mut self) {
        let there = match &self.wire {
            Some(wire) => ask(wire, &Request::Hello).await.is_ok(),
            None => self.held.is_empty(),
        };
        if !there {
            self.start_again().await;
        }
    }

    async fn start_again(&mut self) {
        self.wire = None;
        match self.start().await {
            Ok(wire) => self.wire = Some(wire),
            Err(error) => warn!(%error, "no keeper: queues will not outlive this process"),
        }
    }

    async fn start(&self) -> Result<Wire, KeeperError> {
        let failed = |source| KeeperError::Listen { path: self.socket.clone(), source };
        let listener = listen_at(&self.socket, 0o600).map_err(failed)?;
        let mut child = Command::new("/proc/self/exe")
            .arg("--config")
            .arg(&self.config)
            .arg("--keeper")
            .stdin(Stdio::from(listener))
            // Nothing of ours may stay open because the keeper inherited it.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C in the terminal is not meant for it.
            .process_group(0)
            .spawn()
            .map_err(KeeperError::Start)?;
        tokio::spawn(async move {
            match child.wait().await {
                Ok(status) => info!(%status, "the keeper ended"),
                Err(error) => warn!(%error, "the keeper cannot be waited for"),
            }
        });
        let wire = Wire::connect(&self.socket)?;
        for (device, queues) in &self.held {
            keep(&wire, device, queues).await?;
        }
        Ok(wire)
    }
}

/// Ends the keeper at this socket, if there is one.
///
/// # Errors
/// When it is there and does not end.
pub async fn end(socket: &Path) -> Result<(), KeeperError> {
    let Ok(wire) = Wire::connect(socket) else { return Ok(()) };
    ask(&wire, &Request::End).await
}

async fn keep(wire: &Wire, device: &DeviceName, queues: &Queues) -> Result<(), KeeperError> {
    let descriptors: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
    let exchange = async {
        wire.send(&Request::Keep { device: device.to_string() }, &descriptors).await?;
        finish(wire).await
    };
    timeout(PATIENCE, exchange).await.map_err(|_| KeeperError::Late)?
}

async fn ask(wire: &Wire, request: &Request) -> Result<(), KeeperError> {
    let exchange = async {
        wire.send(request, &[]).await?;
        finish(wire).await
    };
    timeout(PATIENCE, exchange).await.map_err(|_| KeeperError::Late)?
}

async fn finish(wire: &Wire) -> Result<(), KeeperError> {
    match wire.receive().await? {
        (Reply::Done, _) => Ok(()),
        (Reply::Held { .. }, _) => Err(KeeperError::Unexpected),
    }
}

async fn list(wire: &Wire) -> Result<HashMap<DeviceName, Queues>, KeeperError> {
    let exchange = async {
        wire.send(&Request::List, &[]).await?;
        let mut held = HashMap::new();
        loop {
            match wire.receive().await? {
                (Reply::Done, _) => return Ok(held),
                (Reply::Held { device }, queues) => {
                    let device = DeviceName::parse(&device).ok_or(KeeperError::Unexpected)?;
                    held.insert(device, Arc::new(queues));
                }
            }
        }
    };
    timeout(PATIENCE, exchange).await.map_err(|_| KeeperError::Late)?
}

/// The keeper's own process: serves one vpc after another on `listener`, until there is nothing left to hold.
///
/// # Errors
/// When it cannot wait for connections.
pub fn run(listener: &OwnedFd, socket: &Path) -> Result<(), KeeperError> {
    let mut held: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    loop {
        let mut ready = [PollFd::new(listener, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut ready, None)).map_err(|e| KeeperError::Wait(e.into()))?;
        // Not inherited by anything, and blocking: one vpc at a time is all there is.
        let connection = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => connection,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => continue,
            Err(error) => return Err(KeeperError::Wait(error.into())),
        };
        let peer =
            rustix::net::sockopt::socket_peercred(&connection).map_err(|e| KeeperError::Wait(e.into()))?;
        if peer.uid != rustix::process::geteuid() {
            continue;
        }
        let ended = serve(&BlockingWire::of(connection), &mut held).is_ok();
        if ended || held.is_empty() {
            return remove_socket(socket).map_err(KeeperError::Wait);
        }
    }
}

/// Serves one connection. Ok when it was told to end; otherwise why the connection ended.
fn serve(wire: &BlockingWire, held: &mut BTreeMap<String, Vec<OwnedFd>>) -> Result<(), WireError> {
    loop {
        let (request, descriptors): (Request, _) = wire.receive()?;
        match request {
            Request::Keep { device } => {
                held.insert(device, descriptors);
            }
            Request::Forget { device } => {
                held.remove(&device);
            }
            Request::List => {
                for (device, queues) in &*held {
                    let queues: Vec<_> = queues.iter().map(AsFd::as_fd).collect();
                    wire.send(&Reply::Held { device: device.clone() }, &queues)?;
                }
            }
            Request::Hello => {}
            Request::End => {
                held.clear();
                wire.send(&Reply::Done, &[])?;
                return Ok(());
            }
        }
        wire.send(&Reply::Done, &[])?;
    }
}

fn remove_socket(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::VmId;
    use std::io::{Read, Write};

    #[tokio::test]
    async fn what_is_kept_outlives_the_connection_and_is_handed_back() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("keep.sock");
        let listener = listen_at(&socket, 0o600).expect("listen");
        let keeping = std::thread::spawn({
            let socket = socket.clone();
            move || run(&listener, &socket)
        });
        let device = DeviceName::of(&VmId::from_random([1; 20]));
        let (mut reader, writer) = io::pipe().expect("pipe");
        let wire = Wire::connect(&socket).expect("connect");
        keep(&wire, &device, &Arc::new(vec![OwnedFd::from(writer)])).await.expect("kept");
        drop(wire);
        let mut keeper = Keeper::adopt(socket.clone(), PathBuf::new()).await;
        let queue = &keeper.queues(&device).expect("held")[0];
        std::fs::File::from(queue.try_clone().expect("duplicate")).write_all(b"through").expect("write");
        keeper.forget(&device).await;
        drop(keeper);
        keeping.join().expect("no panic").expect("it ends when it holds nothing");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("nobody holds the other end");
        assert_eq!(text, "through");
        assert!(!socket.exists());
        end(&socket).await.expect("nothing to end");
    }
}
