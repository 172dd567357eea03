//! Which sleeping VMs are watched, and for which of them packets wait.
//!
//! ```text
//!            asleep                      a packet
//!   (awake) ────────► Watched, number n ──────────► Told, number n
//!      ▲                 │  ▲                          │  │
//!      │ awake, or gone  │  │ asleep still, in a later │  │ awake, or gone
//!      ├─────────────────┘  │ view than the one under  │  │
//!      │                    │ which a process took the │  │
//!      │     number n + 1 ──┴─ TAP: it has slept again ┘  │
//!      └──────────────────────────────────────────────────┘
//! ```
//! The last arrow is for views that were never seen: between two that say "asleep" the VM may have been awake.

use model::id::{Generation, VmId};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What must be done to follow a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Watch the VM's TAP.
    Begin {
        /// Which VM.
        vm: VmId,
        /// The watch's number, which no other one has.
        watch: u64,
    },
    /// Watch it no longer.
    End {
        /// Which VM.
        vm: VmId,
    },
}

/// All that sleep.
#[derive(Debug, Default)]
pub struct Sleepers {
    now: Generation,
    last: u64,
    sleepers: HashMap<VmId, Sleeper>,
}

#[derive(Debug)]
struct Sleeper {
    watch: u64,
    /// Which descriptors are watched; others have another number.
    queues: usize,
    told: bool,
    /// The view under which a process took the TAP.
    taken: Option<Generation>,
}

impl Sleepers {
    /// Follows a view: these VMs sleep, and these are the numbers of their queues. A watch that ends because another
    /// begins is named once, as the beginning.
    pub fn follow(&mut self, generation: Generation, asleep: &BTreeMap<VmId, usize>) -> Vec<Change> {
        self.now = generation;
        let ended: BTreeSet<VmId> =
            self.sleepers.keys().filter(|vm| !asleep.contains_key(*vm)).cloned().collect();
        let mut changes = Vec::new();
        for vm in ended {
            self.sleepers.remove(&vm);
            changes.push(Change::End { vm });
        }
        for (vm, queues) in asleep {
            let told = match self.sleepers.get(vm) {
                None => false,
                Some(known) if known.taken.is_some_and(|taken| taken < generation) => false,
                // Its TAP was made anew. What was told stays told, since the VM has not been awake.
                Some(known) if known.queues != *queues => known.told,
                Some(_) => continue,
            };
            self.last += 1;
            let sleeper = Sleeper { watch: self.last, queues: *queues, told, taken: None };
            self.sleepers.insert(vm.clone(), sleeper);
            changes.push(Change::Begin { vm: vm.clone(), watch: self.last });
        }
        changes
    }

    /// A packet came. True when that must be told: the first time of a watch that still counts.
    pub fn packet(&mut self, vm: &VmId, watch: u64) -> bool {
        let Some(sleeper) = self.sleepers.get_mut(vm) else { return false };
        let first = sleeper.watch == watch && !sleeper.told;
        sleeper.told |= first;
        first
    }

    /// A process of the VM took its TAP, so the VM is about to be awake.
    pub fn taken(&mut self, vm: &VmId) {
        if let Some(sleeper) = self.sleepers.get_mut(vm) {
            sleeper.taken.get_or_insert(self.now);
        }
    }

