//! Proofs of domains: those that were begun, and those that stand.

use super::{Store, StoreError, now_ms, number, parsed};
use crate::pure::domain::{Proofs, ancestry};
use crate::random;
use model::host::{HostName, MappedName};
use model::id::{AccountId, DomainId, VerificationId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// Domains that one account may have proved: an agency's customers fit, and each costs a look a day at most.
pub const MAX_DOMAINS_OF_ACCOUNT: u64 = 500;
/// Proofs that one account may have begun.
pub const MAX_VERIFICATIONS_OF_ACCOUNT: u64 = 100;
/// Names whose VM was deleted that are remembered, of all accounts; the oldest are forgotten first.
const MAX_GONE: i64 = 10_000;
/// Longest text of an error that is kept, in characters.
const MAX_ERROR_CHARS: usize = 1000;

/// A proof that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerificationRecord {
    /// Its id.
    pub id: VerificationId,
    /// Who began it.
    pub account: AccountId,
    /// What is to be proved.
    pub domain: HostName,
    /// What the record must have.
    pub code: String,
    /// Since the Unix epoch.
    pub created_ms: i64,
    /// Why the last look found no proof.
    pub last_error: Option<String>,
}

/// A domain that was proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainRecord {
    /// Its id.
    pub id: DomainId,
    /// The name.
    pub domain: HostName,
    /// Whose it is.
    pub account: AccountId,
    /// What the record has.
    pub code: String,
    /// Since the Unix epoch.
    pub created_ms: i64,
    /// When the proof was last seen.
    pub proved_ms: i64,
    /// When it was last looked for.
    pub checked_ms: i64,
    /// Looks in a row at which the servers had it no more.
    pub misses: u32,
    /// Why the last look found no proof.
    pub last_error: Option<String>,
}

/// What came of beginning a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BeginProof {
    /// It waits for the record; the same code as before when it was begun before.
    Begun(VerificationRecord),
    /// The account has it already.
    Proved,
    /// There are as many as there may be.
    TooMany {
        /// How many there may be.
        limit: u64,
        /// How many there are.
        current: u64,
    },
}

/// What came of a proof that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Took {
    /// The domain is the account's.
    Domain(DomainRecord),
    /// The verification was cancelled meanwhile.
    Cancelled,
    /// The account has as many as it may have.
    TooMany {
        /// How many there may be.
        limit: u64,
        /// How many there are.
        current: u64,
    },
}

const VERIFICATIONS: &str = "SELECT id, account_id, domain, code, created_ms, last_error FROM verifications";
const DOMAINS: &str =
    "SELECT id, domain, account_id, code, created_ms, proved_ms, checked_ms, misses, last_error FROM domains";

