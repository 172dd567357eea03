//! What is said over vsock between the host and the agent inside the VM.
//!
//! A connection carries one operation. Both sides send frames: one octet of kind, four octets of length (big
//! endian), the payload. The host opens with a [`FrameKind::Message`] that holds an [`AgentRequest`]; a file's
//! content follows as [`FrameKind::Data`] frames and one [`FrameKind::End`]. The agent answers with
//! [`FrameKind::Stdout`], [`FrameKind::Stderr`] or [`FrameKind::Data`] frames where the operation has them, and
//! closes with one message that holds an [`AgentReply`] (for a file's content, the [`AgentReply::File`] message
//! comes first and an `End` frame last). If the host closes early, the agent ends the operation: a command's whole
//! process group is killed.
//!
//! At boot the agent opens [`BOOT_PORT`] of the host ([`HOST_CID`]) with an [`AgentHello`], is answered with a
//! [`BootConfig`], applies it, says [`AgentReply::Done`] (or an error), and keeps that connection open: its end
//! tells either side that the other is gone. A restored system's agent sees that end at once and reports anew.

use crate::net::GuestNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The vsock port on which the agent listens.
pub const AGENT_PORT: u32 = 1024;
/// The vsock port of the host to which the agent reports at boot.
pub const BOOT_PORT: u32 = 1025;
/// The host's vsock address (virtio 1.2, section 5.10.4).
pub const HOST_CID: u64 = 2;
/// The guest's vsock address; each VM has its own device, so all may have the same.
pub const GUEST_CID: u64 = 3;
/// Largest message: a directory listing of 10,000 long names fits.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Largest piece of a stream: one frame must not hold back the others for long.
pub const MAX_DATA_BYTES: usize = 64 << 10;
/// Octets before a payload.
pub const HEADER_BYTES: usize = 5;
/// Largest file that is read or written whole: the API's bodies are JSON, held in memory on three sides.
pub const MAX_FILE_BYTES: u64 = 64 << 20;
/// Default bound of stdout and stderr, each.
pub const DEFAULT_OUTPUT_BYTES: u64 = 8 << 20;
/// Longest a command may run, whatever the caller asks: one day.
pub const MAX_EXEC_MILLISECONDS: u64 = 24 * 3600 * 1000;
/// SSH host keys of one guest: sshd has four kinds, and some of each may be in use while one follows the other.
pub const MAX_HOST_KEYS: usize = 16;
/// Octets of one SSH host key: an RSA one of 16,384 bits has 2,800.
pub const MAX_HOST_KEY_BYTES: usize = 4096;
/// Directory entries in one listing.
pub const MAX_DIRECTORY_ENTRIES: usize = 10_000;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A JSON message.
    Message,
    /// A piece of a file's content.
    Data,
    /// A piece of a command's standard output.
    Stdout,
    /// A piece of a command's standard error.
    Stderr,
    /// The content is complete.
    End,
}

/// Why a frame header is refused. The connection is of no more use.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// No such kind.
    #[error("frame kind {0} is unknown")]
    UnknownKind(u8),
    /// Longer than the kind allows.
    #[error("a frame of {got} bytes is longer than the allowed {allowed}")]
    TooLong {
        /// What the header says.
        got: usize,
        /// What the kind allows.
        allowed: usize,
    },
}

impl FrameKind {
    /// Largest payload of this kind.
    #[must_use]
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Message => MAX_MESSAGE_BYTES,
            Self::Data | Self::Stdout | Self::Stderr => MAX_DATA_BYTES,
            Self::End => 0,
        }
    }

    /// The header of a frame of this kind.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] when the payload is over [`FrameKind::max_bytes`].
    pub fn header(self, length: usize) -> Result<[u8; HEADER_BYTES], FrameError> {
        let too_long = FrameError::TooLong { got: length, allowed: self.max_bytes() };
        let short = u32::try_from(length).ok().filter(|_| length <= self.max_bytes()).ok_or(too_long)?;
        let [a, b, c, d] = short.to_be_bytes();
        let kind = match self {
            Self::Message => 0,
            Self::Data => 1,
            Self::Stdout => 2,
            Self::Stderr => 3,
            Self::End => 4,
        };
        Ok([kind, a, b, c, d])
    }

    /// Reads a header: the kind and the payload's length.
    ///
    /// # Errors
    /// When the kind is unknown or the length over its bound.
    pub fn parse(header: [u8; HEADER_BYTES]) -> Result<(Self, usize), FrameError> {
        let [kind, a, b, c, d] = header;
        let kind = match kind {
            0 => Self::Message,
            1 => Self::Data,
            2 => Self::Stdout,
            3 => Self::Stderr,
            4 => Self::End,
            other => return Err(FrameError::UnknownKind(other)),
        };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > kind.max_bytes() {
            return Err(FrameError::TooLong { got: length, allowed: kind.max_bytes() });
        }
        Ok((kind, length))
    }
}

