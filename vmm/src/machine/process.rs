//! The loop of a VM's process: one thread, one epoll, one closed set of events.
//!
//! ```text
//! (Start) ──► Running ──guest resets──► Running (made anew) …
//!                │
//!                ├── guest powers off, panics, KVM gives up, Kill ──► Exited ──► the process ends
//! ```
//! The supervisor may come and go; only a start that it did not live to hear of ends the process.

use super::control::{MachineMessage, MachinePlan, MachineRequest, SOCKET};
use super::hello::Hello;
use super::load::{Boot, LoadError};
use super::parts::{Host, PartsError, device_count};
use super::pure::power::{EVENT_POWER_BUTTON, Wish};
use super::vcpu::Report;
use super::vm::{Machine, MachineError};
use crate::client::{ExitReason, Refusal};
use feed::wire::{BlockingWire, WireError, listen_at};
use rustix::event::epoll;
use rustix::fs::FlockOperation;
use rustix::net::SocketFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use thiserror::Error;

/// Connections of supervisors at once: the present one, one that takes over, and some for people.
const MAX_CONNECTIONS: usize = 8;
/// Connections of the agent at once: the present one, and one that reconnects before the old one's end is seen.
const MAX_HELLOS: usize = 4;
/// Held for the life of the process, so that no two of them use one disk.
const LOCK: &str = "lock";
/// The kernel's command line. The serial line is the only ISA device; probing for others costs boot time.
const COMMAND_LINE: &str = "console=ttyS0 reboot=a panic=-1 pci=off 8250.nr_uarts=1 i8042.noaux i8042.nomux \
     i8042.dumbkbd random.trust_cpu=on swiotlb=noforce cryptomgr.notests clocksource=kvm-clock quiet \
     gatehouse.root=/dev/vda";

