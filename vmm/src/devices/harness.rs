//! A driver in memory, for tests and fuzz targets: it lends chains to a device, right ones and wrong ones, and
//! takes back what the device used. No thread and no transport is involved.

use super::chain::MAX_SEGMENTS;
use super::device::{Context, Interrupt, Progress, VirtioDevice};
use super::queue::DeviceQueue;
use super::state::QueueState;
use super::{Counters, Fault, GuestRam};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Guest memory starts with this many bytes; then comes a hole, and at [`HIGH`] as many again.
pub const LOW_BYTES: u64 = 2 << 20;
/// Address of the second region.
pub const HIGH: u64 = 16 << 20;
/// First address that no queue uses.
pub const DATA: u64 = 0x2_0000;
const QUEUE_STRIDE: u64 = 0x8000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Rounds that a device may ask for before a test calls it endless.
const MAX_ROUNDS: usize = 10_000;
/// Operations taken from one fuzz input.
const MAX_OPERATIONS: usize = 256;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub struct Buffer {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub write: bool,
}

/// A buffer that the device reads.
#[must_use]
pub fn readable(addr: u64, len: u32) -> Buffer {
    Buffer { addr, len, write: false }
}

/// A buffer that the device writes.
#[must_use]
pub fn writable(addr: u64, len: u32) -> Buffer {
    Buffer { addr, len, write: true }
}

#[derive(Clone, Copy, Debug)]
struct DriverQueue {
    base: u64,
    size: u16,
    next_avail: u16,
    next_desc: u16,
    last_used: u16,
}

/// A device with a driver.
pub struct Rig<D> {
    /// The device.
    pub device: D,
    /// Guest memory.
    pub mem: GuestRam,
    /// Counted reasons.
    pub counters: Arc<Counters>,
    /// The device's half of the queues.
    pub queues: Vec<Option<DeviceQueue>>,
    interrupt: Interrupt,
    driver: Vec<DriverQueue>,
    features: u64,
}

impl<D: VirtioDevice> Rig<D> {
    /// Activates the device with all it offers and all queues at their full size.
    ///
    /// # Panics
    /// When the device cannot be activated: the host is not fit for the test.
    #[must_use]
    pub fn new(device: D) -> Self {
        let features = device.features();
        Self::with_features(device, features)
    }

    /// Activates the device with some of its features.
    ///
    /// # Panics
    /// As [`Self::new`].
    #[must_use]
    pub fn with_features(mut device: D, features: u64) -> Self {
        let regions = [(GuestAddress(0), LOW_BYTES as usize), (GuestAddress(HIGH), LOW_BYTES as usize)];
        let mem = GuestRam::from_ranges(&regions).expect("memory for a test");
        let counters = Arc::new(Counters::default());
        let line = EventFd::new(EFD_NONBLOCK).expect("an event counter for a test");
        let interrupt = Interrupt::new(line, Arc::clone(&counters));
        device.activate(features).expect("the device can be activated");
        let mut rig =
            Self { device, mem, counters, queues: Vec::new(), interrupt, driver: Vec::new(), features };
        rig.make_queues();
        rig
    }

    fn make_queues(&mut self) {
        let sizes = self.device.queue_sizes().iter().enumerate();
        self.driver = sizes
            .map(|(index, size)| DriverQueue {
                base: 0x1000 + QUEUE_STRIDE * index as u64,
                size: *size,
                next_avail: 0,
                next_desc: 0,
                last_used: 0,
            })
            .collect();
        for queue in &self.driver {
            let zeros = vec![0u8; QUEUE_STRIDE as usize];
            self.mem.write_slice(&zeros, GuestAddress(queue.base)).expect("queues lie in memory");
        }
        self.queues = self.driver.iter().map(|q| DeviceQueue::new(&self.mem, q.state()).ok()).collect();
    }

    /// What the driver would do after `DEVICE_NEEDS_RESET`.
    ///
    /// # Panics
    /// When the device cannot be activated again.
    pub fn reset(&mut self) {
        self.device.reset();
        self.make_queues();
        self.device.activate(self.features).expect("the device can be activated again");
    }

