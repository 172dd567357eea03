//! A Debian guest that counts, computes and writes goes through CYCLES random steps of sleep, wake, fork, snapshot and
//! restore. Nothing in it is torn, lost or stuck, and its clock is right after each.
//!
//! SEED repeats a run's steps.

use anyhow::{Context, Result};
use serde_json::json;
use std::time::{Duration, Instant};
use tests::api::{Api, ApiError};
use tests::chance::{Chance, count};
use tests::guest::{BURDENS, await_round, begin_burdens, begin_witness, check_complaints, forget_caches};
use tests::house::House;
use tests::peer::{Peer, Testimony};
use tests::traces::Traces;

/// Steps when `CYCLES` does not say.
const STEPS: u64 = 50;
/// Most children of one fork; each has all the work of its parent.
const MAX_CHILDREN: u64 = 3;
/// Snapshots that are kept for a later restore: their memory is in the bed's memory.
const KEPT: usize = 2;
/// Longest that the guest sleeps: its clock is then so wrong, if nobody sets it.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// Of the witness' timer.
const TICKS_PER_SECOND: u64 = 5;
/// Tries to suspend a VM whose guest may be sending just then.
const SUSPEND_TRIES: usize = 5;

/// The VM that the test goes on with.
struct Subject {
    vm: String,
    peer: Peer,
    last: Testimony,
}

/// A snapshot, and the counts between which it was taken.
struct Kept {
    snapshot: String,
    least: u64,
    most: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    SleepAndStart,
    SleepAndExec,
    SleepAndPacket,
    Fork,
    Snapshot,
    SnapshotAsleep,
    Restore,
}

/// As often as they stand here.
const CHOICES: [Step; 9] = [
    Step::SleepAndStart,
    Step::SleepAndExec,
    Step::SleepAndPacket,
    Step::SleepAndPacket,
    Step::Fork,
    Step::Fork,
    Step::Snapshot,
    Step::SnapshotAsleep,
    Step::Restore,
];

struct Run {
    api: Api,
    chance: Chance,
    subject: Subject,
    kept: Vec<Kept>,
    worst_clock: f64,
    woken: usize,
}

