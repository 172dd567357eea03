//! edge-proxy is handed over three times under a running load, and no request fails. Then each daemon is killed in turn
//! under it: only the requests in its hands fail, and it comes back. And
//! when all of them end at once with their keeper, `gatehouse down` clears away what is left.

use anyhow::{Context, Result};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tests::house::{DAEMONS, House};
use tests::load::Load;
use tests::traces::machine_processes;

/// Requests at once. As many may be in a killed process' hands.
const THREADS: usize = 4;
/// Good answers wanted after each kill before the next.
const GOOD_AFTER: u64 = 40;
/// Of edge-proxy, before it is killed.
const HANDOVERS: usize = 3;
/// Between looks for a new process.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest until those are there.
const RECOVERY: Duration = Duration::from_secs(120);

#[test]
fn a_killed_daemon_loses_only_what_it_held() -> Result<()> {
    let house = House::start()?;
    let vm = serve(&house, "something.style.dev", "steady")?;
    let load = Load::start(THREADS, "https://something.style.dev/", &house.ca(), house.https(), "steady")?;
    load.await_good(GOOD_AFTER, RECOVERY)?;
    for number in 1..=HANDOVERS {
        let before = load.tally();
        let old = pidfd_open(process(house.daemon("edge-proxy")?)?, PidfdFlags::empty())?;
        let told = house.gatehouse(&["reload"])?;
        load.await_good(GOOD_AFTER, RECOVERY).with_context(|| format!("after handover {number}"))?;
        await_end(&old)?;
        let lost = load.tally().failed() - before.failed();
        println!("handover {number}: {lost} requests lost; {}", String::from_utf8_lossy(&told.stdout).trim());
        assert_eq!(lost, 0, "{:?}", load.tally().bad);
    }
    for name in DAEMONS {
        let before = load.tally();
        let old = house.daemon(name)?;
        kill(old)?;
        let new = await_successor(&house, name, old)?;
        load.await_good(GOOD_AFTER, RECOVERY).with_context(|| format!("after the death of {name}"))?;
        let lost = load.tally().failed() - before.failed();
        println!(
            "{name}: {old} -> {new}, {lost} requests lost of {}",
            load.tally().good - before.good + lost
        );
        let allowed = if name == "edge-proxy" { THREADS as u64 } else { 0 };
        assert!(lost <= allowed, "{name}: {lost} requests failed: {:?}", load.tally().bad);
        // The house's own commands work again, through all of it.
        let answer = house.gatehouse(&["vm", "exec", &vm, "--", "echo", "alive"])?;
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "alive\n", "exec after the death of {name}");
    }
    let tally = load.stop();
    println!("{} good, {} failed: {:?}", tally.good, tally.failed(), tally.bad);
    let machines = machine_processes()?;
    assert_eq!(machines.len(), 1, "the machine lived through it all");
    kill(machines[0])?;
    await_state(&house, &vm, "stopped")?;
    house.gatehouse(&["vm", "delete", &vm])?;
    assert!(machine_processes()?.is_empty());
    house.stop()
}

#[test]
fn a_house_whose_keeper_was_killed_is_closed_by_down() -> Result<()> {
    let house = House::start()?;
    house.json(&["vm", "create"])?;
    assert_eq!(machine_processes()?.len(), 1);
    house.kill_and_clear()
}

/// Makes a VM that serves `page` at `host`; returns its id.
fn serve(house: &House, host: &str, page: &str) -> Result<String> {
    let made = house.json(&["vm", "create"])?;
    let vm = made.get("id").and_then(Value::as_str).context("a VM without an id")?.to_owned();
    let script = format!(
        "mkdir -p /srv/page && printf %s '{page}' >/srv/page/index.html && \
         systemd-run --unit=page --working-directory=/srv/page python3 -m http.server 8080 && \
         curl -sf --retry 600 --retry-connrefused --retry-delay 1 -o /dev/null http://127.0.0.1:8080/"
    );
    house.gatehouse(&["vm", "exec", &vm, "--", "sh", "-c", &script])?;
    house.gatehouse(&["domains", "map", host, "--vm", &vm, "--port", "8080"])?;
    Ok(vm)
}

fn kill(pid: i32) -> Result<()> {
    let pid = process(pid)?;
    let watch = pidfd_open(pid, PidfdFlags::empty())?;
    kill_process(pid, Signal::KILL)?;
    await_end(&watch)
}

fn process(pid: i32) -> Result<Pid> {
    Pid::from_raw(pid).context("no such process id")
}

fn await_end(process: &OwnedFd) -> Result<()> {
    let mut events = [rustix::event::PollFd::new(process, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut events, None)?;
    Ok(())
}

/// Waits for the next process of that name; the kernel has no event for a child of another, so this looks again.
fn await_successor(house: &House, name: &str, old: i32) -> Result<i32> {
    let begun = Instant::now();
    loop {
        match house.daemon(name) {
            Ok(new) if new != old => return Ok(new),
            Ok(_) | Err(_) if begun.elapsed() < RECOVERY => std::thread::sleep(LOOK_AGAIN),
            Ok(_) => anyhow::bail!("{name} is still the old process"),
            Err(error) => return Err(error.context(format!("{name} did not come back"))),
        }
    }
}

fn await_state(house: &House, vm: &str, wanted: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let info = house.json(&["vm", "get", vm])?;
        if info.get("state").and_then(Value::as_str) == Some(wanted) {
            return Ok(());
        }
        anyhow::ensure!(begun.elapsed() < RECOVERY, "the VM did not become {wanted}: {info}");
    }
}