impl Store {
    /// Begins a proof with a new code, or tells the code of the one that was begun.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin_proof(
        &self,
        account: &AccountId,
        domain: &HostName,
        code: &str,
    ) -> Result<BeginProof, StoreError> {
        let mut transaction = self.begin().await?;
        let owner = sqlx::query("SELECT account_id FROM domains WHERE domain = $1 AND misses = 0")
            .bind(domain.as_str())
            .fetch_optional(&mut *transaction)
            .await?;
        if owner.map(|row| parsed::<AccountId>(&row, "account_id")).transpose()?.as_ref() == Some(account) {
            return Ok(BeginProof::Proved);
        }
        let begun = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{VERIFICATIONS} WHERE account_id = $1 AND domain = $2"
        )))
        .bind(account.as_str())
        .bind(domain.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(begun) = begun {
            return Ok(BeginProof::Begun(verification(&begun)?));
        }
        let current = count(
            &mut transaction,
            "SELECT COUNT(*) AS many FROM verifications WHERE account_id = $1",
            account,
        )
        .await?;
        if current >= MAX_VERIFICATIONS_OF_ACCOUNT {
            return Ok(BeginProof::TooMany { limit: MAX_VERIFICATIONS_OF_ACCOUNT, current });
        }
        let record = VerificationRecord {
            id: VerificationId::from_random(random::bytes()),
            account: account.clone(),
            domain: domain.clone(),
            code: code.to_owned(),
            created_ms: now_ms(),
            last_error: None,
        };
        sqlx::query("INSERT INTO verifications (id, account_id, domain, code, created_ms) VALUES ($1, $2, $3, $4, $5)")
            .bind(record.id.as_str())
            .bind(account.as_str())
            .bind(domain.as_str())
            .bind(code)
            .bind(record.created_ms)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(BeginProof::Begun(record))
    }

    /// The account's proofs that were begun, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn verifications_of(&self, account: &AccountId) -> Result<Vec<VerificationRecord>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "{VERIFICATIONS} WHERE account_id = $1 ORDER BY created_ms, id"
        )))
        .bind(account.as_str())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(verification).collect()
    }

    /// Gives a proof up. Tells whether there was one with that code.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel_proof(
        &self,
        account: &AccountId,
        domain: &HostName,
        code: &str,
    ) -> Result<bool, StoreError> {
        let gone =
            sqlx::query("DELETE FROM verifications WHERE account_id = $1 AND domain = $2 AND code = $3")
                .bind(account.as_str())
                .bind(domain.as_str())
                .bind(code)
                .execute(&self.writer)
                .await?;
        Ok(gone.rows_affected() == 1)
    }

    /// Writes down why a look found no proof.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn proof_failed(&self, id: &VerificationId, why: &str) -> Result<(), StoreError> {
        sqlx::query("UPDATE verifications SET last_error = $1 WHERE id = $2")
            .bind(short(why))
            .bind(id.as_str())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Gives a domain to whom its proof was found for. Another's proof of it ends, and with it, in the same moment, the
    /// mappings of all who have no right to their names any more.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn take_domain(&self, found: &VerificationRecord) -> Result<Took, StoreError> {
        let mut transaction = self.begin().await?;
        let ended = sqlx::query("DELETE FROM verifications WHERE id = $1")
            .bind(found.id.as_str())
            .execute(&mut *transaction)
            .await?;
        if ended.rows_affected() == 0 {
            return Ok(Took::Cancelled);
        }
        // One that is proved anew takes no more place.
        let others =
            sqlx::query("SELECT COUNT(*) AS many FROM domains WHERE account_id = $1 AND domain <> $2")
                .bind(found.account.as_str())
                .bind(found.domain.as_str())
                .fetch_one(&mut *transaction)
                .await?;
        let current: u64 = number(&others, "many")?;
        if current >= MAX_DOMAINS_OF_ACCOUNT {
            return Ok(Took::TooMany { limit: MAX_DOMAINS_OF_ACCOUNT, current });
        }
        let now = now_ms();
        sqlx::query(
            "INSERT INTO domains (id, domain, account_id, code, created_ms, proved_ms, checked_ms, misses)
             VALUES ($1, $2, $3, $4, $5, $5, $5, 0)
             ON CONFLICT (domain) DO UPDATE SET id = excluded.id, account_id = excluded.account_id,
                 code = excluded.code, created_ms = excluded.created_ms, proved_ms = excluded.proved_ms,
                 checked_ms = excluded.checked_ms, misses = 0, last_error = NULL",
        )
        .bind(DomainId::from_random(random::bytes()).as_str())
        .bind(found.domain.as_str())
        .bind(found.account.as_str())
        .bind(&found.code)
        .bind(now)
        .execute(&mut *transaction)
        .await?;
        let domains = all(&mut transaction).await?;
        end_foreign(&mut transaction, &found.domain, &domains).await?;
        transaction.commit().await?;
        let mine = domains.into_iter().find(|domain| domain.domain == found.domain);
        Ok(mine.map_or(Took::Cancelled, Took::Domain))
    }

    /// Writes down a look at a proof that stood. `missed` is why it does not stand, `denied` whether the servers were
    /// heard. Nothing happens when the domain was given to another meanwhile.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn looked_at(
        &self,
        domain: &DomainRecord,
        missed: Option<&str>,
        denied: bool,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE domains SET checked_ms = $1, last_error = $2,
                 proved_ms = CASE WHEN $2 IS NULL THEN $1 ELSE proved_ms END,
                 misses = CASE WHEN $2 IS NULL THEN 0 WHEN $3 = 1 THEN misses + 1 ELSE misses END
             WHERE id = $4",
        )
        .bind(now_ms())
        .bind(missed.map(short))
        .bind(i64::from(denied))
        .bind(domain.id.as_str())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// All proofs of all accounts, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn domains(&self) -> Result<Vec<DomainRecord>, StoreError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{DOMAINS} ORDER BY created_ms, id")))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }
}

