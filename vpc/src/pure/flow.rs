//! Lines of the flow log: what the kernel tells of ended flows (include/uapi/linux/netfilter/nfnetlink_conntrack.h) and of
//! refused packets (nfnetlink_log.h), read, and put together.

use crate::pure::firewall::{Connection, rule_of};
use crate::pure::names::DeviceName;
use crate::pure::netlink::{
    Attributes, IPV4_DESTINATION, IPV6_DESTINATION, Message, ORIGINAL, TUPLE_ADDRESSES,
};
use model::id::{RuleId, VmId};
use model::net::Ula;
use serde::Serialize;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `IPCTNL_MSG_CT_DELETE` of the subsystem for flows: one has ended.
pub const FLOW_ENDED: u16 = (1 << 8) | 2;
/// `NFULNL_MSG_PACKET` of the subsystem for logs.
pub const PACKET_TOLD: u16 = 4 << 8;
/// Rows of refused packets that are held for one network until they are written. Its ports together cannot have more told
/// of in [`REFUSALS_EVERY_SECONDS`] unless there are many of them, and then the counters have the rest.
pub const MAX_ROWS: usize = 4096;
/// Seconds of which the refused packets that have all in common but the source's port are one line.
pub const REFUSALS_EVERY_SECONDS: u64 = 10;

// enum ctattr_* of nfnetlink_conntrack.h
const PROTOCOL_INFO: u16 = 4;
const SENT: u16 = 9;
const RECEIVED: u16 = 10;
const TIMES: u16 = 20;
const PACKETS: u16 = 1;
const BYTES: u16 = 2;
const BEGAN: u16 = 1;
const ENDED: u16 = 2;
const TUPLE_PORTS: u16 = 2;
const IPV4_SOURCE: u16 = 1;
const IPV6_SOURCE: u16 = 3;
const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const TCP_INFO: u16 = 1;
const TCP_STATE: u16 = 1;
// enum tcp_conntrack of nf_conntrack_tcp.h
const TCP_LAST_ACK: u8 = 6;
const TCP_TIME_WAIT: u8 = 7;
const TCP_CLOSE: u8 = 8;
// enum nfulnl_attr_type of nfnetlink_log.h
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const NANOSECONDS_IN_MS: u64 = 1_000_000;
/// Flags and place of a fragment (RFC 791 section 3.1): zero in the place says that the packet begins here.
const FRAGMENT_PLACE: u16 = 0x1fff;
/// Bytes of IPv6's header (RFC 8200 section 3).
const IPV6_HEADER: usize = 40;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Ends {
    /// Who began.
    pub source: IpAddr,
    /// Its port, of TCP and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// With whom.
    pub destination: IpAddr,
    /// Its port, of TCP and UDP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// As in the IP header; of IPv6, what follows it.
    #[serde(serialize_with = "protocol")]
    pub protocol: u8,
}

impl Ends {
    /// As the firewall's rules are written, in IPv4. None when an end has no such address.
    #[must_use]
    pub fn connection(&self, ula: Option<Ula>) -> Option<Connection> {
        Some(Connection {
            source: ipv4_of(self.source, ula)?,
            destination: ipv4_of(self.destination, ula)?,
            protocol: if self.protocol == ICMPV6 { ICMP } else { self.protocol },
            port: self.destination_port.unwrap_or_default(),
        })
    }
}

/// The IPv4 address of whom an address is, where `ula` is what members' IPv6 addresses are made of.
#[must_use]
pub fn ipv4_of(address: IpAddr, ula: Option<Ula>) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => ula?.ipv4_of(address),
    }
}

/// How a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// By both sides (TCP).
    Closed,
    /// By a reset of one side (TCP).
    Reset,
    /// Nothing was said any more, or its VM's port went.
    Silent,
}

/// A flow that has ended. Times are milliseconds since 1970 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    /// When it began; none when the kernel keeps no times.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub begin_ms: Option<u64>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_ms: Option<u64>,
    /// Between whom.
    #[serde(flatten)]
    pub ends: Ends,
    /// Packets from who began it.
    pub packets_sent: u64,
    /// Their bytes, from the IP header on.
    pub bytes_sent: u64,
    /// Packets to who began it.
    pub packets_received: u64,
    /// Their bytes, from the IP header on.
    pub bytes_received: u64,
    /// How it ended.
    pub end: End,
}

