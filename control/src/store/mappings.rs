//! Domain mappings.

use super::{Store, StoreError, domains, now_ms, number, parsed};
use crate::random;
use model::host::MappedName;
use model::id::{AccountId, MappingId, VmId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

/// A public name that leads to a VM's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingRecord {
    /// Its id.
    pub id: MappingId,
    /// The name.
    pub host: MappedName,
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
    pub host: MappedName,
    /// TCP port inside the VM, never 0.
    pub port: u16,
    /// By what right.
    pub right: Right,
}

/// By what right a name is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// It stands below the preview domain: whoever comes first has it.
    Preview,
    /// The account has proved it, or a name above it.
    Proof,
}

/// What came of putting a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutMapping {
    /// It is there. One that the account had under that name is replaced in the same moment.
    Done(MappingRecord),
    /// The name is another account's.
    Taken,
    /// The account has not proved the name.
    NotProved,
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
        if matches!(put, PutMapping::Done(_)) {
            transaction.commit().await?;
        }
        Ok(put)
    }

    /// Removes the account's mapping of a name. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_mapping(&self, account: &AccountId, host: &MappedName) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM mappings WHERE host = $1 AND account_id = $2")
            .bind(host.to_string())
            .bind(account.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() == 1)
    }

    /// Who has mapped a name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn owner_of_host(&self, host: &MappedName) -> Result<Option<AccountId>, StoreError> {
        let row = sqlx::query("SELECT account_id FROM mappings WHERE host = $1")
            .bind(host.to_string())
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

/// Puts a mapping in a transaction, which is to be given up unless it is done. The VM is the account's.
pub(super) async fn put(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    vm: &VmId,
    new: &NewMapping,
) -> Result<PutMapping, StoreError> {
    if new.right == Right::Proof && !domains::rules_over(transaction, account, &new.host).await? {
        return Ok(PutMapping::NotProved);
    }
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
    .bind(record.host.to_string())
    .bind(account.as_str())
    .bind(vm.as_str())
    .bind(i64::from(new.port))
    .bind(record.created_ms)
    .execute(&mut **transaction)
    .await?;
    sqlx::query("DELETE FROM gone_mappings WHERE host = $1")
        .bind(record.host.to_string())
        .execute(&mut **transaction)
        .await?;
    Ok(if done.rows_affected() == 1 { PutMapping::Done(record) } else { PutMapping::Taken })
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
