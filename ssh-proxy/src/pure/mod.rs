//! What decides: no clock, socket, file or task in here. Time and randomness are arguments, effects are returned.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod bridge;
pub mod name;
pub mod packet;
pub mod throttle;
pub mod visitors;