#[test]
fn nothing_is_torn_lost_or_stuck_through_random_steps() -> Result<()> {
    let (steps, chance) = (count("CYCLES", STEPS)?, Chance::from_environment()?);
    let house = House::start()?;
    let before = Traces::take(&house.data())?;
    let api = Api::of(&house)?;
    let vm = api.create(json!({ "name": "cycles" }))?;
    begin_witness(&api, &vm)?;
    begin_burdens(&api, &vm)?;
    let mut peer = Peer::connect(api.address(&vm)?)?;
    let last = peer.ask()?;
    let subject = Subject { vm, peer, last };
    let mut run = Run { api, chance, subject, kept: Vec::new(), worst_clock: 0.0, woken: 0 };
    for number in 1..=steps {
        let step = run.choose()?;
        let begun = Instant::now();
        run.take(step).with_context(|| format!("step {number}, {step:?}"))?;
        let (count, seconds) = (run.subject.last.counter, begun.elapsed().as_secs_f64());
        println!("{number}: {step:?}, {seconds:.1} s, {} counts {count}", run.subject.vm);
    }
    run.end()?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

impl Run {
    fn choose(&mut self) -> Result<Step> {
        let step = *self.chance.one_of(&CHOICES).context("no steps")?;
        Ok(if matches!(step, Step::Restore) && self.kept.is_empty() { Step::Snapshot } else { step })
    }

    fn take(&mut self, step: Step) -> Result<()> {
        match step {
            Step::SleepAndStart => {
                self.sleep()?;
                self.api.tell(&self.subject.vm, "start")?;
            }
            Step::SleepAndExec => {
                self.sleep()?;
                anyhow::ensure!(self.api.exec(&self.subject.vm, "echo awake")? == "awake\n");
            }
            // The question on the connection of before is what wakes it.
            Step::SleepAndPacket => self.sleep()?,
            Step::Fork => self.fork()?,
            Step::Snapshot => self.snapshot()?,
            Step::SnapshotAsleep => {
                self.sleep()?;
                self.snapshot()?;
            }
            Step::Restore => self.restore()?,
        }
        let deep = self.chance.below(3) == 0;
        let Subject { vm, peer, last } = &mut self.subject;
        let (now, clock) = examine(&self.api, vm, peer, *last, deep)?;
        *last = now;
        self.worst_clock = self.worst_clock.max(clock);
        let state = self.api.state(&self.subject.vm)?;
        anyhow::ensure!(state == "running", "it is {state}");
        Ok(())
    }

    fn sleep(&mut self) -> Result<()> {
        let mut tries = 1;
        while let Err(error) = self.api.tell(&self.subject.vm, "suspend") {
            // A frame of the guest's own comes first now and then, which must cost nothing but the try.
            anyhow::ensure!(tries < SUSPEND_TRIES && is_woken(&error), error);
            (tries, self.woken) = (tries + 1, self.woken + 1);
        }
        let state = self.api.state(&self.subject.vm)?;
        anyhow::ensure!(state == "suspended", "it is {state}");
        std::thread::sleep(self.chance.within(LONGEST_SLEEP));
        Ok(())
    }

    fn fork(&mut self) -> Result<()> {
        let count = usize::try_from(1 + self.chance.below(MAX_CHILDREN))?;
        let children = self.api.fork(&self.subject.vm, count)?;
        anyhow::ensure!(children.len() == count, "{} of {count} children", children.len());
        for child in &children {
            let mut peer = Peer::connect(self.api.address(child)?)?;
            let deep = self.chance.below(3) == 0;
            let examined = examine(&self.api, child, &mut peer, self.subject.last, deep);
            let (_, clock) = examined.with_context(|| format!("child {child}"))?;
            self.worst_clock = self.worst_clock.max(clock);
        }
        for child in &children {
            self.api.delete(child)?;
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<()> {
        if self.kept.len() >= KEPT {
            let place = usize::try_from(self.chance.below(KEPT as u64))?;
            self.api.delete_snapshot(&self.kept.swap_remove(place).snapshot)?;
        }
        let snapshot = self.api.snapshot(&self.subject.vm)?;
        let least = self.subject.last.counter;
        self.subject.last = self.subject.peer.ask()?;
        self.kept.push(Kept { snapshot, least, most: self.subject.last.counter });
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        let kept = self.chance.one_of(&self.kept).context("no snapshot")?;
        let begun = Instant::now();
        let vm = self.api.create(json!({ "snapshotId": kept.snapshot }))?;
        let mut peer = Peer::connect(self.api.address(&vm)?)?;
        let first = peer.ask()?.counter;
        let most = kept.most + begun.elapsed().as_secs() * TICKS_PER_SECOND + TICKS_PER_SECOND;
        anyhow::ensure!((kept.least..=most).contains(&first), "{first} is not of {}..={most}", kept.least);
        // Its other thread sleeps on from then as well, but nobody knows how far it was.
        let then = Testimony { counter: kept.least, beats: 0 };
        let (now, clock) =
            examine(&self.api, &vm, &mut peer, then, true).with_context(|| format!("restored {vm}"))?;
        self.worst_clock = self.worst_clock.max(clock);
        if self.chance.below(2) == 0 {
            let subject = Subject { vm, peer, last: now };
            let old = std::mem::replace(&mut self.subject, subject);
            self.api.delete(&old.vm)?;
        } else {
            self.api.delete(&vm)?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<()> {
        for what in BURDENS {
            let rounds = await_round(&self.api, &self.subject.vm, what)?;
            println!("{what}: {rounds} rounds");
        }
        forget_caches(&self.api, &self.subject.vm)?;
        self.subject.peer.ask()?;
        check_complaints(&self.api, &self.subject.vm, true)?;
        println!(
            "clocks were at most {:.3} s wrong; {} suspends were broken off",
            self.worst_clock, self.woken
        );
        self.api.delete(&self.subject.vm)?;
        for kept in &self.kept {
            self.api.delete_snapshot(&kept.snapshot)?;
        }
        Ok(())
    }
}

/// Looks at a VM from all sides. `last` is what its witness said before; the next word must not be of an earlier time.
fn examine(api: &Api, vm: &str, peer: &mut Peer, last: Testimony, deep: bool) -> Result<(Testimony, f64)> {
    let first = peer.ask()?;
    anyhow::ensure!(first.counter >= last.counter, "it counted {} and now {}", last.counter, first.counter);
    let clock = peer.check_clock()?;
    let moved = peer.await_motion(first)?;
    if deep {
        forget_caches(api, vm)?;
        peer.ask()?;
    }
    check_complaints(api, vm, true)?;
    Ok((moved, clock))
}

fn is_woken(error: &ApiError) -> bool {
    error.to_string().contains("traffic came")
}
