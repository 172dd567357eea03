//! Memory and descriptors of a house's processes over their lives.

use crate::house::{DAEMONS, House};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

/// A life counts from here on: a process that begins takes what it needs.
const YOUTH: Duration = Duration::from_secs(20);
/// How much more memory, in KiB, a process may have at the end of a life than when its youth was over, and than a life
/// before it had: what a crowd of connections takes and an allocator keeps for the next.
pub const MEMORY_BOUND: u64 = 24 * 1024;
/// The same of descriptors: those of the connections that the load has open at the moment, and kept ones.
pub const DESCRIPTORS_BOUND: u64 = 64;

/// What a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Resident, in KiB.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

/// A process, from when it was grown up.
#[derive(Clone, Debug)]
struct Life {
    pid: i32,
    since: Instant,
    grown: Option<Size>,
    last: Option<Size>,
}

/// All lives of all processes of a house.
#[derive(Debug, Default)]
pub struct Memory(BTreeMap<&'static str, Vec<Life>>);

impl Memory {
    /// Looks at what runs. A process may end meanwhile; then it is not seen this time.
    pub fn look(&mut self, house: &House) {
        let daemons = DAEMONS.into_iter().filter_map(|name| Some((name, house.daemon(name).ok()?)));
        for (name, pid) in daemons.chain([("gatehouse", house.pid())]) {
            if let Ok(size) = size(pid) {
                self.see(name, pid, size, Instant::now());
            }
        }
    }

    fn see(&mut self, name: &'static str, pid: i32, size: Size, now: Instant) {
        let lives = self.0.entry(name).or_default();
        if lives.last().is_none_or(|life| life.pid != pid) {
            lives.push(Life { pid, since: now, grown: None, last: None });
        }
        if let Some(life) = lives.last_mut()
            && now.duration_since(life.since) >= YOUTH
        {
            life.grown.get_or_insert(size);
            life.last = Some(size);
        }
    }

    /// Who grew.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, lives) in &self.0 {
            let spans: Vec<(Size, Size)> = lives.iter().filter_map(Life::span).collect();
            let Some((first, _)) = spans.first() else {
                faults.push(format!("{name} was never seen grown up, in {} lives", lives.len()));
                continue;
            };
            // What is kept on disk must not make each life larger than the one before.
            let of_lives = spans.iter().map(|(grown, _)| (*first, *grown));
            for (before, after) in spans.iter().copied().chain(of_lives) {
                if after.memory > before.memory + MEMORY_BOUND
                    || after.descriptors > before.descriptors + DESCRIPTORS_BOUND
                {
                    faults.push(format!("{name} grew: {before} and then {after}"));
                }
            }
        }
        faults
    }
}

impl Life {
    fn span(&self) -> Option<(Size, Size)> {
        Some((self.grown?, self.last?))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, lives) in &self.0 {
            let spans: Vec<(Size, Size)> = lives.iter().filter_map(Life::span).collect();
            let (first, last) = (spans.first(), spans.last());
            if let (Some((first, _)), Some((_, last))) = (first, last) {
                writeln!(out, "{name}: {} lives; at first {first}, at last {last}", lives.len())?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} KiB, {} descriptors", self.memory, self.descriptors)
    }
}

fn size(pid: i32) -> Result<Size> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has ended")?;
    let memory = resident.trim().trim_end_matches(" kB").parse()?;
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(Size { memory, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lives(sizes: &[(i32, u64, u64)]) -> Memory {
        let (mut memory, mut now) = (Memory::default(), Instant::now());
        for (pid, megabytes, descriptors) in sizes {
            memory.see("control", *pid, Size { memory: megabytes * 1024, descriptors: *descriptors }, now);
            now += YOUTH;
        }
        memory
    }

    #[test]
    fn what_grows_in_a_life_or_from_life_to_life_is_told() {
        let flat = lives(&[(1, 10, 9), (1, 30, 9), (1, 33, 20), (2, 9, 9), (2, 35, 9), (2, 31, 9)]);
        assert!(flat.faults().is_empty(), "{:?}", flat.faults());
        assert_eq!(lives(&[(1, 10, 9), (1, 30, 9), (1, 60, 9)]).faults().len(), 1, "more memory");
        assert_eq!(lives(&[(1, 10, 9), (1, 30, 9), (1, 30, 99)]).faults().len(), 1, "more descriptors");
        let each = lives(&[(1, 10, 9), (1, 30, 9), (2, 10, 9), (2, 50, 9), (3, 10, 9), (3, 70, 9)]);
        assert_eq!(each.faults().len(), 1, "each life begins with more: {:?}", each.faults());
        assert_eq!(lives(&[(1, 10, 9), (2, 10, 9)]).faults().len(), 1, "none lived long enough");
        assert!(size(std::process::id().cast_signed()).is_ok_and(|size| size.memory > 0));
    }
}
