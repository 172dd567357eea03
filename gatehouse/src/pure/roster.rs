//! The keeper of the six processes, as a state machine: events and the time go in, effects come out.
//!
//! ```text
//!  Starting ── the last role is ready ──► Serving
//!     │                                     │  a child dies, in either: wait (100 ms, doubled to 5 s), launch again
//!     └──────────── Stop ───────┬───────────┘
//!                               ▼
//!   Stopping(edge) ─► Stopping(ssh) ─► Stopping(vpn) ─► StoppingMachines ─► Stopping(control) ─► …(vmm) ─► …(vpc) ─► Over
//!        each step ends when its process is gone; it is killed when its time is over; a second Stop kills all
//! ```
//!
//! Roles start in the order of [`Role::ALL`], each after the one before is ready, and stop in the opposite one.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// Wait before the first restart: a process that died by accident is back before a client's second try.
pub const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between restarts: short enough for an operator who mends the cause and looks.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A process that lived this long has started well; its next death counts as the first.
pub const GOOD_LIFE: Duration = Duration::from_secs(10);
/// Longest that a process may take to end when asked: edge-proxy drains for 10 s.
pub const STOP_WAIT: Duration = Duration::from_secs(15);
/// Longest that all VMs together may take to shut down before the house goes on without them.
pub const MACHINES_WAIT: Duration = Duration::from_secs(90);
/// Longest that a killed process may take to disappear. Only one that hangs in the kernel takes longer.
pub const KILL_WAIT: Duration = Duration::from_secs(5);

/// Deaths of one process before the house has opened, after which it gives up: about 13 s of trying.
pub const START_TRIES: u32 = 8;

/// The processes of the house.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Networks.
    Vpc,
    /// The supervisor of the VMs.
    Vmm,
    /// The decider and its API.
    Control,
    /// The WireGuard door.
    Vpn,
    /// The SSH door.
    Ssh,
    /// The HTTPS door.
    Edge,
}

impl Role {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 6] = [Self::Vpc, Self::Vmm, Self::Control, Self::Vpn, Self::Ssh, Self::Edge];

    /// The name of its program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Vpc => "vpc",
            Self::Vmm => "vmm",
            Self::Control => "control",
            Self::Vpn => "vpn",
            Self::Ssh => "ssh-proxy",
            Self::Edge => "edge-proxy",
        }
    }

    fn after(self) -> Option<Self> {
        Self::ALL.into_iter().find(|role| *role > self)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.program())
    }
}

/// All that can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The house opens.
    Open,
    /// The process answers.
    Ready(Role),
    /// The process is gone, or could not be started.
    Died(Role),
    /// The time of [`Roster::deadline`] has come.
    Due,
    /// Somebody wants it to end: once, and it ends in order; twice, and it ends now.
    Stop,
    /// All VMs are down, or could not be asked.
    MachinesDown,
}

/// All that is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Start the process.
    Launch(Role),
    /// Say that it will be started again after this long.
    Waiting(Role, Duration),
    /// The process died too often before the house was open; the rest is closed.
    GivingUp(Role),
    /// Ask the process to end.
    Terminate(Role),
    /// End the process.
    Kill(Role),
    /// Ask that all VMs be shut down.
    StopMachines,
    /// All processes answer for the first time.
    Serving,
    /// Nothing is left.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Never,
    Running { since: Instant, ready: bool },
    Waiting { until: Instant },
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed,
    Starting,
    Serving,
    Ending { role: Role, until: Instant, killed: bool },
    Machines { until: Instant },
    Over,
}

/// Who runs, and what comes next.
#[derive(Clone, Debug)]
pub struct Roster {
    phase: Phase,
    lives: BTreeMap<Role, Life>,
    waits: BTreeMap<Role, Duration>,
    early_deaths: BTreeMap<Role, u32>,
    keep_machines: bool,
}

impl Roster {
    /// A house that is closed. With `keep_machines`, VMs go on when it closes again.
    #[must_use]
    pub fn new(keep_machines: bool) -> Self {
        Self {
            phase: Phase::Closed,
            lives: Role::ALL.into_iter().map(|role| (role, Life::Never)).collect(),
            waits: BTreeMap::new(),
            early_deaths: BTreeMap::new(),
            keep_machines,
        }
    }

