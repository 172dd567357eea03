//! The SSH front: a login by identity token or key, and every channel to a VM's own sshd.
//!
//! ```text
//!   client ─ SSH ─► io::door, io::login ─► pure::bridge ─ SSH ─► the guest's sshd, dialled through vpc
//! ```

pub mod client;
#[cfg(any(test, feature = "fuzz"))]
pub mod harness;
#[cfg(feature = "front")]
pub mod io;
#[cfg(any(feature = "front", feature = "fuzz"))]
pub mod pure;
