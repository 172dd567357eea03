//! Connections of control, and what they ask.

use super::cgroup::Cgroups;
use super::copies::Copies;
use super::folder;
use super::launch::{self, Makers};
use super::registry::Registry;
use super::users::Users;
use super::warm::Shells;
use super::{connect, stop, wakes};
use crate::client::{Refusal, VmmEvent, VmmReply, VmmRequest};
use crate::machine::console;
use feed::wire::{MAX_MESSAGE_BYTES, Wire, WireError, WireListener};
use model::config::VmmConfig;
use model::id::VmId;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use vpc::client::VpcClient;

/// Connections at once. control uses one for each request that is under way.
const MAX_CONNECTIONS: usize = 512;
/// Pause after a connection could not be accepted, so that a shortage is not met with a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest grace of a stop.
const MAX_GRACE: Duration = Duration::from_secs(600);
/// Permissions of the socket: who may connect is checked by user as well.
const SOCKET_MODE: u32 = 0o666;
/// Most bytes of a log in one answer: what is left of a message when every byte becomes three of UTF-8.
const MAX_CONSOLE: usize = 32 << 10;

/// Why the supervisor cannot serve.
#[derive(Debug, Error)]
pub enum SupervisorError {
    /// The VMs' folder.
    #[error("cannot read the VMs' folder")]
    Folder(#[source] io::Error),
    /// The socket.
    #[error(transparent)]
    Listen(#[from] WireError),
    /// A signal cannot be waited for.
    #[error("cannot wait for a signal")]
    Signal(#[source] io::Error),
    /// A process that waits for its order cannot be ended.
    #[error("cannot end a process that waits for its order")]
    End(#[source] io::Error),
    /// Its own program, which it starts for each VM.
    #[error("cannot find the own program")]
    Program(#[source] io::Error),
}

#[derive(Debug)]
pub(super) struct Supervisor {
    pub(super) config: VmmConfig,
    users: Arc<Users>,
    shells: Shells,
    cgroups: Cgroups,
    pub(super) registry: Registry,
    pub(super) copies: Copies,
}

/// Adopts what runs, then serves for ever. `program` is this program's own file.
///
/// # Errors
/// See [`SupervisorError`]; only at the start and the end.
pub async fn serve(config: VmmConfig, program: PathBuf) -> Result<(), SupervisorError> {
    let registry = Registry::default();
    Copies::tidy(&config).map_err(SupervisorError::Folder)?;
    let cgroups = Cgroups::find();
    launch::adopt_all(&config, &registry, &cgroups).await.map_err(SupervisorError::Folder)?;
    tokio::spawn(wakes::follow(VpcClient::new(config.places.vpc_socket()), registry.clone()));
    let mut told_to_end = signal(SignalKind::terminate()).map_err(SupervisorError::Signal)?;
    let path = config.places.vmm_socket();
    let listener = WireListener::bind(&path, SOCKET_MODE)?;
    tracing::info!(path = %path.display(), machines = registry.count(), "ready");
    let users = Arc::new(Users::new(vec![config.places.vms(), config.places.snapshots()]));
    let shells = Shells::new(program);
    let supervisor = Supervisor { config, users, shells, cgroups, registry, copies: Copies::default() };
    supervisor.refill();
    let supervisor = Arc::new(supervisor);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = told_to_end.recv() => {
                // Machines go on; what waits for an order that never comes does not.
                return supervisor.shells.end().map_err(SupervisorError::End);
            }
        };
        let wire = match accepted {
            Ok(wire) => wire,
            Err(error) => {
                // Out of descriptors, for example: the connection stays in the queue until one is free.
                tracing::error!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned();
        let supervisor = Arc::clone(&supervisor);
        tokio::spawn(async move {
            let ended = match place {
                Ok(_place) => supervisor.converse(&wire).await,
                Err(_) => refuse(&wire, Refusal::Busy, "too many connections").await,
            };
            match ended {
                Ok(()) | Err(WireError::Closed) => {}
                Err(error) => tracing::warn!(%error, "a connection ended"),
            }
        });
    }
}

impl Supervisor {
    async fn converse(&self, wire: &Wire) -> Result<(), WireError> {
        let peer = wire.peer().map_err(WireError::Receive)?;
        let own = rustix::process::getuid().as_raw();
        let only_keys = self.config.ssh_uid == Some(peer.uid);
        let all = peer.uid == 0 || peer.uid == own || self.config.allowed_uids.contains(&peer.uid);
        if !all && !only_keys {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "a user who may not ask was refused");
            return refuse(wire, Refusal::NotAllowed, "this user may not ask").await;
        }
        loop {
            let (request, _) = wire.receive::<VmmRequest>().await?;
            if !all && !matches!(request, VmmRequest::HostKeys { .. }) {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "more was asked for than host keys");
                return refuse(wire, Refusal::NotAllowed, "this user may ask for host keys alone").await;
            }
            match request {
                VmmRequest::Subscribe => return self.tell_events(wire).await,
                VmmRequest::Connect { vm, port } => self.connect(wire, &vm, port).await?,
                VmmRequest::Launch(spec) => {
                    let vm = spec.vm.clone();
                    let turn = self.registry.turn(&vm);
                    let _turn = turn.lock().await;
                    let launched = launch::launch(self.makers(), *spec).await;
                    self.refill();
                    let reply = match launched {
                        Ok(pid) => VmmReply::Launched { pid },
                        Err(error) => {
                            tracing::warn!(%vm, %error, "a machine was not started");
                            refused(error.refusal(), chain_text(&error))
                        }
                    };
                    wire.send(&reply, &[]).await?;
                }
                VmmRequest::Stop { vm, grace_seconds } => {
                    let grace = Duration::from_secs(u64::from(grace_seconds)).min(MAX_GRACE);
                    wire.send(&self.stop(&vm, grace).await, &[]).await?;
                }
                VmmRequest::Kill { vm } => wire.send(&self.kill(&vm).await, &[]).await?,
                VmmRequest::Remove { vm } => wire.send(&self.remove(&vm).await, &[]).await?,
                VmmRequest::Suspend { vm } => wire.send(&self.suspend(&vm).await, &[]).await?,
                VmmRequest::Snapshot { vm, snapshot } => {
                    wire.send(&self.snapshot(&vm, &snapshot).await, &[]).await?;
                }
                VmmRequest::Freeze { vm, snapshot } => {
                    wire.send(&self.freeze(&vm, &snapshot).await, &[]).await?;
                }
                VmmRequest::RemoveSnapshot { snapshot } => {
                    wire.send(&self.remove_snapshot(&snapshot).await, &[]).await?;
                }
                VmmRequest::WatchIdle { vm, idle } => {
                    wire.send(&self.watch_idle(&vm, idle).await, &[]).await?;
                }
                VmmRequest::Optimize { vm } => wire.send(&self.optimize(&vm).await, &[]).await?,
                VmmRequest::GrowDisk { vm, disk_mib } => {
                    wire.send(&self.grow_disk(&vm, disk_mib).await, &[]).await?;
                }
                VmmRequest::HostKeys { vm } => wire.send(&self.host_keys(&vm).await, &[]).await?,
                VmmRequest::Console { vm, bytes } => wire.send(&self.console(&vm, bytes), &[]).await?,
            }
        }
    }

    fn makers(&self) -> Makers<'_> {
        let Self { config, users, shells, cgroups, registry, copies } = self;
        Makers { config, registry, copies, users, shells, cgroups }
    }

    /// Has processes wait for the next machines; nobody waits for that.
    fn refill(&self) {
        let shells = self.shells.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = shells.refill() {
                tracing::warn!(%error, "no process waits for the next machine");
            }
        });
    }

