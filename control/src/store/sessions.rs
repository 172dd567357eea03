//! VPN sessions: who may come into a VPC, and until when. They end with it, with the API key that made them, and with
//! their gateway.

use super::{Store, StoreError, maybe_number, maybe_parsed, now_ms, number, parsed, vpcs};
use crate::pure::address;
use crate::pure::phase::Phase;
use crate::pure::wireguard::{SessionRefusal, first_host};
use model::id::{AccountId, ApiKeyId, VmId, VpcId, WireGuardSessionId};
use model::key::PublicKey;
use model::net::Ipv4Cidr;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Sessions of one VPC: a large team's laptops and their spares.
pub const MAX_SESSIONS_OF_VPC: u64 = 128;
/// Sessions of the house: its door serves no more.
pub const MAX_SESSIONS: u64 = 65_536;
/// Sessions of one account: with more of them somebody makes one for each request, and leaves them open.
pub const MAX_SESSIONS_OF_ACCOUNT: u64 = 512;

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub id: WireGuardSessionId,
    /// The network that it leads into.
    pub vpc: VpcId,
    /// Whose it is.
    pub account: AccountId,
    /// The member with which it ends.
    pub gateway: Option<VmId>,
    /// Who the client is. No two sessions share one.
    pub client_key: PublicKey,
    /// The second secret, sealed.
    pub preshared: String,
    /// The client's address in the tunnel, unique in its network.
    pub ipv4: Ipv4Addr,
    /// Since the Unix epoch.
    pub created_ms: i64,
    /// When it ends, since the Unix epoch.
    pub expires_ms: i64,
}

/// A session to make.
#[derive(Clone, Debug)]
pub struct NewSession {
    /// Its id: its secret is sealed for it.
    pub id: WireGuardSessionId,
    /// The network.
    pub vpc: VpcId,
    /// Whose it is to be.
    pub account: AccountId,
    /// With which API key it was asked for.
    pub key: Option<ApiKeyId>,
    /// The member with which it is to end.
    pub gateway: Option<VmId>,
    /// Who the client is.
    pub client_key: PublicKey,
    /// The second secret, sealed.
    pub preshared: String,
    /// How long it lasts.
    pub lasts_ms: i64,
    /// Where clients' addresses come from.
    pub pool: Ipv4Cidr,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, vpc_id, account_id, gateway_vm_id, client_key, preshared_key, ipv4, created_ms, expires_ms
             FROM sessions ",
            $rest
        )
    };
}

