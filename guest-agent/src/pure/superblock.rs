//! The two facts of an ext4 superblock that growing needs (linux/Documentation/filesystems/ext4/super.rst).

/// Where the superblock begins on the disk, in bytes.
pub const OFFSET: u64 = 1024;
/// How much of it is read.
pub const BYTES: usize = 1024;

/// `s_magic` at 0x38.
const MAGIC: u16 = 0xef53;
/// Largest `s_log_block_size`: blocks of 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;

/// Size of an ext4 file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of a block, 1024 to 65536.
    pub block_bytes: u64,
    /// Blocks in the file system.
    pub blocks: u64,
}

impl Size {
    /// Reads a superblock; nothing when it is not one of ext4.
    #[must_use]
    pub fn of(superblock: &[u8; BYTES]) -> Option<Self> {
        let u16_at = |at: usize| u16::from_le_bytes([superblock[at], superblock[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | (u32::from(u16_at(at + 2)) << 16);
        let log = u32_at(0x18);
        if u16_at(0x38) != MAGIC || log > MAX_LOG_BLOCK_SIZE {
            return None;
        }
        let blocks = u64::from(u32_at(0x4)) | (u64::from(u32_at(0x150)) << 32);
        Some(Self { block_bytes: 1024 << log, blocks })
    }

    /// How many blocks the file system should have on a disk of so many bytes; nothing when it fills it already.
    #[must_use]
    pub fn grown(self, disk_bytes: u64) -> Option<u64> {
        let blocks = disk_bytes / self.block_bytes;
        (blocks > self.blocks).then_some(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock(log: u8, blocks: u32) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
        bytes[0x18] = log;
        bytes[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
        bytes
    }

    #[test]
    fn a_larger_disk_makes_it_grow() {
        let size = Size::of(&superblock(2, 1000)).expect("ext4");
        assert_eq!(size, Size { block_bytes: 4096, blocks: 1000 });
        assert_eq!(size.grown(1000 * 4096 + 4095), None);
        assert_eq!(size.grown(5000 * 4096), Some(5000));
        assert_eq!(Size::of(&superblock(7, 1000)), None);
        assert_eq!(Size::of(&[0; BYTES]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), BYTES), disk: u64) {
            let mut block: [u8; BYTES] = bytes.try_into().expect("length");
            block[0x38..0x3a].copy_from_slice(&MAGIC.to_le_bytes());
            if let Some(size) = Size::of(&block) {
                prop_assert!(size.grown(disk).is_none_or(|blocks| blocks > size.blocks));
            }
        }
    }
}
