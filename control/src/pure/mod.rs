//! Decisions without effects: no clock, file, socket or task below this folder.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod address;
pub mod certificate;
pub mod domain;
pub mod evict;
pub mod host;
pub mod identity;
pub mod layers;
pub mod networks;
pub mod peering;
pub mod phase;
pub mod plan;
pub mod request;
pub mod resize;
pub mod retry;
pub mod room;
pub mod rule;
pub mod service;
pub mod ssh;
pub mod ssh_key;
pub mod vpc;
pub mod wireguard;
