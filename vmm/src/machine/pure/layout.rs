//! The machine's address map: RAM, tables, devices, ports and interrupt lines.
//!
//! ```text
//! 0x0000_0500  GDT, IDT                       0xd000_0000  virtio-mmio, one page each
//! 0x0000_7000  boot_params (the zero page)    0xfec0_0000  I/O APIC
//! 0x0000_9000  page tables                    0xfee0_0000  local APICs
//! 0x0002_0000  command line                   0xfffb_c000  KVM: identity map and TSS pages
//! 0x0003_0000  setup_data (random seed)       0x1_0000_0000  RAM above the gap
//! 0x000e_0000  ACPI tables, VM generation id
//! 0x0010_0000  RAM up to 3 GiB
//! ```

/// One mebibyte.
pub const MIB: u64 = 1 << 20;
/// Most vCPUs of a machine. APIC ids, tables and tests are made for it.
pub const MAX_VCPUS: u8 = 8;
/// Least memory, in MiB: kernel, initramfs and page tables of a stock kernel fit.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Most memory, in MiB.
pub const MAX_MEMORY_MIB: u32 = 65536;

/// The global descriptor table.
pub const GDT: u64 = 0x500;
/// The (empty) interrupt descriptor table.
pub const IDT: u64 = 0x520;
/// `boot_params` of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Top of the boot stack.
pub const BOOT_STACK: u64 = 0x8ff0;
/// First of three pages of page tables.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Room for it with its final zero (`COMMAND_LINE_SIZE` of x86).
pub const COMMAND_LINE_BYTES: usize = 2048;
/// `struct setup_data` with the random seed.
pub const SETUP_DATA: u64 = 0x3_0000;
/// End of the RAM that a PC has below the video memory.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Where ACPI tables begin; the first thing there is the RSDP.
pub const ACPI: u64 = 0xe_0000;
/// End of the ACPI tables.
pub const ACPI_END: u64 = 0xf_f000;
/// The page of the VM generation id.
pub const GENERATION_ID: u64 = 0xf_f000;
/// Where RAM goes on.
pub const HIGH_RAM: u64 = 0x10_0000;
/// Where RAM stops for the devices.
pub const GAP: u64 = 0xc000_0000;
/// Where RAM goes on behind the devices.
pub const GAP_END: u64 = 0x1_0000_0000;

/// Registers of the first virtio device.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Bytes of registers of one virtio device.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// Most virtio devices: as many as there are free interrupt lines behind the ISA ones.
pub const MAX_VIRTIO: usize = 8;
/// I/O APIC (where KVM's in-kernel one is).
pub const IO_APIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM wants on Intel hosts.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM wants on Intel hosts.
pub const KVM_TSS: u64 = 0xfffb_d000;

/// First port of the serial line.
pub const COM1: u16 = 0x3f8;
/// Number of ports of the serial line.
pub const COM1_PORTS: u16 = 8;
/// Keyboard controller: status and command.
pub const I8042_COMMAND: u16 = 0x64;
/// Command of the keyboard controller that pulses the reset line.
pub const I8042_RESET: u8 = 0xfe;
/// ACPI sleep control register (ACPI 6.5, section 4.8.3.7).
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register (ACPI 6.5, section 4.8.3.6).
pub const RESET: u16 = 0x602;
/// The value that resets.
pub const RESET_VALUE: u8 = 1;
/// Which events the generic event device has; reading clears them.
pub const EVENTS: u16 = 0x604;

/// Interrupt line of the serial line.
pub const COM1_GSI: u32 = 4;
/// Interrupt line of the generic event device.
pub const EVENTS_GSI: u32 = 5;
/// Interrupt line of the first virtio device.
pub const VIRTIO_GSI: u32 = 16;

/// A run of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Number of bytes.
    pub bytes: u64,
}

/// Where RAM lies: up to the gap, and the rest behind it.
#[must_use]
pub fn ram(memory_mib: u32) -> Vec<Range> {
    let bytes = u64::from(memory_mib) * MIB;
    let low = Range { start: 0, bytes: bytes.min(GAP) };
    let high = Range { start: GAP_END, bytes: bytes.saturating_sub(GAP) };
    if high.bytes == 0 { vec![low] } else { vec![low, high] }
}

/// Registers of virtio device `index`.
#[must_use]
pub fn virtio_registers(index: usize) -> u64 {
    VIRTIO_BASE + index as u64 * VIRTIO_STRIDE
}

/// Interrupt line of virtio device `index`.
#[must_use]
pub fn virtio_gsi(index: usize) -> u32 {
    VIRTIO_GSI + index as u32
}

/// Which virtio device and which of its registers an address is.
#[must_use]
pub fn virtio_at(address: u64) -> Option<(usize, u64)> {
    let offset = address.checked_sub(VIRTIO_BASE)?;
    let index = usize::try_from(offset / VIRTIO_STRIDE).ok().filter(|index| *index < MAX_VIRTIO)?;
    Some((index, offset % VIRTIO_STRIDE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn devices_fit_the_io_apic_and_the_gap() {
        assert!(virtio_gsi(MAX_VIRTIO - 1) < 24);
        assert!(virtio_registers(MAX_VIRTIO) < u64::from(IO_APIC));
        assert_eq!(virtio_at(virtio_registers(2) + 0x50), Some((2, 0x50)));
        assert_eq!(virtio_at(virtio_registers(MAX_VIRTIO)), None);
        assert_eq!(virtio_at(VIRTIO_BASE - 1), None);
    }

    proptest! {
        #[test]
        fn ram_is_all_there_and_never_in_the_gap(mib in MIN_MEMORY_MIB..=MAX_MEMORY_MIB) {
            let ranges = ram(mib);
            prop_assert_eq!(ranges.iter().map(|r| r.bytes).sum::<u64>(), u64::from(mib) * MIB);
            prop_assert!(ranges.iter().all(|r| r.start + r.bytes <= GAP || r.start >= GAP_END));
        }
    }
}
