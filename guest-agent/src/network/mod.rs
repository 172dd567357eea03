//! The NIC: found by its Ethernet address, given its /32 and its routes over netlink, and its name servers.

mod announce;
mod kernel;
mod sockets;

use crate::error_chain;
use crate::machine::FILE_MODE;
use crate::place::Root;
use announce::announce;
use kernel::Kernel;
use model::net::{GATEWAY_IPV6, GuestIpv6, GuestNetwork, MacAddress};
use rustix::io::Errno;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use thiserror::Error;

/// Most name servers that the C library looks at (`MAXNS`, resolv.h).
const MAX_NAME_SERVERS: usize = 3;
/// Where the name servers are written.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Why the network is not set.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// No netlink.
    #[error("cannot talk to the kernel's network")]
    Socket(#[source] io::Error),
    /// The answer makes no sense.
    #[error("cannot understand the kernel's answer: {0}")]
    Decode(String),
    /// The kernel refuses.
    #[error("the kernel refuses to {action}")]
    Refused {
        /// What was asked.
        action: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// No NIC has that address.
    #[error("there is no NIC with the address {0}")]
    NoNic(MacAddress),
    /// The name servers cannot be written.
    #[error("cannot write {RESOLV_CONF}")]
    Resolver(#[source] io::Error),
}

/// Sets address, routes and name servers; what another configuration of ours left on the NIC goes away.
///
/// # Errors
/// See [`NetworkError`].
pub fn configure(root: &Root, network: &GuestNetwork) -> Result<(), NetworkError> {
    configure_kernel(network)?;
    write_resolver(root, network)
}

/// Makes the NIC another one: Ethernet address, address, routes and name servers. All that the NIC had goes away, and
/// the sockets of its addresses are closed. `before` is the NIC's Ethernet address until now, when it is known; else
/// the first NIC of hardware is meant.
///
/// # Errors
/// See [`NetworkError`]. Sockets that cannot be closed are no error, but a line in the log.
pub fn become_another(
    root: &Root,
    network: &GuestNetwork,
    before: Option<MacAddress>,
) -> Result<(), NetworkError> {
    renew_kernel(network, before)?;
    write_resolver(root, network)
}

fn renew_kernel(network: &GuestNetwork, before: Option<MacAddress>) -> Result<(), NetworkError> {
    let mut kernel = Kernel::open()?;
    let nic = kernel.any_nic(network.mac, before)?;
    let addresses = kernel.addresses(nic)?;
    // First of all down: what ends now must not be told to the peers of the machine that this one was. With the link
    // the kernel takes away its routes, neighbours and IPv6 addresses.
    kernel.set_down(nic)?;
    kernel.set_mac(nic, network.mac)?;
    kernel.remove_addresses(nic, None)?;
    match sockets::close_all(&addresses) {
        Ok(count) => eprintln!("gatehouse-agent: {count} sockets of the old addresses are closed"),
        Err(error) => {
            eprintln!("gatehouse-agent: connections wait for their timeouts: {}", error_chain(&error));
        }
    }
    drop(kernel);
    configure_kernel(network)
}

fn write_resolver(root: &Root, network: &GuestNetwork) -> Result<(), NetworkError> {
    crate::machine::replace_file(&root.at(RESOLV_CONF), &resolver(&network.dns), FILE_MODE)
        .map_err(NetworkError::Resolver)
}

fn configure_kernel(network: &GuestNetwork) -> Result<(), NetworkError> {
    let mut kernel = Kernel::open()?;
    let nic = kernel.nic(network.mac)?;
    kernel.set_up(nic, network.mtu)?;
    kernel.replace_address(nic, network.ipv4.into())?;
    kernel.remove_addresses(nic, Some(network.ipv4))?;
    // The gateway is on the link although no prefix of ours covers it.
    kernel.replace_route(nic, Some(network.gateway), None)?;
    kernel.replace_route(nic, None, Some(network.gateway))?;
    // A system may have turned IPv6 off, and goes on without it.
    if let Err(error) = configure_ipv6(&mut kernel, (nic, network.mac), network.ipv6.as_ref()) {
        eprintln!("gatehouse-agent: the NIC speaks IPv4 alone: {}", error_chain(&error));
    }
    Ok(())
}

/// Sets IPv6, or takes away what an earlier configuration of ours set of it.
fn configure_ipv6(
    kernel: &mut Kernel,
    (nic, mac): (u32, MacAddress),
    ipv6: Option<&GuestIpv6>,
) -> Result<(), NetworkError> {
    let address = ipv6.map(|ipv6| ipv6.address);
    if let Some(ipv6) = ipv6 {
        believe_no_router(kernel, nic)?;
        kernel.replace_address(nic, ipv6.address.into())?;
        kernel.replace_ipv6_route(nic, ipv6.address, ipv6.gateway)?;
    }
    kernel.remove_ipv6_routes(nic, ipv6.map_or(GATEWAY_IPV6, |ipv6| ipv6.gateway), address)?;
    kernel.remove_local_ipv6(nic, address)?;
    // Last: from now on others may try it.
    address.map_or(Ok(()), |address| {
        let refused =
            |cause: Errno| NetworkError::Refused { action: "announce the address", cause: cause.into() };
        announce(nic, mac, address).map_err(refused)
    })
}

/// Addresses and routes come from us alone.
fn believe_no_router(kernel: &mut Kernel, nic: u32) -> Result<(), NetworkError> {
    let Some(name) = kernel.name(nic)? else { return Ok(()) };
    let setting = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
    std::fs::write(setting, "0")
        .map_err(|cause| NetworkError::Refused { action: "ignore routers' advertisements", cause })
}

fn resolver(servers: &[IpAddr]) -> String {
    let mut text = String::from("# Written by the Gatehouse agent.\n");
    for server in servers.iter().take(MAX_NAME_SERVERS) {
        // Writing to a String cannot fail.
        let written = writeln!(text, "nameserver {server}");
        debug_assert!(written.is_ok());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, ipproto, recvfrom, socket_with, sockopt,
    };
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV6};
    use std::os::fd::OwnedFd;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    fn ip(words: &str) -> String {
        let done = Command::new("ip").args(words.split(' ')).output().expect("ip");
        assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).expect("text")
    }

    fn settings(ipv4: [u8; 4]) -> GuestNetwork {
        GuestNetwork {
            mac: MacAddress([2, 0x67, 10, 0, 0, 2]),
            ipv4: ipv4.into(),
            gateway: Ipv4Addr::new(169, 254, 1, 1),
            dns: vec![],
            mtu: 1400,
            ipv6: None,
        }
    }

    fn with_ipv6(address: &str) -> GuestNetwork {
        let address: Ipv6Addr = address.parse().expect("an address");
        GuestNetwork { ipv6: Some(GuestIpv6 { address, gateway: GATEWAY_IPV6 }), ..settings([10, 0, 0, 2]) }
    }

    /// In a network namespace of the test's own thread, which its children inherit.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = thread::spawn(|| {
            crate::sys::namespace::new_network().expect("network namespace");
            test();
        });
        thread.join().expect("test");
    }

    #[test]
    fn a_nic_gets_its_address_and_routes_and_a_second_time_new_ones() {
        in_namespace(|| {
            ip("link add nic0 address 02:67:0a:00:00:02 type veth peer name other");
            ip("link set other up");
            for (address, text) in [([10, 0, 0, 2], "10.0.0.2/32"), ([10, 0, 0, 9], "10.0.0.9/32")] {
                configure_kernel(&settings(address)).expect("configured");
                let addresses = ip("-4 -o address show dev nic0");
                assert!(addresses.contains(text) && addresses.lines().count() == 1, "{addresses}");
            }
            assert!(ip("link show nic0").contains("mtu 1400"));
            let routes = ip("route show");
            assert!(routes.contains("default via 169.254.1.1 dev nic0 proto static onlink"), "{routes}");
            assert!(routes.contains("169.254.1.1 dev nic0 proto static scope link"), "{routes}");
            assert_eq!(routes.lines().count(), 2, "{routes}");
        });
    }

    /// A socket for messages of ICMPv6 that come in at a NIC for all of its link.
    fn icmpv6_at(nic: u32) -> OwnedFd {
        let socket =
            socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6));
        let socket = socket.expect("a raw socket");
        bind(&socket, &SocketAddrV6::new(announce::ALL_NODES, 0, 0, nic)).expect("bound");
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(60)))
            .expect("set");
        socket
    }

    /// Waits for the advertisement of an address, and checks the whole of it.
    fn await_advertisement(socket: &OwnedFd, address: Ipv6Addr) {
        let mut bytes = [0; 1500];
        loop {
            let (length, _, from) = recvfrom(socket, &mut bytes[..], RecvFlags::empty()).expect("announced");
            let from = SocketAddrV6::try_from(from.expect("a sender")).expect("an address");
            if bytes[0] == 136 && *from.ip() == address {
                let option = [&[2, 1][..], &[2, 0x67, 10, 0, 0, 2]].concat();
                let expected = [&[0x20, 0, 0, 0][..], &address.octets(), &option].concat();
                assert_eq!(bytes[4..length], expected);
                return;
            }
        }
    }

    #[test]
    fn a_nic_gets_its_ipv6_and_loses_it_again() {
        in_namespace(|| {
            ip("link add nic0 address 02:67:0a:00:00:02 type veth peer name other");
            ip("link set other up");
            let addresses = || ip("-6 -o address show dev nic0 scope global");
            let routes = || ip("-6 route show dev nic0 proto static");
            let other = ip("-o link show other");
            let other = other.split(':').next().and_then(|index| index.parse().ok()).expect("a number");
            let heard = icmpv6_at(other);
            // Again, and in another network.
            for network in [1, 1, 2] {
                let address = format!("fd00:1:1:{network}::a00:2");
                configure_kernel(&with_ipv6(&address)).expect("configured");
                let address: Ipv6Addr = address.parse().expect("an address");
                await_advertisement(&heard, address);
                let now = addresses();
                assert!(now.contains(&format!("fd00:1:1:{network}::a00:2/128")), "{now}");
                assert!(!now.contains("tentative") && now.lines().count() == 1, "{now}");
                let now = routes();
                assert!(now.contains(&format!("fd00:1:1:{network}::/64 via fe80::1")), "{now}");
                assert!(now.contains("onlink") && now.lines().count() == 1, "{now}");
            }
            let setting = std::fs::read_to_string("/proc/sys/net/ipv6/conf/nic0/accept_ra");
            assert_eq!(setting.expect("a setting").trim(), "0");
            // What the system's owner set stays.
            ip("address add 2001:db8::7/64 dev nic0 nodad");
            configure_kernel(&settings([10, 0, 0, 2])).expect("configured");
            let now = addresses();
            assert!(now.contains("2001:db8::7/64") && now.lines().count() == 1, "{now}");
            assert_eq!(routes(), "");
            // A system that speaks none goes on without it.
            std::fs::write("/proc/sys/net/ipv6/conf/nic0/disable_ipv6", "1").expect("off");
            configure_kernel(&with_ipv6("fd00::a00:2")).expect("configured");
            assert!(ip("-4 -o address show dev nic0").contains("10.0.0.2/32"));
        });
    }

    #[test]
    fn a_nic_becomes_another_and_keeps_nothing() {
        in_namespace(|| {
            ip("link add nic0 address 02:67:0a:00:00:01 type veth peer name other");
            ip("link set other up");
            let old = GuestNetwork { mac: MacAddress([2, 0x67, 10, 0, 0, 1]), ..settings([10, 0, 0, 1]) };
            configure_kernel(&old).expect("configured");
            ip("address add 10.7.0.1/24 dev nic0");
            ip("route add 10.8.0.0/24 via 10.7.0.9 dev nic0");
            ip("route add default via 10.7.0.9 dev nic0 table 77");
            let bound = std::net::TcpListener::bind("10.0.0.1:0").expect("bound");
            // Also a second time, when the first answer was lost.
            for _ in 0..2 {
                renew_kernel(&settings([10, 0, 0, 2]), Some(old.mac)).expect("renewed");
                let addresses = ip("-4 -o address show dev nic0");
                assert!(addresses.contains("10.0.0.2/32") && addresses.lines().count() == 1, "{addresses}");
                assert_eq!(ip("route show table all type unicast dev nic0").matches("10.").count(), 0);
                assert!(ip("link show nic0").contains("02:67:0a:00:00:02"));
                assert!(ip("route show").contains("default via 169.254.1.1 dev nic0"));
            }
            assert!(bound.accept().is_err());
        });
    }

    #[test]
    fn a_nic_that_is_not_there_is_named() {
        in_namespace(|| {
            let error = configure_kernel(&settings([10, 0, 0, 2])).expect_err("no NIC");
            assert!(error.to_string().contains("02:67:0a:00:00:02"), "{error}");
            ip("link add bridge0 type bridge");
            let error = renew_kernel(&settings([10, 0, 0, 2]), None).expect_err("no NIC");
            assert!(matches!(error, NetworkError::NoNic(_)), "{error}");
        });
    }

    #[test]
    fn name_servers_are_bounded() {
        let servers = vec![IpAddr::from([1, 1, 1, 1]); 9];
        assert_eq!(resolver(&servers).matches("nameserver 1.1.1.1\n").count(), MAX_NAME_SERVERS);
    }
}
