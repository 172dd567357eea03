//! Guest memory that is given back to the host.
#![expect(unsafe_code, reason = "madvise and mmap take addresses of guest memory")]

use crate::devices::GuestRam;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};
use std::io;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Gives whole pages of one region of memory back: they read as zeros and take no room until they are written.
/// Memory over a file, of a machine that goes on from a saved state, would show the file's bytes again if it were only
/// dropped, and they would be saved again; so it is replaced by memory over no file.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] when it is not whole pages of one region; else those of madvise(2) and mmap(2), and
/// the memory is what it was.
pub fn discard(mem: &GuestRam, start: u64, bytes: u64) -> io::Result<()> {
    let region = mem.find_region(GuestAddress(start)).ok_or(io::ErrorKind::InvalidInput)?;
    let offset = start - region.start_addr().raw_value();
    let inside = offset.checked_add(bytes).is_some_and(|end| end <= region.len());
    if !inside || bytes == 0 || !offset.is_multiple_of(PAGE) || !bytes.is_multiple_of(PAGE) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let at = region.as_ptr().wrapping_add(offset as usize).cast();
    if region.file_offset().is_some() {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: the range is whole pages of a mapping that `mem` owns (see above), which starts at a page; the new
        // mapping lies exactly there, can be read and written as the old one, and goes with it. Nobody holds a
        // reference to guest memory, which a vCPU may change at any time.
        unsafe { mmap_anonymous(at, bytes as usize, prot, flags)? };
    } else {
        // SAFETY: as above; the memory stays mapped, only its content becomes zeros.
        unsafe { madvise(at, bytes as usize, Advice::LinuxDontNeed)? };
    }
    Ok(())
}
