//! The packet filter, as text for `nft -f -`: each text is one transaction, and applying it again changes nothing
//! but what it says. Text and not JSON, because operators read and compare it with `nft list ruleset`.
//!
//! Counters are named by reason and outlive a new application, so that no dropped packet goes unexplained.

use crate::pure::firewall::{RULES_IN, RULES_OUT};
use crate::pure::names::{INNER_UPLINK, Names, TABLE};
use crate::pure::transfer::Transfer;
use crate::pure::wanted::Seat;
use model::net::{GATEWAY_IPV4, GATEWAY_IPV6, Ipv4Cidr, Ula};
use std::fmt::Write;
use std::net::Ipv6Addr;

/// What a guest may not reach though it would be forwarded: everything that is not the public Internet, after the
/// IANA special-purpose registry (RFC 6890). The three ranges for documentation (RFC 5737) are left out: nobody
/// has them, and they play the Internet in tests and lessons.
pub const NOT_INTERNET: [(&str, &str); 12] = [
    ("0.0.0.0/8", "this network"),
    ("10.0.0.0/8", "private, RFC 1918: the operator's own machines"),
    ("100.64.0.0/10", "carrier-grade NAT, RFC 6598: VPN clients, providers' own machines"),
    ("127.0.0.0/8", "loopback"),
    ("169.254.0.0/16", "link-local: metadata services, transfer addresses"),
    ("172.16.0.0/12", "private, RFC 1918"),
    ("192.0.0.0/24", "protocol assignments"),
    ("192.88.99.0/24", "6to4 relays, deprecated by RFC 7526"),
    ("192.168.0.0/16", "private, RFC 1918"),
    ("198.18.0.0/15", "benchmarks, RFC 2544"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved, and the broadcast address"),
];

/// Echo requests to the gateway that a guest has answered, a second: enough for people, too few for a flood.
pub const PINGS_PER_SECOND: u32 = 20;
/// Guests that a limit tells apart at once; as many as there may be ports.
const SOURCES: usize = crate::pure::wanted::MAX_PORTS;
/// Questions of one guest without an address for what it is, a second and at once: a client asks twice, and again after
/// seconds.
const DHCP_PER_SECOND: u32 = 5;
const DHCP_AT_ONCE: u32 = 10;
/// Where a message of DHCP has the client's Ethernet address, in bits from the UDP header on, and how many bits that is.
const DHCP_MAC: &str = "@th,288,48";

/// Tracked flows of one port, of those that it began: several times what a busy server has, and 32 such ports are needed to
/// fill the kernel's usual table of 262,144 for the whole network. The kernel walks a port's list for each new flow, no more
/// than once a tick, so a longer one would be a burden.
pub const MAX_FLOWS_OF_ONE: u32 = 8192;
/// Of a tracked flow's state: it has a place in the table (`IPS_CONFIRMED` of nf_conntrack_common.h).
const CONFIRMED: u32 = 1 << 3;
/// Refused packets of one port that are told, a second; the counters have all of them.
const TOLD_PER_SECOND: u32 = 20;
/// The same, at once.
const TOLD_AT_ONCE: u32 = 40;
/// Bytes of a refused packet that are told: the longest IPv4 header and the ports behind it.
pub const TOLD_BYTES: u32 = 68;
/// Reasons of a port's chain that are counted and not told: every honest system says so much of its groups, and asks for
/// routers.
const UNTOLD: [&str; 2] = ["ipv6_multicast", "ipv6_frame"];
/// Where refused packets are told; nobody else listens in a namespace of ours.
pub const LOG_GROUP: u16 = 1;

/// Counters of the per-port chains (family netdev, in the namespace).
pub const PORT_COUNTERS: [&str; 11] = [
    "spoofed_mac",
    "spoofed_address",
    "spoofed_arp",
    "too_many_dhcp",
    // Where IPv6 is spoken.
    "spoofed_nd",
    "spoofed_dhcpv6",
    "ipv6_multicast",
    "spoofed_ipv6",
    "ipv6_extension",
    // Where it is not.
    "ipv6_frame",
    "unknown_frame",
];
/// Counters of the network (family inet, in the namespace).
pub const NETWORK_COUNTERS: [&str; 13] = [
    "invalid",
    // Of the default network alone.
    "to_other_vm",
    "to_link_local",
    "to_private_range",
    "to_own_network",
    "to_gateway_service",
    "too_many_pings",
    "unasked",
    "too_many_flows",
    "ipv6_elsewhere",
    // Of private networks alone.
    "ipv6_nobody",
    "ipv6_silent",
    "own_ipv6",
];
/// The members that have been heard to speak IPv6, by that address (family inet, in the namespace). The kernel keeps them,
/// so that vpc need not.
pub const SPEAKERS: &str = "speakers";
/// Counters in the host's namespace (family inet).
pub const HOST_COUNTERS: [&str; 5] = ["to_host", "to_private_range", "unasked", "wrong_source", "ipv6"];

/// Who reaches whom inside a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inward {
    /// Nobody reaches another: the default network.
    Apart,
    /// All are members: a private network.
    Together,
}

