//! The FPU's state, whose size depends on the CPU.
#![expect(unsafe_code, reason = "KVM reads and writes as many bytes as the CPU has, whatever the type says")]

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::VcpuFd;
use std::mem::size_of;

/// Bytes of the part that each CPU has.
const LEAST: usize = size_of::<kvm_xsave>();

/// Reads it. `needed`: what `KVM_CAP_XSAVE2` says, 0 when KVM does not have it.
///
/// # Errors
/// Of `KVM_GET_XSAVE2` or `KVM_GET_XSAVE`.
pub fn get_xsave(vcpu: &VcpuFd, needed: usize) -> Result<Vec<u8>, kvm_ioctls::Error> {
    let mut bytes = Vec::with_capacity(needed.max(LEAST));
    if needed <= LEAST {
        let xsave = vcpu.get_xsave()?;
        bytes.extend(xsave.region.iter().flat_map(|word| word.to_le_bytes()));
        return Ok(bytes);
    }
    let mut xsave = empty(needed);
    // SAFETY: it has room for what KVM says that it writes.
    unsafe { vcpu.get_xsave2(&mut xsave)? };
    bytes.extend(xsave.as_fam_struct_ref().xsave.region.iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(xsave.as_slice().iter().flat_map(|word| word.to_le_bytes()));
    Ok(bytes)
}

/// Writes it. `None`: it is not of the size that KVM will read.
pub fn set_xsave(vcpu: &VcpuFd, bytes: &[u8], needed: usize) -> Option<Result<(), kvm_ioctls::Error>> {
    let room = empty(needed);
    if bytes.len() != LEAST + size_of_val(room.as_slice()) {
        return None;
    }
    let mut xsave = room;
    let mut words = bytes
        .chunks_exact(size_of::<u32>())
        .map(|word| u32::from_le_bytes(word.try_into().expect("chunks of four")));
    // SAFETY: the length that counts the entries behind the structure is not touched.
    let region = unsafe { &mut xsave.as_mut_fam_struct().xsave.region };
    for (to, word) in region.iter_mut().zip(words.by_ref()) {
        *to = word;
    }
    for (to, word) in xsave.as_mut_slice().iter_mut().zip(words) {
        *to = word;
    }
    // SAFETY: it is as long as KVM reads: LEAST bytes, and what KVM_CAP_XSAVE2 says beyond them.
    Some(unsafe { vcpu.set_xsave2(&xsave) })
}

fn empty(needed: usize) -> Xsave {
    let more = needed.saturating_sub(LEAST).div_ceil(size_of::<u32>());
    Xsave::new(more).expect("a few KiB")
}
