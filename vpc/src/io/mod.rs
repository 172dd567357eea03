//! What touches the kernel: namespaces, netlink, nft, settings under /proc/sys, tracked flows.

pub mod firewall;
pub mod flows;
pub mod join;
pub mod modules;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod nft;
pub mod observe;
pub mod ports;
pub mod settings;
pub mod uplink;
pub mod ways;
