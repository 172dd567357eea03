//! The programs that do the work, and what they say when they fail.

use super::ImageError;
use std::path::Path;
use std::process::{Command, Stdio};

/// Program, Debian package.
const TOOLS: [(&str, &str); 8] = [
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("zstd", "zstd"),
    ("chroot", "coreutils"),
];
/// How much of a failed program's words is repeated.
const LAST_LINES: usize = 15;

/// Sees that all programs are there before the first one runs.
pub fn check_installed() -> Result<(), ImageError> {
    let search = std::env::var("PATH").unwrap_or_default();
    let there = |program: &str| search.split(':').any(|folder| Path::new(folder).join(program).is_file());
    let missing: Vec<_> = TOOLS.iter().filter(|(program, _)| !there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
        missing.iter().map(|tool| pick(tool)).collect::<Vec<_>>().join(" ")
    };
    Err(ImageError::Tools { missing: names(|tool| tool.0), packages: names(|tool| tool.1) })
}

/// Runs a program to its end and gives its standard output.
pub fn run(command: &mut Command, step: &str, hint: &'static str) -> Result<Vec<u8>, ImageError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |status: String, output: String| ImageError::Tool {
        step: step.to_owned(),
        program: program.clone(),
        status,
        hint,
        output,
    };
    let done = command
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed("not started".into(), error.to_string()))?;
    if done.status.success() {
        return Ok(done.stdout);
    }
    let said = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
    Err(failed(done.status.to_string(), last))
}
