//! What is counted. The list is closed: a datagram or a packet is passed on, or dropped for one of these reasons.

use std::collections::BTreeMap;

macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Count { $($(#[$doc])* $variant,)* }

        impl Count {
            /// Each with its name in logs.
            pub const ALL: &'static [(Count, &'static str)] = &[$((Count::$variant, $name),)*];
        }
    };
}

counts! {
    /// Datagrams from clients.
    DatagramsIn = "datagrams_in",
    /// Datagrams to clients.
    DatagramsOut = "datagrams_out",
    /// Packets passed into networks.
    PacketsIn = "packets_in",
    /// Bytes of these.
    BytesIn = "bytes_in",
    /// Packets sealed for clients.
    PacketsOut = "packets_out",
    /// Bytes of these.
    BytesOut = "bytes_out",
    /// Packets without content, by which clients say that they are there.
    Keepalives = "keepalives",
    /// Handshakes of clients that were answered.
    Handshakes = "handshakes",
    /// States made for clients that came.
    Awoken = "states_made",
    /// States dropped since their clients went silent.
    Silent = "states_dropped_silent",
    /// Sessions that ended at their deadline.
    Expired = "sessions_expired",
    /// Sessions that ended since their clients did not come.
    Idled = "sessions_idled",
    /// Clients whose address changed.
    Roamed = "roamed",
    /// Connections whose segment size was lowered.
    Clamped = "segment_size_lowered",
    /// Segments that rode in a larger frame.
    Coalesced = "segments_coalesced",
    /// Initiations answered with a cookie: prove your address first.
    CookieSent = "answered_cookie",
    /// Packets answered with "fragmentation needed".
    TooBigTold = "answered_too_big",
    /// Not one of WireGuard's four messages, or not of its length.
    Shape = "dropped_shape",
    /// The sender does not know the server's public key.
    Mac1 = "dropped_mac1",
    /// Too many handshakes from a proven address.
    Flood = "dropped_flood",
    /// An initiation whose static key cannot be read.
    Unreadable = "dropped_unreadable",
    /// Nobody is registered with that key.
    UnknownKey = "dropped_unknown_key",
    /// The session is over.
    Ended = "dropped_session_ended",
    /// The session's key is a point of small order: everybody would know its secrets.
    WeakKey = "dropped_weak_key",
    /// No index for a state was found, so many are live.
    NoIndex = "dropped_no_index",
    /// A handshake message that does not fit, an old one for instance.
    Handshake = "dropped_handshake",
    /// No state has this index.
    UnknownIndex = "dropped_unknown_index",
    /// The message counter is beyond what the protocol allows.
    CounterLimit = "dropped_counter_limit",
    /// A message that was received already, or is far too late.
    Replayed = "dropped_replayed",
    /// Sealed with another key.
    Forged = "dropped_forged",
    /// The keys for it are gone.
    NoKeys = "dropped_keys_gone",
    /// A cookie that was not asked for, or cannot be read.
    Cookie = "dropped_cookie",
    /// What was sealed is no whole IPv4 packet.
    BadInner = "dropped_inner_malformed",
    /// What was sealed is IPv6, which members speak among themselves alone.
    InnerIpv6 = "dropped_inner_ipv6",
    /// What was sealed comes from another address than the session's.
    Spoofed = "dropped_spoofed",
    /// What was sealed goes elsewhere than to the session's network.
    Outside = "dropped_outside_network",
    /// The network has no TUN now.
    NoTunnel = "dropped_no_tunnel",
    /// The TUN took no more.
    TunnelFull = "dropped_tunnel_full",
    /// A frame from a network that is no whole IPv4 packet.
    BadFrame = "dropped_frame_malformed",
    /// A frame from a network that is IPv6.
    FrameIpv6 = "dropped_frame_ipv6",
    /// A packet from a network to an address that no session has.
    NoSession = "dropped_no_session",
    /// A packet for a client that is not connected.
    NotConnected = "dropped_not_connected",
    /// A packet that is larger than the tunnel's and may be cut, which is not done here.
    TooBigUncut = "dropped_too_big_uncut",
    /// A packet that is too large, and its sender was told often enough.
    TooBigMuted = "dropped_too_big_muted",
    /// The socket took no more.
    SocketFull = "dropped_socket_full",
    /// The datagram could not be sent.
    SendFailed = "dropped_send_failed",
    /// A session of the view whose key, address or network another one has, or whose key is the server's own.
    Conflict = "sessions_refused",
}

/// All counters of one loop.
#[derive(Clone, Debug)]
pub struct Counts([u64; Count::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; Count::ALL.len()])
    }
}

impl Counts {
    /// Adds one.
    pub fn count(&mut self, what: Count) {
        self.add(what, 1);
    }

    /// Adds several.
    pub fn add(&mut self, what: Count, several: u64) {
        self.0[what as usize] = self.0[what as usize].wrapping_add(several);
    }

    /// How often so far.
    #[must_use]
    pub fn get(&self, what: Count) -> u64 {
        self.0[what as usize]
    }

    /// All that are not zero, by name.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        Count::ALL
            .iter()
            .map(|(what, name)| (*name, self.get(*what)))
            .filter(|(_, value)| *value > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_name_and_place() {
        let names: std::collections::BTreeSet<_> = Count::ALL.iter().map(|(_, name)| *name).collect();
        assert_eq!(names.len(), Count::ALL.len());
        for (place, (count, _)) in Count::ALL.iter().enumerate() {
            assert_eq!(*count as usize, place);
        }
        let mut counts = Counts::default();
        counts.count(Count::Mac1);
        assert_eq!(format!("{:?}", counts.snapshot()), r#"{"dropped_mac1": 1}"#);
    }
}
