//! Tracked flows (conntrack): forgetting those of one port.
//!
//! Every flow carries the mark of the port that began it (see [`crate::pure::rules`]), so one message of
//! include/uapi/linux/netfilter/nfnetlink_conntrack.h deletes those: `IPCTNL_MSG_CT_DELETE` with a mark and no tuple.
//! Flows that others began with the port are listed by their destination (`CTA_FILTER`, Linux 5.8) and deleted one by one;
//! kernels delete by such a filter only since 6.11.

use crate::io::namespace::{Inside, NamespaceError};
use crate::pure::netlink::{
    AF_INET, AF_INET6, Attributes, IPV4_DESTINATION, IPV6_DESTINATION, Message, NLM_F_ACK, ORIGINAL,
    TUPLE_ADDRESSES, attribute, messages, request, request_of,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use std::net::IpAddr;
use thiserror::Error;

// include/uapi/linux/netlink.h and netfilter/nfnetlink*.h
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NEW_FLOW: u16 = 1 << 8;
const GET_FLOWS: u16 = (1 << 8) | 1;
const DELETE_FLOWS: u16 = (1 << 8) | 2;
const NESTED: u16 = 1 << 15;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
const CTA_FILTER_F_CTA_IP_DST: u32 = 1 << 1;
const ENOENT: i32 = 2;
/// Lists of the flows to one address: one that the table changed under is read again, and what a third one misses ends by
/// its own timer.
const MAX_LISTS: usize = 3;

/// Flows could not be forgotten.
#[derive(Debug, Error)]
pub enum FlowsError {
    /// The kernel has no such interface (module nf_conntrack_netlink), or refuses.
    #[error("tracked flows cannot be deleted: {0}")]
    Delete(#[source] io::Error),
    /// The namespace's thread does not serve.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// Forgets all flows of a port: those to one of its addresses, and with its IPv4 address those that it began from any.
///
/// # Errors
/// See [`FlowsError`].
pub async fn forget(inside: &Inside, address: IpAddr) -> Result<(), FlowsError> {
    inside.run(move || delete(address)).await?.map_err(FlowsError::Delete)
}

fn delete(address: IpAddr) -> io::Result<()> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    if let IpAddr::V4(address) = address {
        acknowledged(&socket, &by_mark(address.to_bits()))?;
    }
    for _ in 0..MAX_LISTS {
        let (flows, whole) = list(&socket, address)?;
        for flow in &flows {
            match acknowledged(&socket, &request_of(family(address), DELETE_FLOWS, NLM_F_ACK, 0, flow)) {
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(ENOENT) => {}
                other => other?,
            }
        }
        if whole {
            break;
        }
    }
    Ok(())
}

/// What names each flow to an address, and whether the list is whole.
fn list(socket: &Socket, address: IpAddr) -> io::Result<(Vec<Vec<u8>>, bool)> {
    socket.send(&request_of(family(address), GET_FLOWS, NLM_F_DUMP, 0, &by_destination(address)), 0)?;
    let (mut flows, mut whole) = (Vec::new(), true);
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        for message in messages(&bytes) {
            whole &= message.flags & NLM_F_DUMP_INTR == 0;
            match message.kind {
                NLMSG_DONE => return Ok((flows, whole)),
                NLMSG_ERROR => return Err(error_of(&message).unwrap_or(io::ErrorKind::InvalidData.into())),
                NEW_FLOW => flows.extend(named(&message, address)),
                _ => {}
            }
        }
    }
}

/// Of a listed flow to this address, the attributes that name it. A kernel that knows no filter lists others as well.
fn named(message: &Message<'_>, address: IpAddr) -> Option<Vec<u8>> {
    let flow = Attributes(message.attributes);
    let tuple = flow.find(ORIGINAL)?;
    let (kind, octets) = destination(address);
    let to = Attributes(Attributes(tuple).find(TUPLE_ADDRESSES)?).find(kind)?;
    if to != octets {
        return None;
    }
    let mut bytes = attribute(ORIGINAL | NESTED, tuple);
    for kind in [CTA_ID, CTA_ZONE] {
        bytes.extend(flow.find(kind).map(|value| attribute(kind, value)).unwrap_or_default());
    }
    Some(bytes)
}

/// Sends a request and waits for the kernel's word that it is done.
///
/// # Errors
/// What the kernel says against it.
pub fn acknowledged(socket: &Socket, request: &[u8]) -> io::Result<()> {
    socket.send(request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = messages(&answer).next().ok_or(io::ErrorKind::InvalidData)?;
    if answer.kind != NLMSG_ERROR {
        return Err(io::ErrorKind::InvalidData.into());
    }
    error_of(&answer).map_or(Ok(()), Err)
}

/// The error that a message tells; none when it is an acknowledgement.
fn error_of(message: &Message<'_>) -> Option<io::Error> {
    match message.code()? {
        0 => None,
        code => Some(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn by_mark(mark: u32) -> Vec<u8> {
    let fields = [(CTA_MARK, mark), (CTA_MARK_MASK, u32::MAX)];
    let attributes = fields.map(|(kind, value)| attribute(kind, &value.to_be_bytes())).concat();
    request(DELETE_FLOWS, NLM_F_ACK, 0, &attributes)
}

/// A filter by destination. None by an IPv6 one: the kernel then leaves out those that fit and lists the others (as of
/// Linux 6.18), so all of them are listed.
fn by_destination(address: IpAddr) -> Vec<u8> {
    let IpAddr::V4(address) = address else { return Vec::new() };
    let addresses = attribute(TUPLE_ADDRESSES | NESTED, &attribute(IPV4_DESTINATION, &address.octets()));
    let filter = attribute(CTA_FILTER_ORIG_FLAGS, &CTA_FILTER_F_CTA_IP_DST.to_ne_bytes());
    [attribute(ORIGINAL | NESTED, &addresses), attribute(CTA_FILTER | NESTED, &filter)].concat()
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn destination(address: IpAddr) -> (u16, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (IPV4_DESTINATION, address.octets().to_vec()),
        IpAddr::V6(address) => (IPV6_DESTINATION, address.octets().to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::process::Command;

    /// Destinations of the flows of the calling thread's namespace.
    fn flows() -> Vec<String> {
        let text = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").expect("flows");
        let destination = |line: &str| line.split("dst=").nth(1)?.split(' ').next().map(str::to_owned);
        text.lines().filter_map(destination).collect()
    }

    #[test]
    fn flows_of_an_address_and_to_it_are_forgotten_and_no_others() {
        std::thread::spawn(|| {
            crate::sys::namespace::enter_new().expect("this test needs root");
            delete(Ipv4Addr::new(10, 201, 0, 5).into()).expect("nothing to delete is fine");
            let rules = "add table inet t; add chain inet t c { type filter hook output priority mangle; }
                add rule inet t c ip daddr 127.0.0.4 ct mark set 0x7f000002; add rule inet t c ct state new accept";
            let made = Command::new("sh").arg("-ec").arg(format!("ip link set lo up; nft '{rules}'")).status();
            assert!(made.expect("sh starts").success());
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
            for last in 2..=4 {
                socket.send_to(b"x", (Ipv4Addr::new(127, 0, 0, last), 9)).expect("sent");
            }
            assert_eq!(flows().len(), 3);
            delete(Ipv4Addr::new(127, 0, 0, 2).into()).expect("deleted");
            assert_eq!(flows(), ["127.0.0.3"], "one was to it, and one had its mark");
            let socket = UdpSocket::bind("[::1]:0").expect("bound");
            for port in [8, 9] {
                socket.send_to(b"x", (Ipv6Addr::LOCALHOST, port)).expect("sent");
            }
            assert_eq!(flows().len(), 3);
            delete(Ipv6Addr::from_bits(2).into()).expect("nothing to delete is fine");
            assert_eq!(flows().len(), 3);
            delete(Ipv6Addr::LOCALHOST.into()).expect("deleted");
            assert_eq!(flows(), ["127.0.0.3"]);
        })
        .join()
        .expect("the thread's own assertions hold");
    }
}
