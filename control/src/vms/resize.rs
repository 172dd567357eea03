//! Other sizes for VMs, and less waste.

use super::error::OpError;
use super::notes::Notes;
use super::room::Search;
use super::slots::Turn;
use super::{Machines, admitted};
use crate::pure::phase::{Ask, Event, Fate, Phase};
use crate::pure::request::DEFAULT_READY_WAIT;
use crate::pure::resize::Wish;
use crate::store::VmRecord;
use model::config::VmSize;
use model::id::{AccountId, VmId};

impl Machines {
    /// Gives a VM another size. The disk of one that runs grows under it; for anything else it is stopped and started
    /// again. One that sleeps is woken, so that it can shut down in order. Goes on when the caller goes away.
    ///
    /// # Errors
    /// See [`OpError`]. When the new size does not fit into the host, the VM runs with its old one. When a disk does not
    /// grow at once, it does at the next start, or when it is asked for again.
    pub async fn resize(&self, account: &AccountId, vm: &VmId, wish: Wish) -> Result<(), OpError> {
        let (machines, account, vm) = (self.clone(), account.clone(), vm.clone());
        tokio::spawn(async move { machines.resize_here(&account, &vm, wish).await }).await?
    }

    /// Gives memory that the guest does not use back to the host, also what only caches files, and merges the layers of
    /// its disk.
    ///
    /// # Errors
    /// See [`OpError`]. An agent that does not help is none: free memory is given back without it.
    pub async fn optimize(&self, account: &AccountId, vm: &VmId) -> Result<(), OpError> {
        self.get(account, vm).await?;
        self.supervisor().await?;
        let mut turn = self.0.slots.turn(vm).await?;
        let record = self.rested(self.get(account, vm).await?, &mut turn).await?;
        if record.phase == Phase::Running
            && let Err(error) = self.release_memory(&record).await
        {
            tracing::warn!(%vm, %error, "the VM keeps the memory in which it caches files");
        }
        Ok(self.0.vmm.optimize(&record.id).await?)
    }

    async fn resize_here(&self, account: &AccountId, vm: &VmId, wish: Wish) -> Result<(), OpError> {
        // Refused before anything is touched.
        wish.applied(self.get(account, vm).await?.size).map_err(OpError::Wrong)?;
        self.supervisor().await?;
        let mut turn = self.0.slots.turn(vm).await?;
        let mut record = self.rested(self.get(account, vm).await?, &mut turn).await?;
        let (old, new) = (record.size, wish.applied(record.size).map_err(OpError::Wrong)?);
        if record.phase == Phase::Running && wish.grows_in_use(old) {
            return self.resize_in_use(record, new).await;
        }
        if new == old {
            return Ok(());
        }
        self.0.restarts.cancel(vm);
        self.take_room(&record, new).await?;
        let was_up = matches!(record.phase, Phase::Running | Phase::Suspended);
        if was_up {
            record = match self.shut_down(record, &mut turn).await {
                Ok(record) => record,
                Err(error) => {
                    self.0.store.set_size(vm, old).await?;
                    return Err(error);
                }
            };
        }
        self.0.store.set_size(vm, new).await?;
        record.size = new;
        self.0.failpoints.pass(|| "resized".to_owned()).await;
        if !was_up {
            return Ok(());
        }
        let notes = Notes::default();
        match self.perform(record.clone(), &mut turn, DEFAULT_READY_WAIT, &notes, Ask::Start).await {
            Err(error @ OpError::NoMemory(_)) => {
                self.0.store.set_size(vm, old).await?;
                record.size = old;
                self.perform(record, &mut turn, DEFAULT_READY_WAIT, &notes, Ask::Start).await?;
                Err(error)
            }
            done => done.map(drop),
        }
    }

    /// The record comes first: the disk that is opened at the next start may be smaller than it, and not larger.
    async fn resize_in_use(&self, mut record: VmRecord, new: VmSize) -> Result<(), OpError> {
        self.take_room(&record, new).await?;
        record.size = new;
        self.0.failpoints.pass(|| "resized".to_owned()).await;
        self.grow_disk(&record).await.map_err(|error| OpError::GrowFailed(Box::new(error)))
    }

    /// Refuses a size for which there is no room before the VM is touched. Takes the larger disk; the memory is promised
    /// when the VM starts again.
    async fn take_room(&self, record: &VmRecord, new: VmSize) -> Result<(), OpError> {
        let mut search = Search::new(&[&record.id]);
        let has = if record.phase == Phase::Running { record.size.memory_mib } else { 0 };
        let more = u64::from(new.memory_mib.saturating_sub(has));
        if matches!(record.phase, Phase::Running | Phase::Suspended) && more > 0 {
            self.make_room(&mut search, more).await?;
        }
        if new.disk_mib == record.size.disk_mib {
            return Ok(());
        }
        loop {
            match admitted(self.0.store.grow_disk(record, new.disk_mib, &self.0.limits).await?) {
                Err(refusal) => self.find_room(&mut search, refusal).await?,
                taken => return taken,
            }
        }
    }

    /// Shuts a VM down that runs or sleeps; it is kept even if it is ephemeral.
    async fn shut_down(&self, record: VmRecord, turn: &mut Turn) -> Result<VmRecord, OpError> {
        let notes = Notes::default();
        let (_, record) = self.perform(record, turn, DEFAULT_READY_WAIT, &notes, Ask::Start).await?;
        let mut drive = self.0.drive(record, turn, DEFAULT_READY_WAIT, &notes);
        drive.fate = Fate::default();
        drive.run(Event::Asked(Ask::Stop)).await?;
        Ok(drive.record)
    }
}
