//! A private network's firewall: its rules, checked, and as text for `nft -f -`.
//!
//! ```text
//!   forward ─► replies: accepted
//!           ─► from a member ─► rules_out ─► to a member ─► rules_in ─► on
//! ```
//! A packet in the direction in which its connection began is judged each time, not the first alone, so a new `deny`
//! ends what it fits. In each chain the first rule that fits decides. A rule that cannot be served never opens what it
//! would have closed: see [`Firewall::of`].
//!
//! Rules are written in IPv4 addresses. The IPv6 address of a member is made of its IPv4 address, so what a rule says of
//! addresses in the network's range it says of both; others have none.

use crate::pure::names::{CLIENTS, TABLE};
use crate::pure::rules::{Logged, push, table_with_counters, with_log};
use model::firewall::{
    MAX_PORT_RANGES, MAX_RULES, PortRange, RuleAction, RuleDirection, RuleEntry, RulePeer, RuleProtocol,
};
use model::id::RuleId;
use model::net::{GATEWAY_IPV4, Ipv4Cidr, Ula};
use model::view::Entries;
use std::collections::{BTreeSet, HashSet};
use std::net::Ipv4Addr;
use thiserror::Error;

/// The chain of what members send.
pub const RULES_OUT: &str = "rules_out";
/// The chain of what goes to members.
pub const RULES_IN: &str = "rules_in";
/// Counters of the firewall beside those of its rules.
pub const FIREWALL_COUNTERS: [&str; 3] = ["to_client", "unreadable_rules", "rules_cut_off"];
/// Before a rule's id in the name of its counter.
const COUNTER: &str = "rule_";
/// Before the random characters of a rule's id.
const RULE_ID: &str = "fw-";
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;

/// Why a rule is not served as it stands.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RuleRejection {
    /// Only TCP and UDP have ports.
    #[error("it has ports and is not of tcp or udp; if it denies, it denies all ports")]
    Ports,
    /// More than [`MAX_PORT_RANGES`].
    #[error("it has more than {MAX_PORT_RANGES} ranges of ports; if it denies, it denies all ports")]
    Ranges,
    /// Another rule has its id.
    #[error("another rule has its id; if it denies, both count together")]
    Twice,
    /// There are [`MAX_RULES`].
    #[error("there are {MAX_RULES} rules already; if it denies, its direction is closed behind them")]
    Full,
}

/// The rules of a network, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Firewall {
    rules: Vec<RuleEntry>,
    /// Directions in which a denying rule was beyond [`MAX_RULES`]: nothing passes behind the last one.
    closed_behind: BTreeSet<RuleDirection>,
    /// Some entry could not be read. It may have been a denying one, and before any other: nothing passes.
    unreadable: bool,
    /// Where the addresses of VPN clients come from.
    clients: Option<Ipv4Cidr>,
}

/// A connection, from its first packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Who began it.
    pub source: Ipv4Addr,
    /// With whom.
    pub destination: Ipv4Addr,
    /// As in the IPv4 header.
    pub protocol: u8,
    /// The destination's, of TCP and UDP.
    pub port: u16,
}

impl Firewall {
    /// Checks rules. One that cannot be served is told to `left_out`; if it allows, it is left out, and if it denies, it
    /// denies more than it says and never less.
    #[must_use]
    pub fn of(
        entries: &Entries<RuleEntry>,
        clients: Option<Ipv4Cidr>,
        mut left_out: impl FnMut(&RuleId, RuleRejection),
    ) -> Self {
        let mut firewall = Self { clients, unreadable: entries.rejected() > 0, ..Self::default() };
        let mut ids = HashSet::new();
        for entry in entries {
            let with_ports = matches!(entry.protocol, RuleProtocol::Tcp | RuleProtocol::Udp);
            let why = if firewall.rules.len() >= MAX_RULES {
                Some(RuleRejection::Full)
            } else if !entry.ports.is_empty() && !with_ports {
                Some(RuleRejection::Ports)
            } else if entry.ports.len() > MAX_PORT_RANGES {
                Some(RuleRejection::Ranges)
            } else if !ids.insert(&entry.id) {
                Some(RuleRejection::Twice)
            } else {
                None
            };
            let Some(why) = why else {
                firewall.rules.push(entry.clone());
                continue;
            };
            left_out(&entry.id, why);
            match (entry.action, why) {
                (RuleAction::Allow, _) => {}
                (RuleAction::Deny, RuleRejection::Full) => {
                    firewall.closed_behind.insert(entry.direction);
                }
                (RuleAction::Deny, RuleRejection::Ports | RuleRejection::Ranges) => {
                    firewall.rules.push(RuleEntry { ports: Vec::new(), ..entry.clone() });
                }
                (RuleAction::Deny, RuleRejection::Twice) => firewall.rules.push(entry.clone()),
            }
        }
        firewall
    }

