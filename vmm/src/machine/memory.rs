//! Guest memory as a file: written by a machine that stands still, mapped by one that goes on.
//!
//! The file has the regions of RAM one behind the other. Pages that hold only zeros are holes. It is mapped privately:
//! what the guest writes stays in its process, so the file must not change while anybody has it mapped.

use crate::devices::{GuestRam, sys};
use crate::machine::pure::layout::{MIB, ram};
use rustix::fs::{Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    VolatileSlice,
};

/// Bytes of a page.
const PAGE: usize = 4096;
/// Pages in one write: 1 MiB.
const PAGES_AT_ONCE: usize = 256;
/// Pages whose entries are read at once: 32 KiB of entries, 16 MiB of memory.
const ENTRIES_AT_ONCE: usize = 4096;
/// Bits of an entry of pagemap (Documentation/admin-guide/mm/pagemap.rst): in memory; in swap.
const PRESENT_OR_SWAPPED: u64 = 1 << 63 | 1 << 62;

/// Why memory could not be written or mapped.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The file system.
    #[error("cannot {operation} the memory file")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The kernel does not tell which pages there are.
    #[error("cannot read the process' own page map")]
    PageMap(#[source] io::Error),
    /// The file has another size than the machine's memory.
    #[error("the memory file has {found} bytes where the machine has {expected}")]
    Length {
        /// What the machine has.
        expected: u64,
        /// What the file has.
        found: u64,
    },
    /// It cannot be mapped.
    #[error("cannot map the memory file")]
    Map(#[source] vm_memory::mmap::MmapRegionError),
    /// The regions cannot be put together.
    #[error("the regions of memory do not fit together")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
    /// Somebody wants the machine to go on instead.
    #[error("writing was broken off")]
    BrokenOff,
}

/// A folder of the proc file system, kept open: it serves after a change of root, and in copies of the process.
///
/// # Errors
/// When it is not there.
pub fn open_proc() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Writes memory into an empty file and makes it durable; its name is the caller's to make durable. Nothing may write
/// to the memory meanwhile. Returns the bytes that are not holes.
///
/// # Errors
/// A [`MemoryError`]; the file is then of no use. [`MemoryError::BrokenOff`] soon after `stop` was set.
pub fn write(mem: &GuestRam, proc: &OwnedFd, file: File, stop: &AtomicBool) -> Result<u64, MemoryError> {
    let failed = |operation| move |source| MemoryError::Io { operation, source };
    let total: u64 = mem.iter().map(GuestMemoryRegion::len).sum();
    file.set_len(total).map_err(failed("size"))?;
    let map = rustix::fs::openat(proc, "self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let map = File::from(map.map_err(|error| MemoryError::PageMap(error.into()))?);
    let mut writer = Writer { file, map, stop, written: 0 };
    let mut offset = 0;
    for region in mem.iter() {
        writer.region(region, offset)?;
        offset += region.len();
    }
    writer.file.sync_all().map_err(failed("sync"))?;
    Ok(writer.written)
}

struct Writer<'a> {
    file: File,
    map: File,
    stop: &'a AtomicBool,
    written: u64,
}

impl Writer<'_> {
    fn region(&mut self, region: &GuestRegionMmap, offset: u64) -> Result<(), MemoryError> {
        let whole = region.as_volatile_slice().expect("a mapping has its own length");
        let pages = whole.len() / PAGE;
        // Pages of a mapped file that were never touched have the file's bytes; those of no file have none.
        let of_file = region.file_offset().is_some();
        let first = whole.ptr_guard().as_ptr() as usize / PAGE;
        let mut entries = vec![0u8; ENTRIES_AT_ONCE * size_of::<u64>()];
        for start in (0..pages).step_by(ENTRIES_AT_ONCE) {
            let count = ENTRIES_AT_ONCE.min(pages - start);
            let entries = &mut entries[..count * size_of::<u64>()];
            let at = (first + start) * size_of::<u64>();
            self.map.read_exact_at(entries, at as u64).map_err(MemoryError::PageMap)?;
            let touched = |page: usize| {
                let entry = &entries[page * size_of::<u64>()..][..size_of::<u64>()];
                u64::from_ne_bytes(entry.try_into().expect("eight bytes")) & PRESENT_OR_SWAPPED != 0
            };
            let holds = |page: usize| (of_file || touched(page)) && !is_zero(&page_of(&whole, start + page));
            self.pages(&whole, start, count, offset, holds)?;
        }
        Ok(())
    }

    /// Writes those of the pages `start..start + count` that hold something, in runs.
    fn pages(
        &mut self,
        whole: &VolatileSlice<'_>,
        start: usize,
        count: usize,
        offset: u64,
        holds: impl Fn(usize) -> bool,
    ) -> Result<(), MemoryError> {
        let mut page = 0;
        while page < count {
            if self.stop.load(Ordering::Relaxed) {
                return Err(MemoryError::BrokenOff);
            }
            let run = (page..count).take(PAGES_AT_ONCE).take_while(|page| holds(*page)).count();
            if run == 0 {
                page += 1;
                continue;
            }
            let at = (start + page) * PAGE;
            let slice = whole.subslice(at, run * PAGE).expect("inside of the region");
            write_all(&self.file, &slice, offset + at as u64)?;
            self.written += (run * PAGE) as u64;
            page += run;
        }
        Ok(())
    }
}

fn page_of<'a>(whole: &VolatileSlice<'a>, page: usize) -> VolatileSlice<'a> {
    whole.subslice(page * PAGE, PAGE).expect("inside of the region")
}

