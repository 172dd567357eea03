//! Copies of VMs: frozen ones in memory, and snapshots on disk.
//!
//! ```text
//!              Freeze                        Snapshot: written
//! (nothing) ───────────► frozen, in memory ───────────────────► durable ──RemoveSnapshot──► (nothing)
//!     │                     │    FORK_LIFE, RemoveSnapshot,        ▲
//!     │                     └──► the supervisor's end ► (nothing)  │
//!     └──Snapshot of a VM without a process────────────────────────┘
//! ```
//! A copy's folder has the disk's sealed layers by hard links, so that neither the copy nor what is made of it needs
//! the VM that it came from. It is called `<id>.new` until it is durable; what has that name at the supervisor's
//! start is removed.

use super::folder::{self, FolderError};
use super::registry::Registry;
use super::talk::{self, TalkError};
use super::users;
use crate::client::{FORK_LIFE, LAUNCH_WAIT, Refusal, WRITE_WAIT};
use crate::devices::block::directory::{Directory, HostDirectory};
use crate::devices::block::{FolderError as DiskError, clone_folder, clone_sealed};
use crate::machine::control::{
    MEMORY, MachineMessage, MachinePlan, MachineRequest, STATE, SUSPENDED, ZygoteRequest,
};
use crate::machine::handed::Handed;
use feed::wire::{Wire, WireError, pair};
use model::config::VmmConfig;
use model::id::{SnapshotId, VmId};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;
use tokio::time::timeout;

/// Copies that are frozen at once. Each holds the memory that its original has changed since.
const MAX_FROZEN: usize = 64;
/// Ends the name of a folder that is not durable yet.
const NEW: &str = "new";
/// Ends the name of a folder that is being removed.
const GONE: &str = "gone";

/// Why there is no copy.
#[derive(Debug, Error)]
pub enum CopyError {
    /// No process of that VM.
    #[error("this VM does not run")]
    NotRunning,
    /// Neither process nor disk.
    #[error("there is nothing of this VM to copy")]
    NoVm,
    /// Too many.
    #[error("{MAX_FROZEN} copies are held in memory already")]
    Full,
    /// The VM's process, or the copy of it, refused or does not speak.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// A pair of sockets.
    #[error("cannot make a pair of sockets")]
    Pair(#[source] io::Error),
    /// The frozen copy cannot be told anything.
    #[error("the frozen copy does not listen")]
    Gone(#[source] WireError),
    /// A file or folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A disk.
    #[error("the disk cannot be copied")]
    Disk(#[from] DiskError),
    /// No such copy.
    #[error("there is no snapshot {0}")]
    NoSnapshot(SnapshotId),
    /// The copy's folder does not become its user's.
    #[error("cannot give the copy's folder to its user")]
    User(#[source] io::Error),
    /// A task ended.
    #[error("the work was cut short")]
    Task(#[from] tokio::task::JoinError),
}

impl CopyError {
    /// Which kind of no this is.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Self::NotRunning | Self::NoVm => Refusal::NotRunning,
            Self::Full => Refusal::Busy,
            Self::Talk(error) => error.refusal(),
            Self::Folder(error) => error.refusal(),
            Self::Disk(_) | Self::User(_) => Refusal::Disk,
            Self::NoSnapshot(_) => Refusal::NoState,
            Self::Pair(_) | Self::Gone(_) | Self::Task(_) => Refusal::Internal,
        }
    }
}

/// A copy in memory: whoever has its connection keeps it alive.
#[derive(Debug)]
struct Frozen {
    wire: Wire,
    /// Whose process it is.
    user: u32,
    /// Where its disk is now. Held while the disk is cloned or the folder is renamed.
    folder: tokio::sync::Mutex<PathBuf>,
    /// A machine was made of it since that was last looked at.
    used: AtomicBool,
}

/// All copies in memory. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Copies(Arc<Mutex<HashMap<SnapshotId, Arc<Frozen>>>>);

impl Copies {
    /// Removes what an earlier supervisor left unfinished.
    ///
    /// # Errors
    /// When the folder cannot be read or made.
    pub fn tidy(config: &VmmConfig) -> io::Result<()> {
        let folder = config.places.snapshots();
        folder::make_private(&folder)?;
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|end| end == NEW || end == GONE)
                && let Err(error) = folder::remove(&path)
            {
                tracing::warn!(path = %path.display(), %error, "a leftover stays");
            }
        }
        Ok(())
    }

    /// Freezes a running VM. The caller has the VM's turn.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub async fn freeze(
        &self,
        config: &VmmConfig,
        registry: &Registry,
        vm: &VmId,
        snapshot: &SnapshotId,
    ) -> Result<(), CopyError> {
        if self.get(snapshot).is_some() {
            return Ok(());
        }
        if self.lock().len() >= MAX_FROZEN {
            return Err(CopyError::Full);
        }
        let running = registry.running(vm).ok_or(CopyError::NotRunning)?;
        let (home, kept) = (folder::of(config, vm), unfinished(config, snapshot));
        let (near, far) = pair().map_err(CopyError::Pair)?;
        talk::ask(&home, running.pid, &MachineRequest::Freeze, &[far.as_fd()], LAUNCH_WAIT).await?;
        drop(far);
        let place = kept.clone();
        let link = move || -> Result<u32, CopyError> {
            let user = users::owner(&home).map_err(CopyError::User)?;
            folder::renew(&place)?;
            clone_sealed(&home, &place)?;
            // For as long as the copy is in memory, so that nobody else is given its user.
            users::give(&place, user).map_err(CopyError::User)?;
            Ok(user)
        };
        let user = tokio::task::spawn_blocking(link).await??;
        let wire = Wire::of(near).map_err(CopyError::Pair)?;
        let folder = tokio::sync::Mutex::new(kept);
        let frozen = Arc::new(Frozen { wire, user, folder, used: AtomicBool::new(false) });
        self.lock().insert(snapshot.clone(), frozen);
        Ok(())
    }

