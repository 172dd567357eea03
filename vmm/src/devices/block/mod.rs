//! virtio-blk and the disks behind it.

pub mod allocation;
pub mod backend;
mod device;
pub mod layered;

pub use backend::{DiskBackend, DiskError, SECTOR};
pub use device::Block;
pub use layered::{DiskOpenError, LayeredDisk};
