//! `gatehouse vpc`: private networks of VMs.

mod peerings;
mod rules;
mod services;

pub use rules::RulesFileError;
pub use services::JoinError;

use super::{Api, ClientError, each, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::vpc::{
    AttachVm, CreateVpc, NicIpv4, VmDetached, VpcCreated, VpcInfo, VpcList, VpcMember, VpcRow,
};
use model::firewall::RuleAction;
use model::id::{RuleId, VmId, VpcId};
use model::net::Ipv4Cidr;
use rules::RuleArgs;
use services::JoinArgs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// What can be done with VPCs.
#[derive(Clone, Debug, Subcommand)]
pub enum VpcCommand {
    /// Make a VPC
    #[command(after_help = "The range is private (a part of 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or \
        100.64.0.0/10, but not of\n100.96.0.0/16), and from a /16 to a /28. VPCs never meet, so several may have the \
        same one. The id is printed.\n\nExamples:\n  \
        gatehouse vpc create\n  \
        vpc=$(gatehouse vpc create --cidr 192.168.7.0/24 --name shop)\n  \
        gatehouse vm create --vpc $vpc --ip 192.168.7.10 --name db")]
    Create {
        /// Where its VMs' addresses come from [default: 10.0.0.0/16]
        #[arg(long, value_name = "CIDR")]
        cidr: Option<Ipv4Cidr>,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List VPCs, the newest first
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one VPC and the VMs in it
    Get {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete VPCs in which no VM is
    Delete {
        /// The VPCs
        #[arg(required = true, value_name = "VPC")]
        vpcs: Vec<VpcId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a stopped VM from the default network into a VPC
    #[command(
        after_help = "Its address there is printed; the VM has it from its next start on, and keeps it until it \
        is detached or\ndeleted.\n\nExample:\n  \
        gatehouse vm stop VM\n  gatehouse vpc attach VPC VM --ip 10.0.0.10\n  gatehouse vm start VM"
    )]
    Attach {
        /// The VPC
        vpc: VpcId,
        /// The VM
        vm: VmId,
        /// Its address [default: the next free one]
        #[arg(long, value_name = "ADDRESS")]
        ip: Option<Ipv4Addr>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Move a stopped VM from a VPC into the default network
    #[command(
        after_help = "Its new address is printed; the VM has it from its next start on.\n\nExample:\n  \
        gatehouse vm stop VM\n  gatehouse vpc detach VPC VM\n  gatehouse vm start VM"
    )]
    Detach {
        /// The VPC
        vpc: VpcId,
        /// The VM
        vm: VmId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the rules of a VPC's firewall, in the order in which they judge, with what they have judged
    Rules {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Add a rule that lets connections pass
    #[command(after_help = RULE_HELP)]
    Allow(RuleArgs),
    /// Add a rule that drops connections
    #[command(after_help = RULE_HELP)]
    Deny(RuleArgs),
    /// Remove rules
    RuleDelete {
        /// The VPC
        vpc: VpcId,
        /// The rules
        #[arg(required = true, value_name = "RULE")]
        rules: Vec<RuleId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put the rules of a file in the place of all, in one step
    #[command(after_help = "Their ids are printed.\n\nExample:\n  \
        gatehouse vpc rules VPC --json > rules.json\n  gatehouse vpc rules-put VPC rules.json")]
    RulesPut {
        /// The VPC
        vpc: VpcId,
        /// The file, as `vpc rules --json` prints it; ids and counters in it say nothing
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Have two VPCs reach each other
    #[command(
        after_help = "At once when both are one account's; else the other one's owner must ask for the same. \
        Their ranges, and those\nof the others that they reach, have no address in common. A peer's peers are not \
        reached.\n\nExample:\n  gatehouse vpc peer VPC OTHER"
    )]
    Peer {
        /// The VPC
        vpc: VpcId,
        /// The other one
        other: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End that, from either side
    Unpeer {
        /// The VPC
        vpc: VpcId,
        /// The other one
        other: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the VPCs that a VPC reaches, or that are asked to
    Peerings {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the services of this host in a VPC
    Services {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a service of this host a member of a VPC (on the host, as root)
    #[command(
        after_help = "Its network namespace gets a device with its address, which is printed. Asked again, the \
        device is made anew,\nfor example after the namespace or the house was started again.\n\nExamples:\n  \
        gatehouse vpc join VPC --name db --netns db\n  \
        gatehouse vpc join VPC --name redis --pid $(docker inspect -f '{{.State.Pid}}' redis)\n  \
        gatehouse vpc join VPC --name host --host --ip 10.0.0.200"
    )]
    Join(JoinArgs),
    /// Take a service out of a VPC
    Leave {
        /// The VPC
        vpc: VpcId,
        /// The service's name
        name: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What `allow` and `deny` have in common.
const RULE_HELP: &str = "The first rule that fits decides about a connection, the lowest priority first; answers follow \
    it. Where none\nfits, all may come in that reach the network, and members may go out to all but VPN clients. The \
    rule's id is printed.\n\nExamples:\n  \
    gatehouse vpc allow VPC in --vm DB --peer WEB --protocol tcp --port 5432\n  \
    gatehouse vpc deny VPC in --vm DB --priority 2000\n  \
    gatehouse vpc deny VPC out --peer 192.0.2.0/24";

impl VpcCommand {
    /// Does it. Who joins is told at `socket`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api, socket: &Path) -> Result<(), ClientError> {
        match self {
            Self::Rules { vpc, json } => rules::list(api, &vpc, json).await,
            Self::Allow(rule) => rule.run(api, RuleAction::Allow).await,
            Self::Deny(rule) => rule.run(api, RuleAction::Deny).await,
            Self::RuleDelete { vpc, rules, json } => rules::delete(api, &vpc, rules, json).await,
            Self::RulesPut { vpc, file, json } => rules::put(api, &vpc, &file, json).await,
            Self::Peer { vpc, other, json } => peerings::peer(api, &vpc, &other, json).await,
            Self::Unpeer { vpc, other, json } => peerings::unpeer(api, &vpc, &other, json).await,
            Self::Peerings { vpc, json } => peerings::list(api, &vpc, json).await,
            Self::Services { vpc, json } => services::list(api, &vpc, json).await,
            Self::Join(join) => join.run(api, socket).await,
            Self::Leave { vpc, name, json } => services::leave(api, &vpc, &name, json).await,
            Self::Create { cidr, name, json } => create(api, cidr, name, json).await,
            Self::List { json } => {
                let list: VpcList = api.get(&["v1", "vpcs"], &[]).await?;
                if json {
                    return print_json(&list);
                }
                if list.vpcs.is_empty() {
                    eprintln!("No VPCs. Next: gatehouse vpc create");
                    return Ok(());
                }
                print_line(&table(list.vpcs).to_string())
            }
            Self::Get { vpc, json } => {
                let info: VpcInfo = api.get(&["v1", "vpcs", vpc.as_str()], &[]).await?;
                if json { print_json(&info) } else { print_line(&card(info)) }
            }
            Self::Delete { vpcs, json } => {
                each(vpcs, "is deleted", json, async |vpc: &VpcId| {
                    api.delete::<Empty>(&["v1", "vpcs", vpc.as_str()]).await
                })
                .await
            }
            Self::Attach { vpc, vm, ip, json } => {
                let body = AttachVm { vm_id: vm.to_string(), ipv4: address(ip) };
                let member: VpcMember = api.post(&["v1", "vpcs", vpc.as_str(), "members"], &body).await?;
                if json { print_json(&member) } else { moved(&vm, member.ipv4) }
            }
            Self::Detach { vpc, vm, json } => {
                let path = ["v1", "vpcs", vpc.as_str(), "members", vm.as_str()];
                let detached: VmDetached = api.delete(&path).await?;
                if json { print_json(&detached) } else { moved(&vm, detached.ipv4) }
            }
        }
    }
}

/// An address as the API reads it; none: the next free one.
pub(super) fn address(ip: Option<Ipv4Addr>) -> Option<NicIpv4> {
    ip.map(|ip| NicIpv4::One(ip.to_string()))
}

async fn create(
    api: &Api,
    cidr: Option<Ipv4Cidr>,
    name: Option<String>,
    json: bool,
) -> Result<(), ClientError> {
    let body = CreateVpc { cidr: cidr.map(String::from), name };
    let made: VpcCreated = api.post(&["v1", "vpcs"], &body).await?;
    if json {
        return print_json(&made);
    }
    print_line(made.vpc_id.as_str())?;
    eprintln!("Next: gatehouse vm create --vpc {}", made.vpc_id);
    Ok(())
}

fn moved(vm: &VmId, ipv4: Ipv4Addr) -> Result<(), ClientError> {
    print_line(&ipv4.to_string())?;
    eprintln!("Next: gatehouse vm start {vm}");
    Ok(())
}

fn table(vpcs: Vec<VpcRow>) -> Table {
    let mut table = Table::new(&["ID", "NAME", "RANGE", "VMS", "CREATED"]);
    for vpc in vpcs {
        table.row([
            vpc.vpc_id.to_string(),
            vpc.name.unwrap_or_default(),
            vpc.cidr.to_string(),
            vpc.member_count.to_string(),
            vpc.created_at,
        ]);
    }
    table
}

/// The VPC, and below it its VMs and services.
fn card(info: VpcInfo) -> String {
    let mut card = Table::new(&["ID", info.vpc_id.as_str()]);
    card.row(["NAME".into(), info.name.unwrap_or_default()]);
    card.row(["RANGE".into(), info.cidr.to_string()]);
    card.row(["CREATED".into(), info.created_at]);
    let mut text = card.to_string();
    if info.members.is_empty() {
        text.push_str("\n\nNo VMs are in it.");
    } else {
        let mut members = Table::new(&["VM", "NAME", "ADDRESS", "STATE"]);
        for member in info.members {
            members.row([
                member.vm_id.to_string(),
                member.name.unwrap_or_default(),
                member.ipv4.to_string(),
                member.state.to_string(),
            ]);
        }
        text.push_str(&format!("\n\n{members}"));
    }
    if !info.services.is_empty() {
        text.push_str(&format!("\n\n{}", services::table(info.services)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::api::vm::VmState;

    fn cells(line: &str) -> Vec<&str> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn a_vpc_is_a_line_of_the_list_and_a_card_with_its_vms() {
        let (vpc, vm) = (VpcId::from_random([1; 20]), VmId::from_random([2; 20]));
        let cidr: Ipv4Cidr = "10.0.0.0/16".parse().expect("good");
        let row = VpcRow {
            vpc_id: vpc.clone(),
            cidr,
            name: Some("shop".into()),
            created_at: "2026-01-01T00:00:00Z".into(),
            member_count: 7,
        };
        let text = table(vec![row]).to_string();
        let line = text.lines().nth(1).expect("a line");
        assert_eq!(cells(line), [vpc.as_str(), "shop", "10.0.0.0/16", "7", "2026-01-01T00:00:00Z"]);
        let member = VpcMember {
            vm_id: vm.clone(),
            name: Some("db".into()),
            ipv4: Ipv4Addr::new(10, 0, 0, 5),
            default: false,
            state: VmState::Suspended,
        };
        let info = VpcInfo {
            vpc_id: vpc,
            cidr,
            name: None,
            created_at: String::new(),
            members: vec![member],
            services: vec![],
        };
        let text = card(info.clone());
        assert_eq!(cells(text.lines().last().expect("a line")), [vm.as_str(), "db", "10.0.0.5", "suspended"]);
        assert!(card(VpcInfo { members: vec![], ..info }).ends_with("No VMs are in it."));
    }
}
