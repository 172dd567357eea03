//! The kernel's own announcements of devices that come, go and change.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The kernel's own uevents (udev's re-broadcasts are group 2).
const KERNEL_EVENTS: u32 = 1;
/// Room for one event: the kernel's `UEVENT_BUFFER_SIZE` is 2048.
const EVENT_BYTES: usize = 4096;

/// Hears of devices.
pub struct Uevents {
    socket: OwnedFd,
}

impl Uevents {
    /// Begins to listen.
    ///
    /// # Errors
    /// When the kernel gives no such socket.
    pub fn listen() -> Result<Self, Errno> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
        Ok(Self { socket })
    }

    /// Returns at an event or at the end of the time. What the event says is not told: whoever waits looks itself.
    ///
    /// # Errors
    /// What poll(2) and recv(2) answer.
    pub fn wait(&self, longest: Duration) -> Result<(), Errno> {
        let longest = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&longest)) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        match recv(&self.socket, &mut [0; EVENT_BYTES][..], RecvFlags::DONTWAIT) {
            // A full queue lost events; whoever waits looks anyway.
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}
