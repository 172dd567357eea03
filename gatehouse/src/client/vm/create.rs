//! `gatehouse vm create`: new VMs, from the image or from a snapshot.

use super::args::{IdleArgs, KeptArgs, SizeArgs};
use crate::client::vpc::address;
use crate::client::{Api, ClientError, print_json, print_line, spinner};
use clap::Args;
use model::api::vm::{CreateVm, DomainAtCreate, VmCreated};
use model::api::vpc::{Nic, NicIpv4, ROUTED_MODE};
use model::id::{SnapshotId, VpcId};
use std::net::Ipv4Addr;

/// A VM to make.
#[derive(Args, Clone, Debug)]
pub struct Create {
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// Begin with this snapshot's disk, and with its memory if it has one; its size is the snapshot's
    #[arg(long, value_name = "ID")]
    snapshot: Option<SnapshotId>,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    idle: IdleArgs,
    #[command(flatten)]
    kept: KeptArgs,
    /// The private network to be in, see `gatehouse vpc`; the default network when absent
    #[arg(long, value_name = "ID")]
    vpc: Option<VpcId>,
    /// Its address in the VPC [default: the next free one]
    #[arg(long, value_name = "ADDRESS", requires = "vpc")]
    ip: Option<Ipv4Addr>,
    /// A public name to lead to it; may be said again for others
    #[arg(long, value_name = "NAME")]
    domain: Vec<String>,
    /// The port inside the VM to which the names lead
    #[arg(long, value_name = "PORT", requires = "domain", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Create {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let json = self.json;
        let body = self.body()?;
        let what = match &body.snapshot_id {
            Some(snapshot) => format!("the VM is made from {snapshot}"),
            None => "the VM is made and boots".to_owned(),
        };
        let waiting = spinner(&what, json);
        let created: VmCreated = api.post(&["v1", "vms"], &body).await?;
        waiting.finish_and_clear();
        if json {
            return print_json(&created);
        }
        print_line(created.id.as_str())?;
        for domain in &created.domains {
            eprintln!("https://{domain} leads to it");
        }
        eprintln!("Next: gatehouse vm exec {} -- uname -a", created.id);
        Ok(())
    }

    fn body(self) -> Result<CreateVm, ClientError> {
        let port = self.port.map(i64::from);
        let domains: Vec<_> =
            self.domain.into_iter().map(|domain| DomainAtCreate { domain, vm_port: port }).collect();
        Ok(CreateVm {
            name: self.name,
            snapshot_id: self.snapshot.map(String::from),
            vcpu_count: self.size.vcpu_count(),
            mem_size_gb: self.size.memory_gib(),
            rootfs_size_gb: self.size.disk_gib(),
            idle_timeout_seconds: self.idle.timeout_seconds(),
            activity_threshold_bytes: self.idle.activity_threshold,
            ready_signal_timeout_seconds: self.idle.ready_timeout,
            persistence: self.kept.wish()?,
            nics: self.vpc.map(|vpc| vec![nic(&vpc, self.ip)]),
            domains: Some(domains).filter(|domains| !domains.is_empty()),
            ..CreateVm::default()
        })
    }
}

fn nic(vpc: &VpcId, ip: Option<Ipv4Addr>) -> Nic {
    Nic {
        vpc: vpc.to_string(),
        mode: ROUTED_MODE.to_owned(),
        ipv4: address(ip).or(Some(NicIpv4::Any(true))),
        default: None,
        backend: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use serde_json::{Value, json};

    #[derive(Debug, Parser)]
    struct Words {
        #[command(flatten)]
        create: Create,
    }

    fn body(text: &str) -> Value {
        let words = std::iter::once("x").chain(text.split_whitespace());
        let create = Words::try_parse_from(words).expect("parsed").create;
        serde_json::to_value(create.body().expect("good")).expect("json")
    }

    #[test]
    fn only_what_is_said_is_sent() {
        assert_eq!(body(""), json!({}));
        assert_eq!(body("--vcpus 2 --memory 512"), json!({"vcpuCount": 2.0, "memSizeGb": 0.5}));
        assert_eq!(body("--idle-timeout never"), json!({"idleTimeoutSeconds": null}));
        assert_eq!(
            body("--name web --domain a.style.dev --domain b.style.dev --port 80 --priority 7"),
            json!({
                "name": "web",
                "domains": [
                    {"domain": "a.style.dev", "vmPort": 80}, {"domain": "b.style.dev", "vmPort": 80}
                ],
                "persistence": {"type": "sticky", "priority": 7},
            })
        );
        let vpc = VpcId::from_random([4; 20]);
        let nic = |ipv4: Value| json!({"nics": [{"vpc": vpc, "mode": "routed", "ipv4": ipv4}]});
        assert_eq!(body(&format!("--vpc {vpc}")), nic(json!(true)));
        assert_eq!(body(&format!("--vpc {vpc} --ip 10.0.0.5")), nic(json!("10.0.0.5")));
        let snapshot = SnapshotId::from_random([3; 20]);
        let text = format!(
            "--snapshot {snapshot} --idle-timeout 60 --activity-threshold 2000 --ready-timeout 9 \
             --delete-event suspend"
        );
        assert_eq!(
            body(&text),
            json!({
                "snapshotId": snapshot,
                "idleTimeoutSeconds": 60,
                "activityThresholdBytes": 2000,
                "readySignalTimeoutSeconds": 9,
                "persistence": {"type": "ephemeral", "deleteEvent": "OnSuspend"},
            })
        );
    }
}
