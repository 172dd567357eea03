//! The registers with which a vCPU enters the guest's first instruction: 64-bit mode with identity paging
//! (Documentation/arch/x86/boot.rst, "64-bit boot protocol").

use super::layout::{BOOT_STACK, GDT, IDT, PAGE_TABLES, ZERO_PAGE};
use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};

/// `__BOOT_CS` of the boot protocol: a flat 64-bit code segment.
const CODE: u64 = 0x00af_9b00_0000_ffff;
/// `__BOOT_DS`: flat data.
const DATA: u64 = 0x00cf_9300_0000_ffff;
/// A busy 64-bit task state segment, without which no VM entry is allowed.
const TASK: u64 = 0x008f_8b00_0000_ffff;
/// Position of each descriptor: nothing, nothing, code (selector 0x10), data (0x18), task (0x20, two entries).
const DESCRIPTORS: [u64; 6] = [0, 0, CODE, DATA, TASK, 0];

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;
/// FPU control word after `fninit`.
const FPU_CONTROL: u16 = 0x37f;
/// MXCSR after a reset.
const MXCSR: u32 = 0x1f80;
/// Present, writable.
const TABLE: u64 = 0x3;
/// Present, writable, 2 MiB.
const LARGE_PAGE: u64 = 0x83;
/// Entries of one page table.
const ENTRIES: u64 = 512;

/// SYSENTER and SYSCALL targets, cleared.
const CLEARED_MSRS: [u32; 8] =
    [0x174, 0x175, 0x176, 0xc000_0081, 0xc000_0082, 0xc000_0083, 0xc000_0084, 0xc000_0102];
const MSR_MISC_ENABLE: u32 = 0x1a0;
/// Fast strings on.
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default.
const MTRR_ENABLE_WRITE_BACK: u64 = (1 << 11) | 6;

/// General registers at the entry.
#[must_use]
pub fn general(entry: u64) -> kvm_regs {
    kvm_regs {
        rip: entry,
        rsp: BOOT_STACK,
        rbp: BOOT_STACK,
        rsi: ZERO_PAGE,
        rflags: RFLAGS,
        ..kvm_regs::default()
    }
}

/// Puts the special registers into 64-bit mode; keeps the APIC base that KVM chose.
pub fn enter_long_mode(sregs: &mut kvm_sregs) {
    let code = segment(CODE, 2);
    let data = segment(DATA, 3);
    sregs.cs = code;
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = data;
    }
    sregs.tr = segment(TASK, 4);
    sregs.gdt = kvm_dtable { base: GDT, limit: (DESCRIPTORS.len() * 8 - 1) as u16, ..kvm_dtable::default() };
    sregs.idt = kvm_dtable { base: IDT, limit: 7, ..kvm_dtable::default() };
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 |= CR4_PAE;
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.efer |= EFER_LME | EFER_LMA;
}

/// The FPU as after `fninit`.
#[must_use]
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: FPU_CONTROL, mxcsr: MXCSR, ..kvm_fpu::default() }
}

/// Model-specific registers at the entry.
#[must_use]
pub fn msrs() -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    let mut list: Vec<_> = CLEARED_MSRS.iter().map(|index| entry(*index, 0)).collect();
    list.push(entry(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING));
    list.push(entry(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK));
    list
}

/// Bytes of the descriptor table at [`GDT`].
#[must_use]
pub fn descriptor_table() -> Vec<u8> {
    DESCRIPTORS.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Three page tables at [`PAGE_TABLES`] that map the first GiB to itself.
#[must_use]
pub fn page_tables() -> Vec<u8> {
    let page = ENTRIES * 8;
    let mut words = vec![0u64; 3 * ENTRIES as usize];
    words[0] = (PAGE_TABLES + page) | TABLE;
    words[ENTRIES as usize] = (PAGE_TABLES + 2 * page) | TABLE;
    for index in 0..ENTRIES {
        words[(2 * ENTRIES + index) as usize] = (index << 21) | LARGE_PAGE;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A segment register from its descriptor (Intel SDM volume 3, figure 3-8).
fn segment(descriptor: u64, index: u16) -> kvm_segment {
    let bit = |at: u32| (descriptor >> at & 1) as u8;
    let bits = |at: u32| (descriptor >> at & 0xf) as u32;
    let base = (descriptor >> 16 & 0xff_ffff) | (descriptor >> 56 & 0xff) << 24;
    let limit = (descriptor & 0xffff) as u32 | bits(48) << 16;
    let granular = bit(55);
    kvm_segment {
        base,
        limit: if granular == 1 { limit << 12 | 0xfff } else { limit },
        selector: index * 8,
        type_: bits(40) as u8,
        present: bit(47),
        dpl: (descriptor >> 45 & 3) as u8,
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: granular,
        ..kvm_segment::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_segments_are_flat_and_64_bit() {
        let mut sregs = kvm_sregs::default();
        enter_long_mode(&mut sregs);
        assert_eq!((sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0x10, 1, 0, u32::MAX));
        assert_eq!((sregs.ss.selector, sregs.ss.l, sregs.ss.db, sregs.ss.type_), (0x18, 0, 1, 3));
        assert_eq!((sregs.tr.type_, sregs.tr.s), (0xb, 0));
    }

    #[test]
    fn page_tables_lead_to_the_same_address() {
        let bytes = page_tables();
        let word = |address: u64| {
            let at = (address - PAGE_TABLES) as usize;
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"))
        };
        for address in [0u64, 0x100_0000, 0x3fff_ffff] {
            let second = word(PAGE_TABLES) & !0xfff;
            let third = word(second) & !0xfff;
            let page = word(third + (address >> 21) * 8) & !0x1f_ffff;
            assert_eq!(page | (address & 0x1f_ffff), address);
        }
    }
}
