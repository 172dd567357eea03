//! A state as a file: one line that says what it is, then the state.
//!
//! ```text
//! {"format":"gatehouse machine state","version":2,"bytes":31337,"crc32":2596996162}
//! {"cpu":…}
//! ```

use super::MachineState;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use thiserror::Error;

/// What the first line calls the file.
const FORMAT: &str = "gatehouse machine state";
/// The layout that this program writes and reads. It changes with each change of a saved structure.
pub const VERSION: u32 = 2;
/// Largest file that is read: eight vCPUs take less than a megabyte, a held frame 256 KiB.
const MAX_BYTES: u64 = 16 << 20;

/// Why a state file cannot be written or read.
#[derive(Debug, Error)]
pub enum StateFileError {
    /// The file system.
    #[error("cannot {operation} the state file")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The state cannot be told as JSON.
    #[error("cannot encode the state")]
    Encode(#[source] serde_json::Error),
    /// It is something else, or cut off.
    #[error("this is not a machine's state, or it is damaged: {0}")]
    Damaged(&'static str),
    /// It is of another version of this program.
    #[error("the state has version {found}; this program reads version {VERSION}")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// Its version is right and it still cannot be read.
    #[error("the state cannot be understood")]
    Decode(#[source] serde_json::Error),
}

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
    bytes: u64,
    crc32: u32,
}

/// Writes into an empty file and makes it durable; its name is the caller's to make durable.
///
/// # Errors
/// A [`StateFileError`].
pub fn write(mut file: &File, state: &MachineState) -> Result<(), StateFileError> {
    let body = serde_json::to_vec(state).map_err(StateFileError::Encode)?;
    let head = Head {
        format: FORMAT.to_owned(),
        version: VERSION,
        bytes: body.len() as u64,
        crc32: crc32fast::hash(&body),
    };
    let mut head = serde_json::to_vec(&head).map_err(StateFileError::Encode)?;
    head.push(b'\n');
    let failed = |operation| move |source| StateFileError::Io { operation, source };
    file.write_all(&head).and_then(|()| file.write_all(&body)).map_err(failed("write"))?;
    file.sync_all().map_err(failed("sync"))
}

/// Reads a file that [`write`] wrote.
///
/// # Errors
/// A [`StateFileError`].
pub fn read(path: &Path) -> Result<MachineState, StateFileError> {
    let failed = |operation| move |source| StateFileError::Io { operation, source };
    let file = File::open(path).map_err(failed("open"))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed("read"))?;
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Result<MachineState, StateFileError> {
    let line = bytes.iter().position(|byte| *byte == b'\n');
    let (head, body) = bytes.split_at(line.ok_or(StateFileError::Damaged("it has no first line"))?);
    let body = &body[1..];
    let head: Head =
        serde_json::from_slice(head).map_err(|_| StateFileError::Damaged("its first line is another"))?;
    if head.format != FORMAT {
        return Err(StateFileError::Damaged("it is of another format"));
    }
    if head.version != VERSION {
        return Err(StateFileError::Version { found: head.version });
    }
    if head.bytes != body.len() as u64 {
        return Err(StateFileError::Damaged("it is cut off"));
    }
    if head.crc32 != crc32fast::hash(body) {
        return Err(StateFileError::Damaged("its checksum is another"));
    }
    serde_json::from_slice(body).map_err(StateFileError::Decode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::state::{Chips, CpuIdentity, SerialRegisters};
    use proptest::prelude::*;
    use vm_superio::serial::SerialState;

    fn state() -> MachineState {
        MachineState {
            cpu: CpuIdentity { name: "x".to_owned(), features: 7 },
            memory_mib: 64,
            vcpus: Vec::new(),
            chips: Chips { pit: Default::default(), clock_nanoseconds: 5, irqchips: Default::default() },
            serial: SerialRegisters::from(SerialState::default()),
            events: 0,
            devices: Vec::new(),
        }
    }

    fn written() -> Vec<u8> {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("state");
        write(&File::create(&path).expect("file"), &state()).expect("written");
        let back = read(&path).expect("read");
        assert_eq!((back.memory_mib, back.chips.clock_nanoseconds), (64, 5));
        std::fs::read(path).expect("bytes")
    }

    #[test]
    fn another_version_or_format_is_told_apart_from_damage() {
        let text = String::from_utf8(written()).expect("text");
        for other in [VERSION - 1, VERSION + 1] {
            let (ours, theirs) = (format!("\"version\":{VERSION}"), format!("\"version\":{other}"));
            let parsed = parse(text.replacen(&ours, &theirs, 1).as_bytes());
            assert!(matches!(parsed, Err(StateFileError::Version { found }) if found == other), "{parsed:?}");
        }
        let other = text.replacen("gatehouse", "somebody", 1);
        assert!(matches!(parse(other.as_bytes()), Err(StateFileError::Damaged(_))));
        assert!(matches!(parse(b""), Err(StateFileError::Damaged(_))));
    }

    #[test]
    fn no_single_change_goes_unnoticed() {
        let good = written();
        proptest!(|(at in 0..good.len(), bit in 0..8u8)| {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            prop_assert!(parse(&bad).is_err());
            prop_assert!(parse(&good[..at]).is_err());
        });
    }
}
