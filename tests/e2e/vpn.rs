//! A computer outside joins a VPC: with the public SDK unchanged, kernel WireGuard and wireguard-go, and by
//! `gatehouse vpn up`. Services beside the VMs join it too. Nothing stays behind.

use anyhow::{Context, Result, ensure};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tests::house::{House, Wishes};
use tests::traces::Traces;

/// Longest that anything is waited for here.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the computer reaches the house: an address that is in no network but the test's own.
const OUTSIDE: &str = "192.0.2.1";

/// A namespace that is another computer. Dropping it removes it.
struct Computer(String);

impl Computer {
    fn new(name: &str, place: u8) -> Result<Self> {
        let computer = Self(name.to_owned());
        sh(&format!(
            "ip netns add {name} && ip -n {name} link set lo up &&
             ip link add {name} type veth peer name eth0 netns {name} && ip link set {name} up &&
             ip addr add {OUTSIDE}/32 dev {name} && ip route add 192.0.2.{place}/32 dev {name} &&
             ip -n {name} addr add 192.0.2.{place}/32 dev eth0 && ip -n {name} link set eth0 up &&
             ip -n {name} route add {OUTSIDE}/32 dev eth0 scope link"
        ))?;
        Ok(computer)
    }

    fn run(&self, words: &str) -> Result<bool> {
        Ok(Command::new("ip")
            .args(["netns", "exec", &self.0, "sh", "-c", words])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?
            .success())
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        if let Err(error) = sh(&format!("ip netns del {0}; ip link del {0} 2>/dev/null; true", self.0)) {
            eprintln!("namespace {} stays: {error:#}", self.0);
        }
    }
}

fn sh(script: &str) -> Result<()> {
    let status = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

fn eventually(what: &str, mut check: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    while !check()? {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(begun.elapsed())
}

fn house() -> Result<House> {
    House::start_with(Wishes { vpn_host: Some(OUTSIDE.to_owned()), ..Wishes::default() })
}

#[test]
fn a_laptop_joins_with_the_file_of_the_sdk() -> Result<()> {
    let laptop = Computer::new("laptop", 2)?;
    let house = house()?;
    let before = Traces::take(&house.data())?;
    house.sdk("vpn.mjs", &[("CLIENT", laptop.0.clone())])?;
    for vpc in house.json(&["vpc", "list"])?["vpcs"].as_array().context("a list")? {
        house.gatehouse(&["vpc", "delete", vpc["vpcId"].as_str().context("an id")?])?;
    }
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

/// `gatehouse vpn up` and `vpc join` with programs that measure, while the daemons are killed.
#[test]
fn tunnels_and_services_outlive_the_daemons() -> Result<()> {
    let (laptop, database) = (Computer::new("laptop", 2)?, Computer::new("database", 3)?);
    let house = house()?;
    let before = Traces::take(&house.data())?;
    let made = house.json(&["vpc", "create", "--cidr", "10.77.0.0/24", "--name", "work"])?;
    let vpc = made["vpcId"].as_str().context("an id")?.to_owned();
    let joined =
        house.json(&["vpc", "join", &vpc, "--name", "db", "--ip", "10.77.0.20", "--netns", &database.0])?;
    ensure!(joined["ipv4"] == "10.77.0.20", "{joined}");
    let vm = house.json(&["vm", "create", "--vpc", &vpc, "--ip", "10.77.0.10", "--idle-timeout", "never"])?;
    let vm = vm["id"].as_str().context("an id")?.to_owned();
    ensure!(database.run("ping -c 3 -W 5 10.77.0.10")?, "the service reaches the VM");
    house.gatehouse(&["vm", "exec", &vm, "--", "ping", "-c", "2", "-W", "5", "db.vpc.internal"])?;

    let mut serving = inside(&database, &["iperf3", "--server", "--one-off", "--bind", "10.77.0.20"])?;
    let config = house.gatehouse(&["vpn", "config", &vpc])?.stdout;
    let file = house.data().join("../gh0.conf");
    std::fs::write(&file, config)?;
    let quick = |word: &str| laptop.run(&format!("wg-quick {word} {} 2>&1", file.display()));
    ensure!(quick("up")?, "wg-quick up");
    eventually("the tunnel works", || laptop.run("ping -c 1 -W 2 10.77.0.20"))?;
    let mut load =
        inside(&laptop, &["iperf3", "--client", "10.77.0.20", "--time", "70", "--connect-timeout", "20000"])?;
    eventually("the transfer is under way", || {
        database.run("ss -Htn state established '( sport = :5201 )' | awk '{ n++ } END { exit n < 2 }'")
    })?;
    let flows = |name: &str| laptop.run(&format!("ping -c 1 -W 1 {name}"));
    for name in ["vpn", "vpc", "control", "vpn", "vpc"] {
        let old = house.daemon(name)?;
        let pid = rustix::process::Pid::from_raw(old).context("a number")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        if name == "vpc" {
            // The datapath is the kernel's and misses nobody.
            ensure!(
                database.run("ping -c 5 -i 0.2 -W 1 -q 10.77.0.10 | grep -q ' 0% packet loss'")?,
                "a packet is lost"
            );
        }
        let back = eventually("the tunnel resumes", || flows("10.77.0.20"))?;
        println!("{name} killed: the tunnel answers after {} ms", back.as_millis());
        eventually("there is a successor", || Ok(house.daemon(name).is_ok_and(|pid| pid != old)))?;
    }
    let ended = load.wait()?;
    ensure!(ended.success() && serving.wait()?.success(), "one TCP connection lives through all: {ended}");
    ensure!(quick("down")?, "wg-quick down");
    let listed = house.json(&["vpn", "sessions", &vpc])?;
    let session = listed["sessions"][0]["sessionId"].as_str().context("a session")?.to_owned();
    house.gatehouse(&["vpn", "close", &vpc, &session])?;

    house.gatehouse(&["vpc", "leave", &vpc, "db"])?;
    eventually("who left is not reached", || Ok(!database.run("ping -c 1 -W 1 10.77.0.10")?))?;
    house.gatehouse(&["vm", "delete", &vm])?;
    house.gatehouse(&["vpc", "delete", &vpc])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

fn inside(computer: &Computer, words: &[&str]) -> Result<Child> {
    let child = Command::new("ip")
        .args(["netns", "exec", &computer.0])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    Ok(child)
}

/// A person's way in: it ends with Ctrl-C, and its session with it.
#[test]
fn vpn_up_ends_with_its_session() -> Result<()> {
    // Its host has the address that the house is reached at.
    let _other = Computer::new("laptop", 2)?;
    let house = house()?;
    let before = Traces::take(&house.data())?;
    let made = house.json(&["vpc", "create", "--cidr", "10.78.0.0/24"])?;
    let vpc = made["vpcId"].as_str().context("an id")?.to_owned();
    let mut up = house.spawn(&["vpn", "up", &vpc])?;
    let sessions = || -> Result<usize> {
        Ok(house.json(&["vpn", "sessions", &vpc])?["sessions"].as_array().context("a list")?.len())
    };
    eventually("the session is live", || {
        Ok(sessions()? == 1 && sh("wg show all latest-handshakes | grep -q '[1-9]$'").is_ok())
    })?;
    let pid = rustix::process::Pid::from_child(&up);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let ended = up.wait()?;
    ensure!(ended.signal().is_none(), "it ends by itself: {ended}");
    ensure!(sessions()? == 0 && sh("test -z \"$(wg show interfaces)\"").is_ok(), "session or device stay");
    house.gatehouse(&["vpc", "delete", &vpc])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}
