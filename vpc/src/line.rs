//! One network's line to its wanted state: what is wanted of it, what stands, what failed, and (see
//! [`crate::pure::schedule`]) when to look again. When the view drops it, it is due, and ends when all of it is gone.
//!
//! One that is broken holds up no other: its own ports are not in service, and say why.

use crate::io::firewall;
use crate::io::network::{self, Network, NetworkError};
use crate::io::observe::{Memory, observe};
use crate::io::ports;
use crate::keeper::Keeper;
use crate::pure::firewall::Firewall;
use crate::pure::names::{DeviceName, Names, NetworkId};
use crate::pure::plan::{Seen, Step, plan};
use crate::pure::rules::Logged;
use crate::pure::schedule::{Outcome, Schedule};
use crate::pure::wanted::{Port, WantedNetwork};
use crate::pure::zone::Zone;
use model::id::VmId;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;
use tracing::{info, warn};

/// Plans for one look. The first does all; a second is for what a step found changed under it.
const MAX_PASSES: usize = 3;

/// One network.
#[derive(Debug)]
pub struct Line {
    logged: Logged,
    /// What it must be; none when it must not be.
    wanted: Option<WantedNetwork>,
    zone: Arc<Zone>,
    firewall: Arc<Firewall>,
    vms: Arc<HashMap<Ipv4Addr, VmId>>,
    network: Option<Network>,
    /// Its frame itself may be broken: the next look ensures it anew.
    suspect: bool,
    memory: Memory,
    /// Ports whose last step failed, and why.
    broken: BTreeMap<DeviceName, String>,
    /// Why the last look did not come to its end.
    failure: Option<String>,
    schedule: Schedule,
}

impl Line {
    /// Of a network of which something may be there, and which nobody wants so far.
    #[must_use]
    pub fn unwanted(logged: Logged, now: Instant) -> Self {
        Self {
            logged,
            wanted: None,
            zone: Arc::default(),
            firewall: Arc::default(),
            vms: Arc::default(),
            network: None,
            suspect: false,
            memory: Memory::default(),
            broken: BTreeMap::new(),
            failure: None,
            schedule: Schedule::new(now),
        }
    }

    /// Follows the view. What changes is due.
    pub fn follow(&mut self, id: &NetworkId, wanted: Option<&WantedNetwork>, now: Instant) {
        if self.wanted.as_ref() == wanted {
            return;
        }
        self.wanted = wanted.cloned();
        self.zone = match (id, wanted) {
            (NetworkId::Private(_), Some(wanted)) => {
                Arc::new(Zone::private(wanted.range, wanted.ports.values()))
            }
            (NetworkId::Default, _) | (_, None) => Arc::default(),
        };
        self.firewall = Arc::new(wanted.map(|wanted| wanted.firewall.clone()).unwrap_or_default());
        let ports = wanted.into_iter().flat_map(|wanted| wanted.ports.values());
        self.vms = Arc::new(ports.map(|port| (port.ipv4, port.vm.clone())).collect());
        self.hurry(now);
    }

    /// Makes it due.
    pub fn hurry(&mut self, now: Instant) {
        self.schedule.hurry(now);
    }

