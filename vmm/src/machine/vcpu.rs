//! The vCPUs: one thread each, which runs the guest and serves its exits.
//!
//! ```text
//! Run ──► (exit served) ──► Run            Run ──order Park──► Parked ──order Run──► Run
//! Run ──► the guest's wish, or a failure: reported once, then Ended
//! any ──order End──► Ended
//! ```
//! While all are parked, each can be asked to copy its state out of KVM, which only its own thread may do quickly.
//! An order is written first and then each thread is taken out of the guest ([`sys::kick`]), so that a guest
//! which spins cannot hold it up.

use super::bus::Bus;
use super::pure::power::Wish;
use super::state::StateError;
use super::state::vcpu::{Inventory, VcpuState};
use super::sys;
use crate::seccomp::{self, Role};
use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

/// Bytes shown of the code at the failing instruction: the longest x86 instruction has 15.
const CODE_BYTES: usize = 15;

/// Why the threads could not be started.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// No descriptor for the reports.
    #[error("cannot make the vCPUs' event counter")]
    Events(#[source] io::Error),
    /// No handler for the signal.
    #[error("cannot install the signal that stops vCPUs")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// No thread.
    #[error("cannot start a vCPU's thread")]
    Thread(#[source] io::Error),
}

/// What a vCPU reports, once, before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The guest wants something of the whole machine.
    Wish(Wish),
    /// KVM could not go on; the text has the vCPU, rip and the bytes there.
    Failed(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Run,
    Park,
    End,
}

#[derive(Debug)]
struct Orders {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    order: Order,
    parked: usize,
    ended: usize,
    /// Counts the requests for copies; each parked vCPU answers each once.
    copies_wanted: u64,
    copies: Vec<(usize, Result<VcpuState, StateError>)>,
}

/// The running vCPUs.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    orders: Arc<Orders>,
    reports: Receiver<Report>,
    event: OwnedFd,
}

impl Vcpus {
    /// Starts a thread for each vCPU; they enter the guest at once.
    ///
    /// # Errors
    /// When the host lacks threads or descriptors; those that were started are ended again.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        bus: &Arc<Bus>,
        mem: &crate::devices::GuestRam,
        inventory: &Arc<Inventory>,
    ) -> Result<Self, VcpuError> {
        sys::install().map_err(VcpuError::Signal)?;
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let event = rustix::event::eventfd(0, flags).map_err(|e| VcpuError::Events(e.into()))?;
        // Each reports once at most, so that sending never waits.
        let (sender, reports) = sync_channel(vcpus.len());
        let state = State { order: Order::Run, parked: 0, ended: 0, copies_wanted: 0, copies: Vec::new() };
        let state = Mutex::new(state);
        let orders = Arc::new(Orders { state, changed: Condvar::new() });
        let mut started = Self { threads: Vec::new(), orders, reports, event };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let runner = Runner {
                index,
                vcpu,
                bus: Arc::clone(bus),
                mem: mem.clone(),
                inventory: Arc::clone(inventory),
                orders: Arc::clone(&started.orders),
                reports: sender.clone(),
                event: started.event.try_clone().map_err(VcpuError::Events)?,
            };
            let thread = std::thread::Builder::new().name(format!("vcpu{index}"));
            started.threads.push(thread.spawn(move || runner.run()).map_err(VcpuError::Thread)?);
        }
        Ok(started)
    }

    /// Readable when a report waits.
    #[must_use]
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// The next report, if one waits.
    pub fn report(&self) -> Option<Report> {
        let mut count = [0; 8];
        match rustix::io::read(&self.event, &mut count) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "cannot read the vCPUs' event counter"),
        }
        self.reports.try_recv().ok()
    }

    /// Takes all vCPUs out of the guest; returns when none is in it.
    pub fn park(&self) {
        self.order(Order::Park);
        let state = self.orders.lock();
        let all = self.threads.len();
        drop(self.orders.changed.wait_while(state, |state| state.parked + state.ended < all));
    }

    /// Copies the state of all vCPUs, in their order. Only while they are parked.
    ///
    /// # Errors
    /// When one has ended, or KVM refuses.
    pub fn save(&self) -> Result<Vec<VcpuState>, StateError> {
        let all = self.threads.len();
        let mut state = self.orders.lock();
        if state.parked < all {
            return Err(StateError::Ended);
        }
        state.copies_wanted += 1;
        self.orders.changed.notify_all();
        let waited = self.orders.changed.wait_while(state, |state| state.copies.len() < all);
        let mut copies = std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).copies);
        copies.sort_by_key(|(index, _)| *index);
        copies.into_iter().map(|(_, copy)| copy).collect()
    }

    /// Lets parked vCPUs go on.
    pub fn unpark(&self) {
        self.order(Order::Run);
    }

    fn order(&self, order: Order) {
        self.orders.lock().order = order;
        self.orders.changed.notify_all();
        self.threads.iter().for_each(sys::kick);
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.order(Order::End);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU's thread ended by a panic");
            }
        }
    }
}

