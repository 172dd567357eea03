//! The soak's journal: a line of JSON for each thing that happened, by the clients (`e2e/sdk/soak.mjs`) or the killer.
//! Times are milliseconds since 1970 by the clock that both share.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum Entry {
    /// A request by HTTP, or the opening of a WebSocket, or one echo on it.
    Request(Request),
    /// A command by SSH.
    Ssh(Ssh),
    /// A name was given to a VM, or taken away.
    Mapping(Mapping),
    /// A VM went to sleep: it was asked to, or was idle.
    Slept {
        /// Whether nobody asked it to.
        idle: bool,
    },
    /// Traffic came while a VM went to sleep, so it did not.
    Disturbed,
    /// The first answer of a VM that slept.
    Woken {
        /// From the question to the answer.
        ms: u64,
    },
    /// Which certificate a fresh connection was shown.
    Certificate {
        /// The name that it was asked for.
        host: String,
        /// The certificate's number.
        serial: String,
    },
    /// A call of the API that had to be made again.
    Again {
        /// What it said.
        error: String,
    },
    /// What stands in the ledger of a VM at the end, read from its disk.
    Ledger {
        /// Whose.
        vm: String,
        /// In the order of the file.
        ids: Vec<String>,
    },
    /// What stands in the ledger of a VM that was made from another one's snapshot.
    Copy {
        /// The one that the snapshot was taken of.
        of: String,
        /// What that one had acknowledged before the snapshot was asked for.
        least: Vec<String>,
        /// In the order of the file.
        ids: Vec<String>,
    },
}

/// One question, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// How it was asked: `h1`, `h2`, `socket`, `echo`, `long`, `write`, `wake`.
    pub kind: String,
    /// The name that was asked.
    pub host: String,
    /// When it was asked.
    pub from: u64,
    /// When its answer was whole, or it had failed.
    pub to: u64,
    /// Which VM answered. An echo does not tell.
    #[serde(default)]
    pub vm: Option<String>,
    /// Which name that VM saw.
    #[serde(default)]
    pub seen: Option<String>,
    /// What the answer acknowledges to have been written.
    #[serde(default)]
    pub wrote: Option<String>,
    /// Why there was no answer, or not the right one.
    #[serde(default)]
    pub error: Option<String>,
}

/// A command in a VM by SSH.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Ssh {
    /// Whom it was for.
    pub vm: String,
    /// When it was asked.
    pub from: u64,
    /// When it had ended.
    pub to: u64,
    /// Which VM it ran in, when it ran.
    #[serde(default)]
    pub said: Option<String>,
    /// Why it did not.
    #[serde(default)]
    pub error: Option<String>,
}

/// A name's change of place. In force from some moment between its times on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mapping {
    /// The name.
    pub host: String,
    /// Whom it leads to from then on, or nowhere.
    pub vm: Option<String>,
    /// When it was asked for.
    pub from: u64,
    /// When it was first seen in force.
    pub to: u64,
}

/// A daemon's violent death.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kill {
    /// Its name.
    pub daemon: &'static str,
    /// When.
    pub at: u64,
    /// When its successor was there, which need not serve yet.
    pub back: u64,
}

/// Reads a journal of whole lines.
///
/// # Errors
/// When it cannot be read, or a line is not understood.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let lines = BufReader::new(file).lines();
    lines.map(|line| entry(&line?)).collect()
}

/// Follows a journal while it is written.
#[derive(Debug)]
pub struct Follower {
    file: BufReader<File>,
    line: String,
    answered: [u64; 2],
}

impl Follower {
    /// From its beginning.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
        Ok(Self { file, line: String::new(), answered: [0; 2] })
    }

    /// When the latest questions that were answered so far had been asked, by HTTP and by SSH.
    ///
    /// # Errors
    /// When it cannot be read, or a line is not understood.
    pub fn answered(&mut self) -> Result<[u64; 2]> {
        while self.file.read_line(&mut self.line)? > 0 && self.line.ends_with('\n') {
            let [http, ssh] = &mut self.answered;
            match entry(&self.line)? {
                Entry::Request(one) if one.error.is_none() && one.kind != "echo" => {
                    *http = one.from.max(*http)
                }
                Entry::Ssh(one) if one.error.is_none() => *ssh = one.from.max(*ssh),
                Entry::Request(_)
                | Entry::Ssh(_)
                | Entry::Mapping(_)
                | Entry::Slept { .. }
                | Entry::Disturbed => {}
                Entry::Woken { .. } | Entry::Certificate { .. } | Entry::Again { .. } => {}
                Entry::Ledger { .. } | Entry::Copy { .. } => {}
            }
            self.line.clear();
        }
        Ok(self.answered)
    }
}

fn entry(line: &str) -> Result<Entry> {
    serde_json::from_str(line).with_context(|| format!("the journal says {line:.300}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn who_follows_a_journal_waits_for_whole_lines() -> Result<()> {
        let (mut file, path) = tempfile::NamedTempFile::new()?.into_parts();
        let mut follower = Follower::open(&path)?;
        let ssh = r#"{"what":"ssh","vm":"one","from":7,"to":9,"said":"one"}"#;
        write!(file, "{}", &ssh[..20])?;
        assert_eq!(follower.answered()?, [0, 0]);
        writeln!(file, "{}", &ssh[20..])?;
        writeln!(file, r#"{{"what":"request","kind":"h1","host":"a","from":5,"to":6}}"#)?;
        writeln!(file, r#"{{"what":"request","kind":"h1","host":"a","from":8,"to":9,"error":"no"}}"#)?;
        assert_eq!(follower.answered()?, [5, 7]);
        Ok(())
    }
}