/// Whether flows and refused packets are told to who keeps the flow log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logged {
    /// Nobody listens.
    No,
    /// Ends of flows are; this kernel cannot tell of refused packets.
    Flows,
    /// Refused packets, too, up to a rate.
    All,
}

/// The link of one network, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The host's end.
    pub device: String,
    /// The pair of addresses.
    pub transfer: Transfer,
}

/// The rules of a namespace that do not depend on its ports, and the empty table for those that do. `ula` is where the
/// IPv6 addresses of its members come from, if they have any.
#[must_use]
pub fn network((network, ula): (Ipv4Cidr, Option<Ula>), inward: Inward, logged: Logged) -> String {
    let mut text = table_with_counters("netdev", TABLE, &PORT_COUNTERS);
    text.push_str(&table_with_counters("inet", TABLE, &NETWORK_COUNTERS));
    let ranges = NOT_INTERNET.map(|(range, _)| range).join(", ");
    let too_many_flows = format!(
        "meta mark != 0 ct state new ct status & {CONFIRMED} == 0 \
         add @flows {{ meta mark ct count over {MAX_FLOWS_OF_ONE} }} counter name too_many_flows drop"
    );
    let lines = [
        "add set inet T private_ranges { type ipv4_addr; flags interval; }".to_owned(),
        "flush set inet T private_ranges".to_owned(),
        format!("add element inet T private_ranges {{ {ranges} }}"),
        format!("add set inet T pings {{ type ifname; size {SOURCES}; flags dynamic,timeout; timeout 1m; }}"),
        format!("add set inet T flows {{ type mark; size {SOURCES}; flags dynamic; }}"),
        // Every flow carries the mark of the port that began it, or was begun with it, so that all of a port's flows can
        // be forgotten with it.
        chain("inet", "mark_in", "filter hook prerouting priority mangle; policy accept;"),
        "add rule inet T mark_in meta mark != 0 ct mark 0 ct mark set meta mark".to_owned(),
        chain("inet", "mark_out", "filter hook output priority mangle; policy accept;"),
        "add rule inet T mark_out meta mark != 0 ct mark set meta mark".to_owned(),
        // Written with the firewall's rules (see [`crate::pure::firewall`]), which a new start must not take away.
        format!("add chain inet T {RULES_OUT}"),
        format!("add chain inet T {RULES_IN}"),
        chain("inet", "forward", "filter hook forward priority filter; policy drop;"),
        // Behind the judgement, so that only flows that come to be are counted, and each once, by its first packet.
        chain("inet", "bound", "filter hook forward priority filter + 10; policy accept;"),
        format!("add rule inet T bound {too_many_flows}"),
        chain("inet", "bound_in", "filter hook input priority filter + 10; policy accept;"),
        format!("add rule inet T bound_in {too_many_flows}"),
    ];
    push(&mut text, TABLE, &lines);
    push(&mut text, TABLE, &ipv6_rules(ula));
    push(&mut text, TABLE, &forward_rules((network, ula), inward));
    push(&mut text, TABLE, &input_rules(ula));
    with_log(text, logged)
}

