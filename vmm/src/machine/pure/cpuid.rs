//! CPUID as the guest sees it: what KVM offers, with the topology of this machine written in.
//!
//! All vCPUs are cores of one package with one thread each, and the APIC id is the number of the vCPU.
//! Leaves are of the Intel SDM (volume 2, CPUID) and the AMD APM (volume 3, appendix E).

use kvm_bindings::kvm_cpuid_entry2;

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_POWER: u32 = 0x6;
const LEAF_EXTENDED: u32 = 0x7;
const LEAF_PMU: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1 ECX: VMX. Guests get no virtualisation of their own: its state inside of KVM is not part of a saved one.
const VMX: u32 = 1 << 5;
/// Leaf 0x80000001 ECX: SVM, likewise.
const SVM: u32 = 1 << 2;
/// Leaf 1 ECX: TSC deadline timer, which KVM's local APIC has.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: more than one logical processor in the package.
const MANY_PROCESSORS: u32 = 1 << 28;
/// Leaf 6 ECX: performance-energy bias, which is the host's to set.
const ENERGY_BIAS: u32 = 1 << 3;
/// Leaf 6 EAX: turbo and the like; only "always running APIC timer" (bit 2) is kept.
const APIC_TIMER_ALWAYS_ON: u32 = 1 << 2;
/// Leaf 7 ECX: `umwait` and the like, which would idle the host's core from inside of the guest.
const WAITPKG: u32 = 1 << 5;
/// Unit of the cache line size in leaf 1 EBX: 8 bytes times 8.
const LINE_64_BYTES: u32 = 8;

/// Writes the view of vCPU `index` of `count` into the entries.
pub fn for_vcpu(entries: &mut [kvm_cpuid_entry2], index: u8, count: u8, tsc_deadline: bool) {
    let (index, count) = (u32::from(index), u32::from(count));
    let id_bits = count.next_power_of_two().trailing_zeros();
    for entry in entries {
        match entry.function {
            LEAF_FEATURES => features(entry, index, count, tsc_deadline),
            LEAF_CACHES | LEAF_AMD_CACHES => caches(entry, count),
            LEAF_POWER => {
                entry.eax &= APIC_TIMER_ALWAYS_ON;
                entry.ecx &= !ENERGY_BIAS;
            }
            LEAF_EXTENDED if entry.index == 0 => entry.ecx &= !WAITPKG,
            LEAF_PMU => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => topology(entry, index, count, id_bits),
            LEAF_AMD_FEATURES => entry.ecx &= !SVM,
            LEAF_AMD_SIZES => entry.ecx = (entry.ecx & !0xf0ff) | (id_bits << 12) | (count - 1),
            LEAF_AMD_TOPOLOGY => (entry.eax, entry.ebx, entry.ecx) = (index, index, 0),
            _ => {}
        }
    }
}

fn features(entry: &mut kvm_cpuid_entry2, index: u32, count: u32, tsc_deadline: bool) {
    entry.ebx = (entry.ebx & 0xff) | (LINE_64_BYTES << 8) | (count.next_power_of_two() << 16) | (index << 24);
    entry.ecx = (entry.ecx & !VMX) | HYPERVISOR;
    if tsc_deadline {
        entry.ecx |= TSC_DEADLINE;
    }
    if count > 1 {
        entry.edx |= MANY_PROCESSORS;
    } else {
        entry.edx &= !MANY_PROCESSORS;
    }
}

/// Level 1 and 2 belong to one core, level 3 to all.
fn caches(entry: &mut kvm_cpuid_entry2, count: u32) {
    let level = entry.eax >> 5 & 7;
    let sharing = if level >= 3 { count } else { 1 };
    let cores = if entry.function == LEAF_CACHES { (count - 1) << 26 } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14) | cores;
}

/// Subleaf 0: threads of a core; subleaf 1: cores of the package; then the end.
fn topology(entry: &mut kvm_cpuid_entry2, index: u32, count: u32, id_bits: u32) {
    let (shift, processors, kind) = match entry.index {
        0 => (0, 1, 1),
        1 => (id_bits, count, 2),
        _ => (0, 0, 0),
    };
    (entry.eax, entry.ebx) = (shift, processors);
    entry.ecx = (kind << 8) | (entry.index & 0xff);
    entry.edx = index;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax: 0x63, ecx: WAITPKG, ..kvm_cpuid_entry2::default() }
    }

    #[test]
    fn each_vcpu_is_a_core_of_its_own() {
        for count in 1..=8u8 {
            for index in 0..count {
                let mut entries = [entry(1, 0), entry(7, 0), entry(0xb, 0), entry(0xb, 1), entry(4, 3)];
                for_vcpu(&mut entries, index, count, true);
                assert_eq!(entries[0].ebx >> 24, u32::from(index));
                assert_eq!(entries[0].edx & MANY_PROCESSORS != 0, count > 1);
                assert_eq!(entries[1].ecx & WAITPKG, 0);
                assert_eq!((entries[2].eax, entries[2].ebx), (0, 1));
                assert!(1 << entries[3].eax >= u32::from(count), "ids fit in the shift");
                assert_eq!((entries[3].ebx, entries[3].edx), (u32::from(count), u32::from(index)));
                assert_eq!(entries[4].eax >> 14 & 0xfff, u32::from(count) - 1);
            }
        }
    }
}