/// Why the process ends without a machine having run.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// The supervisor is gone before it asked for anything, or said something else.
    #[error("no order to start came")]
    NoOrder(#[source] WireError),
    /// The first message was not [`MachineRequest::Start`].
    #[error("the first message was not an order to start")]
    NotStart,
    /// The VM's folder cannot be used.
    #[error("cannot use the VM's folder")]
    Folder(#[source] io::Error),
    /// Another process has this VM.
    #[error("another process runs this VM")]
    Locked,
    /// A part is missing.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// The machine cannot be made.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The loop cannot wait.
    #[error("cannot wait for events")]
    Epoll(#[source] io::Error),
    /// The supervisor did not live to hear that the machine runs.
    #[error("the supervisor is gone before the machine ran")]
    Abandoned(#[source] WireError),
}

/// What the loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A vCPU reports.
    Vcpu,
    /// Somebody connects to the control socket.
    Listener,
    /// The agent connects.
    Agent,
    /// A control connection has something, or its end.
    Connection(usize),
    /// A connection of the agent has something, or its end.
    Hello(usize),
}

/// How one run of a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Reboot,
    Exit(ExitReason),
}

/// Runs the machine that the supervisor at the other end of `control` orders.
///
/// # Errors
/// When no machine could be run; the supervisor was told then.
pub fn run(control: OwnedFd) -> Result<(), ProcessError> {
    let wire = BlockingWire::of(control);
    let (request, _) = wire.receive::<MachineRequest>().map_err(ProcessError::NoOrder)?;
    let MachineRequest::Start(plan) = request else { return Err(ProcessError::NotStart) };
    let started = Process::new(*plan).and_then(|process| {
        let machine = process.make()?;
        Ok((process, machine))
    });
    let (mut process, machine) = match started {
        Ok(started) => started,
        Err(error) => {
            let message = chain_text(&error);
            let refused = MachineMessage::Refused { reason: refusal(&error), message };
            if let Err(error) = wire.send(&refused, &[]) {
                tracing::warn!(%error, "the supervisor did not hear of the failure");
            }
            return Err(error);
        }
    };
    wire.send(&process.running(), &[]).map_err(ProcessError::Abandoned)?;
    // Who started the machine is told events without asking.
    process.adopt_connection(wire, true).map_err(ProcessError::Epoll)?;
    process.live(machine)
}

/// A supervisor's connection.
#[derive(Debug)]
struct Connection {
    wire: BlockingWire,
    subscribed: bool,
}

/// The process' own data.
#[derive(Debug)]
struct Process {
    plan: MachinePlan,
    host: Host,
    _lock: File,
    epoll: OwnedFd,
    listener: OwnedFd,
    connections: Vec<Option<Connection>>,
    hellos: Vec<Option<Hello>>,
    agent_ready: bool,
}

impl Process {
    fn new(plan: MachinePlan) -> Result<Self, ProcessError> {
        let lock = lock_folder(&plan.folder)?;
        let listener = listen_at(&plan.folder.join(SOCKET), 0o600).map_err(ProcessError::Folder)?;
        let host = Host::prepare(&plan)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| ProcessError::Epoll(e.into()))?;
        let process = Self {
            plan,
            host,
            _lock: lock,
            epoll,
            listener,
            connections: (0..MAX_CONNECTIONS).map(|_| None).collect(),
            hellos: (0..MAX_HELLOS).map(|_| None).collect(),
            agent_ready: false,
        };
        process.watch(process.listener.as_fd(), Event::Listener).map_err(ProcessError::Epoll)?;
        process.watch(process.host.agents.as_fd(), Event::Agent).map_err(ProcessError::Epoll)?;
        Ok(process)
    }

    /// Makes a machine and lets it run.
    fn make(&self) -> Result<Machine, ProcessError> {
        let parts = self.host.parts(&self.plan)?;
        let command_line = format!("{COMMAND_LINE} {}", self.plan.command_line);
        let boot = Boot {
            memory_mib: self.plan.spec.memory_mib,
            vcpus: self.plan.spec.vcpus,
            virtio_devices: device_count(&self.plan),
            kernel: &self.plan.kernel,
            initramfs: Some(&self.plan.initramfs),
            command_line: command_line.trim_end(),
        };
        let machine = Machine::start(&boot, parts)?;
        self.watch(machine.vcpus().event(), Event::Vcpu).map_err(ProcessError::Epoll)?;
        Ok(machine)
    }

    /// Runs machine after machine until one is down for good, and tells so.
    fn live(&mut self, mut machine: Machine) -> Result<(), ProcessError> {
        let reason = loop {
            match self.serve(&machine)? {
                Outcome::Exit(reason) => break reason,
                Outcome::Reboot => {
                    self.tell(&MachineMessage::Rebooting);
                    self.agent_ready = false;
                    self.hellos.iter_mut().for_each(|hello| *hello = None);
                    // Gone before the next one is made: they share the disk and the TAP.
                    drop(machine);
                }
            }
            machine = match self.make() {
                Ok(machine) => machine,
                Err(error) => break ExitReason::ProcessDied { message: chain_text(&error) },
            };
        };
        tracing::info!(?reason, "the machine is down");
        self.tell(&MachineMessage::Exited { reason });
        Ok(())
    }

    /// Serves events until the machine is down.
    fn serve(&mut self, machine: &Machine) -> Result<Outcome, ProcessError> {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(MAX_CONNECTIONS + MAX_HELLOS + 3);
        loop {
            ready.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut ready), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(ProcessError::Epoll(error.into())),
            }
            for event in &ready {
                if let Some(outcome) = self.handle(Event::decode(event.data.u64()), machine) {
                    return Ok(outcome);
                }
            }
        }
    }

    fn handle(&mut self, event: Event, machine: &Machine) -> Option<Outcome> {
        match event {
            Event::Vcpu => machine.vcpus().report().map(|report| outcome(report, machine.bus().panic_line())),
            Event::Listener => {
                self.accept_supervisor();
                None
            }
            Event::Agent => {
                self.accept_agent();
                None
            }
            Event::Connection(slot) => self.hear_supervisor(slot, machine),
            Event::Hello(slot) => {
                self.hear_agent(slot);
                None
            }
        }
    }

    fn accept_supervisor(&mut self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = rustix::net::accept_with(&self.listener, flags).map_err(io::Error::from);
        if let Err(error) = accepted.and_then(|socket| self.adopt_connection(BlockingWire::of(socket), false))
        {
            tracing::warn!(%error, "a control connection was not taken");
        }
    }

    /// Takes a connection into the loop; non-blocking, so that a peer that does not read cannot hold it up.
    fn adopt_connection(&mut self, wire: BlockingWire, subscribed: bool) -> io::Result<()> {
        rustix::io::ioctl_fionbio(wire.as_fd(), true)?;
        let Some(slot) = self.connections.iter().position(Option::is_none) else {
            return Err(io::Error::other("all connections are in use"));
        };
        self.watch(wire.as_fd(), Event::Connection(slot))?;
        self.connections[slot] = Some(Connection { wire, subscribed });
        Ok(())
    }

    fn hear_supervisor(&mut self, slot: usize, machine: &Machine) -> Option<Outcome> {
        let connection = self.connections[slot].as_ref()?;
        let request = match connection.wire.receive::<MachineRequest>() {
            Ok((request, _)) => request,
            Err(WireError::Receive(error)) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(error) => {
                tracing::debug!(%error, "a control connection ended");
                self.connections[slot] = None;
                return None;
            }
        };
        match request {
            MachineRequest::Start(_) => {
                let message = "a machine runs already".to_owned();
                self.answer(slot, &MachineMessage::Refused { reason: Refusal::Busy, message });
            }
            MachineRequest::Subscribe => {
                if let Some(connection) = &mut self.connections[slot] {
                    connection.subscribed = true;
                }
                let running = self.running();
                self.answer(slot, &running);
            }
            MachineRequest::PowerButton => {
                let answer = match machine.bus().raise(EVENT_POWER_BUTTON) {
                    Ok(()) => MachineMessage::Done,
                    Err(error) => {
                        MachineMessage::Refused { reason: Refusal::Internal, message: error.to_string() }
                    }
                };
                self.answer(slot, &answer);
            }
            MachineRequest::Kill => {
                self.answer(slot, &MachineMessage::Done);
                return Some(Outcome::Exit(ExitReason::Killed));
            }
        }
        None
    }

    fn accept_agent(&mut self) {
        let accepted = self.host.agents.accept().and_then(|(stream, _)| Hello::new(stream));
        let hello = match accepted {
            Ok(hello) => hello,
            Err(error) => return tracing::warn!(%error, "a connection of the agent was not taken"),
        };
        let Some(slot) = self.hellos.iter().position(Option::is_none) else {
            return tracing::warn!("a connection of the agent was not taken: all are in use");
        };
        if let Err(error) = self.watch(hello.stream().as_fd(), Event::Hello(slot)) {
            return tracing::warn!(%error, "a connection of the agent was not taken");
        }
        self.hellos[slot] = Some(hello);
    }

    fn hear_agent(&mut self, slot: usize) {
        let Some(hello) = &mut self.hellos[slot] else { return };
        match hello.advance(&self.plan.spec.boot) {
            Ok(false) => {}
            Ok(true) => {
                self.agent_ready = true;
                self.tell(&MachineMessage::AgentReady);
            }
            Err(error) => {
                tracing::info!(error = chain_text(&error), "the agent's connection ended");
                self.hellos[slot] = None;
            }
        }
    }

    fn running(&self) -> MachineMessage {
        MachineMessage::Running {
            vm: self.plan.spec.vm.clone(),
            instance: self.plan.spec.instance.clone(),
            agent_ready: self.agent_ready,
        }
    }

    /// Tells an event to all who subscribed.
    fn tell(&mut self, message: &MachineMessage) {
        for slot in 0..self.connections.len() {
            if self.connections[slot].as_ref().is_some_and(|connection| connection.subscribed) {
                self.answer(slot, message);
            }
        }
    }

    /// Sends to one; whoever does not read is dropped.
    fn answer(&mut self, slot: usize, message: &MachineMessage) {
        let Some(connection) = &self.connections[slot] else { return };
        if let Err(error) = connection.wire.send(message, &[]) {
            tracing::debug!(%error, "a control connection is dropped");
            self.connections[slot] = None;
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, event: Event) -> io::Result<()> {
        let data = epoll::EventData::new_u64(event.encode());
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }
}

