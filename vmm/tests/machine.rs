//! Machines with tiny guests on this host's `/dev/kvm`: the boot path, exits, devices and ends.

mod tiny;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use tiny::Code;
use vmm::devices::rng::Rng;
use vmm::machine::console::{self, Console};
use vmm::machine::jail::Kit;
use vmm::machine::load::{self, Boot, ImageFile};
use vmm::machine::memory;
use vmm::machine::pure::power::{EVENT_POWER_BUTTON, Wish};
use vmm::machine::state::{self, MachineState, StateError};
use vmm::machine::vcpu::Report;
use vmm::machine::vm::{Machine, MachineError, Parts, Shell};

const MEMORY_MIB: u32 = 64;
/// Interpreted guests are slow, and the test machine is shared.
const PATIENCE: Duration = Duration::from_secs(60);

struct Trial {
    folder: tempfile::TempDir,
    machine: Machine,
}

impl Trial {
    fn start(code: Code, vcpus: u8) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, code.elf()).expect("kernel");
        let machine = start(folder.path(), &kernel, vcpus).expect("machine");
        Self { folder, machine }
    }

    fn report(&self) -> Report {
        let begin = Instant::now();
        loop {
            let mut fds = [rustix::event::PollFd::from_borrowed_fd(
                self.machine.vcpus().event(),
                rustix::event::PollFlags::IN,
            )];
            let wait = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
            rustix::event::poll(&mut fds, Some(&wait)).expect("poll");
            if let Some(report) = self.machine.vcpus().report() {
                return report;
            }
            assert!(begin.elapsed() < PATIENCE, "no report; console: {:?}", self.console());
        }
    }

    fn console(&self) -> String {
        String::from_utf8_lossy(&console::tail(self.folder.path(), 4096).expect("log")).into_owned()
    }
}

fn kit() -> Kit {
    Kit::open().expect("proc")
}

fn start(folder: &Path, kernel: &Path, vcpus: u8) -> Result<Machine, MachineError> {
    let file = std::fs::File::open(kernel).expect("kernel");
    let boot = Boot {
        memory_mib: MEMORY_MIB,
        vcpus,
        virtio_devices: 1,
        kernel: ImageFile { file: &file, path: kernel },
        initramfs: None,
        command_line: "test",
    };
    let parts = Parts {
        mem: load::map(MEMORY_MIB).expect("memory"),
        devices: vec![Box::new(Rng::new())],
        console: Console::open(folder, 1 << 16).expect("console"),
    };
    Machine::start(Shell::new(&kit())?, &boot, parts)
}

fn failure(report: Report) -> String {
    match report {
        Report::Failed(text) => text,
        Report::Wish(wish) => panic!("expected a failure, got {wish:?}"),
    }
}

#[test]
fn a_guest_enters_in_64_bit_mode_prints_and_powers_off() {
    let trial = Trial::start(Code::new().print("hello\n").power_off(), 1);
    assert_eq!(trial.report(), Report::Wish(Wish::PowerOff));
    assert_eq!(trial.console(), "hello\n");
}

#[test]
fn a_guest_resets() {
    let trial = Trial::start(Code::new().reset(), 1);
    assert_eq!(trial.report(), Report::Wish(Wish::Reset));
}

#[test]
fn a_guest_reaches_a_virtio_device() {
    let trial = Trial::start(Code::new().print_register().power_off(), 1);
    assert_eq!(trial.report(), Report::Wish(Wish::PowerOff));
    assert_eq!(trial.console(), "virt");
}

#[test]
fn the_power_button_reaches_the_guest() {
    let trial = Trial::start(Code::new().print("up").await_event().power_off(), 1);
    trial.machine.bus().raise(EVENT_POWER_BUTTON).expect("raise");
    assert_eq!(trial.report(), Report::Wish(Wish::PowerOff));
}

#[test]
fn a_triple_fault_is_reported_with_its_place() {
    let trial = Trial::start(Code::new().triple_fault(), 1);
    let text = failure(trial.report());
    assert!(text.contains("triple fault") && text.contains("rip 0x"), "{text}");
}

#[test]
fn an_internal_error_is_reported_with_its_place() {
    // Mapped, but neither RAM nor a device: no instruction can be fetched there.
    let trial = Trial::start(Code::new().jump(0x800_0000), 1);
    let text = failure(trial.report());
    assert!(text.contains("KVM_EXIT_INTERNAL_ERROR, suberror 1"), "{text}");
    assert!(text.contains("rip 0x8000000") && text.contains("bytes there:"), "{text}");
}

#[test]
fn guests_that_spin_or_sleep_are_parked_and_ended() {
    for code in [Code::new().print("x").spin(), Code::new().print("x").halt()] {
        for vcpus in [1, 4] {
            let trial = Trial::start(code.clone(), vcpus);
            for _ in 0..20 {
                trial.machine.vcpus().park();
                trial.machine.vcpus().unpark();
            }
            let begin = Instant::now();
            drop(trial.machine);
            assert!(begin.elapsed() < PATIENCE);
        }
    }
}

