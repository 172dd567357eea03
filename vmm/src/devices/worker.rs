//! The thread of one device: it alone touches the device and its queues while the driver is active.
//!
//! The transport sends it a [`Command`] and waits for the answer; between commands it waits in epoll for the
//! queues' notifications and for the device's own descriptors. Between two commands it is in one
//! [`Phase`]; only in `Running` is anything but the command descriptor watched.

use super::GuestRam;
use super::counters::{Counter, Counters};
use super::device::{Context, DeviceError, Fault, Interrupt, Progress, VirtioDevice};
use super::queue::DeviceQueue;
use super::state::{DeviceState, QueueState};
use super::sys::borrow;
use crate::seccomp::{self, Role};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How long a command may take. Only a disk or file system of the host that hangs takes so long; the guest's
/// vCPU must not hang with it.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);
/// Commands that may wait: the transport sends one at a time and waits for the answer.
const COMMANDS_WAITING: usize = 1;
/// Events taken from epoll at once. More than any device has descriptors; what is left comes next time.
const EVENTS_AT_ONCE: usize = 16;
/// Device status bit `DEVICE_NEEDS_RESET` (virtio 1.2 section 2.1).
pub(super) const STATUS_NEEDS_RESET: u32 = 64;

/// Why the worker did not do what it was told.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The worker could not be made.
    #[error("cannot start the device's thread: {operation}")]
    Start {
        /// The call that failed.
        operation: &'static str,
        /// Its error.
        #[source]
        source: io::Error,
    },
    /// The thread has ended or did not answer in time. The device stays off.
    #[error("the device's thread does not answer")]
    Gone,
    /// The device refused.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device could not be brought to rest.
    #[error("the device could not be drained")]
    Drain(#[source] Fault),
}

/// What the transport tells the worker.
enum Command {
    /// The driver is ready: serve these queues, at once or after `Resume`.
    Activate {
        queues: Vec<Option<DeviceQueue>>,
        features: u64,
        run: bool,
        reply: Reply<Result<(), DeviceError>>,
    },
    /// Drop the queues and forget the driver.
    Reset { reply: Reply<()> },
    /// Finish what is in flight and stop.
    Pause { reply: Reply<Result<(), Fault>> },
    /// Go on after a pause.
    Resume { reply: Reply<()> },
    /// Tell the configuration space.
    Config { reply: Reply<Vec<u8>> },
    /// Copy the state out; only while paused or idle.
    Save { reply: Reply<Saved> },
    /// Take a device's state over; only while idle.
    Restore { state: DeviceState, reply: Reply<Result<(), DeviceError>> },
    /// End the thread.
    Stop { reply: Reply<()> },
}

type Reply<T> = SyncSender<T>;

/// What the worker knows of the state.
#[derive(Debug)]
pub(super) struct Saved {
    /// The active queues; empty when the device is idle.
    pub queues: Vec<Option<QueueState>>,
    /// The device.
    pub device: DeviceState,
}

/// What transport and worker share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Device status; the worker only adds `DEVICE_NEEDS_RESET`.
    pub status: AtomicU32,
    /// The interrupt line.
    pub interrupt: Interrupt,
    /// Counted reasons.
    pub counters: Arc<Counters>,
}

impl Shared {
    /// Tells the driver that only a reset helps (virtio 1.2 section 2.1.2).
    pub fn needs_reset(&self) {
        self.status.fetch_or(STATUS_NEEDS_RESET, Ordering::SeqCst);
        self.interrupt.config();
    }
}

/// The transport's handle of a worker.
#[derive(Debug)]
pub(super) struct Worker {
    commands: SyncSender<Command>,
    wake: EventFd,
    thread: Option<std::thread::JoinHandle<()>>,
    gone: bool,
}

