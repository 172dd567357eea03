//! The switch, as requests see it: a table of what stands, swapped as a whole by the task that owns all changes (see
//! [`crate::keel`]). A port leaves the table before it leaves the kernel, and enters it after.

use crate::client::WAKE_WAIT;
use crate::io::namespace::Inside;
use crate::io::observe::Queues;
use crate::pure::firewall::Firewall;
use crate::pure::names::NetworkId;
use crate::pure::wanted::Port;
use crate::pure::zone::Zone;
use crate::wakes::Wakes;
use arc_swap::ArcSwap;
use model::id::{Generation, ServiceId, VmId};
use model::net::{Ipv4Cidr, Ula};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

/// A port that is in service.
#[derive(Clone, Debug)]
pub struct LivePort {
    /// What it is.
    pub port: Port,
    /// In which network.
    pub network: NetworkId,
    /// Where sockets to it are made.
    pub sockets: Inside,
    /// Its TAP's queues; none while only the VM's process has them.
    pub queues: Option<Queues>,
    /// When it was first seen to sleep no longer, if it was seen to sleep.
    pub woke: Option<Instant>,
}

impl LivePort {
    /// Until when a VM that sleeps or has slept has time to answer who begins to dial it now: one that woke reads its
    /// memory from a disk, and answers nobody until then. None for one that is not known to have slept.
    #[must_use]
    pub fn wakes_until(&self, now: Instant) -> Option<Instant> {
        let since = if self.port.asleep { Some(now) } else { self.woke.map(|woke| woke.min(now)) };
        since.map(|since| since + WAKE_WAIT)
    }
}

/// When a port woke, that stands now as it is wanted, given what it was before.
#[must_use]
pub fn woke(before: Option<&LivePort>, port: &Port, now: Instant) -> Option<Instant> {
    let before = before.filter(|_| !port.asleep)?;
    if before.port.asleep { Some(now) } else { before.woke }
}

/// A network that is in service.
#[derive(Clone, Debug)]
pub struct LiveNetwork {
    /// Where its sockets are made.
    pub sockets: Inside,
    /// Its members' addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Its names.
    pub zone: Arc<Zone>,
    /// There is a TUN for its VPN clients.
    pub clients: bool,
    /// Where its addresses come from.
    pub range: Ipv4Cidr,
    /// The same for IPv6; none when it speaks none.
    pub ula: Option<Ula>,
    /// Its VMs by address. The same one as long as nothing of the network changes.
    pub vms: Arc<HashMap<Ipv4Addr, VmId>>,
    /// Its firewall.
    pub firewall: Arc<Firewall>,
}

/// What requests are answered from.
#[derive(Debug, Default)]
pub struct Table {
    /// Which decision it is.
    pub generation: Generation,
    /// Ports in service, of all networks: a VM has one.
    pub ports: HashMap<VmId, Arc<LivePort>>,
    /// Ports that could not be made or changed, and why.
    pub broken: HashMap<VmId, String>,
    /// Networks in service.
    pub networks: BTreeMap<NetworkId, LiveNetwork>,
    /// Services that may join, and where.
    pub services: HashMap<ServiceId, NetworkId>,
}

/// How far the owner of all changes is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The newest decision that is complete in the kernel, or as complete as the kernel lets it be.
    pub in_force: Option<Generation>,
    /// All looks up to this one that were asked for are done.
    pub looked: u64,
}

/// Services that wait to join at once. Each holds a descriptor and takes some tens of milliseconds.
const MAX_JOINS: usize = 64;

/// A service that waits to join.
#[derive(Debug)]
pub struct Join {
    /// Which one.
    pub service: ServiceId,
    /// Into which network.
    pub network: NetworkId,
    /// Where it lives.
    pub namespace: OwnedFd,
    /// Who waits for the outcome, and is told why not.
    pub answer: oneshot::Sender<Result<(), String>>,
}