    async fn stop(&self, vm: &VmId, grace: Duration) -> VmmReply {
        let turn = self.registry.turn(vm);
        let _turn = turn.lock().await;
        let Some(running) = self.registry.running(vm) else { return VmmReply::Done };
        done(stop::stop(&running, &folder::of(&self.config, vm), grace).await)
    }

    /// Waits for a launch, but not for a stop, which it ends.
    async fn kill(&self, vm: &VmId) -> VmmReply {
        if let Some(running) = self.registry.running(vm) {
            return done(stop::kill(&running).await);
        }
        let turn = self.registry.turn(vm);
        let _turn = turn.lock().await;
        self.kill_now(vm).await
    }

    async fn kill_now(&self, vm: &VmId) -> VmmReply {
        match self.registry.running(vm) {
            Some(running) => done(stop::kill(&running).await),
            None => VmmReply::Done,
        }
    }

    async fn remove(&self, vm: &VmId) -> VmmReply {
        let turn = self.registry.turn(vm);
        if let VmmReply::Refused { reason, message } = self.kill(vm).await {
            return refused(reason, message);
        }
        let held = turn.lock().await;
        // A launch may have had its turn in between.
        if let VmmReply::Refused { reason, message } = self.kill_now(vm).await {
            return refused(reason, message);
        }
        let path = folder::of(&self.config, vm);
        let removed = match tokio::task::spawn_blocking(move || folder::remove(&path)).await {
            Ok(removed) => removed,
            Err(error) => return refused(Refusal::Internal, error.to_string()),
        };
        drop(held);
        self.registry.forget(vm);
        match removed {
            Ok(()) => VmmReply::Done,
            Err(error) => refused(error.refusal(), chain_text(&error)),
        }
    }