impl Worker {
    /// Starts the thread, idle.
    pub fn start(
        mem: GuestRam,
        device: Box<dyn VirtioDevice>,
        queue_events: Vec<EventFd>,
        shared: Arc<Shared>,
    ) -> Result<Self, WorkerError> {
        let failed = |operation| move |source| WorkerError::Start { operation, source };
        let wake = EventFd::new(EFD_NONBLOCK).map_err(failed("eventfd"))?;
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| failed("epoll_create1")(e.into()))?;
        let (commands, receiver) = sync_channel(COMMANDS_WAITING);
        let name = device.kind().name();
        let task = Task {
            device,
            mem,
            shared,
            epoll,
            wake: wake.try_clone().map_err(failed("dup"))?,
            queue_events,
            commands: receiver,
            queues: Vec::new(),
            phase: Phase::Idle,
            again: Vec::new(),
        };
        task.watch(&task.wake, Event::Command, epoll::EventFlags::IN).map_err(failed("epoll_ctl"))?;
        let thread = std::thread::Builder::new().name(name.to_owned());
        let thread = thread.spawn(move || task.run()).map_err(failed("clone"))?;
        Ok(Self { commands, wake, thread: Some(thread), gone: false })
    }

    pub fn activate(
        &mut self,
        queues: Vec<Option<DeviceQueue>>,
        features: u64,
        run: bool,
    ) -> Result<(), WorkerError> {
        Ok(self.ask(|reply| Command::Activate { queues, features, run, reply })??)
    }

    pub fn reset(&mut self) -> Result<(), WorkerError> {
        self.ask(|reply| Command::Reset { reply })
    }

    pub fn pause(&mut self) -> Result<(), WorkerError> {
        self.ask(|reply| Command::Pause { reply })?.map_err(WorkerError::Drain)
    }

    pub fn resume(&mut self) -> Result<(), WorkerError> {
        self.ask(|reply| Command::Resume { reply })
    }

    pub fn config(&mut self) -> Result<Vec<u8>, WorkerError> {
        self.ask(|reply| Command::Config { reply })
    }

    pub fn save(&mut self) -> Result<Saved, WorkerError> {
        self.ask(|reply| Command::Save { reply })
    }

    pub fn restore(&mut self, state: DeviceState) -> Result<(), WorkerError> {
        Ok(self.ask(|reply| Command::Restore { state, reply })??)
    }

    /// Sends one command and waits for its answer, for [`COMMAND_DEADLINE`] at most.
    fn ask<T>(&mut self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, WorkerError> {
        if self.gone {
            return Err(WorkerError::Gone);
        }
        let (reply, answer) = sync_channel(1);
        let sent = self.commands.try_send(command(reply)).is_ok() && self.wake.write(1).is_ok();
        let answer =
            if sent { answer.recv_timeout(COMMAND_DEADLINE) } else { Err(RecvTimeoutError::Disconnected) };
        answer.map_err(|_| {
            self.gone = true;
            WorkerError::Gone
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let stopped = self.ask(|reply| Command::Stop { reply });
        let Some(thread) = self.thread.take() else { return };
        // A thread that hangs in the host's disk is left behind; the end of the process ends it.
        let ended = stopped.is_ok() || thread.is_finished();
        if ended && thread.join().is_err() {
            tracing::error!("a device's thread ended by a panic");
        } else if !ended {
            tracing::error!("a device's thread does not end");
        }
    }
}

/// Between two commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No driver.
    Idle,
    /// Serving the queues.
    Running,
    /// Queues kept, nothing served.
    Paused,
    /// Stopped by a fault until the reset.
    Failed,
}

/// What epoll reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Command,
    Queue(usize),
    Source(usize),
}

/// First number of a source in epoll's data; below it are the command descriptor (0) and the queues.
const FIRST_SOURCE: u64 = 1 << 16;

impl Event {
    fn encode(self) -> u64 {
        match self {
            Self::Command => 0,
            Self::Queue(index) => 1 + index as u64,
            Self::Source(index) => FIRST_SOURCE + index as u64,
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            0 => Self::Command,
            1..FIRST_SOURCE => Self::Queue(data as usize - 1),
            FIRST_SOURCE.. => Self::Source((data - FIRST_SOURCE) as usize),
        }
    }
}

/// The thread's own data.
struct Task {
    device: Box<dyn VirtioDevice>,
    mem: GuestRam,
    shared: Arc<Shared>,
    epoll: OwnedFd,
    wake: EventFd,
    queue_events: Vec<EventFd>,
    commands: Receiver<Command>,
    queues: Vec<Option<DeviceQueue>>,
    phase: Phase,
    /// Events whose work was cut short by its bound.
    again: Vec<Event>,
}

