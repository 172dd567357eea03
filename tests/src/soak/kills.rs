//! One who kills the daemons of a house, each once a minute, one after the other.

use super::journal::{Follower, Kill};
use super::memory::Memory;
use super::verdict::BACK_WAIT;
use crate::chance::Chance;
use crate::house::{DAEMONS, House};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// In which each daemon is killed once.
const ROUND: Duration = Duration::from_secs(60);
/// Between two looks at memory, at what runs, and at what the clients have come to: none of it tells.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
const MEMORY_EVERY: Duration = Duration::from_secs(2);
/// Longest until a killed daemon has a successor.
const SUCCESSOR_WAIT: Duration = Duration::from_secs(60);

/// Kills, and looks at memory, from when the file `begun` in the folder is there until the file `over` is. Makes the file
/// `round` when each daemon was killed, and `spared` when none will be any more. After each death both doors must have
/// answered before the next, or the time for it is over.
///
/// # Errors
/// When a daemon does not come back, or a file cannot be made or read.
pub fn kill_between(
    house: &House,
    chance: &mut Chance,
    kills: bool,
    folder: &Path,
    given_up: impl Fn() -> bool,
) -> Result<(Vec<Kill>, Memory)> {
    let (mut done, mut memory) = (Vec::new(), Memory::default());
    let (begun, over) = (folder.join("begun"), folder.join("over"));
    while !begun.exists() && !given_up() {
        std::thread::sleep(LOOK_AGAIN);
    }
    let mut journal = Follower::open(&folder.join("journal"))?;
    let mut waiting = Vec::new();
    let mut looked = Instant::now();
    let pace = ROUND / u32::try_from(DAEMONS.len())?;
    let mut next = Instant::now() + pace;
    while !over.exists() && !given_up() {
        std::thread::sleep(LOOK_AGAIN);
        if looked.elapsed() >= MEMORY_EVERY {
            memory.look(house);
            looked = Instant::now();
        }
        if done.len() >= DAEMONS.len() || !kills {
            std::fs::write(folder.join("round"), "")?;
        }
        if kills && Instant::now() >= next && recovered(done.last(), &mut journal)? {
            if waiting.is_empty() {
                waiting = shuffled(chance);
            }
            let daemon = waiting.pop().context("no daemon")?;
            done.push(kill(house, daemon)?);
            next = Instant::now() + pace;
        }
    }
    std::fs::write(folder.join("spared"), "")?;
    Ok((done, memory))
}

fn recovered(last: Option<&Kill>, journal: &mut Follower) -> Result<bool> {
    let Some(kill) = last else { return Ok(true) };
    let answered = journal.answered()?.into_iter().all(|asked| asked >= kill.back);
    Ok(answered || now()? > kill.at + BACK_WAIT)
}

/// Milliseconds since 1970.
///
/// # Errors
/// When the clock is before that.
pub fn now() -> Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

fn kill(house: &House, daemon: &'static str) -> Result<Kill> {
    let old = house.daemon(daemon)?;
    let at = now()?;
    kill_process(Pid::from_raw(old).context("no such process id")?, Signal::KILL)?;
    let begun = Instant::now();
    while house.daemon(daemon).map_or(true, |new| new == old) {
        ensure!(begun.elapsed() < SUCCESSOR_WAIT, "{daemon} did not come back after it was killed");
        std::thread::sleep(LOOK_AGAIN);
    }
    println!("killed {daemon}");
    Ok(Kill { daemon, at, back: now()? })
}

/// All daemons in an order of chance. One that is killed last in a round and first in the next lives for a short time.
fn shuffled(chance: &mut Chance) -> Vec<&'static str> {
    let mut left = DAEMONS.to_vec();
    let mut order = Vec::new();
    while !left.is_empty() {
        let place = usize::try_from(chance.below(left.len() as u64)).unwrap_or(0);
        order.push(left.swap_remove(place));
    }
    order
}
