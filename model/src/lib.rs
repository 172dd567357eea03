//! The nouns that all processes share: ids, host names, routes, permits, views and messages.
//!
//! A leaf: no file, socket, clock or task. What is serialisable here is what two processes agree on, so a
//! change of a type in this crate is a change of a wire format or of a file on disk.

pub mod agent;
pub mod api;
pub mod config;
pub mod digest;
pub mod figures;
pub mod firewall;
pub mod host;
pub mod id;
pub mod key;
pub mod login;
pub mod names;
pub mod net;
pub mod range;
pub mod ratio;
pub mod route;
pub mod ssh;
pub mod token;
pub mod view;