impl Task {
    fn run(mut self) {
        if let Err(error) = seccomp::take(Role::Device) {
            tracing::error!(%error, "a device does not run");
            return self.shared.needs_reset();
        }
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            ready.clear();
            let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
            let timeout = (!self.again.is_empty()).then_some(&at_once);
            match epoll::wait(&self.epoll, spare_capacity(&mut ready), timeout) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot wait for events");
                    return self.shared.needs_reset();
                }
            }
            let again = std::mem::take(&mut self.again);
            let mut commanded = false;
            for event in again.into_iter().chain(ready.iter().map(|e| Event::decode(e.data.u64()))) {
                match event {
                    Event::Command => commanded = true,
                    Event::Queue(_) | Event::Source(_) => self.serve(event),
                }
            }
            // Last, since a command changes which of the events still mean anything.
            if commanded && !self.obey() {
                return;
            }
        }
    }

    /// Serves one event of the device; a fault stops it.
    fn serve(&mut self, event: Event) {
        if self.phase != Phase::Running || self.again.contains(&event) {
            return;
        }
        let (device, mut ctx) = self.split();
        let progress = match event {
            Event::Command => return,
            Event::Queue(index) => device.queue_event(index, &mut ctx),
            Event::Source(index) => device.source_event(index, &mut ctx),
        };
        match progress {
            Ok(Progress::Done) => {}
            Ok(Progress::More) => self.again.push(event),
            Err(fault) => self.fail(&fault),
        }
    }

    fn split(&mut self) -> (&mut dyn VirtioDevice, Context<'_>) {
        let ctx = Context {
            mem: &self.mem,
            queues: &mut self.queues,
            interrupt: &self.shared.interrupt,
            counters: &self.shared.counters,
        };
        (self.device.as_mut(), ctx)
    }

    fn fail(&mut self, fault: &Fault) {
        match fault {
            Fault::Guest(counter) => self.shared.counters.count(*counter),
            Fault::Host(_) => self.shared.counters.count(Counter::HostFailure),
        }
        tracing::warn!(device = self.device.kind().name(), error = %fault, cause = ?fault, "the device stops until its reset");
        self.leave(Phase::Failed);
        self.shared.needs_reset();
    }

    /// Obeys the waiting command; false when the thread is to end.
    fn obey(&mut self) -> bool {
        drain(&self.wake);
        let Ok(command) = self.commands.try_recv() else { return true };
        match command {
            Command::Activate { queues, features, run, reply } => {
                let done = self.activate(queues, features, run);
                answer(&reply, done);
            }
            Command::Reset { reply } => {
                self.leave(Phase::Idle);
                self.queues.clear();
                self.device.reset();
                answer(&reply, ());
            }
            Command::Pause { reply } => {
                let done = self.pause();
                answer(&reply, done);
            }
            Command::Resume { reply } => {
                self.resume();
                answer(&reply, ());
            }
            Command::Config { reply } => answer(&reply, self.device.config()),
            Command::Save { reply } => {
                let queues = self.queues.iter().map(|q| q.as_ref().map(DeviceQueue::save)).collect();
                answer(&reply, Saved { queues, device: self.device.save() });
            }
            Command::Restore { state, reply } => answer(&reply, self.device.restore(&state)),
            Command::Stop { reply } => {
                self.leave(Phase::Idle);
                answer(&reply, ());
                return false;
            }
        }
        true
    }

    fn activate(
        &mut self,
        queues: Vec<Option<DeviceQueue>>,
        features: u64,
        run: bool,
    ) -> Result<(), DeviceError> {
        self.device.activate(features)?;
        self.queues = queues;
        self.phase = Phase::Paused;
        if run {
            self.resume();
        }
        Ok(())
    }

    fn pause(&mut self) -> Result<(), Fault> {
        if self.phase != Phase::Running {
            return Ok(());
        }
        self.leave(Phase::Paused);
        let (device, mut ctx) = self.split();
        let drained = device.drain(&mut ctx);
        if let Err(fault) = &drained {
            self.fail(fault);
        }
        drained
    }

    /// Starts to serve, and looks at every queue at once: a notification may have been lost with a pause.
    fn resume(&mut self) {
        if self.phase != Phase::Paused {
            return;
        }
        self.phase = Phase::Running;
        if let Err(error) = self.watch_all() {
            return self.fail(&Fault::Host(error));
        }
        self.again = (0..self.queues.len()).map(Event::Queue).collect();
    }

    fn watch_all(&self) -> io::Result<()> {
        for (index, event) in self.queue_events.iter().enumerate() {
            // Edge-triggered, so that the counter needs no read for each notification.
            let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
            self.watch(event, Event::Queue(index), edge)?;
        }
        for (index, source) in self.device.sources().iter().enumerate() {
            let event = epoll::EventData::new_u64(Event::Source(index).encode());
            epoll::add(&self.epoll, source.fd, event, source.interest)?;
        }
        Ok(())
    }

    /// Stops to serve.
    fn leave(&mut self, next: Phase) {
        if self.phase == Phase::Running {
            self.again.clear();
            let sources = self.device.sources();
            let sources = sources.iter().map(|s| s.fd);
            for fd in self.queue_events.iter().map(borrow).chain(sources) {
                match epoll::delete(&self.epoll, fd) {
                    // Not watched: watching it had failed, which is why the device is left.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => tracing::error!(%error, "cannot stop to watch a descriptor"),
                }
            }
        }
        self.phase = next;
    }

    fn watch(&self, fd: &EventFd, event: Event, interest: epoll::EventFlags) -> io::Result<()> {
        let data = epoll::EventData::new_u64(event.encode());
        Ok(epoll::add(&self.epoll, borrow(fd), data, interest)?)
    }
}

fn answer<T>(reply: &Reply<T>, value: T) {
    if reply.send(value).is_err() {
        // The transport waited for its deadline and has given the worker up.
        tracing::error!("a device's thread answered too late");
    }
}

/// Empties an event counter, so that the next write is an edge again even at the counter's end.
fn drain(event: &EventFd) {
    if let Err(error) = event.read()
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::error!(%error, "cannot read an event counter");
    }
}
