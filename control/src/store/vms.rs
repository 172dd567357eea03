//! VMs and their addresses.

use super::domains;
use super::mappings::{self, NewMapping, PutMapping};
use super::room::{self, Admission, Refused};
use super::vpcs::{self, NewNic};
use super::{Store, StoreError, flag, grants, maybe_number, maybe_parsed, now_ms, number, parsed, signed};
use crate::pure::address;
use crate::pure::phase::{Next, Phase, Run, Step};
use crate::random;
use model::api::vm::Persistence;
use model::config::{VmLimits, VmSize};
use model::id::{AccountId, SnapshotId, VmId, VmInstanceId, VpcId};
use model::net::Ipv4Cidr;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// A VM's last use is written at most so often: each write waits for the disk.
const LAST_USE_STEP_MS: i64 = 10_000;

/// A VM as control knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRecord {
    /// Its id.
    pub id: VmId,
    /// Whose it is.
    pub account: AccountId,
    /// A label.
    pub name: Option<String>,
    /// The folder below `images` from which it boots.
    pub image: String,
    /// How large it is.
    pub size: VmSize,
    /// The VPC that it is in; the default network when absent.
    pub vpc: Option<VpcId>,
    /// It was said that its NIC in the VPC is its way to the Internet. With one NIC it is in either case.
    pub vpc_default: bool,
    /// Its address in that network, for as long as it is in it.
    pub ipv4: Ipv4Addr,
    /// What control means to do with it.
    pub phase: Phase,
    /// Its newest run.
    pub instance: VmInstanceId,
    /// Grows with each start, each wake and each reboot.
    pub run: u64,
    /// The copy that it was made from, if it was not made from its image.
    pub origin: Option<SnapshotId>,
    /// Suspend after so long without traffic; never when absent.
    pub idle_timeout_seconds: Option<u64>,
    /// Bytes within that time which count as traffic.
    pub activity_threshold_bytes: Option<u64>,
    /// What becomes of it when nobody uses it.
    pub persistence: Persistence,
    /// Why it went down last.
    pub exit_status: Option<String>,
    /// Since the Unix epoch.
    pub created_ms: i64,
    /// Started, woken, or a command or file asked for: since the Unix epoch, to a few seconds.
    pub last_used_ms: i64,
}

/// A VM to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVm {
    /// Whose it is.
    pub account: AccountId,
    /// A label.
    pub name: Option<String>,
    /// The folder below `images` from which it boots.
    pub image: String,
    /// The copy to make it from; its image when absent.
    pub origin: Option<SnapshotId>,
    /// How large it is.
    pub size: VmSize,
    /// See [`VmRecord`].
    pub idle_timeout_seconds: Option<u64>,
    /// See [`VmRecord`].
    pub activity_threshold_bytes: Option<u64>,
    /// See [`VmRecord`].
    pub persistence: Persistence,
    /// Names to map to it.
    pub mappings: Vec<NewMapping>,
    /// Its NIC in a VPC; in the default network when absent.
    pub nic: Option<NewNic>,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, account_id, name, image, vcpus, memory_mib, disk_mib, ipv4, phase, instance_id, run,
             idle_timeout_seconds, activity_threshold_bytes, persistence, exit_status, created_ms, origin_id, last_used_ms,
             vpc_id, vpc_default FROM vms ",
            $rest
        )
    };
}

impl Store {
    /// Makes a VM, if there is room, in phase [`Phase::Building`], with an address and its mappings.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::NoAddress`] when the network is full.
    pub async fn insert_vm(
        &self,
        new: &NewVm,
        limits: &VmLimits,
        network: Ipv4Cidr,
    ) -> Result<Admission<VmRecord>, StoreError> {
        let mut transaction = self.begin().await?;
        let id = VmId::from_random(random::bytes());
        if let Err(refused) = room::for_new(&mut transaction, new, 1, limits).await? {
            return Ok(Admission::Refused(refused));
        }
        let made = insert_one(&mut transaction, id, new, network).await?;
        if matches!(made, Admission::Done(_)) {
            transaction.commit().await?;
        }
        Ok(made)
    }