/// One port's anti-spoofing chain, at the first place where the kernel sees a frame of the guest.
#[must_use]
pub fn port(port: &Seat, logged: Logged) -> String {
    let (device, mac, ipv4) = (&port.device, port.mac, port.ipv4);
    let mut text = table_with_counters("netdev", TABLE, &PORT_COUNTERS);
    // A guest that does not know its address yet, with its own Ethernet address in the message as well.
    let dhcp = format!("{} {DHCP_MAC} 0x{}", DHCP_ASKS, mac.to_string().replace(':', ""));
    let rule = |rule: &str| format!("add rule netdev T {device} {rule}");
    let mut lines = vec![
        chain(
            "netdev",
            device.as_str(),
            &format!("filter hook ingress device \"{device}\" priority -500; policy drop;"),
        ),
        rule(&format!("ether saddr != {mac} counter name spoofed_mac drop")),
        // Nearly all packets end here.
        rule(&format!("ether type ip ip saddr {ipv4} meta mark set {:#010x} accept", port.mark())),
    ];
    lines.extend(port_ipv6_common(port).iter().map(|line| rule(&format!("ether type ip6 {line}"))));
    lines.extend([
        rule(&format!(
            "{dhcp} limit rate over {DHCP_PER_SECOND}/second burst {DHCP_AT_ONCE} packets \
             counter name too_many_dhcp drop"
        )),
        rule(&format!("{dhcp} meta mark set {:#010x} accept", port.mark())),
        rule("ether type ip counter name spoofed_address drop"),
        // Probes (RFC 5227) say 0.0.0.0; the address itself is announced and asked for with the guest's own.
        rule(&format!("ether type arp arp saddr ether {mac} arp saddr ip {{ 0.0.0.0, {ipv4} }} accept")),
        rule("ether type arp counter name spoofed_arp drop"),
    ]);
    lines.extend(port_ipv6_rules(port).iter().map(|line| rule(&format!("ether type ip6 {line}"))));
    lines.push(rule("counter name unknown_frame drop"));
    push(&mut text, TABLE, &lines);
    if logged == Logged::All { with_port_log(&text, device.as_str()) } else { text }
}

/// With a line before each that drops what a port lies about, which tells of the packet and names the port, since its
/// addresses are lies. Each port has limits of its own.
fn with_port_log(text: &str, device: &str) -> String {
    let mut told = String::with_capacity(text.len() * 2);
    for line in text.lines() {
        let rule = line.starts_with("add rule netdev") && !line.contains(" limit ");
        let refuses = line.split_once("counter name ").filter(|_| rule);
        let refuses = refuses.and_then(|(fits, rest)| Some((fits, rest.split(' ').next()?)));
        if let Some((fits, reason)) = refuses.filter(|(_, reason)| !UNTOLD.contains(reason)) {
            told.push_str(&format!(
                "{fits}limit rate {TOLD_PER_SECOND}/second burst {TOLD_AT_ONCE} packets \
                 log prefix \"{reason} {device}\" group {LOG_GROUP} snaplen {TOLD_BYTES}\n"
            ));
        }
        told.push_str(line);
        told.push('\n');
    }
    told
}

/// Nearly all IPv6 packets: TCP and UDP between members, with nothing between IPv6's header and theirs, and nothing that
/// could say an address to a client of DHCPv6.
fn port_ipv6_common(port: &Seat) -> Vec<String> {
    let Some(own) = port.ipv6 else { return Vec::new() };
    let members = Ipv6Addr::from_bits(own.to_bits() >> (128 - Ula::PREFIX) << (128 - Ula::PREFIX));
    let between = format!("ip6 saddr {own} ip6 daddr {members}/{}", Ula::PREFIX);
    let kinds = ["tcp".to_owned(), format!("udp udp dport != {DHCPV6_CLIENT}")];
    kinds
        .map(|kind| format!("{between} ip6 nexthdr {kind} meta mark set {:#010x} accept", port.mark()))
        .to_vec()
}

