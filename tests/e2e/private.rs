//! VMs in private networks: who reaches whom, with the public SDK unchanged, and nothing left behind.

use anyhow::{Context, Result, ensure};
use tests::house::House;
use tests::traces::Traces;

#[test]
fn members_reach_each_other_and_nobody_else() -> Result<()> {
    let house = House::start()?;
    let before = Traces::take(&house.data())?;
    house.sdk("private.mjs", &[])?;
    let list = house.json(&["vpc", "list"])?;
    let vpcs = list["vpcs"].as_array().context("a list")?;
    ensure!(vpcs.len() == 2, "{list}");
    let ids: Vec<&str> = vpcs.iter().filter_map(|vpc| vpc["vpcId"].as_str()).collect();
    move_in_and_out(&house, ids[0])?;
    by_ipv6(&house, ids[0])?;
    for id in ids {
        house.gatehouse(&["vpc", "delete", id])?;
    }
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

/// Two members reach each other by the IPv6 addresses of their names, also one that sleeps, and a name outside has none.
fn by_ipv6(house: &House, vpc: &str) -> Result<()> {
    let member = |address: &str| -> Result<String> {
        let words = ["vm", "create", "--vpc", vpc, "--ip", address, "--idle-timeout", "never"];
        Ok(house.json(&words)?["id"].as_str().context("an id")?.to_owned())
    };
    let (one, two) = (member("192.168.10.80")?, member("192.168.10.81")?);
    let exec = |words: &[&str]| -> Result<String> {
        let output = house.gatehouse(&[&["vm", "exec", one.as_str(), "--"], words].concat())?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let name = format!("{two}.vpc.internal");
    // Who speaks IPv6 is looked up every five seconds.
    let patient =
        format!("for i in $(seq 30); do getent ahostsv6 {name} | grep '^fd' && exit; sleep 1; done; exit 1");
    let found = exec(&["sh", "-c", &patient])?;
    let address = found.split_whitespace().next().context("an address")?;
    ensure!(address.starts_with("fd") && address.ends_with("::c0a8:a51"), "192.168.10.81 is in {found}");
    let own = exec(&["ip", "-6", "-o", "address", "show", "scope", "global"])?;
    ensure!(own.contains("::c0a8:a50/128"), "{own}");
    let four = address.rsplit_once("::").map_or(address, |(network, _)| network);
    ensure!(own.contains(four), "one network: {own} {address}");
    for words in [["-c", "3", "-s", "56"], ["-c", "2", "-s", "8000"]] {
        let said = exec(&[&["ping", "-6", "-W", "20"], &words[..], &[name.as_str()]].concat())?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    house.gatehouse(&["vm", "suspend", &two])?;
    // Its name is known while it sleeps, and the first packet wakes it.
    let known = exec(&["getent", "ahostsv6", &name])?;
    ensure!(known.contains(address), "{known}");
    exec(&["ping", "-6", "-c", "1", "-W", "60", address])?;
    let woken = house.json(&["vm", "get", &two])?;
    ensure!(woken["state"] == "running", "{woken}");
    for vm in [one, two] {
        house.gatehouse(&["vm", "delete", &vm])?;
    }
    Ok(())
}

/// A stopped VM moves from the default network into a private one and back; it is reached at each of its addresses.
fn move_in_and_out(house: &House, vpc: &str) -> Result<()> {
    let made = house.json(&["vm", "create", "--idle-timeout", "never"])?;
    let vm = made["id"].as_str().context("an id")?;
    let address = || -> Result<String> {
        let shown = house
            .gatehouse(&["vm", "exec", vm, "--", "ip", "-4", "-o", "address", "show", "scope", "global"])?;
        Ok(String::from_utf8(shown.stdout)?)
    };
    let before = address()?;
    house.gatehouse(&["vm", "stop", vm])?;
    house.gatehouse(&["vpc", "attach", vpc, vm, "--ip", "192.168.10.77"])?;
    house.gatehouse(&["vm", "start", vm])?;
    let inside = address()?;
    ensure!(inside.contains("192.168.10.77"), "{inside}");
    // Its gateway answers from the network that it is in now.
    house.gatehouse(&["vm", "exec", vm, "--", "ping", "-c", "1", "-W", "5", "169.254.1.1"])?;
    let name = format!("{vm}.vpc.internal");
    let found = house.gatehouse(&["vm", "exec", vm, "--", "getent", "ahostsv4", &name])?;
    ensure!(String::from_utf8_lossy(&found.stdout).contains("192.168.10.77"), "{found:?}");
    house.gatehouse(&["vm", "stop", vm])?;
    house.gatehouse(&["vpc", "detach", vpc, vm])?;
    house.gatehouse(&["vm", "start", vm])?;
    let after = address()?;
    ensure!(!after.contains("192.168.10.77") && after.contains("10."), "{before} {after}");
    let route = house.gatehouse(&["vm", "exec", vm, "--", "ip", "route", "get", "192.0.2.1"])?;
    ensure!(String::from_utf8_lossy(&route.stdout).contains("169.254.1.1"), "{route:?}");
    house.gatehouse(&["vm", "delete", vm])?;
    Ok(())
}
