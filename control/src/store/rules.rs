//! Rules of VPCs' firewalls. A rule goes with whomever it names.

use super::{Store, StoreError, now_ms, number, parsed, vpcs};
use crate::pure::rule::{Peer, RuleRefusal, WantedRule};
use crate::random;
use model::firewall::MAX_RULES;
use model::id::{AccountId, RuleId, VmId, VpcId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRecord {
    /// Its id.
    pub id: RuleId,
    /// The network.
    pub vpc: VpcId,
    /// What it does.
    pub wanted: WantedRule,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, vpc_id, wanted, created_ms FROM rules ", $rest)
    };
}

impl Store {
    /// Adds a rule to those of a VPC, behind those of its priority.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_rule(
        &self,
        account: &AccountId,
        vpc: &VpcId,
        wanted: &WantedRule,
    ) -> Result<Result<RuleRecord, RuleRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(refusal) = refusal(&mut transaction, account, vpc, std::slice::from_ref(wanted)).await? {
            return Ok(Err(refusal));
        }
        let row = sqlx::query(
            "SELECT COUNT(*) AS rules, COALESCE(MAX(place), 0) AS last FROM rules WHERE vpc_id = $1",
        )
        .bind(vpc.as_str())
        .fetch_one(&mut *transaction)
        .await?;
        let (current, limit): (u64, _) = (number(&row, "rules")?, MAX_RULES as u64);
        if current >= limit {
            return Ok(Err(RuleRefusal::TooMany { limit, current }));
        }
        let place = number::<i64>(&row, "last")? + 1;
        let made = insert(&mut transaction, vpc, wanted, place).await?;
        transaction.commit().await?;
        Ok(Ok(made))
    }

    /// Puts these rules in the place of all that a VPC has, in one step.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_rules(
        &self,
        account: &AccountId,
        vpc: &VpcId,
        wanted: &[WantedRule],
    ) -> Result<Result<(), RuleRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(refusal) = refusal(&mut transaction, account, vpc, wanted).await? {
            return Ok(Err(refusal));
        }
        let (current, limit) = (wanted.len() as u64, MAX_RULES as u64);
        if current > limit {
            return Ok(Err(RuleRefusal::TooMany { limit, current }));
        }
        sqlx::query("DELETE FROM rules WHERE vpc_id = $1")
            .bind(vpc.as_str())
            .execute(&mut *transaction)
            .await?;
        for (place, wanted) in (1..).zip(wanted) {
            insert(&mut transaction, vpc, wanted, place).await?;
        }
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// The rules of a VPC, in the order in which they judge.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rules_of(&self, vpc: &VpcId) -> Result<Vec<RuleRecord>, StoreError> {
        let rows = sqlx::query(select!("WHERE vpc_id = $1 ORDER BY priority, place"))
            .bind(vpc.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }

    /// Removes a rule of a VPC. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_rule(&self, vpc: &VpcId, id: &RuleId) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM rules WHERE id = $1 AND vpc_id = $2")
            .bind(id.as_str())
            .bind(vpc.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() == 1)
    }
}

/// All rules, those of a VPC in the order in which they judge.
pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<RuleRecord>, StoreError> {
    let rows = sqlx::query(select!("ORDER BY vpc_id, priority, place")).fetch_all(&mut **transaction).await?;
    rows.iter().map(record).collect()
}

