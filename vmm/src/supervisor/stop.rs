//! Takes a machine down: the agent is asked, then the power button is pressed, then the process is killed.

use super::connect;
use super::registry::{Intent, Running};
use crate::machine::control::MachineRequest;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// Longest that a killed process takes to be gone: its memory is given back.
const KILL_WAIT: Duration = Duration::from_secs(8);
/// Part of the grace that the agent's way gets before the power button is pressed.
const AGENT_SHARE: u32 = 2;

/// Stops cleanly within `grace`, then kills.
///
/// # Errors
/// When the process cannot be killed or does not end.
pub async fn stop(running: &Running, folder: &Path, grace: Duration) -> io::Result<()> {
    let begin = Instant::now();
    running.intend(Intent::Stop);
    let agent_until = begin + grace / AGENT_SHARE;
    match timeout_at(agent_until, connect::power_off(folder, running.pid)).await {
        Ok(Ok(())) if timeout_at(agent_until, running.wait_down()).await.is_ok() => return Ok(()),
        Ok(Ok(())) => tracing::info!(pid = running.pid, "the agent agreed, but the guest still runs"),
        Ok(Err(error)) => tracing::info!(pid = running.pid, %error, "the agent cannot power the guest off"),
        Err(_) => tracing::info!(pid = running.pid, "the agent does not answer"),
    }
    // A process that takes no orders is on its way down, or will be killed.
    if running.orders.try_send(MachineRequest::PowerButton).is_err() {
        tracing::info!(pid = running.pid, "the power button cannot be pressed");
    }
    if timeout_at(begin + grace, running.wait_down()).await.is_ok() {
        return Ok(());
    }
    kill(running).await
}

/// Kills, and waits for the end.
///
/// # Errors
/// When the process cannot be killed or does not end.
pub async fn kill(running: &Running) -> io::Result<()> {
    running.kill()?;
    timeout(KILL_WAIT, running.wait_down())
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the killed process does not end"))
}
