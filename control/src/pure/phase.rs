//! The life of a VM, as control means it.
//!
//! ```text
//!            create                      Start (a new run)
//!              │        Ready  ┌─────────┐   ┌──────────────┐
//!              ▼      ┌───────►│ Running │   │              ▼
//!         ┌──────────┐│        └─┬─┬───┬─┘   │         ┌──────────┐ Ready
//!         │ Building ├┘     Stop │ │   │     │         │ Starting ├───────► Running
//!         └────┬─────┘     ┌─────┘ │   │Down │         └─┬──┬─────┘
//!   refused,   │           ▼       │   │     │ refused,  │  │ not ready, failed
//!   not ready, │     ┌──────────┐  │   ▼     │ down      │  ▼
//!   down,      │     │ Stopping │  │ ┌───────┴─┐         │ Killing
//!   failed     │     └────┬─────┘  │ │ Stopped │◄────────┤
//!              │          │ Down   │ │  (Lost) │         │ disk gone: Lost
//!              ▼          └────────┼►└─────┬───┘         ▼
//!         ┌──────────┐        Kill ▼   ▲   │ Delete
//!         │ Deleting │◄───┐  ┌─────────┐   │
//!         └────┬─────┘    │  │ Killing ├───┘ (Down leads to Stopped)
//!              │ Removed  │  └─────────┘
//!              ▼          └── Delete, from anywhere; an ephemeral VM also when it is down or falls asleep
//!            (gone)
//!
//!             Suspend              suspended
//!  ┌─────────┐       ┌────────────┐         ┌───────────┐ Stop, Kill
//!  │ Running ├──────►│ Suspending ├────────►│ Suspended ├────────────► Stopped (the memory is given up)
//!  └─────────┘◄──────┴────────────┘         └─┬───────▲─┘
//!       ▲      woken                    Start │       │ refused
//!       │                          ┌──────────▼─┐     │
//!       └──────────────────────────┤  Resuming  ├─────┘
//!                            Ready └─┬──────┬───┘
//!           the state cannot be used │      │ not ready: Killing; down: Stopped
//!              Starting (a new run) ◄┘
//! ```
//!
//! Running, Suspended, Stopped and Lost are at rest. The others are intents: each is written down before its effect
//! begins, and each effect may be repeated, so a control that dies in between finds the intent at its next start and
//! resumes it. An effect that fails for a reason outside the VM (the supervisor is away) leaves the intent where it
//! was, for the next resumption. A VM that was being suspended and has no process counts as suspended: if its memory
//! was not written after all, its next start finds that out and boots it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use model::api::vm::{DeleteEvent, Persistence, VmState};
use std::str::FromStr;
use thiserror::Error;

/// Where a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It is being made: no failure leaves anything of it.
    Building,
    /// It boots from its disk.
    Starting,
    /// It goes on from its suspended state.
    Resuming,
    /// It is up.
    Running,
    /// Its memory is being written down.
    Suspending,
    /// It sleeps; its memory and its disk are kept.
    Suspended,
    /// It is asked to shut down.
    Stopping,
    /// It is being ended.
    Killing,
    /// It is down; its disk is kept.
    Stopped,
    /// Its disk is gone or cannot be trusted.
    Lost,
    /// All of it is being removed.
    Deleting,
}

/// What people ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Boot it, or wake it.
    Start,
    /// Let it sleep.
    Suspend,
    /// Shut it down.
    Stop,
    /// End it.
    Kill,
    /// Remove it.
    Delete,
}

/// What the supervisor has of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// No process.
    Absent,
    /// The run that control knows.
    Ours,
    /// Another run.
    Other,
}