impl Orders {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Obeys the order that is in force; false to end.
    fn obey(&self, copy: impl Fn() -> (usize, Result<VcpuState, StateError>)) -> bool {
        let mut state = self.lock();
        if state.order == Order::Park {
            state.parked += 1;
            let mut answered = state.copies_wanted;
            self.changed.notify_all();
            while state.order == Order::Park {
                if state.copies_wanted != answered {
                    answered = state.copies_wanted;
                    drop(state);
                    let copied = copy();
                    state = self.lock();
                    state.copies.push(copied);
                    self.changed.notify_all();
                } else {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
            state.parked -= 1;
        }
        state.order == Order::Run
    }
}

/// One thread's own data.
struct Runner {
    index: usize,
    vcpu: VcpuFd,
    bus: Arc<Bus>,
    mem: crate::devices::GuestRam,
    inventory: Arc<Inventory>,
    orders: Arc<Orders>,
    reports: SyncSender<Report>,
    event: OwnedFd,
}

impl Runner {
    fn run(mut self) {
        if let Err(error) = seccomp::take(Role::Vcpu) {
            self.tell(Report::Failed(error.to_string()));
            return self.ended();
        }
        let armed = sys::Armed::new(&mut self.vcpu);
        // Orders that came before the handler was armed.
        let mut go_on = self.obey();
        while go_on {
            match self.enter() {
                Served::GoOn => {}
                Served::Interrupted => {
                    armed.clear();
                    go_on = self.obey();
                }
                Served::Report(report) => {
                    self.tell(report);
                    go_on = false;
                }
            }
        }
        drop(armed);
        self.ended();
    }

    fn ended(&self) {
        self.orders.lock().ended += 1;
        self.orders.changed.notify_all();
    }

    fn obey(&self) -> bool {
        self.orders.obey(|| (self.index, VcpuState::save(&self.vcpu, &self.inventory)))
    }

    fn tell(&self, report: Report) {
        let sent = self.reports.try_send(report).is_ok();
        let woken = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        if !sent || woken.is_err() {
            tracing::error!(vcpu = self.index, ?woken, "a vCPU's report was lost");
        }
    }

    fn enter(&mut self) -> Served {
        match self.vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => match self.bus.write_port(port, data) {
                Some(wish) => Served::Report(Report::Wish(wish)),
                None => Served::GoOn,
            },
            Ok(VcpuExit::IoIn(port, data)) => {
                self.bus.read_port(port, data);
                Served::GoOn
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.bus.read_memory(address, data);
                Served::GoOn
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.bus.write_memory(address, data);
                Served::GoOn
            }
            Ok(VcpuExit::Intr) => Served::Interrupted,
            Ok(VcpuExit::Shutdown) => self.failed("triple fault"),
            Ok(VcpuExit::InternalError) => {
                let error = sys::internal_error(&mut self.vcpu);
                let what = format!("KVM_EXIT_INTERNAL_ERROR, suberror {}", error.suberror);
                self.failed_at(&what, &error.instruction)
            }
            Ok(VcpuExit::FailEntry(reason, cpu)) => {
                self.failed(&format!("KVM_EXIT_FAIL_ENTRY, hardware reason {reason:#x} on CPU {cpu}"))
            }
            Ok(VcpuExit::SystemEvent(kind, _)) => self.system_event(kind),
            Ok(other) => {
                let what = format!("unexpected exit {other:?}");
                self.failed(&what)
            }
            Err(error) => match error.errno() {
                libc::EINTR => Served::Interrupted,
                // A vCPU that waits for its start-up interrupt was woken.
                libc::EAGAIN => Served::GoOn,
                _ => self.failed(&format!("KVM_RUN failed: {error}")),
            },
        }
    }

    fn system_event(&mut self, kind: u32) -> Served {
        match kind {
            KVM_SYSTEM_EVENT_SHUTDOWN => Served::Report(Report::Wish(Wish::PowerOff)),
            KVM_SYSTEM_EVENT_RESET => Served::Report(Report::Wish(Wish::Reset)),
            KVM_SYSTEM_EVENT_CRASH => self.failed("KVM_SYSTEM_EVENT_CRASH"),
            other => self.failed(&format!("KVM_EXIT_SYSTEM_EVENT of kind {other}")),
        }
    }

    fn failed(&mut self, what: &str) -> Served {
        self.failed_at(what, &[])
    }

    /// The report of a failure: where the vCPU stands and what is there.
    fn failed_at(&mut self, what: &str, instruction: &[u8]) -> Served {
        let mut text = format!("vCPU {}: {what}", self.index);
        let written = match self.vcpu.get_regs() {
            Ok(regs) => {
                let code = if instruction.is_empty() { self.code_at(regs.rip) } else { instruction.to_vec() };
                let bytes: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
                write!(text, "; rip {:#x}, bytes there: {}", regs.rip, bytes.join(" "))
            }
            Err(error) => write!(text, "; registers cannot be read: {error}"),
        };
        debug_assert!(written.is_ok(), "a String takes all");
        Served::Report(Report::Failed(text))
    }

    /// The bytes at a virtual address, as far as it leads to RAM.
    fn code_at(&self, rip: u64) -> Vec<u8> {
        let Ok(translation) = self.vcpu.translate_gva(rip) else { return Vec::new() };
        let mut code = vec![0; CODE_BYTES];
        let address = GuestAddress(translation.physical_address);
        match self.mem.read(&mut code, address) {
            Ok(bytes) if translation.valid != 0 => code.truncate(bytes),
            Ok(_) | Err(_) => code.clear(),
        }
        code
    }
}

enum Served {
    GoOn,
    Interrupted,
    Report(Report),
}
