//! Copies of VMs that are kept. A deleted one is listed for a while.

use super::{Store, StoreError, flag, now_ms, number, parsed};
use model::api::vm::Persistence;
use model::config::VmSize;
use model::id::{AccountId, SnapshotId, VmId, VmInstanceId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use std::str::FromStr;

/// Deleted and failed snapshots of one account that are listed at most, the newest.
const MAX_REMEMBERED: i64 = 1000;

/// How far a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotState {
    /// It is being made.
    Building,
    /// VMs can be made from it.
    Ready,
    /// It could not be made.
    Failed,
}

/// A snapshot as control knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Whose it is.
    pub account: AccountId,
    /// A label.
    pub name: Option<String>,
    /// Of which VM, which may be gone.
    pub source_vm: VmId,
    /// Of which run of it.
    pub source_instance: VmInstanceId,
    /// How far it is.
    pub state: SnapshotState,
    /// Why it failed.
    pub failure: Option<String>,
    /// Somebody has deleted it.
    pub deleted: bool,
    /// The supervisor may have files of it.
    pub files: bool,
    /// What becomes of it when nobody uses it.
    pub persistence: Persistence,
    /// The image that its VM was made from.
    pub image: String,
    /// How large its VM was.
    pub size: VmSize,
    /// VMs made from it go on where its VM was.
    pub has_memory: bool,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

/// A snapshot to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The life of control that makes it.
    pub owner: String,
    /// Whose it is.
    pub account: AccountId,
    /// A label.
    pub name: Option<String>,
    /// Of which VM.
    pub source_vm: VmId,
    /// Of which run of it.
    pub source_instance: VmInstanceId,
    /// See [`SnapshotRecord`].
    pub persistence: Persistence,
    /// See [`SnapshotRecord`].
    pub image: String,
    /// See [`SnapshotRecord`].
    pub size: VmSize,
}

impl SnapshotState {
    const ALL: [Self; 3] = [Self::Building, Self::Ready, Self::Failed];

    /// As it is stored.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Building => "building",
            Self::Ready => "ready",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for SnapshotState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(())
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, account_id, name, source_vm_id, source_instance_id, state, failure, deleted, files, persistence,
             image, vcpus, memory_mib, disk_mib, has_memory, created_ms FROM snapshots ",
            $rest
        )
    };
}

impl Store {
    /// Writes down that a snapshot is to be made. Tells how many the account has, if that is `limit` already.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_snapshot(&self, new: &NewSnapshot, limit: u32) -> Result<Option<u64>, StoreError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query("SELECT COUNT(*) AS mine FROM snapshots WHERE account_id = $1 AND files = 1")
            .bind(new.account.as_str())
            .fetch_one(&mut *transaction)
            .await?;
        let current: u64 = number(&row, "mine")?;
        if current >= u64::from(limit) {
            return Ok(Some(current));
        }
        sqlx::query(
            "INSERT INTO snapshots (id, account_id, name, source_vm_id, source_instance_id, state, deleted, files,
                 owner, persistence, image, vcpus, memory_mib, disk_mib, has_memory, created_ms)
             VALUES ($1, $2, $3, $4, $5, 'building', 0, 1, $6, $7, $8, $9, $10, $11, 0, $12)",
        )
        .bind(new.id.as_str())
        .bind(new.account.as_str())
        .bind(new.name.as_deref())
        .bind(new.source_vm.as_str())
        .bind(new.source_instance.as_str())
        .bind(&new.owner)
        .bind(serde_json::to_string(&new.persistence).unwrap_or_default())
        .bind(&new.image)
        .bind(i64::from(new.size.vcpus))
        .bind(i64::from(new.size.memory_mib))
        .bind(i64::from(new.size.disk_mib))
        .bind(now_ms())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(None)
    }

    /// The snapshot stands.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot_is_ready(&self, id: &SnapshotId, has_memory: bool) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE snapshots SET state = 'ready', has_memory = $1 WHERE id = $2 AND state = 'building'",
        )
        .bind(i64::from(has_memory))
        .bind(id.as_str())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// The snapshot came to nothing. Its files are to be removed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot_has_failed(&self, id: &SnapshotId, why: &str) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE snapshots SET state = 'failed', failure = $1 WHERE id = $2 AND state = 'building'",
        )
        .bind(why)
        .bind(id.as_str())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Fails all that an earlier control was making, `owner` being the one that lives.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn fail_dead_snapshots(&self, owner: &str) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE snapshots SET state = 'failed', failure = 'control ended while it was made'
             WHERE state = 'building' AND owner <> $1",
        )
        .bind(owner)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Somebody deletes it: its files are to be removed. False: it was deleted before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE snapshots SET deleted = 1 WHERE id = $1 AND deleted = 0 AND state <> 'building'",
        )
        .bind(id.as_str())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Nothing is left of it but its entry; of those, the oldest are forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot_has_no_files(&self, snapshot: &SnapshotRecord) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE snapshots SET files = 0 WHERE id = $1")
            .bind(snapshot.id.as_str())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "DELETE FROM snapshots WHERE account_id = $1 AND files = 0 AND id NOT IN (
                 SELECT id FROM snapshots WHERE account_id = $1 AND files = 0 ORDER BY created_ms DESC, id LIMIT $2)",
        )
        .bind(snapshot.account.as_str())
        .bind(MAX_REMEMBERED)
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }

    /// Snapshots whose files are to be removed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshots_to_remove(&self) -> Result<Vec<SnapshotRecord>, StoreError> {
        let rows = sqlx::query(select!("WHERE files = 1 AND (deleted = 1 OR state = 'failed')"))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }

    /// The snapshot of that id, whoever owns it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshot(&self, id: &SnapshotId) -> Result<Option<SnapshotRecord>, StoreError> {
        let row =
            sqlx::query(select!("WHERE id = $1")).bind(id.as_str()).fetch_optional(&self.readers).await?;
        row.as_ref().map(record).transpose()
    }

    /// The account's snapshots, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn snapshots_of(&self, account: &AccountId) -> Result<Vec<SnapshotRecord>, StoreError> {
        let rows = sqlx::query(select!("WHERE account_id = $1 ORDER BY created_ms DESC, id"))
            .bind(account.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }

    /// Changes a snapshot's label.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn name_snapshot(&self, id: &SnapshotId, name: Option<&str>) -> Result<(), StoreError> {
        sqlx::query("UPDATE snapshots SET name = $1 WHERE id = $2")
            .bind(name)
            .bind(id.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }
}

fn record(row: &SqliteRow) -> Result<SnapshotRecord, StoreError> {
    let persistence: String = row.try_get("persistence")?;
    Ok(SnapshotRecord {
        id: parsed(row, "id")?,
        account: parsed(row, "account_id")?,
        name: row.try_get("name")?,
        source_vm: parsed(row, "source_vm_id")?,
        source_instance: parsed(row, "source_instance_id")?,
        state: parsed(row, "state")?,
        failure: row.try_get("failure")?,
        deleted: flag(row, "deleted")?,
        files: flag(row, "files")?,
        persistence: serde_json::from_str(&persistence)
            .map_err(|_| StoreError::Corrupt { column: "persistence", value: persistence })?,
        image: row.try_get("image")?,
        size: VmSize {
            vcpus: number(row, "vcpus")?,
            memory_mib: number(row, "memory_mib")?,
            disk_mib: number(row, "disk_mib")?,
        },
        has_memory: flag(row, "has_memory")?,
        created_ms: number(row, "created_ms")?,
    })
}