impl Store {
    /// Makes a session. One with the same key and gateway in the same VPC is left as it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_session(
        &self,
        new: &NewSession,
    ) -> Result<Result<SessionRecord, SessionRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let now = now_ms();
        sqlx::query("DELETE FROM sessions WHERE expires_ms <= $1")
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        let ipv4 = match admit(&mut transaction, new).await? {
            Ok(Admitted::New(ipv4)) => ipv4,
            Ok(Admitted::There(record)) => return Ok(Ok(*record)),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let record = SessionRecord {
            id: new.id.clone(),
            vpc: new.vpc.clone(),
            account: new.account.clone(),
            gateway: new.gateway.clone(),
            client_key: new.client_key,
            preshared: new.preshared.clone(),
            ipv4,
            created_ms: now,
            expires_ms: now.saturating_add(new.lasts_ms),
        };
        insert(&mut transaction, &record, new.key.as_ref()).await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// The sessions into a VPC that are not over, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sessions_of(&self, vpc: &VpcId) -> Result<Vec<SessionRecord>, StoreError> {
        let rows = sqlx::query(select!("WHERE vpc_id = $1 AND expires_ms > $2 ORDER BY created_ms, id"))
            .bind(vpc.as_str())
            .bind(now_ms())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }

    /// Ends a session into a VPC. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn close_session(&self, vpc: &VpcId, id: &WireGuardSessionId) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM sessions WHERE id = $1 AND vpc_id = $2")
            .bind(id.as_str())
            .bind(vpc.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() == 1)
    }

    /// Ends sessions whose clients were silent for too long; tells how many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_idle_sessions(&self, idled: &[WireGuardSessionId]) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let mut ended = 0;
        for id in idled {
            let gone = sqlx::query("DELETE FROM sessions WHERE id = $1")
                .bind(id.as_str())
                .execute(&mut *transaction)
                .await?;
            ended += gone.rows_affected();
        }
        transaction.commit().await?;
        Ok(ended)
    }

    /// Removes sessions that are over; tells how many those were, and when the next one ends.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn end_sessions(&self) -> Result<(u64, Option<i64>), StoreError> {
        let gone = sqlx::query("DELETE FROM sessions WHERE expires_ms <= $1")
            .bind(now_ms())
            .execute(&self.writer)
            .await?;
        let row =
            sqlx::query("SELECT MIN(expires_ms) AS next FROM sessions").fetch_one(&self.readers).await?;
        Ok((gone.rows_affected(), maybe_number(&row, "next")?))
    }

    /// Takes the settings of the VPN's door: ends the sessions whose address is not of the pool, or whose network
    /// overlaps it, and keeps each VPC's first address free while clients are hidden behind it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn settle_clients(&self, pool: Ipv4Cidr, hidden: bool) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("UPDATE counters SET value = $1 WHERE name = 'hidden_clients'")
            .bind(i64::from(hidden))
            .execute(&mut *transaction)
            .await?;
        let ranges = vpcs::all(&mut transaction).await?;
        for session in all(&mut transaction).await? {
            let overlaps = ranges.iter().any(|vpc| vpc.id == session.vpc && vpc.range.overlaps(pool));
            if overlaps || !pool.contains(session.ipv4) {
                sqlx::query("DELETE FROM sessions WHERE id = $1")
                    .bind(session.id.as_str())
                    .execute(&mut *transaction)
                    .await?;
            }
        }
        Ok(transaction.commit().await?)
    }
}

/// All sessions that are not over.
pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<SessionRecord>, StoreError> {
    let rows = sqlx::query(select!("WHERE expires_ms > $1 ORDER BY created_ms, id"))
        .bind(now_ms())
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(record).collect()
}

