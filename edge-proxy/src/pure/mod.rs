//! What is decided about bytes alone: no clock, file, socket or task.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod again;
pub mod authority;
pub mod browser;
pub mod chunks;
pub mod flood;
pub mod forwarded;
pub mod frames;
pub mod head;
pub mod limit;
pub mod meters;
pub mod pace;
pub mod page;
pub mod proxy_header;
pub mod question;
pub mod redirect;
pub mod spans;
pub mod trace;
pub mod trailers;
