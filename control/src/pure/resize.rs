//! From the body of a resize to a size, or to the contract's word for why not.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::request::{MIN_MEMORY_MIB, mib, whole};
use crate::fault::Fault;
use model::api::vm::ResizeVm;
use model::config::VmSize;

/// What is asked for, checked as far as it does not depend on the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    vcpus: Option<u8>,
    memory_mib: Option<u32>,
    disk_mib: Option<u32>,
}

/// Reads the request.
///
/// # Errors
/// A code of the contract for each thing that is wrong.
pub fn read(request: &ResizeVm, largest: VmSize) -> Result<Wish, Fault> {
    let wish = Wish {
        vcpus: request.vcpu_count.map(|wanted| vcpus(wanted, largest.vcpus)).transpose()?,
        memory_mib: request.mem_size_gb.map(|wanted| memory(wanted, largest.memory_mib)).transpose()?,
        disk_mib: request.rootfs_size_gb.map(|wanted| disk(wanted, largest.disk_mib)).transpose()?,
    };
    if wish == (Wish { vcpus: None, memory_mib: None, disk_mib: None }) {
        let message = "give vcpuCount, memSizeGb or rootfsSizeGb";
        return Err(Fault::new(400, "RESIZE_VM_EMPTY_REQUEST", message));
    }
    Ok(wish)
}

impl Wish {
    /// Whether a VM of the size `now` can have it without a restart: when nothing but its disk is to change.
    #[must_use]
    pub fn grows_in_use(self, now: VmSize) -> bool {
        let same = self.vcpus.is_none_or(|wanted| wanted == now.vcpus)
            && self.memory_mib.is_none_or(|wanted| wanted == now.memory_mib);
        // Also to the size that it has: an earlier attempt may have ended between the record and the guest.
        same && self.disk_mib.is_some()
    }

    /// The size of a VM that has `now`.
    ///
    /// # Errors
    /// `RESIZE_VM_ROOTFS_SHRINK_NOT_SUPPORTED`.
    pub fn applied(self, now: VmSize) -> Result<VmSize, Fault> {
        let disk_mib = self.disk_mib.unwrap_or(now.disk_mib);
        if disk_mib < now.disk_mib {
            let message =
                format!("the root file system has {} MiB and can only grow, not to {disk_mib}", now.disk_mib);
            return Err(Fault::new(400, "RESIZE_VM_ROOTFS_SHRINK_NOT_SUPPORTED", message)
                .with("currentMb", now.disk_mib)
                .with("requestedMb", disk_mib));
        }
        Ok(VmSize {
            vcpus: self.vcpus.unwrap_or(now.vcpus),
            memory_mib: self.memory_mib.unwrap_or(now.memory_mib),
            disk_mib,
        })
    }
}

fn vcpus(wanted: f64, max: u8) -> Result<u8, Fault> {
    let whole = whole(wanted).and_then(|whole| u8::try_from(whole).ok()).filter(|n| (1..=max).contains(n));
    let Some(count) = whole else {
        let message = format!("vcpuCount must be within 1 and {max}, got {wanted}");
        return Err(Fault::new(400, "RESIZE_VM_VCPU_OUT_OF_RANGE", message)
            .with("got", wanted)
            .with("max", max));
    };
    if count.is_power_of_two() {
        return Ok(count);
    }
    let message = format!("vcpuCount must be a power of two, got {count}");
    Err(Fault::new(400, "RESIZE_VM_VCPU_NOT_POWER_OF_TWO", message).with("got", count))
}

fn memory(wanted_gb: f64, max: u32) -> Result<u32, Fault> {
    let Some(wanted) = mib(wanted_gb).filter(|wanted| (MIN_MEMORY_MIB..=max).contains(wanted)) else {
        let message = format!("memory must be within {MIN_MEMORY_MIB} and {max} MiB, got {wanted_gb} GiB");
        return Err(Fault::new(400, "RESIZE_VM_MEM_OUT_OF_RANGE", message)
            .with("got", wanted_gb * 1024.0)
            .with("min", MIN_MEMORY_MIB)
            .with("max", max));
    };
    if wanted.is_power_of_two() {
        return Ok(wanted);
    }
    let message = format!("memory must be a power of two in MiB, got {wanted}");
    Err(Fault::new(400, "RESIZE_VM_MEM_NOT_POWER_OF_TWO", message).with("got", wanted))
}

