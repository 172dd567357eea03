//! Copies of VMs: snapshots, which are kept, and forks, which run at once.

use super::vm::Persistence;
use crate::host::MappedName;
use crate::id::{AccountId, SnapshotId, VmId, VmInstanceId};
use serde::{Deserialize, Serialize};

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum SnapshotState {
    /// It is being made.
    Building,
    /// VMs can be made from it.
    Ready,
    /// It could not be made.
    Failed,
    /// Somebody gave it up while it was made.
    Cancelled,
    /// Its files are gone.
    Lost,
}

/// `POST /v1/vms/{vm_id}/snapshot`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct CreateSnapshot {
    /// A label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What becomes of it when nobody uses it; `ephemeral` cannot be had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<Persistence>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SnapshotCreated {
    /// Which.
    pub snapshot_id: SnapshotId,
    /// Of which VM.
    pub source_vm_id: VmId,
    /// Of which run of it.
    pub source_vm_instance_id: Option<VmInstanceId>,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SnapshotInfo {
    /// Which.
    pub snapshot_id: SnapshotId,
    /// How far it is.
    pub state: SnapshotState,
    /// Of which VM, which may be gone.
    pub source_vm_id: Option<VmId>,
    /// Whose it is.
    pub account_id: Option<AccountId>,
    /// RFC 3339.
    pub created_at: String,
    /// A label.
    pub name: Option<String>,
    /// It could not be made.
    pub failed: bool,
    /// Always false: this server makes a snapshot to its end.
    pub cancelled: bool,
    /// Always false.
    pub lost: bool,
    /// Why it failed.
    pub failure_reason: Option<String>,
    /// Somebody has deleted it.
    pub deleted: bool,
    /// What becomes of it when nobody uses it.
    pub snapshot_persistence: Persistence,
    /// VMs made from it go on where its VM was; the others boot.
    #[serde(default)]
    pub has_memory: bool,
    /// Virtual CPUs.
    pub vcpu_count: Option<u32>,
    /// Memory in MiB.
    pub mem_size_mib: Option<u32>,
    /// Root file system in MiB.
    pub rootfs_size_mb: Option<u32>,
}

/// What stands behind `GET /v1/vms/snapshots?`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SnapshotQuery {
    /// Deleted ones too; no when absent.
    #[serde(default)]
    pub include_deleted: Option<bool>,
    /// Failed ones too; yes when absent.
    #[serde(default)]
    pub include_failed: Option<bool>,
    /// Those that are being made too; yes when absent.
    #[serde(default)]
    pub include_building: Option<bool>,
}

/// `GET /v1/vms/snapshots`. The counts are of all the account's snapshots, whatever the query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SnapshotList {
    /// The newest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// In any state.
    pub total_count: u64,
    /// In `building`.
    pub building_count: u64,
    /// In `ready`, and not deleted.
    pub ready_count: u64,
    /// In `failed`.
    pub failed_count: u64,
    /// In `cancelled`.
    pub cancelled_count: u64,
    /// In `lost`.
    pub lost_count: u64,
    /// Deleted, and remembered for a while.
    pub deleted_count: u64,
}

/// `PATCH /v1/vms/snapshots/{snapshot_id}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct RenameSnapshot {
    /// The label from now on; missing: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Its answer. Snake case in the contract, unlike its neighbours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotRenamed {
    /// Which.
    pub snapshot_id: SnapshotId,
    /// The label.
    pub name: Option<String>,
}

/// Answer of `DELETE /v1/vms/snapshots/{snapshot_id}`. The contract writes the id in both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotDeleted {
    /// Which.
    pub snapshot_id: SnapshotId,
    /// The same.
    #[serde(rename = "snapshotId")]
    pub snapshot_id_again: SnapshotId,
}

/// `POST /v1/vms/{vm_id}/fork`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ForkVm {
    /// So many; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// What becomes of them when nobody uses them; as of the VM itself when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<Persistence>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmForked {
    /// The VM that was copied.
    pub vm_id: VmId,
    /// Its copies, which run.
    pub forks: Vec<Fork>,
}

/// One copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Fork {
    /// Its id.
    pub id: VmId,
    /// Names that lead to it: none yet.
    pub domains: Vec<MappedName>,
    /// This server has no console page.
    pub console_url: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_snapshot_is_named_in_both_spellings() {
        let id = SnapshotId::from_random([1; 20]);
        let deleted = SnapshotDeleted { snapshot_id: id.clone(), snapshot_id_again: id.clone() };
        let text = serde_json::to_value(deleted).expect("json");
        assert_eq!(text, serde_json::json!({"snapshot_id": id, "snapshotId": id}));
    }
}
