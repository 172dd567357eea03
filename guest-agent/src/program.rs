//! Programs of the system that the agent itself runs: as root, with nothing of its own but the log, and not for ever.

use crate::sys::identity::{Identity, run_as};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;

/// The search path of programs; all else of the environment is absent.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program did not do its work.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// No process.
    #[error("cannot start it")]
    Start(#[source] io::Error),
    /// It runs, but cannot be watched.
    #[error("cannot watch it")]
    Watch(#[source] io::Error),
    /// It took too long and was killed.
    #[error("it was killed after {} s", .0.as_secs())]
    TooLong(Duration),
    /// It failed.
    #[error("it ended with {0}")]
    Failed(ExitStatus),
}

impl ProgramError {
    /// Whether there is no such program.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Start(cause) if cause.kind() == io::ErrorKind::NotFound)
    }
}

/// Runs it to its end. Its outputs go where the agent's log goes.
///
/// # Errors
/// See [`ProgramError`]; when it takes longer than `longest` its process group is killed.
pub fn run(command: &mut Command, longest: Duration) -> Result<(), ProgramError> {
    let deadline = Instant::now() + longest;
    command.current_dir("/").env_clear().env("PATH", PATH).stdin(Stdio::null()).process_group(0);
    // The standard output is not the agent's own on a console, but its log.
    command.stdout(io::stderr());
    run_as(command, &Identity { uid: 0, gid: 0, groups: vec![0] });
    let mut child = command.spawn().map_err(ProgramError::Start)?;
    let in_time = ends_until(&child, deadline);
    if !matches!(in_time, Ok(true)) {
        kill(&child);
    }
    let status = child.wait().map_err(ProgramError::Watch)?;
    if !in_time.map_err(|errno| ProgramError::Watch(errno.into()))? {
        return Err(ProgramError::TooLong(longest));
    }
    if status.success() { Ok(()) } else { Err(ProgramError::Failed(status)) }
}

fn ends_until(child: &Child, deadline: Instant) -> Result<bool, Errno> {
    let end = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&end, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn kill(child: &Child) {
    match kill_process_group(Pid::from_child(child), Signal::KILL) {
        // Already gone.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(errno) => eprintln!("gatehouse-agent: cannot kill process group {}: {errno}", child.id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_apart() {
        let long = Duration::from_secs(60);
        let run = |text: &str, longest| run(Command::new("/bin/sh").args(["-c", text]), longest);
        assert!(run("test -z \"$HOME\"", long).is_ok());
        assert!(matches!(run("exit 3", long), Err(ProgramError::Failed(status)) if status.code() == Some(3)));
        let started = Instant::now();
        assert!(matches!(run("sleep 4717.5", Duration::from_millis(50)), Err(ProgramError::TooLong(_))));
        assert!(started.elapsed() < long);
        let none = super::run(&mut Command::new("/no/such/program"), long).expect_err("absent");
        assert!(none.is_absent());
    }
}
