//! POINTS times a VM's process, the supervisor or control is killed at a random moment within a suspend, a snapshot, a
//! fork, a resume or a delete. Afterwards everything is in a state that has a name, a start brings the VM back with
//! all that was acknowledged, and nothing is left over.
//!
//! SEED repeats a run's choices, as far as its moments repeat. The guest is the small one (`tests::small`), which goes
//! on from point to point, so that a point needs a boot only when its VM's own process was killed.

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tests::api::{Api, ApiError};
use tests::chance::{Chance, count};
use tests::house::{House, Wishes};
use tests::owned::await_all_owned;
use tests::small;
use tests::traces::{Traces, machine_processes};

/// Kills when `POINTS` does not say.
const POINTS: u64 = 200;
/// Memory of a VM in MiB: the least that the house gives.
const MEMORY_MIB: u32 = 128;
/// Disk of a VM in MiB.
const DISK_MIB: u32 = 256;
/// Children of a fork.
const CHILDREN: usize = 2;
/// How much an operation's usual time follows the newest, and how far beyond it kills may fall, both in tenths.
const FOLLOW: u32 = 3;
const BEYOND: u32 = 11;
/// Longest until the house takes a request again after a kill.
const RECOVERY: Duration = Duration::from_secs(120);
/// Between looks for somebody to kill.
const TRY_SOON: Duration = Duration::from_millis(5);
/// Between tries.
const TRY_AGAIN: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Suspend,
    Snapshot,
    Fork,
    Resume,
    DeleteRunning,
    DeleteAsleep,
    DeleteSnapshot,
}

/// As often as they stand here.
const ACTS: [Act; 11] = [
    Act::Suspend,
    Act::Suspend,
    Act::Snapshot,
    Act::Snapshot,
    Act::Fork,
    Act::Fork,
    Act::Resume,
    Act::Resume,
    Act::DeleteRunning,
    Act::DeleteAsleep,
    Act::DeleteSnapshot,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Machine,
    Supervisor,
    Control,
}

const VICTIMS: [Victim; 3] = [Victim::Machine, Victim::Supervisor, Victim::Control];

/// What an act gave, when it was acknowledged.
type Given = Result<Vec<String>, ApiError>;

/// What a guest says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    kept: String,
    memory: String,
}

struct Run {
    house: House,
    api: Api,
    chance: Chance,
    vm: String,
    token: u64,
    usual: BTreeMap<Act, Duration>,
    tally: BTreeMap<(Act, Victim), u64>,
    /// How often each word was true after a point.
    outcomes: BTreeMap<String, u64>,
}

