//! The header of a vsock packet (virtio 1.2 section 5.10.6).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Bytes of a header.
pub const HEADER: usize = 44;
/// Context id of the host.
pub const HOST_CID: u64 = 2;
/// Packets of a stream socket, the only type that is offered.
pub const TYPE_STREAM: u16 = 1;
/// SHUTDOWN flag: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// What a packet asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Connect.
    Request = 1,
    /// Accept.
    Response = 2,
    /// Refuse or break off.
    Reset = 3,
    /// Send or receive no more.
    Shutdown = 4,
    /// Data.
    Data = 5,
    /// Only the credit fields mean something.
    CreditUpdate = 6,
    /// Asks for a credit update.
    CreditRequest = 7,
}

impl Op {
    /// The operation with this number.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A header; numbers in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// Type of the socket.
    pub kind: u16,
    /// Number of an [`Op`].
    pub op: u16,
    /// Flags of SHUTDOWN.
    pub flags: u32,
    /// Bytes that the sender can keep for the receiver of its data.
    pub buf_alloc: u32,
    /// Bytes that left the sender's buffer since the start, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes(array(bytes, at));
        let u32_at = |at: usize| u32::from_le_bytes(array(bytes, at));
        let u64_at = |at: usize| u64::from_le_bytes(array(bytes, at));
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }

    /// Writes a header.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a field lies inside of the header")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_survives_bytes(bytes: [u8; 32], tail: [u8; 12]) {
            let mut all = [0u8; HEADER];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::parse(&all).to_bytes(), all);
        }
    }

    #[test]
    fn the_layout_is_that_of_the_specification() {
        let header =
            Header { src_cid: 3, dst_cid: HOST_CID, src_port: 0x0102_0304, op: 5, ..Header::default() };
        let bytes = header.to_bytes();
        assert_eq!(bytes[0], 3);
        assert_eq!(bytes[8], 2);
        assert_eq!(bytes[16..20], [4, 3, 2, 1]);
        assert_eq!(bytes[30..32], [5, 0]);
    }
}