/// Ends the sessions of which a VM is the gateway.
pub(super) async fn end_with_gateway(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &VmId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM sessions WHERE gateway_vm_id = $1")
        .bind(vm.as_str())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

enum Admitted {
    New(Ipv4Addr),
    There(Box<SessionRecord>),
}

/// Whether there may be the session, and which address its client gets.
async fn admit(
    transaction: &mut Transaction<'static, Sqlite>,
    new: &NewSession,
) -> Result<Result<Admitted, SessionRefusal>, StoreError> {
    let Some(vpc) = vpcs::one(transaction, &new.account, &new.vpc).await? else {
        return Ok(Err(SessionRefusal::NoVpc(new.vpc.clone())));
    };
    if let Some(refusal) = unfit(transaction, new, &vpc).await? {
        return Ok(Err(refusal));
    }
    let same = sqlx::query(select!("WHERE client_key = $1"))
        .bind(new.client_key.to_string())
        .fetch_optional(&mut **transaction)
        .await?;
    if let Some(row) = same {
        let there = record(&row)?;
        let fits = (&there.vpc, &there.gateway) == (&new.vpc, &new.gateway);
        return Ok(if fits { Ok(Admitted::There(Box::new(there))) } else { Err(SessionRefusal::KeyTaken) });
    }
    Ok(place(transaction, new).await?.map(Admitted::New))
}

/// What is wrong with a session into this network.
async fn unfit(
    transaction: &mut Transaction<'static, Sqlite>,
    new: &NewSession,
    vpc: &vpcs::VpcRecord,
) -> Result<Option<SessionRefusal>, StoreError> {
    if let Some(key) = &new.key
        && !there(transaction, "SELECT 1 AS one FROM api_keys WHERE id = $1", key.as_str()).await?
    {
        return Ok(Some(SessionRefusal::KeyRevoked));
    }
    if vpc.range.overlaps(new.pool) {
        let (vpc, range) = (vpc.id.clone(), vpc.range);
        return Ok(Some(SessionRefusal::Overlap { vpc, range, pool: new.pool }));
    }
    let first = first_host(vpc.range);
    if vpcs::hides_clients(transaction).await? && vpcs::members(transaction, &vpc.id).await?.contains(&first)
    {
        return Ok(Some(SessionRefusal::FirstTaken { vpc: vpc.id.clone(), ipv4: first }));
    }
    let Some(vm) = &new.gateway else { return Ok(None) };
    let row = sqlx::query(
        "SELECT 1 AS one FROM vms WHERE id = $1 AND vpc_id = $2 AND account_id = $3 AND phase <> $4",
    )
    .bind(vm.as_str())
    .bind(vpc.id.as_str())
    .bind(new.account.as_str())
    .bind(Phase::Deleting.as_str())
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(row.is_none().then(|| SessionRefusal::NotMember { vm: vm.clone(), vpc: vpc.id.clone() }))
}

async fn there(
    transaction: &mut Transaction<'static, Sqlite>,
    query: &'static str,
    id: &str,
) -> Result<bool, StoreError> {
    Ok(sqlx::query(query).bind(id).fetch_optional(&mut **transaction).await?.is_some())
}

/// Takes an address of the pool. One that was given back is used again as late as possible: its last client may still
/// send from it.
async fn place(
    transaction: &mut Transaction<'static, Sqlite>,
    new: &NewSession,
) -> Result<Result<Ipv4Addr, SessionRefusal>, StoreError> {
    let counts =
        "SELECT COUNT(*) AS everybodys, COUNT(CASE WHEN account_id = $1 THEN 1 END) AS mine FROM sessions";
    let row = sqlx::query(counts).bind(new.account.as_str()).fetch_one(&mut **transaction).await?;
    let rows = sqlx::query("SELECT ipv4 FROM sessions WHERE vpc_id = $1")
        .bind(new.vpc.as_str())
        .fetch_all(&mut **transaction)
        .await?;
    let mut used = rows.iter().map(|row| parsed(row, "ipv4")).collect::<Result<BTreeSet<_>, _>>()?;
    let of_pool = MAX_SESSIONS_OF_VPC.min(new.pool.host_count().saturating_sub(1));
    for (whose, current, limit) in [
        ("the house", number(&row, "everybodys")?, MAX_SESSIONS),
        ("the account", number(&row, "mine")?, MAX_SESSIONS_OF_ACCOUNT),
        ("the VPC", used.len() as u64, of_pool),
    ] {
        if current >= limit {
            return Ok(Err(SessionRefusal::TooMany { whose, limit, current }));
        }
    }
    // The door's own.
    used.insert(first_host(new.pool));
    let row = sqlx::query("SELECT last_client FROM vpcs WHERE id = $1")
        .bind(new.vpc.as_str())
        .fetch_one(&mut **transaction)
        .await?;
    let last = Ipv4Addr::from_bits(number(&row, "last_client")?);
    let Some(ipv4) = address::next(new.pool, last, &used) else {
        return Ok(Err(SessionRefusal::TooMany { whose: "the VPC", limit: of_pool, current: of_pool }));
    };
    sqlx::query("UPDATE vpcs SET last_client = $1 WHERE id = $2")
        .bind(i64::from(ipv4.to_bits()))
        .bind(new.vpc.as_str())
        .execute(&mut **transaction)
        .await?;
    Ok(Ok(ipv4))
}

async fn insert(
    transaction: &mut Transaction<'static, Sqlite>,
    session: &SessionRecord,
    key: Option<&ApiKeyId>,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO sessions (id, vpc_id, account_id, key_id, gateway_vm_id, client_key, preshared_key, ipv4,
             created_ms, expires_ms)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
    )
    .bind(session.id.as_str())
    .bind(session.vpc.as_str())
    .bind(session.account.as_str())
    .bind(key.map(ApiKeyId::as_str))
    .bind(session.gateway.as_ref().map(VmId::as_str))
    .bind(session.client_key.to_string())
    .bind(session.preshared.as_str())
    .bind(session.ipv4.to_string())
    .bind(session.created_ms)
    .bind(session.expires_ms)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

fn record(row: &SqliteRow) -> Result<SessionRecord, StoreError> {
    Ok(SessionRecord {
        id: parsed(row, "id")?,
        vpc: parsed(row, "vpc_id")?,
        account: parsed(row, "account_id")?,
        gateway: maybe_parsed(row, "gateway_vm_id")?,
        client_key: parsed(row, "client_key")?,
        preshared: row.try_get("preshared_key")?,
        ipv4: parsed(row, "ipv4")?,
        created_ms: number(row, "created_ms")?,
        expires_ms: number(row, "expires_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_has_more_than_may_be_and_what_is_over_is_in_nobodys_way() {
        let folder = tempfile::tempdir().expect("folder");
        let store = Store::open(&folder.path().join("control.db")).await.expect("opened");
        let account = store.default_account().await.expect("account").id;
        let range = "10.0.0.0/24".parse().expect("range");
        let mut vpcs = Vec::new();
        for _ in 0..5 {
            let made = store.insert_vpc(&account, None, range).await.expect("store").expect("made");
            vpcs.push(made.id);
        }
        let session = |number: u64, vpc: &VpcId, lasts_ms: i64| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            NewSession {
                id: WireGuardSessionId::from_random(crate::random::bytes()),
                vpc: vpc.clone(),
                account: account.clone(),
                key: None,
                gateway: None,
                client_key: PublicKey(key),
                preshared: String::new(),
                lasts_ms,
                pool: "100.96.0.0/16".parse().expect("pool"),
            }
        };
        let open = async |new: NewSession| store.open_session(&new).await.expect("store");
        let mut first = None;
        for number in 0..MAX_SESSIONS_OF_ACCOUNT {
            let vpc = &vpcs[usize::try_from(number / MAX_SESSIONS_OF_VPC).expect("small")];
            let made = open(session(number, vpc, 60_000)).await.expect("made");
            first.get_or_insert(made.id);
            if number + 1 == MAX_SESSIONS_OF_VPC {
                let more = open(session(u64::MAX, vpc, 60_000)).await.expect_err("full");
                let limit = MAX_SESSIONS_OF_VPC;
                assert_eq!(more, SessionRefusal::TooMany { whose: "the VPC", limit, current: limit });
            }
        }
        let more = open(session(u64::MAX, &vpcs[4], 60_000)).await.expect_err("full");
        let limit = MAX_SESSIONS_OF_ACCOUNT;
        assert_eq!(more, SessionRefusal::TooMany { whose: "the account", limit, current: limit });

        assert!(store.close_session(&vpcs[0], &first.expect("made")).await.expect("store"));
        let over = open(session(0, &vpcs[4], 0)).await.expect("made");
        assert!(store.sessions_of(&vpcs[4]).await.expect("store").is_empty());
        let same = open(session(0, &vpcs[4], 60_000)).await.expect("its key is free again");
        assert_ne!((same.id, same.ipv4), (over.id, over.ipv4));
        let (ended, next) = store.end_sessions().await.expect("store");
        assert!(ended == 0 && next.is_some_and(|next| next > now_ms()), "{ended} {next:?}");
        let gone = NewSession { key: Some(ApiKeyId::from_random([1; 20])), ..session(0, &vpcs[3], 1) };
        assert_eq!(open(gone).await.expect_err("revoked"), SessionRefusal::KeyRevoked);

        store.settle_clients("100.97.0.0/16".parse().expect("pool"), true).await.expect("store");
        assert_eq!(store.end_sessions().await.expect("store"), (0, None), "none is of the new pool");
    }
}
