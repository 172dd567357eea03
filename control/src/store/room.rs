//! What is promised to VMs, and whether there is room for more. Each answer that lets somebody in is given in the
//! transaction that writes it down, so that two cannot be given the same room.

use super::vms::{NewVm, VmRecord};
use super::{Store, StoreError, number, parsed};
use crate::pure::evict::Storage;
use crate::pure::phase::{Phase, Run, Step};
use crate::pure::room::{Promised, Shortage, fits};
use crate::pure::vpc::NicRefusal;
use model::config::VmLimits;
use model::host::MappedName;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

/// What came of asking for room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission<T> {
    /// There was room.
    Done(T),
    /// There was none.
    Refused(Refused),
}

/// Why there is no room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The account has as many VMs as it may have.
    TooMany {
        /// So many.
        limit: u64,
        /// It has so many.
        current: u64,
    },
    /// The host's memory is promised to others.
    NoMemory(Shortage),
    /// The host's disk is promised to others.
    NoStorage(Storage, Shortage),
    /// A name that was to be mapped is another account's.
    Taken(MappedName),
    /// The VM cannot have the NIC that was asked for.
    Nic(NicRefusal),
}

/// Rows of `phase`, `memory` and `disk`. Which phase counts for what is said in one place only, which is not SQL.
const PROMISED: &str =
    "SELECT phase, CAST(SUM(memory_mib) AS BIGINT) AS memory, CAST(SUM(disk_mib) AS BIGINT) AS disk
     FROM vms GROUP BY phase";

impl Store {
    /// What is promised to VMs.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn promised(&self) -> Result<Promised, StoreError> {
        summed(&sqlx::query(PROMISED).fetch_all(&self.readers).await?)
    }

    /// Whether so much memory could be promised at this moment. Promises nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn memory_for(
        &self,
        requested_mib: u64,
        limits: &VmLimits,
    ) -> Result<Result<(), Shortage>, StoreError> {
        let promised = self.promised().await?;
        Ok(fits(u64::from(limits.memory_mib), promised.memory_mib, requested_mib))
    }

    /// Promises a larger disk to a VM; counts from its next start.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn grow_disk(
        &self,
        vm: &VmRecord,
        disk_mib: u32,
        limits: &VmLimits,
    ) -> Result<Admission<()>, StoreError> {
        let mut transaction = self.begin().await?;
        let promised = promised(&mut transaction).await?;
        let more = u64::from(disk_mib.saturating_sub(vm.size.disk_mib));
        if let Err(refused) = disk(limits, promised, more) {
            return Ok(Admission::Refused(refused));
        }
        sqlx::query("UPDATE vms SET disk_mib = $1 WHERE id = $2")
            .bind(i64::from(disk_mib))
            .bind(vm.id.as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Admission::Done(()))
    }
}

/// Whether `count` VMs of this kind can be made.
pub(super) async fn for_new(
    transaction: &mut Transaction<'static, Sqlite>,
    new: &NewVm,
    count: usize,
    limits: &VmLimits,
) -> Result<Result<(), Refused>, StoreError> {
    let row = sqlx::query("SELECT COUNT(*) AS mine FROM vms WHERE account_id = $1")
        .bind(new.account.as_str())
        .fetch_one(&mut **transaction)
        .await?;
    let current: u64 = number(&row, "mine")?;
    let (limit, count) = (u64::from(limits.vms_per_account), count as u64);
    if current.saturating_add(count) > limit {
        return Ok(Err(Refused::TooMany { limit, current }));
    }
    let promised = promised(transaction).await?;
    let asked = |mib: u32| u64::from(mib).saturating_mul(count);
    // Memory first: whoever makes room for it sleeps, and who makes room on the disk is gone.
    Ok(memory(limits, promised, asked(new.size.memory_mib))
        .and_then(|()| disk(limits, promised, asked(new.size.disk_mib))))
}

/// Whether a VM may take a step. What has its room already needs no more, also where less may be promised by now.
pub(super) async fn for_step(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &VmRecord,
    step: &Step,
    next: Phase,
    limits: &VmLimits,
) -> Result<Result<(), Refused>, StoreError> {
    let comes_up = step.run != Run::Same && !vm.phase.holds_memory();
    let falls_asleep = next == Phase::Suspending && !vm.phase.keeps_memory();
    if !comes_up && !falls_asleep {
        return Ok(Ok(()));
    }
    let (promised, requested) = (promised(transaction).await?, u64::from(vm.size.memory_mib));
    if comes_up {
        return Ok(memory(limits, promised, requested));
    }
    let limit = limits.memory_storage_mib.unwrap_or(u64::MAX);
    let fits = fits(limit, promised.asleep_mib, requested);
    Ok(fits.map_err(|short| Refused::NoStorage(Storage::Memory, short)))
}

fn memory(limits: &VmLimits, promised: Promised, requested: u64) -> Result<(), Refused> {
    fits(u64::from(limits.memory_mib), promised.memory_mib, requested).map_err(Refused::NoMemory)
}

fn disk(limits: &VmLimits, promised: Promised, requested: u64) -> Result<(), Refused> {
    let limit = limits.rootfs_storage_mib.unwrap_or(u64::MAX);
    fits(limit, promised.disk_mib, requested).map_err(|short| Refused::NoStorage(Storage::Disks, short))
}

async fn promised(transaction: &mut Transaction<'static, Sqlite>) -> Result<Promised, StoreError> {
    summed(&sqlx::query(PROMISED).fetch_all(&mut **transaction).await?)
}

fn summed(rows: &[SqliteRow]) -> Result<Promised, StoreError> {
    let mut promised = Promised::default();
    for row in rows {
        promised.add(parsed(row, "phase")?, number(row, "memory")?, number(row, "disk")?);
    }
    Ok(promised)
}
