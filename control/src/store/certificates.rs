//! Certificates of the authority, and orders under way.

use super::{Store, StoreError, flag, maybe_number, now_ms, number, parsed};
use crate::pure::certificate::{BUDGET_WINDOW, Standing};
use model::digest::Digest;
use model::host::{HostName, MappedName};
use model::id::AccountId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};
use std::collections::{BTreeMap, BTreeSet};

/// A name, what serves it, and what is under way for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRecord {
    /// The name.
    pub name: MappedName,
    /// The certificate that serves, if there is one.
    pub issued: Option<IssuedRecord>,
    /// The order under way, if there is one.
    pub order: Option<OrderRecord>,
    /// Failures in a row.
    pub failures: u32,
    /// Not tried before.
    pub next_ms: i64,
    /// What went wrong last, and when.
    pub last_error: Option<(String, i64)>,
    /// Whether it is to be shown and renewed.
    pub wanted: bool,
}

/// A certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuedRecord {
    /// Leaf first, PEM.
    pub chain_pem: String,
    /// Its key, sealed.
    pub sealed_key: String,
    /// It is good from here on.
    pub not_before_ms: i64,
    /// And no longer.
    pub not_after_ms: i64,
    /// When the next one is due.
    pub renew_ms: i64,
}

/// An order that the authority knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderRecord {
    /// Where it stands.
    pub url: String,
    /// The key of its certificate, sealed.
    pub sealed_key: String,
}

const COLUMNS: &str =
    "SELECT name, chain_pem, sealed_key, not_before_ms, not_after_ms, renew_ms, order_url, order_key,
    failures, next_ms, last_error, last_error_ms, wanted FROM certificates";

impl Store {
    /// All names, wanted or not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificates(&self) -> Result<Vec<CertificateRecord>, StoreError> {
        let rows = sqlx::query(COLUMNS).fetch_all(&self.readers).await?;
        rows.iter().map(record).collect()
    }

    /// How far each wanted name is, without its certificate: that is asked for often, and certificates are large.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn standings(&self) -> Result<BTreeMap<MappedName, Standing>, StoreError> {
        let rows = sqlx::query("SELECT name, renew_ms, next_ms, ask_ms FROM certificates WHERE wanted = 1")
            .fetch_all(&self.readers)
            .await?;
        let standing = |row: &SqliteRow| {
            Ok((
                parsed(row, "name")?,
                Standing {
                    renew_ms: maybe_number(row, "renew_ms")?,
                    next_ms: number(row, "next_ms")?,
                    ask_ms: number(row, "ask_ms")?,
                },
            ))
        };
        rows.iter().map(standing).collect()
    }

    /// One name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificate(&self, name: &MappedName) -> Result<Option<CertificateRecord>, StoreError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("{COLUMNS} WHERE name = $1")))
            .bind(name.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(record).transpose()
    }

    /// Makes these the names that are wanted. One that is not is kept while its certificate is good: a name that is
    /// mapped again needs no new order. Tells whether anything changed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn want_certificates(&self, names: &BTreeSet<MappedName>) -> Result<bool, StoreError> {
        let now = now_ms();
        let mut transaction = self.begin().await?;
        let rows = sqlx::query("SELECT name, wanted, not_after_ms FROM certificates")
            .fetch_all(&mut *transaction)
            .await?;
        let mut missing = names.clone();
        let mut changed = false;
        for row in &rows {
            let name: MappedName = parsed(row, "name")?;
            let (was, is) = (flag(row, "wanted")?, missing.remove(&name));
            let good = maybe_number::<i64>(row, "not_after_ms")?.is_some_and(|end| end > now);
            let statement = match (was, is) {
                (true, true) => continue,
                (false, false) if good => continue,
                (_, false) if !good => "DELETE FROM certificates WHERE name = $1",
                (_, false) => "UPDATE certificates SET wanted = 0 WHERE name = $1",
                (false, true) => "UPDATE certificates SET wanted = 1 WHERE name = $1",
            };
            sqlx::query(statement).bind(name.to_string()).execute(&mut *transaction).await?;
            changed = true;
        }
        for name in &missing {
            sqlx::query("INSERT INTO certificates (name, wanted, created_ms) VALUES ($1, 1, $2)")
                .bind(name.to_string())
                .bind(now)
                .execute(&mut *transaction)
                .await?;
            changed = true;
        }
        transaction.commit().await?;
        Ok(changed)
    }

    /// The times of the orders that still count, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn orders(&self) -> Result<Vec<i64>, StoreError> {
        let rows = sqlx::query("SELECT at_ms FROM acme_orders WHERE at_ms > $1 ORDER BY at_ms")
            .bind(now_ms().saturating_sub(window()))
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| number(row, "at_ms")).collect()
    }

    /// Counts an order that is about to be made. What was counted before the window is forgotten.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn count_order(&self) -> Result<(), StoreError> {
        let now = now_ms();
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM acme_orders WHERE at_ms <= $1")
            .bind(now.saturating_sub(window()))
            .execute(&mut *transaction)
            .await?;
        sqlx::query("INSERT INTO acme_orders (at_ms) VALUES ($1)")
            .bind(now)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// Writes down an order that the authority knows, or that there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_order(&self, name: &MappedName, order: Option<&OrderRecord>) -> Result<(), StoreError> {
        sqlx::query("UPDATE certificates SET order_url = $2, order_key = $3 WHERE name = $1")
            .bind(name.to_string())
            .bind(order.map(|order| &order.url))
            .bind(order.map(|order| &order.sealed_key))
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Puts a new certificate in place of the last one; the order for it is over. `file` is what it will be shown from.
    /// The authority is not asked when to renew before `ask_ms`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_certificate(
        &self,
        name: &MappedName,
        issued: &IssuedRecord,
        file: Digest,
        ask_ms: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE certificates SET chain_pem = $2, sealed_key = $3, not_before_ms = $4, not_after_ms = $5,
                renew_ms = $6, ask_ms = $7, file = $8, order_url = NULL, order_key = NULL, failures = 0, next_ms = 0,
                last_error = NULL, last_error_ms = NULL WHERE name = $1",
        )
        .bind(name.to_string())
        .bind(&issued.chain_pem)
        .bind(&issued.sealed_key)
        .bind(issued.not_before_ms)
        .bind(issued.not_after_ms)
        .bind(issued.renew_ms)
        .bind(ask_ms)
        .bind(file.to_string())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// The names with a certificate for which no file is known.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn without_file(&self) -> Result<Vec<MappedName>, StoreError> {
        let rows = sqlx::query("SELECT name FROM certificates WHERE chain_pem IS NOT NULL AND file IS NULL")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| parsed(row, "name")).collect()
    }

    /// Writes down from which file a certificate is shown, if it is still this one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_file(
        &self,
        name: &MappedName,
        issued: &IssuedRecord,
        file: Digest,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE certificates SET file = $3 WHERE name = $1 AND sealed_key = $2")
            .bind(name.to_string())
            .bind(&issued.sealed_key)
            .bind(file.to_string())
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Writes down that a certificate cannot be shown, and why: another one is due at once. It is kept, since the right
    /// key may come back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificate_lost(
        &self,
        name: &MappedName,
        issued: &IssuedRecord,
        why: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE certificates SET file = NULL, renew_ms = 0, last_error = $3, last_error_ms = $4
             WHERE name = $1 AND sealed_key = $2",
        )
        .bind(name.to_string())
        .bind(&issued.sealed_key)
        .bind(why)
        .bind(now_ms())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Writes down when to renew, and when to ask again.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn plan_renewal(
        &self,
        name: &MappedName,
        renew_ms: Option<i64>,
        ask_ms: i64,
    ) -> Result<(), StoreError> {
        sqlx::query("UPDATE certificates SET renew_ms = COALESCE($2, renew_ms), ask_ms = $3 WHERE name = $1")
            .bind(name.to_string())
            .bind(renew_ms)
            .bind(ask_ms)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Writes down that all names below a domain are to be certified, for as long as the account has proved it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn wish_wildcard(&self, account: &AccountId, domain: &HostName) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO wildcard_wishes (domain, account_id, created_ms) VALUES ($1, $2, $3)
             ON CONFLICT (domain, account_id) DO NOTHING",
        )
        .bind(domain.as_str())
        .bind(account.as_str())
        .bind(now_ms())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// All such domains, and who asked.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn wildcard_wishes(&self) -> Result<Vec<(AccountId, HostName)>, StoreError> {
        let rows = sqlx::query("SELECT account_id, domain FROM wildcard_wishes ORDER BY domain, account_id")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| Ok((parsed(row, "account_id")?, parsed(row, "domain")?))).collect()
    }

    /// Writes down a failure, and when to try again. What serves goes on to.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn certificate_failed(
        &self,
        name: &MappedName,
        why: &str,
        next_ms: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE certificates SET failures = failures + 1, next_ms = $2, last_error = $3, last_error_ms = $4
             WHERE name = $1",
        )
        .bind(name.to_string())
        .bind(next_ms)
        .bind(why)
        .bind(now_ms())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Lets a name be tried at once, also one that has a certificate. Tells whether it is wanted.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hurry_certificate(&self, name: &MappedName) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE certificates SET next_ms = 0, renew_ms = CASE WHEN renew_ms IS NULL THEN NULL ELSE 0 END
             WHERE name = $1 AND wanted = 1",
        )
        .bind(name.to_string())
        .execute(&self.writer)
        .await?;
        Ok(done.rows_affected() == 1)
    }
}