fn disk(wanted_gb: f64, max: u32) -> Result<u32, Fault> {
    mib(wanted_gb).filter(|wanted| *wanted <= max).ok_or_else(|| {
        let message = format!("the root file system may have {max} MiB, got {wanted_gb} GiB");
        Fault::new(400, "ROOTFS_SIZE_TOO_LARGE", message).with("gotGb", wanted_gb)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    const LARGEST: VmSize = VmSize { vcpus: 8, memory_mib: 16384, disk_mib: 65536 };
    const NOW: VmSize = VmSize { vcpus: 2, memory_mib: 1024, disk_mib: 4096 };

    fn resized(body: Value) -> Result<VmSize, &'static str> {
        let request = serde_json::from_value(body).expect("a request");
        read(&request, LARGEST).and_then(|wish| wish.applied(NOW)).map_err(|fault| fault.code)
    }

    #[test]
    fn what_is_not_said_stays_and_each_wrong_use_has_its_word() {
        let grown = resized(json!({"memSizeGb": 2, "rootfsSizeGb": 8}));
        assert_eq!(grown, Ok(VmSize { vcpus: 2, memory_mib: 2048, disk_mib: 8192 }));
        for (body, code) in [
            (json!({}), "RESIZE_VM_EMPTY_REQUEST"),
            (json!({"vcpuCount": 3}), "RESIZE_VM_VCPU_NOT_POWER_OF_TWO"),
            (json!({"vcpuCount": 16}), "RESIZE_VM_VCPU_OUT_OF_RANGE"),
            (json!({"memSizeGb": 3}), "RESIZE_VM_MEM_NOT_POWER_OF_TWO"),
            (json!({"memSizeGb": 64}), "RESIZE_VM_MEM_OUT_OF_RANGE"),
            (json!({"memSizeGb": 0.01}), "RESIZE_VM_MEM_OUT_OF_RANGE"),
            (json!({"rootfsSizeGb": 2}), "RESIZE_VM_ROOTFS_SHRINK_NOT_SUPPORTED"),
            (json!({"rootfsSizeGb": 100}), "ROOTFS_SIZE_TOO_LARGE"),
        ] {
            assert_eq!(resized(body.clone()), Err(code), "{body}");
        }
    }

    #[test]
    fn only_the_disk_grows_in_use() {
        for (body, in_use) in [
            (json!({"rootfsSizeGb": 8}), true),
            (json!({"rootfsSizeGb": 4}), true),
            (json!({"rootfsSizeGb": 8, "memSizeGb": 1, "vcpuCount": 2}), true),
            (json!({"rootfsSizeGb": 8, "memSizeGb": 2}), false),
            (json!({"rootfsSizeGb": 8, "vcpuCount": 1}), false),
            (json!({"memSizeGb": 1}), false),
        ] {
            let request = serde_json::from_value(body.clone()).expect("a request");
            assert_eq!(read(&request, LARGEST).expect("a wish").grows_in_use(NOW), in_use, "{body}");
        }
    }

    proptest! {
        #[test]
        fn an_admitted_size_is_within_the_limits(vcpus: f64, memory: f64, disk: f64) {
            let request =
                ResizeVm { vcpu_count: Some(vcpus), mem_size_gb: Some(memory), rootfs_size_gb: Some(disk) };
            if let Ok(size) = read(&request, LARGEST).and_then(|wish| wish.applied(NOW)) {
                prop_assert!(size.vcpus.is_power_of_two() && size.vcpus <= LARGEST.vcpus);
                prop_assert!(size.memory_mib.is_power_of_two() && size.memory_mib <= LARGEST.memory_mib);
                prop_assert!((NOW.disk_mib..=LARGEST.disk_mib).contains(&size.disk_mib));
            }
        }
    }
}
