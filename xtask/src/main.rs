//! Repository checks and image building.

fn main() {}
