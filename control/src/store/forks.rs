//! Forks that are under way: all of their children stay, or none.

use super::room::{self, Admission};
use super::vms::{NewVm, VmRecord, insert_one};
use super::{Store, StoreError, parsed};
use model::config::VmLimits;
use model::id::{SnapshotId, VmId};
use model::net::Ipv4Cidr;

impl Store {
    /// Makes all children of a fork in phase `Building`, or none. `owner` is the life of control that makes them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_fork(
        &self,
        fork: &SnapshotId,
        owner: &str,
        ids: &[VmId],
        child: &NewVm,
        limits: &VmLimits,
        network: Ipv4Cidr,
    ) -> Result<Admission<Vec<VmRecord>>, StoreError> {
        let mut transaction = self.begin().await?;
        if let Err(refused) = room::for_new(&mut transaction, child, ids.len(), limits).await? {
            return Ok(Admission::Refused(refused));
        }
        sqlx::query("INSERT INTO forks (id, owner) VALUES ($1, $2)")
            .bind(fork.as_str())
            .bind(owner)
            .execute(&mut *transaction)
            .await?;
        let mut children = Vec::with_capacity(ids.len());
        for id in ids {
            match insert_one(&mut transaction, id.clone(), child, network).await? {
                Admission::Done(record) => children.push(record),
                Admission::Refused(refused) => return Ok(Admission::Refused(refused)),
            }
        }
        transaction.commit().await?;
        Ok(Admission::Done(children))
    }

    /// The fork is over: what there is of its children stays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_fork(&self, fork: &SnapshotId) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE vms SET origin_id = NULL WHERE origin_id = $1")
            .bind(fork.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM forks WHERE id = $1").bind(fork.as_str()).execute(&mut *transaction).await?;
        Ok(transaction.commit().await?)
    }

    /// Lets go of a fork that cannot be brought to an end now: it is given up later.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn release_fork(&self, fork: &SnapshotId) -> Result<(), StoreError> {
        sqlx::query("UPDATE forks SET owner = '' WHERE id = $1")
            .bind(fork.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Forks that no control makes any more, `owner` being the one that lives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn dead_forks(&self, owner: &str) -> Result<Vec<SnapshotId>, StoreError> {
        let rows = sqlx::query("SELECT id FROM forks WHERE owner <> $1")
            .bind(owner)
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| parsed(row, "id")).collect()
    }
}
