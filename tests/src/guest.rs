//! What the long tests put into a Debian guest, and how they look at it.

use crate::api::Api;
use crate::house::repository;
use anyhow::{Context, Result};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Longest until a unit of the guest has begun or a burden has done one more round, under emulation.
const PATIENCE: Duration = Duration::from_secs(600);
/// Where the guest has the tools.
const TOOLS: &str = "/opt/tools";
/// How much of its CPU a guest gives each burden: four guests at once must leave the bed's one CPU time for the house.
const SHARE: &str = "10%";
/// The burdens: programs that compute or write, and check that.
pub const BURDENS: [&str; 2] = ["stress", "fio"];
/// All that this prints is a complaint.
const COMPLAINTS: &str = "for what in stress fio; do cat /run/burden.$what.failed 2>/dev/null; done; \
    for unit in UNITS; do systemctl is-active --quiet $unit || echo \"$unit is not active\"; done; \
    dmesg | grep -E 'Oops|BUG:|I/O error|EXT4-fs (error|warning)|segfault|Out of memory'; true";

/// Waits until the guest has booted to its end, and starts the witness in it.
///
/// # Errors
/// When it does not run.
pub fn begin_witness(api: &Api, vm: &str) -> Result<()> {
    api.exec(vm, "until systemctl is-system-running --wait 2>/dev/null | grep -qE 'running|degraded'; do sleep 1; done")?;
    let source = repository().join("tests/e2e/guest/witness.py");
    api.write_text(vm, "/root/witness.py", &std::fs::read_to_string(source)?)?;
    api.exec(
        vm,
        "systemd-run --quiet --unit=witness python3 /root/witness.py /root/unsynced /run/in-memory && \
         until ss -Hltn 'sport = :8090' | grep -q LISTEN; do systemctl is-active --quiet witness || exit 1; sleep 0.2; done",
    )?;
    Ok(())
}

/// Starts the burdens, with the tools that this host has installed.
///
/// # Errors
/// When they do not run.
pub fn begin_burdens(api: &Api, vm: &str) -> Result<()> {
    let guest = repository().join("tests/e2e/guest");
    let bundle = Command::new(guest.join("bundle.sh"))
        .args(["stress-ng", "fio"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    anyhow::ensure!(bundle.status.success(), "the tools cannot be bundled");
    api.write_base64(vm, "/root/tools.tar.gz", &String::from_utf8(bundle.stdout)?)?;
    api.exec(
        vm,
        &format!("mkdir -p {TOOLS} && tar -C {TOOLS} -xzf /root/tools.tar.gz && rm /root/tools.tar.gz"),
    )?;
    let script = std::fs::read_to_string(guest.join("burden.sh"))?;
    api.write_text(vm, &format!("{TOOLS}/burden.sh"), &script)?;
    for what in BURDENS {
        let unit = format!("systemd-run --quiet --unit=burden-{what} -p CPUQuota={SHARE} --nice=10");
        api.exec(vm, &format!("{unit} bash {TOOLS}/burden.sh {TOOLS} {what}"))?;
        await_round(api, vm, what)?;
    }
    Ok(())
}

/// Waits until a burden has ended one more round well; returns its number.
///
/// # Errors
/// When it fails, or does not.
pub fn await_round(api: &Api, vm: &str, what: &str) -> Result<u64> {
    let rounds = || -> Result<u64> {
        let said = api.exec(vm, &format!("cat /run/burden.{what}.failed >&2 2>/dev/null && exit 1; cat /run/burden.{what} 2>/dev/null || echo 0"))?;
        said.trim().parse().with_context(|| format!("burden {what} counts {said:?}"))
    };
    let (first, begun) = (rounds()?, Instant::now());
    loop {
        let now = rounds()?;
        if now > first {
            return Ok(now);
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "burden {what} is stuck at round {now}");
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Looks for anything that went wrong in the guest: burdens that failed, units that ended, words of the kernel.
///
/// # Errors
/// With what was found.
pub fn check_complaints(api: &Api, vm: &str, burdened: bool) -> Result<()> {
    let units = if burdened { "witness burden-stress burden-fio" } else { "witness" };
    let said = api.exec(vm, &COMPLAINTS.replace("UNITS", units))?;
    anyhow::ensure!(said.trim().is_empty(), "{vm} complains: {said}");
    Ok(())
}

/// Has the guest read its files from the disk again, and not from memory.
///
/// # Errors
/// When it cannot.
pub fn forget_caches(api: &Api, vm: &str) -> Result<()> {
    api.exec(vm, "sync && echo 3 >/proc/sys/vm/drop_caches").map(drop)
}
