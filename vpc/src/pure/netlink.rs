//! Netlink messages of the packet filter (include/uapi/linux/netlink.h, netfilter/nfnetlink.h) as bytes. Nothing that is too
//! short, or says that it is longer than it is, is read.

/// `CTA_TUPLE_ORIG`: a flow in the direction in which it began.
pub const ORIGINAL: u16 = 1;
/// `CTA_TUPLE_IP`: its addresses.
pub const TUPLE_ADDRESSES: u16 = 1;
/// `CTA_IP_V4_DST`.
pub const IPV4_DESTINATION: u16 = 2;
/// `CTA_IP_V6_DST`.
pub const IPV6_DESTINATION: u16 = 4;
/// Flags of a request: the kernel says whether it did it.
pub const NLM_F_ACK: u16 = 4;
/// Any request has it.
const NLM_F_REQUEST: u16 = 1;
/// IPv4's family.
pub const AF_INET: u8 = 2;
/// IPv6's.
pub const AF_INET6: u8 = 10;

/// Bytes of a message's header.
const HEADER: usize = 16;
/// Bytes of the header behind it: family, version, resource.
const FAMILY_HEADER: usize = 4;
/// Bytes of an attribute's header.
const ATTRIBUTE_HEADER: usize = 4;
/// Of an attribute's kind, without the flags for nesting and byte order.
const KIND: u16 = 0x3fff;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// What it is: subsystem and operation.
    pub kind: u16,
    /// Flags of the header.
    pub flags: u16,
    /// Behind the first header.
    pub body: &'a [u8],
    /// Behind the second; empty when there is none.
    pub attributes: &'a [u8],
}

impl Message<'_> {
    /// The number with which an error begins, negative; zero of an acknowledgement.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.body.first_chunk().copied().map(i32::from_ne_bytes)
    }
}

/// The messages of a datagram.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*bytes.first_chunk()?)).ok()?;
        let (kind, flags) = (short(bytes, 4)?, short(bytes, 6)?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(aligned(length)..).unwrap_or_default();
        Some(Message { kind, flags, body, attributes: body.get(FAMILY_HEADER..).unwrap_or_default() })
    })
}

/// Attributes, one behind the other.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the first of this kind.
    #[must_use]
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        Iterator::find(&mut self, |(found, _)| *found == kind).map(|(_, value)| value)
    }

    /// The attributes inside the first of this kind; none when there is none.
    #[must_use]
    pub fn inside(self, kind: u16) -> Self {
        Self(self.find(kind).unwrap_or_default())
    }

    /// A number in network byte order, when it is of this length.
    #[must_use]
    pub fn number<const N: usize>(self, kind: u16) -> Option<[u8; N]> {
        self.find(kind)?.try_into().ok()
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, kind) = (usize::from(short(self.0, 0)?), short(self.0, 2)?);
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((kind & KIND, value))
    }
}

/// An attribute as bytes, filled up to the next multiple of four. `value` is at most 65,531 bytes.
#[must_use]
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(ATTRIBUTE_HEADER + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// A whole message of the packet filter for the resource, in IPv4's family.
#[must_use]
pub fn request(kind: u16, flags: u16, resource: u16, attributes: &[u8]) -> Vec<u8> {
    request_of(AF_INET, kind, flags, resource, attributes)
}

/// The same in a family.
#[must_use]
pub fn request_of(family: u8, kind: u16, flags: u16, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 4];
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    bytes.extend([1u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    bytes.splice(..4, length.to_ne_bytes());
    bytes
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let inner = [attribute(1, b"abc"), attribute(2, b""), attribute(1, b"later")].concat();
        let all = [attribute(7 | 1 << 15, &inner), attribute(9, &[0, 0, 1, 0])].concat();
        let all = Attributes(&all);
        assert_eq!(all.inside(7).find(1), Some(&b"abc"[..]));
        assert_eq!(all.inside(7).find(2), Some(&b""[..]));
        assert_eq!(all.inside(8).find(1), None);
        assert_eq!(all.number(9).map(u32::from_be_bytes), Some(256));
        assert_eq!(all.number(9).map(u16::from_be_bytes), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_read_beyond_their_end_or_for_ever(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for message in messages(&bytes) {
                prop_assert!(Attributes(message.attributes).count() <= message.attributes.len() / 4);
            }
            prop_assert!(messages(&bytes).count() <= bytes.len() / 16);
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4 + 1);
        }
    }
}