    /// Lets a frozen copy go when no machine was made of it for its time, if nobody did before.
    pub fn end_in_time(&self, config: &VmmConfig, snapshot: &SnapshotId) {
        let (copies, config, snapshot) = (self.clone(), config.clone(), snapshot.clone());
        tokio::spawn(async move {
            copies.await_disuse(&snapshot, FORK_LIFE).await;
            if copies.get(&snapshot).is_some() {
                tracing::warn!(%snapshot, "nobody let go of a frozen copy");
                if let Err(error) = copies.remove(&config, &snapshot).await {
                    tracing::warn!(%snapshot, %error, "its files stay");
                }
            }
        });
    }

    async fn await_disuse(&self, snapshot: &SnapshotId, life: Duration) {
        loop {
            tokio::time::sleep(life).await;
            if !self.get(snapshot).is_some_and(|frozen| frozen.used.swap(false, Ordering::Relaxed)) {
                return;
            }
        }
    }

    /// Writes a frozen copy down; it then lives on disk alone.
    ///
    /// # Errors
    /// See [`CopyError`]. Nothing is left of the copy then.
    pub async fn keep(&self, config: &VmmConfig, snapshot: &SnapshotId) -> Result<(), CopyError> {
        let frozen = self.get(snapshot).ok_or_else(|| CopyError::NoSnapshot(snapshot.clone()))?;
        let written = write(config, snapshot, &frozen).await;
        self.lock().remove(snapshot);
        if written.is_err() {
            folder::remove(&unfinished(config, snapshot))?;
        }
        written
    }