/// Removes the rules that name a VM.
pub(super) async fn forget_vm(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &VmId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM rules WHERE vm_id = $1 OR peer_vm_id = $1")
        .bind(vm.as_str())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Removes the rules of a VPC that name another one, or somebody in it.
pub(super) async fn forget_peer(
    transaction: &mut Transaction<'static, Sqlite>,
    vpc: &VpcId,
    peer: &VpcId,
) -> Result<(), StoreError> {
    sqlx::query(
        "DELETE FROM rules WHERE vpc_id = $1
             AND (peer_vpc_id = $2 OR peer_vm_id IN (SELECT id FROM vms WHERE vpc_id = $2))",
    )
    .bind(vpc.as_str())
    .bind(peer.as_str())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Why the VPC cannot have these rules.
async fn refusal(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    vpc: &VpcId,
    wanted: &[WantedRule],
) -> Result<Option<RuleRefusal>, StoreError> {
    if vpcs::one(transaction, account, vpc).await?.is_none() {
        return Ok(Some(RuleRefusal::NoVpc(vpc.clone())));
    }
    for rule in wanted {
        if let Some(vm) = &rule.vm
            && !found(transaction, "SELECT 1 AS one FROM vms WHERE vpc_id = $1 AND id = $2", vpc, vm.as_str())
                .await?
        {
            return Ok(Some(RuleRefusal::NotMember { vm: vm.clone(), vpc: vpc.clone() }));
        }
        if !meets(transaction, vpc, &rule.peer).await? {
            return Ok(Some(RuleRefusal::Stranger { peer: rule.peer.clone(), vpc: vpc.clone() }));
        }
    }
    Ok(None)
}

/// Whether somebody is in the VPC, or in one that it reaches.
async fn meets(
    transaction: &mut Transaction<'static, Sqlite>,
    vpc: &VpcId,
    peer: &Peer,
) -> Result<bool, StoreError> {
    match peer {
        Peer::Any | Peer::Clients | Peer::Range(_) => Ok(true),
        Peer::Vpc(peer) if peer == vpc => Ok(true),
        Peer::Vpc(peer) => {
            let query = "SELECT 1 AS one FROM peerings WHERE active = 1
                 AND ((asker_id = $1 AND asked_id = $2) OR (asked_id = $1 AND asker_id = $2))";
            found(transaction, query, vpc, peer.as_str()).await
        }
        Peer::Vm(vm) => {
            let query = "SELECT 1 AS one FROM vms WHERE id = $2 AND (vpc_id = $1
                 OR vpc_id IN (SELECT asked_id FROM peerings WHERE active = 1 AND asker_id = $1)
                 OR vpc_id IN (SELECT asker_id FROM peerings WHERE active = 1 AND asked_id = $1))";
            found(transaction, query, vpc, vm.as_str()).await
        }
    }
}

async fn found(
    transaction: &mut Transaction<'static, Sqlite>,
    query: &'static str,
    vpc: &VpcId,
    id: &str,
) -> Result<bool, StoreError> {
    let row = sqlx::query(query).bind(vpc.as_str()).bind(id).fetch_optional(&mut **transaction).await?;
    Ok(row.is_some())
}

async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    vpc: &VpcId,
    wanted: &WantedRule,
    place: i64,
) -> Result<RuleRecord, StoreError> {
    let record = RuleRecord {
        id: RuleId::from_random(random::bytes()),
        vpc: vpc.clone(),
        wanted: wanted.clone(),
        created_ms: now_ms(),
    };
    let (peer_vm, peer_vpc) = match &wanted.peer {
        Peer::Any | Peer::Clients | Peer::Range(_) => (None, None),
        Peer::Vm(vm) => (Some(vm.as_str()), None),
        Peer::Vpc(vpc) => (None, Some(vpc.as_str())),
    };
    sqlx::query(
        "INSERT INTO rules (id, vpc_id, vm_id, peer_vm_id, peer_vpc_id, priority, place, wanted, created_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(record.id.as_str())
    .bind(vpc.as_str())
    .bind(wanted.vm.as_ref().map(VmId::as_str))
    .bind(peer_vm)
    .bind(peer_vpc)
    .bind(i64::from(wanted.priority))
    .bind(place)
    .bind(serde_json::to_string(wanted).unwrap_or_default())
    .bind(record.created_ms)
    .execute(&mut **transaction)
    .await?;
    Ok(record)
}

fn record(row: &SqliteRow) -> Result<RuleRecord, StoreError> {
    let wanted: String = row.try_get("wanted")?;
    Ok(RuleRecord {
        id: parsed(row, "id")?,
        vpc: parsed(row, "vpc_id")?,
        wanted: serde_json::from_str(&wanted)
            .map_err(|_| StoreError::Corrupt { column: "wanted", value: wanted })?,
        created_ms: number(row, "created_ms")?,
    })
}
