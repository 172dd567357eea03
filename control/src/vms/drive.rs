//! Drives one VM from an event to rest: write the intent down, do the effect, take its outcome as the next event.

use super::error::OpError;
use super::notes::Notes;
use super::observed::describe;
use super::slots::Turn;
use super::{Inner, STOP_GRACE};
use crate::pure::phase::{Effect, Event, Next, Phase, Seen, step};
use crate::store::{Admission, VmRecord};
use model::agent::BootConfig;
use model::api::vm::{DeleteEvent, Persistence};
use model::id::Generation;
use model::net::{GATEWAY_IPV4, GUEST_MTU, GuestNetwork, MacAddress};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use tracing::info;
use vmm::client::{ExitReason, MachineSpec, Metadata, NicSpec, Origin, Refusal, VmmError};

/// A VM that is being driven, by whoever has its turn.
pub(super) struct Drive<'a> {
    pub inner: &'a Inner,
    pub record: VmRecord,
    pub turn: &'a mut Turn,
    pub ready_wait: Duration,
    pub notes: &'a Notes,
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
            let step = step(self.record.phase, event, self.ephemeral())?;
            let before = self.record.phase;
            let exit = goes_down(before, event).then(|| self.exit_text());
            self.record =
                match self.inner.store.apply(&self.record, &step, exit.as_deref(), &self.inner.limits).await?
                {
                    Admission::Done(record) => record,
                    Admission::NoMemory { limit_mib } => return Err(OpError::NoMemory { limit_mib }),
                    Admission::TooMany { limit, current } => return Err(OpError::TooMany { limit, current }),
                    Admission::Taken(host) => return Err(OpError::Taken(host)),
                };
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
                Some(self.down(done, ExitReason::Stopped))
            }
            Effect::Kill => {
                let done = self.inner.vmm.kill(&self.record.id).await;
                Some(self.down(done, ExitReason::Killed))
            }
            Effect::Remove => Some(self.remove().await),
            Effect::Withdraw => {
                self.inner.observed.forget(&self.record.id);
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
        match self.inner.vmm.launch(machine(&self.record, generation)).await {
            Ok(pid) => {
                info!(vm = %self.record.id, pid, "launched");
                self.inner.observed.is_up(&self.record.id, &self.record.instance);
                Event::Launched
            }
            Err(error) => {
                let refused = refusal(&error);
                self.trouble(error);
                refused.unwrap_or(Event::Failed)
            }
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

    fn down(&mut self, done: Result<(), VmmError>, reason: ExitReason) -> Event {
        match done {
            Ok(()) => {
                // What the supervisor itself tells of the end, if it came first, says more.
                let told = self.inner.observed.get(&self.record.id).is_some_and(|machine| !machine.up);
                if !told {
                    self.inner.observed.is_down(&self.record.id, &self.record.instance, reason);
                }
                Event::Down
            }
            Err(error) => self.failed(error),
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

    fn ephemeral(&self) -> bool {
        matches!(
            self.record.persistence,
            Persistence::Ephemeral { delete_event: None | Some(DeleteEvent::OnStop) }
        )
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
            | Phase::Running
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
        Refusal::Disk => Some(Event::Refused { disk: true }),
        Refusal::BadSpec
        | Refusal::Image
        | Refusal::Network
        | Refusal::Kvm
        | Refusal::NoState
        | Refusal::StateUnfit
        | Refusal::NotAllowed => Some(Event::Refused { disk: false }),
        Refusal::NotRunning | Refusal::NoListener | Refusal::Woken | Refusal::Busy | Refusal::Internal => {
            None
        }
    }
}

/// Whether the event tells that a machine which was meant to run is down.
fn goes_down(phase: Phase, event: Event) -> bool {
    match event {
        Event::Down => true,
        Event::Resumed(seen) => {
            seen == Seen::Absent && matches!(phase, Phase::Running | Phase::Stopping | Phase::Killing)
        }
        Event::Asked(_)
        | Event::Launched
        | Event::Refused { .. }
        | Event::Ready
        | Event::NotReady
        | Event::Removed
        | Event::Failed => false,
    }
}

/// What the supervisor is asked to run.
fn machine(vm: &VmRecord, generation: Generation) -> MachineSpec {
    let mac = MacAddress::of_ipv4(vm.ipv4);
    let network = GuestNetwork {
        mac,
        ipv4: vm.ipv4,
        gateway: GATEWAY_IPV4,
        dns: vec![IpAddr::V4(GATEWAY_IPV4)],
        mtu: GUEST_MTU,
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
        origin: Origin::Boot,
        idle: None,
        metadata: Metadata::default(),
    }
}
