//! Wakes: vpc tells for which VMs packets wait, and control is told of those that have no process.
//!
//! ```text
//!                    connected            the end of a process that had a wake come too early
//!   (no vpc) ─────────────────► hearing ─────────────────────────────────────────────────────► ask again, at once
//!      ▲                           │ vpc is gone
//!      └───────── a pause ─────────┘
//! ```
//! vpc tells each sleep's wake once, and it may do so a moment before the VM's process has ended. Such a wake is not
//! passed on, since the process may still read the packet; when it is gone, vpc is asked anew, and says again for whom
//! packets wait.

use super::registry::Registry;
use model::id::VmId;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinSet;
use vpc::client::{VpcClient, VpcError};

/// Between tries to reach a vpc that restarts. It needs a tenth of a second or more, and packets wait meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// VMs that are remembered at once. vpc has no more ports.
const MAX_WOKEN: usize = 4096;

/// VMs for which packets wait, as far as was told since they had a process.
#[derive(Debug, Default)]
pub struct Woken {
    vms: BTreeSet<VmId>,
}

impl Woken {
    /// Packets wait for it.
    pub fn insert(&mut self, vm: &VmId) {
        if self.vms.len() < MAX_WOKEN {
            self.vms.insert(vm.clone());
        } else {
            tracing::error!(%vm, "{MAX_WOKEN} VMs wait to be woken; a control that restarts is not told of this one");
        }
    }

    /// It has a process, or is gone for good.
    pub fn remove(&mut self, vm: &VmId) {
        self.vms.remove(vm);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &VmId> {
        self.vms.iter()
    }
}

/// Passes wakes on, for ever.
pub async fn follow(vpc: VpcClient, registry: Registry) {
    let mut early = Early::default();
    let mut reachable = true;
    loop {
        match hear(&vpc, &registry, &mut early, &mut reachable).await {
            Ok(()) => {}
            Err(error) => {
                if std::mem::take(&mut reachable) {
                    tracing::warn!(%error, "wakes are not heard of until vpc is back");
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

/// Hears until vpc must be asked anew, or is gone.
async fn hear(
    vpc: &VpcClient,
    registry: &Registry,
    early: &mut Early,
    reachable: &mut bool,
) -> Result<(), VpcError> {
    let mut wakes = vpc.wakes().await?;
    if !std::mem::replace(reachable, true) {
        tracing::info!("vpc is back");
    }
    loop {
        tokio::select! {
            told = wakes.next() => {
                let vm = told?;
                tracing::debug!(%vm, "packets wait for a VM");
                if let Some(running) = registry.wake(&vm)
                    && early.vms.insert(vm.clone())
                {
                    early.ends.spawn(async move {
                        running.wait_down().await;
                        vm
                    });
                }
            }
            Some(ended) = early.ends.join_next() => {
                // The closures above do not panic, and nobody aborts them.
                if let Ok(vm) = ended {
                    early.vms.remove(&vm);
                }
                return Ok(());
            }
        }
    }
}

/// VMs whose wake came while they had a process: one for each of [`super::registry::MAX_MACHINES`] at most.
#[derive(Default)]
struct Early {
    vms: BTreeSet<VmId>,
    ends: JoinSet<VmId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{ExitReason, VmmEvent};
    use crate::supervisor::registry::Running;
    use feed::wire::{Wire, WireListener};
    use model::id::VmInstanceId;
    use std::path::Path;
    use std::sync::Arc;
    use tokio::sync::{broadcast, mpsc};
    use tokio::time::timeout;
    use vpc::client::{VpcReply, VpcRequest};

    const PATIENCE: Duration = Duration::from_secs(60);

    /// vpc's end of a subscription.
    struct Vpc {
        listener: WireListener,
        wire: Wire,
    }

    impl Vpc {
        async fn start(socket: &Path) -> Self {
            let listener = WireListener::bind(socket, 0o600).expect("bind");
            let wire = Self::subscriber(&listener).await;
            Self { listener, wire }
        }

        async fn subscriber(listener: &WireListener) -> Wire {
            let wire = timeout(PATIENCE, listener.accept()).await.expect("in time").expect("accepted");
            let (request, _) = wire.receive::<VpcRequest>().await.expect("asked");
            assert_eq!(request, VpcRequest::Wakes);
            wire
        }

        async fn tell(&self, vm: &VmId) {
            self.wire.send(&VpcReply::Wake { vm: vm.clone() }, &[]).await.expect("told");
        }
    }

    fn vm(number: u8) -> VmId {
        VmId::from_random([number; 20])
    }

    fn running() -> Arc<Running> {
        let (orders, _) = mpsc::channel(1);
        let (reader, _) = std::io::pipe().expect("pipe");
        Arc::new(Running::new(VmInstanceId::from_random([1; 20]), 1, reader.into(), orders, false))
    }

    async fn next(events: &mut broadcast::Receiver<VmmEvent>) -> VmmEvent {
        timeout(PATIENCE, events.recv()).await.expect("in time").expect("told")
    }

    fn pending(registry: &Registry) -> Vec<VmmEvent> {
        registry.pending_wakes()
    }

    #[tokio::test]
    async fn wakes_are_passed_on_also_those_of_the_next_vpc_and_kept_until_the_machine_begins() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("vpc.sock");
        let registry = Registry::default();
        let (_, mut events) = registry.subscribe();
        let following = tokio::spawn(follow(VpcClient::new(socket.clone()), registry.clone()));
        let vpc = Vpc::start(&socket).await;
        vpc.tell(&vm(1)).await;
        assert_eq!(next(&mut events).await, VmmEvent::Wake { vm: vm(1) });
        drop(vpc);
        let vpc = Vpc::start(&socket).await;
        vpc.tell(&vm(2)).await;
        assert_eq!(next(&mut events).await, VmmEvent::Wake { vm: vm(2) });
        let wakes = [1, 2].map(|number| VmmEvent::Wake { vm: vm(number) });
        assert_eq!(pending(&registry), wakes, "as a control is told that comes now");
        registry.began(&vm(1), running());
        assert_eq!(pending(&registry), wakes[1..]);
        registry.forget(&vm(2));
        assert_eq!(pending(&registry), []);
        following.abort();
    }

    #[tokio::test]
    async fn a_wake_that_comes_before_the_process_is_gone_is_asked_for_again() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("vpc.sock");
        let registry = Registry::default();
        let machine = running();
        registry.began(&vm(1), Arc::clone(&machine));
        let (_, mut events) = registry.subscribe();
        let following = tokio::spawn(follow(VpcClient::new(socket.clone()), registry.clone()));
        let mut vpc = Vpc::start(&socket).await;
        vpc.tell(&vm(1)).await;
        vpc.tell(&vm(2)).await;
        assert_eq!(next(&mut events).await, VmmEvent::Wake { vm: vm(2) }, "and not of the one that runs");
        registry.ended(&vm(1), &machine, ExitReason::Suspended);
        assert!(matches!(next(&mut events).await, VmmEvent::Exited { .. }));
        vpc.wire = Vpc::subscriber(&vpc.listener).await;
        vpc.tell(&vm(1)).await;
        assert_eq!(next(&mut events).await, VmmEvent::Wake { vm: vm(1) });
        following.abort();
    }
}
