//! The one system interface that needs `unsafe`: ioctls of TUN devices.

pub mod tun;
