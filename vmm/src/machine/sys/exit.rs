//! What KVM leaves in the shared page when it cannot go on.
#![expect(unsafe_code, reason = "the exit's details are a C union")]

use kvm_bindings::{KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES};
use kvm_ioctls::VcpuFd;

/// Details of `KVM_EXIT_INTERNAL_ERROR`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InternalError {
    /// `KVM_INTERNAL_ERROR_*`.
    pub suberror: u32,
    /// The instruction that could not be emulated, where KVM tells.
    pub instruction: Vec<u8>,
    /// The other words.
    pub data: Vec<u64>,
}

/// Reads the details. Only right after such an exit of this vCPU.
pub fn internal_error(vcpu: &mut VcpuFd) -> InternalError {
    let run = vcpu.get_kvm_run();
    // SAFETY: all variants of the union are plain numbers, so any of them may be read.
    let (internal, emulation) =
        unsafe { (run.__bindgen_anon_1.internal, run.__bindgen_anon_1.emulation_failure) };
    let words = (internal.ndata as usize).min(internal.data.len());
    let mut error = InternalError {
        suberror: internal.suberror,
        instruction: Vec::new(),
        data: internal.data[..words].to_vec(),
    };
    let has_bytes = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
    if internal.suberror == KVM_INTERNAL_ERROR_EMULATION && words > 0 && emulation.flags & has_bytes != 0 {
        // SAFETY: as above; the flag says which variant is meant.
        let code = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
        let size = usize::from(code.insn_size).min(code.insn_bytes.len());
        error.instruction = code.insn_bytes[..size].to_vec();
    }
    error
}