/// Those that are to be shown, by the names of their files.
pub(super) async fn shown(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<(MappedName, Digest)>, StoreError> {
    let rows = sqlx::query(
        "SELECT name, file FROM certificates WHERE wanted = 1 AND file IS NOT NULL ORDER BY name",
    )
    .fetch_all(&mut **transaction)
    .await?;
    rows.iter().map(|row| Ok((parsed(row, "name")?, parsed(row, "file")?))).collect()
}

fn window() -> i64 {
    i64::try_from(BUDGET_WINDOW.as_millis()).unwrap_or(i64::MAX)
}

fn record(row: &SqliteRow) -> Result<CertificateRecord, StoreError> {
    let chain_pem: Option<String> = row.try_get("chain_pem")?;
    let sealed_key: Option<String> = row.try_get("sealed_key")?;
    let issued = match (chain_pem, sealed_key) {
        (Some(chain_pem), Some(sealed_key)) => Some(IssuedRecord {
            chain_pem,
            sealed_key,
            not_before_ms: number(row, "not_before_ms")?,
            not_after_ms: number(row, "not_after_ms")?,
            renew_ms: number(row, "renew_ms")?,
        }),
        _ => None,
    };
    let url: Option<String> = row.try_get("order_url")?;
    let key: Option<String> = row.try_get("order_key")?;
    let why: Option<String> = row.try_get("last_error")?;
    Ok(CertificateRecord {
        name: parsed(row, "name")?,
        issued,
        order: url.zip(key).map(|(url, sealed_key)| OrderRecord { url, sealed_key }),
        failures: number(row, "failures")?,
        next_ms: number(row, "next_ms")?,
        last_error: why.zip(maybe_number(row, "last_error_ms")?),
        wanted: flag(row, "wanted")?,
    })
}