/// What else a member may say in IPv6: packets with its own address, and of neighbour discovery (RFC 4861) what is about its own
/// addresses or asks for the gateway. As a link-local address it has the one that its NIC makes of the Ethernet address,
/// and says nothing else with it: of any other the kernel would learn a neighbour, into a table that all networks share.
/// It asks for no router, is none, and joins no groups, so all other multicast is dropped. Of extension headers (RFC 8200
/// section 4) fragments pass, which are put together before they are judged further, and what is sealed (ESP); none of the
/// others is needed between members, and each was once a way around a filter.
fn port_ipv6_rules(port: &Seat) -> Vec<String> {
    let Some(own) = port.ipv6 else { return vec!["counter name ipv6_frame drop".to_owned()] };
    let (mac, link) = (port.mac.to_string().replace(':', ""), port.mac.link_local());
    let asked = |address: Ipv6Addr| format!("{ND_TARGET} {:#034x}", address.to_bits());
    let about_itself = [asked(own), asked(link)];
    let (about_gateway, accept) =
        (asked(GATEWAY_IPV6), format!("meta mark set {:#010x} accept", port.mark()));
    // With nothing in front of it (RFC 6980 says why).
    let (ask, answer) = (
        "ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-solicit",
        "ip6 nexthdr icmpv6 icmpv6 type nd-neighbor-advert",
    );
    let from_itself = format!("ip6 saddr {{ {own}, {link} }}");
    // The whole message: without options, or with the sender's or target's Ethernet address and nothing else.
    let bare = format!("ip6 length {ND_BYTES}");
    let with = |option: u8| {
        format!("ip6 length {} {ND_OPTION} {option:#04x}01 {ND_MAC} 0x{mac}", ND_BYTES + ND_OPTION_BYTES)
    };
    let mut lines = Vec::new();
    for option in [bare.clone(), with(ND_SOURCE_MAC)] {
        lines.push(format!(
            "{from_itself} ip6 daddr {{ {GATEWAY_IPV6}, {GATEWAY_GROUP} }} {ask} {about_gateway} {option} {accept}"
        ));
    }
    for target in about_itself {
        // Whether somebody has the address that it is about to take (RFC 4862 section 5.4).
        lines.push(format!("ip6 saddr :: ip6 daddr ff02::/16 {ask} {target} {accept}"));
        for option in [bare.clone(), with(ND_TARGET_MAC)] {
            lines.push(format!(
                "{from_itself} ip6 daddr {{ {GATEWAY_IPV6}, ff02::1 }} {answer} {target} {option} {accept}"
            ));
        }
    }
    lines.extend([
        "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert, nd-redirect } \
         counter name spoofed_nd drop"
            .to_owned(),
        format!("udp dport {DHCPV6_CLIENT} counter name spoofed_dhcpv6 drop"),
        "ip6 daddr ff00::/8 counter name ipv6_multicast drop".to_owned(),
        format!("ip6 saddr != {own} counter name spoofed_ipv6 drop"),
        format!("ip6 nexthdr {{ {EXTENSIONS} }} counter name ipv6_extension drop"),
        format!("ip6 nexthdr {FRAGMENT} frag nexthdr {{ {FRAGMENT}, {EXTENSIONS} }} counter name ipv6_extension drop"),
        accept,
    ]);
    lines
}

/// Removes a port's chain, whether or not it is there.
#[must_use]
pub fn without_port(device: &str) -> String {
    format!(
        "add table netdev {TABLE}\nadd chain netdev {TABLE} {device}\nflush chain netdev {TABLE} {device}\n\
         delete chain netdev {TABLE} {device}\n"
    )
}

