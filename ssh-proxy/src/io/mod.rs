//! What acts: sockets, tasks, time and randomness.

pub mod audit;
pub mod desk;
pub mod door;
pub mod figures;
pub mod known;
pub mod leg;
pub mod login;
pub mod session;
pub mod sessions;
pub mod vm;
