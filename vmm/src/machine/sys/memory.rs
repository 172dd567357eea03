//! Guest memory: huge pages, and its slots in KVM.
#![expect(unsafe_code, reason = "KVM and madvise take host addresses")]

use crate::devices::GuestRam;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use std::io;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

/// Asks for huge pages: fewer faults, and page tables that fork(2) copies in less than a millisecond.
///
/// # Errors
/// When the kernel was built without them.
pub fn prefer_huge_pages(mem: &GuestRam) -> io::Result<()> {
    for region in mem.iter() {
        let bytes = region.len() as usize;
        // SAFETY: the range is a whole mapping that `mem` owns; the advice changes how it is backed, not what it
        // holds.
        unsafe { rustix::mm::madvise(region.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxHugepage)? };
    }
    Ok(())
}

/// Shows all of guest memory to the guest, one slot for each region. `mem` must live as long as `vm`: the machine
/// owns both and drops `vm` first.
///
/// # Errors
/// When KVM refuses a slot.
pub fn give_to_kvm(vm: &VmFd, mem: &GuestRam) -> Result<(), kvm_ioctls::Error> {
    for (slot, region) in mem.iter().enumerate() {
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the range is a whole mapping that `mem` owns, which outlives `vm` (see above); slots do not
        // overlap, since the regions of a GuestMemoryMmap do not.
        unsafe { vm.set_user_memory_region(slot)? };
    }
    Ok(())
}