/// The rules in the host's namespace for all networks, in a table of our own; other tables are not touched. Two chains and
/// a set for all, so that the host's own packets pass no more rules for a hundred networks than for one.
#[must_use]
pub fn host(names: &Names, links: &[Link]) -> String {
    let (table, uplinks) = (names.host_table(), names.host_uplinks());
    let mut text = table_with_counters("inet", &table, &HOST_COUNTERS);
    let ranges = NOT_INTERNET.map(|(range, _)| range).join(", ");
    let from = format!("iifname \"{uplinks}\"");
    let mut lines = vec![
        "add set inet T private_ranges { type ipv4_addr; flags interval; }".to_owned(),
        "flush set inet T private_ranges".to_owned(),
        format!("add element inet T private_ranges {{ {ranges} }}"),
        "add set inet T links { type ifname . ipv4_addr; }".to_owned(),
        "flush set inet T links".to_owned(),
        "add set inet T inner_ends { type ipv4_addr; }".to_owned(),
        "flush set inet T inner_ends".to_owned(),
    ];
    if !links.is_empty() {
        let pair = |link: &Link| format!("\"{}\" . {}", link.device, link.transfer.inner());
        let pairs: Vec<String> = links.iter().map(pair).collect();
        let inner: Vec<String> = links.iter().map(|link| link.transfer.inner().to_string()).collect();
        lines.push(format!("add element inet T links {{ {} }}", pairs.join(", ")));
        lines.push(format!("add element inet T inner_ends {{ {} }}", inner.join(", ")));
    }
    lines.extend([
        // Before anyone's destination NAT: a port published on one of the host's addresses is the host's too.
        chain("inet", "guard", "filter hook prerouting priority mangle; policy accept;"),
        format!("add rule inet T guard {from} meta nfproto ipv6 counter name ipv6 drop"),
        format!("add rule inet T guard {from} iifname . ip saddr != @links counter name wrong_source drop"),
        format!(
            "add rule inet T guard {from} fib daddr type {{ local, broadcast, anycast, multicast }} \
             counter name to_host drop"
        ),
        chain("inet", "input", "filter hook input priority filter; policy accept;"),
        format!("add rule inet T input {from} counter name to_host drop"),
        chain("inet", "forward", "filter hook forward priority filter; policy accept;"),
        format!("add rule inet T forward {from} ip daddr @private_ranges counter name to_private_range drop"),
        format!(
            "add rule inet T forward oifname \"{uplinks}\" ct state != {{ established, related }} \
             counter name unasked drop"
        ),
        format!("add rule inet T forward {from} {CLAMP}"),
        chain("inet", "translate", "nat hook postrouting priority srcnat; policy accept;"),
        format!("add rule inet T translate ip saddr @inner_ends oifname != \"{uplinks}\" masquerade"),
    ]);
    push(&mut text, &table, &lines);
    text
}

/// Makes of the host's table that has these links the one that has those, and touches nothing else of it. The kernel
/// refuses it when the table is not as it was left.
#[must_use]
pub fn host_change(names: &Names, before: &[Link], after: &[Link]) -> String {
    let gone = before.iter().filter(|link| !after.contains(link)).map(|link| ("delete", link));
    let new = after.iter().filter(|link| !before.contains(link)).map(|link| ("add", link));
    let lines: Vec<String> = gone
        .chain(new)
        .flat_map(|(verb, Link { device, transfer })| {
            let inner = transfer.inner();
            [
                format!("{verb} element inet T links {{ \"{device}\" . {inner} }}"),
                format!("{verb} element inet T inner_ends {{ {inner} }}"),
            ]
        })
        .collect();
    let mut text = String::new();
    push(&mut text, &names.host_table(), &lines);
    text
}