fn is_zero(page: &VolatileSlice<'_>) -> bool {
    let mut bytes = [0u8; PAGE];
    page.copy_to(&mut bytes);
    bytes == [0u8; PAGE]
}

fn write_all(file: &File, slice: &VolatileSlice<'_>, offset: u64) -> Result<(), MemoryError> {
    let failed = |source| MemoryError::Io { operation: "write", source };
    let mut done = 0;
    while done < slice.len() {
        let rest = slice.offset(done).expect("inside of the slice");
        match sys::pwritev(file.as_fd(), &[rest], offset + done as u64).map_err(failed)? {
            0 => return Err(failed(io::ErrorKind::WriteZero.into())),
            count => done += count,
        }
    }
    Ok(())
}

/// Maps the file of a machine of this size, privately.
///
/// # Errors
/// A [`MemoryError`].
pub fn map(path: &Path, memory_mib: u32) -> Result<GuestRam, MemoryError> {
    let failed = |operation| move |source| MemoryError::Io { operation, source };
    let file = std::sync::Arc::new(File::open(path).map_err(failed("open"))?);
    let found = file.metadata().map_err(failed("measure"))?.len();
    let expected = u64::from(memory_mib) * MIB;
    if found != expected {
        return Err(MemoryError::Length { expected, found });
    }
    let mut regions = Vec::new();
    let mut offset = 0;
    for range in ram(memory_mib) {
        let part = FileOffset::from_arc(std::sync::Arc::clone(&file), offset);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        let mapping =
            MmapRegion::build(Some(part), range.bytes as usize, prot, flags).map_err(MemoryError::Map)?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
        regions.push(region.expect("RAM ends before the end of the address space"));
        offset += range.bytes;
    }
    GuestRam::from_regions(regions).map_err(MemoryError::Regions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::Bytes;

    const MIB_OF_TEST: u32 = 64;
    static NEVER: AtomicBool = AtomicBool::new(false);

    fn blank() -> GuestRam {
        crate::machine::load::map(MIB_OF_TEST).expect("memory")
    }

    #[test]
    fn a_blank_memory_is_one_hole_and_another_size_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, proc) = (folder.path().join("memory"), open_proc().expect("proc"));
        assert_eq!(write(&blank(), &proc, File::create(&path).expect("file"), &NEVER).expect("written"), 0);
        assert!(matches!(map(&path, 128), Err(MemoryError::Length { .. })));
    }

    #[test]
    fn writing_can_be_broken_off() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, proc) = (folder.path().join("memory"), open_proc().expect("proc"));
        let outcome = write(&blank(), &proc, File::create(&path).expect("file"), &AtomicBool::new(true));
        assert!(matches!(outcome, Err(MemoryError::BrokenOff)), "{outcome:?}");
    }

    #[test]
    fn what_was_given_back_is_a_hole_whether_it_was_of_a_file_or_not() {
        const BLOCK: u64 = 2 << 20;
        let folder = tempfile::tempdir().expect("folder");
        let proc = open_proc().expect("proc");
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        let written = |mem: &GuestRam, path: &Path| {
            sys::discard(mem, BLOCK, BLOCK).expect("given back");
            write(mem, &proc, File::create(path).expect("file"), &NEVER).expect("written")
        };
        let mem = blank();
        mem.write_slice(&vec![7; 4 * BLOCK as usize], GuestAddress(0)).expect("inside");
        assert_eq!(written(&mem, &one), 3 * BLOCK);
        let mem = map(&one, MIB_OF_TEST).expect("mapped");
        mem.write_slice(&vec![8; 2 * BLOCK as usize], GuestAddress(BLOCK)).expect("inside");
        assert_eq!(written(&mem, &two), 3 * BLOCK);
        sys::discard(&mem, 0, BLOCK).expect("given back");
        assert_eq!(written(&mem, &folder.path().join("three")), 2 * BLOCK, "of the file's own bytes, too");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn what_was_written_comes_back_also_the_second_time(
            writes in proptest::collection::vec((0..u64::from(MIB_OF_TEST) << 20, 1..20_000usize, any::<u8>()), 0..20),
            later in proptest::collection::vec((0..u64::from(MIB_OF_TEST) << 20, 1..9_000usize, any::<u8>()), 0..20),
        ) {
            let folder = tempfile::tempdir().expect("folder");
            let proc = open_proc().expect("proc");
            let end = u64::from(MIB_OF_TEST) << 20;
            let put = |mem: &GuestRam, writes: &[(u64, usize, u8)]| {
                for (at, len, byte) in writes {
                    let len = (*len as u64).min(end - at) as usize;
                    mem.write_slice(&vec![*byte; len], GuestAddress(*at)).expect("inside");
                }
            };
            let all = |mem: &GuestRam| {
                let mut bytes = vec![0u8; end as usize];
                mem.read_slice(&mut bytes, GuestAddress(0)).expect("all");
                bytes
            };
            let first = blank();
            put(&first, &writes);
            let (one, two) = (folder.path().join("one"), folder.path().join("two"));
            write(&first, &proc, File::create(&one).expect("file"), &NEVER).expect("written");
            let second = map(&one, MIB_OF_TEST).expect("mapped");
            prop_assert!(all(&second) == all(&first));
            put(&second, &later);
            write(&second, &proc, File::create(&two).expect("file"), &NEVER).expect("written");
            let third = map(&two, MIB_OF_TEST).expect("mapped");
            prop_assert!(all(&third) == all(&second));
            let again = map(&one, MIB_OF_TEST).expect("mapped");
            prop_assert!(all(&again) == all(&first), "the first file has not changed");
        }
    }
}
