//! virtio-net over a TAP, with what the device does beside moving frames: it counts the traffic by which a machine
//! is busy ([`activity`]) and answers at the metadata address ([`metadata`]).

pub mod activity;
mod device;
pub mod frame;
pub mod metadata;
mod receive;

pub use activity::Activity;
pub use device::{Net, NetConfig, NetShared};
pub use metadata::{MetadataContent, MetadataStore};
