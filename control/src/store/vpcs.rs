//! VPCs and who is in them. A VM has one address: in the default network, or in one VPC of its account.

use super::vms::{self, VmRecord};
use super::{Store, StoreError, flag, now_ms, number, parsed, rules, sessions};
use crate::pure::address;
use crate::pure::vpc::{NicRefusal, fits};
use crate::pure::wireguard::first_host;
use crate::random;
use model::id::{AccountId, VmId, VpcId};
use model::net::Ipv4Cidr;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// VPCs of one account: with more of them somebody makes one for each VM, and takes the house's share of others.
pub const MAX_VPCS_OF_ACCOUNT: u64 = 100;
/// VPCs in all.
const MAX_VPCS: u64 = model::net::MAX_VPCS as u64;

/// A VPC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpcRecord {
    /// Its id.
    pub id: VpcId,
    /// Whose it is.
    pub account: AccountId,
    /// A label.
    pub name: Option<String>,
    /// Where the addresses of its members come from. Other VPCs may have the same.
    pub range: Ipv4Cidr,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

/// A NIC in a VPC, to be a VM's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNic {
    /// The VPC.
    pub vpc: VpcId,
    /// The address; the next free one when absent.
    pub ipv4: Option<Ipv4Addr>,
    /// It was said that this is the VM's way to the Internet.
    pub default: bool,
}

/// There are as many VPCs as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyVpcs {
    /// So many.
    pub limit: u64,
    /// There are so many.
    pub current: u64,
    /// The account has them alone, and not the house.
    pub of_account: bool,
}

/// What came of deleting a VPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteVpc {
    /// It is gone.
    Done,
    /// The account has no such VPC.
    NoVpc,
    /// There is somebody in it.
    InUse {
        /// So many VMs.
        vms: u64,
        /// So many services.
        services: u64,
    },
}

impl Store {
    /// Makes a VPC, if there may be one more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn insert_vpc(
        &self,
        account: &AccountId,
        name: Option<&str>,
        range: Ipv4Cidr,
    ) -> Result<Result<VpcRecord, TooManyVpcs>, StoreError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(
            "SELECT COUNT(*) AS vpcs, COUNT(CASE WHEN account_id = $1 THEN 1 END) AS mine FROM vpcs",
        )
        .bind(account.as_str())
        .fetch_one(&mut *transaction)
        .await?;
        for (column, limit, of_account) in [("mine", MAX_VPCS_OF_ACCOUNT, true), ("vpcs", MAX_VPCS, false)] {
            let current: u64 = number(&row, column)?;
            if current >= limit {
                return Ok(Err(TooManyVpcs { limit, current, of_account }));
            }
        }
        let record = VpcRecord {
            id: VpcId::from_random(random::bytes()),
            account: account.clone(),
            name: name.map(str::to_owned),
            range,
            created_ms: now_ms(),
        };
        sqlx::query(
            "INSERT INTO vpcs (id, account_id, name, cidr, last_address, created_ms) VALUES ($1, $2, $3, $4, 0, $5)",
        )
        .bind(record.id.as_str())
        .bind(account.as_str())
        .bind(name)
        .bind(range.to_string())
        .bind(record.created_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// The account's VPC of that id.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn vpc(&self, account: &AccountId, id: &VpcId) -> Result<Option<VpcRecord>, StoreError> {
        one(&mut *self.readers.acquire().await?, account, id).await
    }

    /// The account's VPCs, the newest first, each with the number of its members.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn vpcs_of(&self, account: &AccountId) -> Result<Vec<(VpcRecord, u64)>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, account_id, name, cidr, created_ms,
                 (SELECT COUNT(*) FROM vms WHERE vms.vpc_id = vpcs.id) AS members
             FROM vpcs WHERE account_id = $1 ORDER BY created_ms DESC, id",
        )
        .bind(account.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((record(row)?, number(row, "members")?))).collect()
    }

    /// Deletes a VPC that has no members, with its rules, its peerings and the sessions of its VPN clients.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_vpc(&self, account: &AccountId, id: &VpcId) -> Result<DeleteVpc, StoreError> {
        let mut transaction = self.begin().await?;
        if one(&mut transaction, account, id).await?.is_none() {
            return Ok(DeleteVpc::NoVpc);
        }
        let row = sqlx::query(
            "SELECT (SELECT COUNT(*) FROM vms WHERE vpc_id = $1) AS vms,
                 (SELECT COUNT(*) FROM services WHERE vpc_id = $1) AS services",
        )
        .bind(id.as_str())
        .fetch_one(&mut *transaction)
        .await?;
        let (vms, services) = (number(&row, "vms")?, number(&row, "services")?);
        if (vms, services) != (0, 0) {
            return Ok(DeleteVpc::InUse { vms, services });
        }
        sqlx::query("DELETE FROM vpcs WHERE id = $1").bind(id.as_str()).execute(&mut *transaction).await?;
        transaction.commit().await?;
        Ok(DeleteVpc::Done)
    }

    /// Whether a VM of the account could have this NIC at this moment. Takes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn nic_fits(
        &self,
        account: &AccountId,
        nic: &NewNic,
    ) -> Result<Result<(), NicRefusal>, StoreError> {
        let found = find(&mut *self.readers.acquire().await?, account, nic).await?;
        Ok(found.map(drop))
    }

    /// Moves a VM into a VPC of its account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn attach(
        &self,
        vm: &VmRecord,
        nic: &NewNic,
    ) -> Result<Result<VmRecord, NicRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let ipv4 = match take(&mut transaction, &vm.account, nic).await? {
            Ok(ipv4) => ipv4,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let moved = VmRecord { vpc: Some(nic.vpc.clone()), vpc_default: nic.default, ipv4, ..vm.clone() };
        vms::set_network(&mut transaction, &moved).await?;
        transaction.commit().await?;
        Ok(Ok(moved))
    }

    /// Moves a VM into the default network. Rules that name it go, and sessions of which it is the gateway end.
    ///
    /// # Errors
    /// [`StoreError`]; [`StoreError::NoAddress`] when that is full.
    pub async fn detach(&self, vm: &VmRecord, network: Ipv4Cidr) -> Result<VmRecord, StoreError> {
        let mut transaction = self.begin().await?;
        let ipv4 = vms::take_address(&mut transaction, network).await?;
        let moved = VmRecord { vpc: None, vpc_default: false, ipv4, ..vm.clone() };
        leave(&mut transaction, &vm.id).await?;
        vms::set_network(&mut transaction, &moved).await?;
        transaction.commit().await?;
        Ok(moved)
    }
}

pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<VpcRecord>, StoreError> {
    let rows = sqlx::query("SELECT id, account_id, name, cidr, created_ms FROM vpcs ORDER BY created_ms, id")
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(record).collect()
}

/// A VM is no member of its VPC any more: what was there because of it goes.
pub(super) async fn leave(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &VmId,
) -> Result<(), StoreError> {
    rules::forget_vm(transaction, vm).await?;
    sessions::end_with_gateway(transaction, vm).await
}

/// Takes an address of a VPC for a VM or a service of the account. One that was given back is used again as late as possible, unless
/// it is asked for.
pub(super) async fn take(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    nic: &NewNic,
) -> Result<Result<Ipv4Addr, NicRefusal>, StoreError> {
    let ipv4 = match find(transaction, account, nic).await? {
        Ok(ipv4) => ipv4,
        Err(refusal) => return Ok(Err(refusal)),
    };
    if nic.ipv4.is_none() {
        sqlx::query("UPDATE vpcs SET last_address = $1 WHERE id = $2")
            .bind(i64::from(ipv4.to_bits()))
            .bind(nic.vpc.as_str())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(Ok(ipv4))
}

/// The address that a VM with this NIC has.
async fn find(
    connection: &mut SqliteConnection,
    account: &AccountId,
    nic: &NewNic,
) -> Result<Result<Ipv4Addr, NicRefusal>, StoreError> {
    let Some(vpc) = one(connection, account, &nic.vpc).await? else {
        return Ok(Err(NicRefusal::NoVpc(nic.vpc.clone())));
    };
    let mut used = members(connection, &vpc.id).await?;
    let (hidden, first) = (hides_clients(connection).await?, first_host(vpc.range));
    if hidden && nic.ipv4 == Some(first) {
        return Ok(Err(NicRefusal::Hidden { ipv4: first, vpc: vpc.id }));
    }
    if hidden {
        used.insert(first);
    }
    let Some(ipv4) = nic.ipv4 else {
        let last = last_address(connection, &vpc.id).await?;
        let limit = vpc.range.host_count().saturating_sub(u64::from(hidden));
        return Ok(address::next(vpc.range, last, &used).ok_or(NicRefusal::Full {
            vpc: vpc.id,
            range: vpc.range,
            limit,
        }));
    };
    let taken = || NicRefusal::Taken { ipv4, vpc: vpc.id.clone() };
    Ok(fits(&vpc.id, vpc.range, ipv4)
        .and_then(|()| if used.contains(&ipv4) { Err(taken()) } else { Ok(ipv4) }))
}

/// The account's VPC of that id.
pub(super) async fn one(
    connection: &mut SqliteConnection,
    account: &AccountId,
    id: &VpcId,
) -> Result<Option<VpcRecord>, StoreError> {
    let row = sqlx::query(
        "SELECT id, account_id, name, cidr, created_ms FROM vpcs WHERE id = $1 AND account_id = $2",
    )
    .bind(id.as_str())
    .bind(account.as_str())
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(record).transpose()
}

/// Addresses of members, VMs and services.
pub(super) async fn members(
    connection: &mut SqliteConnection,
    vpc: &VpcId,
) -> Result<BTreeSet<Ipv4Addr>, StoreError> {
    let rows = sqlx::query(
        "SELECT ipv4 FROM vms WHERE vpc_id = $1 UNION ALL SELECT ipv4 FROM services WHERE vpc_id = $1",
    )
    .bind(vpc.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| parsed(row, "ipv4")).collect()
}

/// Whether members see VPN clients under their VPC's first address.
pub(super) async fn hides_clients(connection: &mut SqliteConnection) -> Result<bool, StoreError> {
    let row =
        sqlx::query("SELECT value FROM counters WHERE name = 'hidden_clients'").fetch_one(connection).await?;
    flag(&row, "value")
}

async fn last_address(connection: &mut SqliteConnection, vpc: &VpcId) -> Result<Ipv4Addr, StoreError> {
    let row = sqlx::query("SELECT last_address FROM vpcs WHERE id = $1")
        .bind(vpc.as_str())
        .fetch_one(connection)
        .await?;
    Ok(Ipv4Addr::from_bits(number(&row, "last_address")?))
}

fn record(row: &SqliteRow) -> Result<VpcRecord, StoreError> {
    Ok(VpcRecord {
        id: parsed(row, "id")?,
        account: parsed(row, "account_id")?,
        name: row.try_get("name")?,
        range: parsed(row, "cidr")?,
        created_ms: number(row, "created_ms")?,
    })
}