    /// When [`Event::Due`] is wanted.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let ending = match self.phase {
            Phase::Ending { until, .. } | Phase::Machines { until } => Some(until),
            Phase::Closed | Phase::Starting | Phase::Serving | Phase::Over => None,
        };
        let waiting = self.lives.values().filter_map(|life| match life {
            Life::Waiting { until } => Some(*until),
            Life::Never | Life::Running { .. } | Life::Gone => None,
        });
        waiting.chain(ending).min()
    }

    /// Whether the house is open and this process answers.
    #[must_use]
    pub fn answers(&self, role: Role) -> bool {
        self.phase == Phase::Serving && matches!(self.lives[&role], Life::Running { ready: true, .. })
    }

    /// Takes an event in.
    #[must_use]
    pub fn handle(&mut self, event: &Event, now: Instant) -> Vec<Effect> {
        match event {
            Event::Open => self.open(now),
            Event::Ready(role) => self.ready(*role, now),
            Event::Died(role) => self.died(*role, now),
            Event::Due => self.due(now),
            Event::Stop => self.stop(now),
            Event::MachinesDown => self.machines_down(now),
        }
    }

    fn open(&mut self, now: Instant) -> Vec<Effect> {
        if self.phase != Phase::Closed {
            return Vec::new();
        }
        self.phase = Phase::Starting;
        vec![self.launch(Role::ALL[0], now)]
    }

    fn launch(&mut self, role: Role, now: Instant) -> Effect {
        self.lives.insert(role, Life::Running { since: now, ready: false });
        Effect::Launch(role)
    }

    fn ready(&mut self, role: Role, now: Instant) -> Vec<Effect> {
        let Some(Life::Running { ready, .. }) = self.lives.get_mut(&role) else { return Vec::new() };
        *ready = true;
        if self.phase != Phase::Starting {
            return Vec::new();
        }
        if let Some(next) = role.after() {
            return if self.lives[&next] == Life::Never { vec![self.launch(next, now)] } else { Vec::new() };
        }
        self.phase = Phase::Serving;
        vec![Effect::Serving]
    }

    fn died(&mut self, role: Role, now: Instant) -> Vec<Effect> {
        let Life::Running { since, .. } = self.lives[&role] else { return Vec::new() };
        if self.phase == Phase::Starting {
            let deaths = self.early_deaths.entry(role).or_default();
            *deaths += 1;
            if *deaths >= START_TRIES {
                self.lives.insert(role, Life::Gone);
                let mut effects = vec![Effect::GivingUp(role)];
                effects.extend(self.stop(now));
                return effects;
            }
        }
        match self.phase {
            Phase::Starting | Phase::Serving => {
                let lived = now.saturating_duration_since(since);
                let last = self.waits.get(&role).copied().filter(|_| lived < GOOD_LIFE);
                let wait = last.map_or(FIRST_WAIT, |last| (last * 2).min(LONGEST_WAIT));
                self.waits.insert(role, wait);
                self.lives.insert(role, Life::Waiting { until: now + wait });
                vec![Effect::Waiting(role, wait)]
            }
            Phase::Ending { role: ending, .. } => {
                self.lives.insert(role, Life::Gone);
                if role == ending { self.after_end_of(role, now) } else { Vec::new() }
            }
            Phase::Machines { .. } => {
                self.lives.insert(role, Life::Gone);
                // Without control nobody can stop the VMs; without the supervisor nobody can either.
                if matches!(role, Role::Control | Role::Vmm) {
                    self.end(Role::Control, now)
                } else {
                    Vec::new()
                }
            }
            Phase::Closed | Phase::Over => Vec::new(),
        }
    }

    fn due(&mut self, now: Instant) -> Vec<Effect> {
        match self.phase {
            Phase::Starting | Phase::Serving => {
                let due = |life: &Life| matches!(life, Life::Waiting { until } if *until <= now);
                let roles: Vec<Role> =
                    self.lives.iter().filter(|(_, life)| due(life)).map(|(role, _)| *role).collect();
                roles.into_iter().map(|role| self.launch(role, now)).collect()
            }
            Phase::Ending { role, until, killed } if until <= now => {
                if killed {
                    // It hangs in the kernel and cannot be waited for.
                    self.lives.insert(role, Life::Gone);
                    return self.after_end_of(role, now);
                }
                self.phase = Phase::Ending { role, until: now + KILL_WAIT, killed: true };
                vec![Effect::Kill(role)]
            }
            Phase::Machines { until } if until <= now => self.end(Role::Control, now),
            Phase::Ending { .. } | Phase::Machines { .. } | Phase::Closed | Phase::Over => Vec::new(),
        }
    }

    fn stop(&mut self, now: Instant) -> Vec<Effect> {
        match self.phase {
            Phase::Closed => self.over(),
            Phase::Starting | Phase::Serving => {
                for life in self.lives.values_mut() {
                    if matches!(life, Life::Waiting { .. } | Life::Never) {
                        *life = Life::Gone;
                    }
                }
                self.end(Role::Edge, now)
            }
            Phase::Ending { .. } | Phase::Machines { .. } => self.kill_all(),
            Phase::Over => Vec::new(),
        }
    }

    fn machines_down(&mut self, now: Instant) -> Vec<Effect> {
        match self.phase {
            Phase::Machines { .. } => self.end(Role::Control, now),
            Phase::Closed | Phase::Starting | Phase::Serving | Phase::Ending { .. } | Phase::Over => {
                Vec::new()
            }
        }
    }

    /// Ends this role, or the first one behind it that runs.
    fn end(&mut self, role: Role, now: Instant) -> Vec<Effect> {
        if matches!(self.lives[&role], Life::Running { .. }) {
            self.phase = Phase::Ending { role, until: now + STOP_WAIT, killed: false };
            return vec![Effect::Terminate(role)];
        }
        self.after_end_of(role, now)
    }

    fn after_end_of(&mut self, role: Role, now: Instant) -> Vec<Effect> {
        match role {
            Role::Edge => self.end(Role::Ssh, now),
            Role::Ssh => self.end(Role::Vpn, now),
            Role::Vpn => {
                let answers = |role| matches!(self.lives[&role], Life::Running { ready: true, .. });
                if !self.keep_machines && answers(Role::Control) && answers(Role::Vmm) {
                    self.phase = Phase::Machines { until: now + MACHINES_WAIT };
                    return vec![Effect::StopMachines];
                }
                self.end(Role::Control, now)
            }
            Role::Control => self.end(Role::Vmm, now),
            Role::Vmm => self.end(Role::Vpc, now),
            Role::Vpc => self.over(),
        }
    }

    fn kill_all(&mut self) -> Vec<Effect> {
        let running = |life: &Life| matches!(life, Life::Running { .. });
        let mut effects: Vec<Effect> = self
            .lives
            .iter()
            .filter(|(_, life)| running(life))
            .map(|(role, _)| Effect::Kill(*role))
            .collect();
        effects.extend(self.over());
        effects
    }

    fn over(&mut self) -> Vec<Effect> {
        self.phase = Phase::Over;
        vec![Effect::Over]
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "a test needs some first moment")]

    use super::*;
    use proptest::prelude::*;

    fn serving(keep: bool) -> (Roster, Instant) {
        let now = Instant::now();
        let mut roster = Roster::new(keep);
        assert_eq!(roster.handle(&Event::Open, now), [Effect::Launch(Role::Vpc)]);
        assert_eq!(roster.handle(&Event::Ready(Role::Vpc), now), [Effect::Launch(Role::Vmm)]);
        assert_eq!(roster.handle(&Event::Ready(Role::Vmm), now), [Effect::Launch(Role::Control)]);
        assert_eq!(roster.handle(&Event::Ready(Role::Control), now), [Effect::Launch(Role::Vpn)]);
        assert_eq!(roster.handle(&Event::Ready(Role::Vpn), now), [Effect::Launch(Role::Ssh)]);
        assert_eq!(roster.handle(&Event::Ready(Role::Ssh), now), [Effect::Launch(Role::Edge)]);
        assert_eq!(roster.handle(&Event::Ready(Role::Edge), now), [Effect::Serving]);
        (roster, now)
    }

    #[test]
    fn restarts_wait_longer_each_time_and_forget_after_a_good_life() {
        let (mut roster, mut now) = serving(false);
        assert!(roster.answers(Role::Vmm));
        for wait in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
            let wait = Duration::from_millis(wait);
            assert_eq!(roster.handle(&Event::Died(Role::Vmm), now), [Effect::Waiting(Role::Vmm, wait)]);
            assert_eq!((roster.deadline(), roster.answers(Role::Vmm)), (Some(now + wait), false));
            assert_eq!(roster.handle(&Event::Due, now + wait - Duration::from_millis(1)), []);
            now += wait;
            assert_eq!(roster.handle(&Event::Due, now), [Effect::Launch(Role::Vmm)]);
            assert_eq!(roster.handle(&Event::Ready(Role::Vmm), now), []);
        }
        now += GOOD_LIFE;
        assert_eq!(roster.handle(&Event::Died(Role::Vmm), now), [Effect::Waiting(Role::Vmm, FIRST_WAIT)]);
    }

    #[test]
    fn it_closes_in_order() {
        let (mut roster, now) = serving(false);
        assert_eq!(roster.handle(&Event::Stop, now), [Effect::Terminate(Role::Edge)]);
        assert_eq!(roster.handle(&Event::Died(Role::Edge), now), [Effect::Terminate(Role::Ssh)]);
        assert_eq!(roster.handle(&Event::Died(Role::Ssh), now), [Effect::Terminate(Role::Vpn)]);
        assert_eq!(roster.handle(&Event::Died(Role::Vpn), now), [Effect::StopMachines]);
        assert_eq!(roster.handle(&Event::MachinesDown, now), [Effect::Terminate(Role::Control)]);
        assert_eq!(roster.handle(&Event::Due, now + STOP_WAIT), [Effect::Kill(Role::Control)]);
        assert_eq!(roster.handle(&Event::Died(Role::Control), now), [Effect::Terminate(Role::Vmm)]);
        assert_eq!(roster.handle(&Event::Died(Role::Vmm), now), [Effect::Terminate(Role::Vpc)]);
        assert_eq!(roster.handle(&Event::Died(Role::Vpc), now), [Effect::Over]);
    }

    #[test]
    fn machines_may_be_kept() {
        let (mut roster, now) = serving(true);
        assert_eq!(roster.handle(&Event::Stop, now), [Effect::Terminate(Role::Edge)]);
        assert_eq!(roster.handle(&Event::Died(Role::Edge), now), [Effect::Terminate(Role::Ssh)]);
        assert_eq!(roster.handle(&Event::Died(Role::Ssh), now), [Effect::Terminate(Role::Vpn)]);
        assert_eq!(roster.handle(&Event::Died(Role::Vpn), now), [Effect::Terminate(Role::Control)]);
    }

    #[test]
    fn a_second_stop_kills_what_is_left() {
        let (mut roster, now) = serving(false);
        assert_eq!(roster.handle(&Event::Stop, now), [Effect::Terminate(Role::Edge)]);
        let effects = roster.handle(&Event::Stop, now);
        assert_eq!(effects.len(), 7);
        assert_eq!(effects.last(), Some(&Effect::Over));
    }

    #[test]
    fn a_stop_before_all_is_ready_leaves_nothing() {
        let now = Instant::now();
        let mut roster = Roster::new(false);
        assert_eq!(roster.handle(&Event::Open, now), [Effect::Launch(Role::Vpc)]);
        assert_eq!(roster.handle(&Event::Stop, now), [Effect::Terminate(Role::Vpc)]);
        assert_eq!(roster.handle(&Event::Died(Role::Vpc), now), [Effect::Over]);
    }

    fn over_by(roster: &Roster) -> bool {
        roster.phase == Phase::Over
    }

    #[test]
    fn it_gives_up_a_process_that_never_starts() {
        let mut now = Instant::now();
        let mut roster = Roster::new(false);
        assert_eq!(roster.handle(&Event::Open, now), [Effect::Launch(Role::Vpc)]);
        for _ in 1..START_TRIES {
            assert!(matches!(roster.handle(&Event::Died(Role::Vpc), now)[..], [Effect::Waiting(..)]));
            now = roster.deadline().expect("a restart");
            assert_eq!(roster.handle(&Event::Due, now), [Effect::Launch(Role::Vpc)]);
        }
        assert_eq!(roster.handle(&Event::Died(Role::Vpc), now), [Effect::GivingUp(Role::Vpc), Effect::Over]);
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let role = prop::sample::select(Role::ALL.to_vec());
        prop_oneof![
            4 => role.clone().prop_map(Event::Ready),
            4 => role.prop_map(Event::Died),
            4 => Just(Event::Due),
            1 => Just(Event::Stop),
            1 => Just(Event::MachinesDown),
        ]
    }

    proptest! {
        /// Whatever happens, no role runs twice, and after a stop it is over as soon as each process has ended or
        /// its time has passed.
        #[test]
        fn it_always_ends(events in prop::collection::vec((any_event(), 0u64..20_000), 0..60), keep: bool) {
            let mut now = Instant::now();
            let mut roster = Roster::new(keep);
            let mut running: BTreeMap<Role, bool> = BTreeMap::new();
            let mut over = false;
            let mut apply = |effects: Vec<Effect>, running: &mut BTreeMap<Role, bool>| {
                for effect in effects {
                    match effect {
                        Effect::Launch(role) => assert_ne!(running.insert(role, true), Some(true)),
                        Effect::Over => { assert!(!over); over = true }
                        Effect::Waiting(..) | Effect::GivingUp(_) | Effect::Terminate(_) | Effect::Kill(_) | Effect::StopMachines
                            | Effect::Serving => {}
                    }
                }
                over
            };
            apply(roster.handle(&Event::Open, now), &mut running);
            for (event, later) in events {
                now += Duration::from_millis(later);
                if let Event::Died(role) | Event::Ready(role) = event {
                    if running.get(&role) != Some(&true) { continue }
                    if matches!(event, Event::Died(_)) { running.insert(role, false); }
                }
                apply(roster.handle(&event, now), &mut running);
            }
            let mut done = over_by(&roster) || apply(roster.handle(&Event::Stop, now), &mut running);
            for _ in 0..20 {
                if done { break }
                now = roster.deadline().unwrap_or(now).max(now);
                done = apply(roster.handle(&Event::Due, now), &mut running);
            }
            prop_assert!(done, "{roster:?}");
        }
    }
}
