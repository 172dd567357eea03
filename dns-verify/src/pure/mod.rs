//! What is decided without a socket or a clock.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod address;
pub mod message;
pub mod name;
pub mod proof;
pub mod walk;

#[cfg(test)]
mod walk_tests;
