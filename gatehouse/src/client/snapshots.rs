//! `gatehouse snapshots`: copies of VMs that are kept. They are made by `gatehouse vm snapshot`.

use super::vm::{kept, sizing};
use super::{Api, ClientError, each, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::snapshot::{
    RenameSnapshot, SnapshotDeleted, SnapshotInfo, SnapshotList, SnapshotRenamed, SnapshotState,
};
use model::api::vm::Sizing;
use model::id::SnapshotId;

/// What can be done with snapshots.
#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotsCommand {
    /// List snapshots, the newest first
    List {
        /// Deleted ones too, which are remembered for a while
        #[arg(long)]
        deleted: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one snapshot
    Get {
        /// The snapshot
        snapshot: SnapshotId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Give a snapshot another name
    #[command(after_help = "Examples:\n  gatehouse snapshots rename SNAPSHOT ready\n  \
        gatehouse snapshots rename SNAPSHOT --no-name")]
    Rename {
        /// The snapshot
        snapshot: SnapshotId,
        /// What people call it from now on
        #[arg(required_unless_present = "no_name")]
        name: Option<String>,
        /// Leave it without a name
        #[arg(long, conflicts_with = "name")]
        no_name: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Delete snapshots; VMs that were made from them stay
    Delete {
        /// The snapshots
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<SnapshotId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl SnapshotsCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::List { deleted, json } => list(api, deleted, json).await,
            Self::Get { snapshot, json } => {
                let info: SnapshotInfo = api.get(&path(&snapshot), &[]).await?;
                if json { print_json(&info) } else { print_line(&card(info).to_string()) }
            }
            Self::Rename { snapshot, name, no_name: _, json } => {
                let renamed: SnapshotRenamed = api.patch(&path(&snapshot), &RenameSnapshot { name }).await?;
                if json { print_json(&renamed) } else { print_line(snapshot.as_str()) }
            }
            Self::Delete { snapshots, json } => {
                each(snapshots, "is deleted", json, async |snapshot: &SnapshotId| {
                    api.delete::<SnapshotDeleted>(&path(snapshot)).await
                })
                .await
            }
        }
    }
}

fn path(snapshot: &SnapshotId) -> [&str; 4] {
    ["v1", "vms", "snapshots", snapshot.as_str()]
}

async fn list(api: &Api, deleted: bool, json: bool) -> Result<(), ClientError> {
    let query = [("includeDeleted", deleted.to_string())];
    let list: SnapshotList = api.get(&["v1", "vms", "snapshots"], &query).await?;
    if json {
        return print_json(&list);
    }
    if list.snapshots.is_empty() {
        eprintln!("No snapshots. Next: gatehouse vm snapshot VM --name NAME");
        return Ok(());
    }
    print_line(&table(list.snapshots).to_string())
}

fn table(snapshots: Vec<SnapshotInfo>) -> Table {
    let mut table = Table::new(&["ID", "NAME", "STATE", "OF VM", "HAS", "SIZE", "CREATED"]);
    for snapshot in snapshots {
        table.row([
            snapshot.snapshot_id.to_string(),
            snapshot.name.clone().unwrap_or_default(),
            state(&snapshot).to_owned(),
            snapshot.source_vm_id.as_ref().map(ToString::to_string).unwrap_or_default(),
            contents(&snapshot).to_owned(),
            size(&snapshot).unwrap_or_default(),
            snapshot.created_at,
        ]);
    }
    table
}

fn card(info: SnapshotInfo) -> Table {
    let mut table = Table::new(&["ID", info.snapshot_id.as_str()]);
    let mut row = |word: &str, text: String| table.row([word.to_owned(), text]);
    row("NAME", info.name.clone().unwrap_or_default());
    row("STATE", state(&info).to_owned());
    row("OF VM", info.source_vm_id.as_ref().map(ToString::to_string).unwrap_or_default());
    row("HAS", contents(&info).to_owned());
    row("SIZE", size(&info).unwrap_or_default());
    row("KEPT", kept(&info.snapshot_persistence));
    row("CREATED", info.created_at);
    if let Some(reason) = info.failure_reason {
        row("FAILED", reason);
    }
    table
}

fn state(snapshot: &SnapshotInfo) -> &'static str {
    match snapshot.state {
        _ if snapshot.deleted => "deleted",
        SnapshotState::Building => "building",
        SnapshotState::Ready => "ready",
        SnapshotState::Failed => "failed",
        SnapshotState::Cancelled => "cancelled",
        SnapshotState::Lost => "lost",
    }
}

fn contents(snapshot: &SnapshotInfo) -> &'static str {
    if snapshot.has_memory { "memory, disk" } else { "disk" }
}

fn size(snapshot: &SnapshotInfo) -> Option<String> {
    Some(sizing(Sizing {
        vcpu_count: snapshot.vcpu_count?,
        mem_size_mib: snapshot.mem_size_mib?,
        rootfs_size_mb: snapshot.rootfs_size_mb?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::api::vm::Persistence;
    use model::id::VmId;

    fn info() -> SnapshotInfo {
        SnapshotInfo {
            snapshot_id: SnapshotId::from_random([1; 20]),
            state: SnapshotState::Ready,
            source_vm_id: Some(VmId::from_random([2; 20])),
            account_id: None,
            created_at: "2026-01-01T00:00:00Z".into(),
            name: Some("ready to go".into()),
            failed: false,
            cancelled: false,
            lost: false,
            failure_reason: None,
            deleted: false,
            snapshot_persistence: Persistence::Persistent,
            has_memory: true,
            vcpu_count: Some(2),
            mem_size_mib: Some(1024),
            rootfs_size_mb: Some(4096),
        }
    }

    #[test]
    fn a_snapshot_is_a_line_of_the_list() {
        let deleted = SnapshotInfo { deleted: true, has_memory: false, name: None, ..info() };
        let text = table(vec![info(), deleted]).to_string();
        let lines: Vec<_> = text.lines().collect();
        for part in ["sc-", "ready to go", "ready ", "memory, disk", "2 CPU, 1 GiB, 4 GiB disk", "2026-01-01"]
        {
            assert!(lines[1].contains(part), "{part}: {text}");
        }
        assert!(lines[2].contains("deleted") && !lines[2].contains("memory"), "{text}");
    }

    #[test]
    fn one_snapshot_tells_why_it_failed() {
        let text = card(info()).to_string();
        assert!(text.contains("persistent") && !text.contains("FAILED"), "{text}");
        let failed = SnapshotInfo {
            state: SnapshotState::Failed,
            failure_reason: Some("the disk is full".into()),
            ..info()
        };
        let text = card(failed).to_string();
        assert!(text.contains("failed") && text.contains("the disk is full"), "{text}");
    }
}
