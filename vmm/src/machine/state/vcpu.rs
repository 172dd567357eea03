//! One vCPU's state, out of KVM and back.
//!
//! Saved: MP state (its ioctl lets pending INIT and start-up interrupts happen), general and segment registers, FPU,
//! XCRs, debug registers, local APIC, clock rate, CPUID, MSRs, pending events. Restored: CPUID first, since all else
//! depends on it; the local APIC after the segment registers, which hold its base, and before the MSRs; the TSC
//! deadline after the TSC; pending events last, since setting the general registers clears exceptions.

use super::{StateError, TSC_TOLERANCE_PPM, refused};
use crate::machine::sys;
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use serde::{Deserialize, Serialize};

/// `IA32_TSC` and `IA32_TSC_DEADLINE` (Intel SDM volume 4).
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// MTRRs that a guest can program and KVM does not list: 8 variable pairs, the fixed ones, the default type.
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e,
    0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
];
/// Registers in one call (`KVM_MAX_MSR_ENTRIES` is 256).
const MSRS_AT_ONCE: usize = 128;

/// What to save, found once for a machine.
#[derive(Clone, Debug)]
pub struct Inventory {
    msrs: Vec<u32>,
    xsave_bytes: usize,
}

impl Inventory {
    /// What this host's KVM has.
    ///
    /// # Errors
    /// [`StateError::Kvm`].
    pub fn of(kvm: &Kvm) -> Result<Self, StateError> {
        let list = kvm.get_msr_index_list().map_err(refused("KVM_GET_MSR_INDEX_LIST"))?;
        let mut msrs = list.as_slice().to_vec();
        msrs.extend(MTRRS);
        msrs.sort_unstable();
        msrs.dedup();
        let xsave_bytes = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Ok(Self { msrs, xsave_bytes })
    }
}

/// A vCPU.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// Runs, waits for its start, or halts.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segment and control registers.
    pub sregs: kvm_sregs,
    /// `struct kvm_xsave`, with what follows it on CPUs that have more.
    pub xsave: Vec<u8>,
    /// Extended control registers.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug: kvm_debugregs,
    /// The page of the local APIC.
    pub lapic: kvm_lapic_state,
    /// Rate of the TSC, 0 when the host does not know it.
    pub tsc_khz: u32,
    /// CPUID as the guest sees it.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Model-specific registers.
    pub msrs: Vec<(u32, u64)>,
    /// Exceptions, interrupts and NMIs on their way.
    pub events: kvm_vcpu_events,
}