/// Removes the host's table, whether or not it is there.
#[must_use]
pub fn without_host(names: &Names) -> String {
    let table = names.host_table();
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// What a guest without an address sends to servers of DHCP.
const DHCP_ASKS: &str = "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67";
/// Where a message of neighbour discovery has the address that it is about, an option's kind and length, and the Ethernet
/// address in it, in bits from the ICMPv6 header on (RFC 4861 sections 4.3, 4.4 and 4.6.1).
const ND_TARGET: &str = "@th,64,128";
const ND_OPTION: &str = "@th,192,16";
const ND_MAC: &str = "@th,208,48";
/// Bytes of such a message, and of that option.
const ND_BYTES: u8 = 24;
const ND_OPTION_BYTES: u8 = 8;
/// Kinds of that option.
const ND_SOURCE_MAC: u8 = 1;
const ND_TARGET_MAC: u8 = 2;
/// Where a client of DHCPv6 gets answers (RFC 8415 section 7.2). Nobody of a network has any to give.
const DHCPV6_CLIENT: u16 = 546;
/// The number of a fragment's header.
const FRAGMENT: u8 = 44;
/// The numbers of all other extension headers (IANA's list) but ESP: hop by hop, routing, authentication, destination's
/// options, mobility, HIP, Shim6, experiments.
const EXTENSIONS: &str = "0, 43, 51, 60, 135, 139, 140, 253, 254";
/// The group in which the gateway is asked for (RFC 4291 section 2.7.1).
const GATEWAY_GROUP: &str = "ff02::1:ff00:1";
/// A SYN says no larger segment than the path's first link takes (RFC 4459 section 3.2 says why).
const CLAMP: &str = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";

/// What is judged where the kernel first sees the packet, since without a route it would get no further and be counted by
/// no reason of ours; and what the gateway would say of itself, which would wake VMs that sleep.
///
/// A member that has never been heard has no IPv6: an older system, or one without our agent. It would let packets fall
/// without a word, so who tries gets one here. Who has it says so by neighbour discovery: the agent at once, and any
/// system when it first asks for the gateway with its address.
fn ipv6_rules(ula: Option<Ula>) -> Vec<String> {
    let mut lines = vec![chain("inet", "ipv6", "filter hook prerouting priority mangle; policy accept;")];
    let mut rule = |rule: String| lines.push(format!("add rule inet T ipv6 meta nfproto ipv6 {rule}"));
    let Some(ula) = ula else {
        rule("counter name ipv6_elsewhere drop".to_owned());
        return lines;
    };
    let (to_gateway, nobody) =
        (format!("ip6 daddr {{ {GATEWAY_IPV6}, ff00::/8 }}"), "reject with icmpv6 addr-unreachable");
    // Nearly all packets end here.
    rule(format!("ip6 daddr @{SPEAKERS} return"));
    // Neighbour discovery, which the member's own chain has judged.
    rule(format!("meta mark != 0 ip6 saddr {ula} {to_gateway} add @{SPEAKERS} {{ ip6 saddr }}"));
    rule(format!("{to_gateway} return"));
    rule(format!("ip6 daddr != {ula} counter name ipv6_elsewhere drop"));
    rule(format!("fib daddr oif missing counter name ipv6_nobody {nobody}"));
    rule(format!("counter name ipv6_silent {nobody}"));
    lines.insert(0, format!("add set inet T {}", speakers_set()));
    lines.extend([
        chain("inet", "own_ipv6", "filter hook output priority filter; policy accept;"),
        "add rule inet T own_ipv6 icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, \
         mld2-listener-report, nd-router-solicit, nd-router-advert, nd-redirect } counter name own_ipv6 drop"
            .to_owned(),
    ]);
    lines
}

fn speakers_set() -> String {
    format!("{SPEAKERS} {{ type ipv6_addr; size {SOURCES}; flags dynamic; }}")
}

/// A member is known to speak IPv6, since vpc itself gave it the address.
#[must_use]
pub fn speaker(address: Ipv6Addr) -> String {
    format!("add element inet {TABLE} {SPEAKERS} {{ {address} }}\n")
}

/// Whether the member of this address speaks IPv6 is not known (any more). For networks that have [`SPEAKERS`].
#[must_use]
pub fn without_speaker(address: Ipv6Addr) -> String {
    // What is not there cannot be deleted.
    format!("{}delete element inet {TABLE} {SPEAKERS} {{ {address} }}\n", speaker(address))
}

fn forward_rules((network, ula): (Ipv4Cidr, Option<Ula>), inward: Inward) -> Vec<String> {
    let (to_port, to_nobody) = match inward {
        Inward::Apart => ("counter name to_other_vm drop", "drop"),
        // A member that is not there is worth a word, so that a guest need not wait for one.
        Inward::Together => ("accept", "reject with icmp type host-unreachable"),
    };
    let mut rules = vec![
        "ct state invalid counter name invalid drop".to_owned(),
        CLAMP.to_owned(),
        format!("iifname \"{INNER_UPLINK}\" ct state established,related accept"),
        format!("iifname \"{INNER_UPLINK}\" counter name unasked drop"),
        // See `crate::pure::sides`, whose text comes before this one.
        "jump sides".to_owned(),
    ];
    if inward == Inward::Together {
        rules.extend([
            "ct direction reply ct state established,related accept".to_owned(),
            format!("meta mark != 0 jump {RULES_OUT}"),
            format!("ip daddr {network} jump {RULES_IN}"),
        ]);
        rules.extend(ula.map(|ula| format!("ip6 daddr {ula} jump {RULES_IN}")));
    }
    rules.extend([
        format!("oifname != \"{INNER_UPLINK}\" {to_port}"),
        // There is no route either.
        "meta nfproto ipv6 counter name ipv6_elsewhere drop".to_owned(),
        "ip daddr 169.254.0.0/16 counter name to_link_local drop".to_owned(),
        format!("ip daddr {network} counter name to_own_network {to_nobody}"),
        "ip daddr @private_ranges counter name to_private_range drop".to_owned(),
        "accept".to_owned(),
    ]);
    rules.into_iter().map(|rule| format!("add rule inet T forward {rule}")).collect()
}

fn input_rules(ula: Option<Ula>) -> Vec<String> {
    let ping = "icmp type echo-request";
    let mut rules = vec![
        "iifname \"lo\" accept".to_owned(),
        "ct state invalid counter name invalid drop".to_owned(),
        format!("iifname \"{INNER_UPLINK}\" counter name unasked drop"),
        // The guest's half of a dialled connection, and errors about it.
        "ct direction reply ct state established,related accept".to_owned(),
        format!("ip daddr {GATEWAY_IPV4} udp dport 53 accept"),
        format!("ip daddr {GATEWAY_IPV4} tcp dport 53 accept"),
        format!("meta mark != 0 {DHCP_ASKS} accept"),
        format!("meta mark != 0 ip daddr {GATEWAY_IPV4} udp sport 68 udp dport 67 accept"),
        format!(
            "ip daddr {GATEWAY_IPV4} {ping} update @pings {{ iifname limit rate over \
             {PINGS_PER_SECOND}/second burst {PINGS_PER_SECOND} packets }} counter name too_many_pings drop"
        ),
        format!("ip daddr {GATEWAY_IPV4} {ping} accept"),
    ];
    if ula.is_some() {
        rules.push("icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept".to_owned());
    }
    rules.push("counter name to_gateway_service drop".to_owned());
    let mut lines = vec![chain("inet", "input", "filter hook input priority filter; policy drop;")];
    lines.extend(rules.into_iter().map(|rule| format!("add rule inet T input {rule}")));
    lines.push(chain("inet", "translate", "nat hook postrouting priority srcnat; policy accept;"));
    lines.push(format!("add rule inet T translate oifname \"{INNER_UPLINK}\" masquerade"));
    lines
}

/// A rule that tells of packets, to see whether this kernel can. For `nft --check`, since it is good for nothing.
#[must_use]
pub fn log_probe() -> String {
    format!(
        "add table inet probe\nadd chain inet probe c\n\
         add rule inet probe c log prefix \"probe\" group {LOG_GROUP} snaplen {TOLD_BYTES}\n\
         add table netdev probe\nadd chain netdev probe c\n\
         add rule netdev probe c log prefix \"probe\" group {LOG_GROUP} snaplen {TOLD_BYTES}\n"
    )
}

/// With a line before each that refuses, which tells of the packet. What a limit refuses is not told: asking the limit
/// twice would halve it.
#[must_use]
pub fn with_log(text: String, logged: Logged) -> String {
    if logged != Logged::All {
        return text;
    }
    let mut told = String::with_capacity(text.len() * 2);
    told.push_str(&format!(
        "add table inet {TABLE}\n\
         add set inet {TABLE} told {{ type mark; size {SOURCES}; flags dynamic,timeout; timeout 1m; }}\n"
    ));
    for line in text.lines() {
        let refuses =
            line.starts_with("add rule inet") && (line.contains(" drop") || line.contains(" reject"));
        let limit = line.contains(" add @") || line.contains(" update @");
        if let Some((fits, rest)) = line.split_once("counter name ").filter(|_| refuses && !limit) {
            let reason = rest.split(' ').next().unwrap_or_default();
            told.push_str(&format!(
                "{fits}update @told {{ meta mark limit rate {TOLD_PER_SECOND}/second burst {TOLD_AT_ONCE} packets }} \
                 log prefix \"{reason}\" group {LOG_GROUP} snaplen {TOLD_BYTES}\n"
            ));
        }
        told.push_str(line);
        told.push('\n');
    }
    told
}

/// Adds a table and what it counts.
#[must_use]
pub fn table_with_counters(family: &str, table: &str, counters: &[&str]) -> String {
    let mut text = format!("add table {family} {table}\n");
    for counter in counters {
        // Writing to a String cannot fail.
        let written = writeln!(text, "add counter {family} {table} {counter}");
        debug_assert!(written.is_ok());
    }
    text
}

/// A base chain, empty.
fn chain(family: &str, name: &str, hook: &str) -> String {
    format!("add chain {family} T {name} {{ type {hook} }}\nflush chain {family} T {name}")
}

/// Appends lines in which the word `T` stands for the table.
pub fn push(text: &mut String, table: &str, lines: &[String]) {
    for line in lines {
        for line in line.lines() {
            let mut words = line.splitn(4, ' ');
            let (verb, object, family) = (words.next(), words.next(), words.next());
            let rest = words.next().and_then(|rest| rest.strip_prefix('T'));
            if let (Some(verb), Some(object), Some(family), Some(rest)) = (verb, object, family, rest) {
                let written = writeln!(text, "{verb} {object} {family} {table}{rest}");
                debug_assert!(written.is_ok());
            } else {
                debug_assert!(false, "a rule's line has the form 'verb object family T …': {line}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::names::{DeviceName, NetworkId};
    use model::id::{VmId, VpcId};
    use model::net::MacAddress;
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    fn ula() -> Ula {
        Ula::of(&VpcId::from_random([1; 20]))
    }

    fn port_of(bytes: [u8; 20], ipv6: Option<Ipv6Addr>) -> Seat {
        let (device, ipv4) = (DeviceName::of(&VmId::from_random(bytes)), Ipv4Addr::new(10, 201, 0, 5));
        Seat { device, mac: MacAddress::of_ipv4(ipv4), ipv4, ipv6 }
    }

    #[test]
    fn every_counter_has_a_rule_and_every_rule_a_known_counter() {
        let names = Names::new("gh").expect("prefix");
        let link = |network: &NetworkId, taken: &[Ipv4Cidr]| {
            let device = names.host_uplink(network);
            Link { transfer: Transfer::choose(&device, taken).expect("free"), device }
        };
        let links =
            [link(&NetworkId::Default, &[]), link(&NetworkId::Private(VpcId::from_random([1; 20])), &[])];
        let range: Ipv4Cidr = "10.201.0.0/16".parse().expect("network");
        // In a private network one VM may reach another.
        let without = |all: &[&'static str], names: &[&str]| -> Vec<&'static str> {
            all.iter().copied().filter(|name| !names.contains(name)).collect()
        };
        let apart = without(&NETWORK_COUNTERS, &["ipv6_nobody", "ipv6_silent", "own_ipv6"]);
        let together = without(&NETWORK_COUNTERS, &["to_other_vm"]);
        let (plain, speaking) = (
            without(
                &PORT_COUNTERS,
                &["spoofed_nd", "spoofed_dhcpv6", "ipv6_multicast", "spoofed_ipv6", "ipv6_extension"],
            ),
            without(&PORT_COUNTERS, &["ipv6_frame"]),
        );
        let address = ula().address(Ipv4Addr::new(10, 201, 0, 5));
        let texts = [
            (network((range, None), Inward::Apart, Logged::No), &apart[..]),
            (network((range, Some(ula())), Inward::Together, Logged::No), &together),
            (port(&port_of([1; 20], None), Logged::No), &plain),
            (port(&port_of([1; 20], None), Logged::All), &plain),
            (port(&port_of([1; 20], Some(address)), Logged::No), &speaking),
            (port(&port_of([1; 20], Some(address)), Logged::All), &speaking),
            (host(&names, &links), HOST_COUNTERS.as_slice()),
            (host(&names, &[]), HOST_COUNTERS.as_slice()),
        ];
        for (text, counters) in texts {
            let used: BTreeSet<&str> = text
                .split("counter name ")
                .skip(1)
                .map(|rest| rest.split_whitespace().next().expect("a name"))
                .collect();
            assert_eq!(used, counters.iter().copied().collect(), "{text}");
            assert!(
                !text.lines().any(|line| (line.contains(" drop") || line.contains(" reject"))
                    && !line.contains("counter name")
                    && !line.contains("policy")),
                "a drop without a reason: {text}"
            );
        }
    }

    #[test]
    fn only_members_of_a_private_network_pass_to_each_other() {
        let range = "10.201.0.0/16".parse().expect("network");
        let (apart, together) = (
            network((range, None), Inward::Apart, Logged::No),
            network((range, None), Inward::Together, Logged::No),
        );
        let passes = format!("add rule inet gatehouse forward oifname != \"{INNER_UPLINK}\" accept");
        assert!(together.lines().any(|line| line == passes), "{together}");
        assert!(
            !apart.contains(&passes) && !apart.contains("jump rules") && !apart.contains("reject"),
            "{apart}"
        );
        let differ = apart.lines().filter(|line| !together.lines().any(|other| other == *line)).count();
        assert_eq!(differ, 2, "the two networks differ in nothing else");
    }
}
