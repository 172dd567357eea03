//! Accounts and their API keys.

use super::{Store, StoreError, maybe_number, now_ms, number, parsed};
use crate::random;
use model::id::{AccountId, ApiKeyId};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

/// The name of the account that is made at the first start.
const DEFAULT_ACCOUNT: &str = "default";
/// A key's last use is written at most so often, so that reading does not become writing.
const LAST_USE_STEP_MS: i64 = 60_000;

/// Who owns VMs, mappings and keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// As people name it.
    pub name: String,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRecord {
    /// Its public name.
    pub id: ApiKeyId,
    /// Whose it is.
    pub account: AccountId,
    /// What it is for.
    pub name: Option<String>,
    /// Since the Unix epoch.
    pub created_ms: i64,
    /// Since the Unix epoch, to the minute.
    pub last_used_ms: Option<i64>,
}

impl Store {
    /// The oldest account; the first call makes it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn default_account(&self) -> Result<Account, StoreError> {
        if let Some(first) = self.accounts().await?.into_iter().next() {
            return Ok(first);
        }
        self.create_account(DEFAULT_ACCOUNT).await?;
        let all = self.accounts().await?;
        all.into_iter().next().ok_or(StoreError::Query(sqlx::Error::RowNotFound))
    }

    /// Makes an account; none when another one has the name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_account(&self, name: &str) -> Result<Option<Account>, StoreError> {
        let account = Account {
            id: AccountId::from_random(random::bytes()),
            name: name.to_owned(),
            created_ms: now_ms(),
        };
        let made = sqlx::query(
            "INSERT INTO accounts (id, name, created_ms) VALUES ($1, $2, $3) ON CONFLICT (name) DO NOTHING",
        )
        .bind(account.id.as_str())
        .bind(name)
        .bind(account.created_ms)
        .execute(&self.writer)
        .await?;
        Ok((made.rows_affected() == 1).then_some(account))
    }

    /// All accounts, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn accounts(&self) -> Result<Vec<Account>, StoreError> {
        let rows = sqlx::query("SELECT id, name, created_ms FROM accounts ORDER BY created_ms, id")
            .fetch_all(&self.readers)
            .await?;
        let account = |row: &SqliteRow| {
            Ok(Account {
                id: parsed(row, "id")?,
                name: row.try_get("name")?,
                created_ms: number(row, "created_ms")?,
            })
        };
        rows.iter().map(account).collect()
    }

    /// Whether there is such an account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_account(&self, id: &AccountId) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 AS one FROM accounts WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.is_some())
    }

    /// Keeps a new key, of which it is told the hash alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_key(
        &self,
        account: &AccountId,
        name: Option<&str>,
        hash: &str,
    ) -> Result<ApiKeyId, StoreError> {
        let id = ApiKeyId::from_random(random::bytes());
        sqlx::query(
            "INSERT INTO api_keys (id, account_id, name, hash, created_ms) VALUES ($1, $2, $3, $4, $5)",
        )
        .bind(id.as_str())
        .bind(account.as_str())
        .bind(name)
        .bind(hash)
        .bind(now_ms())
        .execute(&self.writer)
        .await?;
        Ok(id)
    }

    /// All keys, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, account_id, name, created_ms, last_used_ms FROM api_keys ORDER BY created_ms, id",
        )
        .fetch_all(&self.readers)
        .await?;
        let key = |row: &SqliteRow| {
            Ok(KeyRecord {
                id: parsed(row, "id")?,
                account: parsed(row, "account_id")?,
                name: row.try_get("name")?,
                created_ms: number(row, "created_ms")?,
                last_used_ms: maybe_number(row, "last_used_ms")?,
            })
        };
        rows.iter().map(key).collect()
    }

    /// Makes a key worthless, and ends the VPN sessions that were made with it. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_key(&self, id: &ApiKeyId) -> Result<bool, StoreError> {
        let gone =
            sqlx::query("DELETE FROM api_keys WHERE id = $1").bind(id.as_str()).execute(&self.writer).await?;
        Ok(gone.rows_affected() == 1)
    }

    /// Whose key has this hash, if any, and which it is; notes the use.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn account_of_key(&self, hash: &str) -> Result<Option<(AccountId, ApiKeyId)>, StoreError> {
        let row = sqlx::query("SELECT id, account_id, last_used_ms FROM api_keys WHERE hash = $1")
            .bind(hash)
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let (now, last) = (now_ms(), maybe_number::<i64>(&row, "last_used_ms")?);
        if last.is_none_or(|last| now - last >= LAST_USE_STEP_MS) {
            sqlx::query("UPDATE api_keys SET last_used_ms = $1 WHERE hash = $2")
                .bind(now)
                .bind(hash)
                .execute(&self.writer)
                .await?;
        }
        Ok(Some((parsed(&row, "account_id")?, parsed(&row, "id")?)))
    }
}
