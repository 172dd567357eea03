//! `gatehouse vm fork` and `vm snapshot`: copies of VMs.

use super::args::{KeptArgs, KeptCopyArgs};
use crate::client::{Api, ClientError, print_json, print_line, spinner};
use clap::Args;
use model::api::snapshot::{CreateSnapshot, ForkVm, SnapshotCreated, VmForked};
use model::id::VmId;

/// Running copies to make.
#[derive(Args, Clone, Debug)]
pub struct ForkArgs {
    /// The VM
    vm: VmId,
    /// So many copies
    #[arg(long, short = 'n', value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    #[command(flatten)]
    kept: KeptArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A snapshot to make.
#[derive(Args, Clone, Debug)]
pub struct SnapshotArgs {
    /// The VM
    vm: VmId,
    /// What people call the snapshot
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    kept: KeptCopyArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ForkArgs {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let body = ForkVm { count: Some(self.count), persistence: self.kept.wish()? };
        let waiting = spinner(&format!("{} is copied, and {} come up", self.vm, self.count), self.json);
        let forked: VmForked = api.post(&["v1", "vms", self.vm.as_str(), "fork"], &body).await?;
        waiting.finish_and_clear();
        if self.json {
            return print_json(&forked);
        }
        for fork in &forked.forks {
            print_line(fork.id.as_str())?;
        }
        if let Some(first) = forked.forks.first() {
            eprintln!("Next: gatehouse domains map NAME --vm {} --port PORT", first.id);
        }
        Ok(())
    }
}

impl SnapshotArgs {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let body = CreateSnapshot { name: self.name, persistence: self.kept.wish()? };
        let waiting = spinner(&format!("{} is written down", self.vm), self.json);
        let made: SnapshotCreated = api.post(&["v1", "vms", self.vm.as_str(), "snapshot"], &body).await?;
        waiting.finish_and_clear();
        if self.json {
            return print_json(&made);
        }
        print_line(made.snapshot_id.as_str())?;
        eprintln!("Next: gatehouse vm create --snapshot {}", made.snapshot_id);
        Ok(())
    }
}
