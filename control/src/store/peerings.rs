//! VPCs that reach each other, or are to.

use super::vpcs::{self, VpcRecord};
use super::{Store, StoreError, flag, now_ms, number, parsed, rules};
use crate::pure::peering::{PeeringRefusal, Side, disjoint};
use crate::random;
use model::id::{AccountId, PeeringId, VpcId};
use model::net::Ipv4Cidr;
use sqlx::sqlite::SqliteRow;
use sqlx::{Sqlite, Transaction};

/// Peerings of one VPC that are active or that it has asked for: each is a device in its namespace and a line of its
/// rules. What others ask of it does not count, so that nobody else can fill its places.
pub const MAX_PEERINGS_OF_VPC: u64 = 32;

/// A peering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeeringRecord {
    /// Its id.
    pub id: PeeringId,
    /// Who asked first.
    pub asker: VpcId,
    /// Who was asked.
    pub asked: VpcId,
    /// Both have asked.
    pub active: bool,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

impl PeeringRecord {
    /// The side that is not this one.
    #[must_use]
    pub fn other(&self, vpc: &VpcId) -> &VpcId {
        if self.asker == *vpc { &self.asked } else { &self.asker }
    }
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, asker_id, asked_id, active, created_ms FROM peerings ", $rest)
    };
}

impl Store {
    /// Has a VPC ask for a peering with another one. It is active at once if both are the account's, or if the other one
    /// has asked before; one that is there already is left as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ask_for_peering(
        &self,
        account: &AccountId,
        vpc: &VpcId,
        other: &VpcId,
    ) -> Result<Result<PeeringRecord, PeeringRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let Some(mine) = vpcs::one(&mut transaction, account, vpc).await? else {
            return Ok(Err(PeeringRefusal::NoVpc(vpc.clone())));
        };
        if vpc == other {
            return Ok(Err(PeeringRefusal::Itself(vpc.clone())));
        }
        let ranges = vpcs::all(&mut transaction).await?;
        let Some(theirs) = ranges.iter().find(|record| record.id == *other) else {
            return Ok(Err(PeeringRefusal::NoVpc(other.clone())));
        };
        let all = all(&mut transaction).await?;
        let there = all.iter().find(|peering| {
            let pair = (&peering.asker, &peering.asked);
            pair == (vpc, other) || pair == (other, vpc)
        });
        if let Some(there) = there
            && (there.active || there.asker == *vpc)
        {
            return Ok(Ok(there.clone()));
        }
        let active = there.is_some() || mine.account == theirs.account;
        if let Err(refusal) = admit(&all, &ranges, &mine, theirs, active) {
            return Ok(Err(refusal));
        }
        let record = PeeringRecord { active, ..there.cloned().unwrap_or_else(|| asked(vpc, other)) };
        put(&mut transaction, &record).await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// The peerings of a VPC, the oldest first, each with the other's range.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn peerings_of(&self, vpc: &VpcId) -> Result<Vec<(PeeringRecord, Ipv4Cidr)>, StoreError> {
        let rows = sqlx::query(
            "SELECT peerings.id AS id, asker_id, asked_id, active, peerings.created_ms AS created_ms, cidr
             FROM peerings JOIN vpcs ON vpcs.id = CASE WHEN asker_id = $1 THEN asked_id ELSE asker_id END
             WHERE asker_id = $1 OR asked_id = $1 ORDER BY peerings.created_ms, peerings.id",
        )
        .bind(vpc.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Ok((record(row)?, parsed(row, "cidr")?))).collect()
    }

    /// Ends a peering of a VPC, whichever side that is, with the rules of both that name the other. Tells whether there
    /// was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_peering(&self, vpc: &VpcId, id: &PeeringId) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(select!("WHERE id = $1 AND (asker_id = $2 OR asked_id = $2)"))
            .bind(id.as_str())
            .bind(vpc.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
        let Some(row) = row else { return Ok(false) };
        let peering = record(&row)?;
        rules::forget_peer(&mut transaction, &peering.asker, &peering.asked).await?;
        rules::forget_peer(&mut transaction, &peering.asked, &peering.asker).await?;
        sqlx::query("DELETE FROM peerings WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }
}

pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<PeeringRecord>, StoreError> {
    let rows = sqlx::query(select!("ORDER BY created_ms, id")).fetch_all(&mut **transaction).await?;
    rows.iter().map(record).collect()
}

/// Whether there may be the peering. Ranges are looked at when it becomes active: before that they are none of the other
/// account's business.
fn admit(
    all: &[PeeringRecord],
    ranges: &[VpcRecord],
    mine: &VpcRecord,
    theirs: &VpcRecord,
    active: bool,
) -> Result<(), PeeringRefusal> {
    let counted = if active { vec![mine, theirs] } else { vec![mine] };
    for vpc in counted {
        let of = |peering: &&PeeringRecord| {
            let this = [&peering.asker, &peering.asked].iter().all(|id| **id == mine.id || **id == theirs.id);
            !this && (peering.asker == vpc.id || (peering.active && peering.asked == vpc.id))
        };
        let (current, limit) = (all.iter().filter(of).count() as u64, MAX_PEERINGS_OF_VPC);
        if current >= limit {
            return Err(PeeringRefusal::TooMany { vpc: vpc.id.clone(), limit, current });
        }
    }
    if active { disjoint(&side(all, ranges, mine), &side(all, ranges, theirs)) } else { Ok(()) }
}

fn side(all: &[PeeringRecord], ranges: &[VpcRecord], vpc: &VpcRecord) -> Side {
    let active = all.iter().filter(|peering| peering.active);
    let mine = active.filter(|peering| peering.asker == vpc.id || peering.asked == vpc.id);
    let peer = |peering: &PeeringRecord| {
        ranges.iter().find(|record| record.id == *peering.other(&vpc.id)).map(|record| record.range)
    };
    Side { vpc: vpc.id.clone(), range: vpc.range, peers: mine.filter_map(peer).collect() }
}

fn asked(asker: &VpcId, asked: &VpcId) -> PeeringRecord {
    PeeringRecord {
        id: PeeringId::from_random(random::bytes()),
        asker: asker.clone(),
        asked: asked.clone(),
        active: false,
        created_ms: now_ms(),
    }
}

async fn put(
    transaction: &mut Transaction<'static, Sqlite>,
    peering: &PeeringRecord,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO peerings (id, asker_id, asked_id, active, created_ms) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (id) DO UPDATE SET active = $4",
    )
    .bind(peering.id.as_str())
    .bind(peering.asker.as_str())
    .bind(peering.asked.as_str())
    .bind(i64::from(peering.active))
    .bind(peering.created_ms)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn record(row: &SqliteRow) -> Result<PeeringRecord, StoreError> {
    Ok(PeeringRecord {
        id: parsed(row, "id")?,
        asker: parsed(row, "asker_id")?,
        asked: parsed(row, "asked_id")?,
        active: flag(row, "active")?,
        created_ms: number(row, "created_ms")?,
    })
}
