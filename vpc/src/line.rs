//! One network's line to its wanted state: what is wanted of it, what stands, what failed, and (see
//! [`crate::pure::schedule`]) when to look again. When the view drops it, it is due, and ends when all of it is gone.
//!
//! One that is broken holds up no other: its own ports are not in service, and say why.

use crate::io::firewall;
use crate::io::join::{JoinError, Target};
use crate::io::network::{self, Network, NetworkError};
use crate::io::nft::{self, Where};
use crate::io::observe::{Memory, observe};
use crate::io::ports;
use crate::io::uplink::HostTable;
use crate::keeper::Keeper;
use crate::pure::firewall::Firewall;
use crate::pure::names::{DeviceName, Names, NetworkId};
use crate::pure::plan::{self, JoinStep, Seen, Step, plan};
use crate::pure::rules::{Logged, with_log};
use crate::pure::schedule::{Outcome, Schedule};
use crate::pure::sides::sides;
use crate::pure::wanted::{Port, Service, WantedNetwork};
use crate::pure::ways::{self, End, Peers, WayStep};
use crate::pure::zone::Zone;
use model::id::{ServiceId, VmId, VpcId};
use rustix::fd::OwnedFd;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;
use tracing::{debug, info, warn};

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
    /// Peers that the last look found to have something to do, and for which link, if this network lacks it.
    calls: Vec<(VpcId, Option<DeviceName>)>,
    /// There is a device of the VPN clients, as far as the last look saw.
    clients: bool,
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
            calls: Vec::new(),
            clients: false,
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
            (NetworkId::Private(_), Some(wanted)) => Arc::new(Zone::private(wanted)),
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

    /// What is wanted of it.
    #[must_use]
    pub fn wanted(&self) -> Option<&WantedNetwork> {
        self.wanted.as_ref()
    }

    /// Whether its VPN clients' device is in service.
    #[must_use]
    pub fn has_clients(&self) -> bool {
        let device = DeviceName::clients();
        let wanted = self.wanted.as_ref().is_some_and(|wanted| wanted.ways.contains_key(&device));
        wanted && self.clients && !self.broken.contains_key(&device)
    }

    /// Networks that it is to reach.
    pub fn peers(&self) -> impl Iterator<Item = &VpcId> {
        let ways = self.wanted.iter().flat_map(|wanted| wanted.ways.values());
        ways.filter_map(|way| match &way.end {
            End::Peer { vpc, .. } => Some(vpc),
            End::Clients { .. } => None,
        })
    }

    /// Whether it is this network that makes the link to a peer.
    #[must_use]
    pub fn makes(&self, device: &DeviceName) -> bool {
        let way = self.wanted.as_ref().and_then(|wanted| wanted.ways.get(device));
        way.is_some_and(|way| matches!(way.end, End::Peer { makes: true, .. }))
    }

    /// Peers that have something to do since the last look: the device that this network lacks, if so.
    pub fn take_calls(&mut self) -> Vec<(VpcId, Option<DeviceName>)> {
        std::mem::take(&mut self.calls)
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

    /// Makes or completes the network's frame, which needs nothing of the others, if it does not stand. What fails is left
    /// to the next look.
    pub async fn raise(&mut self, place: (&Names, &HostTable), id: &NetworkId) {
        if let Some(wanted) = self.wanted.clone()
            && (self.network.is_none() || self.suspect)
            && let Err(error) = self.frame(place, id, &wanted).await
        {
            debug!(network = %id, %error, "tried again at the look");
        }
    }

    /// Brings the kernel to what is wanted, and says when to look again. False when nothing is wanted and nothing is left.
    pub async fn look(
        &mut self,
        place: (&Names, &HostTable),
        id: &NetworkId,
        keeper: &mut Keeper,
        peers: &Peers,
    ) -> bool {
        let outcome = match self.wanted.clone() {
            Some(wanted) => self.complete(place, id, keeper, (&wanted, peers)).await,
            None => {
                // Should it be wanted again before all of it is gone, nothing that is known of it holds.
                (self.network, self.memory) = (None, Memory::default());
                network::remove(place, id).await
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
        place: (&Names, &HostTable),
        id: &NetworkId,
        keeper: &mut Keeper,
        (wanted, peers): (&WantedNetwork, &Peers),
    ) -> Result<(), NetworkError> {
        if self.schedule.begin(Instant::now()) {
            self.memory.chains = None;
        }
        let outcome = match self.frame(place, id, wanted).await {
            Ok(network) => self.reconcile((place.0, &network), keeper, id, (wanted, peers)).await,
            Err(error) => Err(error),
        };
        self.failure = outcome.as_ref().err().map(NetworkError::to_string);
        if outcome.is_err() {
            self.memory.chains = None;
            self.suspect = true;
        }
        outcome?.map_or(Ok(()), Err)
    }

    async fn frame(
        &mut self,
        place: (&Names, &HostTable),
        id: &NetworkId,
        wanted: &WantedNetwork,
    ) -> Result<Network, NetworkError> {
        let text = with_log(sides(wanted.range, wanted.ways.values(), wanted.hidden_behind), self.logged);
        let network = match &self.network {
            Some(network) if network.range == wanted.range && network.ula == wanted.ula && !self.suspect => {
                if self.memory.sides.as_ref() != Some(&text) {
                    nft::apply(Where::Network(&network.inside), text.clone()).await?;
                }
                network.clone()
            }
            Some(_) | None => {
                let ranges = (wanted.range, wanted.ula);
                let network = Network::ensure(place, id, ranges, &text, self.logged).await?;
                self.suspect = false;
                self.memory.firewall = None;
                self.network.insert(network).clone()
            }
        };
        self.memory.sides = Some(text);
        if matches!(id, NetworkId::Private(_)) {
            // Before any port that it is to guard.
            firewall::ensure(&network, &mut self.memory.firewall, &wanted.firewall, self.logged).await?;
        }
        Ok(network)
    }

    /// Plans and executes until nothing is left to do. A step that fails holds up its own device alone; the last such
    /// failure is the result.
    async fn reconcile(
        &mut self,
        (names, network): (&Names, &Network),
        keeper: &mut Keeper,
        id: &NetworkId,
        (wanted, peers): (&WantedNetwork, &Peers),
    ) -> Result<Option<NetworkError>, NetworkError> {
        let mut failed = None;
        let mut peers = peers.clone();
        for _ in 0..MAX_PASSES {
            let seen = observe(network, &mut self.memory, keeper).await?;
            let_go_of_the_gone(keeper, wanted, &seen).await;
            self.clients = seen.ways.contains_key(&DeviceName::clients());
            let lacking = ways::waits_for(&wanted.ways, &seen.ways);
            self.calls.extend(lacking.into_iter().map(|(vpc, device)| (vpc.clone(), Some(device.clone()))));
            let mut steps = plan(wanted, &seen);
            steps.extend(ways::plan(&wanted.ways, &seen.ways, &peers).into_iter().map(Step::Way));
            self.broken.clear();
            failed = None;
            if steps.is_empty() {
                break;
            }
            for step in &steps {
                let Some(step) = self.still_possible(step) else { continue };
                if let Err(error) = self.execute((names, network), keeper, wanted, &step).await {
                    warn!(network = %id, ?step, %error, "a step failed");
                    let why = error.to_string();
                    self.broken
                        .extend(devices(&step).into_iter().map(|device| (device.clone(), why.clone())));
                    failed = Some(error);
                }
            }
            // Once is enough.
            peers.lacking.clear();
            info!(network = %id, steps = steps.len(), failed = self.broken.len(), "reconciled");
            if failed.is_some() {
                break;
            }
        }
        Ok(failed)
    }

    async fn execute(
        &mut self,
        (names, network): (&Names, &Network),
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
        ports::execute(names, network, &mut self.memory, keeper, step).await?;
        if let Step::Way(WayStep::Link(way)) = step
            && let End::Peer { vpc, .. } = &way.end
        {
            self.calls.push((vpc.clone(), None));
        }
        Ok(())
    }

    /// Has a service join, or join anew. After an error nothing of it is there.
    ///
    /// # Errors
    /// What a person reads.
    pub async fn join(
        &mut self,
        (names, id): (&Names, &NetworkId),
        keeper: &mut Keeper,
        service: &ServiceId,
        namespace: OwnedFd,
    ) -> Result<(), String> {
        let absent = || format!("the network of service {service} does not stand");
        let (Some(wanted), Some(network)) = (self.wanted.clone(), self.network.clone()) else {
            return Err(absent());
        };
        if self.suspect || self.memory.sides.is_none() {
            let why = self.failure().unwrap_or("it is being repaired").to_owned();
            return Err(format!("{}: {why}", absent()));
        }
        let NetworkId::Private(vpc) = id else { return Err(absent()) };
        let service = wanted.services.get(&DeviceName::of_service(service)).ok_or_else(absent)?;
        let entered = Target::enter(namespace, names.service_end(vpc), &wanted).await;
        let target =
            entered.map_err(|error| format!("the service's namespace cannot be entered: {error}"))?;
        let joined = self.make_member((names, &network), keeper, service, &target).await;
        if let Err(error) = &joined {
            warn!(network = %id, service = %service.id, %error, "a service did not join");
            self.memory.chains = None;
            if let Err(error) = self.remove_member((names, &network), keeper, service).await {
                warn!(network = %id, service = %service.id, %error, "what is left of it goes with the next look");
                self.hurry(Instant::now());
            }
        } else {
            info!(network = %id, service = %service.id, "a service joined");
        }
        joined.map_err(|error| error.to_string())
    }

    async fn make_member(
        &mut self,
        (names, network): (&Names, &Network),
        keeper: &mut Keeper,
        service: &Service,
        target: &Target,
    ) -> Result<(), JoinError> {
        self.remove_member((names, network), keeper, service).await?;
        target.check().await?;
        for step in plan::join(service) {
            match step {
                JoinStep::Link => {
                    self.memory.fresh.insert(service.seat.device.clone());
                    target.link(network, service).await?;
                }
                JoinStep::Plain(step) => {
                    ports::execute(names, network, &mut self.memory, keeper, &step).await?;
                }
                JoinStep::Furnish => {
                    target.furnish(service).await?;
                    ports::speaks(network, &service.seat).await?;
                }
            }
        }
        self.broken.remove(&service.seat.device);
        Ok(())
    }

    async fn remove_member(
        &mut self,
        (names, network): (&Names, &Network),
        keeper: &mut Keeper,
        service: &Service,
    ) -> Result<(), NetworkError> {
        let seen = observe(network, &mut self.memory, keeper).await?;
        for step in plan::leave(service, &seen) {
            ports::execute(names, network, &mut self.memory, keeper, &step).await?;
        }
        Ok(())
    }

    /// The step without the members of which an earlier step failed; none when nothing is left of it.
    fn still_possible(&self, step: &Step) -> Option<Step> {
        if let Step::FilterPorts(seats) = step {
            let good = seats.iter().filter(|seat| !self.broken.contains_key(&seat.device));
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
        Step::CreateTap(port) | Step::AttachTap(port) => vec![&port.device],
        Step::FilterPorts(seats) => seats.iter().map(|seat| &seat.device).collect(),
        Step::RaiseTap(device)
        | Step::SpeakIpv6(device)
        | Step::AddRoute(device, _)
        | Step::AddNeighbour(device, _, _)
        | Step::RemoveTap(device)
        | Step::DressTap(device, _)
        | Step::Sign(device, _) => vec![device],
        Step::Way(step) => vec![step.device()],
        // Their ports are gone, and nothing of theirs comes after.
        Step::DropFilters(_) | Step::ForgetFlows(_) => Vec::new(),
    }
}
