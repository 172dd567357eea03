//! What is saved of a device: plain values, so that suspend, snapshot and fork are one path.

use serde::{Deserialize, Serialize};

/// One queue (virtio 1.2 section 2.7 and 4.2.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Largest number of entries that the device offers.
    pub max_size: u16,
    /// Number of entries that the driver chose: a power of two.
    pub size: u16,
    /// Whether the driver has finished with its configuration.
    pub ready: bool,
    /// Next entry of the available ring that the device takes.
    pub next_avail: u16,
    /// Next entry of the used ring that the device writes.
    pub next_used: u16,
    /// Whether `VIRTIO_F_EVENT_IDX` was agreed on.
    pub event_idx: bool,
    /// Guest physical address of the descriptor table, a multiple of 16.
    pub desc_table: u64,
    /// Guest physical address of the available ring, a multiple of 2.
    pub avail_ring: u64,
    /// Guest physical address of the used ring, a multiple of 4.
    pub used_ring: u64,
}

impl From<QueueState> for virtio_queue::QueueState {
    fn from(q: QueueState) -> Self {
        Self {
            max_size: q.max_size,
            next_avail: q.next_avail,
            next_used: q.next_used,
            event_idx_enabled: q.event_idx,
            size: q.size,
            ready: q.ready,
            desc_table: q.desc_table,
            avail_ring: q.avail_ring,
            used_ring: q.used_ring,
        }
    }
}

impl From<virtio_queue::QueueState> for QueueState {
    fn from(q: virtio_queue::QueueState) -> Self {
        Self {
            max_size: q.max_size,
            size: q.size,
            ready: q.ready,
            next_avail: q.next_avail,
            next_used: q.next_used,
            event_idx: q.event_idx_enabled,
            desc_table: q.desc_table,
            avail_ring: q.avail_ring,
            used_ring: q.used_ring,
        }
    }
}

/// A transport with its queues and its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// Device status (virtio 1.2 section 2.1).
    pub status: u32,
    /// Interrupt status (virtio 1.2 section 4.2.2).
    pub interrupt_status: u32,
    /// Which half of the offered features is shown.
    pub device_features_sel: u32,
    /// Which half of the accepted features is written.
    pub driver_features_sel: u32,
    /// Features that the driver accepted.
    pub driver_features: u64,
    /// The queue that the queue registers mean.
    pub queue_sel: u32,
    /// Counts changes of the configuration space.
    pub config_generation: u32,
    /// The configuration space as the driver was last shown it.
    pub config: Vec<u8>,
    /// The queues in order.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}

/// What the kinds of devices save beside their queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// A disk.
    Block(BlockState),
    /// A NIC.
    Net(NetState),
    /// A socket device.
    Vsock(VsockState),
    /// A source of random numbers: it has no state.
    Rng,
    /// A balloon, which is always empty.
    Balloon,
}

/// A disk. Its content is in its files, drained before the save.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Size that the guest was told, in sectors of 512 bytes.
    pub sectors: u64,
    /// Whether the guest was told that it cannot write.
    pub read_only: bool,
}

/// A NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// A frame that was taken from the TAP and waits for room in the guest, with its header.
    pub held_frame: Vec<u8>,
}

/// A socket device. Connections do not survive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The guest's context id.
    pub guest_cid: u64,
    /// The guest was not yet told that its connections are gone.
    pub reset_pending: bool,
}
