//! Snapshots: copies of VMs that are kept, and outlive them.
//!
//! ```text
//! written down as building ──► the supervisor copies ──► ready ──► deleted ──► files removed
//!        │  refused, or control died       │                          (owed until it is done)
//!        └─────────────────────────────────┴──► failed ─────────────► files removed
//! ```

use super::Machines;
use super::error::OpError;
use super::notes::Notes;
use crate::figures::Operation;
use crate::pure::phase::Phase;
use crate::pure::request::DEFAULT_READY_WAIT;
use crate::random;
use crate::store::{NewSnapshot, SnapshotRecord, SnapshotState, VmRecord};
use model::api::vm::Persistence;
use model::id::{AccountId, SnapshotId, VmId};
use std::time::Instant;
use tracing::{info, warn};

impl Machines {
    /// Copies a VM and waits until the copy is durable. Goes on when the caller goes away.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn snapshot(
        &self,
        account: &AccountId,
        vm: &VmId,
        name: Option<String>,
        persistence: Persistence,
    ) -> Result<SnapshotRecord, OpError> {
        let (machines, account, vm) = (self.clone(), account.clone(), vm.clone());
        tokio::spawn(async move {
            let begun = Instant::now();
            let made = machines.snapshot_here(&account, &vm, name, persistence).await;
            machines.0.ledger.operation(Operation::Snapshot, made.is_ok(), begun.elapsed());
            made
        })
        .await?
    }

    /// The account's snapshot.
    ///
    /// # Errors
    /// [`OpError::NoSnapshot`] also when it is another account's.
    pub async fn get_snapshot(
        &self,
        account: &AccountId,
        id: &SnapshotId,
    ) -> Result<SnapshotRecord, OpError> {
        let record = self.0.store.snapshot(id).await?.filter(|record| record.account == *account);
        record.ok_or_else(|| OpError::NoSnapshot(id.clone()))
    }

    /// Deletes a snapshot; returns when nothing is left of it. VMs that were made from it do not mind.
    ///
    /// # Errors
    /// See [`OpError`]. Its files may still be there then; they are removed later.
    pub async fn delete_snapshot(&self, account: &AccountId, id: &SnapshotId) -> Result<(), OpError> {
        let (machines, account, id) = (self.clone(), account.clone(), id.clone());
        tokio::spawn(async move { machines.delete_snapshot_here(&account, &id).await }).await?
    }

    async fn delete_snapshot_here(&self, account: &AccountId, id: &SnapshotId) -> Result<(), OpError> {
        let snapshot = self.get_snapshot(account, id).await?;
        self.supervisor().await?;
        if !self.0.store.delete_snapshot(id).await? {
            return Err(match self.get_snapshot(account, id).await?.state {
                SnapshotState::Building => OpError::SnapshotBuilding(id.clone()),
                SnapshotState::Ready | SnapshotState::Failed => OpError::SnapshotDeleted(id.clone()),
            });
        }
        self.0.failpoints.pass(|| "snapshot deleted".to_owned()).await;
        self.remove_files(&snapshot).await
    }

    async fn snapshot_here(
        &self,
        account: &AccountId,
        vm: &VmId,
        name: Option<String>,
        persistence: Persistence,
    ) -> Result<SnapshotRecord, OpError> {
        self.get(account, vm).await?;
        self.supervisor().await?;
        self.make_place().await?;
        // Held until the copy stands: nothing of its life happens meanwhile, and commands go on.
        let mut turn = self.0.slots.turn(vm).await?;
        let record = self.rested(self.get(account, vm).await?, &mut turn).await?;
        match record.phase {
            Phase::Running | Phase::Suspended | Phase::Stopped => {}
            Phase::Lost => return Err(OpError::NothingToCopy),
            Phase::Building
            | Phase::Starting
            | Phase::Resuming
            | Phase::Suspending
            | Phase::Stopping
            | Phase::Killing
            | Phase::Deleting => return Err(OpError::NotRunning),
        }
        let new = NewSnapshot {
            id: SnapshotId::from_random(random::bytes()),
            owner: self.0.me.clone(),
            account: account.clone(),
            name,
            source_vm: vm.clone(),
            source_instance: record.instance,
            persistence,
            image: record.image,
            size: record.size,
        };
        let limit = self.0.limits.snapshots_per_account;
        if let Some(current) = self.0.store.insert_snapshot(&new, limit).await? {
            return Err(OpError::TooManySnapshots { limit: u64::from(limit), current });
        }
        self.0.failpoints.pass(|| "snapshot inserted".to_owned()).await;
        let copied = self.0.vmm.snapshot(vm, &new.id).await;
        self.0.failpoints.pass(|| "copied".to_owned()).await;
        match copied {
            Ok(memory) => self.0.store.snapshot_is_ready(&new.id, memory).await?,
            Err(error) => {
                self.0.store.snapshot_has_failed(&new.id, &error.to_string()).await?;
                self.clean().await;
                return Err(error.into());
            }
        }
        self.0.failpoints.pass(|| "snapshot ready".to_owned()).await;
        info!(%vm, snapshot = %new.id, "a snapshot");
        self.get_snapshot(account, &new.id).await
    }

    /// Brings a VM to rest that owes something, under one's turn.
    pub(super) async fn rested(&self, record: VmRecord, turn: &mut super::Turn) -> Result<VmRecord, OpError> {
        if record.phase.at_rest() && !self.gone(&record) {
            return Ok(record);
        }
        let (id, notes) = (record.id.to_string(), Notes::default());
        let event = self.0.resumption(&record);
        let mut drive = self.0.drive(record, turn, DEFAULT_READY_WAIT, &notes);
        if drive.run(event).await? { Ok(drive.record) } else { Err(OpError::NoVm(id)) }
    }

    /// Removes the files of snapshots that are deleted or came to nothing. What cannot be done now is done later.
    pub(super) async fn clean(&self) {
        let cleaned = async {
            self.0.store.fail_dead_snapshots(&self.0.me).await?;
            for snapshot in self.0.store.snapshots_to_remove().await? {
                self.remove_files(&snapshot).await?;
            }
            Ok::<(), OpError>(())
        };
        if let Err(error) = cleaned.await {
            warn!(%error, "files of snapshots wait to be removed");
        }
    }

    async fn remove_files(&self, snapshot: &SnapshotRecord) -> Result<(), OpError> {
        self.0.vmm.remove_snapshot(&snapshot.id).await?;
        self.0.failpoints.pass(|| "snapshot removed".to_owned()).await;
        Ok(self.0.store.snapshot_has_no_files(snapshot).await?)
    }
}