    /// The VM of that id, whoever owns it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn vm(&self, id: &VmId) -> Result<Option<VmRecord>, StoreError> {
        let row =
            sqlx::query(select!("WHERE id = $1")).bind(id.as_str()).fetch_optional(&self.readers).await?;
        row.as_ref().map(record).transpose()
    }

    /// The account's VMs, the newest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn vms_of(&self, account: &AccountId) -> Result<Vec<VmRecord>, StoreError> {
        let rows = sqlx::query(select!("WHERE account_id = $1 ORDER BY created_ms DESC, id"))
            .bind(account.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }

    /// The VMs in a VPC, by their addresses.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn vms_in(&self, vpc: &VpcId) -> Result<Vec<VmRecord>, StoreError> {
        let rows =
            sqlx::query(select!("WHERE vpc_id = $1")).bind(vpc.as_str()).fetch_all(&self.readers).await?;
        let mut members = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        members.sort_by_key(|vm| vm.ipv4);
        Ok(members)
    }

    /// All VMs of all accounts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn vms(&self) -> Result<Vec<VmRecord>, StoreError> {
        let rows = sqlx::query(select!("ORDER BY created_ms, id")).fetch_all(&self.readers).await?;
        rows.iter().map(record).collect()
    }

    /// How many VMs there are in each phase that one is in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn phases(&self) -> Result<Vec<(Phase, u64)>, StoreError> {
        let rows = sqlx::query("SELECT phase, COUNT(*) AS vms FROM vms GROUP BY phase")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok((parsed(row, "phase")?, number(row, "vms")?))).collect()
    }

    /// Writes down what is meant next for a VM, before it is done. A VM that is to be deleted loses its mappings in
    /// the same moment, and the grants, rules and VPN sessions that hang on it; one that is gone loses its record. A new run
    /// needs memory, a sleep a place for it on the disk.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn apply(
        &self,
        vm: &VmRecord,
        step: &Step,
        exit: Option<&str>,
        limits: &VmLimits,
    ) -> Result<Admission<VmRecord>, StoreError> {
        let mut next = vm.clone();
        next.exit_status = exit.map(str::to_owned).or(next.exit_status);
        let Next::Phase(phase) = step.next else {
            sqlx::query("DELETE FROM vms WHERE id = $1").bind(vm.id.as_str()).execute(&self.writer).await?;
            return Ok(Admission::Done(next));
        };
        next.phase = phase;
        if step.run == Run::New {
            next.instance = VmInstanceId::from_random(random::bytes());
        }
        if step.run != Run::Same {
            next.run += 1;
            next.last_used_ms = now_ms();
        }
        let mut transaction = self.begin().await?;
        if let Err(refused) = room::for_step(&mut transaction, vm, step, phase, limits).await? {
            return Ok(Admission::Refused(refused));
        }
        if phase == Phase::Deleting {
            domains::end_with_vm(&mut transaction, vm.id.as_str()).await?;
            grants::end_with_vm(&mut transaction, &vm.id).await?;
            vpcs::leave(&mut transaction, &vm.id).await?;
        }
        sqlx::query(
            "UPDATE vms SET phase = $1, instance_id = $2, run = $3, exit_status = $4,
             last_used_ms = COALESCE($6, last_used_ms) WHERE id = $5",
        )
        .bind(phase.as_str())
        .bind(next.instance.as_str())
        .bind(signed(next.run))
        .bind(next.exit_status.as_deref())
        .bind(vm.id.as_str())
        .bind((step.run != Run::Same).then_some(next.last_used_ms))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Admission::Done(next))
    }

    /// Counts a reboot: connections from before it are worth nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bump_run(&self, id: &VmId) -> Result<(), StoreError> {
        sqlx::query("UPDATE vms SET run = run + 1 WHERE id = $1")
            .bind(id.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Changes how long a VM may be idle; what is `None` stays.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_idle(
        &self,
        id: &VmId,
        timeout: Option<Option<u64>>,
        threshold: Option<u64>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(seconds) = timeout {
            sqlx::query("UPDATE vms SET idle_timeout_seconds = $1 WHERE id = $2")
                .bind(seconds.map(signed))
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        if let Some(bytes) = threshold {
            sqlx::query("UPDATE vms SET activity_threshold_bytes = $1 WHERE id = $2")
                .bind(signed(bytes))
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Changes how large a VM is; what runs is not touched.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn set_size(&self, id: &VmId, size: VmSize) -> Result<(), StoreError> {
        sqlx::query("UPDATE vms SET vcpus = $1, memory_mib = $2, disk_mib = $3 WHERE id = $4")
            .bind(i64::from(size.vcpus))
            .bind(i64::from(size.memory_mib))
            .bind(i64::from(size.disk_mib))
            .bind(id.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Notes that a VM is used, if that was not noted a moment ago.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn touch(&self, vm: &VmRecord) -> Result<(), StoreError> {
        let now = now_ms();
        if now - vm.last_used_ms >= LAST_USE_STEP_MS {
            sqlx::query("UPDATE vms SET last_used_ms = $1 WHERE id = $2 AND last_used_ms < $1")
                .bind(now)
                .bind(vm.id.as_str())
                .execute(&self.writer)
                .await?;
        }
        Ok(())
    }
}

pub(super) async fn all(transaction: &mut Transaction<'static, Sqlite>) -> Result<Vec<VmRecord>, StoreError> {
    let rows = sqlx::query(select!("ORDER BY created_ms, id")).fetch_all(&mut **transaction).await?;
    rows.iter().map(record).collect()
}

/// Makes one VM, for which there is room, within a transaction, which is to be given up unless the answer is [`Admission::Done`].
pub(super) async fn insert_one(
    transaction: &mut Transaction<'static, Sqlite>,
    id: VmId,
    new: &NewVm,
    network: Ipv4Cidr,
) -> Result<Admission<VmRecord>, StoreError> {
    let now = now_ms();
    let ipv4 = match &new.nic {
        None => take_address(transaction, network).await?,
        Some(nic) => match vpcs::take(transaction, &new.account, nic).await? {
            Ok(ipv4) => ipv4,
            Err(refusal) => return Ok(Admission::Refused(Refused::Nic(refusal))),
        },
    };
    let record = VmRecord {
        id,
        account: new.account.clone(),
        name: new.name.clone(),
        image: new.image.clone(),
        size: new.size,
        vpc: new.nic.as_ref().map(|nic| nic.vpc.clone()),
        vpc_default: new.nic.as_ref().is_some_and(|nic| nic.default),
        ipv4,
        phase: Phase::Building,
        instance: VmInstanceId::from_random(random::bytes()),
        run: 1,
        origin: new.origin.clone(),
        idle_timeout_seconds: new.idle_timeout_seconds,
        activity_threshold_bytes: new.activity_threshold_bytes,
        persistence: new.persistence.clone(),
        exit_status: None,
        created_ms: now,
        last_used_ms: now,
    };
    insert(transaction, &record).await?;
    for mapping in &new.mappings {
        let put = mappings::put(transaction, &new.account, &record.id, mapping).await?;
        if !matches!(put, PutMapping::Done(_)) {
            return Ok(Admission::Refused(Refused::Taken(mapping.host.clone())));
        }
    }
    Ok(Admission::Done(record))
}

/// The next address of the default network that nobody has. One that was given back is used again as late as possible, since others may
/// still hold connections to its last owner.
pub(super) async fn take_address(
    transaction: &mut Transaction<'static, Sqlite>,
    network: Ipv4Cidr,
) -> Result<Ipv4Addr, StoreError> {
    let rows = sqlx::query("SELECT ipv4 FROM vms WHERE vpc_id IS NULL").fetch_all(&mut **transaction).await?;
    let used = rows.iter().map(|row| parsed(row, "ipv4")).collect::<Result<BTreeSet<_>, _>>()?;
    let row = sqlx::query("SELECT value FROM counters WHERE name = 'address'")
        .fetch_one(&mut **transaction)
        .await?;
    let last = Ipv4Addr::from_bits(number(&row, "value")?);
    let address = address::next(network, last, &used).ok_or(StoreError::NoAddress)?;
    sqlx::query("UPDATE counters SET value = $1 WHERE name = 'address'")
        .bind(i64::from(address.to_bits()))
        .execute(&mut **transaction)
        .await?;
    Ok(address)
}

/// Writes down in which network a VM is, and where.
pub(super) async fn set_network(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &VmRecord,
) -> Result<(), StoreError> {
    sqlx::query("UPDATE vms SET vpc_id = $1, vpc_default = $2, ipv4 = $3 WHERE id = $4")
        .bind(vm.vpc.as_ref().map(VpcId::as_str))
        .bind(i64::from(vm.vpc_default))
        .bind(vm.ipv4.to_string())
        .bind(vm.id.as_str())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

async fn insert(transaction: &mut Transaction<'static, Sqlite>, vm: &VmRecord) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO vms (id, account_id, name, image, vcpus, memory_mib, disk_mib, ipv4, phase, instance_id,
             run, idle_timeout_seconds, activity_threshold_bytes, persistence, exit_status, created_ms, origin_id,
             last_used_ms, vpc_id, vpc_default)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)",
    )
    .bind(vm.id.as_str())
    .bind(vm.account.as_str())
    .bind(vm.name.as_deref())
    .bind(vm.image.as_str())
    .bind(i64::from(vm.size.vcpus))
    .bind(i64::from(vm.size.memory_mib))
    .bind(i64::from(vm.size.disk_mib))
    .bind(vm.ipv4.to_string())
    .bind(vm.phase.as_str())
    .bind(vm.instance.as_str())
    .bind(signed(vm.run))
    .bind(vm.idle_timeout_seconds.map(signed))
    .bind(vm.activity_threshold_bytes.map(signed))
    .bind(serde_json::to_string(&vm.persistence).unwrap_or_default())
    .bind(vm.exit_status.as_deref())
    .bind(vm.created_ms)
    .bind(vm.origin.as_ref().map(SnapshotId::as_str))
    .bind(vm.last_used_ms)
    .bind(vm.vpc.as_ref().map(VpcId::as_str))
    .bind(i64::from(vm.vpc_default))
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn record(row: &SqliteRow) -> Result<VmRecord, StoreError> {
    let persistence: String = row.try_get("persistence")?;
    Ok(VmRecord {
        id: parsed(row, "id")?,
        account: parsed(row, "account_id")?,
        name: row.try_get("name")?,
        image: row.try_get("image")?,
        size: VmSize {
            vcpus: number(row, "vcpus")?,
            memory_mib: number(row, "memory_mib")?,
            disk_mib: number(row, "disk_mib")?,
        },
        vpc: maybe_parsed(row, "vpc_id")?,
        vpc_default: flag(row, "vpc_default")?,
        ipv4: parsed(row, "ipv4")?,
        phase: parsed(row, "phase")?,
        instance: parsed(row, "instance_id")?,
        run: number(row, "run")?,
        idle_timeout_seconds: maybe_number(row, "idle_timeout_seconds")?,
        activity_threshold_bytes: maybe_number(row, "activity_threshold_bytes")?,
        persistence: serde_json::from_str(&persistence)
            .map_err(|_| StoreError::Corrupt { column: "persistence", value: persistence })?,
        exit_status: row.try_get("exit_status")?,
        created_ms: number(row, "created_ms")?,
        origin: maybe_parsed(row, "origin_id")?,
        last_used_ms: number(row, "last_used_ms")?,
    })
}
