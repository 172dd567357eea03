//! Suspend: the machine stands still while a thread writes its memory; it ends when that is durable, or goes on at once
//! when somebody wants something of it before.

use super::{Event, Outcome, Process, ProcessError, chain_text, refusal};
use crate::client::{ExitReason, Refusal};
use crate::devices::GuestRam;
use crate::devices::block::{DiskBackend, SharedDisk};
use crate::machine::control::{MEMORY, MachineMessage, MachinePlan, STATE, SUSPENDED, SUSPENDING, USED};
use crate::machine::jail::JailError;
use crate::machine::memory::{self, MemoryError};
use crate::machine::state::{self, MachineState, StateFileError};
use crate::machine::vm::Machine;
use crate::seccomp::{self, Role};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

/// A suspend that is under way.
#[derive(Debug)]
pub struct Suspending {
    /// Whoever asked for it.
    slot: usize,
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<u64, ProcessError>>,
    written: OwnedFd,
    /// The machine goes on already.
    broken_off: bool,
    begun: Instant,
}

impl Process {
    /// Brings the machine to rest and begins to write.
    pub(super) fn begin_suspend(&mut self, slot: usize, machine: &Machine) -> Result<(), MachineMessage> {
        if self.suspending.is_some() {
            let message = "the VM is being suspended already".to_owned();
            return Err(MachineMessage::Refused { reason: Refusal::Busy, message });
        }
        let begun = Instant::now();
        self.prepare(slot, machine, begun).map_err(|error| {
            if let Err(error) = machine.unpause() {
                tracing::error!(error = chain_text(&error), "the machine does not go on");
            }
            MachineMessage::Refused { reason: refusal(&error), message: chain_text(&error) }
        })
    }

