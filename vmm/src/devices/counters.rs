//! Counted reasons: why a packet was dropped, a request refused or a device stopped.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// What is counted. One value for each reason, so that a count always tells why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        impl Counter {
            /// Every counter, in the order of declaration.
            pub const ALL: &'static [Counter] = &[$(Counter::$name,)*];

            /// The name that operators see: lower case, words joined by `_`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }
        }

        const COUNT: usize = [$($text,)*].len();
    };
}

counters! {
    /// An access to a register with a width or an offset that no register has.
    BadAccess => "mmio_bad_access",
    /// A write to a register outside of the device states in which it may be written.
    WriteRefused => "mmio_write_refused",
    /// A set of features without VERSION_1 or with one that was not offered.
    FeaturesRefused => "features_refused",
    /// DRIVER_OK with a queue whose size or addresses are not usable.
    QueueRefused => "queue_refused",
    /// The available index is further ahead than the queue is long.
    AvailIndexJump => "avail_index_jump",
    /// A descriptor chain that loops, is too long, or leads out of its table or of memory.
    BadChain => "bad_chain",
    /// A buffer that is empty, or lies outside of guest memory.
    BadBuffer => "bad_buffer",
    /// A chain whose buffers are read-only or write-only where the device needs the other.
    BadDirection => "bad_direction",
    /// A request with a header that is too short or not understood.
    BadRequest => "bad_request",
    /// A ring could not be written though it was checked when the queue was made ready.
    RingUnreachable => "ring_unreachable",
    /// The host failed in a way that stops the device.
    HostFailure => "host_failure",
    /// The device's thread did not answer in time; the device stays off.
    WorkerStuck => "worker_stuck",
    /// Interrupts that were raised.
    Interrupts => "interrupts",
    /// Requests that were answered with an error because the disk failed.
    DiskError => "disk_error",
    /// Requests outside of the disk, or writes to a read-only disk.
    DiskRefused => "disk_refused",
    /// Requests of a type that was not offered.
    RequestUnsupported => "request_unsupported",
    /// Frames from the guest with another source address than the NIC's.
    NetSourceMac => "net_source_mac",
    /// Frames from the guest that are too short or too long for Ethernet.
    NetBadFrame => "net_bad_frame",
    /// Frames from the guest that the host refused.
    NetTxRefused => "net_tx_refused",
    /// Frames to the guest that did not fit into the buffers it gave.
    NetRxTooLong => "net_rx_too_long",
    /// Frames from the network that were too short to be Ethernet.
    NetRxBadFrame => "net_rx_bad_frame",
    /// Frames from the network that said they came from the metadata address.
    NetRxMetadataSource => "net_rx_metadata_source",
    /// Frames from the guest to link-local addresses that nobody has.
    NetLinkLocal => "net_link_local",
    /// Frames to the metadata address that are longer than any honest one.
    NetMetadataTooLong => "net_metadata_too_long",
    /// Frames to the metadata address that were dropped because too many answers wait for buffers of the guest.
    NetMetadataBusy => "net_metadata_busy",
    /// Connections to the metadata address that were not over in time.
    NetMetadataTimeout => "net_metadata_timeout",
    /// vsock packets with a header that makes no sense.
    VsockBadPacket => "vsock_bad_packet",
    /// vsock packets from a wrong address or to one that does not exist.
    VsockBadAddress => "vsock_bad_address",
    /// vsock packets for a connection that does not exist.
    VsockNoConnection => "vsock_no_connection",
    /// vsock data beyond the room that was announced to the guest.
    VsockCreditOverrun => "vsock_credit_overrun",
    /// vsock connections refused because the table is full.
    VsockTableFull => "vsock_table_full",
    /// Connections of the guest to a port on which nobody on the host listens.
    VsockNoListener => "vsock_no_listener",
    /// Clients on the host that did not say `CONNECT <port>` or not in time.
    VsockBadHandshake => "vsock_bad_handshake",
    /// vsock connections that the guest did not answer or close in time.
    VsockTimeout => "vsock_timeout",
    /// RST packets that were not sent because too many were waiting.
    VsockRstDropped => "vsock_rst_dropped",
    /// Blocks of 2 MiB that the guest gave back.
    BalloonBlocks => "balloon_blocks",
    /// Ranges without a whole block, which are not taken back.
    BalloonFragment => "balloon_fragment",
    /// Reports whose memory the host could not take back.
    BalloonNotFreed => "balloon_not_freed",
    /// Chains in queues of the balloon that nobody asked the guest to use.
    BalloonUnasked => "balloon_unasked",
}

/// The counts of one device, shared with whoever reports them.
#[derive(Debug)]
pub struct Counters([AtomicU64; COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }
}

impl Counters {
    /// Counts one.
    pub fn count(&self, counter: Counter) {
        self.0[counter as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts several.
    pub fn add(&self, counter: Counter, count: u64) {
        self.0[counter as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// How many were counted.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize].load(Ordering::Relaxed)
    }

    /// All counts that are not zero, by name.
    #[must_use]
    pub fn nonzero(&self) -> Vec<(&'static str, u64)> {
        let all = Counter::ALL.iter().map(|c| (c.name(), self.get(*c)));
        all.filter(|(_, n)| *n != 0).collect()
    }
}