    /// Whether members' connections to each other must be tracked: only then it is known who began one.
    #[must_use]
    pub fn judges(&self) -> bool {
        !self.rules.is_empty() || !self.closed_behind.is_empty() || self.unreadable
    }

    /// The rules that let a connection pass, of whose ends those in `range` are members. At most two; none of a
    /// direction in which no rule fits.
    #[must_use]
    pub fn allowed_by(&self, range: Ipv4Cidr, connection: Connection) -> Vec<&RuleId> {
        // The doors come from the gateway, and what is asked of it goes no further.
        if [connection.source, connection.destination].contains(&GATEWAY_IPV4) {
            return Vec::new();
        }
        let judged = [
            (RuleDirection::Out, range.contains(connection.source)),
            (RuleDirection::In, range.contains(connection.destination)),
        ];
        let judged = judged.into_iter().filter(|(_, member)| *member);
        let first = judged.filter_map(|(direction, _)| {
            self.rules.iter().find(|rule| rule.direction == direction && self.fits(rule, connection))
        });
        first.filter(|rule| rule.action == RuleAction::Allow).map(|rule| &rule.id).collect()
    }

    fn fits(&self, rule: &RuleEntry, connection: Connection) -> bool {
        let (member, peer) = match rule.direction {
            RuleDirection::Out => (connection.source, connection.destination),
            RuleDirection::In => (connection.destination, connection.source),
        };
        let protocol = match rule.protocol {
            RuleProtocol::Any => true,
            RuleProtocol::Tcp => connection.protocol == TCP,
            RuleProtocol::Udp => connection.protocol == UDP,
            RuleProtocol::Icmp => connection.protocol == ICMP,
        };
        let peer = match rule.peer {
            RulePeer::Any => true,
            RulePeer::Range(range) => range.contains(peer),
            RulePeer::Clients => self.clients.is_some_and(|pool| pool.contains(peer)),
        };
        let port = |ranges: &[PortRange]| {
            ranges.iter().any(|range| (range.first()..=range.last()).contains(&connection.port))
        };
        rule.member.is_none_or(|address| address == member)
            && protocol
            && peer
            && (rule.ports.is_empty() || port(&rule.ports))
    }

    /// Names of the counters of its rules.
    #[must_use]
    pub fn counters(&self) -> BTreeSet<String> {
        self.rules.iter().map(|rule| counter_of(&rule.id)).collect()
    }