/// A refused packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Between whom.
    pub ends: Ends,
    /// Its length in bytes, as its header says it.
    pub bytes: u64,
    /// The counter that has it, and behind a space the port from which it came when its addresses say nothing.
    pub reason: String,
}

/// Refused packets that have all but the source's port in common.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusals {
    /// When the first was told, in milliseconds since 1970 UTC.
    pub begin_ms: u64,
    /// When the last was told.
    pub end_ms: u64,
    /// Between whom; without the source's port.
    #[serde(flatten)]
    pub ends: Ends,
    /// How many were told.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
    /// The counter that has them.
    pub reason: String,
    /// The rule whose counter that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleId>,
    /// The port from which they came, when their addresses say nothing.
    #[serde(skip)]
    pub device: Option<DeviceName>,
}

/// One line of the log.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The VM of the source, or from whose port it came when the source is a lie; none when it is not one of the network's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_vm: Option<&'a VmId>,
    /// The VM of the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_vm: Option<&'a VmId>,
    /// What it is about.
    #[serde(flatten)]
    pub what: What<'a>,
}

/// What a line is about.
#[derive(Debug, Serialize)]
#[serde(tag = "verdict", rename_all = "lowercase")]
pub enum What<'a> {
    /// A flow that passed.
    Accept {
        /// It.
        #[serde(flatten)]
        flow: Flow,
        /// The rules that let it pass, as they were at its end; none when no rule fitted.
        rules: Vec<&'a RuleId>,
    },
    /// Packets that did not pass.
    Drop {
        /// They.
        #[serde(flatten)]
        refusals: &'a Refusals,
    },
    /// Lines that are missing here.
    Lost {
        /// When that was noticed, in milliseconds since 1970 UTC.
        end_ms: u64,
        /// Lines for which there was no room.
        lines: u64,
        /// Times that the kernel had more to tell than was read in time; how much is not known.
        overflows: u64,
    },
}

/// Reads the end of a flow; none when it is none of IP.
#[must_use]
pub fn ended(message: &Message<'_>) -> Option<Flow> {
    if message.kind != FLOW_ENDED {
        return None;
    }
    let all = Attributes(message.attributes);
    let tuple = all.inside(ORIGINAL);
    let (addresses, ports) = (tuple.inside(TUPLE_ADDRESSES), tuple.inside(TUPLE_PORTS));
    let port = |kind| ports.number(kind).map(u16::from_be_bytes);
    let counted = |way, kind| all.inside(way).number(kind).map(u64::from_be_bytes).unwrap_or_default();
    let time = |kind| Some(u64::from_be_bytes(all.inside(TIMES).number(kind)?) / NANOSECONDS_IN_MS);
    let [protocol] = ports.number(PROTOCOL)?;
    let end = match all.inside(PROTOCOL_INFO).inside(TCP_INFO).number(TCP_STATE) {
        Some([TCP_LAST_ACK | TCP_TIME_WAIT]) => End::Closed,
        Some([TCP_CLOSE]) => End::Reset,
        Some(_) | None => End::Silent,
    };
    Some(Flow {
        begin_ms: time(BEGAN),
        end_ms: time(ENDED),
        ends: Ends {
            source: address(addresses, IPV4_SOURCE, IPV6_SOURCE)?,
            source_port: port(SOURCE_PORT),
            destination: address(addresses, IPV4_DESTINATION, IPV6_DESTINATION)?,
            destination_port: port(DESTINATION_PORT),
            protocol,
        },
        packets_sent: counted(SENT, PACKETS),
        bytes_sent: counted(SENT, BYTES),
        packets_received: counted(RECEIVED, PACKETS),
        bytes_received: counted(RECEIVED, BYTES),
        end,
    })
}