    /// Writes bytes to guest memory.
    ///
    /// # Panics
    /// When they lie outside of it.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        self.mem.write_slice(bytes, GuestAddress(addr)).expect("a test writes inside of memory");
    }

    /// Reads bytes of guest memory.
    ///
    /// # Panics
    /// When they lie outside of it.
    #[must_use]
    pub fn get(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).expect("a test reads inside of memory");
        bytes
    }

    /// Makes a chain of these buffers available; returns its head.
    pub fn lend(&mut self, queue: usize, buffers: &[Buffer]) -> u16 {
        let q = self.driver[queue];
        let head = q.next_desc;
        for (n, buffer) in buffers.iter().enumerate() {
            let index = (head + n as u16) % q.size;
            let last = n + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(buffer.write) << 1;
            self.put_descriptor(queue, index, buffer.addr, buffer.len, flags, (index + 1) % q.size);
        }
        self.driver[queue].next_desc = (head + buffers.len() as u16) % q.size;
        self.lend_head(queue, head);
        head
    }

    fn put_descriptor(&self, queue: usize, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.driver[queue].base + 16 * u64::from(index);
        self.put(at, &addr.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    fn lend_head(&mut self, queue: usize, head: u16) {
        let q = &mut self.driver[queue];
        let slot = u64::from(q.next_avail % q.size);
        q.next_avail = q.next_avail.wrapping_add(1);
        let q = *q;
        self.put(q.base + AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.put(q.base + AVAIL + 2, &q.next_avail.to_le_bytes());
    }

    /// Notifies the device and lets it work until it is done.
    ///
    /// # Errors
    /// The fault that would stop the device.
    ///
    /// # Panics
    /// When the device never comes to an end.
    pub fn kick(&mut self, queue: usize) -> Result<(), Fault> {
        self.work(|device, ctx| device.queue_event(queue, ctx))
    }

    /// Tells the device that one of its descriptors is ready.
    ///
    /// # Errors
    /// The fault that would stop the device.
    ///
    /// # Panics
    /// When the device never comes to an end.
    pub fn source(&mut self, source: usize) -> Result<(), Fault> {
        self.work(|device, ctx| device.source_event(source, ctx))
    }

    fn work(
        &mut self,
        mut call: impl FnMut(&mut D, &mut Context<'_>) -> Result<Progress, Fault>,
    ) -> Result<(), Fault> {
        for _ in 0..MAX_ROUNDS {
            let (device, mut ctx) = self.split();
            if call(device, &mut ctx)? == Progress::Done {
                return Ok(());
            }
        }
        panic!("the device never comes to an end");
    }

    fn split(&mut self) -> (&mut D, Context<'_>) {
        let ctx = Context {
            mem: &self.mem,
            queues: &mut self.queues,
            interrupt: &self.interrupt,
            counters: &self.counters,
        };
        (&mut self.device, ctx)
    }

    /// Brings the device to rest and makes its queues anew from their saved states.
    ///
    /// # Errors
    /// The fault that would stop the device.
    pub fn pause_and_resume(&mut self) -> Result<(), Fault> {
        let (device, mut ctx) = self.split();
        device.drain(&mut ctx)?;
        for queue in self.queues.iter_mut().flatten() {
            *queue = DeviceQueue::new(&self.mem, queue.save())?;
        }
        Ok(())
    }

    /// Takes back the chains that the device used since the last call: heads and lengths.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, u32)> {
        let mut q = self.driver[queue];
        let bytes = self.get(q.base + USED + 2, 2);
        let index = u16::from_le_bytes([bytes[0], bytes[1]]);
        let mut used = Vec::new();
        while q.last_used != index {
            let entry = self.get(q.base + USED + 4 + 8 * u64::from(q.last_used % q.size), 8);
            let head = u16::from_le_bytes([entry[0], entry[1]]);
            used.push((head, u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]])));
            q.last_used = q.last_used.wrapping_add(1);
        }
        self.driver[queue] = q;
        used
    }

    /// Plays a malicious driver by the bytes of `input`: descriptors of any kind, jumps of the available
    /// index, raw bytes anywhere, in any order with notifications. A fault resets the device, as a driver would.
    ///
    /// # Panics
    /// When the device panics or never comes to an end, which is what the caller looks for.
    pub fn abuse(&mut self, input: &[u8]) {
        let mut input = Input(input);
        for _ in 0..MAX_OPERATIONS {
            let Some(operation) = input.byte() else { return };
            let queue = usize::from(operation >> 4) % self.driver.len();
            let done = match operation & 0xf {
                0..=3 => {
                    self.abuse_descriptor(queue, &mut input);
                    Ok(())
                }
                4 | 5 => {
                    let head = input.u16() % self.driver[queue].size.saturating_add(2);
                    self.lend_head(queue, head);
                    Ok(())
                }
                6 => {
                    let index = input.u16();
                    self.put(self.driver[queue].base + AVAIL + 2, &index.to_le_bytes());
                    Ok(())
                }
                7 | 8 => {
                    let addr = input.address();
                    let bytes = input.take(48);
                    // Outside of memory nothing is written, as on a real machine.
                    self.mem.write_slice(bytes, GuestAddress(addr)).or(Ok(()))
                }
                9 => self.pause_and_resume(),
                10 => {
                    let index = usize::from(input.byte().unwrap_or(0));
                    let sources = self.device.sources().len();
                    if sources == 0 { Ok(()) } else { self.source(index % sources) }
                }
                _ => self.kick(queue),
            };
            match done {
                Ok(()) => {}
                Err(Fault::Guest(_)) => self.reset(),
                Err(Fault::Host(error)) => panic!("a guest made the host fail: {error}"),
            }
        }
    }

    /// Writes one descriptor: mostly plausible, sometimes not at all; one in eight is an indirect table.
    fn abuse_descriptor(&mut self, queue: usize, input: &mut Input<'_>) {
        let index = input.u16() % self.driver[queue].size;
        let addr = input.address();
        let kind = input.byte().unwrap_or(0);
        let len = match kind & 7 {
            0 => 0,
            1 => u32::MAX,
            2 => u32::from(input.u16()) << 16,
            3 => 16 * u32::from(input.byte().unwrap_or(0)),
            4 => 16,
            _ => u32::from(input.u16()),
        };
        let indirect = if kind >> 3 & 7 == 7 { 4 } else { 0 };
        let flags = u16::from(kind >> 6) | indirect;
        let near = u16::from(input.byte().unwrap_or(0));
        let next = if near > 250 { u16::MAX - near } else { near };
        self.put_descriptor(queue, index, addr, len, flags, next);
    }
}