    /// The firewall of a network whose members have addresses of `range` and, when they speak IPv6, `ula`, as one transaction. `standing` are counters of
    /// rules that are there; those of rules that left go.
    #[must_use]
    pub fn text(
        &self,
        (range, ula): (Ipv4Cidr, Option<Ula>),
        logged: Logged,
        standing: &BTreeSet<String>,
    ) -> String {
        let mut text = table_with_counters("inet", TABLE, &FIREWALL_COUNTERS);
        let wanted = self.counters();
        let mut lines: Vec<String> =
            wanted.iter().map(|counter| format!("add counter inet T {counter}")).collect();
        lines.push(
            "add chain inet T untrack { type filter hook prerouting priority raw; policy accept; }".into(),
        );
        lines.push("flush chain inet T untrack".into());
        if !self.judges() && logged == Logged::No {
            // What nobody judges or tells of passes in any state, so none is kept: no table that members could fill.
            // Save for answers to VPN clients that are hidden behind one of the network's own addresses.
            lines.push(format!(
                "add rule inet T untrack meta mark != 0 ip daddr {range} ip daddr != @hidden notrack"
            ));
            lines.extend(
                ula.map(|ula| format!("add rule inet T untrack meta mark != 0 ip6 daddr {ula} notrack")),
            );
        }
        for (chain, direction) in [(RULES_OUT, RuleDirection::Out), (RULES_IN, RuleDirection::In)] {
            lines.push(format!("add chain inet T {chain}"));
            lines.push(format!("flush chain inet T {chain}"));
            lines.extend(
                self.chain(direction, range, ula)
                    .into_iter()
                    .map(|rule| format!("add rule inet T {chain} {rule}")),
            );
        }
        lines.extend(standing.difference(&wanted).map(|counter| format!("delete counter inet T {counter}")));
        push(&mut text, TABLE, &lines);
        with_log(text, logged)
    }

    fn chain(&self, direction: RuleDirection, range: Ipv4Cidr, ula: Option<Ula>) -> Vec<String> {
        let mut lines = Vec::new();
        if self.unreadable {
            lines.push("counter name unreadable_rules drop".to_owned());
        }
        let rules = self.rules.iter().filter(|rule| rule.direction == direction);
        lines.extend(rules.flat_map(|rule| lines_of(rule, range, ula)));
        if self.closed_behind.contains(&direction) {
            lines.push("counter name rules_cut_off drop".to_owned());
        }
        if direction == RuleDirection::Out {
            lines.push(format!("oifname \"{CLIENTS}\" counter name to_client drop"));
        }
        lines
    }
}

/// The counter of a rule.
#[must_use]
pub fn counter_of(rule: &RuleId) -> String {
    format!("{COUNTER}{}", rule.as_str().trim_start_matches(RULE_ID))
}

/// The rule of a counter; none when it is not a rule's.
#[must_use]
pub fn rule_of(counter: &str) -> Option<RuleId> {
    format!("{RULE_ID}{}", counter.strip_prefix(COUNTER)?).parse().ok()
}

/// A rule that names no address is one line for both families, any other one for each.
fn lines_of(rule: &RuleEntry, range: Ipv4Cidr, ula: Option<Ula>) -> Vec<String> {
    let (member, peer, device) = match rule.direction {
        RuleDirection::Out => ("saddr", "daddr", "oifname"),
        RuleDirection::In => ("daddr", "saddr", "iifname"),
    };
    let mut ipv4 = String::new();
    // None when some address of the rule has no counterpart.
    let mut ipv6 = ula.map(|_| String::new());
    if let Some(address) = rule.member {
        ipv4.push_str(&format!("ip {member} {address} "));
        ipv6 = ipv6.zip(ula).map(|(text, ula)| format!("{text}ip6 {member} {} ", ula.address(address)));
    }
    match rule.peer {
        RulePeer::Any => {}
        RulePeer::Range(peers) => {
            ipv4.push_str(&format!("ip {peer} {peers} "));
            let ula = ula.filter(|_| peers.overlaps(range));
            ipv6 = ipv6.zip(ula).map(|(text, ula)| format!("{text}ip6 {peer} {} ", ula.of_range(peers)));
        }
        RulePeer::Clients => {
            let clients = format!("{device} \"{CLIENTS}\" ");
            ipv4.push_str(&clients);
            // They speak IPv4 alone.
            ipv6 = None;
        }
    }
    let rest = rest_of(rule);
    let other = ipv6.filter(|text| *text != ipv4).map(|text| format!("{text}{rest}"));
    std::iter::once(format!("{ipv4}{rest}")).chain(other).collect()
}