/// Reads a refused packet; none when it is none of IP.
#[must_use]
pub fn refused(message: &Message<'_>) -> Option<Refusal> {
    if message.kind != PACKET_TOLD {
        return None;
    }
    let all = Attributes(message.attributes);
    let reason = all.find(PREFIX)?.split(|byte| *byte == 0).next().unwrap_or_default();
    let packet = all.find(PAYLOAD)?;
    let (ends, bytes) = match packet.first()? >> 4 {
        4 => ipv4_ends(packet)?,
        6 => ipv6_ends(packet)?,
        _ => return None,
    };
    Some(Refusal { ends, bytes, reason: String::from_utf8_lossy(reason).into_owned() })
}

fn address(addresses: Attributes<'_>, ipv4: u16, ipv6: u16) -> Option<IpAddr> {
    let ipv4 = addresses.number::<4>(ipv4).map(IpAddr::from);
    ipv4.or_else(|| addresses.number::<16>(ipv6).map(IpAddr::from))
}

/// The ends of an IPv4 packet, and its length.
fn ipv4_ends(packet: &[u8]) -> Option<(Ends, u64)> {
    let header = packet.first_chunk::<20>()?;
    let [version, _, long, short, _, _, place, more, _, protocol, ..] = *header;
    let first = u16::from_be_bytes([place, more]) & FRAGMENT_PLACE == 0;
    let ports = packet.get(usize::from(version & 15) * 4..).filter(|_| first);
    let [.., a, b, c, d, e, f, g, h] = *header;
    let (source, destination) = (Ipv4Addr::new(a, b, c, d), Ipv4Addr::new(e, f, g, h));
    let bytes = u64::from(u16::from_be_bytes([long, short]));
    Some((ends((source.into(), destination.into()), protocol, ports), bytes))
}

/// The same of an IPv6 packet. What stands behind extension headers has no ports here.
fn ipv6_ends(packet: &[u8]) -> Option<(Ends, u64)> {
    let header = packet.first_chunk::<IPV6_HEADER>()?;
    let [_, _, _, _, long, short, protocol, ..] = *header;
    let address = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(header.get(at..at + 16)?).ok()?));
    let (source, destination) = (address(8)?, address(24)?);
    let bytes = IPV6_HEADER as u64 + u64::from(u16::from_be_bytes([long, short]));
    Some((ends((source.into(), destination.into()), protocol, packet.get(IPV6_HEADER..)), bytes))
}

fn ends((source, destination): (IpAddr, IpAddr), protocol: u8, behind: Option<&[u8]>) -> Ends {
    let ports = behind.filter(|_| matches!(protocol, TCP | UDP));
    let port = |at: usize| {
        let bytes = ports?.get(at..at + 2)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    Ends { source, source_port: port(0), destination, destination_port: port(2), protocol }
}

/// Refused packets until they are written.
#[derive(Debug, Default)]
pub struct Rows {
    rows: HashMap<(Ends, String), Refusals>,
}

impl Rows {
    /// Adds one that is told now. False when there is no room for it.
    pub fn add(&mut self, refusal: Refusal, now_ms: u64) -> bool {
        let ends = Ends { source_port: None, ..refusal.ends };
        let key = (ends, refusal.reason);
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            return false;
        }
        let row = self.rows.entry(key).or_insert_with_key(|(ends, prefix)| {
            let (reason, device) = prefix.split_once(' ').unwrap_or((prefix, ""));
            Refusals {
                begin_ms: now_ms,
                end_ms: now_ms,
                ends: *ends,
                packets: 0,
                bytes: 0,
                reason: reason.to_owned(),
                rule: rule_of(reason),
                device: DeviceName::parse(device),
            }
        });
        row.end_ms = now_ms;
        row.packets += 1;
        row.bytes = row.bytes.saturating_add(refusal.bytes);
        true
    }

    /// All of them, the oldest first; none are left.
    #[must_use]
    pub fn take(&mut self) -> Vec<Refusals> {
        let mut rows: Vec<Refusals> = self.rows.drain().map(|(_, row)| row).collect();
        rows.sort_by_key(|row| row.begin_ms);
        rows
    }
}

