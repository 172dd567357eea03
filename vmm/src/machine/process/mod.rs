//! The loop of a VM's process: one thread, one epoll, one closed set of events.
//!
//! ```text
//! (Start) ──► Running ──guest resets──► Running (made anew) …
//!              │  ▲
//!      Suspend │  │ traffic, or the state cannot be written
//!              ▼  │
//!           Suspending ──written──► Exited ──► the process ends
//!
//! Running ──guest powers off, panics, KVM gives up, Kill──► Exited ──► the process ends
//! Running ──Freeze──► Running, and a frozen copy of the process ([`zygote`])
//! Running ──GrowDisk──► Running, on a larger disk
//! ```
//! The supervisor may come and go; a start that it did not live to hear of ends the process, unless a saved state was
//! used up by it: then the next supervisor finds the process by its socket.

mod copy;
mod error;
mod grow;
mod idle;
mod suspend;
mod talk;
pub mod zygote;

pub use error::{ProcessError, chain_text, refusal};

use super::control::{MachineMessage, MachinePlan, MachineRequest, SOCKET};
use super::handed::Handed;
use super::hello::Hello;
use super::jail::{self, Kit};
use super::load::{Boot, ImageFile};
use super::parts::{Host, device_count};
use super::pure::power::Wish;
use super::state::MachineState;
use super::sys;
use super::vcpu::Report;
use super::vm::{Machine, Shell};
use crate::client::ExitReason;
use crate::devices::GuestRam;
use feed::wire::{BlockingWire, WireError, listen_at};
use idle::Idle;
use model::agent::Identity;
use rustix::event::epoll;
use rustix::fs::FlockOperation;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;
use suspend::Suspending;

/// Connections of supervisors at once: the present one, one that takes over, one for each long request, and some for
/// people.
const MAX_CONNECTIONS: usize = 8;
/// Connections of the agent at once: the present one, and one that reconnects before the old one's end is seen.
const MAX_HELLOS: usize = 4;
/// Held for the life of the process, so that no two of them use one disk.
const LOCK: &str = "lock";
/// The kernel's command line. The serial line is the only ISA device; probing for others costs boot time. Of the security
/// modules there are those that programs of a guest use: with `bpf`, systemd parses all of the kernel's types before it
/// looks at a unit, a seventh of a boot.
const COMMAND_LINE: &str = "console=ttyS0 reboot=a panic=-1 pci=off 8250.nr_uarts=1 i8042.noaux i8042.nomux \
     i8042.dumbkbd random.trust_cpu=on swiotlb=noforce cryptomgr.notests clocksource=kvm-clock quiet \
     lsm=lockdown,landlock,yama,apparmor \
     gatehouse.root=/dev/vda";

/// What the loop waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A vCPU reports.
    Vcpu,
    /// Somebody connects to the control socket.
    Listener,
    /// The agent connects.
    Agent,
    /// The period of the idle watch is over.
    Idle,
    /// The thread that writes the state has ended.
    Written,
    /// Somebody wants something of the machine while it is being suspended.
    Traffic,
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

/// What a machine begins from.
enum Source {
    /// Its kernel.
    Boot,
    /// The state in its folder.
    Files(Identity),
    /// The state that this process has inherited.
    Inherited { mem: GuestRam, state: Box<MachineState> },
}

/// Runs the machine that the supervisor at the other end of `control` orders. What can be made without knowing it is
/// made before the order comes.
///
/// # Errors
/// When no machine could be run; the supervisor was told then.
pub fn run(control: OwnedFd, kit: Kit) -> Result<(), ProcessError> {
    // Copies of this process are nobody's to wait for.
    sys::ignore_children(true).map_err(ProcessError::Children)?;
    let shell = Shell::new(&kit);
    let wire = BlockingWire::of(control);
    let (request, descriptors) = wire.receive::<MachineRequest>().map_err(ProcessError::NoOrder)?;
    let MachineRequest::Start(plan) = request else { return Err(ProcessError::NotStart) };
    let source = plan.restore.map_or(Source::Boot, Source::Files);
    let order = Order { plan: *plan, descriptors, kit, source };
    obey(wire, order, shell.map_err(ProcessError::from))
}

/// All that a machine is made of.
struct Order {
    plan: MachinePlan,
    /// See [`Handed`].
    descriptors: Vec<OwnedFd>,
    kit: Kit,
    source: Source,
}

