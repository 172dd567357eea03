//! Drives one VM from an event to rest: write the intent down, do the effect, take its outcome as the next event.

use super::error::OpError;
use super::notes::Notes;
use super::observed::describe;
use super::slots::Turn;
use super::{Inner, STOP_GRACE};
use crate::pure::phase::{Ask, Effect, Event, Fate, Lack, Next, Phase, Seen, step};
use crate::store::VmRecord;
use model::agent::BootConfig;
use model::id::Generation;
use model::net::{GATEWAY_IPV4, GATEWAY_IPV6, GUEST_MTU, GuestIpv6, GuestNetwork, MacAddress, Ula};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::info;
use vmm::client::{ExitReason, IdleWatch, MachineSpec, Metadata, NicSpec, Origin, Refusal, VmmError};

/// Longest wait for the supervisor's own word about a machine that it has ended: it goes out before the answer, on
/// another connection, and must not be taken for the end of the next run.
const EXIT_WORD_WAIT: Duration = Duration::from_secs(2);

/// A VM that is being driven, by whoever has its turn.
pub(super) struct Drive<'a> {
    pub inner: &'a Inner,
    pub record: VmRecord,
    pub turn: &'a mut Turn,
    pub ready_wait: Duration,
    pub notes: &'a Notes,
    /// What becomes of it when it comes to rest.
    pub fate: Fate,
    /// Why the supervisor could not use its suspended state.
    pub unfit: Option<String>,
    /// The first thing that went wrong: what the caller is told, however well it was repaired.
    pub trouble: Option<OpError>,
}

