//! Virtual machines.

use super::spec::{Spec, SpecFile};
use super::vpc::Nic;
use crate::host::MappedName;
use crate::id::{VmId, VmInstanceId, VpcId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

/// Until when an unused VM stays up if the caller does not say, in seconds.
pub const DEFAULT_IDLE_TIMEOUT_SECONDS: u64 = 300;

/// What a VM is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// It is being made.
    Building,
    /// It boots.
    Starting,
    /// It is up.
    Running,
    /// Its memory is being written to disk.
    Suspending,
    /// It sleeps in the state it was in.
    Suspended,
    /// It is down; its disk is kept.
    Stopped,
    /// Its disk is gone or cannot be trusted.
    Lost,
}

impl fmt::Display for VmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Building => "building",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Stopped => "stopped",
            Self::Lost => "lost",
        })
    }
}

/// What becomes of a VM that nobody uses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Persistence {
    /// It may be given up when the host is full, those of low priority first.
    Sticky {
        /// 0..=10; 5 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        priority: Option<u8>,
    },
    /// It is deleted when it stops.
    Ephemeral {
        /// At which of them; both when absent.
        #[serde(default, rename = "deleteEvent", skip_serializing_if = "Option::is_none")]
        delete_event: Option<DeleteEvent>,
    },
    /// It is kept until it is deleted.
    Persistent,
}

impl Default for Persistence {
    fn default() -> Self {
        Self::Sticky { priority: None }
    }
}

/// When an ephemeral VM is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum DeleteEvent {
    /// When it is stopped.
    #[serde(alias = "onStop")]
    OnStop,
    /// When it is suspended.
    #[serde(alias = "onSuspend", alias = "onIdleTimeout", alias = "OnIdleTimeout")]
    OnSuspend,
}

/// `POST /v1/vms`. `{}` is enough.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct CreateVm {
    /// A label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is made of. Its innermost layer decides the size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Spec>,
    /// The same in an older form, of one layer; only without `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Spec>,
    /// A snapshot to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Suspend after so long without traffic; missing: [`DEFAULT_IDLE_TIMEOUT_SECONDS`]; `null`: never.
    #[serde(
        default,
        deserialize_with = "super::double_option::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout_seconds: Option<Option<u64>>,
    /// Bytes within that time which count as traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity_threshold_bytes: Option<u64>,
    /// What becomes of it when nobody uses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<Persistence>,
    /// Its NIC in a VPC; without one its NIC is in the default network. At most one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nics: Option<Vec<Nic>>,
    /// Names to map to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domains: Option<Vec<DomainAtCreate>>,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<Value>>,
    /// UDP ports of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp_hole_punch_ports: Option<Vec<Value>>,
    /// Wait until it is ready before answering; this server always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_ready_signal: Option<bool>,
    /// For that long at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_signal_timeout_seconds: Option<u64>,
    /// Make it again after it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recreate: Option<bool>,
    /// Virtual CPUs; not looked at when there is a `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<f64>,
    /// Memory in GiB; not looked at when there is a `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_gb: Option<f64>,
    /// Root file system in GiB; not looked at when there is a `spec`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_size_gb: Option<f64>,
    /// Linux users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<Value>>,
    /// Linux groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Value>>,
    /// Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Value>,
    /// Git settings and repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<Value>,
    /// Git repositories, the old spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_repos: Option<Vec<Value>>,
    /// Files by absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additional_files: Option<BTreeMap<String, SpecFile>>,
    /// Debian packages to install.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apt_deps: Option<Vec<String>>,
    /// Directory for files and commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// A container image to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<Value>,
}

/// A name to map to a new VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct DomainAtCreate {
    /// The public name.
    pub domain: String,
    /// TCP port inside the VM; [`super::domain::DEFAULT_VM_PORT`] when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_port: Option<i64>,
}

/// Answer of `POST /v1/vms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmCreated {
    /// The new VM.
    pub id: VmId,
    /// Names that lead to it.
    pub domains: Vec<MappedName>,
    /// What it began with.
    pub snapshot_id: Option<String>,
}

/// What the list of VMs may be narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmQuery {
    /// At most so many.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Skip so many.
    #[serde(default)]
    pub offset: Option<u32>,
    /// Those in this state.
    #[serde(default)]
    pub vm_state: Option<VmState>,
    /// Those whose id or name has this in it.
    #[serde(default)]
    pub search: Option<String>,
}

/// `GET /v1/vms`. The counts are of all the account's VMs, whatever the query.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmList {
    /// The newest first.
    pub vms: Vec<VmRow>,
    /// In any state.
    pub total_count: u64,
    /// In `building`.
    pub building_count: u64,
    /// In `starting`.
    pub starting_count: u64,
    /// In `running`.
    pub running_count: u64,
    /// In `suspending`.
    pub suspending_count: u64,
    /// In `suspended`.
    pub suspended_count: u64,
    /// In `stopped`.
    pub stopped_count: u64,
    /// In `lost`.
    pub lost_count: u64,
}

/// A VM in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmRow {
    /// Its id.
    pub id: VmId,
    /// Its label.
    pub name: Option<String>,
    /// What it is doing.
    pub state: VmState,
    /// RFC 3339.
    pub created_at: Option<String>,
    /// What becomes of it when nobody uses it.
    pub persistence: Option<Persistence>,
    /// What it began with.
    pub snapshot_id: Option<String>,
    /// Always false: a deleted VM is not listed.
    #[serde(default)]
    pub deleted: bool,
    /// How large it is.
    pub sizing: Sizing,
}

