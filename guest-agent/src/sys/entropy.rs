//! Entropy that the kernel counts as such (random(4)).
#![expect(unsafe_code, reason = "the ioctls of /dev/random have no safe wrapper")]

use model::agent::ENTROPY_BYTES;
use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};
use std::os::fd::AsFd;

/// `RNDADDENTROPY`, `_IOW('R', 0x03, int[2])`: the size in the number is that of the head alone.
const ADD: Opcode = opcode::write::<[i32; 2]>(b'R', 3);
/// `RNDRESEEDCRNG`, `_IO('R', 0x07)`
const RESEED: Opcode = opcode::none(b'R', 7);

/// `struct rand_pool_info` (linux/random.h).
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    data: [u8; ENTROPY_BYTES],
}

/// Mixes the octets in and credits all their bits.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn add_credited(random: impl AsFd, entropy: &[u8; ENTROPY_BYTES]) -> Result<(), Errno> {
    const BYTES: i32 = ENTROPY_BYTES as i32;
    let info = PoolInfo { entropy_bits: BYTES * 8, bytes: BYTES, data: *entropy };
    // SAFETY: the opcode takes a pointer to a rand_pool_info, which has this layout; the kernel only reads it, and of
    // its data as many octets as `bytes` says, which is the length of the array.
    unsafe { ioctl(random, Setter::<ADD, PoolInfo>::new(info)) }
}

/// Lets the generator take a new key from the pool now.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`; `ENODATA` when the pool was never filled.
pub fn reseed(random: impl AsFd) -> Result<(), Errno> {
    // SAFETY: the opcode takes no argument and touches no memory of ours.
    unsafe { ioctl(random, NoArg::<RESEED>::new()) }
}