/// For want of what the supervisor will not run a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Its disk.
    Disk,
    /// The state that it was to begin from: missing, damaged, or of another version, CPU or size.
    State,
    /// Something else: KVM, a TAP, an image.
    Other,
}

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks.
    Asked(Ask),
    /// Control looks at it: after its own start, when the supervisor is back, when the machine changed.
    Resumed(Seen),
    /// The guest runs.
    Launched,
    /// The supervisor will not run it; there is no machine.
    Refused(Lack),
    /// The agent has reported.
    Ready,
    /// The agent has not reported in time, or somebody wants the VM gone.
    NotReady,
    /// Its memory is durable and the machine is down.
    Suspended,
    /// The suspending was given up; it runs on.
    Woken,
    /// The machine is down.
    Down,
    /// Nothing is left of it.
    Removed,
    /// The effect could not be brought to an end.
    Failed,
}

/// What is to be done next. The outcome is the next [`Event`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Publish its port and launch the machine.
    Launch,
    /// Wait for the agent.
    AwaitAgent,
    /// Write its memory down and end the machine.
    Suspend,
    /// Stop the machine cleanly.
    Stop,
    /// End the machine.
    Kill,
    /// Withdraw its routes, end the machine and remove its disk.
    Remove,
    /// Tell the doors that it sleeps, or sleeps no more.
    Publish,
    /// Withdraw its port: its record is gone.
    Withdraw,
}

/// The phase behind a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This one.
    Phase(Phase),
    /// None: it is forgotten.
    Gone,
}

/// Whether a step begins a run. One that does needs memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// It does not.
    Same,
    /// The same instance goes on; connections from before its sleep are worth nothing.
    Resumed,
    /// A new instance.
    New,
}

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Written down first.
    pub next: Next,
    /// Done then.
    pub effect: Option<Effect>,
    /// Whether a run begins.
    pub run: Run,
}

/// Whether a VM is deleted instead of resting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// When it is down.
    pub gone_when_down: bool,
    /// When it falls asleep.
    pub gone_when_asleep: bool,
}

/// The event does not fit the phase. The VM stays as it is.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a VM that is {} cannot take {event:?}", phase.as_str())]
pub struct Misfit {
    /// Where the VM is.
    pub phase: Phase,
    /// What happened.
    pub event: Event,
}

impl Fate {
    /// What a VM's persistence comes to.
    #[must_use]
    pub fn of(persistence: &Persistence) -> Self {
        match persistence {
            Persistence::Ephemeral { delete_event } => Self {
                gone_when_down: *delete_event != Some(DeleteEvent::OnSuspend),
                gone_when_asleep: *delete_event != Some(DeleteEvent::OnStop),
            },
            Persistence::Sticky { .. } | Persistence::Persistent => Self::default(),
        }
    }
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Building,
        Self::Starting,
        Self::Resuming,
        Self::Running,
        Self::Suspending,
        Self::Suspended,
        Self::Stopping,
        Self::Killing,
        Self::Stopped,
        Self::Lost,
        Self::Deleting,
    ];

    /// Nothing is owed: no effect is under way.
    #[must_use]
    pub fn at_rest(self) -> bool {
        matches!(self, Self::Running | Self::Suspended | Self::Stopped | Self::Lost)
    }

    /// It has memory of the host, or will have it. One that sleeps has given it back.
    #[must_use]
    pub fn holds_memory(self) -> bool {
        match self {
            Self::Building
            | Self::Starting
            | Self::Resuming
            | Self::Running
            | Self::Suspending
            | Self::Stopping
            | Self::Killing => true,
            Self::Suspended | Self::Stopped | Self::Lost | Self::Deleting => false,
        }
    }

    /// Its memory is on disk, or may have to be: a wake that is refused leaves it there.
    #[must_use]
    pub fn keeps_memory(self) -> bool {
        match self {
            Self::Suspending | Self::Suspended | Self::Resuming => true,
            Self::Building
            | Self::Starting
            | Self::Running
            | Self::Stopping
            | Self::Killing
            | Self::Stopped
            | Self::Lost
            | Self::Deleting => false,
        }
    }

    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Starting => "starting",
            Self::Resuming => "resuming",
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Stopping => "stopping",
            Self::Killing => "killing",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
            Self::Deleting => "deleting",
        }
    }

    /// As callers see it. One that goes down still runs until it is down.
    #[must_use]
    pub fn shown(self) -> VmState {
        match self {
            Self::Building => VmState::Building,
            Self::Starting | Self::Resuming => VmState::Starting,
            Self::Running | Self::Stopping | Self::Killing => VmState::Running,
            Self::Suspending => VmState::Suspending,
            Self::Suspended => VmState::Suspended,
            Self::Stopped | Self::Deleting => VmState::Stopped,
            Self::Lost => VmState::Lost,
        }
    }
}

