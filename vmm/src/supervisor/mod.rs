//! The supervisor: starts, watches and ends the VMs' processes, and answers control.
//!
//! - [`server`]: connections and requests. [`registry`]: what runs, and who is told.
//! - [`folder`]: a VM's files. [`launch`]: starts a process, or adopts one. [`watch`]: follows it to its end.
//! - [`users`]: whose a VM's folder is. [`cgroup`]: how much a VM's process may take.
//! - [`warm`]: processes that wait for their order.
//! - [`copies`]: frozen copies and snapshots. [`talk`]: a request to a VM's process.
//! - [`stop`]: agent, power button, kill. [`connect`]: streams to the guest's vsock ports.
//! - [`wakes`]: packets for VMs that have no process.
//!
//! A VM does not need its supervisor to run: killing the supervisor stops none, and the next one adopts them.
//!
//! ```text
//! (no process) ──Launch──► running ──Stop / Kill / its own end──► (no process)
//!                             ▲
//!                   adopted at the supervisor's start
//! ```

pub mod cgroup;
pub mod connect;
pub mod copies;
pub mod folder;
pub mod launch;
pub mod registry;
pub mod server;
mod sleep;
pub mod stop;
pub mod talk;
pub mod users;
pub mod wakes;
mod warm;
pub mod watch;

pub use server::{SupervisorError, serve};
