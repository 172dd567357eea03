//! boringtun's noise state machines behind what they leave to their user (version 0.7.1, read and tried):
//!
//! - A data counter at the protocol's limit makes the receiver's window overflow: refused in [`shape`].
//! - The limiter inside of each state would count handshakes a second time: it gets one without limit, and the real
//!   limits stand in front ([`super::budget`]).
//! - Plain packets are not padded: see [`padded`].
//! - Buffers that are too short panic: [`MIN_ROOM`], [`OVERHEAD`].
//! - The length inside of a packet is checked upwards only: the engine parses it again.

use super::count::Count;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use boringtun::x25519::{PublicKey as Curve, StaticSecret};
use model::key::{PublicKey, SecretKey};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// Bytes that sealing adds: a header of 16 and a tag of 16.
pub const OVERHEAD: usize = 32;
/// What every buffer for the library's answers has at least: an initiation's length.
pub const MIN_ROOM: usize = 148;
/// Bytes of a cookie reply.
pub const COOKIE_BYTES: usize = 64;
/// `Reject-After-Messages` of the protocol (WireGuard, NDSS 2017, section 6.2): from this counter on nothing is
/// received under a key.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// Plain packets are padded to a multiple of this, so that their length says less (same, section 5.4.6).
const PADDING: usize = 16;

/// WireGuard's four messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A client wants keys.
    Initiation,
    /// A client answers our wish for new keys.
    Response,
    /// A client wants us to prove our address.
    Cookie,
    /// A sealed packet.
    Data,
}

/// What a datagram seems to be, by its type and length, and for data by its counter.
///
/// # Errors
/// When it is none.
pub fn shape(datagram: &[u8]) -> Result<Message, Count> {
    let kind = datagram.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    match (kind, datagram.len()) {
        (Some(1), 148) => Ok(Message::Initiation),
        (Some(2), 92) => Ok(Message::Response),
        (Some(3), 64) => Ok(Message::Cookie),
        (Some(4), OVERHEAD..) => {
            let counter = datagram[8..].first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
            if counter < REJECT_AFTER_MESSAGES { Ok(Message::Data) } else { Err(Count::CounterLimit) }
        }
        _ => Err(Count::Shape),
    }
}

/// The upper 24 bits of the receiver's index: which state is meant. The caller has checked the shape.
#[must_use]
pub fn receiver(datagram: &[u8], message: Message) -> u32 {
    let at = match message {
        Message::Response => 8,
        Message::Initiation | Message::Cookie | Message::Data => 4,
    };
    datagram[at..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes) >> 8)
}

/// Bytes of a packet with its padding, which does not make it larger than the tunnel's packets may be.
#[must_use]
pub fn padded(bytes: usize, mtu: u16) -> usize {
    bytes.next_multiple_of(PADDING).min(usize::from(mtu).max(bytes))
}

/// Who the server is, and what it checks before it computes anything.
pub struct Identity {
    key: SecretKey,
    private: StaticSecret,
    public: Curve,
    /// Checks the first MAC and lets everything with it pass.
    open: Arc<RateLimiter>,
    /// Asks everybody for a proof of address.
    strict: RateLimiter,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &PublicKey(self.public.to_bytes())).finish_non_exhaustive()
    }
}

impl Identity {
    /// The server with this key.
    #[must_use]
    pub fn new(key: &SecretKey) -> Self {
        let private = StaticSecret::from(*key.expose());
        let public = Curve::from(&private);
        Self {
            key: key.clone(),
            open: Arc::new(RateLimiter::new(&public, u64::MAX)),
            strict: RateLimiter::new(&public, 0),
            private,
            public,
        }
    }

    /// Whether it has this key.
    #[must_use]
    pub fn is(&self, key: &SecretKey) -> bool {
        self.key == *key
    }

    /// Whether this is the server's own public key.
    #[must_use]
    pub fn is_own(&self, key: &PublicKey) -> bool {
        self.public.as_bytes() == &key.0
    }

    /// Whether the sender of a handshake message knows our public key.
    #[must_use]
    pub fn mac1(&self, datagram: &[u8]) -> bool {
        self.open.verify_packet(None, datagram, &mut []).is_ok()
    }