    /// Those that were told.
    pub fn told(&self) -> impl Iterator<Item = &VmId> {
        self.sleepers.iter().filter(|(_, sleeper)| sleeper.told).map(|(vm, _)| vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn vm(number: u8) -> VmId {
        VmId::from_random([number; 20])
    }

    #[derive(Clone, Debug)]
    enum Event {
        View(BTreeMap<u8, usize>),
        Same,
        Packet(u8),
        Stale(u8),
        Taken(u8),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let view = proptest::collection::btree_map(0u8..4, 0usize..3, 0..4).prop_map(Event::View);
        let event = prop_oneof![
            view,
            Just(Event::Same),
            (0u8..4).prop_map(Event::Packet),
            (0u8..4).prop_map(Event::Stale),
            (0u8..4).prop_map(Event::Taken)
        ];
        proptest::collection::vec(event, 0..60)
    }

    proptest! {
        #[test]
        fn every_sleep_is_watched_once_and_told_once(events in events()) {
            let mut sleepers = Sleepers::default();
            let (mut generation, mut asleep) = (Generation(0), BTreeMap::new());
            // What a reader of the changes has: the watch of each VM, and those that were told of it.
            let mut watches: HashMap<VmId, u64> = HashMap::new();
            let mut told = BTreeSet::new();
            let mut taken = BTreeSet::new();
            for event in events {
                match event {
                    Event::Packet(number) => {
                        let Some(watch) = watches.get(&vm(number)) else { continue };
                        prop_assert_eq!(sleepers.packet(&vm(number), *watch), told.insert(vm(number)));
                    }
                    Event::Stale(number) => {
                        let stale = watches.get(&vm(number)).copied().unwrap_or(1) - 1;
                        prop_assert!(!sleepers.packet(&vm(number), stale));
                    }
                    Event::Taken(number) => {
                        sleepers.taken(&vm(number));
                        if watches.contains_key(&vm(number)) {
                            taken.insert(vm(number));
                        }
                    }
                    Event::View(_) | Event::Same => {
                        let before = watches.clone();
                        if let Event::View(view) = event {
                            generation = Generation(generation.0 + 1);
                            asleep = view.into_iter().map(|(number, queues)| (vm(number), queues)).collect();
                        }
                        for change in sleepers.follow(generation, &asleep) {
                            match change {
                                Change::Begin { vm, watch } => {
                                    if !before.contains_key(&vm) || taken.remove(&vm) {
                                        told.remove(&vm);
                                    }
                                    watches.insert(vm, watch);
                                }
                                Change::End { vm } => {
                                    prop_assert!(watches.remove(&vm).is_some());
                                    taken.remove(&vm);
                                    told.remove(&vm);
                                }
                            }
                        }
                        prop_assert!(watches.keys().collect::<BTreeSet<_>>() == asleep.keys().collect());
                        prop_assert_eq!(sleepers.follow(generation, &asleep), vec![]);
                    }
                }
                prop_assert!(sleepers.told().collect::<BTreeSet<_>>() == told.iter().collect());
            }
        }
    }

    #[test]
    fn a_sleep_between_two_views_that_were_seen_is_not_missed() {
        let mut sleepers = Sleepers::default();
        let asleep = BTreeMap::from([(vm(1), 7)]);
        let begun = |watch| vec![Change::Begin { vm: vm(1), watch }];
        assert_eq!(sleepers.follow(Generation(1), &asleep), begun(1));
        assert!(sleepers.packet(&vm(1), 1));
        assert_eq!(sleepers.follow(Generation(2), &asleep), vec![], "nobody took the TAP: the same sleep");
        sleepers.taken(&vm(1));
        assert_eq!(sleepers.follow(Generation(2), &asleep), vec![], "the view is the same");
        assert_eq!(sleepers.follow(Generation(4), &asleep), begun(2));
        assert_eq!(sleepers.told().count(), 0);
        assert!(!sleepers.packet(&vm(1), 1) && sleepers.packet(&vm(1), 2));
    }

    #[test]
    fn a_tap_that_was_made_anew_is_watched_anew_and_the_told_stay_told() {
        let mut sleepers = Sleepers::default();
        sleepers.follow(Generation(1), &BTreeMap::from([(vm(1), 7)]));
        assert!(sleepers.packet(&vm(1), 1));
        let changes = sleepers.follow(Generation(1), &BTreeMap::from([(vm(1), 8)]));
        assert_eq!(changes, vec![Change::Begin { vm: vm(1), watch: 2 }]);
        assert_eq!(sleepers.told().count(), 1);
        assert!(!sleepers.packet(&vm(1), 2));
    }
}
