//! `cargo xtask check`: what the compiler and clippy cannot see of the house's rules.

mod dependencies;
mod edges;
mod links;
mod scan;
mod source;

use serde_json::Value;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use thiserror::Error;

/// What is wrong where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, from the root of the repository.
    place: String,
    /// The line, from 1; 0 for the whole file.
    line: usize,
    /// What is wrong, and what would be right.
    what: String,
}

impl Problem {
    fn new(place: impl Into<String>, line: usize, what: impl Into<String>) -> Self {
        Self { place: place.into(), line, what: what.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.what),
            line => write!(f, "{}:{line}: {}", self.place, self.what),
        }
    }
}

/// Why the check could not be made, or what it found.
#[derive(Debug, Error)]
pub enum CheckError {
    /// A program cannot be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// Which one.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Which one.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// The metadata is not what was expected.
    #[error("cargo's metadata cannot be read: {0}")]
    Metadata(#[from] serde_json::Error),
    /// A file cannot be read.
    #[error("{path} cannot be read: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The rules are broken.
    #[error("{0} problems")]
    Problems(usize),
}

/// A file of the repository.
#[derive(Clone, Debug)]
struct File {
    /// From the root, with `/`.
    path: String,
    /// Its text.
    text: String,
}

/// Prints all problems, one line each.
///
/// # Errors
/// When there is one, or the repository cannot be read.
pub fn run(root: &Path) -> Result<(), CheckError> {
    let metadata = metadata(root)?;
    let files = files(root)?;
    let home = std::env::var("HOME").unwrap_or_default();
    let mut problems = edges::check(&metadata);
    problems.extend(source::module_docs(&files));
    problems.extend(source::lengths(&files));
    problems.extend(source::levels(&files));
    problems.extend(source::private_paths(&files, &root.to_string_lossy(), &home));
    problems.extend(links::check(root, &files));
    problems.extend(dependencies::check(&metadata, &files));
    problems.sort();
    for problem in &problems {
        println!("{problem}");
    }
    if problems.is_empty() {
        println!("{} files keep the rules", files.len());
        return Ok(());
    }
    Err(CheckError::Problems(problems.len()))
}

fn metadata(root: &Path) -> Result<Value, CheckError> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]).current_dir(root);
    Ok(serde_json::from_slice(&output("cargo", &mut command)?)?)
}

/// All text files that are, or would be, in the repository.
fn files(root: &Path) -> Result<Vec<File>, CheckError> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root);
    let listed = output("git", &mut command)?;
    let mut files = Vec::new();
    for name in listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let path = String::from_utf8_lossy(name).into_owned();
        let full = root.join(&path);
        if !full.is_file() {
            // Removed here and not yet there, or a link to a folder.
            continue;
        }
        let bytes = std::fs::read(&full).map_err(|source| CheckError::Read { path: full, source })?;
        // What is no text (a corpus of a fuzz target) has no rules to keep.
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(File { path, text });
        }
    }
    Ok(files)
}

fn output(program: &'static str, command: &mut Command) -> Result<Vec<u8>, CheckError> {
    let output = command.output().map_err(|source| CheckError::Run { program, source })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(CheckError::Failed { program, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check of the repository itself is `cargo xtask check`; here only that its inputs are there.
    #[test]
    fn the_repository_can_be_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a folder");
        let files = files(root).expect("files");
        assert!(files.iter().any(|file| file.path == "xtask/src/check/mod.rs"));
        assert!(metadata(root).expect("metadata")["packages"].as_array().is_some_and(|all| all.len() >= 10));
    }
}
