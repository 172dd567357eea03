//! A customer's domain, from nothing to HTTPS: with the public SDK and command line unchanged, a real name server as the
//! world's DNS, and a real certificate authority.

use anyhow::Result;
use tests::house::{House, Wishes};
use tests::traces::Traces;
use tests::world::World;

#[test]
fn a_domain_is_proved_mapped_certified_and_served() -> Result<()> {
    let world = World::start_with_delegation()?;
    let house = House::start_with(Wishes { settings: Some(world.settings()), ..Wishes::default() })?;
    let before = Traces::take(&house.data())?;
    house.sdk("domains.mjs", &world.environment())?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}
