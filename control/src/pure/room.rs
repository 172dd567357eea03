//! Whether the host has room for what is asked of it, and who makes room when it has not.
//!
//! All of it counts what was promised: a VM's memory and disk are as large as it may make them.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::phase::Phase;
use model::id::VmId;

/// What is short, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    /// So much may be promised.
    pub limit: u64,
    /// So much is promised to others.
    pub current: u64,
    /// So much is asked for.
    pub requested: u64,
}

/// What is promised to VMs, in MiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Promised {
    /// Memory of those that run or come up.
    pub memory_mib: u64,
    /// Memory that those that sleep have on disk.
    pub asleep_mib: u64,
    /// Disks of all.
    pub disk_mib: u64,
}

impl Promised {
    /// Adds VMs that are in the same phase.
    pub fn add(&mut self, phase: Phase, memory_mib: u64, disk_mib: u64) {
        if phase.holds_memory() {
            self.memory_mib += memory_mib;
        }
        if phase.keeps_memory() {
            self.asleep_mib += memory_mib;
        }
        self.disk_mib += disk_mib;
    }
}

/// What counts of a VM when memory is short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub id: VmId,
    /// Where it is.
    pub phase: Phase,
    /// How much it was promised.
    pub memory_mib: u64,
    /// It may be put to sleep, if it runs.
    pub may_sleep: bool,
    /// Since the Unix epoch.
    pub last_used_ms: i64,
}

/// How memory can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Room {
    /// It is there.
    Free,
    /// It will be there when those that go down are down.
    Soon,
    /// When these sleep, and those that go down are down. The one that was used longest ago comes first.
    Sleep(Vec<VmId>),
    /// Not as things are.
    Full,
}

/// Refuses what does not fit.
///
/// # Errors
/// [`Shortage`], when `current` and `requested` together are more than `limit`.
pub fn fits(limit: u64, current: u64, requested: u64) -> Result<(), Shortage> {
    let fits = current.saturating_add(requested) <= limit;
    if fits { Ok(()) } else { Err(Shortage { limit, current, requested }) }
}

/// How `requested` MiB of memory can be had where `limit` MiB may be promised: as few VMs as can be are put to sleep,
/// those that were used longest ago, and none of them in vain.
#[must_use]
pub fn room(vms: &[Holder], limit: u64, requested: u64) -> Room {
    let held: u64 = vms.iter().filter(|vm| vm.phase.holds_memory()).map(|vm| vm.memory_mib).sum();
    if fits(limit, held, requested).is_ok() {
        return Room::Free;
    }
    let going: u64 = vms.iter().filter(|vm| goes_down(vm.phase)).map(|vm| vm.memory_mib).sum();
    let over = (held - going).saturating_add(requested).saturating_sub(limit);
    if over == 0 {
        return Room::Soon;
    }
    let mut sleepers: Vec<&Holder> =
        vms.iter().filter(|vm| vm.phase == Phase::Running && vm.may_sleep).collect();
    sleepers.sort_by_key(|vm| (vm.last_used_ms, &vm.id));
    let sleepers = sleepers.into_iter().map(|vm| (vm.id.clone(), vm.memory_mib)).collect();
    fewest(sleepers, over).map_or(Room::Full, Room::Sleep)
}

/// The first of a list that together have `over`, without those that need not be among them: of these, the last are
/// spared first. None: the whole list has not enough.
pub(super) fn fewest(list: Vec<(VmId, u64)>, over: u64) -> Option<Vec<VmId>> {
    let (mut taken, mut sum) = (Vec::new(), 0u64);
    for (id, size) in list {
        if sum >= over {
            break;
        }
        if size > 0 {
            sum = sum.saturating_add(size);
            taken.push((id, size));
        }
    }
    if sum < over {
        return None;
    }
    let mut needed: Vec<VmId> = Vec::with_capacity(taken.len());
    for (id, size) in taken.into_iter().rev() {
        if sum - size >= over {
            sum -= size;
        } else {
            needed.push(id);
        }
    }
    needed.reverse();
    Some(needed)
}

