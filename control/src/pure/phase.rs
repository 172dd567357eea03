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
//!   not ready, │     ┌──────────┐  │   │     │ down      │  ▼
//!   down,      │     │ Stopping │  │   ▼     │           │ Killing
//!   failed     │     └────┬─────┘  │ ┌───────┴─┐         │
//!              │          │ Down   │ │ Stopped │◄────────┤
//!              │          └────────┼►│  (Lost) │         │ disk gone: Lost
//!              ▼                   │ └─────┬───┘         ▼
//!         ┌──────────┐        Kill ▼   ▲   │ Delete
//!         │ Deleting │◄───┐  ┌─────────┐   │
//!         └────┬─────┘    │  │ Killing ├───┘ (Down leads to Stopped)
//!              │ Removed  │  └─────────┘
//!              ▼          └── Delete, from anywhere; an ephemeral VM also when it is down
//!            (gone)
//! ```
//!
//! Running, Stopped and Lost are at rest. The others are intents: each is written down before its effect begins, and
//! each effect may be repeated, so a control that dies in between finds the intent at its next start and resumes it.
//! An effect that fails for a reason outside the VM (the supervisor is away) leaves the intent where it was, for the
//! next resumption.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use model::api::vm::VmState;
use std::str::FromStr;
use thiserror::Error;

/// Where a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// It is being made: no failure leaves anything of it.
    Building,
    /// It boots from its disk.
    Starting,
    /// It is up.
    Running,
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
    /// Boot it.
    Start,
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

/// What happens to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody asks.
    Asked(Ask),
    /// Control looks at it: after its own start, when the supervisor is back, when the machine changed.
    Resumed(Seen),
    /// The guest runs.
    Launched,
    /// The supervisor will not run it.
    Refused {
        /// Because of its disk.
        disk: bool,
    },
    /// The agent has reported.
    Ready,
    /// The agent has not reported in time, or somebody wants the VM gone.
    NotReady,
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
    /// Stop the machine cleanly.
    Stop,
    /// End the machine.
    Kill,
    /// Withdraw its routes, end the machine and remove its disk.
    Remove,
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

/// What follows from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Written down first.
    pub next: Next,
    /// Done then.
    pub effect: Option<Effect>,
    /// The VM gets a new instance.
    pub new_run: bool,
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

impl Phase {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Building,
        Self::Starting,
        Self::Running,
        Self::Stopping,
        Self::Killing,
        Self::Stopped,
        Self::Lost,
        Self::Deleting,
    ];

    /// Nothing is owed: no effect is under way.
    #[must_use]
    pub fn at_rest(self) -> bool {
        matches!(self, Self::Running | Self::Stopped | Self::Lost)
    }

    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Starting => "starting",
            Self::Running => "running",
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
            Self::Starting => VmState::Starting,
            Self::Running | Self::Stopping | Self::Killing => VmState::Running,
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