impl Drive<'_> {
    /// Drives the VM to rest. True: it is still there.
    ///
    /// # Errors
    /// The first thing that went wrong. The VM is at rest all the same, or its intent waits to be resumed.
    pub async fn run(&mut self, first: Event) -> Result<bool, OpError> {
        let mut event = first;
        loop {
            let step = step(self.record.phase, event, self.fate)?;
            let before = self.record.phase;
            let exit = self.told(event);
            let applied = self.inner.store.apply(&self.record, &step, exit.as_deref(), &self.inner.limits);
            self.record = super::admitted(applied.await?)?;
            self.inner.stored.send_modify(|count| *count += 1);
            self.inner.failpoints.pass(|| format!("stored {:?}", step.next)).await;
            if step.next != Next::Phase(before) {
                info!(vm = %self.record.id, from = before.as_str(), to = ?step.next, ?event, "VM");
            }
            if let Some(effect) = step.effect {
                let outcome = self.perform(effect).await;
                self.inner.failpoints.pass(|| format!("done {effect:?}")).await;
                if let Some(outcome) = outcome {
                    event = outcome;
                    continue;
                }
            }
            return match self.trouble.take() {
                Some(trouble) => Err(trouble),
                None => Ok(matches!(step.next, Next::Phase(_))),
            };
        }
    }

    async fn perform(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Launch => Some(self.launch().await),
            Effect::AwaitAgent => Some(self.await_agent().await),
            Effect::Stop => {
                self.notes.add("stopping the machine");
                let done = self.inner.vmm.stop(&self.record.id, STOP_GRACE).await;
                Some(self.down(done, ExitReason::Stopped).await)
            }
            Effect::Kill => {
                let done = self.inner.vmm.kill(&self.record.id).await;
                Some(self.down(done, ExitReason::Killed).await)
            }
            Effect::Suspend => Some(self.suspend().await),
            Effect::Remove => Some(self.remove().await),
            Effect::Publish => {
                if let Err(error) = self.inner.planner.publish().await {
                    self.trouble(error);
                }
                None
            }
            Effect::Withdraw => {
                self.inner.observed.forget(&self.record.id);
                self.inner.unwatch(&self.record.id);
                if let Err(error) = self.inner.planner.publish().await {
                    self.trouble(error);
                }
                None
            }
        }
    }

    async fn launch(&mut self) -> Event {
        let generation = match self.inner.planner.publish().await {
            Ok(generation) => generation,
            Err(error) => return self.failed(error),
        };
        self.inner.failpoints.pass(|| "published".to_owned()).await;
        self.notes.add("launching the machine");
        let seen = self.inner.observed.seen(&self.record.id, &self.record.instance);
        if self.record.phase == Phase::Resuming && seen != Seen::Ours {
            // The same instance goes on: that it went down to sleep is no news any more.
            self.inner.observed.forget(&self.record.id);
        }
        match self.inner.vmm.launch(machine(&self.record, generation, self.inner.metadata.clone())).await {
            Ok(pid) => {
                info!(vm = %self.record.id, pid, "launched");
                self.inner.observed.is_up(&self.record.id, &self.record.instance);
                Event::Launched
            }
            Err(error) => match refusal(&error) {
                Some(Event::Refused(Lack::State)) if self.record.phase == Phase::Resuming => {
                    let why = format!("its suspended memory was lost, and it booted from its disk: {error}");
                    tracing::warn!(vm = %self.record.id, why, "VM");
                    self.notes.add(why.clone());
                    self.unfit = Some(why);
                    Event::Refused(Lack::State)
                }
                refused => {
                    self.trouble(error);
                    refused.unwrap_or(Event::Failed)
                }
            },
        }
    }

    async fn suspend(&mut self) -> Event {
        self.notes.add("suspending the machine");
        match self.inner.vmm.suspend(&self.record.id).await {
            Ok(()) => {
                self.ended(ExitReason::Suspended).await;
                Event::Suspended
            }
            Err(error @ VmmError::Refused { reason, .. }) => match reason {
                Refusal::Woken => {
                    self.trouble(error);
                    Event::Woken
                }
                Refusal::NotRunning => {
                    self.trouble(error);
                    Event::Down
                }
                Refusal::BadSpec
                | Refusal::Image
                | Refusal::Disk
                | Refusal::Network
                | Refusal::Kvm
                | Refusal::NoListener
                | Refusal::NoState
                | Refusal::StateUnfit
                | Refusal::NotAllowed
                | Refusal::Busy
                | Refusal::Internal => {
                    // A refusal changes nothing: it runs on.
                    self.trouble(OpError::SuspendFailed(error));
                    Event::Woken
                }
            },
            Err(error) => self.failed(error),
        }
    }

    async fn await_agent(&mut self) -> Event {
        self.notes.add("waiting for the VM to boot");
        let deadline = Instant::now() + self.ready_wait;
        let mut changes = self.inner.observed.changes();
        loop {
            changes.mark_unchanged();
            let machine =
                self.inner.observed.get(&self.record.id).filter(|m| m.instance == self.record.instance);
            match machine {
                Some(machine) if machine.ready => {
                    self.notes.add("the VM is ready");
                    return Event::Ready;
                }
                Some(machine) if !machine.up => {
                    self.trouble(OpError::WentDown { reason: machine.exit.unwrap_or(ExitReason::Killed) });
                    return Event::Down;
                }
                Some(_) | None => {}
            }
            tokio::select! {
                // The table lives as long as we do, so neither sender can be gone.
                _ = changes.changed() => {}
                _ = self.turn.wanted_down.changed() => {
                    self.trouble(OpError::Interrupted);
                    return Event::NotReady;
                }
                () = sleep_until(deadline) => {
                    self.trouble(OpError::NotReady(self.ready_wait));
                    return Event::NotReady;
                }
            }
        }
    }

    async fn remove(&mut self) -> Event {
        // Its routes go first, so that callers see a name that leads nowhere and not a machine that is going.
        if let Err(error) = self.inner.planner.publish().await {
            return self.failed(error);
        }
        match self.inner.vmm.remove(&self.record.id).await {
            Ok(()) => Event::Removed,
            Err(error) => self.failed(error),
        }
    }

    async fn down(&mut self, done: Result<(), VmmError>, reason: ExitReason) -> Event {
        match done {
            Ok(()) => {
                self.ended(reason).await;
                Event::Down
            }
            Err(error) => self.failed(error),
        }
    }

    /// The supervisor has ended the machine. What it tells of the end itself says more.
    async fn ended(&self, reason: ExitReason) {
        let (vm, observed) = (&self.record.id, &self.inner.observed);
        let mut changes = observed.changes();
        let told = async {
            while observed.get(vm).is_some_and(|machine| machine.up) && changes.changed().await.is_ok() {}
        };
        if timeout(EXIT_WORD_WAIT, told).await.is_err() || observed.get(vm).is_none() {
            observed.is_down(vm, &self.record.instance, reason);
        }
    }

    fn failed(&mut self, error: impl Into<OpError>) -> Event {
        self.trouble(error);
        Event::Failed
    }

    fn trouble(&mut self, error: impl Into<OpError>) {
        let error = error.into();
        self.notes.add(format!("failed: {error}"));
        tracing::warn!(vm = %self.record.id, %error, "VM");
        self.trouble.get_or_insert(error);
    }

    /// What is remembered about an event that ends a run.
    fn told(&mut self, event: Event) -> Option<String> {
        let phase = self.record.phase;
        match event {
            Event::Asked(Ask::Stop | Ask::Kill) if phase == Phase::Suspended => {
                Some("stopped while it was suspended".to_owned())
            }
            Event::Refused(Lack::State) => self.unfit.take(),
            Event::Down => Some(self.exit_text()),
            Event::Resumed(Seen::Absent)
                if matches!(phase, Phase::Running | Phase::Stopping | Phase::Killing) =>
            {
                Some(self.exit_text())
            }
            Event::Asked(_)
            | Event::Resumed(_)
            | Event::Launched
            | Event::Refused(_)
            | Event::Ready
            | Event::NotReady
            | Event::Suspended
            | Event::Woken
            | Event::Removed
            | Event::Failed => None,
        }
    }

    fn exit_text(&self) -> String {
        let machine = self.inner.observed.get(&self.record.id);
        let told = machine.filter(|machine| machine.instance == self.record.instance);
        let reason = told.and_then(|machine| machine.exit).map(|reason| describe(&reason));
        reason.unwrap_or_else(|| match self.record.phase {
            Phase::Stopping => "stopped".to_owned(),
            Phase::Killing => "killed".to_owned(),
            Phase::Building
            | Phase::Starting
            | Phase::Resuming
            | Phase::Running
            | Phase::Suspending
            | Phase::Suspended
            | Phase::Stopped
            | Phase::Lost
            | Phase::Deleting => "down when the supervisor was asked".to_owned(),
        })
    }
}

