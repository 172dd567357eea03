//! The switch, as requests see it: a table of what stands, swapped as a whole by the task that owns all changes (see
//! [`crate::keel`]). A port leaves the table before it leaves the kernel, and enters it after.

use crate::io::namespace::Inside;
use crate::io::observe::Queues;
use crate::pure::names::NetworkId;
use crate::pure::wanted::Port;
use crate::pure::zone::Zone;
use crate::wakes::Wakes;
use arc_swap::ArcSwap;
use model::id::{Generation, VmId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};
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
}

/// A network that is in service.
#[derive(Clone, Debug)]
pub struct LiveNetwork {
    /// Where its sockets are made.
    pub sockets: Inside,
    /// Its ports' addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Its names.
    pub zone: Arc<Zone>,
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
}

/// Networks that somebody wants looked at.
#[derive(Debug, Default)]
pub struct Nudges {
    networks: Mutex<BTreeSet<NetworkId>>,
    told: Notify,
}

impl Nudges {
    /// Asks for a look.
    pub fn ask(&self, network: &NetworkId) {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).insert(network.clone());
        self.told.notify_one();
    }

    /// Those that were asked for since the last call.
    #[must_use]
    pub fn take(&self) -> BTreeSet<NetworkId> {
        std::mem::take(&mut *self.networks.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves when a look was asked for.
    pub async fn asked(&self) {
        self.told.notified().await;
    }
}

/// The switch, as requests see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Switch {
    table: Arc<ArcSwap<Table>>,
    /// The newest decision that is complete in the kernel, or as complete as the kernel lets it be.
    applied: watch::Receiver<Option<Generation>>,
    nudges: Arc<Nudges>,
    wakes: Wakes,
}

impl Switch {
    /// The view of these, which the owner of all changes has as well.
    #[must_use]
    pub fn new(
        table: Arc<ArcSwap<Table>>,
        applied: watch::Receiver<Option<Generation>>,
        nudges: Arc<Nudges>,
        wakes: Wakes,
    ) -> Self {
        Self { table, applied, nudges, wakes }
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

    /// Has a network looked at again now, and waits until that is done; false when it is not after `patience`.
    pub async fn look_again(&self, network: &NetworkId, patience: Duration) -> bool {
        let mut applied = self.applied.clone();
        applied.mark_unchanged();
        self.nudges.ask(network);
        matches!(timeout(patience, applied.changed()).await, Ok(Ok(())))
    }
}
