//! virtio-vsock: stream sockets between the guest and Unix sockets of the host.
//!
//! To reach a port of the guest, a client on the host connects to the device's Unix socket and writes
//! `CONNECT <port>\n`; it reads `OK <host port>\n` when the guest has accepted, or end of file when not. When
//! the guest connects to a port of the host (context id 2), the device connects to the Unix socket at
//! `<base>_<port>`, and resets the guest's connection if nobody listens there.

mod connection;
mod device;
mod muxer;
pub mod packet;

pub use device::{Vsock, VsockError};
