//! `gatehouse vpc rules`, `allow`, `deny` and their kin: a VPC's firewall.

use crate::client::{Api, ClientError, each, print_json, print_line};
use crate::table::Table;
use clap::{Args, ValueEnum};
use model::api::Empty;
use model::api::rule::{CreateRule, PutRules, RuleInfo, RuleList};
use model::firewall::{PortRange, RuleAction, RuleDirection, RuleProtocol};
use model::id::{RuleId, VmId, VpcId};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Why a file of rules cannot be taken.
#[derive(Debug, Error)]
pub enum RulesFileError {
    /// It cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It has no rules.
    #[error("{path} is not {{\"rules\": [...]}} as `gatehouse vpc rules VPC --json` prints it: {source}")]
    Understand {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// What others send to a member
    In,
    /// What a member sends
    Out,
}

/// Which packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// All
    Any,
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// Pings and their kin
    Icmp,
}

/// A rule.
#[derive(Args, Clone, Debug)]
pub struct RuleArgs {
    /// The VPC
    vpc: VpcId,
    /// Seen from the member: what comes in, or what goes out
    direction: Direction,
    /// The one member that it is for [default: all]
    #[arg(long)]
    vm: Option<VmId>,
    /// The other side: any, vpn, a VM, a VPC, an address or a range
    #[arg(long, value_name = "PEER", default_value = "any")]
    peer: String,
    /// Which packets
    #[arg(long, default_value = "any")]
    protocol: Protocol,
    /// Destination ports such as 443 or 8000-8099, of tcp and udp; can be given several times [default: all]
    #[arg(long = "port", value_name = "PORTS")]
    ports: Vec<PortRange>,
    /// The lowest judge first; of equals the older [default: 1000]
    #[arg(long)]
    priority: Option<u16>,
    /// What it is for
    #[arg(long)]
    description: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl RuleArgs {
    /// Makes the rule.
    pub(super) async fn run(self, api: &Api, action: RuleAction) -> Result<(), ClientError> {
        let body = CreateRule {
            action,
            direction: match self.direction {
                Direction::In => RuleDirection::In,
                Direction::Out => RuleDirection::Out,
            },
            vm: self.vm.map(String::from),
            peer: Some(self.peer),
            protocol: Some(match self.protocol {
                Protocol::Any => RuleProtocol::Any,
                Protocol::Tcp => RuleProtocol::Tcp,
                Protocol::Udp => RuleProtocol::Udp,
                Protocol::Icmp => RuleProtocol::Icmp,
            }),
            ports: Some(self.ports.iter().map(ToString::to_string).collect()),
            priority: self.priority,
            description: self.description,
        };
        let made: RuleInfo = api.post(&["v1", "vpcs", self.vpc.as_str(), "rules"], &body).await?;
        if self.json { print_json(&made) } else { print_line(made.rule_id.as_str()) }
    }
}

/// Shows the rules.
pub(super) async fn list(api: &Api, vpc: &VpcId, json: bool) -> Result<(), ClientError> {
    let list: RuleList = api.get(&["v1", "vpcs", vpc.as_str(), "rules"], &[]).await?;
    if json {
        return print_json(&list);
    }
    if list.rules.is_empty() {
        eprintln!("No rules: members, services, peers and VPN clients may come in, and members go out.");
        eprintln!("Next: gatehouse vpc deny {vpc} in --peer vpn");
        return Ok(());
    }
    print_line(&table(list.rules).to_string())
}

/// Puts the rules of a file in the place of all.
pub(super) async fn put(api: &Api, vpc: &VpcId, path: &Path, json: bool) -> Result<(), ClientError> {
    let text =
        std::fs::read(path).map_err(|source| RulesFileError::Read { path: path.to_owned(), source })?;
    let body: PutRules = serde_json::from_slice(&text)
        .map_err(|source| RulesFileError::Understand { path: path.to_owned(), source })?;
    let list: RuleList = api.put(&["v1", "vpcs", vpc.as_str(), "rules"], &body).await?;
    if json {
        return print_json(&list);
    }
    list.rules.iter().try_for_each(|rule| print_line(rule.rule_id.as_str()))
}

/// Removes rules.
pub(super) async fn delete(
    api: &Api,
    vpc: &VpcId,
    rules: Vec<RuleId>,
    json: bool,
) -> Result<(), ClientError> {
    each(rules, "is removed", json, async |rule: &RuleId| {
        api.delete::<Empty>(&["v1", "vpcs", vpc.as_str(), "rules", rule.as_str()]).await
    })
    .await
}

fn table(rules: Vec<RuleInfo>) -> Table {
    let mut table = Table::new(&["ID", "PRIORITY", "RULE", "FOR", "PACKETS", "BYTES", "DESCRIPTION"]);
    let count = |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
    for rule in rules {
        table.row([
            rule.rule_id.to_string(),
            rule.priority.to_string(),
            shown(&rule),
            rule.vm.map_or("all".to_owned(), String::from),
            count(rule.packets),
            count(rule.bytes),
            rule.description.unwrap_or_default(),
        ]);
    }
    table
}

/// The rule in words, for example `allow in tcp 443 from any`.
fn shown(rule: &RuleInfo) -> String {
    let action = match rule.action {
        RuleAction::Allow => "allow",
        RuleAction::Deny => "deny",
    };
    let (direction, toward) = match rule.direction {
        RuleDirection::In => ("in", "from"),
        RuleDirection::Out => ("out", "to"),
    };
    let protocol = match rule.protocol {
        RuleProtocol::Any => "",
        RuleProtocol::Tcp => " tcp",
        RuleProtocol::Udp => " udp",
        RuleProtocol::Icmp => " icmp",
    };
    let ports = if rule.ports.is_empty() { String::new() } else { format!(" {}", rule.ports.join(",")) };
    format!("{action} {direction}{protocol}{ports} {toward} {}", rule.peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_as_a_sentence() {
        let mut rule = RuleInfo {
            rule_id: RuleId::from_random([1; 20]),
            action: RuleAction::Allow,
            direction: RuleDirection::In,
            vm: None,
            peer: "10.0.0.0/24".into(),
            protocol: RuleProtocol::Tcp,
            ports: vec!["443".into(), "8000-8099".into()],
            priority: 7,
            description: None,
            created_at: String::new(),
            packets: Some(3),
            bytes: None,
        };
        assert_eq!(shown(&rule), "allow in tcp 443,8000-8099 from 10.0.0.0/24");
        let text = table(vec![rule.clone()]).to_string();
        let cells: Vec<_> = text.lines().nth(1).expect("a line").split_whitespace().collect();
        assert_eq!(
            cells[1..],
            ["7", "allow", "in", "tcp", "443,8000-8099", "from", "10.0.0.0/24", "all", "3", "?"]
        );
        (rule.action, rule.direction) = (RuleAction::Deny, RuleDirection::Out);
        (rule.protocol, rule.ports) = (RuleProtocol::Any, vec![]);
        assert_eq!(shown(&rule), "deny out to 10.0.0.0/24");
    }
}
