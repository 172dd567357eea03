#![expect(unsafe_code, reason = "TUN devices are made by ioctl(2)")]
//! Queues of TAP devices and the TUN of VPN clients, after the kernel's Documentation/networking/tuntap.rst and include/uapi/linux/if_tun.h.
//!
//! What happens to a second opening was tried on Linux 6.18 and agrees with `tun_attach` in drivers/net/tun.c:
//! a persistent TAP of one queue refuses it (`EBUSY`) as long as any process holds the first; one of several queues
//! accepts it and would spread the guest's frames over both. So nobody opens a queue of a TAP that is held; the
//! descriptors themselves are handed on.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};
use std::ffi::c_void;
use std::io;

/// Bytes of `struct virtio_net_hdr_v1` in front of each frame (virtio 1.2, section 5.1.6).
pub const VNET_HEADER_BYTES: i32 = 12;

/// Size of a device name with its NUL (`IFNAMSIZ`).
const NAME_BYTES: usize = 16;

// include/uapi/linux/if_tun.h
const TUNSETIFF: Opcode = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<i32>(b'T', 203);
const TUNSETVNETHDRSZ: Opcode = opcode::write::<i32>(b'T', 216);
const TUNGETIFF: Opcode = opcode::read::<u32>(b'T', 210);
const IFF_TUN: u16 = 0x0001;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_TUN_EXCL: u16 = 0x8000;
/// In answers only.
const IFF_PERSIST: u16 = 0x0800;

/// Whether the device must be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It must not exist yet.
    New,
    /// It must exist and have no holder.
    Existing,
}

/// Opens all queues of a TAP in the calling thread's network namespace, non-blocking. The device outlives them.
///
/// # Errors
/// `EEXIST` when it was to be new and is not, `EBUSY` when its one queue is held, `EPERM` without `CAP_NET_ADMIN`,
/// `EINVAL` when it was made for another number of queues. A new device is gone again after an error.
pub fn open(name: &str, queues: u8, opening: Opening) -> io::Result<Vec<OwnedFd>> {
    let mut flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if queues > 1 {
        flags |= IFF_MULTI_QUEUE;
    }
    let mut opened = Vec::with_capacity(usize::from(queues));
    for queue in 0..queues {
        let exclusive = if queue == 0 && opening == Opening::New { IFF_TUN_EXCL } else { 0 };
        opened.push(open_queue(name, flags | exclusive)?);
    }
    if let Some(first) = opened.first() {
        call(first, TUNSETVNETHDRSZ, Argument::Pointer(&mut Number(VNET_HEADER_BYTES)))?;
        call(first, TUNSETPERSIST, Argument::<Number>::Value(1))?;
    }
    Ok(opened)
}

/// Makes the TUN of VPN clients in the calling thread's network namespace. It has a header in front of each packet, and no
/// holder.
///
/// # Errors
/// `EBUSY` when it is there and held, `EPERM` without `CAP_NET_ADMIN`.
pub fn make_clients(name: &str) -> io::Result<()> {
    let queue = open_queue(name, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL)?;
    call(&queue, TUNSETPERSIST, Argument::<Number>::Value(1))
}