    /// When to look.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.schedule.due()
    }

    /// What stands and is to stand; none before the first look.
    #[must_use]
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref().filter(|_| self.wanted.is_some())
    }

    /// Its names.
    #[must_use]
    pub fn zone(&self) -> &Arc<Zone> {
        &self.zone
    }

    /// Why the last look did not come to its end, if so.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Its firewall, as it is wanted.
    #[must_use]
    pub fn firewall(&self) -> &Arc<Firewall> {
        &self.firewall
    }

    /// The VMs of its wanted ports, by address.
    #[must_use]
    pub fn vms(&self) -> &Arc<HashMap<Ipv4Addr, VmId>> {
        &self.vms
    }

    /// Its wanted ports.
    pub fn ports(&self) -> impl Iterator<Item = &Port> {
        self.wanted.iter().flat_map(|wanted| wanted.ports.values())
    }

    /// Why a wanted port is not in service; none when it is, or when nothing is known against it yet.
    #[must_use]
    pub fn complaint(&self, port: &Port) -> Option<&str> {
        let broken = self.broken.get(&port.device).map(String::as_str);
        broken.or_else(|| self.failure().filter(|_| !self.guarded(port)))
    }

    /// Whether a wanted port is in service.
    #[must_use]
    pub fn serves(&self, port: &Port) -> bool {
        self.guarded(port) && !self.broken.contains_key(&port.device)
    }

    fn guarded(&self, port: &Port) -> bool {
        self.memory.filters.get(&port.device) == Some(&(port.mac, port.ipv4))
    }

    /// Brings the kernel to what is wanted, and says when to look again. False when nothing is wanted and nothing is left.
    pub async fn look(&mut self, names: &Names, id: &NetworkId, keeper: &mut Keeper) -> bool {
        let outcome = match self.wanted.clone() {
            Some(wanted) => self.complete(names, id, keeper, &wanted).await,
            None => {
                // Should it be wanted again before all of it is gone, nothing that is known of it holds.
                (self.network, self.memory) = (None, Memory::default());
                network::remove(names, id).await
            }
        };
        if self.wanted.is_none() && outcome.is_ok() {
            info!(network = %id, "removed");
            return false;
        }
        let waits = |port: &Port| port.asleep && keeper.queues(&port.device).is_none();
        let ended = match &outcome {
            Ok(()) if self.ports().any(waits) => Outcome::SleeperWithoutQueues,
            Ok(()) => Outcome::Good,
            Err(_) => Outcome::Failed,
        };
        let again_in = self.schedule.end(Instant::now(), ended);
        if let Err(error) = outcome {
            warn!(network = %id, %error, ?again_in, "the network is not as wanted");
        }
        true
    }

    async fn complete(
        &mut self,
        names: &Names,
        id: &NetworkId,
        keeper: &mut Keeper,
        wanted: &WantedNetwork,
    ) -> Result<(), NetworkError> {
        if self.schedule.begin(Instant::now()) {
            self.memory.chains = None;
        }
        let outcome = self.frame_and_ports(names, id, keeper, wanted).await;
        self.failure = outcome.as_ref().err().map(NetworkError::to_string);
        if outcome.is_err() {
            self.memory.chains = None;
            self.suspect = true;
        }
        outcome?.map_or(Ok(()), Err)
    }

    async fn frame_and_ports(
        &mut self,
        names: &Names,
        id: &NetworkId,
        keeper: &mut Keeper,
        wanted: &WantedNetwork,
    ) -> Result<Option<NetworkError>, NetworkError> {
        let network = match &self.network {
            Some(network) if network.range == wanted.range && !self.suspect => network.clone(),
            Some(_) | None => {
                let network = Network::ensure(names, id, wanted.range, self.logged).await?;
                self.suspect = false;
                self.memory.firewall = None;
                self.network.insert(network).clone()
            }
        };
        if matches!(id, NetworkId::Private(_)) {
            // Before any port that it is to guard.
            firewall::ensure(&network, &mut self.memory.firewall, &wanted.firewall, self.logged).await?;
        }
        self.reconcile(&network, keeper, id, wanted).await
    }

    /// Plans and executes until nothing is left to do. A step that fails holds up its own port alone; the last such
    /// failure is the result.
    async fn reconcile(
        &mut self,
        network: &Network,
        keeper: &mut Keeper,
        id: &NetworkId,
        wanted: &WantedNetwork,
    ) -> Result<Option<NetworkError>, NetworkError> {
        let mut failed = None;
        for _ in 0..MAX_PASSES {
            let seen = observe(network, &mut self.memory, keeper).await?;
            let_go_of_the_gone(keeper, wanted, &seen).await;
            let steps = plan(wanted, &seen);
            self.broken.clear();
            failed = None;
            if steps.is_empty() {
                break;
            }
            for step in &steps {
                let Some(step) = self.still_possible(step) else { continue };
                if let Err(error) = self.execute(network, keeper, wanted, &step).await {
                    warn!(network = %id, ?step, %error, "a step failed");
                    let why = error.to_string();
                    self.broken
                        .extend(devices(&step).into_iter().map(|device| (device.clone(), why.clone())));
                    failed = Some(error);
                }
            }
            info!(network = %id, steps = steps.len(), failed = self.broken.len(), "reconciled");
            if failed.is_some() {
                break;
            }
        }
        Ok(failed)
    }

    async fn execute(
        &mut self,
        network: &Network,
        keeper: &mut Keeper,
        wanted: &WantedNetwork,
        step: &Step,
    ) -> Result<(), NetworkError> {
        if let Step::RemoveTap(device) = step
            && wanted.ports.contains_key(device)
        {
            // It is made anew. Queues of one that is not wanted here may be another network's by now.
            keeper.forget(device).await;
        }
        ports::execute(network, &mut self.memory, keeper, step).await
    }

    /// The step without the ports of which an earlier step failed; none when nothing is left of it.
    fn still_possible(&self, step: &Step) -> Option<Step> {
        if let Step::FilterPorts(ports) = step {
            let good = ports.iter().filter(|port| !self.broken.contains_key(&port.device));
            let good: Vec<_> = good.cloned().collect();
            return (!good.is_empty()).then_some(Step::FilterPorts(good));
        }
        let broken = devices(step).iter().any(|device| self.broken.contains_key(*device));
        (!broken).then(|| step.clone())
    }
}

/// Queues of devices that somebody removed are good for nothing.
async fn let_go_of_the_gone(keeper: &mut Keeper, wanted: &WantedNetwork, seen: &Seen) {
    let gone = wanted.ports.keys().filter(|device| !seen.taps.contains_key(*device));
    for device in gone {
        if keeper.queues(device).is_some() {
            keeper.forget(device).await;
        }
    }
}

/// Whose step it is.
fn devices(step: &Step) -> Vec<&DeviceName> {
    match step {
        Step::CreateTap(port)
        | Step::AttachTap(port)
        | Step::DressTap(port)
        | Step::AddRoute(port)
        | Step::AddNeighbour(port) => vec![&port.device],
        Step::FilterPorts(ports) => ports.iter().map(|port| &port.device).collect(),
        Step::RaiseTap(device) | Step::RemoveTap(device) => vec![device],
        // Their ports are gone, and nothing of theirs comes after.
        Step::DropFilters(_) | Step::ForgetFlows(_) => Vec::new(),
    }
}