    fn prepare(&mut self, slot: usize, machine: &Machine, begun: Instant) -> Result<(), ProcessError> {
        let folder = self.plan.folder.join(SUSPENDING);
        remove_folder(&folder).map_err(ProcessError::Folder)?;
        std::fs::create_dir(&folder).map_err(ProcessError::Folder)?;
        machine.pause()?;
        let state = machine.save()?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let written = eventfd(0, flags).map_err(|error| ProcessError::Epoll(error.into()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let job = Job {
            mem: machine.mem().clone(),
            proc: self.kit.proc.try_clone().map_err(ProcessError::Folder)?,
            disk: self.host.disk().disk(),
            stop: Arc::clone(&stop),
            event: written.try_clone().map_err(ProcessError::Epoll)?,
        };
        let writing = move || job.run(&folder, &state);
        let writer = std::thread::Builder::new().name("suspend".to_owned()).spawn(writing);
        let writer = writer.map_err(ProcessError::Folder)?;
        self.watch(written.as_fd(), Event::Written).map_err(ProcessError::Epoll)?;
        for source in self.host.knocks() {
            self.watch(source, Event::Traffic).map_err(ProcessError::Epoll)?;
        }
        self.suspending = Some(Suspending { slot, stop, writer, written, broken_off: false, begun });
        Ok(())
    }

    /// Somebody knocks: the machine goes on at once, and what was written is of no use.
    pub(super) fn break_off_suspend(&mut self, machine: &Machine) {
        let Some(suspending) = &mut self.suspending else { return };
        if suspending.broken_off {
            return;
        }
        suspending.broken_off = true;
        suspending.stop.store(true, Ordering::Relaxed);
        let frozen = suspending.begun.elapsed();
        self.host.knocks().into_iter().for_each(|source| self.unwatch(source));
        if let Err(error) = machine.unpause() {
            tracing::error!(error = chain_text(&error), "the machine does not go on");
        }
        tracing::info!(?frozen, "traffic breaks the suspend off");
    }

    /// The writer has ended: the machine ends, or goes on.
    pub(super) fn end_suspend(&mut self, machine: &Machine) -> Option<Outcome> {
        let suspending = self.suspending.take()?;
        self.unwatch(suspending.written.as_fd());
        let (slot, begun) = (suspending.slot, suspending.begun);
        let written = suspending.writer.join().unwrap_or_else(|_| {
            let source = io::Error::other("the writing thread panicked");
            Err(ProcessError::Copy { step: "write", source })
        });
        if suspending.broken_off {
            self.discard();
            let message = "traffic came while the VM was being suspended; it runs on".to_owned();
            self.answer(slot, &MachineMessage::Refused { reason: Refusal::Woken, message });
            return None;
        }
        self.host.knocks().into_iter().for_each(|source| self.unwatch(source));
        match written.and_then(|bytes| publish(&self.plan.folder).map(|()| bytes)) {
            Ok(bytes) => {
                tracing::info!(bytes, elapsed = ?begun.elapsed(), "suspended");
                self.answer(slot, &MachineMessage::Done);
                Some(Outcome::Exit(ExitReason::Suspended))
            }
            Err(error) => {
                let message = chain_text(&error);
                tracing::error!(message, "the suspend failed; the machine goes on");
                self.discard();
                if let Err(error) = machine.unpause() {
                    let message = chain_text(&error);
                    return Some(Outcome::Exit(ExitReason::ProcessDied { message }));
                }
                self.answer(slot, &MachineMessage::Refused { reason: refusal(&error), message });
                None
            }
        }
    }

    /// The machine goes on: what was written must never be gone on from, not even when it got its name and only the
    /// name could not be made durable.
    fn discard(&self) {
        for name in [SUSPENDED, SUSPENDING] {
            if let Err(error) = remove_folder(&self.plan.folder.join(name)) {
                tracing::error!(%error, name, "a state that is of no use stays");
            }
        }
    }
}

/// The work of the writing thread.
struct Job {
    mem: GuestRam,
    proc: OwnedFd,
    disk: SharedDisk,
    stop: Arc<AtomicBool>,
    event: OwnedFd,
}

impl Job {
    fn run(mut self, folder: &Path, state: &MachineState) -> Result<u64, ProcessError> {
        // It has nothing of the guest's in its hands yet.
        seccomp::take(Role::Writer).map_err(JailError::from)?;
        // The disk too: the memory that is written may hold that something was flushed.
        let written = write(folder, &self.mem, &self.proc, state, &self.stop)
            .and_then(|bytes| self.disk.flush().map(|()| bytes).map_err(ProcessError::Flush));
        // The loop has the descriptor for as long as it waits for this.
        if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
            tracing::error!(%error, "cannot tell that the state is written");
        }
        written
    }
}

fn write(
    folder: &Path,
    mem: &GuestRam,
    proc: &OwnedFd,
    state: &MachineState,
    stop: &AtomicBool,
) -> Result<u64, ProcessError> {
    let new = |name| File::options().write(true).create_new(true).open(folder.join(name));
    let (memory, rest) = (new(MEMORY), new(STATE));
    let bytes = write_files(
        memory.map_err(ProcessError::Folder)?,
        &rest.map_err(ProcessError::Folder)?,
        mem,
        proc,
        state,
        stop,
    )?;
    sync_folder(folder).map_err(ProcessError::Folder)?;
    Ok(bytes)
}

/// Writes a machine that stands still into two empty files, durably. Returns the bytes of memory that are not holes.
///
/// # Errors
/// A [`ProcessError`]; the files are then of no use.
pub fn write_files(
    memory: File,
    rest: &File,
    mem: &GuestRam,
    proc: &OwnedFd,
    state: &MachineState,
    stop: &AtomicBool,
) -> Result<u64, ProcessError> {
    let bytes = memory::write(mem, proc, memory, stop)?;
    state::write(rest, state)?;
    Ok(bytes)
}

/// What is written becomes the suspended state.
fn publish(folder: &Path) -> Result<(), ProcessError> {
    let (new, name) = (folder.join(SUSPENDING), folder.join(SUSPENDED));
    remove_folder(&name)
        .and_then(|()| std::fs::rename(new, name))
        .and_then(|()| sync_folder(folder))
        .map_err(ProcessError::Folder)
}

/// Reads the suspended state of a plan's machine.
///
/// # Errors
/// [`ProcessError::NoState`] when there is none.
pub fn read(plan: &MachinePlan) -> Result<(GuestRam, MachineState), ProcessError> {
    let folder = plan.folder.join(SUSPENDED);
    let state = match state::read(&folder.join(STATE)) {
        Err(StateFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(ProcessError::NoState);
        }
        read => read?,
    };
    match memory::map(&folder.join(MEMORY), state.memory_mib) {
        Err(MemoryError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Err(ProcessError::NoState)
        }
        mapped => Ok((mapped?, state)),
    }
}

/// Makes sure that nobody goes on from the suspended state again, also after a crash of the host: from the next
/// instruction on, the disk is not the one that it remembers.
///
/// # Errors
/// When that cannot be made durable.
pub fn use_up(folder: &Path) -> Result<(), ProcessError> {
    let used = folder.join(USED);
    remove_folder(&used)
        .and_then(|()| std::fs::rename(folder.join(SUSPENDED), used))
        .and_then(|()| sync_folder(folder))
        .map_err(ProcessError::Folder)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