/// The first numbers of connections and hellos in epoll's data.
const FIRST_CONNECTION: u64 = 0x100;
const FIRST_HELLO: u64 = 0x200;

impl Event {
    fn encode(self) -> u64 {
        match self {
            Self::Vcpu => 0,
            Self::Listener => 1,
            Self::Agent => 2,
            Self::Connection(slot) => FIRST_CONNECTION + slot as u64,
            Self::Hello(slot) => FIRST_HELLO + slot as u64,
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            0 => Self::Vcpu,
            1 => Self::Listener,
            2..FIRST_CONNECTION => Self::Agent,
            FIRST_CONNECTION..FIRST_HELLO => Self::Connection((data - FIRST_CONNECTION) as usize),
            FIRST_HELLO.. => Self::Hello((data - FIRST_HELLO) as usize),
        }
    }
}

/// Tells restart, power-off, panic and failure apart. A kernel that panics resets (`panic=-1`), or, if it can do
/// nothing else, ends in a triple fault; its last words on the console say why.
fn outcome(report: Report, panic_line: Option<String>) -> Outcome {
    match (report, panic_line) {
        (Report::Wish(Wish::PowerOff), _) => Outcome::Exit(ExitReason::PoweredOff),
        (Report::Wish(Wish::Reset) | Report::Failed(_), Some(message)) => {
            Outcome::Exit(ExitReason::Panicked { message })
        }
        (Report::Wish(Wish::Reset), None) => Outcome::Reboot,
        (Report::Failed(message), None) => Outcome::Exit(ExitReason::Kvm { message }),
    }
}