/// Networks that somebody wants looked at, and services that want to join.
#[derive(Debug, Default)]
pub struct Nudges {
    asked: Mutex<Asked>,
    told: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    last: u64,
    networks: BTreeSet<NetworkId>,
    joins: Vec<Join>,
}

impl Nudges {
    /// Hands a service over that wants to join. False when too many wait.
    #[must_use]
    pub fn join(&self, join: Join) -> bool {
        let mut asked = self.lock();
        if asked.joins.len() >= MAX_JOINS {
            return false;
        }
        asked.joins.push(join);
        self.told.notify_one();
        true
    }

    /// Those that were handed over since the last call.
    #[must_use]
    pub fn take_joins(&self) -> Vec<Join> {
        std::mem::take(&mut self.lock().joins)
    }

    /// Asks for a look. Its number: it is done when [`Progress::looked`] has come so far.
    #[must_use]
    pub fn ask(&self, network: &NetworkId) -> u64 {
        let mut asked = self.lock();
        asked.last += 1;
        asked.networks.insert(network.clone());
        self.told.notify_one();
        asked.last
    }

    /// Those that were asked for since the last call, and the number of the last.
    #[must_use]
    pub fn take(&self) -> (BTreeSet<NetworkId>, u64) {
        let mut asked = self.lock();
        (std::mem::take(&mut asked.networks), asked.last)
    }

    /// Resolves when a look was asked for, or a join.
    pub async fn asked(&self) {
        self.told.notified().await;
    }

    /// No code under this lock can panic half-way.
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The switch, as requests see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Switch {
    table: Arc<ArcSwap<Table>>,
    progress: watch::Receiver<Progress>,
    nudges: Arc<Nudges>,
    wakes: Wakes,
}

impl Switch {
    /// The view of these, which the owner of all changes has as well.
    #[must_use]
    pub fn new(
        table: Arc<ArcSwap<Table>>,
        progress: watch::Receiver<Progress>,
        nudges: Arc<Nudges>,
        wakes: Wakes,
    ) -> Self {
        Self { table, progress, nudges, wakes }
    }

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

    /// A receiver that is told of each change of the table from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Progress> {
        let mut changes = self.progress.clone();
        changes.mark_unchanged();
        changes
    }

    /// Waits until a decision is in force; false when it is not after `patience`.
    pub async fn reached(&self, generation: Generation, patience: Duration) -> bool {
        self.wait_for(patience, |progress| progress.in_force.is_some_and(|now| now >= generation)).await
    }

    /// Has a network looked at again now, and waits until that is done; false when it is not after `patience`.
    pub async fn look_again(&self, network: &NetworkId, patience: Duration) -> bool {
        let number = self.nudges.ask(network);
        self.wait_for(patience, |progress| progress.looked >= number).await
    }

    /// Has a service join its network, and waits for the outcome; none when it does not come within `patience`, or too
    /// many wait. Given up, it may happen all the same.
    pub async fn join(
        &self,
        service: &ServiceId,
        network: &NetworkId,
        namespace: OwnedFd,
        patience: Duration,
    ) -> Option<Result<(), String>> {
        let (answer, outcome) = oneshot::channel();
        let (service, network) = (service.clone(), network.clone());
        if !self.nudges.join(Join { service, network, namespace, answer }) {
            return None;
        }
        timeout(patience, outcome).await.ok()?.ok()
    }

    /// Waits until the table is so; false when it is not after `patience`.
    pub async fn becomes(&self, patience: Duration, so: impl Fn(&Table) -> bool) -> bool {
        let mut changes = self.progress.clone();
        let becoming = async {
            loop {
                changes.mark_unchanged();
                if so(&self.table.load()) {
                    return true;
                }
                if changes.changed().await.is_err() {
                    return false;
                }
            }
        };
        timeout(patience, becoming).await.unwrap_or(false)
    }

    async fn wait_for(&self, patience: Duration, done: impl FnMut(&Progress) -> bool) -> bool {
        let mut progress = self.progress.clone();
        matches!(timeout(patience, progress.wait_for(done)).await, Ok(Ok(_)))
    }
}
