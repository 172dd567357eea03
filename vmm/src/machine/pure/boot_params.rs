//! `boot_params`, the page that a Linux kernel is given at its 64-bit entry.
//!
//! Offsets are of Documentation/arch/x86/zero-page.rst and boot.rst of Linux 6.12.

use super::layout::{ACPI, COMMAND_LINE, GENERATION_ID, HIGH_RAM, LOW_RAM_END, Range, SETUP_DATA};

/// Bytes of the page.
pub const BYTES: usize = 4096;
/// Bytes of random seed: what the kernel's generator takes as a full seed.
pub const SEED_BYTES: usize = 32;

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const BOOT_FLAG: usize = 0x1fe;
const HEADER: usize = 0x202;
const VERSION: usize = 0x206;
const TYPE_OF_LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const KERNEL_ALIGNMENT: usize = 0x230;
const CMDLINE_SIZE: usize = 0x238;
const SETUP_DATA_PTR: usize = 0x250;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY_BYTES: usize = 20;

/// `boot_flag` of a boot sector.
const BOOT_FLAG_VALUE: u16 = 0xaa55;
/// "HdrS".
const HEADER_VALUE: u32 = 0x5372_6448;
/// Boot protocol 2.15, the newest.
const VERSION_VALUE: u16 = 0x020f;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `LOADED_HIGH`.
const LOADED_HIGH: u8 = 1;
/// Alignment that stock kernels are linked for.
const ALIGNMENT_VALUE: u32 = 0x0100_0000;
/// `SETUP_RNG_SEED` (arch/x86/include/uapi/asm/setup_data.h, Linux 6.0).
const SETUP_RNG_SEED: u32 = 9;

/// Kinds of memory in the e820 map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Usable.
    Ram = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// The page for a machine of these RAM ranges.
#[must_use]
pub fn zero_page(ram: &[Range], initramfs: Option<Range>, command_line_bytes: usize) -> [u8; BYTES] {
    let mut page = [0; BYTES];
    put(&mut page, ACPI_RSDP_ADDR, &ACPI.to_le_bytes());
    put(&mut page, BOOT_FLAG, &BOOT_FLAG_VALUE.to_le_bytes());
    put(&mut page, HEADER, &HEADER_VALUE.to_le_bytes());
    put(&mut page, VERSION, &VERSION_VALUE.to_le_bytes());
    put(&mut page, TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(&mut page, LOADFLAGS, &[LOADED_HIGH]);
    put(&mut page, CMD_LINE_PTR, &low(COMMAND_LINE));
    put(&mut page, CMDLINE_SIZE, &low(command_line_bytes as u64));
    put(&mut page, KERNEL_ALIGNMENT, &ALIGNMENT_VALUE.to_le_bytes());
    put(&mut page, SETUP_DATA_PTR, &SETUP_DATA.to_le_bytes());
    if let Some(range) = initramfs {
        put(&mut page, RAMDISK_IMAGE, &low(range.start));
        put(&mut page, RAMDISK_SIZE, &low(range.bytes));
    }
    let map = memory_map(ram);
    page[E820_ENTRIES] = map.len() as u8;
    for (index, (range, kind)) in map.iter().enumerate() {
        let at = E820_TABLE + index * E820_ENTRY_BYTES;
        put(&mut page, at, &range.start.to_le_bytes());
        put(&mut page, at + 8, &range.bytes.to_le_bytes());
        put(&mut page, at + 16, &(*kind as u32).to_le_bytes());
    }
    page
}

/// `struct setup_data` with a random seed, which the kernel wipes after use.
#[must_use]
pub fn seed(random: &[u8; SEED_BYTES]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + SEED_BYTES);
    bytes.extend_from_slice(&0u64.to_le_bytes());
    bytes.extend_from_slice(&SETUP_RNG_SEED.to_le_bytes());
    bytes.extend_from_slice(&(SEED_BYTES as u32).to_le_bytes());
    bytes.extend_from_slice(random);
    bytes
}

/// The e820 map: ascending, without overlaps.
#[must_use]
pub fn memory_map(ram: &[Range]) -> Vec<(Range, MemoryKind)> {
    let mut map = vec![(Range { start: 0, bytes: LOW_RAM_END }, MemoryKind::Ram)];
    let tables = Range { start: ACPI, bytes: GENERATION_ID + 0x1000 - ACPI };
    map.push((tables, MemoryKind::Reserved));
    for range in ram {
        let start = range.start.max(HIGH_RAM);
        let bytes = (range.start + range.bytes).saturating_sub(start);
        map.push((Range { start, bytes }, MemoryKind::Ram));
    }
    map
}

fn put(page: &mut [u8; BYTES], at: usize, value: &[u8]) {
    page[at..at + value.len()].copy_from_slice(value);
}

/// All that is written this way lies below 4 GiB.
fn low(value: u64) -> [u8; 4] {
    (value as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::layout::{MAX_MEMORY_MIB, MIN_MEMORY_MIB, ram};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_where_linux_looks() {
        let initramfs = Some(Range { start: 0x700_0000, bytes: 0x1234 });
        let page = zero_page(&ram(4096), initramfs, 7);
        assert_eq!(&page[0x1fe..0x206], &[0x55, 0xaa, 0, 0, b'H', b'd', b'r', b'S']);
        assert_eq!(page[0x1e8], 4);
        assert_eq!(page[0x218..0x220], [0, 0, 0, 7, 0x34, 0x12, 0, 0]);
        let last = &page[0x2d0 + 60..0x2d0 + 80];
        assert_eq!(last[..8], 0x1_0000_0000u64.to_le_bytes());
        assert_eq!(last[8..16], 0x4000_0000u64.to_le_bytes());
    }

    proptest! {
        #[test]
        fn the_map_ascends_without_overlaps(mib in MIN_MEMORY_MIB..=MAX_MEMORY_MIB) {
            let map = memory_map(&ram(mib));
            prop_assert!(map.windows(2).all(|two| two[0].0.start + two[0].0.bytes <= two[1].0.start));
        }
    }
}