impl DriverQueue {
    fn state(&self) -> QueueState {
        QueueState {
            max_size: self.size,
            size: self.size,
            ready: true,
            next_avail: 0,
            next_used: 0,
            event_idx: self.base & QUEUE_STRIDE == 0,
            desc_table: self.base,
            avail_ring: self.base + AVAIL,
            used_ring: self.base + USED,
        }
    }
}

/// The bytes of a fuzz input, zeros behind their end.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.byte().unwrap_or(0), self.byte().unwrap_or(0)])
    }

    /// In low memory, at its end, across the hole, in the queues themselves, or anything.
    fn address(&mut self) -> u64 {
        let kind = self.byte().unwrap_or(0);
        let near = u64::from(self.u16());
        match kind % 8 {
            0 => near,
            1 => LOW_BYTES - near % 64,
            2 => HIGH + near,
            3 => u64::MAX - near,
            4 => HIGH + LOW_BYTES - near % 32,
            _ => DATA + near,
        }
    }
}

/// The devices, each made fresh and given to a malicious driver. One function for each fuzz target.
pub mod targets {
    use super::super::balloon::Balloon;
    use super::super::block::{Block, LayeredDisk};
    use super::super::mmio::{MMIO_SIZE, MmioTransport};
    use super::super::net::metadata::{CONNECTIONS, REPLIES_MAX, Service};
    use super::super::net::{MetadataContent, MetadataStore, Net, NetConfig, NetShared};
    use super::super::rng::Rng;
    use super::super::vsock::Vsock;
    use super::{Counters, EFD_NONBLOCK, EventFd, GuestAddress, GuestRam, Input, LOW_BYTES};
    use super::{MAX_OPERATIONS, MAX_SEGMENTS, Rig};
    use model::net::{GATEWAY_MAC, METADATA_IPV4, MacAddress};
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;
    use std::io::Write as _;
    use std::net::Ipv4Addr;
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::time::Duration;

    const DISK: u64 = 1 << 20;

    /// The NIC's address in all targets.
    pub const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

    fn memory_file() -> File {
        File::from(memfd_create("disk", MemfdFlags::CLOEXEC).expect("a file in memory"))
    }

    /// virtio-rng.
    pub fn rng(input: &[u8]) {
        Rig::new(Rng::new()).abuse(input);
    }

    /// virtio-balloon.
    pub fn balloon(input: &[u8]) {
        Rig::new(Balloon::new()).abuse(input);
    }

    /// virtio-blk over a base and a top.
    ///
    /// # Panics
    /// When the device does not stand it, or the host lacks what the target needs.
    pub fn block(input: &[u8]) {
        let mut base = memory_file();
        base.write_all(&[0xab; 10_000]).expect("a file in memory can be written");
        let disk = LayeredDisk::create(Some(base), memory_file(), memory_file(), DISK);
        let disk = disk.expect("a disk in memory");
        Rig::new(Block::new(Box::new(disk), "fuzz")).abuse(input);
    }

