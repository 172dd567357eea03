//! What a VM is made of: layers, files, users, services. What this version does not offer is read all the same, so
//! that it is refused by name and never passed over.

use super::file::Encoding;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One layer of a machine's description; `snapshot` is the layer below it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// A label (only in the outermost layer).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The layer below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Box<Spec>>,
    /// A snapshot to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// A container image to begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_image: Option<Value>,
    /// Root file system in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rootfs_size_gb: Option<f64>,
    /// Memory in GiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_gb: Option<f64>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<f64>,
    /// Directory for files and commands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// See [`super::vm::CreateVm::idle_timeout_seconds`].
    #[serde(
        default,
        deserialize_with = "super::double_option::deserialize",
        skip_serializing_if = "Option::is_none"
    )]
    pub idle_timeout_seconds: Option<Option<u64>>,
    /// Wait until the VM is ready before answering.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_ready_signal: Option<bool>,
    /// For that long at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_signal_timeout_seconds: Option<u64>,
    /// Published ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<Value>>,
    /// Services.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub systemd: Option<Value>,
    /// Linux users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<Value>>,
    /// Linux groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<Value>>,
    /// Files by absolute path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub additional_files: Option<BTreeMap<String, SpecFile>>,
    /// Git settings and repositories.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<Value>,
    /// Git repositories, the old spelling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_repos: Option<Vec<Value>>,
    /// Debian packages to install.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub apt_deps: Option<Vec<String>>,
    /// What becomes of the VM (only in a template).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistence: Option<super::vm::Persistence>,
}

/// A file to put into a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct SpecFile {
    /// Encoded as `encoding` says.
    pub content: String,
    /// Text when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Whether it may be executed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable: Option<bool>,
}
