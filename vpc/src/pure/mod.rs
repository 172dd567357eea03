#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
//! Decisions without clock, file, socket or task: what is wanted, what must be done, which rules, which names.

pub mod bucket;
pub mod dhcp;
pub mod dns;
pub mod firewall;
pub mod flow;
pub mod names;
pub mod netlink;
pub mod plan;
pub mod reach;
pub mod rules;
pub mod schedule;
pub mod sides;
pub mod sleepers;
pub mod transfer;
pub mod wanted;
pub mod ways;
pub mod zone;
