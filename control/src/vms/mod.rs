//! The VMs: what people ask of them, one operation at a time on each, and what becomes of it when control dies.
//!
//! Each operation runs in a task of its own, so that a caller who goes away does not leave it half done.

mod busy;
mod drive;
mod error;
mod failpoint;
mod follow;
mod fork;
mod guest;
mod members;
mod notes;
pub mod observed;
mod resize;
mod restart;
mod room;
mod sleep;
mod slots;
mod snapshot;
mod wants;

pub use error::OpError;
pub use failpoint::FailPoints;
#[cfg(test)]
pub use failpoint::{Countdown, DieAt};
pub use follow::follow;
pub use fork::MAX_FORKS;
pub use guest::Place;
pub use notes::Notes;
pub use wants::follow as follow_wants;

use crate::figures::{Ledger, Operation};
use crate::publish::Planner;
use crate::pure::phase::{Ask, Event, Fate, Phase, Seen};
use crate::pure::request::{DEFAULT_READY_WAIT, Wanted, WantedFile};
use crate::random;
use crate::ssh::SshKeys;
use crate::store::{Admission, NewVm, Refused, Store, VmRecord};
use busy::Busy;
use drive::Drive;
use model::config::{ControlConfig, VmLimits};
use model::id::{AccountId, RequestId, VmId};
use model::net::Ipv4Cidr;
use observed::Observed;
use restart::Restarts;
use room::Search;
use sleep::Wakes;
use slots::{Slots, Turn};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use vmm::client::{Metadata, VmmClient};

/// For the guest to shut down by itself before it is ended: systemd's own limit for one service is 90 s, but nobody
/// waits so long for an answer.
const STOP_GRACE: Duration = Duration::from_secs(30);
/// Longest wait for the supervisor to come back: it restarts in less than a second.
const SUPERVISOR_WAIT: Duration = Duration::from_secs(10);
/// VMs that were idle while their last command ended, and wait to be put to sleep.
const SLEEPERS: usize = 1024;

/// The VMs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Machines(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    planner: Planner,
    vmm: VmmClient,
    observed: Observed,
    slots: Slots,
    limits: VmLimits,
    network: Ipv4Cidr,
    image: String,
    /// Names this life of control: what another one was making is not made any more.
    me: String,
    busy: Busy,
    wakes: Wakes,
    /// Stopped VMs that are being started for somebody who waits at the SSH front.
    wants: Wakes,
    /// What every guest is told at its metadata address.
    metadata: Metadata,
    restarts: Restarts,
    /// Held while a VM is put to sleep to make room in the host's memory.
    one_makes_room: tokio::sync::Mutex<()>,
    /// Changes with each intent that is written down.
    stored: watch::Sender<u64>,
    failpoints: FailPoints,
    /// What was done, counted.
    ledger: Arc<Ledger>,
}

/// How an operation is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How long the agent may take to report after a boot.
    pub ready_wait: Duration,
    /// From now on; `None`: as it was.
    pub idle_timeout_seconds: Option<Option<u64>>,
    /// From now on; `None`: as it was.
    pub activity_threshold_bytes: Option<u64>,
}

impl Default for Manner {
    fn default() -> Self {
        Self { ready_wait: DEFAULT_READY_WAIT, idle_timeout_seconds: None, activity_threshold_bytes: None }
    }
}

impl Machines {
    /// The VMs of a store.
    #[must_use]
    pub fn new(
        config: &ControlConfig,
        store: Store,
        planner: Planner,
        ssh: &SshKeys,
        failpoints: FailPoints,
    ) -> Self {
        let (sleepers, told) = mpsc::channel(SLEEPERS);
        let machines = Self(Arc::new(Inner {
            store,
            planner,
            vmm: VmmClient::new(config.places.vmm_socket()),
            observed: Observed::default(),
            slots: Slots::default(),
            limits: config.limits,
            network: config.default_network,
            image: config.default_image.clone(),
            me: RequestId::from_random(random::bytes()).to_string(),
            busy: Busy::new(sleepers),
            wakes: Wakes::default(),
            wants: Wakes::default(),
            metadata: Metadata { ssh_keys: vec![ssh.login_line().to_owned()], user_data: None },
            restarts: Restarts::default(),
            one_makes_room: tokio::sync::Mutex::default(),
            stored: watch::Sender::new(0),
            failpoints,
            ledger: Arc::default(),
        }));
        tokio::spawn(machines.clone().put_to_sleep(told));
        machines
    }