/// How large a VM is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Sizing {
    /// Virtual CPUs.
    pub vcpu_count: u32,
    /// Memory in MiB.
    pub mem_size_mib: u32,
    /// Root file system in MiB.
    pub rootfs_size_mb: u32,
}

/// `GET /v1/vms/{vm_id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmInfo {
    /// Its id.
    pub id: VmId,
    /// Its label.
    pub name: Option<String>,
    /// Whether it is made again after it is deleted.
    pub recreate: bool,
    /// Its newest run.
    pub vm_instance_id: Option<VmInstanceId>,
    /// What it is doing.
    pub state: VmState,
    /// RFC 3339.
    pub created_at: Option<String>,
    /// Suspend after so long without traffic; never when absent.
    pub idle_timeout_seconds: Option<u64>,
    /// What becomes of it when nobody uses it.
    pub persistence: Option<Persistence>,
    /// How large it is.
    pub sizing: Option<Sizing>,
    /// The VPC that it is in; the default network when absent.
    #[serde(default)]
    pub vpc: Option<VpcId>,
    /// Its address in that network.
    #[serde(default)]
    pub ipv4: Option<Ipv4Addr>,
    /// Names that lead to it.
    #[serde(default)]
    pub domains: Vec<MappedName>,
    /// Why it went down last.
    #[serde(default)]
    pub exit_status: Option<String>,
}

/// Answer of `DELETE /v1/vms/{vm_id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmDeleted {
    /// Which.
    pub id: VmId,
    /// Whether something may bring it back.
    pub recreate: bool,
}

/// `POST /v1/vms/{vm_id}/start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct StartVm {
    /// From now on; see [`CreateVm::idle_timeout_seconds`]. Missing: as it was.
    #[serde(
        default,
        deserialize_with = "super::double_option::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout_seconds: Option<Option<u64>>,
    /// How long to wait until it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_signal_timeout_seconds: Option<u64>,
    /// Wait until it is ready before answering; this server always does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_ready_signal: Option<bool>,
    /// From now on; see [`CreateVm::activity_threshold_bytes`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity_threshold_bytes: Option<u64>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmStarted {
    /// Which.
    pub id: VmId,
    /// Names that lead to it.
    pub domains: Vec<MappedName>,
    /// Snake case in the contract, unlike its neighbours; this server has no console page.
    pub console_url: Option<String>,
}

/// Answer of `POST /v1/vms/{vm_id}/stop`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmStopped {
    /// Which.
    pub vm_id: VmId,
    /// The run that ended.
    pub vm_instance_id: VmInstanceId,
}

/// Answer of `POST /v1/vms/{vm_id}/kill`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmKilled {
    /// Which.
    pub id: VmId,
}

/// Answer of `POST /v1/vms/{vm_id}/suspend`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmSuspended {
    /// Which.
    pub id: VmId,
    /// The run that sleeps, and goes on when it is woken.
    pub vm_instance_id: VmInstanceId,
    /// What the memory is kept as; a name for logs, with which nothing can be asked.
    pub snapshot_layer_id: String,
}

/// `POST /v1/vms/{vm_id}/resize`. What is missing stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct ResizeVm {
    /// Virtual CPUs, a power of two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<f64>,
    /// Memory in GiB, a power of two in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_gb: Option<f64>,
    /// Root file system in GiB; it can only grow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_size_gb: Option<f64>,
}

/// Answer of `POST /v1/vms/{vm_id}/optimize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmOptimized {
    /// Which.
    pub id: VmId,
    /// What was done.
    pub message: String,
}

/// Answer of `POST /v1/vms/{vm_id}/await`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct VmExited {
    /// Which.
    pub id: VmId,
    /// Why it went down.
    pub exit_status: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_and_missing_differ_for_the_idle_timeout_alone() {
        let read = |text: &str| serde_json::from_str::<CreateVm>(text).expect("good");
        assert_eq!(read("{}"), CreateVm::default());
        assert_eq!(read(r#"{"idleTimeoutSeconds":null}"#).idle_timeout_seconds, Some(None));
        assert_eq!(read(r#"{"idleTimeoutSeconds":9}"#).idle_timeout_seconds, Some(Some(9)));
        assert_eq!(read(r#"{"name":null,"spec":null,"domains":null,"unknown":[1]}"#), CreateVm::default());
        let never = CreateVm { idle_timeout_seconds: Some(None), ..CreateVm::default() };
        assert_eq!(serde_json::to_string(&never).expect("text"), r#"{"idleTimeoutSeconds":null}"#);
    }

    #[test]
    fn persistence_is_tagged_and_its_events_are_read_in_both_spellings() {
        let read = |text: &str| serde_json::from_str::<Persistence>(text).expect("good");
        assert_eq!(read(r#"{"type":"sticky"}"#), Persistence::default());
        assert_eq!(read(r#"{"type":"persistent"}"#), Persistence::Persistent);
        for spelling in ["OnStop", "onStop"] {
            assert_eq!(
                read(&format!(r#"{{"type":"ephemeral","deleteEvent":"{spelling}"}}"#)),
                Persistence::Ephemeral { delete_event: Some(DeleteEvent::OnStop) }
            );
        }
        assert_eq!(
            serde_json::to_string(&Persistence::Sticky { priority: Some(7) }).expect("text"),
            r#"{"type":"sticky","priority":7}"#
        );
    }
}
