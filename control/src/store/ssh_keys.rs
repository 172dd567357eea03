//! Public keys that log in by SSH.

use super::identities::{count, owned};
use super::{Store, StoreError, maybe_parsed, now_ms, number, parsed};
use crate::pure::identity::IdentityRefusal;
use crate::random;
use model::id::{AccountId, IdentityId, SshKeyId};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// Keys of one identity, and of an account itself: one for each of a person's computers.
pub const MAX_KEYS_OF_ONE: u64 = 32;
/// Keys of one account with its identities: each is in the view of the SSH front, up to 3 KiB.
pub const MAX_KEYS_OF_ACCOUNT: u64 = 2048;

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKeyRecord {
    /// Its id.
    pub id: SshKeyId,
    /// The account.
    pub account: AccountId,
    /// Its identity; the account itself when absent.
    pub identity: Option<IdentityId>,
    /// Type and base64.
    pub key: String,
    /// For people.
    pub name: Option<String>,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!("SELECT id, account_id, identity_id, public_key, name, created_ms FROM ssh_keys ", $rest)
    };
}

impl Store {
    /// Registers a key of an identity, or of the account itself.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn add_ssh_key(
        &self,
        account: &AccountId,
        identity: Option<&IdentityId>,
        key: &str,
        name: Option<&str>,
    ) -> Result<Result<SshKeyRecord, IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(refusal) = unfit(&mut transaction, account, identity, key).await? {
            return Ok(Err(refusal));
        }
        let record = SshKeyRecord {
            id: SshKeyId::from_random(random::bytes()),
            account: account.clone(),
            identity: identity.cloned(),
            key: key.to_owned(),
            name: name.map(str::to_owned),
            created_ms: now_ms(),
        };
        sqlx::query(
            "INSERT INTO ssh_keys (id, account_id, identity_id, public_key, name, created_ms)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(record.id.as_str())
        .bind(account.as_str())
        .bind(identity.map(IdentityId::as_str))
        .bind(key)
        .bind(name)
        .bind(record.created_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// The keys of an identity, or of the account itself, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn ssh_keys_of(
        &self,
        account: &AccountId,
        identity: Option<&IdentityId>,
    ) -> Result<Vec<SshKeyRecord>, StoreError> {
        let rows = sqlx::query(select!(
            "WHERE account_id = $1 AND COALESCE(identity_id, '') = $2 ORDER BY created_ms, id"
        ))
        .bind(account.as_str())
        .bind(identity.map_or("", IdentityId::as_str))
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(record).collect()
    }

    /// Forgets a key of an identity, or of the account itself. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_ssh_key(
        &self,
        account: &AccountId,
        identity: Option<&IdentityId>,
        id: &SshKeyId,
    ) -> Result<bool, StoreError> {
        let gone = sqlx::query(
            "DELETE FROM ssh_keys WHERE id = $1 AND account_id = $2 AND COALESCE(identity_id, '') = $3",
        )
        .bind(id.as_str())
        .bind(account.as_str())
        .bind(identity.map_or("", IdentityId::as_str))
        .execute(&self.writer)
        .await?;
        Ok(gone.rows_affected() == 1)
    }
}

/// All keys, the oldest first.
pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<SshKeyRecord>, StoreError> {
    let rows = sqlx::query(select!("ORDER BY created_ms, id")).fetch_all(&mut **transaction).await?;
    rows.iter().map(record).collect()
}

async fn unfit(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    identity: Option<&IdentityId>,
    key: &str,
) -> Result<Option<IdentityRefusal>, StoreError> {
    if let Some(identity) = identity
        && !owned(transaction, account, identity).await?
    {
        return Ok(Some(IdentityRefusal::NoIdentity(identity.clone())));
    }
    let query = "SELECT COUNT(*) AS n FROM ssh_keys WHERE account_id = $1";
    let all = count(transaction, query, account.as_str()).await?;
    let (whose, query, id) = match identity {
        Some(id) => {
            ("the identity", "SELECT COUNT(*) AS n FROM ssh_keys WHERE identity_id = $1", id.as_str())
        }
        None => (
            "the account",
            "SELECT COUNT(*) AS n FROM ssh_keys WHERE account_id = $1 AND identity_id IS NULL",
            account.as_str(),
        ),
    };
    let mine = count(transaction, query, id).await?;
    let limits = [(whose, mine, MAX_KEYS_OF_ONE), ("the account", all, MAX_KEYS_OF_ACCOUNT)];
    for (whose, current, limit) in limits {
        if current >= limit {
            return Ok(Some(IdentityRefusal::TooMany { whose, what: "SSH keys", limit, current }));
        }
    }
    let row = sqlx::query(
        "SELECT 1 AS one FROM ssh_keys
         WHERE account_id = $1 AND COALESCE(identity_id, '') = $2 AND public_key = $3",
    )
    .bind(account.as_str())
    .bind(identity.map_or("", IdentityId::as_str))
    .bind(key)
    .fetch_optional(&mut **transaction)
    .await?;
    Ok(row.map(|_| IdentityRefusal::KeyThere))
}

fn record(row: &SqliteRow) -> Result<SshKeyRecord, StoreError> {
    Ok(SshKeyRecord {
        id: parsed(row, "id")?,
        account: parsed(row, "account_id")?,
        identity: maybe_parsed(row, "identity_id")?,
        key: row.try_get("public_key")?,
        name: row.try_get("name")?,
        created_ms: number(row, "created_ms")?,
    })
}
