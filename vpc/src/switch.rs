//! The switch: follows the view, brings the kernel to it, and holds the table from which requests are answered.
//!
//! One task owns all changes. Requests read an immutable table that is swapped when a change is complete; a port
//! leaves the table before it leaves the kernel, and enters it after.

use crate::io::namespace::Inside;
use crate::io::network::{Network, NetworkError};
use crate::io::observe::{Memory, Queues, observe};
use crate::io::ports;
use crate::keeper::Keeper;
use crate::pure::names::{DeviceName, Names};
use crate::pure::plan::{Seen, Step, plan};
use crate::pure::wanted::{Port, Wanted};
use crate::wakes::Wakes;
use arc_swap::ArcSwap;
use feed::subscribe::Feed;
use model::id::{Generation, VmId};
use model::view::VpcView;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tracing::{info, warn};

/// Time after which the kernel is looked at again though nothing was announced: somebody may have changed it.
const AUDIT: Duration = Duration::from_secs(30);
/// Time after which the kernel is looked at again when a sleeping VM's process still has the TAP and we do not: its end
/// is no event to us, and until new queues are open frames for the VM are lost. Senders try again after a second.
const LOOK_FOR_SLEEPERS: Duration = Duration::from_millis(200);
/// Time after which a failed change is tried again; doubled each time, up to [`AUDIT`].
const RETRY: Duration = Duration::from_secs(1);
/// Plans for one view. The first does all; a second is for what a step found changed under it.
const MAX_PASSES: usize = 3;

/// A port that is in service.
#[derive(Clone, Debug)]
pub struct LivePort {
    /// What it is.
    pub port: Port,
    /// Its TAP's queues; none while only the VM's process has them.
    pub queues: Option<Queues>,
}

/// What requests are answered from.
#[derive(Debug, Default)]
pub struct Table {
    /// Which decision it is.
    pub generation: Generation,
    /// Ports in service.
    pub ports: HashMap<VmId, Arc<LivePort>>,
    /// Ports that could not be made or changed, and why.
    pub broken: HashMap<VmId, String>,
    /// The ports' addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Where sockets are made; none before the network stands.
    pub sockets: Option<Inside>,
}

/// The switch, as requests see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Switch {
    table: Arc<ArcSwap<Table>>,
    /// The newest decision that is complete in the kernel, or as complete as the kernel lets it be.
    applied: watch::Receiver<Option<Generation>>,
    nudge: Arc<Notify>,
    wakes: Wakes,
}

impl Switch {
    /// The table in force.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Who tells of packets for sleeping VMs.
    #[must_use]
    pub fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// A receiver that is told of each completed change of the table from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Generation>> {
        let mut changes = self.applied.clone();
        changes.mark_unchanged();
        changes
    }

    /// Waits until a decision is in force; false when it is not after `patience`.
    pub async fn reached(&self, generation: Generation, patience: Duration) -> bool {
        let mut applied = self.applied.clone();
        let waited =
            timeout(patience, applied.wait_for(|now| now.is_some_and(|now| now >= generation))).await;
        matches!(waited, Ok(Ok(_)))
    }

    /// Has the kernel looked at again now, and waits until that is done; false when it is not after `patience`.
    pub async fn look_again(&self, patience: Duration) -> bool {
        let mut applied = self.applied.clone();
        applied.mark_unchanged();
        self.nudge.notify_one();
        matches!(timeout(patience, applied.changed()).await, Ok(Ok(())))
    }

    /// Resolves when there is a network in which sockets can be made.
    pub async fn network(&self) -> Option<Inside> {
        let mut applied = self.applied.clone();
        loop {
            if let Some(sockets) = &self.table.load().sockets {
                return Some(sockets.clone());
            }
            applied.changed().await.ok()?;
        }
    }
}

