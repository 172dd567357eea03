//! Rules of a private network's firewall, as control publishes them.
//!
//! A rule judges the first packet of a connection, and answers follow it. It is read from a member's side: `in` is what
//! others send to it, `out` is what it sends. A connection between two members is judged twice, by the rules out of the
//! one and by those into the other. In each of the two, the first rule that fits decides; when none fits, members, their
//! peers, services and VPN clients may come in, and members may go out to all but VPN clients.

use crate::id::RuleId;
use crate::net::Ipv4Cidr;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use thiserror::Error;

/// Rules of one network; each new connection may be compared with all of them, twice.
pub const MAX_RULES: usize = 128;
/// Ranges of ports of one rule.
pub const MAX_PORT_RANGES: usize = 16;

/// What becomes of a connection that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RuleAction {
    /// It may pass.
    Allow,
    /// It is dropped, and counted.
    Deny,
}

/// From a member's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RuleDirection {
    /// What others send to the member.
    In,
    /// What the member sends.
    Out,
}

/// Which packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum RuleProtocol {
    /// All.
    #[default]
    Any,
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
    /// ICMP (RFC 792), and ICMPv6 (RFC 4443).
    Icmp,
}

/// The other side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RulePeer {
    /// Anyone, the Internet as well.
    Any,
    /// Who has an address of this range: one VM, another network, a part of the Internet.
    Range(Ipv4Cidr),
    /// Clients of the VPN.
    Clients,
}

/// Ports from the first to the last, both counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u16, u16)", into = "(u16, u16)")]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why two numbers are no range of ports.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "a range of ports is written as 443 or 8000-8099, each from 1 to 65535 and the first not above the last"
)]
pub struct PortRangeError;

impl PortRange {
    /// The lowest, at least 1.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }
}

impl TryFrom<(u16, u16)> for PortRange {
    type Error = PortRangeError;
    fn try_from((first, last): (u16, u16)) -> Result<Self, PortRangeError> {
        if first == 0 || first > last { Err(PortRangeError) } else { Ok(Self { first, last }) }
    }
}

impl From<PortRange> for (u16, u16) {
    fn from(range: PortRange) -> Self {
        (range.first, range.last)
    }
}

impl std::str::FromStr for PortRange {
    type Err = PortRangeError;
    fn from_str(text: &str) -> Result<Self, PortRangeError> {
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse::<u16>().ok().filter(|_| digits).ok_or(PortRangeError)
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (number(first)?, number(last)?).try_into()
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// A rule. Those of a network are judged in the order in which they stand in its entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEntry {
    /// Which one.
    pub id: RuleId,
    /// What becomes of what fits.
    pub action: RuleAction,
    /// Seen from the member.
    pub direction: RuleDirection,
    /// The one member that it is for, by its address; all when absent.
    #[serde(default)]
    pub member: Option<Ipv4Addr>,
    /// The other side.
    pub peer: RulePeer,
    /// Which packets.
    #[serde(default)]
    pub protocol: RuleProtocol,
    /// Destination ports, of TCP and UDP alone; all when empty. At most [`MAX_PORT_RANGES`].
    #[serde(default)]
    pub ports: Vec<PortRange>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_are_read_and_shown() {
        for text in ["1", "65535", "8000-8099"] {
            assert_eq!(text.parse::<PortRange>().expect("good").to_string(), text);
        }
        assert_eq!("80-80".parse::<PortRange>().expect("good").to_string(), "80");
        for bad in ["", "0", "0-5", "9-8", "65536", "+80", "80-", "-80", "1-2-3", " 80", "http"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<PortRange>("[9,8]").is_err());
    }
}