/// Protocols that rules name have their names here, and others their numbers.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn protocol<S: serde::Serializer>(number: &u8, serializer: S) -> Result<S::Ok, S::Error> {
    match *number {
        ICMP => serializer.serialize_str("icmp"),
        ICMPV6 => serializer.serialize_str("icmpv6"),
        TCP => serializer.serialize_str("tcp"),
        UDP => serializer.serialize_str("udp"),
        other => serializer.collect_str(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::netlink::{attribute, messages};
    use proptest::prelude::*;

    fn message(kind: u16, attributes: &[u8]) -> Vec<u8> {
        let length = u32::try_from(20 + attributes.len()).expect("short");
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend([2, 0, 0, 0]);
        bytes.extend(attributes);
        bytes
    }

    fn packet(length: u16, protocol: u8, place: u16) -> Vec<u8> {
        let mut packet = vec![0x46, 0];
        packet.extend(length.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(place.to_be_bytes());
        packet.extend([64, protocol, 0, 0, 10, 0, 0, 5, 10, 0, 0, 6, 1, 1, 1, 1]);
        packet.extend([0x9c, 0x40, 0, 80]);
        packet
    }

    fn told(reason: &[u8], packet: &[u8]) -> Option<Refusal> {
        let attributes = [attribute(PREFIX, &[reason, b"\0"].concat()), attribute(PAYLOAD, packet)].concat();
        let bytes = message(PACKET_TOLD, &attributes);
        refused(&messages(&bytes).next().expect("a message"))
    }

    #[test]
    fn an_ended_flow_is_read() {
        let number = |value: u64| value.to_be_bytes();
        let addresses = [attribute(IPV4_SOURCE, &[10, 0, 0, 5]), attribute(IPV4_DESTINATION, &[10, 0, 0, 6])];
        let ports = [
            attribute(PROTOCOL, &[TCP]),
            attribute(SOURCE_PORT, &40_000u16.to_be_bytes()),
            attribute(DESTINATION_PORT, &80u16.to_be_bytes()),
        ];
        let tuple =
            [attribute(TUPLE_ADDRESSES, &addresses.concat()), attribute(TUPLE_PORTS, &ports.concat())];
        let way = |packets, bytes| {
            [attribute(PACKETS, &number(packets)), attribute(BYTES, &number(bytes))].concat()
        };
        let times = [attribute(BEGAN, &number(1_000_000_000)), attribute(ENDED, &number(2_500_000_000))];
        let state = attribute(TCP_INFO, &attribute(TCP_STATE, &[TCP_TIME_WAIT]));
        let all = [
            attribute(ORIGINAL | 1 << 15, &tuple.concat()),
            attribute(SENT, &way(6, 400)),
            attribute(RECEIVED, &way(4, 3000)),
            attribute(TIMES, &times.concat()),
            attribute(PROTOCOL_INFO, &state),
        ];
        let bytes = message(FLOW_ENDED, &all.concat());
        let flow = ended(&messages(&bytes).next().expect("a message")).expect("a flow");
        let (vm, rule) = (VmId::from_random([1; 20]), RuleId::from_random([0; 20]));
        let line = Line {
            network: "default",
            source_vm: Some(&vm),
            destination_vm: None,
            what: What::Accept { flow, rules: vec![&rule] },
        };
        assert_eq!(
            serde_json::to_string(&line).expect("text"),
            format!(
                "{{\"network\":\"default\",\"source_vm\":\"{}\",\"verdict\":\"accept\",\"begin_ms\":1000,\"end_ms\":2500,\
                 \"source\":\"10.0.0.5\",\"source_port\":40000,\"destination\":\"10.0.0.6\",\"destination_port\":80,\
                 \"protocol\":\"tcp\",\"packets_sent\":6,\"bytes_sent\":400,\"packets_received\":4,\
                 \"bytes_received\":3000,\"end\":\"closed\",\"rules\":[\"{}\"]}}",
                vm, rule
            )
        );
    }

    #[test]
    fn refused_packets_that_differ_in_the_sources_port_alone_are_one_row() {
        let rule = RuleId::from_random([3; 20]);
        let reason = crate::pure::firewall::counter_of(&rule);
        let refusal = told(reason.as_bytes(), &packet(100, UDP, 0)).expect("a packet");
        assert_eq!((refusal.ends.source_port, refusal.ends.destination_port), (Some(40_000), Some(80)));
        let mut rows = Rows::default();
        assert!(rows.add(refusal.clone(), 5));
        let other = Ends { source_port: Some(1), ..refusal.ends };
        assert!(rows.add(Refusal { ends: other, ..refusal.clone() }, 9));
        assert!(rows.add(Refusal { reason: "invalid".into(), ..refusal }, 7));
        let rows = rows.take();
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.begin_ms, row.end_ms, row.packets, row.bytes, row.rule.clone()))
            .collect();
        assert_eq!(seen, [(5, 9, 2, 200, Some(rule)), (7, 7, 1, 100, None)]);
    }

    #[test]
    fn later_fragments_and_other_protocols_have_no_ports() {
        for (protocol, place) in [(UDP, 1), (1, 0), (47, 0)] {
            let refusal = told(b"invalid", &packet(100, protocol, place)).expect("a packet");
            assert_eq!((refusal.ends.source_port, refusal.ends.destination_port), (None, None));
        }
        assert_eq!(told(b"invalid", &[0x50; 40]), None, "neither IPv4 nor IPv6");
        assert_eq!(told(b"invalid", &packet(100, UDP, 0)[..19]), None);
    }

    #[test]
    fn members_are_known_by_their_ipv6_addresses() {
        let ula = Ula::of(&model::id::VpcId::from_random([1; 20]));
        let [five, six] = [5, 6].map(|last| ula.address(Ipv4Addr::new(10, 0, 0, last)));
        let mut packet = vec![0x60, 0, 0, 0, 0, 60, TCP, 64];
        packet.extend([five.octets(), six.octets()].concat());
        packet.extend([0x9c, 0x40, 0, 80]);
        let refusal = told(b"invalid", &packet).expect("a packet");
        assert_eq!((refusal.ends.source, refusal.bytes), (five.into(), 100));
        assert_eq!((refusal.ends.source_port, refusal.ends.destination_port), (Some(40_000), Some(80)));
        let connection = refusal.ends.connection(Some(ula)).expect("both are members");
        assert_eq!((connection.source, connection.port), (Ipv4Addr::new(10, 0, 0, 5), 80));
        assert_eq!(refusal.ends.connection(None), None);

        let addresses = [attribute(IPV6_SOURCE, &five.octets()), attribute(IPV6_DESTINATION, &six.octets())];
        let tuple = [
            attribute(TUPLE_ADDRESSES, &addresses.concat()),
            attribute(TUPLE_PORTS, &attribute(PROTOCOL, &[ICMPV6])),
        ];
        let bytes = message(FLOW_ENDED, &attribute(ORIGINAL | 1 << 15, &tuple.concat()));
        let flow = ended(&messages(&bytes).next().expect("a message")).expect("a flow");
        assert_eq!((flow.ends.source, flow.ends.destination), (five.into(), six.into()));
        assert_eq!(flow.ends.connection(Some(ula)).expect("members").protocol, ICMP);
    }

    #[test]
    fn there_are_no_more_rows_than_may_be() {
        let refusal = told(b"invalid", &packet(100, UDP, 0)).expect("a packet");
        let mut rows = Rows::default();
        let to =
            |number: usize| Ends { destination: Ipv4Addr::from_bits(number as u32).into(), ..refusal.ends };
        for number in 0..=MAX_ROWS {
            assert_eq!(rows.add(Refusal { ends: to(number), ..refusal.clone() }, 1), number < MAX_ROWS);
        }
        assert!(rows.add(Refusal { ends: to(0), ..refusal.clone() }, 2), "one that is there goes on");
        assert_eq!(rows.take().len(), MAX_ROWS);
        assert_eq!(rows.take().len(), 0);
    }

    proptest! {
        #[test]
        fn no_message_makes_the_readers_panic(kind in prop_oneof![Just(FLOW_ENDED), Just(PACKET_TOLD)],
            bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = message(kind, &bytes);
            for message in messages(&bytes) {
                prop_assert!(ended(&message).is_none() || kind == FLOW_ENDED);
                prop_assert!(refused(&message).is_none() || kind == PACKET_TOLD);
            }
        }

        #[test]
        fn no_packet_makes_the_reader_panic(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            let least = match packet.first().map(|first| first >> 4) {
                Some(4) => 20,
                Some(6) => 40,
                _ => usize::MAX,
            };
            prop_assert_eq!(told(b"invalid", &packet).is_some(), packet.len() >= least);
        }
    }
}
