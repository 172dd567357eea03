//! Requests of a driver, right and wrong.

use super::*;
use crate::devices::block::LayeredDisk;
use crate::devices::harness::{DATA, Rig, readable, writable};

const CAPACITY: u64 = 64 * 1024;
const STATUS: u64 = DATA + 0x8000;
const CONTENT: u64 = DATA + 0x1000;

fn disk() -> LayeredDisk {
    let file = || tempfile::tempfile().unwrap();
    LayeredDisk::create(None, file(), file(), CAPACITY).unwrap()
}

struct Guest {
    rig: Rig<Block>,
}

impl Guest {
    fn new(disk: LayeredDisk) -> Self {
        Self { rig: Rig::new(Block::new(Box::new(disk), "a-serial-that-is-too-long")) }
    }

    /// Sends one request with `data`, or room for as many bytes; returns the status and what was written.
    fn request(&mut self, kind: u32, sector: u64, data: &[u8], write: bool) -> (u32, Vec<u8>, u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.rig.put(DATA, &header);
        self.rig.put(CONTENT, data);
        self.rig.put(STATUS, &[0xee]);
        let mut chain = vec![readable(DATA, 16)];
        if !data.is_empty() {
            let len = data.len() as u32;
            chain.push(if write { writable(CONTENT, len) } else { readable(CONTENT, len) });
        }
        chain.push(writable(STATUS, 1));
        let head = self.rig.lend(0, &chain);
        self.rig.kick(0).unwrap();
        let used = self.rig.used(0);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, head);
        (self.rig.get(STATUS, 1)[0].into(), self.rig.get(CONTENT, data.len()), used[0].1)
    }
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn what_is_written_is_read_flushed_discarded_and_zeroed() {
    let mut guest = Guest::new(disk());
    let data: Vec<u8> = (0..8192u32).map(|n| n as u8).collect();
    assert_eq!(guest.request(abi::VIRTIO_BLK_T_OUT, 8, &data, false).0, abi::VIRTIO_BLK_S_OK);
    let (status, read, used) = guest.request(abi::VIRTIO_BLK_T_IN, 8, &vec![0; 8192], true);
    assert_eq!((status, used), (abi::VIRTIO_BLK_S_OK, 8193));
    assert_eq!(read, data);
    assert_eq!(guest.request(abi::VIRTIO_BLK_T_FLUSH, 0, &[], false).0, abi::VIRTIO_BLK_S_OK);
    let gone = range(8, 8, 0);
    assert_eq!(guest.request(abi::VIRTIO_BLK_T_DISCARD, 0, &gone, false).0, abi::VIRTIO_BLK_S_OK);
    let zero = range(17, 3, 1);
    assert_eq!(guest.request(abi::VIRTIO_BLK_T_WRITE_ZEROES, 0, &zero, false).0, abi::VIRTIO_BLK_S_OK);
    let (_, read, _) = guest.request(abi::VIRTIO_BLK_T_IN, 8, &vec![1; 8192], true);
    let mut expected = data;
    expected[..4096].fill(0);
    expected[9 * 512..12 * 512].fill(0);
    assert_eq!(read, expected);
}