fn lock_folder(folder: &Path) -> Result<File, ProcessError> {
    let file = File::create(folder.join(LOCK)).map_err(ProcessError::Folder)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ProcessError::Locked),
        Err(error) => Err(ProcessError::Folder(error.into())),
    }
}

fn refusal(error: &ProcessError) -> Refusal {
    match error {
        ProcessError::Parts(PartsError::Disk(_) | PartsError::DiskFiles { .. }) => Refusal::Disk,
        ProcessError::Parts(PartsError::Tap(_) | PartsError::Nic(_)) => Refusal::Network,
        ProcessError::Machine(MachineError::Load(
            LoadError::Open { .. }
            | LoadError::Kernel { .. }
            | LoadError::Initramfs { .. }
            | LoadError::NoRoom { .. },
        )) => Refusal::Image,
        ProcessError::Machine(
            MachineError::Kvm { .. } | MachineError::Lacks(_) | MachineError::Msrs { .. },
        ) => Refusal::Kvm,
        ProcessError::Machine(MachineError::Load(LoadError::CommandLine { .. })) => Refusal::BadSpec,
        ProcessError::Locked => Refusal::Busy,
        ProcessError::NoOrder(_)
        | ProcessError::NotStart
        | ProcessError::Folder(_)
        | ProcessError::Epoll(_)
        | ProcessError::Abandoned(_)
        | ProcessError::Parts(_)
        | ProcessError::Machine(_) => Refusal::Internal,
    }
}

/// An error with all its causes, for a person.
#[must_use]
pub fn chain_text(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_epoll() {
        for event in [Event::Vcpu, Event::Listener, Event::Agent, Event::Connection(7), Event::Hello(3)] {
            assert_eq!(Event::decode(event.encode()), event);
        }
    }

    #[test]
    fn restart_panic_and_failure_are_told_apart() {
        let line = || Some("Kernel panic - not syncing: x".to_owned());
        assert_eq!(outcome(Report::Wish(Wish::Reset), None), Outcome::Reboot);
        assert!(matches!(
            outcome(Report::Wish(Wish::Reset), line()),
            Outcome::Exit(ExitReason::Panicked { .. })
        ));
        assert!(matches!(
            outcome(Report::Failed("x".into()), line()),
            Outcome::Exit(ExitReason::Panicked { .. })
        ));
        assert!(matches!(outcome(Report::Failed("x".into()), None), Outcome::Exit(ExitReason::Kvm { .. })));
        assert_eq!(outcome(Report::Wish(Wish::PowerOff), line()), Outcome::Exit(ExitReason::PoweredOff));
    }
}