/// It gives its memory back without anybody asking for that.
fn goes_down(phase: Phase) -> bool {
    match phase {
        Phase::Suspending | Phase::Stopping | Phase::Killing => true,
        Phase::Building
        | Phase::Starting
        | Phase::Resuming
        | Phase::Running
        | Phase::Suspended
        | Phase::Stopped
        | Phase::Lost
        | Phase::Deleting => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_vm() -> impl Strategy<Value = Holder> {
        let phase = proptest::sample::select(&Phase::ALL[..]);
        (any::<[u8; 20]>(), phase, 0u32..4, any::<bool>(), 0i64..50).prop_map(
            |(id, phase, size, may_sleep, last_used_ms)| Holder {
                id: VmId::from_random(id),
                phase,
                memory_mib: 256 << size,
                may_sleep,
                last_used_ms,
            },
        )
    }

    fn sum<'a>(vms: impl Iterator<Item = &'a Holder>) -> u64 {
        vms.map(|vm| vm.memory_mib).sum()
    }

    #[test]
    fn the_idlest_sleeps_first_and_nobody_who_need_not() {
        let vm = |number: u8, memory_mib, last_used_ms| Holder {
            id: VmId::from_random([number; 20]),
            phase: Phase::Running,
            memory_mib,
            may_sleep: true,
            last_used_ms,
        };
        let vms = [vm(1, 256, 30), vm(2, 256, 10), vm(3, 1024, 20)];
        let names =
            |numbers: &[u8]| Room::Sleep(numbers.iter().map(|n| VmId::from_random([*n; 20])).collect());
        assert_eq!(room(&vms, 1536, 256), names(&[2]));
        assert_eq!(
            room(&vms, 1536, 1024),
            names(&[3]),
            "the idlest alone would be too little, and is spared"
        );
        assert_eq!(room(&vms, 1536, 1536), names(&[2, 3, 1]));
        assert_eq!(room(&vms, 1536, 1537), Room::Full);
        assert_eq!(room(&vms, 1536, u64::MAX), Room::Full);
    }

    proptest! {
        #[test]
        fn who_sleeps_may_is_needed_and_is_enough(
            vms in proptest::collection::vec(any_vm(), 0..20), limit in 0u64..16_384, requested in 0u64..4096
        ) {
            let held = sum(vms.iter().filter(|vm| vm.phase.holds_memory()));
            let going = sum(vms.iter().filter(|vm| goes_down(vm.phase)));
            let sleepy = |vm: &&Holder| vm.phase == Phase::Running && vm.may_sleep;
            match room(&vms, limit, requested) {
                Room::Free => prop_assert!(held + requested <= limit),
                Room::Soon => {
                    prop_assert!(held + requested > limit && held - going + requested <= limit);
                }
                Room::Full => {
                    let best = held - going - sum(vms.iter().filter(sleepy));
                    prop_assert!(best + requested > limit);
                }
                Room::Sleep(ids) => {
                    let (asleep, awake): (Vec<&Holder>, Vec<&Holder>) =
                        vms.iter().partition(|vm| ids.contains(&vm.id));
                    prop_assert!(asleep.len() == ids.len() && asleep.iter().all(sleepy));
                    let left = held - going - sum(asleep.iter().copied());
                    prop_assert!(left + requested <= limit, "enough");
                    for vm in &asleep {
                        prop_assert!(left + vm.memory_mib + requested > limit, "none in vain");
                    }
                    for vm in &asleep {
                        let spared = awake.iter().copied().filter(sleepy);
                        for idler in spared.filter(|idler| idler.last_used_ms < vm.last_used_ms) {
                            prop_assert!(idler.memory_mib < vm.memory_mib, "an idler one would not have done");
                        }
                    }
                }
            }
        }
    }
}