/// What follows from an event in a phase. `ephemeral`: the VM is deleted once it is down.
///
/// # Errors
/// [`Misfit`] when the event cannot happen there, or must wait until the VM is at rest.
pub fn step(phase: Phase, event: Event, ephemeral: bool) -> Result<Step, Misfit> {
    use Phase::{Building, Deleting, Killing, Lost, Running, Starting, Stopped, Stopping};
    let misfit = Err(Misfit { phase, event });
    let down = if ephemeral { to(Deleting, Effect::Remove) } else { rest(Stopped) };
    match event {
        Event::Asked(ask) => asked(phase, ask).ok_or(Misfit { phase, event }),
        Event::Resumed(seen) => Ok(resumed(phase, seen, down)),
        Event::Launched => match phase {
            Building | Starting => Ok(to(phase, Effect::AwaitAgent)),
            Running | Stopping | Killing | Stopped | Lost | Deleting => misfit,
        },
        Event::Refused { disk } => match phase {
            Building => Ok(to(Deleting, Effect::Remove)),
            Starting => Ok(rest(if disk { Lost } else { Stopped })),
            Running | Stopping | Killing | Stopped | Lost | Deleting => misfit,
        },
        Event::Ready => match phase {
            Building | Starting => Ok(rest(Running)),
            Running | Stopping | Killing | Stopped | Lost | Deleting => misfit,
        },
        Event::NotReady => match phase {
            Building => Ok(to(Deleting, Effect::Remove)),
            Starting => Ok(to(Killing, Effect::Kill)),
            Running | Stopping | Killing | Stopped | Lost | Deleting => misfit,
        },
        Event::Down => match phase {
            Building => Ok(to(Deleting, Effect::Remove)),
            Starting | Running | Stopping | Killing => Ok(down),
            Stopped | Lost => Ok(rest(phase)),
            Deleting => misfit,
        },
        Event::Removed => match phase {
            Deleting => Ok(Step { next: Next::Gone, effect: Some(Effect::Withdraw), new_run: false }),
            Building | Starting | Running | Stopping | Killing | Stopped | Lost => misfit,
        },
        Event::Failed => Ok(match phase {
            Building => to(Deleting, Effect::Remove),
            Starting => to(Killing, Effect::Kill),
            Running | Stopping | Killing | Stopped | Lost | Deleting => rest(phase),
        }),
    }
}

fn asked(phase: Phase, ask: Ask) -> Option<Step> {
    use Phase::{Building, Deleting, Killing, Lost, Running, Starting, Stopped, Stopping};
    match ask {
        Ask::Start => match phase {
            Running => Some(rest(Running)),
            Stopped | Lost => {
                Some(Step { next: Next::Phase(Starting), effect: Some(Effect::Launch), new_run: true })
            }
            Building | Starting | Stopping | Killing | Deleting => None,
        },
        Ask::Stop => match phase {
            Running | Stopping => Some(to(Stopping, Effect::Stop)),
            Stopped | Lost => Some(rest(phase)),
            Building | Starting | Killing | Deleting => None,
        },
        Ask::Kill => match phase {
            Starting | Running | Stopping | Killing => Some(to(Killing, Effect::Kill)),
            Stopped | Lost => Some(rest(phase)),
            Building | Deleting => None,
        },
        Ask::Delete => Some(to(Deleting, Effect::Remove)),
    }
}

fn resumed(phase: Phase, seen: Seen, down: Step) -> Step {
    match (phase, seen) {
        (Phase::Building, Seen::Other) | (Phase::Deleting, _) => to(Phase::Deleting, Effect::Remove),
        (Phase::Building | Phase::Starting, Seen::Absent | Seen::Ours) => to(phase, Effect::Launch),
        (Phase::Running, Seen::Ours) => rest(Phase::Running),
        (Phase::Running | Phase::Stopping | Phase::Killing, Seen::Absent) => down,
        (Phase::Stopping, Seen::Ours | Seen::Other) => to(phase, Effect::Stop),
        (Phase::Stopped | Phase::Lost, Seen::Absent) => rest(phase),
        (Phase::Starting | Phase::Running, Seen::Other)
        | (Phase::Killing | Phase::Stopped | Phase::Lost, Seen::Ours | Seen::Other) => {
            to(Phase::Killing, Effect::Kill)
        }
    }
}

fn to(phase: Phase, effect: Effect) -> Step {
    Step { next: Next::Phase(phase), effect: Some(effect), new_run: false }
}

