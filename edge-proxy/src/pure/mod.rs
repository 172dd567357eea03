//! What is decided about bytes alone: no clock, file, socket or task.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod authority;
pub mod forwarded;
pub mod frames;
pub mod head;
pub mod page;
pub mod question;
pub mod redirect;
