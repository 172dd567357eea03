//! Which VMs are given up when too many are kept that do not run.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::phase::Phase;
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
    /// Since the Unix epoch.
    pub last_used_ms: i64,
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
    let kept: Vec<&Kept> = vms.iter().filter(|vm| vm.phase.at_rest() && vm.phase != Phase::Running).collect();
    let over = kept.len().saturating_sub(limit as usize);
    let full = Full { limit: u64::from(limit), current: kept.len() as u64 };
    let mut sticky: Vec<(u8, i64, &VmId)> = kept
        .into_iter()
        .filter_map(|vm| Some((priority(&vm.persistence)?, vm.last_used_ms, &vm.id)))
        .collect();
    if sticky.len() < over {
        return Err(full);
    }
    sticky.sort_unstable();
    Ok(sticky.into_iter().take(over).map(|(_, _, id)| id.clone()).collect())
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
        (any::<[u8; 20]>(), phase, persistence, 0i64..50).prop_map(
            |(id, phase, persistence, last_used_ms)| Kept {
                id: VmId::from_random(id),
                phase,
                persistence,
                last_used_ms,
            },
        )
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
                    let rank = |vm: &Kept| priority(&vm.persistence).map(|priority| (priority, vm.last_used_ms));
                    for out in out {
                        prop_assert!(rank(out).is_some());
                        for stay in stay.iter().filter_map(|vm| rank(vm)) {
                            prop_assert!(rank(out) <= Some(stay));
                        }
                    }
                }
            }
        }
    }
}
