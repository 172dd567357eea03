//! Files inside a VM.

use serde::{Deserialize, Serialize};

/// How a file's content is written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum Encoding {
    /// As text.
    #[default]
    #[serde(rename = "utf8", alias = "utf-8")]
    Utf8,
    /// Base64 with padding (RFC 4648 section 4).
    #[serde(rename = "base64")]
    Base64,
}

/// A file's content: the body of `PUT`, and what `GET` answers for a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct FileContent {
    /// Encoded as `encoding` says.
    pub content: String,
    /// Text when absent.
    #[serde(default)]
    pub encoding: Option<Encoding>,
}

/// What `GET /v1/vms/{vm_id}/files/{filepath}` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum FileAnswer {
    /// A file.
    File(FileContent),
    /// A directory.
    Directory {
        /// Sorted by name.
        files: Vec<FileEntry>,
    },
}

/// A directory's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct FileEntry {
    /// Without its directory.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Anything that is not a directory.
    File,
    /// A directory.
    Directory,
}