    async fn connect(&self, wire: &Wire, vm: &VmId, port: u32) -> Result<(), WireError> {
        let Some(running) = self.registry.running(vm) else {
            return refuse(wire, Refusal::NotRunning, "this VM does not run").await;
        };
        match connect::to_port(&folder::of(&self.config, vm), running.pid, port).await {
            Ok(stream) => wire.send(&VmmReply::Connected, &[stream.as_fd()]).await,
            Err(error) => refuse(wire, Refusal::NoListener, &chain_text(&error)).await,
        }
    }

    async fn host_keys(&self, vm: &VmId) -> VmmReply {
        let Some(running) = self.registry.running(vm) else {
            return refused(Refusal::NotRunning, "this VM does not run".to_owned());
        };
        match connect::host_keys(&folder::of(&self.config, vm), running.pid).await {
            Ok(keys) => VmmReply::HostKeys { keys },
            Err(error) => refused(Refusal::NoListener, chain_text(&error)),
        }
    }

    fn console(&self, vm: &VmId, bytes: u32) -> VmmReply {
        let bytes = (bytes as usize).min(MAX_CONSOLE);
        let tail = match console::tail(&folder::of(&self.config, vm), bytes) {
            Ok(tail) => tail,
            Err(error) => return refused(Refusal::Internal, format!("the log cannot be read: {error}")),
        };
        let mut text = String::from_utf8_lossy(&tail).into_owned();
        // Control characters take six bytes each in JSON.
        while serde_json::to_vec(&text).is_ok_and(|json| json.len() + 64 > MAX_MESSAGE_BYTES) {
            let half = text.ceil_char_boundary(text.len() / 2);
            text.drain(..half);
        }
        VmmReply::Console { text }
    }

    async fn tell_events(&self, wire: &Wire) -> Result<(), WireError> {
        let (present, mut events) = self.registry.subscribe();
        for event in &present {
            wire.send(event, &[]).await?;
        }
        wire.send(&VmmEvent::Synced, &[]).await?;
        for event in &self.registry.pending_wakes() {
            wire.send(event, &[]).await?;
        }
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Ok(event) => wire.send(&event, &[]).await?,
                    // It must subscribe again and be told the present.
                    Err(RecvError::Lagged(missed)) => {
                        tracing::warn!(missed, "a subscriber is too slow and is cut off");
                        return Ok(());
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                () = wire.closed() => return Ok(()),
            }
        }
    }
}

fn done(ended: io::Result<()>) -> VmmReply {
    match ended {
        Ok(()) => VmmReply::Done,
        Err(error) => refused(Refusal::Internal, error.to_string()),
    }
}

pub(super) fn refused(reason: Refusal, message: String) -> VmmReply {
    VmmReply::Refused { reason, message }
}

async fn refuse(wire: &Wire, reason: Refusal, message: &str) -> Result<(), WireError> {
    wire.send(&refused(reason, message.to_owned()), &[]).await
}

pub(super) fn chain_text(error: &dyn std::error::Error) -> String {
    crate::machine::process::chain_text(error)
}