/// Runs a machine, and tells how that begins.
fn obey(wire: BlockingWire, order: Order, shell: Result<Shell, ProcessError>) -> Result<(), ProcessError> {
    let begun = Instant::now();
    let uses_up = matches!(order.source, Source::Files(_));
    let started = shell.and_then(|shell| start(order, &wire, shell));
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
    tracing::info!(order_to_run = ?begun.elapsed(), restored = process.restored.is_some(), "the machine runs");
    match wire.send(&process.running(), &[]) {
        // Who started the machine is told events without asking.
        Ok(()) => process.adopt_connection(wire, true).map_err(ProcessError::Epoll)?,
        Err(error) if uses_up => tracing::warn!(%error, "the supervisor did not hear of the start"),
        Err(error) => return Err(ProcessError::Abandoned(error)),
    }
    process.live(machine)
}

/// `wire` leads to who ordered it.
fn start(order: Order, wire: &BlockingWire, shell: Shell) -> Result<(Process, Machine), ProcessError> {
    let Order { mut plan, descriptors, kit, source } = order;
    let handed = Handed::from_descriptors(descriptors).ok_or(ProcessError::NothingHanded)?;
    rustix::process::fchdir(&handed.folder).map_err(|error| ProcessError::Folder(error.into()))?;
    // Everything of the VM's is named from here on.
    plan.folder = PathBuf::from(".");
    if let Some(user) = plan.user {
        jail::settle(user)?;
    }
    let mut process = Process::new(plan, handed, kit)?;
    let machine = process.make(shell, source, || check_there(wire))?;
    Ok((process, machine))
}

/// Whether the supervisor still waits for the machine. Without one the saved state is better left as it is.
fn check_there(wire: &BlockingWire) -> Result<(), ProcessError> {
    let open = wire.is_open().and_then(|open| if open { Ok(()) } else { Err(WireError::Closed) });
    open.map_err(ProcessError::Abandoned)
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
    kit: Kit,
    epoll: OwnedFd,
    listener: OwnedFd,
    connections: Vec<Option<Connection>>,
    hellos: Vec<Option<Hello>>,
    agent_ready: bool,
    /// Whose state the machine went on from, until its guest boots anew.
    restored: Option<Identity>,
    idle: Idle,
    suspending: Option<Suspending>,
}