/// Opens the TUN of VPN clients, non-blocking.
///
/// # Errors
/// `EBUSY` when it is held, `ENOENT` when it is not there, `EINVAL` when it is a TAP.
pub fn open_clients(name: &str) -> io::Result<OwnedFd> {
    let queue = open_queue(name, IFF_TUN | IFF_NO_PI | IFF_VNET_HDR)?;
    let mut found = InterfaceRequest { name: [0; NAME_BYTES], flags: 0, rest: [0; 22] };
    call(&queue, TUNGETIFF, Argument::Pointer(&mut found))?;
    if found.flags & IFF_PERSIST == 0 {
        // It is a new one, which goes with its descriptor: no rule of ours has ever seen it.
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    call(&queue, TUNSETVNETHDRSZ, Argument::Pointer(&mut Number(VNET_HEADER_BYTES)))?;
    Ok(queue)
}

fn open_queue(name: &str, flags: u16) -> io::Result<OwnedFd> {
    let bytes = name.as_bytes();
    if bytes.len() >= NAME_BYTES || bytes.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut request = InterfaceRequest { name: [0; NAME_BYTES], flags, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().zip(bytes) {
        *to = *from;
    }
    let mode = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let queue = rustix::fs::open("/dev/net/tun", mode, Mode::empty())?;
    call(&queue, TUNSETIFF, Argument::Pointer(&mut request))?;
    Ok(queue)
}

/// `struct ifreq`, as far as TUNSETIFF and TUNGETIFF know it: the name, the flags, and the rest of the union.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

#[repr(C)]
struct Number(i32);

/// What the calls of this module may point at: plain data at least as large as the kernel reads and writes.
trait Plain {}
impl Plain for InterfaceRequest {}
impl Plain for Number {}

/// An ioctl's third argument: a number, or where one lies.
enum Argument<'a, T: Plain> {
    Value(usize),
    Pointer(&'a mut T),
}

struct Call<'a, T: Plain> {
    code: Opcode,
    argument: Argument<'a, T>,
}

// SAFETY: the four opcodes of this module take either a number (TUNSETPERSIST) or a pointer to the very type that
// `call` is given for them, which `Plain` types are; the borrow lasts as long as the call.
unsafe impl<T: Plain> Ioctl for Call<'_, T> {
    type Output = ();
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.code
    }

    fn as_ptr(&mut self) -> *mut c_void {
        match &mut self.argument {
            Argument::Value(number) => std::ptr::without_provenance_mut(*number),
            Argument::Pointer(data) => std::ptr::from_mut::<T>(data).cast(),
        }
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> Result<(), Errno> {
        Ok(())
    }
}

fn call<T: Plain>(queue: &OwnedFd, code: Opcode, argument: Argument<'_, T>) -> io::Result<()> {
    // SAFETY: as said at the implementation of `Ioctl`: code and argument fit in all calls of this module.
    Ok(unsafe { ioctl::ioctl(queue.as_fd(), Call { code, argument }) }?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::namespace;

    /// Runs in a namespace of its own, on a thread of its own.
    fn alone<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(|| {
            namespace::enter_new().expect("this test needs root");
            work()
        })
        .join()
        .expect("the thread's own assertions hold")
    }

    fn exists(name: &str) -> bool {
        let devices = std::fs::read_to_string("/proc/thread-self/net/dev").expect("readable");
        devices.lines().any(|line| line.trim_start().starts_with(&format!("{name}:")))
    }

    #[test]
    fn a_tap_outlives_its_holder_and_has_one_at_a_time() {
        alone(|| {
            let held = open("tone", 1, Opening::New).expect("new");
            let again = open("tone", 1, Opening::New).expect_err("not new");
            assert_eq!(again.kind(), io::ErrorKind::ResourceBusy, "{again}");
            let second = open("tone", 1, Opening::Existing).expect_err("held");
            assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
            drop(held);
            assert!(exists("tone"));
            assert_eq!(open("tone", 1, Opening::Existing).expect("free").len(), 1);
            assert!(open("tone", 2, Opening::Existing).is_err(), "made for one queue");
        });
    }

    #[test]
    fn the_clients_tun_outlives_its_holder_and_is_made_in_one_place_alone() {
        alone(|| {
            let absent = open_clients("clients").expect_err("not there");
            assert_eq!(absent.kind(), io::ErrorKind::NotFound, "{absent}");
            assert!(!exists("clients"), "and is not made by asking");
            make_clients("clients").expect("new");
            let held = open_clients("clients").expect("free");
            let second = open_clients("clients").expect_err("held");
            assert_eq!(second.kind(), io::ErrorKind::ResourceBusy);
            drop(held);
            assert!(exists("clients"));
            drop(open_clients("clients").expect("free again"));
            assert!(open("clients", 1, Opening::Existing).is_err(), "no TAP");
        });
    }

    #[test]
    fn a_tap_may_have_several_queues() {
        alone(|| {
            assert_eq!(open("tmany", 4, Opening::New).expect("new").len(), 4);
            assert!(exists("tmany"));
            assert!(open("a-name-that-is-too-long", 1, Opening::New).is_err());
        });
    }
}
