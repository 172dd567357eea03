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
    for vpc in vpcs {
        house.gatehouse(&["vpc", "delete", vpc["vpcId"].as_str().context("an id")?])?;
    }
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}