impl FromStr for Phase {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|phase| phase.as_str() == text).ok_or(())
    }
}

/// What follows from an event in a phase.
///
/// # Errors
/// [`Misfit`] when the event cannot happen there, or must wait until the VM is at rest.
pub fn step(phase: Phase, event: Event, fate: Fate) -> Result<Step, Misfit> {
    let step = match event {
        Event::Asked(ask) => asked(phase, ask, fate),
        Event::Resumed(seen) => Some(resumed(phase, seen, fate)),
        Event::Refused(lack) => begins(phase).then(|| refused(phase, lack)),
        Event::Suspended => suspended(phase, fate),
        Event::Woken => (phase == Phase::Suspending).then(|| rest(Phase::Running)),
        Event::Down => down(phase, fate),
        Event::Removed => (phase == Phase::Deleting).then_some(Step {
            next: Next::Gone,
            effect: Some(Effect::Withdraw),
            run: Run::Same,
        }),
        Event::Launched => begins(phase).then(|| to(phase, Effect::AwaitAgent)),
        Event::Ready => begins(phase).then(|| rest(Phase::Running)),
        Event::NotReady if phase == Phase::Building => Some(to(Phase::Deleting, Effect::Remove)),
        Event::NotReady => begins(phase).then(|| to(Phase::Killing, Effect::Kill)),
        Event::Failed => Some(match phase {
            Phase::Building => to(Phase::Deleting, Effect::Remove),
            Phase::Starting => to(Phase::Killing, Effect::Kill),
            // Ending what may have begun would cost it its memory: it is looked at again.
            Phase::Resuming
            | Phase::Running
            | Phase::Suspending
            | Phase::Suspended
            | Phase::Stopping
            | Phase::Killing
            | Phase::Stopped
            | Phase::Lost
            | Phase::Deleting => rest(phase),
        }),
    };
    step.ok_or(Misfit { phase, event })
}

/// A machine is being launched for it.
fn begins(phase: Phase) -> bool {
    matches!(phase, Phase::Building | Phase::Starting | Phase::Resuming)
}

fn refused(phase: Phase, lack: Lack) -> Step {
    if phase == Phase::Building {
        return to(Phase::Deleting, Effect::Remove);
    }
    match lack {
        Lack::Disk => to(Phase::Lost, Effect::Publish),
        Lack::State if phase == Phase::Resuming => {
            Step { next: Next::Phase(Phase::Starting), effect: Some(Effect::Launch), run: Run::New }
        }
        Lack::Other if phase == Phase::Resuming => to(Phase::Suspended, Effect::Publish),
        Lack::State | Lack::Other => to(Phase::Stopped, Effect::Publish),
    }
}

fn down(phase: Phase, fate: Fate) -> Option<Step> {
    use Phase::{
        Building, Deleting, Killing, Lost, Resuming, Running, Starting, Stopped, Stopping, Suspended,
        Suspending,
    };
    match phase {
        Building => Some(to(Deleting, Effect::Remove)),
        Starting | Resuming | Running | Suspending | Stopping | Killing => Some(stopped(fate)),
        Suspended | Stopped | Lost => Some(rest(phase)),
        Deleting => None,
    }
}

fn suspended(phase: Phase, fate: Fate) -> Option<Step> {
    use Phase::{
        Building, Deleting, Killing, Lost, Resuming, Running, Starting, Stopped, Stopping, Suspended,
        Suspending,
    };
    match phase {
        Running | Suspending if fate.gone_when_asleep => Some(to(Deleting, Effect::Remove)),
        Running | Suspending => Some(to(Suspended, Effect::Publish)),
        Suspended => Some(rest(Suspended)),
        Building | Starting | Resuming | Stopping | Killing | Stopped | Lost | Deleting => None,
    }
}