    /// Whether the sender of a handshake message has proven its address; if not, writes the answer that helps it to.
    #[must_use]
    pub fn proven(&self, from: SocketAddr, datagram: &[u8], cookie: &mut [u8; COOKIE_BYTES]) -> bool {
        self.strict.verify_packet(Some(source(from)), datagram, cookie).is_ok()
    }

    /// Whose initiation this is, before anything about it is proven.
    #[must_use]
    pub fn initiator(&self, datagram: &[u8]) -> Option<PublicKey> {
        let Ok(Packet::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else {
            return None;
        };
        let half = parse_handshake_anon(&self.private, &self.public, &initiation).ok()?;
        Some(PublicKey(half.peer_static_public))
    }

    /// A state for a client. Its index has 24 bits. None when the client's key makes no secret, as with a point of small
    /// order everybody would know the result (RFC 7748, section 6.1).
    #[must_use]
    pub fn state(&self, client: &PublicKey, preshared: Option<&SecretKey>, index: u32) -> Option<Tunn> {
        if makes_no_secret(client) {
            return None;
        }
        let client = Curve::from(client.0);
        let preshared = preshared.map(|key| *key.expose());
        let (private, open) = (self.private.clone(), Some(Arc::clone(&self.open)));
        // No keepalives from here: the client's, every 25 s, keep the path open for both.
        Some(Tunn::new(private, client, preshared, None, index, open))
    }
}

/// The points whose order divides eight, of which every private key makes the same: 0, 1, both of order eight, and p - 1,
/// p, p + 1, where p is 2^255 - 19 (the twist's too; D. J. Bernstein, "Curve25519", 2006, and RFC 7748, section 6.1). To
/// find them by multiplying would cost each client that comes a sixth of its handshake.
const SMALL_ORDER: [[u8; 32]; 7] = [
    [0; 32],
    little_endian(1, 0, 0),
    [
        0xe0, 0xeb, 0x7a, 0x7c, 0x3b, 0x41, 0xb8, 0xae, 0x16, 0x56, 0xe3, 0xfa, 0xf1, 0x9f, 0xc4, 0x6a, 0xda,
        0x09, 0x8d, 0xeb, 0x9c, 0x32, 0xb1, 0xfd, 0x86, 0x62, 0x05, 0x16, 0x5f, 0x49, 0xb8, 0x00,
    ],
    [
        0x5f, 0x9c, 0x95, 0xbc, 0xa3, 0x50, 0x8c, 0x24, 0xb1, 0xd0, 0xb1, 0x55, 0x9c, 0x83, 0xef, 0x5b, 0x04,
        0x44, 0x5c, 0xc4, 0x58, 0x1c, 0x8e, 0x86, 0xd8, 0x22, 0x4e, 0xdd, 0xd0, 0x9f, 0x11, 0x57,
    ],
    little_endian(0xec, 0xff, 0x7f),
    little_endian(0xed, 0xff, 0x7f),
    little_endian(0xee, 0xff, 0x7f),
];

/// A number by its lowest byte, all in the middle, and its highest.
const fn little_endian(lowest: u8, middle: u8, highest: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = lowest;
    bytes[31] = highest;
    bytes
}

/// Whether a key is one of those; its highest bit does not count (RFC 7748, section 5). Public keys are no secret, so the
/// comparison need not take the same time for all.
fn makes_no_secret(key: &PublicKey) -> bool {
    let mut point = key.0;
    point[31] &= 0x7f;
    SMALL_ORDER.contains(&point)
}

/// What a cookie is bound to. The library takes an address only; for IPv4 the port rides along in an IPv6 address, so
/// that clients behind one translator do not prove for each other.
fn source(from: SocketAddr) -> IpAddr {
    match from.ip().to_canonical() {
        IpAddr::V4(address) => {
            let bits = u128::from(address.to_bits()) << 16 | u128::from(from.port());
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        }
        IpAddr::V6(address) => IpAddr::V6(address),
    }
}

/// Seals a packet into `room`, which has [`OVERHEAD`] more bytes and at least [`MIN_ROOM`], and gives the datagram's
/// length; none when there are no keys. Never queues: the library would keep the packet and start a handshake.
pub fn seal(state: &mut Tunn, packet: &[u8], room: &mut [u8]) -> Option<usize> {
    state.time_since_last_handshake()?;
    match state.encapsulate(packet, room) {
        TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
        TunnResult::Done
        | TunnResult::Err(_)
        | TunnResult::WriteToTunnelV4(..)
        | TunnResult::WriteToTunnelV6(..) => None,
    }
}

/// The counter of a message that a state refused.
#[must_use]
pub fn refused(error: &WireGuardError, message: Message) -> Count {
    match (message, error) {
        (Message::Cookie, _) => Count::Cookie,
        (Message::Initiation | Message::Response, _) => Count::Handshake,
        (Message::Data, WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter) => Count::Replayed,
        (Message::Data, WireGuardError::InvalidAeadTag) => Count::Forged,
        (Message::Data, WireGuardError::InvalidPacket) => Count::BadInner,
        (
            Message::Data,
            WireGuardError::NoCurrentSession
            | WireGuardError::WrongIndex
            | WireGuardError::ConnectionExpired
            | WireGuardError::DestinationBufferTooSmall
            | WireGuardError::IncorrectPacketLength
            | WireGuardError::UnexpectedPacket
            | WireGuardError::WrongPacketType
            | WireGuardError::WrongKey
            | WireGuardError::InvalidTai64nTimestamp
            | WireGuardError::WrongTai64nTimestamp
            | WireGuardError::InvalidMac
            | WireGuardError::LockFailed
            | WireGuardError::UnderLoad,
        ) => Count::NoKeys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn padding_hides_the_length_and_stays_within_the_tunnel(bytes in 20usize..1500, mtu in 576u16..1500) {
            let result = padded(bytes, mtu);
            prop_assert!(result >= bytes && result < bytes + 16);
            prop_assert!(result <= usize::from(mtu).max(bytes));
            prop_assert!(result.is_multiple_of(16) || result == usize::from(mtu).max(bytes));
        }

        #[test]
        fn no_datagram_makes_the_first_look_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = shape(&bytes) {
                prop_assert!(receiver(&bytes, message) < 1 << 24);
            }
        }
    }