/// Whether the account may map the name by a proof.
pub(super) async fn rules_over(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    name: &MappedName,
) -> Result<bool, StoreError> {
    for above in ancestry(name.base()) {
        let row = sqlx::query("SELECT account_id FROM domains WHERE domain = $1")
            .bind(above.as_str())
            .fetch_optional(&mut **transaction)
            .await?;
        if let Some(row) = row {
            return Ok(parsed::<AccountId>(&row, "account_id")? == *account);
        }
    }
    Ok(false)
}

pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<DomainRecord>, StoreError> {
    let rows = sqlx::query(sqlx::AssertSqlSafe(format!("{DOMAINS} ORDER BY created_ms, id")))
        .fetch_all(&mut **transaction)
        .await?;
    rows.iter().map(record).collect()
}

/// Names whose VM was deleted.
pub(super) async fn gone(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<MappedName>, StoreError> {
    let rows =
        sqlx::query("SELECT host FROM gone_mappings ORDER BY host").fetch_all(&mut **transaction).await?;
    rows.iter().map(|row| parsed(row, "host")).collect()
}

/// Ends the mappings of a VM that is to be deleted, and remembers their names.
pub(super) async fn end_with_vm(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO gone_mappings (host, gone_ms) SELECT host, $2 FROM mappings WHERE vm_id = $1
         ON CONFLICT (host) DO UPDATE SET gone_ms = excluded.gone_ms",
    )
    .bind(vm)
    .bind(now_ms())
    .execute(&mut **transaction)
    .await?;
    sqlx::query("DELETE FROM mappings WHERE vm_id = $1").bind(vm).execute(&mut **transaction).await?;
    sqlx::query(
        "DELETE FROM gone_mappings WHERE host NOT IN
             (SELECT host FROM gone_mappings ORDER BY gone_ms DESC, host LIMIT $1)",
    )
    .bind(MAX_GONE)
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Ends mappings at and below a domain whose accounts the proofs do not name.
async fn end_foreign(
    transaction: &mut Transaction<'static, Sqlite>,
    domain: &HostName,
    domains: &[DomainRecord],
) -> Result<(), StoreError> {
    let proofs = Proofs::of(domains);
    for mapping in super::mappings::all(transaction).await? {
        let here = mapping.host.base().is_within(domain);
        let right = proofs.over(&mapping.host).is_some_and(|proof| proof.account == mapping.account);
        if here && !right {
            sqlx::query("DELETE FROM mappings WHERE id = $1")
                .bind(mapping.id.as_str())
                .execute(&mut **transaction)
                .await?;
        }
    }
    Ok(())
}

async fn count(
    transaction: &mut Transaction<'static, Sqlite>,
    statement: &'static str,
    account: &AccountId,
) -> Result<u64, StoreError> {
    let row = sqlx::query(statement).bind(account.as_str()).fetch_one(&mut **transaction).await?;
    number(&row, "many")
}

fn short(text: &str) -> String {
    text.chars().take(MAX_ERROR_CHARS).collect()
}

fn verification(row: &SqliteRow) -> Result<VerificationRecord, StoreError> {
    Ok(VerificationRecord {
        id: parsed(row, "id")?,
        account: parsed(row, "account_id")?,
        domain: parsed(row, "domain")?,
        code: row.try_get("code")?,
        created_ms: number(row, "created_ms")?,
        last_error: row.try_get("last_error")?,
    })
}

fn record(row: &SqliteRow) -> Result<DomainRecord, StoreError> {
    Ok(DomainRecord {
        id: parsed(row, "id")?,
        domain: parsed(row, "domain")?,
        account: parsed(row, "account_id")?,
        code: row.try_get("code")?,
        created_ms: number(row, "created_ms")?,
        proved_ms: number(row, "proved_ms")?,
        checked_ms: number(row, "checked_ms")?,
        misses: number(row, "misses")?,
        last_error: row.try_get("last_error")?,
    })
}
