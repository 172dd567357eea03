//! Six VMs made at once, each with a page of its own, deleted at once.

use anyhow::Result;
use tests::house::House;
use tests::traces::Traces;

#[test]
fn six_at_once_serve_their_own_pages_and_leave_nothing() -> Result<()> {
    let house = House::start()?;
    let before = Traces::take(&house.data())?;
    house.sdk("six.mjs", &[])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}
