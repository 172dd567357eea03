//! Which VMs are given up when too many are kept that do not run, or their memory and disks are too large.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::phase::Phase;
use super::room::fewest;
use model::api::vm::Persistence;
use model::id::VmId;

/// A sticky VM's priority when nobody says it.
pub const DEFAULT_PRIORITY: u8 = 5;

/// What counts of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub id: VmId,
    /// Where it is.
    pub phase: Phase,
    /// What becomes of it when nobody uses it.
    pub persistence: Persistence,
    /// How much memory it was promised.
    pub memory_mib: u64,
    /// How large its disk may become.
    pub disk_mib: u64,
    /// Since the Unix epoch.
    pub last_used_ms: i64,
}

/// What is short on the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// The place for the memory of VMs that sleep.
    Memory,
    /// The place for the disks of VMs.
    Disks,
}

/// Too many are kept, and not enough of them may be given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// So many may be kept.
    pub limit: u64,
    /// So many are.
    pub current: u64,
}

/// VMs to give up so that no more than `limit` are kept that do not run: sticky ones, the lowest priority first, and
/// of one priority the one that was used longest ago.
///
/// # Errors
/// [`Full`]; then nothing is to be given up.
pub fn evict(vms: &[Kept], limit: u32) -> Result<Vec<VmId>, Full> {
    let kept = vms.iter().filter(|vm| rests(vm)).count();
    let over = kept.saturating_sub(limit as usize);
    let sticky = sticky(vms);
    if sticky.len() < over {
        return Err(Full { limit: u64::from(limit), current: kept as u64 });
    }
    Ok(sticky.into_iter().take(over).map(|vm| vm.id.clone()).collect())
}

/// Sticky VMs that do not run to give up so that `over` MiB become free, in the same order, and none of them in vain.
/// None: they have not enough together.
#[must_use]
pub fn give_way(vms: &[Kept], storage: Storage, over: u64) -> Option<Vec<VmId>> {
    let takes = |vm: &Kept| match storage {
        Storage::Memory if vm.phase.keeps_memory() => vm.memory_mib,
        Storage::Memory => 0,
        Storage::Disks => vm.disk_mib,
    };
    fewest(sticky(vms).into_iter().map(|vm| (vm.id.clone(), takes(vm))).collect(), over)
}

/// Those that may be given up, the first to go first.
fn sticky(vms: &[Kept]) -> Vec<&Kept> {
    let mut sticky: Vec<(u8, i64, &VmId, &Kept)> = vms
        .iter()
        .filter(|vm| rests(vm))
        .filter_map(|vm| Some((priority(&vm.persistence)?, vm.last_used_ms, &vm.id, vm)))
        .collect();
    sticky.sort_unstable_by_key(|(priority, last_used_ms, id, _)| (*priority, *last_used_ms, *id));
    sticky.into_iter().map(|(.., vm)| vm).collect()
}

/// It does not run, and nothing is under way with it.
fn rests(vm: &Kept) -> bool {
    vm.phase.at_rest() && vm.phase != Phase::Running
}

/// None: it may not be given up. An ephemeral VM goes at its own event.
fn priority(persistence: &Persistence) -> Option<u8> {
    match persistence {
        Persistence::Sticky { priority } => Some(priority.unwrap_or(DEFAULT_PRIORITY)),
        Persistence::Ephemeral { .. } | Persistence::Persistent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_vm() -> impl Strategy<Value = Kept> {
        let persistence = prop_oneof![
            (0u8..=10).prop_map(|priority| Persistence::Sticky { priority: Some(priority) }),
            Just(Persistence::Sticky { priority: None }),
            Just(Persistence::Persistent),
        ];
        let phase = proptest::sample::select(&Phase::ALL[..]);
        (any::<[u8; 20]>(), phase, persistence, 0i64..50, 1u64..5, 1u64..9).prop_map(
            |(id, phase, persistence, last_used_ms, memory, disk)| Kept {
                id: VmId::from_random(id),
                phase,
                persistence,
                memory_mib: memory * 256,
                disk_mib: disk * 512,
                last_used_ms,
            },
        )
    }

    fn rank(vm: &Kept) -> Option<(u8, i64)> {
        priority(&vm.persistence).map(|priority| (priority, vm.last_used_ms))
    }

    proptest! {
        #[test]
        fn enough_go_and_never_one_that_runs_or_is_to_be_kept_or_matters_more(
            vms in proptest::collection::vec(any_vm(), 0..30), limit in 0u32..20
        ) {
            let resting = |vm: &&Kept| matches!(vm.phase, Phase::Suspended | Phase::Stopped | Phase::Lost);
            let kept: Vec<&Kept> = vms.iter().filter(resting).collect();
            match evict(&vms, limit) {
                Err(full) => {
                    prop_assert_eq!((full.limit, full.current), (u64::from(limit), kept.len() as u64));
                    let persistent = kept.iter().filter(|vm| vm.persistence == Persistence::Persistent).count();
                    prop_assert!(persistent > limit as usize, "the persistent alone are too many");
                }
                Ok(gone) => {
                    prop_assert_eq!(gone.len(), kept.len().saturating_sub(limit as usize));
                    let (out, stay): (Vec<&Kept>, Vec<&Kept>) = kept.iter().partition(|vm| gone.contains(&vm.id));
                    prop_assert_eq!(out.len(), gone.len(), "only those that rest");
                    for out in out {
                        prop_assert!(rank(out).is_some());
                        for stay in stay.iter().filter_map(|vm| rank(vm)) {
                            prop_assert!(rank(out) <= Some(stay));
                        }
                    }
                }
            }
        }

        #[test]
        fn enough_gives_way_and_none_in_vain(
            vms in proptest::collection::vec(any_vm(), 0..30), disks: bool, over in 1u64..8192
        ) {
            let storage = if disks { Storage::Disks } else { Storage::Memory };
            let takes = |vm: &Kept| match (disks, vm.phase) {
                (false, Phase::Suspended) => vm.memory_mib,
                (true, Phase::Suspended | Phase::Stopped | Phase::Lost) => vm.disk_mib,
                _ => 0,
            };
            let may = |vm: &&Kept| rank(vm).is_some() && takes(vm) > 0;
            let all: u64 = vms.iter().filter(may).map(takes).sum();
            match give_way(&vms, storage, over) {
                None => prop_assert!(all < over),
                Some(gone) => {
                    let (out, stay): (Vec<&Kept>, Vec<&Kept>) = vms.iter().partition(|vm| gone.contains(&vm.id));
                    prop_assert!(out.len() == gone.len() && out.iter().all(may));
                    let freed: u64 = out.iter().map(|vm| takes(vm)).sum();
                    prop_assert!(freed >= over);
                    for out in out {
                        prop_assert!(freed - takes(out) < over);
                        for spared in stay.iter().copied().filter(may).filter(|vm| rank(vm) < rank(out)) {
                            prop_assert!(takes(spared) < takes(out), "it would not have done in its place");
                        }
                    }
                }
            }
        }
    }
}
