//! The end of a house: `gatehouse down`, and what each orderly closing does last.

use super::children::{folder, places, settings_path};
use super::{Manner, UpError, house, run};
use crate::pure::roster::Role;
use crate::settings::Settings;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use thiserror::Error;
use tokio::process::Command;

/// Longest that another gatehouse may take to close: the sum of its own bounds, with some air.
const CLOSE_WAIT: Duration = Duration::from_secs(240);
/// Longest that control may go on after its `up` was killed: its own bound for requests in its hands, with some air.
const CONTROL_WAIT: Duration = Duration::from_secs(20);
/// Between looks for it; it is no child of ours, and its socket tells no end.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Longest that the removal of namespaces, devices and rules may take.
const TEARDOWN_WAIT: Duration = Duration::from_secs(60);

/// Why something of the house stays.
#[derive(Debug, Error)]
pub enum DownError {
    /// The one that keeps the house cannot be asked.
    #[error("process {pid}, which keeps the house, cannot be asked to close: {source}")]
    Ask {
        /// Its number.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// It takes too long.
    #[error(
        "process {pid} did not close the house within {CLOSE_WAIT:?}; its own output says what it waits for"
    )]
    Late {
        /// Its number.
        pid: i32,
    },
    /// The processes have another keeper.
    #[error(
        "control answers at {socket}, but no `gatehouse up` keeps it: a service manager does; \
         use `systemctl stop gatehouse.target`"
    )]
    Units {
        /// Where it answers.
        socket: PathBuf,
    },
    /// The networks could not be removed.
    #[error("the networks stay, since `vpc --teardown` {0}")]
    Teardown(String),
}

/// Closes the house: asks the process that keeps it, or does it here when that one is gone. At the end no VM runs
/// and nothing of it is left in the kernel; what is on disk stays.
///
/// # Errors
/// When something stays; the text says what to do.
pub async fn down(settings: Settings) -> Result<(), UpError> {
    if let Some(pid) = house::keeper(&settings)? {
        println!("process {pid} is asked to close the house");
        ask(pid)?;
    }
    // Written before the first thing is made in the kernel, and removed after the last is gone.
    if !settings_path(Role::Vpc, &settings).exists() {
        println!("nothing is left");
        return Ok(());
    }
    without_control(&settings).await?;
    println!("VMs or networks are left: the house is opened once more, to close it in order");
    run(settings, Manner { force: true, close: true, ..Manner::default() }).await
}

/// Waits until control is gone: that of a killed `up` ends by itself, that of a service manager does not.
async fn without_control(settings: &Settings) -> Result<(), DownError> {
    let socket = places(settings).admin_socket();
    let until = Instant::now() + CONTROL_WAIT;
    while UnixStream::connect(&socket).is_ok() {
        if Instant::now() >= until {
            return Err(DownError::Units { socket });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// Asks the process to close, and waits until it has.
fn ask(pid: i32) -> Result<(), DownError> {
    let failed = |source: rustix::io::Errno| DownError::Ask { pid, source: source.into() };
    let number = Pid::from_raw(pid).ok_or_else(|| failed(rustix::io::Errno::SRCH))?;
    let process = match pidfd_open(number, PidfdFlags::empty()) {
        Ok(process) => process,
        // It ended in between, which is all that is wanted.
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match pidfd_send_signal(&process, Signal::TERM) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(failed(error)),
    }
    let limit = Timespec::try_from(CLOSE_WAIT).map_err(|_| DownError::Late { pid })?;
    match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit)) {
        Ok(0) => Err(DownError::Late { pid }),
        Ok(_) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes namespaces, devices, rules and the keeper of queues. Only when no VM runs.
///
/// # Errors
/// When something of it stays.
pub async fn teardown(settings: &Settings) -> Result<(), DownError> {
    let failed = |why: String| DownError::Teardown(why);
    let config = settings_path(Role::Vpc, settings);
    let program = folder().map_err(|error| failed(error.to_string()))?.join(Role::Vpc.program());
    let mut command = Command::new(program);
    command.arg("--config").arg(&config).arg("--teardown").stdin(Stdio::null()).kill_on_drop(true);
    let ended = tokio::time::timeout(TEARDOWN_WAIT, command.status()).await;
    let status = ended
        .map_err(|_| failed(format!("did not end within {TEARDOWN_WAIT:?}")))?
        .map_err(|error| failed(format!("could not be started: {error}")))?;
    if !status.success() {
        return Err(failed(format!("ended with {status}; its lines above say why")));
    }
    std::fs::remove_file(&config).map_err(|error| failed(format!("left {}: {error}", config.display())))
}
