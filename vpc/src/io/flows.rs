//! Tracked flows (conntrack): forgetting those of one port.
//!
//! Every flow carries its port's mark (see [`crate::pure::rules`]), so one message of include/uapi/linux/netfilter/
//! nfnetlink_conntrack.h deletes them: `IPCTNL_MSG_CT_DELETE` with a mark and no tuple.

use crate::io::namespace::{Inside, NamespaceError};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use std::io;
use thiserror::Error;

// include/uapi/linux/netlink.h and netfilter/nfnetlink*.h
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
const DELETE_FLOWS: u16 = (1 << 8) | 2;
const AF_INET: u8 = 2;
const CTA_MARK: u16 = 8;
const CTA_MARK_MASK: u16 = 21;
/// Bytes of the whole request: two headers of 16 and 4, two attributes of 8.
const REQUEST_BYTES: u32 = 36;

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

/// Forgets all flows with this mark.
///
/// # Errors
/// See [`FlowsError`].
pub async fn forget(inside: &Inside, mark: u32) -> Result<(), FlowsError> {
    inside.run(move || delete(mark)).await?.map_err(FlowsError::Delete)
}

fn delete(mark: u32) -> io::Result<()> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(mark), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let field = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    match (kind, field(16).map(i32::from_ne_bytes)) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn request(mark: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_BYTES as usize);
    bytes.extend(REQUEST_BYTES.to_ne_bytes());
    bytes.extend(DELETE_FLOWS.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([AF_INET, 0, 0, 0]);
    for (kind, value) in [(CTA_MARK, mark), (CTA_MARK_MASK, u32::MAX)] {
        bytes.extend(8u16.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value.to_be_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_it_says() {
        assert_eq!(request(7).len(), REQUEST_BYTES as usize);
    }

    #[test]
    fn the_kernel_takes_it() {
        std::thread::spawn(|| {
            crate::sys::namespace::enter_new().expect("this test needs root");
            delete(0x0ac9_0005).expect("nothing to delete is fine");
        })
        .join()
        .expect("the thread's own assertions hold");
    }
}
