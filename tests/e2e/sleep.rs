//! VMs that sleep, wake, are forked and copied, by the public SDK unchanged, and nothing left behind.

use anyhow::Result;
use tests::house::House;
use tests::traces::Traces;

#[test]
fn machines_sleep_wake_and_multiply_and_leave_nothing() -> Result<()> {
    let house = House::start()?;
    let before = Traces::take(&house.data())?;
    house.sdk("sleep.mjs", &[])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}
