//! One machine in KVM: made from a plan or from a saved state, then run, and brought to rest to be saved.

use super::bus::{Bus, Line};
use super::console::Console;
use super::jail::Kit;
use super::load::{self, Boot, LoadError};
use super::pure::layout::{
    COM1_GSI, EVENTS_GSI, KVM_IDENTITY_MAP, KVM_TSS, MAX_VIRTIO, virtio_gsi, virtio_registers,
};
use super::pure::power::EVENT_GENERATION;
use super::pure::{cpuid, registers};
use super::state::vcpu::Inventory;
use super::state::{Chips, CpuIdentity, MachineState, StateError};
use super::sys;
use super::vcpu::{VcpuError, Vcpus};
use crate::devices::mmio::QUEUE_NOTIFY;
use crate::devices::{DeviceKind, GuestRam, MmioTransport, TransportError, VirtioDevice};
use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_lapic_state,
    kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use std::io;
use std::sync::Arc;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What a host must have.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];
/// Local vector table entries of the LAPIC page (Intel SDM volume 3, section 11.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
/// Delivery modes in such an entry.
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;
const MODE_MASK: u32 = 7 << 8;

/// Why a machine could not be made.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM is missing or refuses.
    #[error("KVM refuses {operation}")]
    Kvm {
        /// The ioctl.
        operation: &'static str,
        /// Its error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// There is no KVM, or no descriptor for it.
    #[error("cannot open /dev/kvm: {0}")]
    NoKvm(io::ErrorKind),
    /// KVM is too old or not the right one.
    #[error("this host's KVM lacks {0}")]
    Lacks(&'static str),
    /// KVM did not take all boot registers.
    #[error("KVM took only {taken} of {all} boot registers")]
    Msrs {
        /// How many it took.
        taken: usize,
        /// How many there are.
        all: usize,
    },
    /// No event counter.
    #[error("cannot make an event counter")]
    Event(#[source] io::Error),
    /// Guest memory.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A device.
    #[error("cannot make a virtio device")]
    Device(#[from] TransportError),
    /// More devices than the machine has places for.
    #[error("a machine has at most {MAX_VIRTIO} virtio devices")]
    TooManyDevices,
    /// A page that is shared with KVM.
    #[error("cannot keep a vCPU's page out of copies of the process")]
    Page(#[source] io::Error),
    /// A saved state.
    #[error(transparent)]
    State(#[from] StateError),
    /// The vCPUs' threads.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}

/// KVM's half of a machine before anything is in it. Making it takes longer than anything else in a resume, so that
/// processes which wait for their order have it ready.
#[derive(Debug)]
pub struct Shell {
    kvm: Kvm,
    vm: VmFd,
}

/// A machine whose vCPUs run. Dropping it ends it: vCPUs first, then devices, then KVM's VM, then memory.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vcpus,
    bus: Arc<Bus>,
    cpu: CpuIdentity,
    vm: VmFd,
    mem: GuestRam,
    memory_mib: u32,
    /// The NIC may run. Not before the agent of a restored guest has mended what must not be seen twice.
    nic_open: bool,
}

/// The parts that come from outside.
pub struct Parts {
    /// Guest memory of the plan's size: empty, or as it was saved.
    pub mem: GuestRam,
    /// The devices, in the order of their addresses.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// Where the serial line writes.
    pub console: Console,
}

impl Shell {
    /// A VM with the interrupt controllers and the timer of a PC.
    ///
    /// # Errors
    /// When KVM is missing, too old or refuses.
    pub fn new(kit: &Kit) -> Result<Self, MachineError> {
        let device = kit.kvm.as_ref().map_err(|error| MachineError::NoKvm(error.kind()))?;
        let kvm = sys::kvm_of(device.try_clone().map_err(|error| MachineError::NoKvm(error.kind()))?);
        if kvm.get_api_version() != KVM_API_VERSION as i32 {
            return Err(MachineError::Lacks("the stable API version"));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(MachineError::Lacks(name));
        }
        let vm = kvm.create_vm().map_err(kvm_failed("KVM_CREATE_VM"))?;
        vm.set_identity_map_address(KVM_IDENTITY_MAP).map_err(kvm_failed("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(KVM_TSS as usize).map_err(kvm_failed("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(kvm_failed("KVM_CREATE_IRQCHIP"))?;
        // No speaker: its port then costs no exit.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        vm.create_pit2(pit).map_err(kvm_failed("KVM_CREATE_PIT2"))?;
        Ok(Self { kvm, vm })
    }

    fn vcpu(&self, index: u8) -> Result<VcpuFd, MachineError> {
        let mut vcpu = self.vm.create_vcpu(u64::from(index)).map_err(kvm_failed("KVM_CREATE_VCPU"))?;
        sys::keep_out_of_copies(&mut vcpu, self.vm.run_size()).map_err(MachineError::Page)?;
        Ok(vcpu)
    }

    fn cpuid(&self, index: u8, count: u8) -> Result<CpuId, MachineError> {
        let offered = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let mut ids = offered.map_err(kvm_failed("KVM_GET_SUPPORTED_CPUID"))?;
        let tsc_deadline = self.kvm.check_extension(Cap::TscDeadlineTimer);
        cpuid::for_vcpu(ids.as_mut_slice(), index, count, tsc_deadline);
        Ok(ids)
    }

    fn cpu(&self) -> Result<CpuIdentity, MachineError> {
        Ok(CpuIdentity::of(&self.cpuid(0, 1)?))
    }
}

impl Machine {
    /// Makes the machine and lets it run from the first instruction of its kernel.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing is left then.
    pub fn start(shell: Shell, boot: &Boot<'_>, parts: Parts) -> Result<Self, MachineError> {
        let Parts { mem, devices, console } = parts;
        let vm = &shell.vm;
        sys::give_to_kvm(vm, &mem).map_err(kvm_failed("KVM_SET_USER_MEMORY_REGION"))?;
        let entry = load::fill(&mem, boot)?;
        let transports = attach(vm, &mem, devices)?;
        let bus = Bus::new(line(vm, COM1_GSI)?, console, line(vm, EVENTS_GSI)?, transports);
        let vcpus = (0..boot.vcpus)
            .map(|index| boot_vcpu(&shell, index, boot.vcpus, entry))
            .collect::<Result<Vec<_>, _>>()?;
        Self::run(shell, vcpus, bus, mem, boot.memory_mib, true)
    }

    /// Makes the machine of a saved state, up to its next instruction.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing is left then, and no instruction of the guest has run.
    pub fn restore(shell: Shell, state: &MachineState, parts: Parts) -> Result<Restored, MachineError> {
        let Parts { mem, devices, console } = parts;
        state.cpu.check(&shell.cpu()?)?;
        if devices.len() != state.devices.len() || state.vcpus.is_empty() {
            return Err(StateError::Unfit("it has other devices").into());
        }
        let vm = &shell.vm;
        sys::give_to_kvm(vm, &mem).map_err(kvm_failed("KVM_SET_USER_MEMORY_REGION"))?;
        let transports = attach(vm, &mem, devices)?;
        let mut vcpus = Vec::new();
        for (index, saved) in (0u8..).zip(&state.vcpus) {
            let vcpu = shell.vcpu(index)?;
            saved.restore(&vcpu, &shell.kvm)?;
            vcpus.push(vcpu);
        }
        state.chips.restore(vm)?;
        for (transport, saved) in transports.iter().zip(&state.devices) {
            transport.restore(saved)?;
        }
        let (serial_line, power_line) = (line(vm, COM1_GSI)?, line(vm, EVENTS_GSI)?);
        let saved = (state.serial.clone(), state.events);
        let bus = Bus::restored(serial_line, console, power_line, transports, saved)
            .ok_or(StateError::Unfit("its serial line makes no sense"))?;
        load::renew_generation(&mem)?;
        bus.nudge_serial().and_then(|()| bus.raise(EVENT_GENERATION)).map_err(MachineError::Event)?;
        Ok(Restored { shell, vcpus, bus, mem, memory_mib: state.memory_mib })
    }

    fn run(
        shell: Shell,
        vcpus: Vec<VcpuFd>,
        bus: Bus,
        mem: GuestRam,
        memory_mib: u32,
        nic_open: bool,
    ) -> Result<Self, MachineError> {
        let (bus, inventory) = (Arc::new(bus), Arc::new(Inventory::of(&shell.kvm)?));
        let cpu = shell.cpu()?;
        let vcpus = Vcpus::start(vcpus, &bus, &mem, &inventory)?;
        Ok(Self { vcpus, bus, cpu, vm: shell.vm, mem, memory_mib, nic_open })
    }

    /// Brings everything to rest: no instruction of the guest runs, nothing is in flight in a device. When that does
    /// not work out, all goes on.
    ///
    /// # Errors
    /// When a device cannot be drained.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.vcpus.park();
        for device in self.bus.virtio() {
            if let Err(error) = device.pause() {
                self.unpause()?;
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Lets everything go on.
    ///
    /// # Errors
    /// When a device's thread is gone.
    pub fn unpause(&self) -> Result<(), MachineError> {
        self.resume_devices()?;
        self.vcpus.unpark();
        Ok(())
    }

    /// Copies the state. Only while paused.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let devices = self.bus.virtio().iter().map(MmioTransport::save).collect::<Result<Vec<_>, _>>()?;
        let vcpus = self.vcpus.save()?;
        let chips = Chips::save(&self.vm)?;
        let (serial, events) = self.bus.save();
        let cpu = self.cpu.clone();
        Ok(MachineState { cpu, memory_mib: self.memory_mib, vcpus, chips, serial, events, devices })
    }

    /// Lets the NIC of a restored machine run.
    ///
    /// # Errors
    /// When its thread is gone.
    pub fn open_nic(&mut self) -> Result<(), MachineError> {
        if !self.nic_open {
            self.nic_open = true;
            self.resume_devices()?;
        }
        Ok(())
    }

    /// Tells the guest the size of its disk, if it was told another one.
    ///
    /// # Errors
    /// When the device's thread is gone.
    pub fn tell_disk_size(&self) -> Result<(), MachineError> {
        for device in self.bus.virtio().iter().filter(|device| device.kind() == DeviceKind::Block) {
            device.refresh_config()?;
        }
        Ok(())
    }

    fn resume_devices(&self) -> Result<(), MachineError> {
        for device in self.bus.virtio() {
            if self.nic_open || device.kind() != DeviceKind::Net {
                device.resume()?;
            }
        }
        Ok(())
    }

    /// The vCPUs.
    #[must_use]
    pub fn vcpus(&self) -> &Vcpus {
        &self.vcpus
    }

    /// The devices.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Guest memory.
    #[must_use]
    pub fn mem(&self) -> &GuestRam {
        &self.mem
    }
}

/// A machine before its next instruction.
#[derive(Debug)]
pub struct Restored {
    shell: Shell,
    vcpus: Vec<VcpuFd>,
    bus: Bus,
    mem: GuestRam,
    memory_mib: u32,
}

impl Restored {
    /// Lets it go on, with its NIC closed until [`Machine::open_nic`].
    ///
    /// # Errors
    /// See [`MachineError`]; nothing is left then.
    pub fn go_on(self) -> Result<Machine, MachineError> {
        let Self { shell, vcpus, bus, mem, memory_mib } = self;
        let machine = Machine::run(shell, vcpus, bus, mem, memory_mib, false)?;
        machine.resume_devices()?;
        Ok(machine)
    }
}

/// Puts each device behind a transport, with its interrupt and its notifications.
fn attach(
    vm: &VmFd,
    mem: &GuestRam,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Vec<MmioTransport>, MachineError> {
    if devices.len() > MAX_VIRTIO {
        return Err(MachineError::TooManyDevices);
    }
    let mut transports = Vec::with_capacity(devices.len());
    for (index, device) in devices.into_iter().enumerate() {
        let transport = MmioTransport::new(mem.clone(), device, line(vm, virtio_gsi(index))?.0)?;
        let address = IoEventAddress::Mmio(virtio_registers(index) + QUEUE_NOTIFY);
        for (queue, event) in transport.queue_events().iter().enumerate() {
            vm.register_ioevent(event, &address, queue as u32).map_err(kvm_failed("KVM_IOEVENTFD"))?;
        }
        transports.push(transport);
    }
    Ok(transports)
}

fn line(vm: &VmFd, gsi: u32) -> Result<Line, MachineError> {
    let event = EventFd::new(EFD_NONBLOCK).map_err(MachineError::Event)?;
    vm.register_irqfd(&event, gsi).map_err(kvm_failed("KVM_IRQFD"))?;
    Ok(Line(event))
}

/// A vCPU that stands before the guest's first instruction. Those behind the first wait for the guest to start them,
/// so only the first one's registers matter; all have the same CPUID and local APIC set-up.
fn boot_vcpu(shell: &Shell, index: u8, count: u8, entry: u64) -> Result<VcpuFd, MachineError> {
    let vcpu = shell.vcpu(index)?;
    vcpu.set_cpuid2(&shell.cpuid(index, count)?).map_err(kvm_failed("KVM_SET_CPUID2"))?;
    let list = registers::msrs();
    let msrs = Msrs::from_entries(&list).expect("fewer than KVM's bound");
    let taken = vcpu.set_msrs(&msrs).map_err(kvm_failed("KVM_SET_MSRS"))?;
    if taken != list.len() {
        return Err(MachineError::Msrs { taken, all: list.len() });
    }
    vcpu.set_fpu(&registers::fpu()).map_err(kvm_failed("KVM_SET_FPU"))?;
    if index == 0 {
        vcpu.set_regs(&registers::general(entry)).map_err(kvm_failed("KVM_SET_REGS"))?;
        let mut sregs = vcpu.get_sregs().map_err(kvm_failed("KVM_GET_SREGS"))?;
        registers::enter_long_mode(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(kvm_failed("KVM_SET_SREGS"))?;
    }
    let mut lapic = vcpu.get_lapic().map_err(kvm_failed("KVM_GET_LAPIC"))?;
    set_delivery_mode(&mut lapic, LVT_LINT0, MODE_EXTINT);
    set_delivery_mode(&mut lapic, LVT_LINT1, MODE_NMI);
    vcpu.set_lapic(&lapic).map_err(kvm_failed("KVM_SET_LAPIC"))?;
    Ok(vcpu)
}

fn set_delivery_mode(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    let mut word = [0u8; 4];
    for (byte, from) in word.iter_mut().zip(&lapic.regs[register..]) {
        *byte = *from as u8;
    }
    let value = (u32::from_le_bytes(word) & !MODE_MASK) | mode;
    for (to, byte) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
        *to = byte as _;
    }
}

fn kvm_failed(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { operation, source }
}
