//! Services of this host in VPCs. A service has one address, which no other member has.

use super::vpcs::{self, NewNic};
use super::{Store, StoreError, now_ms, number, parsed};
use crate::pure::service::ServiceRefusal;
use crate::random;
use model::id::{AccountId, ServiceId, VpcId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::net::Ipv4Addr;

/// Services of one VPC: each is a device of this host.
pub const MAX_SERVICES_OF_VPC: u64 = 64;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Its id.
    pub id: ServiceId,
    /// The network.
    pub vpc: VpcId,
    /// Its name, unique in the network. Lower case.
    pub name: String,
    /// Its address.
    pub ipv4: Ipv4Addr,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

impl Store {
    /// Makes a service. One of that name, at that address if one is asked for, is left as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn make_service(
        &self,
        account: &AccountId,
        vpc: &VpcId,
        name: &str,
        ipv4: Option<Ipv4Addr>,
    ) -> Result<Result<ServiceRecord, ServiceRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if vpcs::one(&mut transaction, account, vpc).await?.is_none() {
            return Ok(Err(ServiceRefusal::NoVpc(vpc.clone())));
        }
        let there = of(&mut transaction, vpc).await?;
        if let Some(there) = there.iter().find(|service| service.name == name) {
            let fits = ipv4.is_none_or(|wanted| wanted == there.ipv4);
            let (name, ipv4) = (there.name.clone(), there.ipv4);
            return Ok(if fits { Ok(there.clone()) } else { Err(ServiceRefusal::Elsewhere { name, ipv4 }) });
        }
        let current = there.len() as u64;
        if current >= MAX_SERVICES_OF_VPC {
            return Ok(Err(ServiceRefusal::TooMany { limit: MAX_SERVICES_OF_VPC, current }));
        }
        let nic = NewNic { vpc: vpc.clone(), ipv4, default: false };
        let ipv4 = match vpcs::take(&mut transaction, account, &nic).await? {
            Ok(ipv4) => ipv4,
            Err(refusal) => return Ok(Err(ServiceRefusal::Nic(refusal))),
        };
        let record = ServiceRecord {
            id: ServiceId::from_random(random::bytes()),
            vpc: vpc.clone(),
            name: name.to_owned(),
            ipv4,
            created_ms: now_ms(),
        };
        sqlx::query("INSERT INTO services (id, vpc_id, name, ipv4, created_ms) VALUES ($1, $2, $3, $4, $5)")
            .bind(record.id.as_str())
            .bind(vpc.as_str())
            .bind(name)
            .bind(ipv4.to_string())
            .bind(record.created_ms)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// The services in a VPC, by their addresses.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn services_of(&self, vpc: &VpcId) -> Result<Vec<ServiceRecord>, StoreError> {
        let rows = sqlx::query("SELECT id, vpc_id, name, ipv4, created_ms FROM services WHERE vpc_id = $1")
            .bind(vpc.as_str())
            .fetch_all(&self.readers)
            .await?;
        let mut services = rows.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        services.sort_by_key(|service| service.ipv4);
        Ok(services)
    }

    /// Removes a service of a VPC. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_service(&self, vpc: &VpcId, id: &ServiceId) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM services WHERE id = $1 AND vpc_id = $2")
            .bind(id.as_str())
            .bind(vpc.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() == 1)
    }
}

pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<ServiceRecord>, StoreError> {
    let rows = sqlx::query("SELECT id, vpc_id, name, ipv4, created_ms FROM services ORDER BY created_ms, id")
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(record).collect()
}

async fn of(
    transaction: &mut Transaction<'static, Sqlite>,
    vpc: &VpcId,
) -> Result<Vec<ServiceRecord>, StoreError> {
    let rows = sqlx::query("SELECT id, vpc_id, name, ipv4, created_ms FROM services WHERE vpc_id = $1")
        .bind(vpc.as_str())
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(record).collect()
}

fn record(row: &SqliteRow) -> Result<ServiceRecord, StoreError> {
    Ok(ServiceRecord {
        id: parsed(row, "id")?,
        vpc: parsed(row, "vpc_id")?,
        name: row.try_get("name")?,
        ipv4: parsed(row, "ipv4")?,
        created_ms: number(row, "created_ms")?,
    })
}
