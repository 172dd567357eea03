//! The devices' only unsafe code: guest memory in vectored reads and writes, and calls without a safe form.

mod fd;
mod iov;
mod tap;

pub use fd::borrow;
pub use iov::{MAX_VECTORS, preadv, pwritev, readv, writev};
#[cfg(test)]
pub use tap::open_tap_apart;
pub use tap::{set_offload, set_vnet_header_size};
