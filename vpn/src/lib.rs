//! The WireGuard front: one UDP port for all clients of all private networks.
//!
//! It has no capability: vpc hands it one TUN for each network, and control's view says who may come in.
//!
//! ```text
//!   client ─ UDP ─► pure::engine: shape, mac1, budget, cookie, key, noise, inner address ─► pure::coalesce ─► TUN ─► vpc
//!   client ◄─ UDP ─ pure::runs ◄─ pure::engine: (network, address) = session, noise ◄─ pure::offload ◄─────── TUN ◄─┘
//! ```

pub mod client;
#[cfg(any(test, feature = "fuzz"))]
pub mod harness;
#[cfg(feature = "front")]
pub mod io;
#[cfg(feature = "front")]
pub mod pure;
#[cfg(feature = "front")]
pub mod sys;
