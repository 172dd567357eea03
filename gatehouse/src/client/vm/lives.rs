//! Commands that lead a VM from one state to another: start, stop, suspend, kill, delete, resize, optimize, await.

use super::TIMED_OUT;
use super::args::{IdleArgs, SizeArgs};
use crate::client::{Api, ClientError, each, print_json, print_line, spinner};
use clap::Args;
use model::api::Empty;
use model::api::vm::{
    ResizeVm, StartVm, VmDeleted, VmExited, VmKilled, VmOptimized, VmStarted, VmStopped, VmSuspended,
};
use model::id::VmId;
use std::time::Duration;
use tokio::time::timeout;

/// Some VMs.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// The VMs
    #[arg(required = true, value_name = "VM")]
    vms: Vec<VmId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// VMs to start.
#[derive(Args, Clone, Debug)]
pub struct StartArgs {
    #[command(flatten)]
    which: Which,
    #[command(flatten)]
    idle: IdleArgs,
}

/// Another size.
#[derive(Args, Clone, Debug)]
#[command(group(clap::ArgGroup::new("size").args(["vcpus", "memory", "disk"]).required(true).multiple(true)))]
pub struct ResizeArgs {
    /// The VM
    vm: VmId,
    #[command(flatten)]
    size: SizeArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A VM whose end is waited for.
#[derive(Args, Clone, Debug)]
pub struct AwaitArgs {
    /// The VM
    vm: VmId,
    /// Give up after so many seconds
    #[arg(long, short, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl StartArgs {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let body = StartVm {
            idle_timeout_seconds: self.idle.timeout_seconds(),
            ready_signal_timeout_seconds: self.idle.ready_timeout,
            activity_threshold_bytes: self.idle.activity_threshold,
            ..StartVm::default()
        };
        each(self.which.vms, "starts", self.which.json, async |vm: &VmId| {
            api.post::<_, VmStarted>(&["v1", "vms", vm.as_str(), "start"], &body).await
        })
        .await
    }
}

impl Which {
    pub(super) async fn stop(self, api: &Api) -> Result<(), ClientError> {
        each(self.vms, "shuts down", self.json, async |vm: &VmId| {
            api.post::<_, VmStopped>(&["v1", "vms", vm.as_str(), "stop"], &Empty {}).await
        })
        .await
    }

    pub(super) async fn suspend(self, api: &Api) -> Result<(), ClientError> {
        each(self.vms, "goes to sleep", self.json, async |vm: &VmId| {
            api.post::<_, VmSuspended>(&["v1", "vms", vm.as_str(), "suspend"], &Empty {}).await
        })
        .await
    }

    pub(super) async fn kill(self, api: &Api) -> Result<(), ClientError> {
        each(self.vms, "ends", self.json, async |vm: &VmId| {
            api.post::<_, VmKilled>(&["v1", "vms", vm.as_str(), "kill"], &Empty {}).await
        })
        .await
    }

    pub(super) async fn optimize(self, api: &Api) -> Result<(), ClientError> {
        each(self.vms, "gives back what it does not use", self.json, async |vm: &VmId| {
            api.post::<_, VmOptimized>(&["v1", "vms", vm.as_str(), "optimize"], &Empty {}).await
        })
        .await
    }

    pub(super) async fn delete(self, api: &Api) -> Result<(), ClientError> {
        each(self.vms, "is deleted", self.json, async |vm: &VmId| {
            api.delete::<VmDeleted>(&["v1", "vms", vm.as_str()]).await
        })
        .await
    }
}

impl ResizeArgs {
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let body = ResizeVm {
            vcpu_count: self.size.vcpu_count(),
            mem_size_gb: self.size.memory_gib(),
            rootfs_size_gb: self.size.disk_gib(),
        };
        let waiting = spinner(&format!("{} takes its new size", self.vm), self.json);
        let done: Empty = api.post(&["v1", "vms", self.vm.as_str(), "resize"], &body).await?;
        waiting.finish_and_clear();
        if self.json { print_json(&done) } else { print_line(self.vm.as_str()) }
    }
}

impl AwaitArgs {
    /// Waits; returns the exit status.
    pub(super) async fn run(self, api: &Api) -> Result<u8, ClientError> {
        let waiting = spinner(&format!("{} is up", self.vm), self.json);
        let path = ["v1", "vms", self.vm.as_str(), "await"];
        let down = api.post::<_, VmExited>(&path, &Empty {});
        let exited = match self.timeout {
            None => down.await?,
            Some(seconds) => match timeout(Duration::from_secs(seconds), down).await {
                Ok(exited) => exited?,
                Err(_) => {
                    waiting.finish_and_clear();
                    eprintln!("gatehouse: the time was over, {} is not down", self.vm);
                    return Ok(TIMED_OUT);
                }
            },
        };
        waiting.finish_and_clear();
        if self.json {
            print_json(&exited)?
        } else {
            print_line(&exited.exit_status)?
        }
        Ok(0)
    }
}