    /// virtio-net over a socket on which a few frames wait.
    ///
    /// # Panics
    /// When the device does not stand it, or the host lacks what the target needs.
    pub fn net(input: &[u8]) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, peer) =
            socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None).expect("a socket pair");
        for len in [26usize, 60, 1526, 9000, input.len().min(65_000) + 26, 3] {
            let sent = rustix::io::write(&peer, &vec![0x5a; len]);
            // A full socket is as good a test as any.
            assert!(sent == Ok(len) || sent == Err(Errno::AGAIN));
        }
        let config = NetConfig { mac: MAC, mtu: 1500 };
        let nic = Net::over_socket(ours, config, &NetShared::default());
        let mut rig = Rig::new(nic.expect("a NIC over a socket"));
        rig.abuse(input);
        // What left the NIC came from its own address.
        let mut frame = vec![0u8; 1 << 17];
        while let Ok(len) = rustix::io::read(&peer, frame.as_mut_slice()) {
            assert_eq!(&frame[18..24], &MAC.0, "a frame of {len} bytes");
            let address = [frame[42], frame[43], frame[44], frame[45]];
            let link_local = frame[24..26] == [8, 0] && Ipv4Addr::from(address).is_link_local();
            assert!(!link_local || len < 46 || address == [169, 254, 1, 1], "a frame of {len} bytes");
        }
    }

    /// The metadata address, of which a guest asks with frames of any kind: right and wrong segments of connections,
    /// in any order with the passing of time and with answers that are taken or left. Returns how many answers to
    /// requests began.
    ///
    /// # Panics
    /// When the service does not stand it, or breaks a bound.
    pub fn metadata(input: &[u8]) -> usize {
        let store = MetadataStore::new(MetadataContent {
            instance_id: "fuzz".to_owned(),
            hostname: "fuzz".to_owned(),
            ipv4: Ipv4Addr::new(10, 0, 0, 2),
            mac: MAC,
            ssh_keys: vec!["ssh-ed25519 AAAA".to_owned()],
            user_data: Some("x".repeat(10_000)),
        });
        let counters = Counters::default();
        let mut service = Service::new(MAC, 1500, 1);
        let (mut now, mut sequence, mut acknowledged) = (Duration::ZERO, 1u32, 0u32);
        let mut answers = 0;
        let mut input = Input(input);
        for _ in 0..MAX_OPERATIONS {
            let Some(operation) = input.byte() else { return answers };
            let port = u16::from(operation >> 4);
            match operation & 7 {
                0 => {
                    let kind = [[8, 0], [8, 6], [0x86, 0xdd], [0, 0]][usize::from(port % 4)];
                    let bytes = input.take(120);
                    service.take([&[0; 12][..], &kind, bytes].concat(), now, &store, &counters);
                }
                1..=3 => {
                    let flags = input.byte().unwrap_or(0);
                    let len = usize::from(input.byte().unwrap_or(0));
                    // Mostly where the connection stands, sometimes a little beside it.
                    let beside = if flags & 0x40 == 0 { 0 } else { u32::from(input.u16()) };
                    let payload = input.take(len);
                    let at = sequence.wrapping_sub(beside);
                    let segment = segment(port, at, acknowledged, flags & 0x3f, payload);
                    service.take(segment, now, &store, &counters);
                    sequence = sequence.wrapping_add(payload.len() as u32 + u32::from(flags & 3 != 0));
                }
                4 => {
                    now += Duration::from_millis(input.u16().into());
                    service.poll(now, &store, &counters);
                }
                5 => service.clear(),
                _ => {
                    while let Some(reply) = service.next_reply() {
                        assert_eq!(reply[12..18], MAC.0);
                        if let Some(segment) = reply.get(46..).filter(|segment| segment.len() >= 20) {
                            let next = [segment[4], segment[5], segment[6], segment[7]];
                            let payload = &segment[usize::from(segment[12] >> 4) * 4..];
                            let moved = payload.len() as u32 + u32::from(segment[13] & 3 != 0);
                            acknowledged = u32::from_be_bytes(next).wrapping_add(moved);
                            answers += usize::from(payload.starts_with(b"HTTP/1.1 "));
                        }
                    }
                    service.poll(now, &store, &counters);
                }
            }
            assert!(service.connections() <= CONNECTIONS && service.replies() <= REPLIES_MAX);
            assert!(service.next_deadline(now).is_none_or(|at| at <= now + RETRY_MAX));
        }
        answers
    }

    /// Longest that the service waits for anything: TCP's longest wait before it says a thing again (RFC 6298 section
    /// 2.4), which no connection lives to see.
    const RETRY_MAX: Duration = Duration::from_secs(60);

    /// A TCP segment of the guest to the metadata address.
    fn segment(port: u16, sequence: u32, acknowledged: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = [&GATEWAY_MAC.0[..], &MAC.0, &[8, 0, 0x45, 0]].concat();
        frame.extend((40 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2]);
        frame.extend(METADATA_IPV4.octets());
        frame.extend(port.to_be_bytes());
        frame.extend(80u16.to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend(acknowledged.to_be_bytes());
        frame.extend([5 << 4, flags, 0x10, 0, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    }

    /// virtio-vsock with a client that asks for a port.
    ///
    /// # Panics
    /// When the device does not stand it, or the host lacks what the target needs.
    pub fn vsock(input: &[u8]) {
        use std::os::linux::net::SocketAddrExt as _;
        use std::sync::atomic::{AtomicU64, Ordering};
        static UNIQUE: AtomicU64 = AtomicU64::new(0);
        let name = format!("gatehouse-{}-{}", std::process::id(), UNIQUE.fetch_add(1, Ordering::Relaxed));
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("a listener");
        let mut client =
            std::os::unix::net::UnixStream::connect_addr(&address).expect("a client of the listener");
        client.write_all(b"CONNECT 1024\nhello").expect("a short line fits");
        let device = Vsock::new(3, listener, Path::new("/nonexistent/socket")).expect("a vsock device");
        let mut rig = Rig::new(device);
        rig.source(0).expect("no guest has touched anything");
        rig.abuse(input);
    }

    /// The transport's registers, with a device behind them.
    ///
    /// # Panics
    /// When the transport does not stand it, or the host lacks what the target needs.
    pub fn mmio(input: &[u8]) {
        let mem = GuestRam::from_ranges(&[(GuestAddress(0), LOW_BYTES as usize)]).expect("memory for a test");
        let irq = EventFd::new(EFD_NONBLOCK).expect("an event counter");
        let transport = MmioTransport::new(mem, Box::new(Rng::new()), irq).expect("a transport");
        let mut input = Input(input);
        for _ in 0..MAX_SEGMENTS {
            let Some(operation) = input.byte() else { return };
            let register = u64::from(input.byte().unwrap_or(0)) * 4;
            let odd = u64::from(input.u16()) % MMIO_SIZE;
            let offset = if operation & 0x40 == 0 { register } else { odd };
            let data = input.take(if operation & 0x20 == 0 { 4 } else { usize::from(operation & 0x1f) });
            if operation & 0x80 == 0 {
                transport.write(offset, data);
            } else {
                let mut buffer = data.to_vec();
                transport.read(offset, &mut buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::targets;
    use proptest::prelude::*;
    use std::path::Path;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(192))]

        #[test]
        fn no_driver_breaks_rng(input in prop::collection::vec(any::<u8>(), 0..1500)) { targets::rng(&input); }

        #[test]
        fn no_driver_breaks_balloon(input in prop::collection::vec(any::<u8>(), 0..1500)) { targets::balloon(&input); }

        #[test]
        fn no_driver_breaks_block(input in prop::collection::vec(any::<u8>(), 0..1500)) { targets::block(&input); }

        #[test]
        fn no_driver_breaks_net(input in prop::collection::vec(any::<u8>(), 0..1500)) { targets::net(&input); }

        #[test]
        fn no_driver_breaks_vsock(input in prop::collection::vec(any::<u8>(), 0..1500)) { targets::vsock(&input); }

        #[test]
        fn no_driver_breaks_the_transport(input in prop::collection::vec(any::<u8>(), 0..1500)) {
            targets::mmio(&input);
        }
    }

    type Target = fn(&[u8]);

    /// The inputs that the fuzz targets start from, or once failed on.
    #[test]
    fn the_corpus_of_the_fuzz_targets_passes() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus");
        let all: [(&str, Target); 7] = [
            ("rng", targets::rng),
            ("balloon", targets::balloon),
            ("block", targets::block),
            ("net", targets::net),
            ("metadata", |input| {
                targets::metadata(input);
            }),
            ("vsock", targets::vsock),
            ("mmio", targets::mmio),
        ];
        for (name, target) in all {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpus.join(name)).unwrap() {
                target(&std::fs::read(entry.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs >= 3, "the corpus of {name} has {inputs} inputs");
        }
        // The language of that target leads to where the requests are answered.
        for seed in ["get", "long-answer", "token", "nonsense"] {
            let input = std::fs::read(corpus.join("metadata").join(format!("seed-{seed}"))).unwrap();
            assert_eq!(targets::metadata(&input), 1, "{seed}");
        }
    }
}
