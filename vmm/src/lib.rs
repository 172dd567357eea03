//! Machines: a KVM virtual machine monitor, one process per VM, and its supervisor.
//!
//! control uses the [`client`] half only.

pub mod client;
#[cfg(feature = "machine")]
pub mod devices;
#[cfg(feature = "machine")]
pub mod machine;
#[cfg(feature = "machine")]
pub mod seccomp;
#[cfg(feature = "machine")]
pub mod supervisor;
