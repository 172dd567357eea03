//! Follows a VM's process to its end.

use super::cgroup::Cgroups;
use super::registry::{Intent, Registry, Running};
use crate::client::ExitReason;
use crate::machine::control::{MachineMessage, MachineRequest};
use feed::wire::Wire;
use model::id::VmId;
use rustix::process::Signal;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

/// How the kernel ends a process whose call is not on its list.
const SIGSYS: i32 = Signal::SYS.as_raw();

/// A process and the ends by which it is followed.
#[derive(Debug)]
pub struct Followed {
    /// Which VM.
    pub vm: VmId,
    /// Its entry in the registry.
    pub running: Arc<Running>,
    /// Its control connection, subscribed.
    pub wire: Wire,
    /// Readable when the process has ended.
    pub pidfd: AsyncFd<OwnedFd>,
    /// Our child, or none when it was adopted.
    pub child: Option<Child>,
    /// What it is to be asked.
    pub orders: mpsc::Receiver<MachineRequest>,
    /// What bounds it.
    pub cgroups: Cgroups,
}

impl Followed {
    /// Follows it to its end; the last step is the event that it is down.
    pub async fn follow(mut self, registry: Registry) {
        let reported = self.listen(&registry).await;
        if let Err(error) = self.pidfd.readable().await {
            tracing::error!(vm = %self.vm, %error, "cannot wait for a VM's process");
        }
        let status = self.reap();
        let reason = reason(reported, self.running.intent(), status);
        tracing::info!(vm = %self.vm, ?reason, "the machine is down");
        self.cgroups.sweep();
        registry.ended(&self.vm, &self.running, reason);
    }

    /// Relays until the process closes its connection; returns what it said of its end.
    async fn listen(&mut self, registry: &Registry) -> Option<ExitReason> {
        let mut reported = None;
        loop {
            tokio::select! {
                message = self.wire.receive::<MachineMessage>() => match message {
                    Ok((MachineMessage::AgentReady, _)) => registry.agent_ready(&self.vm, &self.running),
                    Ok((MachineMessage::Idle, _)) => registry.idle(&self.vm, &self.running),
                    Ok((MachineMessage::Rebooting, _)) => registry.rebooting(&self.vm, &self.running),
                    Ok((MachineMessage::Exited { reason }, _)) => reported = Some(reason),
                    Ok((MachineMessage::Running { .. } | MachineMessage::Done, _)) => {}
                    Ok((MachineMessage::Refused { message, .. }, _)) => {
                        tracing::warn!(vm = %self.vm, message, "the VM's process refused an order");
                    }
                    Err(error) => {
                        tracing::debug!(vm = %self.vm, %error, "the VM's process closed its connection");
                        return reported;
                    }
                },
                Some(order) = self.orders.recv() => {
                    if let Err(error) = self.wire.send(&order, &[]).await {
                        tracing::warn!(vm = %self.vm, %error, "the VM's process takes no orders");
                    }
                }
            }
        }
    }

    /// The status of our own child; the kernel tells nobody else's.
    fn reap(&mut self) -> Option<ExitStatus> {
        match self.child.as_mut()?.wait() {
            Ok(status) => Some(status),
            Err(error) => {
                tracing::error!(vm = %self.vm, %error, "cannot reap a VM's process");
                None
            }
        }
    }
}

/// What is told of an end: what the process said, seen with what was asked for.
fn reason(reported: Option<ExitReason>, intent: Intent, status: Option<ExitStatus>) -> ExitReason {
    match (reported, intent) {
        (Some(ExitReason::PoweredOff), Intent::Stop) => ExitReason::Stopped,
        (Some(reported), _) => reported,
        (None, Intent::Kill) => ExitReason::Killed,
        (None, Intent::None | Intent::Stop) => {
            let mut message = status.map_or_else(|| "its status is not known".to_owned(), |s| s.to_string());
            if status.and_then(|status| status.signal()) == Some(SIGSYS) {
                message.push_str(": it made a system call that it may not make");
            }
            ExitReason::ProcessDied { message }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_by_what_was_said_and_asked() {
        assert_eq!(reason(Some(ExitReason::PoweredOff), Intent::Stop, None), ExitReason::Stopped);
        assert_eq!(reason(Some(ExitReason::PoweredOff), Intent::None, None), ExitReason::PoweredOff);
        assert_eq!(reason(None, Intent::Kill, None), ExitReason::Killed);
        assert!(matches!(reason(None, Intent::Stop, None), ExitReason::ProcessDied { .. }));
    }
}
