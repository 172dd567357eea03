//! virtio-net over a TAP.

mod device;
pub mod frame;
mod receive;

pub use device::{Net, NetConfig, Traffic};