fn asked(phase: Phase, ask: Ask, fate: Fate) -> Option<Step> {
    use Phase::{
        Building, Deleting, Killing, Lost, Resuming, Running, Starting, Stopped, Stopping, Suspended,
        Suspending,
    };
    match ask {
        Ask::Start => match phase {
            Running => Some(rest(Running)),
            Suspended => {
                Some(Step { next: Next::Phase(Resuming), effect: Some(Effect::Launch), run: Run::Resumed })
            }
            Stopped | Lost => {
                Some(Step { next: Next::Phase(Starting), effect: Some(Effect::Launch), run: Run::New })
            }
            Building | Starting | Resuming | Suspending | Stopping | Killing | Deleting => None,
        },
        Ask::Suspend => match phase {
            // Nobody would come back to its memory.
            Running | Suspending if fate.gone_when_asleep => Some(to(Deleting, Effect::Remove)),
            Running | Suspending => Some(to(Suspending, Effect::Suspend)),
            Suspended => Some(rest(Suspended)),
            Building | Starting | Resuming | Stopping | Killing | Stopped | Lost | Deleting => None,
        },
        Ask::Stop => match phase {
            Running | Stopping => Some(to(Stopping, Effect::Stop)),
            Suspended => Some(stopped(fate)),
            Stopped | Lost => Some(rest(phase)),
            Building | Starting | Resuming | Suspending | Killing | Deleting => None,
        },
        Ask::Kill => match phase {
            Starting | Resuming | Running | Suspending | Stopping | Killing => {
                Some(to(Killing, Effect::Kill))
            }
            Suspended => Some(stopped(fate)),
            Stopped | Lost => Some(rest(phase)),
            Building | Deleting => None,
        },
        Ask::Delete => Some(to(Deleting, Effect::Remove)),
    }
}

fn resumed(phase: Phase, seen: Seen, fate: Fate) -> Step {
    match (phase, seen) {
        (Phase::Building, Seen::Other) | (Phase::Deleting, _) => to(Phase::Deleting, Effect::Remove),
        (Phase::Building | Phase::Starting | Phase::Resuming, Seen::Absent | Seen::Ours) => {
            to(phase, Effect::Launch)
        }
        (Phase::Running, Seen::Ours) => rest(Phase::Running),
        (Phase::Running | Phase::Stopping | Phase::Killing, Seen::Absent) => stopped(fate),
        (Phase::Suspending, Seen::Absent) if fate.gone_when_asleep => to(Phase::Deleting, Effect::Remove),
        (Phase::Suspending, Seen::Absent) => to(Phase::Suspended, Effect::Publish),
        (Phase::Suspending, Seen::Ours) => to(phase, Effect::Suspend),
        // It runs after all. A launch of what runs is answered as done.
        (Phase::Suspended, Seen::Ours) => {
            Step { next: Next::Phase(Phase::Resuming), effect: Some(Effect::Launch), run: Run::Resumed }
        }
        (Phase::Stopping, Seen::Ours | Seen::Other) => to(phase, Effect::Stop),
        (Phase::Suspended | Phase::Stopped | Phase::Lost, Seen::Absent) => rest(phase),
        (
            Phase::Starting | Phase::Resuming | Phase::Running | Phase::Suspending | Phase::Suspended,
            Seen::Other,
        )
        | (Phase::Killing | Phase::Stopped | Phase::Lost, Seen::Ours | Seen::Other) => {
            to(Phase::Killing, Effect::Kill)
        }
    }
}

/// It is down, a sleeping one without being woken for that. The SSH front is told, or it would dial a VM that does not
/// answer in place of asking for its start.
fn stopped(fate: Fate) -> Step {
    if fate.gone_when_down {
        to(Phase::Deleting, Effect::Remove)
    } else {
        to(Phase::Stopped, Effect::Publish)
    }
}

fn to(phase: Phase, effect: Effect) -> Step {
    Step { next: Next::Phase(phase), effect: Some(effect), run: Run::Same }
}

