//! Fills guest memory before the first instruction: kernel, initramfs, command line and tables.

use super::pure::boot_params::{self, SEED_BYTES};
use super::pure::layout::{
    ACPI, COMMAND_LINE, COMMAND_LINE_BYTES, GAP, GDT, GENERATION_ID, HIGH_RAM, IDT, PAGE_TABLES, Range,
    SETUP_DATA, ZERO_PAGE, ram,
};
use super::pure::{acpi, registers};
use super::sys;
use crate::devices::GuestRam;
use linux_loader::loader::{Elf, KernelLoader};
use rustix::rand::{GetRandomFlags, getrandom};
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use thiserror::Error;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

/// The initramfs begins at a page.
const PAGE: u64 = 4096;
/// Bytes of a VM generation id.
const GENERATION_ID_BYTES: usize = 16;

/// Why a guest's memory could not be filled.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The host has no address space or memory left.
    #[error("cannot map {mib} MiB of guest memory")]
    Map {
        /// How much.
        mib: u32,
        /// Why.
        #[source]
        source: vm_memory::mmap::FromRangesError,
    },
    /// An image file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel is not an uncompressed 64-bit ELF file, or does not fit.
    #[error(
        "cannot load the kernel {path}; it must be an uncompressed 64-bit ELF file that fits into memory"
    )]
    Kernel {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: linux_loader::loader::Error,
    },
    /// The initramfs does not fit.
    #[error("the initramfs of {bytes} bytes does not fit into memory behind the kernel")]
    NoRoom {
        /// Its size.
        bytes: u64,
    },
    /// The initramfs cannot be read.
    #[error("cannot read the initramfs {path}")]
    Initramfs {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// The command line is too long.
    #[error("the kernel's command line has {bytes} bytes; at most {} are allowed", COMMAND_LINE_BYTES - 1)]
    CommandLine {
        /// Its length.
        bytes: usize,
    },
    /// A table lies outside of memory.
    #[error("cannot write a boot table")]
    Table(#[source] GuestMemoryError),
    /// The host gives no random numbers.
    #[error("cannot draw random numbers")]
    Random(#[source] io::Error),
}

/// A file of the image, which is read from its beginning.
#[derive(Clone, Copy, Debug)]
pub struct ImageFile<'a> {
    /// The file.
    pub file: &'a File,
    /// What people call it.
    pub path: &'a Path,
}

/// What goes into memory.
#[derive(Clone, Copy, Debug)]
pub struct Boot<'a> {
    /// Size of memory.
    pub memory_mib: u32,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Number of virtio devices.
    pub virtio_devices: usize,
    /// An uncompressed 64-bit ELF file.
    pub kernel: ImageFile<'a>,
    /// A cpio archive.
    pub initramfs: Option<ImageFile<'a>>,
    /// The kernel's command line.
    pub command_line: &'a str,
}

/// Maps guest memory: private, anonymous, with huge pages where the host has them.
///
/// # Errors
/// When the host refuses the mapping.
pub fn map(memory_mib: u32) -> Result<GuestRam, LoadError> {
    let ranges: Vec<_> =
        ram(memory_mib).iter().map(|range| (GuestAddress(range.start), range.bytes as usize)).collect();
    let mem = GuestRam::from_ranges(&ranges).map_err(|source| LoadError::Map { mib: memory_mib, source })?;
    if let Err(error) = sys::prefer_huge_pages(&mem) {
        tracing::warn!(%error, "no huge pages for guest memory; it works with small ones");
    }
    Ok(mem)
}

/// Writes everything; returns the address of the first instruction.
///
/// # Errors
/// See [`LoadError`].
pub fn fill(mem: &GuestRam, boot: &Boot<'_>) -> Result<u64, LoadError> {
    let mut file = from_start(boot.kernel)?;
    let loaded = Elf::load(mem, None, &mut file, Some(GuestAddress(HIGH_RAM)))
        .map_err(|source| LoadError::Kernel { path: boot.kernel.path.to_owned(), source })?;
    let ranges = ram(boot.memory_mib);
    let low_end = ranges[0].bytes.min(GAP);
    let initramfs = match boot.initramfs {
        Some(image) => Some(load_initramfs(mem, image, loaded.kernel_end, low_end)?),
        None => None,
    };
    write_command_line(mem, boot.command_line)?;
    let page = boot_params::zero_page(&ranges, initramfs, boot.command_line.len());
    let mut random = [0; SEED_BYTES + GENERATION_ID_BYTES];
    fill_random(&mut random)?;
    let (seed, generation) = random.split_first_chunk::<SEED_BYTES>().expect("longer than a seed");
    for (address, bytes) in [
        (ZERO_PAGE, page.as_slice()),
        (SETUP_DATA, &boot_params::seed(seed)),
        (GENERATION_ID, generation),
        (GDT, &registers::descriptor_table()),
        (IDT, &[0; 8]),
        (PAGE_TABLES, &registers::page_tables()),
        (ACPI, &acpi::tables(boot.vcpus, boot.virtio_devices)),
    ] {
        mem.write_slice(bytes, GuestAddress(address)).map_err(LoadError::Table)?;
    }
    Ok(loaded.kernel_load.raw_value())
}

/// Gives the guest a new generation id, by which its kernel knows that it may not be the only one that goes on from
/// this state. The caller raises the event.
///
/// # Errors
/// See [`LoadError`].
pub fn renew_generation(mem: &GuestRam) -> Result<(), LoadError> {
    let mut id = [0; GENERATION_ID_BYTES];
    fill_random(&mut id)?;
    mem.write_slice(&id, GuestAddress(GENERATION_ID)).map_err(LoadError::Table)
}

/// Puts the initramfs at the end of the memory below the gap, where the kernel does not put itself.
fn load_initramfs(
    mem: &GuestRam,
    image: ImageFile<'_>,
    kernel_end: u64,
    low_end: u64,
) -> Result<Range, LoadError> {
    let mut file = from_start(image)?;
    let bytes =
        file.metadata().map_err(|source| LoadError::Read { path: image.path.to_owned(), source })?.len();
    let start = low_end.checked_sub(bytes).map(|start| start / PAGE * PAGE);
    let start = start.filter(|start| *start >= kernel_end).ok_or(LoadError::NoRoom { bytes })?;
    mem.read_exact_volatile_from(GuestAddress(start), &mut file, bytes as usize)
        .map_err(|source| LoadError::Initramfs { path: image.path.to_owned(), source })?;
    Ok(Range { start, bytes })
}

fn write_command_line(mem: &GuestRam, line: &str) -> Result<(), LoadError> {
    if line.len() >= COMMAND_LINE_BYTES {
        return Err(LoadError::CommandLine { bytes: line.len() });
    }
    // What follows is zero, as all new memory is.
    mem.write_slice(line.as_bytes(), GuestAddress(COMMAND_LINE)).map_err(LoadError::Table)
}

fn from_start(image: ImageFile<'_>) -> Result<File, LoadError> {
    let failed = |source| LoadError::Read { path: image.path.to_owned(), source };
    let mut file = image.file.try_clone().map_err(failed)?;
    file.rewind().map_err(failed)?;
    Ok(file)
}

fn fill_random(bytes: &mut [u8]) -> Result<(), LoadError> {
    // Requests of up to 256 bytes are answered whole (getrandom(2)).
    let drawn = getrandom(&mut *bytes, GetRandomFlags::empty()).map_err(|e| LoadError::Random(e.into()))?;
    if drawn == bytes.len() { Ok(()) } else { Err(LoadError::Random(io::ErrorKind::UnexpectedEof.into())) }
}
