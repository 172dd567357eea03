//! Private networks: the routed virtual switch on the kernel's datapath.
//!
//! vpc is on the connect path and not on the byte path: it makes namespaces, TAPs and rules, and hands descriptors
//! out. Others use the [`client`] half only.

pub mod client;
