//! Domain mappings.

use super::{Store, StoreError, now_ms, number, parsed};
use crate::random;
use model::host::HostName;
use model::id::{AccountId, MappingId, VmId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

/// A public name that leads to a VM's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingRecord {
    /// Its id.
    pub id: MappingId,
    /// The name.
    pub host: HostName,
    /// Whose it is.
    pub account: AccountId,
    /// The VM that answers.
    pub vm: VmId,
    /// TCP port inside the VM, never 0.
    pub port: u16,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

/// A mapping to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMapping {
    /// The name.
    pub host: HostName,
    /// TCP port inside the VM, never 0.
    pub port: u16,
}

/// What came of putting a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMapping {
    /// It is there. One that the account had under that name is replaced in the same moment.
    Done(MappingRecord),
    /// The name is another account's.
    Taken,
    /// The account has no such VM.
    NoVm,
}

const COLUMNS: &str =
    "SELECT id, host, account_id, vm_id, port, created_ms FROM mappings ORDER BY created_ms, id";

impl Store {
    /// Maps a name to a VM of the account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_mapping(
        &self,
        account: &AccountId,
        vm: &VmId,
        new: &NewMapping,
    ) -> Result<PutMapping, StoreError> {
        let mut transaction = self.begin().await?;
        // One that is being deleted takes no more names.
        let known =
            sqlx::query("SELECT 1 AS one FROM vms WHERE id = $1 AND account_id = $2 AND phase <> 'deleting'")
                .bind(vm.as_str())
                .bind(account.as_str())
                .fetch_optional(&mut *transaction)
                .await?;
        if known.is_none() {
            return Ok(PutMapping::NoVm);
        }
        let put = put(&mut transaction, account, vm, new).await?;
        transaction.commit().await?;
        Ok(put.map_or(PutMapping::Taken, PutMapping::Done))
    }

    /// Removes the account's mapping of a name. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_mapping(&self, account: &AccountId, host: &HostName) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM mappings WHERE host = $1 AND account_id = $2")
            .bind(host.as_str())
            .bind(account.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() == 1)
    }

    /// Who has mapped a name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn owner_of_host(&self, host: &HostName) -> Result<Option<AccountId>, StoreError> {
        let row = sqlx::query("SELECT account_id FROM mappings WHERE host = $1")
            .bind(host.as_str())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| parsed(&row, "account_id")).transpose()
    }

    /// All mappings of all accounts, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn mappings(&self) -> Result<Vec<MappingRecord>, StoreError> {
        let rows = sqlx::query(COLUMNS).fetch_all(&self.readers).await?;
        rows.iter().map(record).collect()
    }
}

/// Puts a mapping in a transaction; none when the name is another account's.
pub(super) async fn put(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    vm: &VmId,
    new: &NewMapping,
) -> Result<Option<MappingRecord>, StoreError> {
    let record = MappingRecord {
        id: MappingId::from_random(random::bytes()),
        host: new.host.clone(),
        account: account.clone(),
        vm: vm.clone(),
        port: new.port,
        created_ms: now_ms(),
    };
    let done = sqlx::query(
        "INSERT INTO mappings (id, host, account_id, vm_id, port, created_ms) VALUES ($1, $2, $3, $4, $5, $6)
         ON CONFLICT (host) DO UPDATE SET id = excluded.id, vm_id = excluded.vm_id, port = excluded.port,
             created_ms = excluded.created_ms WHERE mappings.account_id = excluded.account_id",
    )
    .bind(record.id.as_str())
    .bind(record.host.as_str())
    .bind(account.as_str())
    .bind(vm.as_str())
    .bind(i64::from(new.port))
    .bind(record.created_ms)
    .execute(&mut **transaction)
    .await?;
    Ok((done.rows_affected() == 1).then_some(record))
}

pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<MappingRecord>, StoreError> {
    let rows = sqlx::query(COLUMNS).fetch_all(&mut **transaction).await?;
    rows.iter().map(record).collect()
}

fn record(row: &SqliteRow) -> Result<MappingRecord, StoreError> {
    Ok(MappingRecord {
        id: parsed(row, "id")?,
        host: parsed(row, "host")?,
        account: parsed(row, "account_id")?,
        vm: parsed(row, "vm_id")?,
        port: number(row, "port")?,
        created_ms: number(row, "created_ms")?,
    })
}
