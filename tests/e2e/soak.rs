//! Mixed load on the whole house, with VMs that sleep and wake, names that move, certificates that are renewed, and each
//! daemon killed once a minute: nobody is answered by another VM than the name leads to, no acknowledged write is lost,
//! nothing fails but what a killed door held, and no process grows.
//!
//! SOAK_SECONDS says how long, SEED repeats a run's choices, KILLS=0 leaves the daemons alone.

use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tests::chance::{Chance, count};
use tests::house::{DAEMONS, House, Wishes};
use tests::soak::{journal, kills, verdict};
use tests::traces::Traces;
use tests::world::World;

/// When `SOAK_SECONDS` does not say.
const SECONDS: u64 = 180;
/// How long certificates live: renewed at half of it, and there is time for two tries of which the first fails.
const LIFE: Duration = Duration::from_secs(240);
/// One of so many requests may find that its VM does not answer in the time that the house gives it, in the bed alone: there
/// a VM stands still for seconds while its memory is written, and its sshd takes a dozen for a login.
const SILENT_OF: u64 = 10;

#[test]
fn mixed_load_beside_deaths_is_answered_rightly_and_nothing_grows() -> Result<()> {
    let (seconds, mut chance) = (count("SOAK_SECONDS", SECONDS)?, Chance::from_environment()?);
    let kills = count("KILLS", 1)? != 0;
    let world = World::start(Some(LIFE))?;
    let wishes = Wishes { ssh: true, memory_mib: 256, settings: Some(world.settings()), ..Wishes::default() };
    let house = House::start_with(wishes)?;
    let before = Traces::take(&house.data())?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let mut environment = world.environment();
    environment.extend([
        ("SOAK_SECONDS", seconds.to_string()),
        ("SOAK_SEED", chance.below(u64::from(u32::MAX)).to_string()),
        ("SOAK_FOLDER", folder.path().to_string_lossy().into_owned()),
    ]);
    let ended = AtomicBool::new(false);
    let (load, killed) = std::thread::scope(|scope| {
        let (house, ended) = (&house, &ended);
        let folder = folder.path();
        let killer = scope.spawn(move || {
            let ended = || ended.load(Ordering::Relaxed);
            kills::kill_between(house, &mut chance, kills, folder, ended)
        });
        let load = house.sdk("soak.mjs", &environment);
        ended.store(true, Ordering::Relaxed);
        (load, killer.join())
    });
    let (killed, memory) = killed.map_err(|_| anyhow::anyhow!("the killer panicked"))??;
    if let Some(kept) = std::env::var_os("OUT") {
        std::fs::copy(at("journal"), Path::new(&kept).join("journal"))?;
    }
    let verdict = verdict::judge(&journal::read(&at("journal"))?, &killed);
    println!("{verdict}\n{} kills\n{memory}", killed.len());
    let mut faults: Vec<String> = verdict.faults.iter().cloned().chain(memory.faults()).collect();
    let silent = if std::env::var_os("BED").is_some() { verdict.total() / SILENT_OF } else { 0 };
    if verdict.silent.len() as u64 > silent {
        faults.extend(verdict.silent.iter().cloned());
    }
    ensure!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(50)]);
    load.context("the load")?;
    for daemon in DAEMONS {
        ensure!(!kills || killed.iter().any(|kill| kill.daemon == daemon), "{daemon} was not killed");
    }
    for what in ["h1", "h2", "socket", "echo", "long", "write", "fresh", "ssh"] {
        ensure!(verdict.answered.get(what).is_some_and(|count| *count > 0), "no {what} was answered");
    }
    ensure!(verdict.slept.iter().all(|count| *count > 0), "not both kinds of sleep: {:?}", verdict.slept);
    ensure!(!verdict.woken.is_empty() && verdict.mapped[1] > 0, "none woke, or no name was taken away");
    ensure!(verdict.renewed.values().all(|count| *count > 0), "not all were renewed: {:?}", verdict.renewed);
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}