impl Switch {
    /// Resolves when sockets are made elsewhere than in `sockets`.
    pub async fn moved(&self, sockets: &Inside) {
        let mut applied = self.applied.clone();
        while self.table.load().sockets.as_ref().is_some_and(|now| now.same(sockets)) {
            if applied.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The task that owns all changes.
#[derive(Debug)]
pub struct Keel {
    names: Names,
    feed: Feed<VpcView>,
    table: Arc<ArcSwap<Table>>,
    applied: watch::Sender<Option<Generation>>,
    nudge: Arc<Notify>,
    wakes: Wakes,
    network: Option<Network>,
    memory: Memory,
    keeper: Keeper,
    /// Ports whose last step failed, and why.
    broken: BTreeMap<DeviceName, String>,
    reported: Vec<(VmId, crate::pure::wanted::Rejection)>,
}

/// Makes both halves. `held` are queues that an earlier process left with the keeper.
#[must_use]
pub fn new(
    names: Names,
    feed: Feed<VpcView>,
    keeper: Keeper,
    held: HashMap<DeviceName, Queues>,
) -> (Switch, Keel) {
    let table = Arc::new(ArcSwap::from_pointee(Table::default()));
    let (applied, watching) = watch::channel(None);
    let nudge = Arc::new(Notify::new());
    let wakes = Wakes::default();
    let switch = Switch {
        table: Arc::clone(&table),
        applied: watching,
        nudge: Arc::clone(&nudge),
        wakes: wakes.clone(),
    };
    let memory = Memory { queues: held, ..Memory::default() };
    let keel = Keel {
        names,
        feed,
        table,
        applied,
        nudge,
        wakes,
        network: None,
        memory,
        keeper,
        broken: BTreeMap::new(),
        reported: Vec::new(),
    };
    (switch, keel)
}

impl Keel {
    /// Follows the view until the process ends.
    pub async fn run(mut self) {
        let mut changes = self.feed.changes();
        let mut retry = RETRY;
        loop {
            // Marks the newest as seen, so that only a later one wakes us.
            changes.borrow_and_update();
            let pause = match self.turn().await {
                Ok(()) => {
                    retry = RETRY;
                    if self.sleeper_without_queues() { LOOK_FOR_SLEEPERS } else { AUDIT }
                }
                Err(error) => {
                    warn!(%error, again_in = ?retry, "the network is not as wanted");
                    let pause = retry;
                    retry = (retry * 2).min(AUDIT);
                    pause
                }
            };
            tokio::select! {
                // The feed lives as long as we do.
                changed = changes.changed() => if changed.is_err() { return },
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(pause) => if pause != LOOK_FOR_SLEEPERS {
                    self.memory.chains = None;
                },
            }
        }
    }

    /// Brings the kernel to the view in force.
    async fn turn(&mut self) -> Result<(), NetworkError> {
        let Some(view) = self.feed.current() else { return Ok(()) };
        let wanted = Wanted::of(&view);
        self.report(&wanted);
        // What is no longer wanted is no longer handed out, from now on.
        self.publish(&wanted, self.table.load().generation);
        let network = match &self.network {
            Some(network) if network.range == wanted.network => network.clone(),
            Some(_) | None => {
                let network = Network::ensure(&self.names, wanted.network).await?;
                self.network = Some(network.clone());
                network
            }
        };
        self.keeper.tend(&self.memory.queues).await;
        let outcome = self.reconcile(&network, &wanted).await;
        if outcome.is_err() {
            self.memory.chains = None;
            // Perhaps the frame itself is broken: the next turn looks at it too.
            self.network = None;
        }
        let failed = outcome?;
        self.publish(&wanted, wanted.generation);
        self.applied.send_replace(Some(wanted.generation));
        if let Some(error) = failed { Err(error) } else { Ok(()) }
    }

    /// Plans and executes until nothing is left to do. A step that fails holds up its own port alone; the last such
    /// failure is the result.
    async fn reconcile(
        &mut self,
        network: &Network,
        wanted: &Wanted,
    ) -> Result<Option<NetworkError>, NetworkError> {
        let mut failed = None;
        for _ in 0..MAX_PASSES {
            let seen = observe(network, &mut self.memory).await?;
            self.let_go_of_the_gone(&seen).await;
            let steps = plan(wanted, &seen);
            if steps.is_empty() {
                self.broken.clear();
                return Ok(None);
            }
            failed = None;
            self.broken.clear();
            for step in &steps {
                let Some(step) = self.still_possible(step) else { continue };
                let done = ports::execute(network, &mut self.memory, &mut self.keeper, &step).await;
                if let Err(error) = done {
                    warn!(?step, %error, "a step failed");
                    let why = error.to_string();
                    self.broken
                        .extend(devices(&step).into_iter().map(|device| (device.clone(), why.clone())));
                    failed = Some(error);
                }
            }
            info!(
                generation = wanted.generation.0,
                steps = steps.len(),
                failed = self.broken.len(),
                "reconciled"
            );
            if failed.is_some() {
                break;
            }
        }
        Ok(failed)
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

    /// Queues of devices that somebody removed are good for nothing.
    async fn let_go_of_the_gone(&mut self, seen: &Seen) {
        let held = self.memory.queues.keys();
        let gone: Vec<_> = held.filter(|device| !seen.taps.contains_key(*device)).cloned().collect();
        for device in gone {
            self.memory.queues.remove(&device);
            self.keeper.forget(&device, &self.memory.queues).await;
        }
    }

    /// Swaps the table: the wanted ports as far as they stand.
    fn publish(&self, wanted: &Wanted, generation: Generation) {
        let stands = |port: &Port| {
            let guarded = self.memory.filters.get(&port.device) == Some(&(port.mac, port.ipv4));
            guarded && !self.broken.contains_key(&port.device)
        };
        let broken = wanted.ports.values().filter_map(|port| {
            let why = self.broken.get(&port.device)?;
            Some((port.vm.clone(), why.clone()))
        });
        let broken = broken.collect();
        let live = wanted.ports.values().filter(|port| stands(port)).map(|port| {
            let queues = self.memory.queues.get(&port.device).cloned();
            (port.vm.clone(), Arc::new(LivePort { port: port.clone(), queues }))
        });
        let ports: HashMap<_, _> = live.collect();
        let addresses = ports.values().map(|live| live.port.ipv4).collect();
        let sockets = self.network.as_ref().map(|network| network.sockets.clone());
        self.wakes.follow(wanted.generation, &ports);
        self.table.store(Arc::new(Table { generation, ports, broken, addresses, sockets }));
    }

    fn sleeper_without_queues(&self) -> bool {
        self.table.load().ports.values().any(|live| live.port.asleep && live.queues.is_none())
    }

    fn report(&mut self, wanted: &Wanted) {
        if self.reported == wanted.rejected {
            return;
        }
        for (vm, reason) in &wanted.rejected {
            warn!(%vm, %reason, "port left out");
        }
        self.reported.clone_from(&wanted.rejected);
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
