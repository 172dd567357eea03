//! Private networks: the routed virtual switch on the kernel's datapath.
//!
//! vpc is on the connect path and not on the byte path: it makes namespaces, TAPs and rules, and hands descriptors
//! out. Others use the [`client`] half only; the rest is the process itself, behind the feature `switch`.
//!
//! ```text
//!   view ──► pure::wanted ──► keel ──► of each network that is due, its line:
//!     pure::plan, pure::ways ──► io::ports, io::ways ──► the kernel ──► io::observe ──┐
//!                     ▲───────────────────────────────────────────────────────────────┘
//!   keel ──► switch::Table
//!   client ──► server ──► dial (a socket made in the VM's network) | TAP queues | TUNs | wakes | status
//!                     ──► keel ──► io::join: a service becomes a member
//!   guest  ──► resolver of its network ──► pure::zone, or the host's name servers
//!   guest  ──► dhcp of its network ──► what its port is
//!   kernel ─ ends of flows, refused packets ─► flowlog ─► files
//! ```

pub mod client;

#[cfg(feature = "switch")]
pub mod chaos;
#[cfg(feature = "switch")]
pub mod dhcp;
#[cfg(feature = "switch")]
pub mod dial;
#[cfg(feature = "switch")]
pub mod flowlog;
#[cfg(feature = "switch")]
pub mod io;
#[cfg(feature = "switch")]
pub mod keel;
#[cfg(feature = "switch")]
pub mod keeper;
#[cfg(feature = "switch")]
pub mod line;
#[cfg(feature = "switch")]
pub mod pure;
#[cfg(feature = "switch")]
pub mod resolver;
#[cfg(feature = "switch")]
pub mod server;
#[cfg(feature = "switch")]
pub mod switch;
#[cfg(feature = "switch")]
pub mod sys;
#[cfg(feature = "switch")]
pub mod tasks;
#[cfg(feature = "switch")]
pub mod wakes;