    /// Copies a VM without a process. The caller has the VM's turn. True: with its memory.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub async fn copy_files(config: &VmmConfig, vm: &VmId, snapshot: &SnapshotId) -> Result<bool, CopyError> {
        let (home, new) = (folder::of(config, vm), unfinished(config, snapshot));
        let done = durable(config, snapshot);
        tokio::task::spawn_blocking(move || {
            if !home.is_dir() {
                return Err(CopyError::NoVm);
            }
            clone_folder(&home, &new)?;
            let memory = home.join(SUSPENDED).join(STATE).is_file();
            if memory {
                link_state(&home.join(SUSPENDED), &new)?;
            }
            folder::sync(&new)?;
            folder::rename(&new, &done)?;
            Ok(memory)
        })
        .await?
    }

    /// Removes a copy, in memory and on disk.
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub async fn remove(&self, config: &VmmConfig, snapshot: &SnapshotId) -> Result<(), CopyError> {
        self.lock().remove(snapshot);
        let (new, done) = (unfinished(config, snapshot), durable(config, snapshot));
        let gone = done.with_extension(GONE);
        tokio::task::spawn_blocking(move || {
            folder::remove(&new)?;
            folder::remove(&gone)?;
            // In one step, so that no half of a snapshot is ever taken for a whole one.
            if done.is_dir() {
                folder::rename(&done, &gone)?;
            }
            folder::remove(&gone)
        })
        .await??;
        Ok(())
    }

    /// Makes the folder of a new machine from a copy: its disk, and its state where that is on disk.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub async fn settle_in(
        &self,
        config: &VmmConfig,
        snapshot: &SnapshotId,
        home: &Path,
    ) -> Result<Origin, CopyError> {
        let home = home.to_owned();
        if let Some(frozen) = self.get(snapshot) {
            frozen.used.store(true, Ordering::Relaxed);
            let folder = frozen.folder.lock().await;
            let from = folder.clone();
            tokio::task::spawn_blocking(move || clone_folder(&from, &home)).await??;
            drop(folder);
            return Ok(Origin::Frozen(Spawner(frozen)));
        }
        let from = durable(config, snapshot);
        if !from.is_dir() {
            return Err(CopyError::NoSnapshot(snapshot.clone()));
        }
        tokio::task::spawn_blocking(move || {
            clone_folder(&from, &home)?;
            if !from.join(STATE).is_file() {
                return Ok(Origin::Disk);
            }
            let state = home.join(SUSPENDED);
            folder::renew(&state)?;
            link_state(&from, &state)?;
            folder::sync(&state)?;
            Ok(Origin::Saved)
        })
        .await?
    }

    fn get(&self, snapshot: &SnapshotId) -> Option<Arc<Frozen>> {
        self.lock().get(snapshot).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SnapshotId, Arc<Frozen>>> {
        // No code under the lock can panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a new machine begins from.
#[derive(Debug)]
pub enum Origin {
    /// A copy in memory.
    Frozen(Spawner),
    /// A saved state in its folder.
    Saved,
    /// Its disk alone.
    Disk,
}

/// Makes machines of a frozen copy.
#[derive(Debug)]
pub struct Spawner(Arc<Frozen>);

impl Spawner {
    /// Has one made, whose control connection is the socket.
    ///
    /// # Errors
    /// When the copy is gone.
    pub async fn spawn(&self, plan: MachinePlan, socket: OwnedFd, handed: &Handed) -> Result<(), CopyError> {
        let request = ZygoteRequest::Spawn(Box::new(plan));
        let descriptors: Vec<_> = [socket.as_fd()].into_iter().chain(handed.descriptors()).collect();
        self.0.wire.send(&request, &descriptors).await.map_err(CopyError::Gone)
    }

    /// Whose process its machines are.
    #[must_use]
    pub fn user(&self) -> u32 {
        self.0.user
    }
}

/// Whether the snapshot is durable, and whether it has a memory.
#[must_use]
pub fn standing(config: &VmmConfig, snapshot: &SnapshotId) -> Option<bool> {
    let folder = durable(config, snapshot);
    folder.is_dir().then(|| folder.join(STATE).is_file())
}

async fn write(config: &VmmConfig, snapshot: &SnapshotId, frozen: &Frozen) -> Result<(), CopyError> {
    let folder = frozen.folder.lock().await.clone();
    let new = |name: &str| {
        let path = folder.join(name);
        let file = File::options().write(true).create_new(true).open(&path);
        file.map_err(|source| FolderError::Io { operation: "make", path, source })
    };
    let (memory, rest) = (new(MEMORY)?, new(STATE)?);
    let (near, far) = pair().map_err(CopyError::Pair)?;
    let files = [far.as_fd(), memory.as_fd(), rest.as_fd()];
    frozen.wire.send(&ZygoteRequest::Write, &files).await.map_err(CopyError::Gone)?;
    drop(far);
    let wire = Wire::of(near).map_err(CopyError::Pair)?;
    let answer = timeout(WRITE_WAIT, wire.receive::<MachineMessage>()).await;
    talk::done(answer.map_err(|_| TalkError::TimedOut(WRITE_WAIT))?.map_err(TalkError::Wire)?.0)?;
    let mut place = frozen.folder.lock().await;
    users::give(&place, 0).map_err(CopyError::User)?;
    let done = durable(config, snapshot);
    folder::sync(&place)?;
    folder::rename(&place, &done)?;
    *place = done;
    Ok(())
}

fn link_state(from: &Path, to: &Path) -> Result<(), FolderError> {
    let failed = |source| FolderError::Io { operation: "link the state into", path: to.to_owned(), source };
    let (from, into) = (HostDirectory::open(from).map_err(failed)?, HostDirectory::open(to).map_err(failed)?);
    [MEMORY, STATE].iter().try_for_each(|name| from.link(name, &into)).map_err(failed)
}

fn durable(config: &VmmConfig, snapshot: &SnapshotId) -> PathBuf {
    config.places.snapshots().join(snapshot.as_str())
}

fn unfinished(config: &VmmConfig, snapshot: &SnapshotId) -> PathBuf {
    durable(config, snapshot).with_extension(NEW)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[tokio::test]
    async fn a_frozen_copy_lasts_from_its_last_use() {
        let (copies, snapshot, life) =
            (Copies::default(), SnapshotId::from_random([1; 20]), Duration::from_millis(20));
        let (near, _far) = pair().expect("sockets");
        let frozen = Arc::new(Frozen {
            user: 0,
            wire: Wire::of(near).expect("wire"),
            folder: tokio::sync::Mutex::new(PathBuf::new()),
            used: AtomicBool::new(true),
        });
        copies.lock().insert(snapshot.clone(), Arc::clone(&frozen));
        let begun = Instant::now();
        copies.await_disuse(&snapshot, life).await;
        assert!(begun.elapsed() >= life * 2, "it was used within the first");
        assert!(!frozen.used.load(Ordering::Relaxed));
        copies.await_disuse(&snapshot, life).await;
    }
}
