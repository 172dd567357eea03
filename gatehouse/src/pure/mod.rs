//! Decisions without effects: what the house's keeper does when something happens.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod reload;
pub mod roster;
