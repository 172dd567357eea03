//! Who makes room when the host is full: idle VMs sleep, and sticky VMs that do not run are given up.
//!
//! ```text
//! place asked for ──► written down (it is taken)
//!    ▲   │ refused
//!    │   ▼
//!    │  memory: the idlest sleeps, or one goes down by itself ──┐
//!    │  disk:   the least sticky ones are deleted               ├─► no: the refusal stands
//!    └──────────────────────────────────────────────────────────┘
//! ```
//! A place is taken in the same step that finds it free, so what was made free may be gone to another: then it is looked
//! for again, until [`ROOM_WAIT`] is over.

use super::Machines;
use super::drive::Drive;
use super::error::OpError;
use super::notes::Notes;
use super::slots::Turn;
use crate::pure::evict::{self, Full, Kept, Storage};
use crate::pure::phase::{Ask, Event, Fate, Phase};
use crate::pure::request::DEFAULT_READY_WAIT;
use crate::pure::room::{Holder, Room, Shortage, room};
use crate::store::VmRecord;
use model::id::VmId;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

/// Longest that memory is waited for before the refusal is told: some GiB are written down within it, and no caller
/// has gone away yet. A VM that has begun to fall asleep by then does so.
const ROOM_WAIT: Duration = Duration::from_secs(60);

/// One operation's search for room.
#[derive(Debug)]
pub(super) struct Search {
    deadline: Instant,
    /// VMs that are left alone: what room is looked for, and those that would not make any.
    spared: BTreeSet<VmId>,
}

impl Search {
    /// Begins now. `on_behalf` are VMs that must not make the room themselves.
    pub(super) fn new(on_behalf: &[&VmId]) -> Self {
        let spared = on_behalf.iter().map(|vm| (*vm).clone()).collect();
        Self { deadline: Instant::now() + ROOM_WAIT, spared }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }
}

impl Machines {
    /// Starts a VM. One that does not fit into the host's memory puts others to sleep first. True: it is still there.
    pub(super) async fn start(&self, drive: &mut Drive<'_>) -> Result<bool, OpError> {
        let mut search = Search::new(&[&drive.record.id]);
        loop {
            match drive.run(Event::Asked(Ask::Start)).await {
                Err(error) => self.find_room(&mut search, error).await?,
                there => return there,
            }
        }
    }

    /// Puts a VM to sleep. When there is no place for its memory, others give way that sleep. True: it is still there.
    pub(super) async fn suspend(&self, drive: &mut Drive<'_>) -> Result<bool, OpError> {
        let mut search = Search::new(&[&drive.record.id]);
        loop {
            match drive.run(Event::Asked(Ask::Suspend)).await {
                Err(OpError::NoStorage(storage, short)) => self.give_way(&mut search, storage, short).await?,
                there => return there,
            }
        }
    }

    /// What to do about a refusal. Ok: it is worth asking again.
    pub(super) async fn find_room(&self, search: &mut Search, refusal: OpError) -> Result<(), OpError> {
        match refusal {
            OpError::NoMemory(short) => self.make_room(search, short.requested).await,
            OpError::NoStorage(storage, short) => self.give_way(search, storage, short).await,
            other => Err(other),
        }
    }

    /// Puts VMs to sleep that may sleep, the one first that was used longest ago, until there is memory, and waits for
    /// those that go down anyway.
    pub(super) async fn make_room(&self, search: &mut Search, requested_mib: u64) -> Result<(), OpError> {
        while !search.is_over() {
            // Before the look, so that no change after it is missed.
            let mut stored = self.0.stored.subscribe();
            match self.room(search, requested_mib).await? {
                Room::Free => return Ok(()),
                Room::Full => break,
                Room::Soon => {
                    if timeout_at(search.deadline, stored.changed()).await.is_err() {
                        break;
                    }
                }
                Room::Sleep(_) => {
                    // One at a time: two that do not know of each other put too many to sleep.
                    let alone = timeout_at(search.deadline, self.0.one_makes_room.lock());
                    let Ok(_alone) = alone.await else { break };
                    self.lay_down_one(search, requested_mib).await?;
                }
            }
        }
        self.is_there_memory(requested_mib).await
    }

    async fn is_there_memory(&self, requested_mib: u64) -> Result<(), OpError> {
        let there = self.0.store.memory_for(requested_mib, &self.0.limits).await?;
        there.map_err(OpError::NoMemory)
    }

    async fn room(&self, search: &Search, requested_mib: u64) -> Result<Room, OpError> {
        let holder = |vm: VmRecord| Holder {
            may_sleep: may_sleep(&vm) && !search.spared.contains(&vm.id),
            id: vm.id,
            phase: vm.phase,
            memory_mib: u64::from(vm.size.memory_mib),
            last_used_ms: vm.last_used_ms,
        };
        let vms: Vec<Holder> = self.0.store.vms().await?.into_iter().map(holder).collect();
        Ok(room(&vms, u64::from(self.0.limits.memory_mib), requested_mib))
    }

