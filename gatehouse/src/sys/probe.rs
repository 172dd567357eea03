//! A guest of eleven instructions that tells what the host's KVM can run.
//!
//! It says one byte through a port, exchanges sixteen bytes with `cmpxchg16b`, which Linux needs and some
//! hypervisors that interpret the guest's kernel cannot do, and says whether that worked.

#![expect(unsafe_code, reason = "KVM is given memory of this process by its address")]

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use rustix::mm::{MapFlags, ProtFlags};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// All of the guest's memory: tables, code, data, stack.
const MEMORY_BYTES: usize = 0x1_0000;
const PAGE_TABLES: u64 = 0x1000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0x9000;
const STACK: u64 = 0xf000;
/// The port of the first word.
const HELLO_PORT: u16 = 0x10;
/// The port of the verdict on `cmpxchg16b`.
const EXCHANGE_PORT: u16 = 0x11;
/// Exits that the guest may cause before it must be done; it needs three.
const MAX_EXITS: usize = 16;

const PROGRAM: &[u8] = &[
    0xb0, b'G', // mov al, 'G'
    0xe6, 0x10, // out 0x10, al
    0x31, 0xc0, // xor eax, eax
    0x31, 0xd2, // xor edx, edx
    0xbb, 0x55, 0, 0, 0, // mov ebx, 0x55
    0x31, 0xc9, // xor ecx, ecx
    0xbf, 0x00, 0x90, 0, 0, // mov edi, 0x9000
    0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b [rdi]
    0x0f, 0x94, 0xc0, // sete al
    0xe6, 0x11, // out 0x11, al
    0xf4, // hlt
];

/// What the guest managed to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// It ran at all.
    pub ran: bool,
    /// `cmpxchg16b` works, and so may a stock Linux kernel.
    pub exchange: bool,
    /// How it ended, where that was not by its own will.
    pub stopped_by: Option<String>,
}

/// Why there is no verdict.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// `/dev/kvm` is missing or may not be used.
    #[error("/dev/kvm cannot be opened: {0}")]
    Open(#[source] kvm_ioctls::Error),
    /// A call to KVM failed.
    #[error("KVM refused to {step}: {source}")]
    Kvm {
        /// What was asked.
        step: &'static str,
        /// Why not.
        source: kvm_ioctls::Error,
    },
    /// There is no memory for the guest.
    #[error("memory for the guest cannot be mapped: {0}")]
    Memory(#[source] rustix::io::Errno),
}

/// Runs the guest. May hang on a broken KVM: call it in a process that can be killed.
///
/// # Errors
/// When no guest could be made.
pub fn probe() -> Result<Probe, ProbeError> {
    let step = |step| move |source| ProbeError::Kvm { step, source };
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    let vm = kvm.create_vm().map_err(step("make a VM"))?;
    let memory = Memory::new()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY_BYTES as u64,
        userspace_addr: memory.address as u64,
    };
    // SAFETY: the region is MEMORY_BYTES of anonymous memory that only `memory` owns, and `memory` outlives the VM's
    // run: it is dropped at the end of this function, after the last use of `vcpu`.
    unsafe { vm.set_user_memory_region(region) }.map_err(step("take memory"))?;
    // Intel needs a place for its own task state below 4 GiB; others ignore it.
    vm.set_tss_address(0xfffb_d000).map_err(step("take a task state address"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(step("make a CPU"))?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("tell its CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(step("take a CPUID"))?;
    let mut sregs = vcpu.get_sregs().map_err(step("tell registers"))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(step("enter long mode"))?;
    let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(step("take registers"))?;
    let probe = run(&mut vcpu);
    drop((vcpu, vm, memory));
    Ok(probe)
}

fn run(vcpu: &mut VcpuFd) -> Probe {
    let mut probe = Probe::default();
    for _ in 0..MAX_EXITS {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(HELLO_PORT, [b'G', ..])) => probe.ran = true,
            Ok(VcpuExit::IoOut(EXCHANGE_PORT, [verdict, ..])) => probe.exchange = *verdict == 1,
            Ok(VcpuExit::Hlt) => return probe,
            Ok(VcpuExit::InternalError) => {
                probe.stopped_by = Some("an internal error of KVM: it cannot run that instruction".into());
                return probe;
            }
            Ok(other) => {
                probe.stopped_by = Some(format!("an unexpected exit: {other:?}"));
                return probe;
            }
            Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => {}
            Err(error) => {
                probe.stopped_by = Some(format!("an error of KVM: {error}"));
                return probe;
            }
        }
    }
    probe.stopped_by = Some("too many exits".into());
    probe
}

/// 64-bit mode on the tables of [`Memory::new`], flat segments.
fn long_mode(sregs: &mut kvm_sregs) {
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: 8, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: 16, type_: 3, db: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs) = (data, data, data, data, data);
    sregs.cr0 = 0x8000_0031; // PG, NE, ET, PE
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x20; // PAE
    sregs.efer = 0x500; // LMA, LME
}

/// The guest's memory, filled.
#[derive(Debug)]
struct Memory {
    address: *mut std::ffi::c_void,
}

impl Memory {
    fn new() -> Result<Self, ProbeError> {
        // SAFETY: a new anonymous mapping at an address that the kernel chooses touches nothing that exists.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                MEMORY_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        }
        .map_err(ProbeError::Memory)?;
        let mut memory = Self { address };
        let table = |address: u64| (address | 3).to_le_bytes();
        // One table of each level; the last entry is a page of 2 MiB (bit 7) that maps the memory to itself.
        memory.write(PAGE_TABLES, &table(0x2000));
        memory.write(0x2000, &table(0x3000));
        memory.write(0x3000, &(0x83u64).to_le_bytes());
        memory.write(CODE, PROGRAM);
        memory.write(DATA, &[0; 16]);
        Ok(memory)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let at = usize::try_from(at).expect("addresses of the guest are small");
        assert!(at + bytes.len() <= MEMORY_BYTES, "the guest's layout fits its memory");
        // SAFETY: the target lies within the mapping, as just checked; no guest runs yet and no reference to the
        // mapping exists.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address.cast::<u8>().add(at), bytes.len())
        };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and is not used after this.
        if let Err(error) = unsafe { rustix::mm::munmap(self.address, MEMORY_BYTES) } {
            tracing::warn!(%error, "the probe's memory cannot be unmapped");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs wherever KVM is, of whatever kind; a machine without it is told so.
    #[test]
    fn a_guest_runs_and_its_verdict_fits_the_kind_of_kvm() {
        let probe = probe().expect("this test needs /dev/kvm");
        assert!(probe.ran, "{probe:?}");
        if std::path::Path::new("/sys/module/kvm_pvm").exists() {
            assert_eq!(probe.exchange, probe.stopped_by.is_none(), "{probe:?}");
        } else {
            assert!(probe.exchange && probe.stopped_by.is_none(), "{probe:?}");
        }
    }
}
