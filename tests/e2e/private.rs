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
    for id in ids {
        house.gatehouse(&["vpc", "delete", id])?;
    }
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
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
    let found = house.gatehouse(&["vm", "exec", vm, "--", "getent", "hosts", &name])?;
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