    /// Puts the first to sleep of those that are still needed, now that nobody else makes room.
    async fn lay_down_one(&self, search: &mut Search, requested_mib: u64) -> Result<(), OpError> {
        match self.room(search, requested_mib).await? {
            Room::Free | Room::Soon | Room::Full => Ok(()),
            Room::Sleep(vms) => match vms.first() {
                Some(vm) => self.lay_down(search, vm).await,
                None => Ok(()),
            },
        }
    }

    /// Puts a VM to sleep, if nothing is under way with it. It is asked once in a search.
    async fn lay_down(&self, search: &mut Search, vm: &VmId) -> Result<(), OpError> {
        search.spared.insert(vm.clone());
        // Never waits: whoever has its turn may be waiting for us.
        let Some(mut turn) = self.0.slots.try_turn(vm) else { return Ok(()) };
        let Some(_closed) = self.0.busy.close_if_free(vm) else { return Ok(()) };
        let Some(record) = self.0.store.vm(vm).await? else { return Ok(()) };
        if record.phase != Phase::Running || !may_sleep(&record) {
            return Ok(());
        }
        info!(%vm, "it sleeps, for want of memory");
        let notes = Notes::default();
        let mut drive = self.0.drive(record, &mut turn, DEFAULT_READY_WAIT, &notes);
        if let Err(error) = self.suspend(&mut drive).await {
            debug!(%vm, %error, "no sleep");
        }
        Ok(())
    }

    /// Gives up sticky VMs that do not run, so that there is place for what is asked. None of them when they have not
    /// enough together.
    async fn give_way(&self, search: &mut Search, storage: Storage, short: Shortage) -> Result<(), OpError> {
        let refusal = OpError::NoStorage(storage, short);
        // Larger than all there is: nobody can make place for it.
        if search.is_over() || short.requested > short.limit {
            return Err(refusal);
        }
        let over = short.current.saturating_add(short.requested).saturating_sub(short.limit);
        let vms = self.0.store.vms().await?;
        let gone = loop {
            let vms: Vec<Kept> = vms.iter().filter(|vm| !search.spared.contains(&vm.id)).map(kept).collect();
            let Some(gone) = evict::give_way(&vms, storage, over) else { return Err(refusal) };
            // Never waits: whoever has one's turn uses it, and may be waiting for us.
            let turns: Vec<(VmId, Option<Turn>)> =
                gone.into_iter().map(|vm| (vm.clone(), self.0.slots.try_turn(&vm))).collect();
            // Each round spares one more, or is the last.
            if turns.iter().all(|(_, turn)| turn.is_some()) {
                break turns;
            }
            search.spared.extend(turns.into_iter().filter(|(_, turn)| turn.is_none()).map(|(vm, _)| vm));
        };
        for (vm, turn) in gone {
            search.spared.insert(vm.clone());
            if let Some(turn) = turn {
                self.give_up_vm(&vm, turn, storage, short.limit).await?;
            }
        }
        self.0.slots.sweep();
        Ok(())
    }

    async fn give_up_vm(
        &self,
        vm: &VmId,
        mut turn: Turn,
        storage: Storage,
        limit_mib: u64,
    ) -> Result<(), OpError> {
        let Some(record) = self.0.store.vm(vm).await? else { return Ok(()) };
        if !rests(&record) {
            return Ok(());
        }
        warn!(%vm, ?storage, limit_mib, "the host's disk is promised to others: this VM is deleted");
        let notes = Notes::default();
        let mut drive = self.0.drive(record, &mut turn, DEFAULT_READY_WAIT, &notes);
        if let Err(error) = drive.run(Event::Asked(Ask::Delete)).await {
            warn!(%vm, %error, "it is deleted later");
        }
        Ok(())
    }

    /// Gives up sticky VMs that do not run when too many are kept.
    pub(super) async fn make_place(&self) -> Result<(), OpError> {
        let vms: Vec<Kept> = self.0.store.vms().await?.iter().map(kept).collect();
        let gone = evict::evict(&vms, self.0.limits.kept_vms)
            .map_err(|Full { limit, current }| OpError::TooManyKept { limit, current })?;
        for vm in gone {
            warn!(%vm, limit = self.0.limits.kept_vms, "too many VMs are kept that do not run: this one is deleted");
            self.nudge(&vm, Ask::Delete, rests).await?;
        }
        Ok(())
    }
}

/// Nobody minds when it sleeps for want of memory, and nothing of it is lost.
fn may_sleep(vm: &VmRecord) -> bool {
    vm.idle_timeout_seconds.is_some() && !Fate::of(&vm.persistence).gone_when_asleep
}

fn rests(vm: &VmRecord) -> bool {
    vm.phase.at_rest() && vm.phase != Phase::Running
}

fn kept(vm: &VmRecord) -> Kept {
    Kept {
        id: vm.id.clone(),
        phase: vm.phase,
        persistence: vm.persistence.clone(),
        memory_mib: u64::from(vm.size.memory_mib),
        disk_mib: u64::from(vm.size.disk_mib),
        last_used_ms: vm.last_used_ms,
    }
}