    /// What is counted of all that control does.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.0.ledger
    }

    /// Whether the supervisor is there.
    #[must_use]
    pub fn supervisor_is_there(&self) -> bool {
        *self.0.observed.synced().borrow()
    }

    /// A named place at which a test lets control die.
    pub(crate) async fn pass(&self, place: &'static str) {
        self.0.failpoints.pass(|| place.to_owned()).await;
    }

    /// Makes a VM and waits until it is ready. Goes on when the caller goes away. A VM that cannot be made leaves
    /// nothing.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn create(
        &self,
        account: AccountId,
        wanted: Wanted,
        notes: Notes,
    ) -> Result<VmRecord, OpError> {
        let machines = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let made = machines.create_here(account, wanted, &notes).await;
            machines.0.ledger.operation(Operation::Create, made.is_ok(), begun.elapsed());
            made
        })
        .await?
    }

    /// Asks something of a VM and waits until it is done. Goes on when the caller goes away. Returns the VM as it was
    /// last.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn ask(
        &self,
        account: &AccountId,
        vm: &VmId,
        ask: Ask,
        manner: Manner,
    ) -> Result<VmRecord, OpError> {
        let (machines, account, vm) = (self.clone(), account.clone(), vm.clone());
        tokio::spawn(async move { machines.ask_here(&account, &vm, ask, manner).await }).await?
    }

    /// The account's VM.
    ///
    /// # Errors
    /// [`OpError::NoVm`] also when it is another account's.
    pub async fn get(&self, account: &AccountId, vm: &VmId) -> Result<VmRecord, OpError> {
        let record = self.0.store.vm(vm).await?.filter(|record| record.account == *account);
        record.ok_or_else(|| OpError::NoVm(vm.to_string()))
    }

    /// Waits until the VM is down; tells why it is.
    ///
    /// # Errors
    /// [`OpError::NoVm`] when there is none at the beginning.
    pub async fn exited(&self, account: &AccountId, vm: &VmId) -> Result<String, OpError> {
        let mut stored = self.0.stored.subscribe();
        let mut record = Some(self.get(account, vm).await?);
        loop {
            match record {
                None => return Ok("deleted".to_owned()),
                Some(record) if matches!(record.phase, Phase::Stopped | Phase::Lost) => {
                    return Ok(record.exit_status.unwrap_or_else(|| record.phase.as_str().to_owned()));
                }
                Some(_) => {}
            }
            // The sender lives as long as we do.
            if stored.changed().await.is_err() {
                return Err(OpError::NotRunning);
            }
            record = self.0.store.vm(vm).await?;
        }
    }

    async fn create_here(
        &self,
        account: AccountId,
        wanted: Wanted,
        notes: &Notes,
    ) -> Result<VmRecord, OpError> {
        self.supervisor().await?;
        // Nobody gives way to a VM that cannot be.
        if let Some(nic) = &wanted.nic {
            self.0.store.nic_fits(&account, nic).await?.map_err(OpError::Nic)?;
        }
        self.make_place().await?;
        let (origin, image) = match wanted.origin {
            Some((snapshot, image)) => (Some(snapshot), image),
            None => (None, self.0.image.clone()),
        };
        let new = NewVm {
            account,
            name: wanted.name,
            image,
            origin,
            size: wanted.size,
            idle_timeout_seconds: wanted.idle_timeout_seconds,
            activity_threshold_bytes: wanted.activity_threshold_bytes,
            persistence: wanted.persistence,
            mappings: wanted.mappings,
            nic: wanted.nic,
        };
        let made = self.insert(&new).await?;
        self.0.failpoints.pass(|| "inserted".to_owned()).await;
        notes.add(format!("VM {} is being made", made.id));
        let mut turn = self.0.slots.turn(&made.id).await?;
        // Somebody may have found it in the list and deleted it before our turn came.
        let record = self.0.store.vm(&made.id).await?.ok_or(OpError::Interrupted)?;
        let event = self.0.resumption(&record);
        let mut drive = self.0.drive(record, &mut turn, wanted.ready_wait, notes);
        let (there, record) = (drive.run(event).await?, drive.record);
        if !there || record.phase != Phase::Running {
            return Err(OpError::Interrupted);
        }
        if let Err(error) = self.set_up(&record, wanted.grows, &wanted.files).await {
            notes.add(format!("failed: {error}"));
            self.0.drive(record, &mut turn, wanted.ready_wait, notes).run(Event::Asked(Ask::Delete)).await?;
            return Err(OpError::Setup(Box::new(error)));
        }
        Ok(record)
    }

    /// What a new VM gets once it runs.
    async fn set_up(&self, record: &VmRecord, grows: bool, files: &[WantedFile]) -> Result<(), OpError> {
        if grows {
            self.grow_disk(record).await?;
        }
        for file in files {
            self.put_file(record, file).await?;
        }
        Ok(())
    }

    /// Takes a place for a new VM, making room on the host if it must.
    async fn insert(&self, new: &NewVm) -> Result<VmRecord, OpError> {
        let mut search = Search::new(&[]);
        loop {
            match admitted(self.0.store.insert_vm(new, &self.0.limits, self.0.network).await?) {
                Err(refusal) => self.find_room(&mut search, refusal).await?,
                made => return made,
            }
        }
    }

    async fn ask_here(
        &self,
        account: &AccountId,
        vm: &VmId,
        ask: Ask,
        manner: Manner,
    ) -> Result<VmRecord, OpError> {
        let seen = self.get(account, vm).await?;
        self.supervisor().await?;
        let impatient = match ask {
            Ask::Delete => true,
            Ask::Kill => matches!(seen.phase, Phase::Starting | Phase::Resuming),
            Ask::Start | Ask::Suspend | Ask::Stop => false,
        };
        if impatient {
            self.0.slots.want_down(vm);
        }
        let mut turn = self.0.slots.turn(vm).await?;
        let mut record = match (self.get(account, vm).await, ask) {
            // Whoever had the turn before us has deleted it: a creation that we interrupted, for one.
            (Err(OpError::NoVm(_)), Ask::Delete) => return Ok(seen),
            (found, _) => found?,
        };
        // Whatever is asked now counts, and not what was to be done after a crash.
        self.0.restarts.cancel(vm);
        // A command that comes from now on waits for its turn.
        let _closed = (ask == Ask::Suspend).then(|| self.0.busy.close(vm));
        let notes = Notes::default();
        let resume = match ask {
            Ask::Delete => false,
            Ask::Kill => matches!(record.phase, Phase::Building | Phase::Deleting),
            // Also a VM whose machine went down a moment ago, which nobody has taken in yet.
            Ask::Start | Ask::Suspend | Ask::Stop => !record.phase.at_rest() || self.gone(&record),
        };
        if resume {
            let event = self.0.resumption(&record);
            let mut drive = self.0.drive(record, &mut turn, manner.ready_wait, &notes);
            if !drive.run(event).await? {
                return Err(OpError::NoVm(vm.to_string()));
            }
            record = drive.record;
        }
        self.set_idle(&mut record, manner).await?;
        let (there, record) = self.perform(record, &mut turn, manner.ready_wait, &notes, ask).await?;
        drop(turn);
        if !there {
            self.0.slots.sweep();
        }
        Ok(record)
    }

    /// Changes when a VM counts as idle, if that is asked for; at once when it runs.
    async fn set_idle(&self, record: &mut VmRecord, manner: Manner) -> Result<(), OpError> {
        if manner.idle_timeout_seconds.is_none() && manner.activity_threshold_bytes.is_none() {
            return Ok(());
        }
        let (timeout, threshold) = (manner.idle_timeout_seconds, manner.activity_threshold_bytes);
        self.0.store.set_idle(&record.id, timeout, threshold).await?;
        record.idle_timeout_seconds = timeout.unwrap_or(record.idle_timeout_seconds);
        record.activity_threshold_bytes = threshold.or(record.activity_threshold_bytes);
        if record.phase == Phase::Running {
            self.0.vmm.watch_idle(&record.id, drive::idle_watch(record)).await?;
        }
        Ok(())
    }

    fn gone(&self, record: &VmRecord) -> bool {
        record.phase == Phase::Running && self.0.observed.seen(&record.id, &record.instance) != Seen::Ours
    }

    async fn supervisor(&self) -> Result<(), OpError> {
        let mut synced = self.0.observed.synced();
        let there = timeout(SUPERVISOR_WAIT, synced.wait_for(|synced| *synced)).await;
        match there {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(OpError::NoSupervisor),
        }
    }
}

impl Inner {
    fn drive<'a>(
        &'a self,
        record: VmRecord,
        turn: &'a mut Turn,
        ready_wait: Duration,
        notes: &'a Notes,
    ) -> Drive<'a> {
        let fate = Fate::of(&record.persistence);
        Drive { inner: self, record, turn, ready_wait, notes, fate, unfit: None, trouble: None }
    }

    /// A VM is gone: nothing is to be done for it any more.
    fn unwatch(&self, vm: &VmId) {
        self.restarts.cancel(vm);
    }
}

fn admitted<T>(admission: Admission<T>) -> Result<T, OpError> {
    match admission {
        Admission::Done(done) => Ok(done),
        Admission::Refused(refused) => Err(match refused {
            Refused::TooMany { limit, current } => OpError::TooMany { limit, current },
            Refused::NoMemory(short) => OpError::NoMemory(short),
            Refused::NoStorage(storage, short) => OpError::NoStorage(storage, short),
            Refused::Taken(host) => OpError::Taken(host),
            Refused::Nic(refusal) => OpError::Nic(refusal),
        }),
    }
}
