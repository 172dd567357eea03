//! The rules of who comes from where: what a network's VPN clients and peers may send, and to whom. They stand before any
//! device that they name, and what comes over another one passes only with a port's mark.
//!
//! Sources are checked where the kernel first sees the packet, since a wrong one would get no further than its own check
//! of routes, which counts nothing of ours.

use crate::pure::names::TABLE;
use crate::pure::ways::{End, Way};
use model::net::Ipv4Cidr;
use std::fmt::Write;
use std::net::Ipv4Addr;

/// Counters of these rules (family inet, in the namespace).
pub const SIDES_COUNTERS: [&str; 5] =
    ["not_a_client", "client_elsewhere", "not_of_the_peer", "peer_elsewhere", "not_from_a_port"];

/// The rules, as text for nft(8). `hidden_behind` is the address under which members see all clients. Applied again, it
/// says what is then true and nothing else.
#[must_use]
pub fn sides<'a>(
    range: Ipv4Cidr,
    ways: impl IntoIterator<Item = &'a Way>,
    hidden_behind: Option<Ipv4Addr>,
) -> String {
    let mut text = format!("add table inet {TABLE}\n");
    let mut line = |line: &str| {
        // Writing to a String cannot fail.
        let written = writeln!(text, "{line}");
        debug_assert!(written.is_ok());
    };
    for counter in SIDES_COUNTERS {
        line(&format!("add counter inet {TABLE} {counter}"));
    }
    let chains = [
        ("sides", ""),
        ("sides_from", " { type filter hook prerouting priority raw - 1; policy accept; }"),
        ("sides_to_us", " { type filter hook input priority filter - 1; policy accept; }"),
        ("hide", " { type nat hook postrouting priority srcnat - 1; policy accept; }"),
    ];
    for (chain, kind) in chains {
        line(&format!("add chain inet {TABLE} {chain}{kind}"));
        line(&format!("flush chain inet {TABLE} {chain}"));
    }
    // See the chain `untrack`: answers to this address must be tracked, even when it is one of the network's own.
    line(&format!("add set inet {TABLE} hidden {{ type ipv4_addr; }}"));
    line(&format!("flush set inet {TABLE} hidden"));
    for way in ways {
        let (device, from) = (&way.device, way.range);
        let (wrong, elsewhere) = match way.end {
            End::Clients { .. } => ("not_a_client", "client_elsewhere"),
            End::Peer { .. } => ("not_of_the_peer", "peer_elsewhere"),
        };
        let rule =
            |chain: &str, rest: &str| format!("add rule inet {TABLE} {chain} iifname \"{device}\" {rest}");
        // Its device speaks none, so that this is for the day on which somebody turns it on.
        line(&rule("sides_from", &format!("meta nfproto ipv6 counter name {wrong} drop")));
        line(&rule("sides_from", &format!("ip saddr != {from} counter name {wrong} drop")));
        line(&rule("sides", &format!("ip daddr != {range} counter name {elsewhere} drop")));
        line(&rule("sides", "return"));
        // The gateway's name server is for members.
        line(&rule("sides_to_us", &format!("counter name {elsewhere} drop")));
        if let (End::Clients { .. }, Some(address)) = (&way.end, hidden_behind) {
            line(&format!("add element inet {TABLE} hidden {{ {address} }}"));
            line(&format!(
                "add rule inet {TABLE} hide ip saddr {from} ip daddr {range} snat ip to {address}"
            ));
        }
    }
    line(&format!("add rule inet {TABLE} sides meta mark 0 counter name not_from_a_port drop"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pure::names::DeviceName;
    use model::id::{PeeringId, VpcId};
    use std::collections::BTreeSet;

    fn ways() -> [Way; 2] {
        let peering = PeeringId::from_random([1; 20]);
        let clients = Way {
            device: DeviceName::clients(),
            range: "100.96.0.0/16".parse().expect("range"),
            end: End::Clients { mtu: 1280 },
        };
        let peer = Way {
            device: DeviceName::of_peering(&peering),
            range: "10.1.0.0/24".parse().expect("range"),
            end: End::Peer { peering, vpc: VpcId::from_random([2; 20]), makes: true },
        };
        [clients, peer]
    }

    #[test]
    fn every_counter_has_a_rule_and_every_drop_a_counter() {
        let range: Ipv4Cidr = "10.0.0.0/24".parse().expect("range");
        let all = sides(range, &ways(), Some(Ipv4Addr::new(10, 0, 0, 2)));
        let used: BTreeSet<&str> = all
            .split("counter name ")
            .skip(1)
            .map(|rest| rest.split_whitespace().next().expect("a name"))
            .collect();
        assert_eq!(used, SIDES_COUNTERS.into(), "{all}");
        let uncounted = |line: &&str| line.contains(" drop") && !line.contains("counter name");
        assert_eq!(all.lines().find(uncounted), None, "{all}");
        assert!(all.lines().last().is_some_and(|line| line.contains("sides meta mark 0 counter")), "{all}");
        let none = sides(range, [], Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert!(!none.contains("iifname") && !none.contains("snat ip"), "{none}");
    }
}
