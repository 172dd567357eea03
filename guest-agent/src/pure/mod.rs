//! What the agent decides, without touching anything.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod host_keys;
pub mod pace;
pub mod plan;
pub mod sock_diag;
pub mod superblock;