impl Process {
    fn new(plan: MachinePlan, handed: Handed, kit: Kit) -> Result<Self, ProcessError> {
        let lock = lock_folder(&plan.folder)?;
        let listener = listen_at(&plan.folder.join(SOCKET), 0o600).map_err(ProcessError::Folder)?;
        let host = Host::prepare(&plan, handed)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| ProcessError::Epoll(e.into()))?;
        let process = Self {
            idle: Idle::new(plan.spec.idle).map_err(ProcessError::Epoll)?,
            plan,
            host,
            _lock: lock,
            kit,
            epoll,
            listener,
            connections: (0..MAX_CONNECTIONS).map(|_| None).collect(),
            hellos: (0..MAX_HELLOS).map(|_| None).collect(),
            agent_ready: false,
            restored: None,
            suspending: None,
        };
        process.watch(process.listener.as_fd(), Event::Listener).map_err(ProcessError::Epoll)?;
        process.watch(process.host.agents.as_fd(), Event::Agent).map_err(ProcessError::Epoll)?;
        process.watch(process.idle.timer(), Event::Idle).map_err(ProcessError::Epoll)?;
        Ok(process)
    }

    /// Makes a machine and lets it run. `check` comes right before a saved state is used up.
    fn make(
        &mut self,
        shell: Shell,
        source: Source,
        check: impl FnOnce() -> Result<(), ProcessError>,
    ) -> Result<Machine, ProcessError> {
        self.restored = None;
        let machine = match source {
            Source::Boot => self.boot(shell)?,
            Source::Files(identity) => {
                let (mem, state) = suspend::read(&self.plan)?;
                let use_up = || check().and_then(|()| suspend::use_up(&self.plan.folder));
                let machine = self.restore(shell, mem, &state, use_up)?;
                self.restored = Some(identity);
                machine
            }
            Source::Inherited { mem, state } => {
                let machine = self.restore(shell, mem, &state, || Ok(()))?;
                self.restored = Some(Identity::New);
                machine
            }
        };
        self.watch(machine.vcpus().event(), Event::Vcpu).map_err(ProcessError::Epoll)?;
        self.idle.begin().map_err(ProcessError::Epoll)?;
        Ok(machine)
    }

    fn boot(&self, shell: Shell) -> Result<Machine, ProcessError> {
        let parts = self.host.parts(&self.plan, None)?;
        let command_line = format!("{COMMAND_LINE} {}", self.plan.command_line);
        let [kernel, initramfs] = self.host.boot_files();
        let boot = Boot {
            memory_mib: self.plan.spec.memory_mib,
            vcpus: self.plan.spec.vcpus,
            virtio_devices: device_count(&self.plan),
            kernel: ImageFile { file: kernel, path: &self.plan.kernel },
            initramfs: Some(ImageFile { file: initramfs, path: &self.plan.initramfs }),
            command_line: command_line.trim_end(),
        };
        Ok(Machine::start(shell, &boot, parts)?)
    }

    /// `before` is the last thing that happens before the guest's next instruction.
    fn restore(
        &self,
        shell: Shell,
        mem: GuestRam,
        state: &MachineState,
        before: impl FnOnce() -> Result<(), ProcessError>,
    ) -> Result<Machine, ProcessError> {
        let spec = &self.plan.spec;
        if state.memory_mib != spec.memory_mib || state.vcpus.len() != usize::from(spec.vcpus) {
            return Err(ProcessError::OtherSize { memory_mib: state.memory_mib, vcpus: state.vcpus.len() });
        }
        let parts = self.host.parts(&self.plan, Some(mem))?;
        let stopped = Machine::restore(shell, state, parts)?;
        before()?;
        Ok(stopped.go_on()?)
    }

    /// Runs machine after machine until one is down for good, and tells so.
    fn live(&mut self, mut machine: Machine) -> Result<(), ProcessError> {
        let reason = loop {
            match self.serve(&mut machine)? {
                Outcome::Exit(reason) => break reason,
                Outcome::Reboot => {
                    self.tell(&MachineMessage::Rebooting);
                    self.agent_ready = false;
                    self.hellos.iter_mut().for_each(|hello| *hello = None);
                    // Gone before the next one is made: they share the disk and the TAP.
                    drop(machine);
                }
            }
            let shell = Shell::new(&self.kit).map_err(ProcessError::from);
            machine = match shell.and_then(|shell| self.make(shell, Source::Boot, || Ok(()))) {
                Ok(machine) => machine,
                Err(error) => break ExitReason::ProcessDied { message: chain_text(&error) },
            };
        };
        tracing::info!(?reason, "the machine is down");
        self.tell(&MachineMessage::Exited { reason });
        Ok(())
    }

    /// Serves events until the machine is down.
    fn serve(&mut self, machine: &mut Machine) -> Result<Outcome, ProcessError> {
        let mut ready: Vec<epoll::Event> = Vec::with_capacity(MAX_CONNECTIONS + MAX_HELLOS + 8);
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

    fn handle(&mut self, event: Event, machine: &mut Machine) -> Option<Outcome> {
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
            Event::Idle => {
                self.look_whether_idle();
                None
            }
            Event::Written => self.end_suspend(machine),
            Event::Traffic => {
                self.break_off_suspend(machine);
                None
            }
            Event::Connection(slot) => self.hear_supervisor(slot, machine),
            Event::Hello(slot) => {
                self.hear_agent(slot, machine);
                None
            }
        }
    }

    fn watch(&self, fd: BorrowedFd<'_>, event: Event) -> io::Result<()> {
        let data = epoll::EventData::new_u64(event.encode());
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    fn unwatch(&self, fd: BorrowedFd<'_>) {
        if let Err(error) = epoll::delete(&self.epoll, fd) {
            tracing::error!(%error, "cannot stop to watch a descriptor");
        }
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
            Self::Idle => 3,
            Self::Written => 4,
            Self::Traffic => 5,
            Self::Connection(slot) => FIRST_CONNECTION + slot as u64,
            Self::Hello(slot) => FIRST_HELLO + slot as u64,
        }
    }

    fn decode(data: u64) -> Self {
        match data {
            0 => Self::Vcpu,
            1 => Self::Listener,
            2 => Self::Agent,
            3 => Self::Idle,
            4 => Self::Written,
            5..FIRST_CONNECTION => Self::Traffic,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_survive_epoll() {
        for event in [
            Event::Vcpu,
            Event::Listener,
            Event::Agent,
            Event::Idle,
            Event::Written,
            Event::Traffic,
            Event::Connection(7),
            Event::Hello(3),
        ] {
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
