//! Starts stopped VMs for which somebody waits at the SSH front.

use super::Machines;
use crate::pure::phase::{Ask, Phase};
use crate::pure::retry;
use model::id::VmId;
use ssh_proxy::client::{SshClient, SshError};
use std::time::Duration;
use tracing::{debug, info, warn};

/// Wait between tries to reach ssh-proxy: it restarts within seconds, and waiting clients are told of again.
const RECONNECT: Duration = Duration::from_millis(200);
/// Between the tries while it is not there: a house without an SSH front is not to be busy with that.
const LONGEST_RECONNECT: Duration = Duration::from_secs(5);
/// Starts that fail, one after another, before the client is left alone: some 15 s, which is as long as editors wait.
const TRIES: u32 = 4;

/// Follows ssh-proxy for ever, through every absence of it.
pub async fn follow(machines: Machines, front: SshClient) {
    let mut wait = RECONNECT;
    loop {
        let ended = match front.wants().await {
            Ok(mut wants) => {
                wait = RECONNECT;
                loop {
                    match wants.next().await {
                        Ok(vm) => machines.wanted(vm),
                        Err(error) => break error,
                    }
                }
            }
            Err(error) => error,
        };
        match ended {
            SshError::Unreachable(error) => debug!(%error, "ssh-proxy is not there"),
            error @ (SshError::NoAnswer | SshError::Refused(_) | SshError::Misfit) => {
                warn!(%error, "who waits at the SSH front is not known");
            }
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(LONGEST_RECONNECT);
    }
}

impl Machines {
    /// Somebody who may log in waits for a VM: it is started if it is stopped.
    fn wanted(&self, vm: VmId) {
        if !self.0.wants.begin(&vm) {
            return;
        }
        let machines = self.clone();
        tokio::spawn(async move {
            loop {
                machines.start_for_login(&vm).await;
                if machines.0.wants.end(&vm) {
                    return;
                }
            }
        });
    }

    async fn start_for_login(&self, vm: &VmId) {
        let mut failed = 0;
        loop {
            let fits = |phase| matches!(phase, Phase::Stopped | Phase::Suspended);
            match self.nudge(vm, Ask::Start, |record| fits(record.phase)).await {
                Ok(Some(_)) => return info!(%vm, "started for somebody who logs in"),
                Ok(None) => return,
                Err(error) => {
                    let wait = retry::wait(failed);
                    failed += 1;
                    warn!(%vm, %error, failed, "a VM for which somebody waits at the SSH front does not start");
                    if failed >= TRIES {
                        return;
                    }
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}
