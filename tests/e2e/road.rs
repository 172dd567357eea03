//! One request through the whole house, with the public SDK unchanged, and nothing left behind.

use anyhow::Result;
use tests::house::House;
use tests::traces::Traces;

#[test]
fn the_sdk_makes_a_machine_serves_a_page_and_leaves_nothing() -> Result<()> {
    let house = House::start()?;
    let before = Traces::take(&house.data())?;
    house.sdk("road.mjs", &[])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.sdk("commands.mjs", &[])?;
    assert_eq!(
        Traces::take(&house.data())?.beyond(&before),
        Vec::<&str>::new(),
        "left behind by the command line"
    );
    house.stop()
}