#[test]
fn kills_at_random_moments_lose_nothing_and_leave_nothing() -> Result<()> {
    let (points, chance) = (count("POINTS", POINTS)?, Chance::from_environment()?);
    let images = tempfile::Builder::new().prefix("images-").tempdir_in("/var/tmp")?;
    small::make_images(images.path())?;
    let images = Some(images.path().to_owned());
    let house = House::start_with(Wishes {
        images,
        memory_mib: MEMORY_MIB,
        disk_mib: DISK_MIB,
        ..Wishes::default()
    })?;
    let before = Traces::take(&house.data())?;
    let api = Api::of(&house)?;
    let vm = api.create(json!({ "name": "points" }))?;
    let (usual, tally, outcomes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut run = Run { house, api, chance, vm, token: 0, usual, tally, outcomes };
    for act in ACTS {
        run.rehearse(act).with_context(|| format!("{act:?} without a kill"))?;
    }
    println!("usual times: {:?}", run.usual);
    while run.tally.values().sum::<u64>() < points {
        run.point()?;
    }
    run.api.delete(&run.vm)?;
    run.print();
    Traces::await_none_beyond(&before, &run.house.data())?;
    run.house.stop()
}

impl Run {
    /// An act that nobody disturbs, for its usual time.
    fn rehearse(&mut self, act: Act) -> Result<()> {
        let target = self.prepare(act)?;
        let begun = Instant::now();
        let given = perform(&self.api, act, &target)?;
        self.took(act, begun.elapsed());
        self.settle(act, &target, &Ok(given), true)
    }

    /// One kill, unless the act is over before it.
    fn point(&mut self) -> Result<()> {
        let act = *self.chance.one_of(&ACTS).context("no acts")?;
        let victim = *self.chance.one_of(&VICTIMS).context("no victims")?;
        let target = self.prepare(act)?;
        let before = machine_processes()?;
        let usual = self.usual.get(&act).copied().unwrap_or(Duration::from_secs(1));
        let moment = self.chance.within(usual * BEYOND / 10);
        let (done, given) = mpsc::channel();
        let (api, told) = (self.api.clone(), target.clone());
        let begun = Instant::now();
        let acting = std::thread::spawn(move || {
            let sent = done.send(perform(&api, act, &told));
            assert!(sent.is_ok(), "nobody waits for the outcome");
        });
        let mut early = given.recv_timeout(moment).ok();
        let mut killed = None;
        while early.is_none() && killed.is_none() {
            killed = self.kill(victim)?;
            // There is no process of a VM yet, or no more.
            early = if killed.is_none() { given.recv_timeout(TRY_SOON).ok() } else { None };
        }
        let given = match early {
            Some(given) => {
                self.took(act, begun.elapsed());
                given
            }
            None => given.recv()?,
        };
        anyhow::ensure!(acting.join().is_ok(), "the acting thread panicked");
        let what = format!(
            "{act:?} of {target}, {} killed after {} ms of {}: {}",
            killed.map_or_else(|| "nobody".to_owned(), |pid| format!("{victim:?} {pid}")),
            moment.as_millis(),
            usual.as_millis(),
            match &given {
                Ok(_) => "done".to_owned(),
                Err(error) => error.to_string(),
            }
        );
        // The VM's own process may cost it its memory; nobody else may.
        let memory = killed.is_none_or(|pid| !before.contains(&pid))
            && !(act == Act::Resume && victim == Victim::Machine);
        println!("{}: {what}", self.tally.values().sum::<u64>() + 1);
        if killed.is_some() {
            *self.tally.entry((act, victim)).or_default() += 1;
        } else if let Err(error) = &given {
            anyhow::bail!("{what}: nobody was killed, and yet {error}");
        }
        self.settle(act, &target, &given, memory).context(what)
    }

    fn print(&self) {
        for ((act, victim), count) in &self.tally {
            println!("{count} kills of {victim:?} within {act:?}");
        }
        for (outcome, count) in &self.outcomes {
            println!("{count} times: {outcome}");
        }
    }

    fn took(&mut self, act: Act, time: Duration) {
        let usual = self.usual.entry(act).or_insert(time);
        *usual = (*usual * (10 - FOLLOW) + time * FOLLOW) / 10;
    }

    fn kill(&mut self, victim: Victim) -> Result<Option<i32>> {
        let pid = match victim {
            Victim::Machine => self.chance.one_of(&machine_processes()?).copied(),
            Victim::Supervisor => Some(self.house.daemon("vmm")?),
            Victim::Control => Some(self.house.daemon("control")?),
        };
        let Some(pid) = pid else { return Ok(None) };
        // It may have ended by itself just now.
        let killed = kill_process(Pid::from_raw(pid).context("no such process id")?, Signal::KILL);
        Ok(killed.is_ok().then_some(pid))
    }

    /// Brings the VM to where the act begins, with a new token on its disk and in its memory. Returns whom the act is on.
    fn prepare(&mut self, act: Act) -> Result<String> {
        self.token += 1;
        let token = self.token;
        self.api.exec(
            &self.vm,
            &format!(
                "echo {token} >/run/mark && echo {token} | dd of=/root/kept.new conv=fsync 2>/dev/null && \
                 mv /root/kept.new /root/kept && sync"
            ),
        )?;
        Ok(match act {
            Act::Suspend | Act::Snapshot | Act::Fork => self.vm.clone(),
            Act::Resume => {
                self.api.tell(&self.vm, "suspend")?;
                self.vm.clone()
            }
            Act::DeleteRunning => self.child()?,
            Act::DeleteAsleep => {
                let child = self.child()?;
                self.api.tell(&child, "suspend")?;
                child
            }
            Act::DeleteSnapshot => self.api.snapshot(&self.vm)?,
        })
    }

    fn child(&self) -> Result<String> {
        self.api.fork(&self.vm, 1)?.pop().context("no child")
    }

    /// Looks at everything after an act, and brings the VM back. `memory`: it must not have lost that.
    fn settle(&mut self, act: Act, target: &str, given: &Given, memory: bool) -> Result<()> {
        self.await_house()?;
        let found = await_all_owned(&self.api, &self.house.data())?;
        let state = |vm: &str| found.iter().find(|(id, _)| id == vm).map(|(_, state)| state.as_str());
        let own = state(&self.vm).context("the VM is gone")?.to_owned();
        anyhow::ensure!(own != "lost", "the VM is lost");
        let theirs = state(target).map(str::to_owned);
        let acknowledged = given.is_ok();
        if acknowledged && act == Act::Suspend && memory {
            anyhow::ensure!(own == "suspended", "its sleep was acknowledged, and it is {own}");
        }
        let word = if acknowledged { "done" } else { "not done" };
        *self.outcomes.entry(format!("{act:?} {word}, {own}")).or_default() += 1;
        let must_remember = memory || acknowledged && act == Act::Suspend;
        let token = self.token.to_string();
        match act {
            Act::Suspend | Act::Resume => {}
            Act::Snapshot => self.settle_snapshots(given, &token)?,
            Act::Fork => {
                let children: Vec<String> =
                    found.iter().map(|(vm, _)| vm.clone()).filter(|vm| *vm != self.vm).collect();
                self.settle_children(given, &children, &token)?;
            }
            Act::DeleteRunning | Act::DeleteAsleep => {
                anyhow::ensure!(!(acknowledged && theirs.is_some()), "it was deleted, and is {theirs:?}");
                if theirs.is_some() {
                    self.delete_again(target)?;
                }
            }
            Act::DeleteSnapshot => self.settle_deleted_snapshot(given, target, &token)?,
        }
        self.api.tell(&self.vm, "start").context("the start that brings it back")?;
        let said = self.look(&self.vm)?;
        anyhow::ensure!(said.kept == token, "{token} was synced, and now there is {:?}", said.kept);
        if said.memory == token {
            *self.outcomes.entry("memory kept".to_owned()).or_default() += 1;
        } else {
            anyhow::ensure!(!must_remember, "its memory is lost: {:?} for {token}", said.memory);
            *self.outcomes.entry("memory lost with its process".to_owned()).or_default() += 1;
        }
        await_all_owned(&self.api, &self.house.data()).map(drop)
    }

    /// An acknowledged snapshot restores with all that was synced and in memory then; one that is there without having
    /// been acknowledged does so too.
    fn settle_snapshots(&self, given: &Given, token: &str) -> Result<()> {
        let ready: Vec<String> = self.ready_snapshots()?;
        if let Ok(made) = given {
            anyhow::ensure!(ready == *made, "{made:?} was acknowledged, and there are {ready:?}");
        }
        for snapshot in ready {
            self.check_restores(&snapshot, token)?;
            self.api.delete_snapshot(&snapshot)?;
        }
        Ok(())
    }

    fn settle_deleted_snapshot(&self, given: &Given, snapshot: &str, token: &str) -> Result<()> {
        let ready = self.ready_snapshots()?;
        if given.is_ok() {
            anyhow::ensure!(ready.is_empty(), "it was deleted, and there are {ready:?}");
        } else if ready.iter().any(|id| id == snapshot) {
            self.check_restores(snapshot, token)?;
            self.api.delete_snapshot(snapshot)?;
        }
        Ok(())
    }

    fn check_restores(&self, snapshot: &str, token: &str) -> Result<()> {
        let vm = self.api.create(json!({ "snapshotId": snapshot }))?;
        let said = self.look(&vm)?;
        anyhow::ensure!(said.kept == token && said.memory == token, "{snapshot} gives {said:?} for {token}");
        self.api.delete(&vm)?;
        Ok(())
    }

    /// All children of an acknowledged fork run, unless a kill met one; of another there is none.
    fn settle_children(&self, given: &Given, children: &[String], token: &str) -> Result<()> {
        match given {
            Ok(made) => anyhow::ensure!(
                made.len() == children.len() && made.iter().all(|child| children.contains(child)),
                "{made:?} were acknowledged, and there are {children:?}"
            ),
            // They are shown as stopped until they are gone.
            Err(_) => return self.await_no_other_vm(),
        }
        for child in children {
            let said = self.look(child)?;
            anyhow::ensure!(said.kept == token, "child {child} has {said:?} for {token}");
            self.api.delete(child)?;
        }
        Ok(())
    }

    /// One that is being deleted already may be gone by now, which is as good.
    fn delete_again(&self, vm: &str) -> Result<()> {
        match self.api.delete(vm) {
            Err(error) if error.code() != Some("VM_NOT_FOUND") => Err(error.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn await_no_other_vm(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let others: Vec<_> = self.api.vms()?.into_iter().filter(|(vm, _)| *vm != self.vm).collect();
            if others.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(begun.elapsed() < RECOVERY, "nobody was told of {others:?}");
            std::thread::sleep(TRY_AGAIN);
        }
    }

    fn ready_snapshots(&self) -> Result<Vec<String>> {
        let all = self.api.snapshots()?.into_iter();
        Ok(all.filter(|(_, state)| state == "ready").map(|(id, _)| id).collect())
    }

    fn look(&self, vm: &str) -> Result<Words> {
        let said = self.api.exec(vm, "cat /root/kept; cat /run/mark 2>/dev/null || echo none")?;
        let mut lines = said.lines().map(str::to_owned);
        let (kept, memory) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
        Ok(Words { kept, memory })
    }

    /// Waits until control and the supervisor are there again. Control's list does not need the supervisor, but what
    /// is left over does not go without it.
    fn await_house(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let there = self.house.daemon("vmm").and_then(|_| self.house.daemon("control"));
            match there.and_then(|_| Ok(self.api.vms()?)) {
                Ok(_) => return Ok(()),
                Err(error) => {
                    anyhow::ensure!(begun.elapsed() < RECOVERY, "the house does not come back: {error:#}")
                }
            }
            std::thread::sleep(TRY_AGAIN);
        }
    }
}

fn perform(api: &Api, act: Act, target: &str) -> Given {
    match act {
        Act::Suspend => api.tell(target, "suspend").map(|_| Vec::new()),
        Act::Snapshot => api.snapshot(target).map(|snapshot| vec![snapshot]),
        Act::Fork => api.fork(target, CHILDREN),
        Act::Resume => api.tell(target, "start").map(|_| Vec::new()),
        Act::DeleteRunning | Act::DeleteAsleep => api.delete(target).map(|_| Vec::new()),
        Act::DeleteSnapshot => api.delete_snapshot(target).map(|_| Vec::new()),
    }
}
