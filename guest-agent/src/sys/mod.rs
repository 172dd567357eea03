//! The few kernel calls that no safe library offers.

pub mod entropy;
pub mod ext4;
pub mod identity;
#[cfg(test)]
pub mod namespace;
pub mod signal;
