#![expect(unsafe_code, reason = "TUN devices are set up by ioctl(2)")]
//! Queues of TUN devices, after the kernel's Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h.

use crate::pure::offload::VNET_BYTES;
use rustix::fd::AsFd;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl, opcode};
use std::io;

// include/uapi/linux/if_tun.h
const TUNSETOFFLOAD: Opcode = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
/// Checksums may be left to us.
const TUN_F_CSUM: usize = 0x01;
/// Frames may have many segments of TCP over IPv4.
const TUN_F_TSO4: usize = 0x02;

/// Tells a TUN that was opened with `IFF_VNET_HDR` what this process takes from it. Needs no capability.
///
/// # Errors
/// When it is no TUN, or none with a header.
pub fn prepare(queue: impl AsFd) -> io::Result<()> {
    let bytes = i32::try_from(VNET_BYTES).unwrap_or(i32::MAX);
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives as long as the call.
    unsafe { ioctl(&queue, Setter::<TUNSETVNETHDRSZ, i32>::new(bytes)) }?;
    // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
    unsafe { ioctl(&queue, IntegerSetter::<TUNSETOFFLOAD>::new_usize(TUN_F_CSUM | TUN_F_TSO4)) }?;
    Ok(())
}

/// Makes a TUN in the calling thread's network namespace; it goes with its descriptor. For tests, where no vpc is.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN`, `EBUSY` when another has it.
#[cfg(feature = "test-parts")]
pub fn open(name: &str) -> io::Result<rustix::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
    const IFF_TUN: u16 = 0x0001;
    const IFF_NO_PI: u16 = 0x1000;
    const IFF_VNET_HDR: u16 = 0x4000;
    const NAME_BYTES: usize = 16;

    /// `struct ifreq`, as far as TUNSETIFF reads it: the name, the flags, and the rest of the union.
    #[repr(C)]
    struct Request {
        name: [u8; NAME_BYTES],
        flags: u16,
        rest: [u8; 22],
    }

    let bytes = name.as_bytes();
    if bytes.len() >= NAME_BYTES || bytes.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut request =
        Request { name: [0; NAME_BYTES], flags: IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().zip(bytes) {
        *to = *from;
    }
    let mode = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let queue = rustix::fs::open("/dev/net/tun", mode, Mode::empty())?;
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq`, as which `Request` is laid out.
    unsafe { ioctl(&queue, rustix::ioctl::Updater::<TUNSETIFF, Request>::new(&mut request)) }?;
    Ok(queue)
}