impl VcpuState {
    /// Takes it from KVM. The vCPU must not run, and its last exit must be finished.
    ///
    /// # Errors
    /// [`StateError::Kvm`].
    pub fn save(vcpu: &VcpuFd, inventory: &Inventory) -> Result<Self, StateError> {
        let mp_state = vcpu.get_mp_state().map_err(refused("KVM_GET_MP_STATE"))?;
        let regs = vcpu.get_regs().map_err(refused("KVM_GET_REGS"))?;
        let sregs = vcpu.get_sregs().map_err(refused("KVM_GET_SREGS"))?;
        let xsave = sys::get_xsave(vcpu, inventory.xsave_bytes).map_err(refused("KVM_GET_XSAVE"))?;
        let xcrs = vcpu.get_xcrs().map_err(refused("KVM_GET_XCRS"))?;
        let debug = vcpu.get_debug_regs().map_err(refused("KVM_GET_DEBUGREGS"))?;
        let lapic = vcpu.get_lapic().map_err(refused("KVM_GET_LAPIC"))?;
        // Hosts without a stable clock do not tell its rate.
        let tsc_khz = vcpu.get_tsc_khz().unwrap_or(0);
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES).map_err(refused("KVM_GET_CPUID2"))?;
        let msrs = save_msrs(vcpu, &inventory.msrs)?;
        let events = vcpu.get_vcpu_events().map_err(refused("KVM_GET_VCPU_EVENTS"))?;
        let cpuid = cpuid.as_slice().to_vec();
        Ok(Self { mp_state, regs, sregs, xsave, xcrs, debug, lapic, tsc_khz, cpuid, msrs, events })
    }

    /// Gives it to KVM: to a vCPU that was just made.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn restore(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), StateError> {
        self.restore_clock_rate(vcpu, kvm)?;
        let cpuid =
            CpuId::from_entries(&self.cpuid).map_err(|_| StateError::Unfit("its CPUID is too long"))?;
        vcpu.set_cpuid2(&cpuid).map_err(refused("KVM_SET_CPUID2"))?;
        vcpu.set_mp_state(self.mp_state).map_err(refused("KVM_SET_MP_STATE"))?;
        vcpu.set_regs(&self.regs).map_err(refused("KVM_SET_REGS"))?;
        vcpu.set_sregs(&self.sregs).map_err(refused("KVM_SET_SREGS"))?;
        let needed = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        sys::set_xsave(vcpu, &self.xsave, needed)
            .ok_or(StateError::Unfit("its FPU has another size"))?
            .map_err(refused("KVM_SET_XSAVE"))?;
        vcpu.set_xcrs(&self.xcrs).map_err(refused("KVM_SET_XCRS"))?;
        vcpu.set_debug_regs(&self.debug).map_err(refused("KVM_SET_DEBUGREGS"))?;
        vcpu.set_lapic(&self.lapic).map_err(refused("KVM_SET_LAPIC"))?;
        self.restore_msrs(vcpu)?;
        vcpu.set_vcpu_events(&self.events).map_err(refused("KVM_SET_VCPU_EVENTS"))?;
        // Tells the guest that it stood still, so that its watchdogs do not bark. A guest without kvm-clock need not
        // be told.
        match vcpu.kvmclock_ctrl() {
            Err(error) if error.errno() != libc::EINVAL => Err(refused("KVM_KVMCLOCK_CTRL")(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn restore_clock_rate(&self, vcpu: &VcpuFd, kvm: &Kvm) -> Result<(), StateError> {
        let here_khz = vcpu.get_tsc_khz().unwrap_or(0);
        let (saved, here) = (u64::from(self.tsc_khz), u64::from(here_khz));
        if saved == 0 || saved.abs_diff(here) * 1_000_000 <= saved * TSC_TOLERANCE_PPM {
            return Ok(());
        }
        if !kvm.check_extension(Cap::TscControl) {
            return Err(StateError::OtherClock { saved_khz: self.tsc_khz, here_khz });
        }
        vcpu.set_tsc_khz(self.tsc_khz).map_err(refused("KVM_SET_TSC_KHZ"))
    }

    fn restore_msrs(&self, vcpu: &VcpuFd) -> Result<(), StateError> {
        let tsc = self.msrs.iter().find(|(index, _)| *index == MSR_TSC).map_or(0, |(_, value)| *value);
        let is_deadline = |(index, _): &(u32, u64)| *index == MSR_TSC_DEADLINE;
        let (deadline, others): (Vec<_>, Vec<_>) = self.msrs.iter().copied().partition(is_deadline);
        set_msrs(vcpu, &others)?;
        // KVM reads an expired deadline as 0, and 0 switches the timer off: the interrupt would never come.
        let due = |(index, value)| (index, if value == 0 { tsc } else { value });
        set_msrs(vcpu, &deadline.into_iter().map(due).collect::<Vec<_>>())
    }
}

/// Reads all that can be read: the list also names what this CPUID does not have.
fn save_msrs(vcpu: &VcpuFd, wanted: &[u32]) -> Result<Vec<(u32, u64)>, StateError> {
    let mut saved = Vec::with_capacity(wanted.len());
    let mut rest = wanted;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let entries: Vec<_> =
            some.iter().map(|index| kvm_msr_entry { index: *index, ..kvm_msr_entry::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("fewer than KVM's bound");
        let read = vcpu.get_msrs(&mut msrs).map_err(refused("KVM_GET_MSRS"))?;
        saved.extend(msrs.as_slice()[..read].iter().map(|entry| (entry.index, entry.data)));
        // It stops at the first that it does not have.
        let passed = if read < some.len() { read + 1 } else { read };
        rest = &rest[passed..];
    }
    Ok(saved)
}

/// Writes all; one that cannot be written must have its value already.
fn set_msrs(vcpu: &VcpuFd, wanted: &[(u32, u64)]) -> Result<(), StateError> {
    let mut rest = wanted;
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(MSRS_AT_ONCE)];
        let entry =
            |(index, data): &(u32, u64)| kvm_msr_entry { index: *index, data: *data, ..Default::default() };
        let entries: Vec<_> = some.iter().map(entry).collect();
        let msrs = Msrs::from_entries(&entries).expect("fewer than KVM's bound");
        let written = vcpu.set_msrs(&msrs).map_err(refused("KVM_SET_MSRS"))?;
        if written < some.len() {
            let (index, value) = some[written];
            if save_msrs(vcpu, &[index])?.first() != Some(&(index, value)) {
                return Err(StateError::Msr { index, value });
            }
            rest = &rest[written + 1..];
        } else {
            rest = &rest[written..];
        }
    }
    Ok(())
}
