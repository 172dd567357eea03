//! virtio-blk and the disks behind it.

pub mod allocation;
pub mod backend;
mod device;
pub mod directory;
pub mod folder;
mod index;
pub mod layered;
mod manifest;
mod merge;
#[cfg(test)]
mod recorded;
mod shared;
mod top;

pub use backend::{DiskBackend, DiskError, SECTOR};
pub use device::Block;
pub use folder::{DiskFolder, DiskStats, FolderError, MAX_LAYERS, clone_folder, clone_sealed};
pub use layered::{DiskOpenError, LayeredDisk};
pub use shared::SharedDisk;