#[test]
fn what_a_disk_cannot_do_is_answered_with_an_error() {
    let mut guest = Guest::new(disk());
    let last = CAPACITY / 512;
    let io_error = abi::VIRTIO_BLK_S_IOERR;
    let unsupported = abi::VIRTIO_BLK_S_UNSUPP;
    for (kind, sector, data, write, expected) in [
        (abi::VIRTIO_BLK_T_IN, last, vec![0; 512], true, io_error),
        (abi::VIRTIO_BLK_T_IN, last - 1, vec![0; 1024], true, io_error),
        (abi::VIRTIO_BLK_T_IN, u64::MAX, vec![0; 512], true, io_error),
        (abi::VIRTIO_BLK_T_IN, u64::MAX / 512, vec![0; 512], true, io_error),
        (abi::VIRTIO_BLK_T_IN, 0, vec![0; 500], true, io_error),
        (abi::VIRTIO_BLK_T_OUT, last, vec![0; 512], false, io_error),
        (abi::VIRTIO_BLK_T_OUT, 0, vec![0; 513], false, io_error),
        (abi::VIRTIO_BLK_T_DISCARD, 0, range(last, 1, 0), false, io_error),
        (abi::VIRTIO_BLK_T_DISCARD, 0, range(0, u32::MAX, 0), false, io_error),
        (abi::VIRTIO_BLK_T_DISCARD, 0, range(0, 1, 1), false, unsupported),
        (abi::VIRTIO_BLK_T_DISCARD, 0, vec![0; 17], false, io_error),
        (abi::VIRTIO_BLK_T_WRITE_ZEROES, 0, range(0, 1, 2), false, unsupported),
        (abi::VIRTIO_BLK_T_SCSI_CMD, 0, vec![], false, unsupported),
        (77, 0, vec![0; 512], false, unsupported),
    ] {
        let (status, _, used) = guest.request(kind, sector, &data, write);
        assert_eq!((status, used), (expected, 1), "request {kind} at {sector}");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let mut guest = Guest::new(LayeredDisk::read_only(file).unwrap());
    assert_eq!(guest.rig.device.features() >> abi::VIRTIO_BLK_F_RO & 1, 1);
    for (kind, data) in [
        (abi::VIRTIO_BLK_T_OUT, vec![1; 512]),
        (abi::VIRTIO_BLK_T_DISCARD, range(0, 8, 0)),
        (abi::VIRTIO_BLK_T_WRITE_ZEROES, range(0, 8, 0)),
    ] {
        assert_eq!(guest.request(kind, 0, &data, false).0, abi::VIRTIO_BLK_S_IOERR);
    }
    assert_eq!(guest.request(abi::VIRTIO_BLK_T_IN, 0, &[9; 512], true).1, vec![0; 512]);
}

#[test]
fn the_serial_number_is_cut_to_what_both_sides_can_hold() {
    let mut guest = Guest::new(disk());
    let (status, id, _) = guest.request(abi::VIRTIO_BLK_T_GET_ID, 0, &[0; 20], true);
    assert_eq!((status, id.as_slice()), (abi::VIRTIO_BLK_S_OK, &b"a-serial-that-is-too"[..]));
    assert_eq!(guest.request(abi::VIRTIO_BLK_T_GET_ID, 0, &[0; 4], true).1, b"a-se");
}

#[test]
fn a_chain_without_header_or_without_room_for_a_status_stops_the_device() {
    let mut guest = Guest::new(disk());
    guest.rig.lend(0, &[readable(DATA, 15), writable(STATUS, 1)]);
    assert!(matches!(guest.rig.kick(0), Err(Fault::Guest(Counter::BadRequest))));
    guest.rig.reset();
    guest.rig.lend(0, &[readable(DATA, 16)]);
    assert!(matches!(guest.rig.kick(0), Err(Fault::Guest(Counter::BadDirection))));
    guest.rig.reset();
    guest.rig.lend(0, &[writable(STATUS, 1), readable(DATA, 16)]);
    assert!(matches!(guest.rig.kick(0), Err(Fault::Guest(Counter::BadDirection))));
}

#[test]
fn without_the_flush_feature_every_write_is_durable() {
    let (data, map) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let disk = LayeredDisk::create(None, data.reopen().unwrap(), map.reopen().unwrap(), CAPACITY).unwrap();
    let mut guest = Guest { rig: Rig::with_features(Block::new(Box::new(disk), ""), 0) };
    guest.request(abi::VIRTIO_BLK_T_OUT, 0, &[7; 4096], false);
    // A second reader of the files sees what only a flush writes to the map.
    let copy = LayeredDisk::open(None, data.reopen().unwrap(), map.reopen().unwrap()).unwrap();
    let mut reader = Guest::new(copy);
    assert_eq!(reader.request(abi::VIRTIO_BLK_T_IN, 0, &[0; 512], true).1, vec![7; 512]);
}