/// What follows the addresses of a rule.
fn rest_of(rule: &RuleEntry) -> String {
    let mut text = String::new();
    let protocol = match rule.protocol {
        RuleProtocol::Any => None,
        RuleProtocol::Tcp => Some("tcp"),
        RuleProtocol::Udp => Some("udp"),
        RuleProtocol::Icmp => Some("{ icmp, ipv6-icmp }"),
    };
    match protocol {
        Some(protocol) if !rule.ports.is_empty() => {
            text.push_str(&format!("{protocol} dport {{ {} }} ", ports(&rule.ports)));
        }
        Some(protocol) => text.push_str(&format!("meta l4proto {protocol} ")),
        None => {}
    }
    let verdict = match rule.action {
        RuleAction::Allow => "return",
        RuleAction::Deny => "drop",
    };
    format!("{text}counter name {} {verdict}", counter_of(&rule.id))
}

/// Ranges of which no two touch: nft takes no others.
fn ports(ranges: &[PortRange]) -> String {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.first());
    let mut apart: Vec<(u16, u16)> = Vec::new();
    for range in sorted {
        match apart.last_mut() {
            Some((_, last)) if range.first() <= last.saturating_add(1) => *last = range.last().max(*last),
            Some(_) | None => apart.push((range.first(), range.last())),
        }
    }
    let texts: Vec<String> = apart.into_iter().map(|(first, last)| format!("{first}-{last}")).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range() -> Ipv4Cidr {
        "10.0.0.0/24".parse().expect("range")
    }

    fn ula() -> Ula {
        Ula::of(&model::id::VpcId::from_random([1; 20]))
    }

    fn entry(number: u8, action: RuleAction, direction: RuleDirection) -> RuleEntry {
        RuleEntry {
            id: RuleId::from_random([number; 20]),
            action,
            direction,
            member: None,
            peer: RulePeer::Any,
            protocol: RuleProtocol::Any,
            ports: Vec::new(),
        }
    }

    fn span(first: u16, last: u16) -> PortRange {
        (first, last).try_into().expect("a range")
    }

    fn of(rules: Vec<RuleEntry>) -> (Firewall, Vec<RuleRejection>) {
        let mut told = Vec::new();
        let firewall = Firewall::of(&rules.into(), None, |_, why| told.push(why));
        (firewall, told)
    }

    fn text(firewall: &Firewall) -> String {
        firewall.text((range(), None), Logged::No, &BTreeSet::new())
    }

    #[test]
    fn rules_stand_in_their_chains_in_order() {
        let first = RuleEntry {
            member: Some(Ipv4Addr::new(10, 0, 0, 5)),
            peer: RulePeer::Range("10.0.0.6/32".parse().expect("range")),
            protocol: RuleProtocol::Tcp,
            ports: vec![span(8000, 8099), span(22, 22), span(8050, 8100)],
            ..entry(1, RuleAction::Allow, RuleDirection::In)
        };
        let second = RuleEntry {
            peer: RulePeer::Clients,
            protocol: RuleProtocol::Icmp,
            ..entry(2, RuleAction::Deny, RuleDirection::Out)
        };
        let third = entry(3, RuleAction::Deny, RuleDirection::In);
        let (firewall, told) = of(vec![first, second, third]);
        assert_eq!(told, []);
        let text = text(&firewall);
        let lines: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("add rule inet gatehouse rules_")).collect();
        let name = |number: u8| counter_of(&RuleId::from_random([number; 20]));
        let expected = [
            format!(
                "out oifname \"clients\" meta l4proto {{ icmp, ipv6-icmp }} counter name {} drop",
                name(2)
            ),
            "out oifname \"clients\" counter name to_client drop".to_owned(),
            format!(
                "in ip daddr 10.0.0.5 ip saddr 10.0.0.6/32 tcp dport {{ 22-22, 8000-8100 }} counter name {} return",
                name(1)
            ),
            format!("in counter name {} drop", name(3)),
        ];
        assert_eq!(lines, expected);
        assert!(!text.contains("notrack"), "who began a connection must be known");
    }

    #[test]
    fn a_rule_of_members_addresses_is_one_of_both_families() {
        let in_rule =
            |peer, member| RuleEntry { member, peer, ..entry(1, RuleAction::Deny, RuleDirection::In) };
        let peers = |text: &str| RulePeer::Range(text.parse().expect("range"));
        let prefix = ula().to_string().replace("/64", "");
        let cases = [
            (in_rule(RulePeer::Any, None), vec![String::new()]),
            (in_rule(RulePeer::Clients, None), vec!["iifname \"clients\" ".to_owned()]),
            (
                in_rule(RulePeer::Any, Some([10, 0, 0, 5].into())),
                vec!["ip daddr 10.0.0.5 ".to_owned(), format!("ip6 daddr {prefix}a00:5 ")],
            ),
            (
                in_rule(peers("10.0.0.8/29"), None),
                vec!["ip saddr 10.0.0.8/29 ".to_owned(), format!("ip6 saddr {prefix}a00:8/125 ")],
            ),
            (
                in_rule(peers("0.0.0.0/0"), None),
                vec!["ip saddr 0.0.0.0/0 ".to_owned(), format!("ip6 saddr {prefix}/96 ")],
            ),
            (
                in_rule(peers("198.51.100.0/24"), Some([10, 0, 0, 5].into())),
                vec!["ip daddr 10.0.0.5 ip saddr 198.51.100.0/24 ".to_owned()],
            ),
        ];
        let rest = format!("counter name {} drop", counter_of(&RuleId::from_random([1; 20])));
        for (rule, expected) in cases {
            let expected: Vec<_> = expected.iter().map(|text| format!("{text}{rest}")).collect();
            assert_eq!(lines_of(&rule, range(), Some(ula())), expected);
            assert_eq!(lines_of(&rule, range(), None), expected[..1]);
        }
    }

    #[test]
    fn counters_outlive_a_rewrite_and_go_with_their_rule() {
        let (firewall, _) = of(vec![entry(1, RuleAction::Deny, RuleDirection::In)]);
        let gone = counter_of(&RuleId::from_random([2; 20]));
        let standing = firewall.counters().into_iter().chain([gone.clone()]).collect();
        let text = firewall.text((range(), Some(ula())), Logged::No, &standing);
        let deleted: Vec<&str> = text.lines().filter(|line| line.starts_with("delete")).collect();
        assert_eq!(deleted, [format!("delete counter inet gatehouse {gone}")]);
        assert_eq!(rule_of(&gone), Some(RuleId::from_random([2; 20])));
        assert_eq!(rule_of("rule_x"), None);
        assert_eq!(rule_of("invalid"), None);
    }

    #[test]
    fn a_network_without_rules_tracks_only_when_it_is_logged() {
        let (firewall, _) = of(vec![]);
        assert!(text(&firewall).contains("ip daddr 10.0.0.0/24 ip daddr != @hidden notrack"));
        let logged = firewall.text((range(), Some(ula())), Logged::All, &BTreeSet::new());
        assert!(!logged.contains("notrack"));
        assert!(logged.contains("log prefix \"to_client\""), "{logged}");
    }

    #[test]
    fn a_bad_rule_never_opens_what_it_would_close() {
        let bad = |number, action| RuleEntry {
            ports: vec![span(80, 80)],
            ..entry(number, action, RuleDirection::In)
        };
        let many = |number, action| RuleEntry {
            protocol: RuleProtocol::Udp,
            ports: vec![span(80, 80); MAX_PORT_RANGES + 1],
            ..entry(number, action, RuleDirection::In)
        };
        let (allow, deny) = (RuleAction::Allow, RuleAction::Deny);
        let again = entry(2, deny, RuleDirection::Out);
        let (firewall, told) = of(vec![
            bad(1, allow),
            bad(2, deny),
            many(3, allow),
            many(4, deny),
            entry(5, deny, RuleDirection::In),
            entry(5, deny, RuleDirection::Out),
            again,
        ]);
        use RuleRejection::{Ports, Ranges, Twice};
        assert_eq!(told, [Ports, Ports, Ranges, Ranges, Twice]);
        let kept: Vec<_> = firewall.rules.iter().map(|rule| (rule.action, rule.ports.len())).collect();
        assert_eq!(kept, vec![(deny, 0); 5]);

        let mut all: Vec<_> = (0..MAX_RULES)
            .map(|number| RuleEntry {
                id: RuleId::from_random(std::array::from_fn(|at| (number >> at) as u8 & 1)),
                ..entry(0, allow, RuleDirection::Out)
            })
            .collect();
        all.push(entry(200, allow, RuleDirection::In));
        let (firewall, told) = of(all.clone());
        assert_eq!(told, [RuleRejection::Full]);
        assert!(!text(&firewall).contains("counter name rules_cut_off"));
        all.push(entry(201, deny, RuleDirection::In));
        let (firewall, told) = of(all);
        assert_eq!(told, [RuleRejection::Full; 2]);
        assert!(text(&firewall).contains("rules_in counter name rules_cut_off drop"));
        assert!(!text(&firewall).contains("rules_out counter name rules_cut_off"));
    }

    #[test]
    fn an_entry_that_cannot_be_read_closes_the_network() {
        let entries: Entries<RuleEntry> = serde_json::from_str(r#"[{"id":"fw-x"}]"#).expect("a list");
        let firewall = Firewall::of(&entries, None, |_, _| {});
        let text = text(&firewall);
        for chain in [RULES_IN, RULES_OUT] {
            assert!(text.contains(&format!("{chain} counter name unreadable_rules drop")), "{text}");
        }
        assert!(firewall.judges());
    }

    #[test]
    fn the_rule_that_let_a_connection_pass_is_found() {
        let (allow, deny) = (RuleAction::Allow, RuleAction::Deny);
        let web = RuleEntry {
            protocol: RuleProtocol::Tcp,
            ports: vec![span(80, 81)],
            ..entry(1, allow, RuleDirection::In)
        };
        let out =
            RuleEntry { member: Some(Ipv4Addr::new(10, 0, 0, 5)), ..entry(2, allow, RuleDirection::Out) };
        let (firewall, _) = of(vec![web, entry(3, deny, RuleDirection::In), out]);
        let connection = |source: [u8; 4], port| Connection {
            source: source.into(),
            destination: Ipv4Addr::new(10, 0, 0, 6),
            protocol: TCP,
            port,
        };
        let by =
            |connection| firewall.allowed_by(range(), connection).into_iter().cloned().collect::<Vec<_>>();
        let id = |number: u8| RuleId::from_random([number; 20]);
        assert_eq!(by(connection([10, 0, 0, 5], 80)), [id(2), id(1)]);
        assert_eq!(by(connection([10, 0, 0, 7], 81)), [id(1)]);
        assert_eq!(by(connection([10, 0, 0, 7], 82)), []);
        assert_eq!(by(connection([10, 9, 0, 7], 80)), [id(1)], "from elsewhere only what comes in is judged");
        assert_eq!(by(connection(GATEWAY_IPV4.octets(), 80)), [], "the doors are not judged");
    }

    proptest! {
        #[test]
        fn ports_are_said_once_and_all(pairs in proptest::collection::vec((1u16.., 0u16..300), 1..16)) {
            let ranges: Vec<PortRange> =
                pairs.iter().map(|(first, more)| span(*first, first.saturating_add(*more))).collect();
            let said: Vec<PortRange> =
                ports(&ranges).split(", ").map(|text| text.parse().expect("a range")).collect();
            prop_assert!(said.windows(2).all(|two| u32::from(two[0].last()) + 1 < u32::from(two[1].first())));
            for port in 1..=u16::MAX {
                let of = |all: &[PortRange]| all.iter().any(|range| range.first() <= port && port <= range.last());
                prop_assert_eq!(of(&ranges), of(&said));
            }
        }
    }
}
