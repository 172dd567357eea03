//! Whose everything is: each file, process and device of a house belongs to a VM or snapshot that its API knows.

use crate::api::Api;
use crate::traces::{lines, machine_processes};
use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest until what a crash left is gone: control looks again each 30 s, and twice may be needed.
const TIDY_WAIT: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// The namespace of the default network.
const NETWORK: &str = "gh-default";

/// Waits until nothing is left over, and no VM is between two states. Returns the VMs and their states.
///
/// # Errors
/// With what is left over after [`TIDY_WAIT`].
pub fn await_all_owned(api: &Api, data: &Path) -> Result<Vec<(String, String)>> {
    let begun = Instant::now();
    loop {
        let looked = look(api, data);
        match looked {
            Ok((vms, left)) if left.is_empty() => return Ok(vms),
            Ok((vms, left)) => {
                anyhow::ensure!(begun.elapsed() < TIDY_WAIT, "left over: {left:#?} beside {vms:?}");
            }
            // The API may be away, and files go while they are looked at.
            Err(error) => {
                anyhow::ensure!(begun.elapsed() < TIDY_WAIT, "cannot look: {error:#}");
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

type Look = (Vec<(String, String)>, Vec<String>);

fn look(api: &Api, data: &Path) -> Result<Look> {
    let (vms, snapshots, mut left) = (api.vms()?, api.snapshots()?, Vec::new());
    for (vm, state) in &vms {
        if !matches!(state.as_str(), "running" | "suspended" | "stopped" | "lost") {
            left.push(format!("{vm} is {state}"));
        }
    }
    for (snapshot, state) in &snapshots {
        if state == "building" {
            left.push(format!("{snapshot} is {state}"));
        }
    }
    let known: BTreeSet<&str> = vms.iter().map(|(vm, _)| vm.as_str()).collect();
    for name in names(&data.join("vms"))? {
        if !known.contains(name.as_str()) {
            left.push(format!("folder of no VM: {name}"));
        }
    }
    let ready = snapshots.iter().filter(|(_, state)| state == "ready").map(|(id, _)| id.as_str());
    let ready: BTreeSet<&str> = ready.collect();
    for name in names(&data.join("snapshots"))? {
        if !ready.contains(name.as_str()) {
            left.push(format!("folder of no snapshot: {name}"));
        }
        left.extend(unowned_layers(&data.join("snapshots").join(&name))?);
    }
    for (vm, state) in &vms {
        left.extend(unowned_files(&data.join("vms").join(vm), state)?);
    }
    let running = vms.iter().filter(|(_, state)| state == "running").count();
    let processes = machine_processes()?;
    if processes.len() != running {
        left.push(format!("{running} VMs run, and the processes {processes:?}"));
    }
    let taps = lines("ip", &["-netns", NETWORK, "-o", "link", "show", "type", "tun"])?;
    if taps.len() > vms.len() {
        left.push(format!("{} VMs, and the devices {taps:#?}", vms.len()));
    }
    Ok((vms, left))
}

/// Files of a VM that nothing of it is going to use. The state that it went on from last is still mapped.
fn unowned_files(home: &Path, state: &str) -> Result<Vec<String>> {
    let mut left = Vec::new();
    if !home.exists() {
        return Ok(left);
    }
    for name in names(home)? {
        let remains = name.starts_with("copy.")
            || Path::new(&name).extension().is_some_and(|end| end == "new")
            || name == "suspended" && state == "running";
        if remains {
            left.push(format!("of a VM that is {state}: {}", home.join(name).display()));
        }
    }
    // What a crash left of a disk goes when the disk is opened.
    if state == "running" {
        left.extend(unowned_layers(home)?);
    }
    Ok(left)
}

/// Layers in a folder that its disk's manifest does not name.
fn unowned_layers(folder: &Path) -> Result<Vec<String>> {
    let manifest = fs::read(folder.join("disk.json")).with_context(|| folder.display().to_string())?;
    let manifest: Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
    let named: BTreeSet<&str> = layers.iter().chain([&manifest["top"]]).filter_map(Value::as_str).collect();
    let names = names(folder)?;
    let unowned = names.iter().filter(|name| name.starts_with("layer-"));
    let unowned = unowned.filter(|name| !named.contains(name.trim_end_matches(".map")));
    Ok(unowned.map(|name| format!("layer of no disk: {}", folder.join(name).display())).collect())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}