/// All that the host can ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum AgentRequest {
    /// Is the agent there, and which boot is it?
    Health,
    /// Run `command` with a non-login `sh -c`, in `/`, with a bare `PATH` and no `HOME`.
    Exec {
        /// The shell's text.
        command: String,
        /// The Linux user; root when absent.
        user: Option<String>,
        /// After this long the process group is killed; at most [`MAX_EXEC_MILLISECONDS`].
        timeout_milliseconds: Option<u64>,
        /// Bound of stdout and of stderr; what comes after is read and dropped.
        output_bytes: u64,
    },
    /// The content of a file, or the entries of a directory.
    Read {
        /// Absolute path.
        path: String,
        /// With whose rights; root when absent.
        user: Option<String>,
    },
    /// Writes a file whole, through a temporary name in the same directory, synced and renamed.
    /// An existing file keeps its mode and owner.
    Write {
        /// Absolute path; the parent directories are made when they are missing.
        path: String,
        /// With whose rights; root when absent.
        user: Option<String>,
        /// Permission bits of a new file; 0o644 when absent.
        mode: Option<u32>,
        /// Bytes that follow, at most [`MAX_FILE_BYTES`].
        size: u64,
    },
    /// The entries of a directory.
    List {
        /// Absolute path.
        path: String,
        /// With whose rights; root when absent.
        user: Option<String>,
    },
    /// Facts about a path, the link itself when it is one.
    Stat {
        /// Absolute path.
        path: String,
        /// With whose rights; root when absent.
        user: Option<String>,
    },
    /// Removes a file, or a directory.
    Remove {
        /// Absolute path.
        path: String,
        /// With whose rights; root when absent.
        user: Option<String>,
        /// Also what a directory holds.
        recursive: bool,
    },
    /// Sets address, routes and name servers of a NIC.
    ConfigureNetwork(GuestNetwork),
    /// Steps the wall clock.
    SetClock {
        /// Since the Unix epoch.
        unix_nanoseconds: u64,
    },
    /// Makes the root file system as large as its disk, which the host has made larger before. Answered when it is;
    /// also when there was nothing to do.
    GrowDisk,
    /// The SSH host keys that the guest's own sshd shows.
    HostKeys,
    /// Makes memory free that only caches files, and brings free memory together, so that the kernel reports it to the
    /// host. Answered when that is done; the report follows within seconds.
    ReleaseMemory,
    /// Shuts the system down cleanly and powers it off. Answered before it begins.
    PowerOff,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum AgentReply {
    /// It is there.
    Health {
        /// The agent's version.
        version: String,
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// Since boot.
        uptime_milliseconds: u64,
    },
    /// The command is over; its output came before.
    ExecDone {
        /// Exit status; 128 + n when signal n ended it; absent when the timeout did.
        status: Option<i32>,
        /// The timeout ended it.
        timed_out: bool,
        /// Some output was over the bound and is lost.
        truncated: bool,
    },
    /// A file's content follows as `Data` frames and one `End`.
    File {
        /// Its length, as far as it was known when it was opened.
        size: u64,
    },
    /// A directory's entries.
    Directory {
        /// Sorted by name.
        entries: Vec<DirectoryEntry>,
    },
    /// Facts about a path.
    Stat(FileStat),
    /// SSH host keys.
    HostKeys {
        /// Public halves, as in `known_hosts`: type and base64. At most [`MAX_HOST_KEYS`].
        keys: Vec<String>,
    },
    /// The operation is done and has nothing to say.
    Done,
    /// The operation failed and changed nothing.
    Error {
        /// What kind of failure, for the caller's error code.
        kind: AgentErrorKind,
        /// What a person reads.
        message: String,
    },
}

/// Kinds of failure that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentErrorKind {
    /// No such path.
    NotFound,
    /// The user may not.
    PermissionDenied,
    /// The request makes no sense (a relative path, a directory where a file is wanted).
    Invalid,
    /// No such Linux user.
    UserNotFound,
    /// Over a bound.
    TooLarge,
    /// The agent is at its bound of operations.
    Busy,
    /// Anything else.
    Internal,
}

/// A directory entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    /// File name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// What it is.
    pub kind: FileKind,
}

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// Facts about a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content, seconds since the Unix epoch.
    pub modified_unix_seconds: i64,
}

/// The agent's first words after boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentHello {
    /// The agent's version.
    pub version: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}

/// What the host answers to [`AgentHello`]: who the VM is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootConfig {
    /// Host name to set.
    pub hostname: String,
    /// The NIC, when the VM has one.
    pub network: Option<GuestNetwork>,
    /// Wall clock, since the Unix epoch; 0: leave it alone.
    pub unix_nanoseconds: u64,
    /// The system did not boot but goes on from a saved state; absent after a boot.
    #[serde(default)]
    pub restored: Option<Restored>,
}

/// Octets of entropy that a restored guest is given: the size of the kernel's pool (drivers/char/random.c).
pub const ENTROPY_BYTES: usize = 32;

/// What a guest must mend before it may talk to anybody, since others may go on from the same state.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restored {
    /// Fresh random octets, [`ENTROPY_BYTES`] of them. The agent gives them to the kernel and has them credited; if it
    /// cannot, it answers an error, and the VM is not let on the network.
    pub entropy: Vec<u8>,
    /// Whether it is still the VM that was saved.
    pub identity: Identity,
}

impl std::fmt::Debug for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restored").field("entropy", &"***").field("identity", &self.identity).finish()
    }
}

/// Whose state a restored guest has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Its own: its name, addresses and connections stay.
    Same,
    /// Another VM's: it gets a machine-id, SSH host keys, a name and addresses of its own, and the connections of
    /// the other are closed at once.
    New,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_and_bounds_hold() {
        for kind in
            [FrameKind::Message, FrameKind::Data, FrameKind::Stdout, FrameKind::Stderr, FrameKind::End]
        {
            let header = kind.header(kind.max_bytes()).expect("at the bound");
            assert_eq!(FrameKind::parse(header), Ok((kind, kind.max_bytes())));
            assert!(kind.header(kind.max_bytes() + 1).is_err());
        }
        assert_eq!(FrameKind::parse([9, 0, 0, 0, 0]), Err(FrameError::UnknownKind(9)));
        assert!(FrameKind::parse([1, 0xff, 0, 0, 0]).is_err());
    }
}