/// A refusal that leaves no machine behind. After any other failure there may be one.
fn refusal(error: &VmmError) -> Option<Event> {
    let VmmError::Refused { reason, .. } = error else { return None };
    match reason {
        Refusal::Disk => Some(Event::Refused(Lack::Disk)),
        Refusal::NoState | Refusal::StateUnfit => Some(Event::Refused(Lack::State)),
        Refusal::BadSpec | Refusal::Image | Refusal::Network | Refusal::Kvm | Refusal::NotAllowed => {
            Some(Event::Refused(Lack::Other))
        }
        Refusal::NotRunning | Refusal::NoListener | Refusal::Woken | Refusal::Busy | Refusal::Internal => {
            None
        }
    }
}

/// When the NIC of a VM counts as idle.
pub(super) fn idle_watch(vm: &VmRecord) -> Option<IdleWatch> {
    vm.idle_timeout_seconds.map(|seconds| IdleWatch {
        seconds: seconds.max(1),
        threshold_bytes: vm.activity_threshold_bytes.unwrap_or(1).max(1),
    })
}

/// What a VM's machine begins from.
fn origin(vm: &VmRecord) -> Origin {
    match (vm.phase, &vm.origin) {
        (Phase::Resuming, _) => Origin::Suspended,
        (Phase::Building, Some(snapshot)) => Origin::Snapshot { snapshot: snapshot.clone() },
        _ => Origin::Boot,
    }
}

/// What the supervisor is asked to run.
fn machine(vm: &VmRecord, generation: Generation, metadata: Metadata) -> MachineSpec {
    let mac = MacAddress::of_ipv4(vm.ipv4);
    let network = GuestNetwork {
        mac,
        ipv4: vm.ipv4,
        gateway: GATEWAY_IPV4,
        dns: vec![IpAddr::V4(GATEWAY_IPV4)],
        mtu: GUEST_MTU,
        ipv6: vm
            .vpc
            .as_ref()
            .map(|vpc| GuestIpv6 { address: Ula::of(vpc).address(vm.ipv4), gateway: GATEWAY_IPV6 }),
    };
    MachineSpec {
        vm: vm.id.clone(),
        instance: vm.instance.clone(),
        image: vm.image.clone(),
        vcpus: vm.size.vcpus,
        memory_mib: vm.size.memory_mib,
        disk_mib: vm.size.disk_mib,
        nic: Some(NicSpec { mac, generation }),
        boot: BootConfig {
            hostname: vm.id.to_string(),
            network: Some(network),
            unix_nanoseconds: 0,
            restored: None,
        },
        origin: origin(vm),
        idle: idle_watch(vm),
        metadata,
    }
}
