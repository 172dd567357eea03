//! The devices' only unsafe code: guest memory in vectored reads and writes, guest memory that is given back, and calls
//! without a safe form.

mod discard;
mod fd;
mod iov;
mod tap;

pub use discard::discard;
pub use fd::borrow;
pub use iov::{MAX_VECTORS, preadv, pwritev, readv, writev};
#[cfg(test)]
pub use tap::open_tap_apart;
pub use tap::{set_offload, set_vnet_header_size};