#[test]
fn the_first_vcpu_starts_the_others() {
    for vcpus in [2, 8] {
        let trial = Trial::start(Code::new().start_others(vcpus - 1).print("all").power_off(), vcpus);
        assert_eq!(trial.report(), Report::Wish(Wish::PowerOff));
        assert_eq!(trial.console(), "all");
    }
}

#[test]
fn what_is_no_kernel_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let path: PathBuf = folder.path().join("kernel");
    for bytes in [b"".as_slice(), b"MZ no kernel", &Code::new().spin().elf()[..100]] {
        std::fs::write(&path, bytes).expect("write");
        assert!(matches!(start(folder.path(), &path, 1), Err(MachineError::Load(_))));
    }
}

impl Trial {
    /// Waits until the guest has printed this.
    fn await_console(&self, text: &str) {
        let begin = Instant::now();
        while self.console() != text {
            assert!(begin.elapsed() < PATIENCE, "console: {:?}", self.console());
            std::thread::yield_now();
        }
    }

    /// Brings the machine to rest and writes it down.
    fn save(&self) -> MachineState {
        self.machine.pause().expect("paused");
        let state = self.machine.save().expect("saved");
        let proc = kit().proc;
        let file = |name| std::fs::File::create(self.folder.path().join(name)).expect("file");
        memory::write(self.machine.mem(), &proc, file("memory"), &AtomicBool::new(false)).expect("memory");
        state::write(&file("state"), &state).expect("state");
        state
    }

    fn restore(folder: &Path, state: &MachineState) -> Result<Machine, MachineError> {
        let mem = memory::map(&folder.join("memory"), MEMORY_MIB).expect("mapped");
        let console = Console::open(folder, 4096).expect("log");
        let parts = Parts { mem, devices: vec![Box::new(Rng::new())], console };
        Machine::restore(Shell::new(&kit())?, state, parts)?.go_on()
    }
}

#[test]
fn a_saved_machine_goes_on_in_another_with_its_memory_registers_and_vcpus() {
    for vcpus in [1, 4] {
        let code = Code::new().start_others(vcpus - 1).print("a").await_event().print("b").await_event();
        let trial = Trial::start(code.print("c").power_off(), vcpus);
        trial.await_console("a");
        trial.save();
        let state = state::read(&trial.folder.path().join("state")).expect("read");
        let Trial { folder, machine } = trial;
        drop(machine);
        // The restore itself raises an event: the generation id has changed.
        let trial = Trial { machine: Trial::restore(folder.path(), &state).expect("restored"), folder };
        trial.await_console("ab");
        // From the file once more, after the first has written to its memory; and from the one that goes on.
        trial.save_elsewhere();
        trial.machine.unpause().expect("goes on");
        trial.machine.bus().raise(EVENT_POWER_BUTTON).expect("raise");
        assert_eq!(trial.report(), Report::Wish(Wish::PowerOff));
        assert_eq!(trial.console(), "abc");
        let Trial { folder, machine } = trial;
        drop(machine);
        let trial = Trial { machine: Trial::restore(folder.path(), &state).expect("restored again"), folder };
        trial.await_console("abcb");
    }
}

impl Trial {
    fn save_elsewhere(&self) {
        self.machine.pause().expect("paused");
        let proc = kit().proc;
        let file = std::fs::File::create(self.folder.path().join("second")).expect("file");
        memory::write(self.machine.mem(), &proc, file, &AtomicBool::new(false)).expect("memory");
        assert_eq!(
            self.machine.save().expect("saved").vcpus.len(),
            self.machine.save().expect("again").vcpus.len()
        );
    }
}

#[test]
fn a_state_of_another_cpu_or_of_other_devices_is_refused() {
    let trial = Trial::start(Code::new().print("a").spin(), 1);
    trial.await_console("a");
    let state = trial.save();
    let folder = trial.folder.path();
    let mut other = state.clone();
    other.cpu.features ^= 1;
    let refused = Trial::restore(folder, &other);
    assert!(matches!(refused, Err(MachineError::State(StateError::OtherCpu { .. }))), "{refused:?}");
    let mut other = state.clone();
    other.devices.clear();
    assert!(matches!(Trial::restore(folder, &other), Err(MachineError::State(StateError::Unfit(_)))));
    let mut other = state.clone();
    other.devices[0].queues.clear();
    assert!(matches!(Trial::restore(folder, &other), Err(MachineError::Device(_))));
    drop(Trial::restore(folder, &state).expect("the good one still works"));
}

#[test]
fn what_has_ended_is_not_saved() {
    let trial = Trial::start(Code::new().power_off(), 1);
    assert_eq!(trial.report(), Report::Wish(Wish::PowerOff));
    trial.machine.pause().expect("paused");
    assert!(matches!(trial.machine.save(), Err(MachineError::State(StateError::Ended))));
}