    #[test]
    fn counters_at_the_limit_are_refused() {
        let mut datagram = [0; 64];
        datagram[0] = 4;
        for (counter, expected) in [
            (0, Ok(Message::Data)),
            (REJECT_AFTER_MESSAGES - 1, Ok(Message::Data)),
            (REJECT_AFTER_MESSAGES, Err(Count::CounterLimit)),
            (u64::MAX, Err(Count::CounterLimit)),
        ] {
            datagram[8..16].copy_from_slice(&counter.to_le_bytes());
            assert_eq!(shape(&datagram), expected, "{counter}");
        }
        assert_eq!(REJECT_AFTER_MESSAGES, 0xffff_ffff_ffff_dfff);
    }

    proptest! {
        #[test]
        fn the_curve_itself_agrees_about_keys_that_make_no_secret(
            near in 0usize..7, changed in proptest::option::of((0usize..32, 1u8..=255)), private: [u8; 32], random: [u8; 32]
        ) {
            let mut point = SMALL_ORDER[near];
            if let Some((at, bits)) = changed {
                point[at] ^= bits;
            }
            for point in [point, random] {
                let shared = StaticSecret::from(private).diffie_hellman(&Curve::from(point));
                prop_assert_eq!(makes_no_secret(&PublicKey(point)), !shared.was_contributory());
            }
        }
    }

    #[test]
    fn keys_that_make_no_secret_are_refused() {
        let identity = Identity::new(&SecretKey::new([7; 32]));
        let own = Curve::from(&StaticSecret::from([7; 32])).to_bytes();
        let other = Curve::from(&StaticSecret::from([8; 32])).to_bytes();
        let mut one = [0; 32];
        one[0] = 1;
        let made = [[0; 32], one, own, other].map(|key| identity.state(&PublicKey(key), None, 1).is_some());
        assert_eq!(made, [false, false, true, true]);
        assert_eq!([own, other].map(|key| identity.is_own(&PublicKey(key))), [true, false]);
        assert!(!format!("{identity:?}").contains("7, 7"));
    }
}
