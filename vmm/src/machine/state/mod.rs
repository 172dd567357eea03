//! What is saved of a machine beside its memory: plain values, so that suspend, snapshot and fork are one path.
//!
//! Order matters in both directions. Devices are saved before KVM's part, since bringing them to rest may raise
//! interrupts, and restored after it, since the interrupt controllers' state would wipe those out. What each vCPU
//! needs is told in [`vcpu`].

mod file;
pub mod vcpu;

pub use file::{StateFileError, read, write};

use crate::devices::TransportState;
use kvm_bindings::{
    CpuId, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data,
    kvm_cpuid_entry2, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vcpu::VcpuState;
use vm_superio::serial::SerialState;

/// Clocks of CPUs that differ by less are the same to a guest (the tolerance of NTP: 500 ppm; half of it).
pub const TSC_TOLERANCE_PPM: u64 = 250;

/// Why a state could not be taken from KVM or given to it.
#[derive(Debug, Error)]
pub enum StateError {
    /// KVM refuses.
    #[error("KVM refuses {operation}")]
    Kvm {
        /// The ioctl.
        operation: &'static str,
        /// Its error.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM does not take a register.
    #[error("KVM does not take {value:#x} for the register {index:#x}")]
    Msr {
        /// Which.
        index: u32,
        /// What it had.
        value: u64,
    },
    /// The state is of another kind of CPU.
    #[error("the state was saved on another CPU: {saved}; this one is {here}")]
    OtherCpu {
        /// Where it was saved.
        saved: String,
        /// What is here.
        here: String,
    },
    /// The host's clock is another, and it cannot be scaled.
    #[error(
        "the state was saved with a clock of {saved_khz} kHz; here it is {here_khz} kHz and cannot be scaled"
    )]
    OtherClock {
        /// When it was saved.
        saved_khz: u32,
        /// What is here.
        here_khz: u32,
    },
    /// The parts of the machine are others.
    #[error("the state does not fit the machine: {0}")]
    Unfit(&'static str),
    /// A vCPU has ended: the guest is about to power off or has failed.
    #[error("the machine is about to end")]
    Ended,
}

/// The whole machine, without its memory and the content of its disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// Where it was saved.
    pub cpu: CpuIdentity,
    /// Size of its memory.
    pub memory_mib: u32,
    /// The vCPUs, in order.
    pub vcpus: Vec<VcpuState>,
    /// Timer, clock and interrupt controllers.
    pub chips: Chips,
    /// The serial line.
    pub serial: SerialRegisters,
    /// Events of the generic event device that the guest has not read.
    pub events: u8,
    /// The virtio devices, in the order of their addresses.
    pub devices: Vec<TransportState>,
}

/// A CPU as guests see it. A running guest has looked at it and cannot be moved to another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuIdentity {
    /// Vendor and signature (CPUID leaves 0 and 1), for people.
    pub name: String,
    /// CRC-32 of all that KVM offers of it.
    pub features: u32,
}

impl CpuIdentity {
    /// That of the CPUID which KVM offers, with this program's own changes for the first of one vCPU.
    #[must_use]
    pub fn of(offered: &CpuId) -> Self {
        let mut features = crc32fast::Hasher::new();
        let mut name = String::from("unknown");
        for entry in offered.as_slice() {
            let kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, .. } = *entry;
            for word in [function, index, eax, ebx, ecx, edx] {
                features.update(&word.to_le_bytes());
            }
            match function {
                0 => {
                    let letters: Vec<u8> =
                        [ebx, edx, ecx].iter().flat_map(|word| word.to_le_bytes()).collect();
                    name = String::from_utf8_lossy(&letters).into_owned();
                }
                1 => name.push_str(&format!(" {eax:#x}")),
                _ => {}
            }
        }
        Self { name, features: features.finalize() }
    }

    /// Whether a state that was saved there can go on here.
    ///
    /// # Errors
    /// [`StateError::OtherCpu`].
    pub fn check(&self, here: &Self) -> Result<(), StateError> {
        if self == here {
            return Ok(());
        }
        let say = |cpu: &Self| format!("{} with features {:08x}", cpu.name, cpu.features);
        Err(StateError::OtherCpu { saved: say(self), here: say(here) })
    }
}

/// What KVM has of a machine outside of its vCPUs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Chips {
    /// The interval timer.
    pub pit: kvm_pit_state2,
    /// kvm-clock, in nanoseconds. It stands still while the machine is not there, and CLOCK_MONOTONIC with it.
    pub clock_nanoseconds: u64,
    /// Master PIC, slave PIC, I/O APIC.
    pub irqchips: [kvm_irqchip; 3],
}

const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl Chips {
    /// Takes it from KVM. No vCPU may run.
    ///
    /// # Errors
    /// [`StateError::Kvm`].
    pub fn save(vm: &VmFd) -> Result<Self, StateError> {
        let pit = vm.get_pit2().map_err(refused("KVM_GET_PIT2"))?;
        let clock = vm.get_clock().map_err(refused("KVM_GET_CLOCK"))?;
        let mut irqchips: [kvm_irqchip; 3] = Default::default();
        for (chip, id) in irqchips.iter_mut().zip(IRQCHIPS) {
            chip.chip_id = id;
            vm.get_irqchip(chip).map_err(refused("KVM_GET_IRQCHIP"))?;
        }
        Ok(Self { pit, clock_nanoseconds: clock.clock, irqchips })
    }

    /// Gives it to KVM: after the vCPUs' state, before the devices and before a vCPU runs.
    ///
    /// # Errors
    /// [`StateError::Kvm`].
    pub fn restore(&self, vm: &VmFd) -> Result<(), StateError> {
        vm.set_pit2(&self.pit).map_err(refused("KVM_SET_PIT2"))?;
        // Without KVM_CLOCK_REALTIME, which would let CLOCK_MONOTONIC jump over the sleep.
        let clock = kvm_clock_data { clock: self.clock_nanoseconds, ..kvm_clock_data::default() };
        vm.set_clock(&clock).map_err(refused("KVM_SET_CLOCK"))?;
        for chip in &self.irqchips {
            vm.set_irqchip(chip).map_err(refused("KVM_SET_IRQCHIP"))?;
        }
        Ok(())
    }
}

/// Registers of the 16550 (`vm_superio::serial::SerialState`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "named as in the original")]
pub struct SerialRegisters {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
    pub in_buffer: Vec<u8>,
}

impl From<SerialState> for SerialRegisters {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.in_buffer,
        }
    }
}

impl From<SerialRegisters> for SerialState {
    fn from(registers: SerialRegisters) -> Self {
        Self {
            baud_divisor_low: registers.baud_divisor_low,
            baud_divisor_high: registers.baud_divisor_high,
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            in_buffer: registers.in_buffer,
        }
    }
}

fn refused(operation: &'static str) -> impl Fn(kvm_ioctls::Error) -> StateError {
    move |source| StateError::Kvm { operation, source }
}
