//! Messages of sock_diag(7) that list and close sockets (linux/inet_diag.h). No crate has them in the closing form.

use std::net::IpAddr;

/// `SOCK_DIAG_BY_FAMILY`: a listing, and each socket of its answer.
const BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`
const DESTROY: u16 = 21;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLM_F_ACK`
const ACK: u16 = 4;
/// `NLM_F_DUMP`
const DUMP: u16 = 0x300;
/// Octets of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Octets of `struct inet_diag_sockid`.
const ID_BYTES: usize = 48;
/// Where the local address stands in it, behind the two ports.
const SOURCE: usize = 4;
/// Where it stands in `struct inet_diag_msg`, behind family, state, timer and retransmissions.
const ID_IN_ANSWER: usize = 4;
/// `AF_INET`
pub const IPV4: u8 = 2;
/// `AF_INET6`
pub const IPV6: u8 = 10;
/// `IPPROTO_TCP`
pub const TCP: u8 = 6;
/// `IPPROTO_UDP`
pub const UDP: u8 = 17;

/// Which sockets a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// [`IPV4`] or [`IPV6`].
    pub family: u8,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
}

/// A socket as the kernel names it: `struct inet_diag_sockid`, with a cookie that no later socket has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId([u8; ID_BYTES]);

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A socket of a listing.
    Socket {
        /// Its name.
        id: SocketId,
        /// Its local address; of a mapped IPv4 address, that.
        source: IpAddr,
    },
    /// The listing is complete.
    Done,
    /// The request is carried out, or refused with this `errno`.
    Status(i32),
    /// Something else.
    Other,
}

/// Asks for all sockets of a kind, in every state.
#[must_use]
pub fn list(kind: Kind, sequence: u32) -> Vec<u8> {
    request(BY_FAMILY, REQUEST | DUMP, sequence, kind, &SocketId([0; ID_BYTES]))
}

/// Asks to close a socket as if its connection had broken.
#[must_use]
pub fn destroy(kind: Kind, sequence: u32, id: &SocketId) -> Vec<u8> {
    request(DESTROY, REQUEST | ACK, sequence, kind, id)
}

/// A header and a `struct inet_diag_req_v2`.
fn request(what: u16, flags: u16, sequence: u32, kind: Kind, id: &SocketId) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(what.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // Port 0: the kernel fills in ours.
    bytes.extend([0; 4]);
    bytes.extend([kind.family, kind.protocol, 0, 0]);
    // All states.
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(id.0);
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes
}

/// Takes the first message off `bytes`; nothing when there is none, or none that makes sense.
pub fn next(bytes: &mut &[u8]) -> Option<(u32, Answer)> {
    let now = *bytes;
    let u16_at = |at: usize| Some(u16::from_ne_bytes(now.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(now.get(at..at + 4)?.try_into().ok()?));
    let length = u32_at(0)? as usize;
    let body = now.get(HEADER_BYTES..length)?;
    let (kind, sequence) = (u16_at(4)?, u32_at(8)?);
    // Messages are padded to four bytes (netlink(7)).
    *bytes = now.get(length.next_multiple_of(4)..).unwrap_or_default();
    let answer = match kind {
        BY_FAMILY => socket(body)?,
        DONE => Answer::Done,
        ERROR => Answer::Status(i32::from_ne_bytes(body.get(..4)?.try_into().ok()?).wrapping_neg()),
        _ => Answer::Other,
    };
    Some((sequence, answer))
}

fn socket(body: &[u8]) -> Option<Answer> {
    let id: [u8; ID_BYTES] = body.get(ID_IN_ANSWER..ID_IN_ANSWER + ID_BYTES)?.try_into().ok()?;
    let source: [u8; 16] = id[SOURCE..SOURCE + 16].try_into().ok()?;
    let source = match *body.first()? {
        IPV4 => IpAddr::from([source[0], source[1], source[2], source[3]]),
        _ => IpAddr::from(source).to_canonical(),
    };
    Some(Answer::Socket { id: SocketId(id), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(HEADER_BYTES + body.len()).expect("short").to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn requests_have_the_kernels_length() {
        let bytes = list(Kind { family: IPV4, protocol: TCP }, 1);
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[..4], 72u32.to_ne_bytes());
    }

    #[test]
    fn a_mapped_address_is_that_of_ipv4_and_a_refusal_is_a_positive_number() {
        let mut body = [0; 72];
        body[0] = IPV6;
        body[ID_IN_ANSWER + SOURCE + 10..ID_IN_ANSWER + SOURCE + 16]
            .copy_from_slice(&[0xff, 0xff, 10, 0, 0, 2]);
        let mut bytes = message(BY_FAMILY, &body);
        bytes.extend(message(ERROR, &(-2i32).to_ne_bytes()));
        let mut rest = &bytes[..];
        let Some((7, Answer::Socket { source, .. })) = next(&mut rest) else { panic!("a socket") };
        assert_eq!(source, IpAddr::from([10, 0, 0, 2]));
        assert_eq!(next(&mut rest), Some((7, Answer::Status(2))));
        assert_eq!(next(&mut rest), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut rest = &bytes[..];
            let mut before = rest.len();
            while next(&mut rest).is_some() {
                prop_assert!(rest.len() < before);
                before = rest.len();
            }
        }

        #[test]
        fn a_socket_comes_back_by_its_name(id in proptest::collection::vec(any::<u8>(), ID_BYTES)) {
            let mut body = vec![IPV4, 1, 0, 0];
            body.extend(&id);
            let bytes = message(BY_FAMILY, &body);
            let Some((7, Answer::Socket { id: found, .. })) = next(&mut &bytes[..]) else { panic!("a socket") };
            let kind = Kind { family: IPV4, protocol: UDP };
            prop_assert_eq!(&destroy(kind, 1, &found)[24..], &id[..]);
        }
    }
}
