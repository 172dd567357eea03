//! The two system interfaces that need `unsafe`: ioctls of TUN devices, and a thread's own network namespace.

pub mod namespace;
pub mod tun;