fn rest(phase: Phase) -> Step {
    Step { next: Next::Phase(phase), effect: None, run: Run::Same }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Effects that a healthy world needs at most to bring a VM to rest: a resume whose state is unfit, a boot, an end.
    const LONGEST_WAY: usize = 7;
    const KEPT: Fate = Fate { gone_when_down: false, gone_when_asleep: false };

    fn outcome(effect: Effect, choice: u8) -> Option<Event> {
        match effect {
            Effect::Launch => Some(match choice % 5 {
                0 => Event::Refused(Lack::Disk),
                1 => Event::Refused(Lack::Other),
                2 => Event::Failed,
                4 => Event::Refused(Lack::State),
                _ => Event::Launched,
            }),
            Effect::AwaitAgent => Some(match choice % 4 {
                0 => Event::NotReady,
                1 => Event::Down,
                _ => Event::Ready,
            }),
            Effect::Suspend => Some(match choice % 4 {
                0 => Event::Failed,
                1 => Event::Woken,
                2 => Event::Down,
                _ => Event::Suspended,
            }),
            Effect::Stop | Effect::Kill => {
                Some(if choice.is_multiple_of(4) { Event::Failed } else { Event::Down })
            }
            Effect::Remove => Some(if choice.is_multiple_of(4) { Event::Failed } else { Event::Removed }),
            Effect::Publish | Effect::Withdraw => None,
        }
    }

    fn seen(choice: u8) -> Seen {
        match choice % 3 {
            0 => Seen::Absent,
            1 => Seen::Ours,
            _ => Seen::Other,
        }
    }

    /// Whether the VM's memory exists somewhere in the phase: in a machine, or written down.
    fn lives(phase: Phase) -> bool {
        matches!(phase, Phase::Running | Phase::Suspending | Phase::Suspended | Phase::Resuming)
    }

    /// Drives a VM until no effect is left. None: it is gone.
    fn drive(
        mut phase: Phase,
        first: Event,
        fate: Fate,
        choices: &mut impl Iterator<Item = u8>,
    ) -> Option<Phase> {
        let mut event = first;
        for _ in 0..LONGEST_WAY {
            let step = match step(phase, event, fate) {
                Ok(step) => step,
                Err(misfit) => {
                    assert!(matches!(misfit.event, Event::Asked(_)), "own effects always fit: {misfit}");
                    return Some(phase);
                }
            };
            assert!(step.run == Run::Same || step.effect == Some(Effect::Launch), "a new run is launched");
            if step.run == Run::Resumed {
                assert_eq!(phase, Phase::Suspended, "only a sleeper is resumed");
            }
            match step.next {
                Next::Gone => {
                    assert_eq!(phase, Phase::Deleting, "only what was meant to be deleted goes");
                    return None;
                }
                Next::Phase(next) => {
                    if next == Phase::Suspended {
                        assert!(lives(phase), "a VM without memory sleeps: from {phase:?} by {event:?}");
                    }
                    phase = next;
                }
            }
            let Some(effect) = step.effect else { return Some(phase) };
            match outcome(effect, choices.next().expect("endless")) {
                Some(outcome) => event = outcome,
                None if effect == Effect::Withdraw => panic!("only a VM that is gone is withdrawn"),
                None => return Some(phase),
            }
        }
        panic!("no rest after {LONGEST_WAY} effects, at {phase:?}");
    }

    proptest! {
        #[test]
        fn every_walk_comes_to_rest_and_what_is_owed_is_resumed(
            choices in proptest::collection::vec(any::<u8>(), 1..60), gone_when_down: bool, gone_when_asleep: bool
        ) {
            let fate = Fate { gone_when_down, gone_when_asleep };
            let mut choices = choices.into_iter().chain(std::iter::repeat(3));
            let mut phase = Phase::Building;
            for turn in 0..40 {
                let asks = [Ask::Start, Ask::Suspend, Ask::Start, Ask::Stop, Ask::Kill, Ask::Delete];
                let choice = choices.next().expect("endless");
                let event = if turn % 2 == 0 {
                    Event::Resumed(seen(choice))
                } else {
                    Event::Asked(asks[usize::from(choice) % 6])
                };
                match drive(phase, event, fate, &mut choices) {
                    Some(next) => phase = next,
                    None => return Ok(()),
                }
            }
            // In a healthy world one resumption ends every intent.
            let end = drive(phase, Event::Resumed(Seen::Absent), fate, &mut std::iter::repeat(3));
            prop_assert!(end.is_none_or(Phase::at_rest), "{:?}", end);
        }
    }

    #[test]
    fn each_intent_has_an_effect_when_resumed_and_rest_has_none() {
        for phase in Phase::ALL {
            let step = step(phase, Event::Resumed(Seen::Ours), KEPT).expect("always fits");
            let owed = !phase.at_rest() || matches!(phase, Phase::Suspended | Phase::Stopped | Phase::Lost);
            assert_eq!(step.effect.is_some(), owed, "{phase:?}");
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
    }

    #[test]
    fn a_failed_creation_leaves_nothing_and_a_failed_start_leaves_the_disk() {
        for event in [Event::Refused(Lack::Disk), Event::NotReady, Event::Down, Event::Failed] {
            assert_eq!(
                step(Phase::Building, event, KEPT),
                Ok(to(Phase::Deleting, Effect::Remove)),
                "{event:?}"
            );
        }
        assert_eq!(
            step(Phase::Starting, Event::Refused(Lack::Disk), KEPT),
            Ok(to(Phase::Lost, Effect::Publish))
        );
        assert_eq!(step(Phase::Starting, Event::NotReady, KEPT), Ok(to(Phase::Killing, Effect::Kill)));
        let brief = Fate { gone_when_down: true, ..KEPT };
        assert_eq!(step(Phase::Running, Event::Down, brief), Ok(to(Phase::Deleting, Effect::Remove)));
    }

    #[test]
    fn a_sleeper_keeps_its_memory_through_every_refusal_but_that_of_the_memory() {
        let other = step(Phase::Resuming, Event::Refused(Lack::Other), KEPT);
        assert_eq!(other, Ok(to(Phase::Suspended, Effect::Publish)));
        assert_eq!(step(Phase::Resuming, Event::Failed, KEPT), Ok(rest(Phase::Resuming)));
        let unfit = step(Phase::Resuming, Event::Refused(Lack::State), KEPT).expect("fits");
        assert_eq!((unfit.next, unfit.run), (Next::Phase(Phase::Starting), Run::New));
        let absent = step(Phase::Suspending, Event::Resumed(Seen::Absent), KEPT);
        assert_eq!(absent, Ok(to(Phase::Suspended, Effect::Publish)));
        for ask in [Ask::Stop, Ask::Kill] {
            let stopped = step(Phase::Suspended, Event::Asked(ask), KEPT);
            assert_eq!(stopped, Ok(to(Phase::Stopped, Effect::Publish)), "without waking it");
        }
        for phase in [Phase::Stopped, Phase::Lost] {
            assert!(step(phase, Event::Asked(Ask::Suspend), KEPT).is_err(), "{phase:?}");
        }
    }

    #[test]
    fn an_ephemeral_vm_goes_at_the_event_that_was_named_or_at_both() {
        let fate = |delete_event| Fate::of(&Persistence::Ephemeral { delete_event });
        assert_eq!(fate(None), Fate { gone_when_down: true, gone_when_asleep: true });
        assert_eq!(fate(Some(DeleteEvent::OnStop)), Fate { gone_when_down: true, gone_when_asleep: false });
        assert_eq!(
            fate(Some(DeleteEvent::OnSuspend)),
            Fate { gone_when_down: false, gone_when_asleep: true }
        );
        assert_eq!(Fate::of(&Persistence::default()), KEPT);
        let asleep = step(Phase::Running, Event::Asked(Ask::Suspend), fate(None));
        assert_eq!(asleep, Ok(to(Phase::Deleting, Effect::Remove)));
    }
}
