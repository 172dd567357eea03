//! What a house leaves on the host: processes, devices, namespaces, rules, files. Compared before and after.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Longest until a deleted VM's devices, routes and rules are gone, under emulation.
const TIDY_WAIT: Duration = Duration::from_secs(30);

/// Names of everything on this host that a house could have made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks at processes, network devices of all namespaces, namespaces, rules, and the files of VMs and snapshots below
    /// `data`.
    ///
    /// # Errors
    /// When a tool is missing or a folder cannot be read.
    pub fn take(data: &Path) -> Result<Self> {
        let mut names = BTreeSet::new();
        for pid in machine_processes()? {
            names.insert(format!("process {pid}"));
        }
        for namespace in lines("ip", &["netns", "list"])? {
            let namespace = namespace.split_whitespace().next().unwrap_or_default().to_owned();
            for device in lines("ip", &["-netns", &namespace, "-o", "link"])? {
                names.insert(format!("device {namespace} {}", field(&device, 1)));
            }
            for route in lines("ip", &["-netns", &namespace, "route"])? {
                names.insert(format!("route {namespace} {route}"));
            }
            for rule in lines("ip", &["netns", "exec", &namespace, "nft", "list", "ruleset"])? {
                names.insert(format!("rule {namespace} {}", without_counts(&rule)));
            }
            names.insert(format!("namespace {namespace}"));
        }
        for device in lines("ip", &["-o", "link"])? {
            names.insert(format!("device host {}", field(&device, 1)));
        }
        for folder in ["vms", "snapshots"].map(|name| data.join(name)) {
            if folder.exists() {
                for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                    names.insert(format!("file {}", entry?.path().display()));
                }
            }
        }
        Ok(Self(names))
    }

    /// Looks until nothing is here that was not in `before`: the kernel's own tidying ends a moment after the answer.
    ///
    /// # Errors
    /// With what is left after [`TIDY_WAIT`], or when it cannot be looked at.
    pub fn await_none_beyond(before: &Self, data: &Path) -> Result<()> {
        let begun = Instant::now();
        loop {
            let now = Self::take(data)?;
            let left = now.beyond(before);
            if left.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(begun.elapsed() < TIDY_WAIT, "left behind: {left:#?}");
        }
    }

    /// What is here and was not in `before`.
    #[must_use]
    pub fn beyond<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        self.0.difference(&before.0).map(String::as_str).collect()
    }
}

/// Process ids of VMs' own processes (`vmm run`), each of which has a user of its own. Those of root's wait for an order.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn machine_processes() -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process may end between the listing and the look.
        let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let program = words.next().unwrap_or_default();
        if program.rsplit('/').next() == Some("vmm") && words.next().as_deref() == Some("run") {
            let waits = std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|facts| facts.uid() == 0);
            found.extend((!waits).then_some(pid));
        }
    }
    Ok(found)
}

/// What a program prints, by trimmed lines.
///
/// # Errors
/// When it is missing or fails.
pub fn lines(program: &str, arguments: &[&str]) -> Result<Vec<String>> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("{program} is missing"))?;
    anyhow::ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect())
}

fn field(line: &str, place: usize) -> String {
    line.split_whitespace().nth(place).unwrap_or_default().to_owned()
}

/// A rule's counters grow; that is no trace.
fn without_counts(rule: &str) -> String {
    let mut kept = Vec::new();
    for word in rule.split_whitespace() {
        kept.push(if matches!(kept.last(), Some(&"packets" | &"bytes")) { "n" } else { word });
    }
    kept.join(" ")
}