fn rest(phase: Phase) -> Step {
    Step { next: Next::Phase(phase), effect: None, new_run: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Effects that a healthy world needs at most to bring a VM to rest.
    const LONGEST_WAY: usize = 6;

    fn outcome(effect: Effect, choice: u8) -> Option<Event> {
        match effect {
            Effect::Launch => Some(match choice % 4 {
                0 => Event::Refused { disk: true },
                1 => Event::Refused { disk: false },
                2 => Event::Failed,
                _ => Event::Launched,
            }),
            Effect::AwaitAgent => Some(match choice % 4 {
                0 => Event::NotReady,
                1 => Event::Down,
                _ => Event::Ready,
            }),
            Effect::Stop | Effect::Kill => {
                Some(if choice.is_multiple_of(4) { Event::Failed } else { Event::Down })
            }
            Effect::Remove => Some(if choice.is_multiple_of(4) { Event::Failed } else { Event::Removed }),
            Effect::Withdraw => None,
        }
    }

    fn seen(choice: u8) -> Seen {
        match choice % 3 {
            0 => Seen::Absent,
            1 => Seen::Ours,
            _ => Seen::Other,
        }
    }

    /// Drives a VM until no effect is left. None: it is gone.
    fn drive(
        mut phase: Phase,
        first: Event,
        ephemeral: bool,
        choices: &mut impl Iterator<Item = u8>,
    ) -> Option<Phase> {
        let mut event = first;
        for _ in 0..LONGEST_WAY {
            let step = match step(phase, event, ephemeral) {
                Ok(step) => step,
                Err(misfit) => {
                    assert!(matches!(misfit.event, Event::Asked(_)), "own effects always fit: {misfit}");
                    return Some(phase);
                }
            };
            assert!(!step.new_run || step.effect == Some(Effect::Launch), "a new run is launched");
            match step.next {
                Next::Gone => {
                    assert_eq!(phase, Phase::Deleting, "only what was meant to be deleted goes");
                    return None;
                }
                Next::Phase(next) => phase = next,
            }
            let Some(effect) = step.effect else { return Some(phase) };
            event = outcome(effect, choices.next().expect("endless"))
                .expect("only a VM that is gone is withdrawn");
        }
        panic!("no rest after {LONGEST_WAY} effects, at {phase:?}");
    }

    proptest! {
        #[test]
        fn every_walk_comes_to_rest_and_what_is_owed_is_resumed(
            choices in proptest::collection::vec(any::<u8>(), 1..60), ephemeral: bool
        ) {
            let mut choices = choices.into_iter().chain(std::iter::repeat(3));
            let mut phase = Phase::Building;
            for turn in 0..40 {
                let asks = [Ask::Start, Ask::Stop, Ask::Kill, Ask::Delete];
                let choice = choices.next().expect("endless");
                let event = if turn % 2 == 0 {
                    Event::Resumed(seen(choice))
                } else {
                    Event::Asked(asks[usize::from(choice) % 4])
                };
                match drive(phase, event, ephemeral, &mut choices) {
                    Some(next) => phase = next,
                    None => return Ok(()),
                }
            }
            // In a healthy world one resumption ends every intent.
            let end = drive(phase, Event::Resumed(Seen::Absent), ephemeral, &mut std::iter::repeat(3));
            prop_assert!(end.is_none_or(Phase::at_rest), "{:?}", end);
        }
    }

    #[test]
    fn each_intent_has_an_effect_when_resumed_and_rest_has_none() {
        for phase in Phase::ALL {
            let step = step(phase, Event::Resumed(Seen::Ours), false).expect("always fits");
            let owed = !phase.at_rest() || matches!(phase, Phase::Stopped | Phase::Lost);
            assert_eq!(step.effect.is_some(), owed, "{phase:?}");
            assert_eq!(phase.as_str().parse(), Ok(phase));
        }
    }

    #[test]
    fn a_failed_creation_leaves_nothing_and_a_failed_start_leaves_the_disk() {
        for event in [Event::Refused { disk: true }, Event::NotReady, Event::Down, Event::Failed] {
            assert_eq!(
                step(Phase::Building, event, false),
                Ok(to(Phase::Deleting, Effect::Remove)),
                "{event:?}"
            );
        }
        assert_eq!(step(Phase::Starting, Event::Refused { disk: true }, false), Ok(rest(Phase::Lost)));
        assert_eq!(step(Phase::Starting, Event::NotReady, false), Ok(to(Phase::Killing, Effect::Kill)));
        assert_eq!(step(Phase::Running, Event::Down, true), Ok(to(Phase::Deleting, Effect::Remove)));
    }
}
