//! Says on the link that an IPv6 address is ours. vpc tells others of the address from then on: a system without this, or
//! without IPv6, must not be tried in vain.

use model::net::MacAddress;
use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_multicast_hops;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, bind, ipproto, sendto, socket_with};
use std::net::{Ipv6Addr, SocketAddrV6};
use std::thread;
use std::time::Duration;

/// All nodes of the link (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// What neighbour discovery has, so that nobody behind a router can say it (RFC 4861 section 4.4).
const HOPS: u32 = 255;

/// How often it is tried while the kernel has no way yet for groups on the link: it makes one when it has noticed that the
/// NIC is up, some milliseconds after it was told to bring it up.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// When it is said again (RFC 4861 section 7.2.6 allows three times in all): a NIC that was brought up just now drops
/// what is sent without a word, until the kernel has put its queue in place.
const AGAIN: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(1)];

/// Sends an unsolicited neighbour advertisement, and some more in a while. The NIC must be up, and the address its own.
///
/// # Errors
/// When the kernel refuses.
pub fn announce(nic: u32, mac: MacAddress, address: Ipv6Addr) -> Result<(), Errno> {
    let socket =
        socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))?;
    set_ipv6_multicast_hops(&socket, HOPS)?;
    bind(&socket, &SocketAddrV6::new(address, 0, 0, 0))?;
    let message = advertisement(mac, address);
    // The kernel puts in the checksum (RFC 3542 section 3.1).
    let all = SocketAddrV6::new(ALL_NODES, 0, 0, nic);
    let send = move || sendto(&socket, &message, SendFlags::DONTWAIT, &all).map(drop);
    let mut sent = send();
    for _ in 1..TRIES {
        if sent != Err(Errno::NETUNREACH) {
            break;
        }
        thread::sleep(PAUSE);
        sent = send();
    }
    sent?;
    let again = move || {
        for pause in AGAIN {
            thread::sleep(pause);
            // It was said once. The address may have been taken away meanwhile, and then it must not be said.
            if send().is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("announce".to_owned()).spawn(again).map_err(|_| Errno::AGAIN).map(drop)
}

/// The message, with the Ethernet address as its only option (RFC 4861 sections 4.4 and 4.6.1).
fn advertisement(mac: MacAddress, address: Ipv6Addr) -> Vec<u8> {
    const ADVERTISEMENT: u8 = 136;
    /// What was known of the address before is not true any more.
    const OVERRIDE: u8 = 0x20;
    const TARGET_MAC: u8 = 2;
    /// In units of 8 bytes.
    const OPTION_LENGTH: u8 = 1;
    let mut message = vec![ADVERTISEMENT, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend(address.octets());
    message.extend([TARGET_MAC, OPTION_LENGTH]);
    message.extend(mac.0);
    message
}
