//! Identities and their tokens.

use super::{Store, StoreError, now_ms, number, parsed};
use crate::pure::identity::IdentityRefusal;
use crate::pure::phase::Phase;
use crate::random;
use model::id::{AccountId, IdentityId, TokenId, VmId};
use model::ssh::LinuxUser;
use model::token::{TokenError, TokenHash};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// Identities of one account: who makes one for each login and forgets them hears of it.
pub const MAX_IDENTITIES_OF_ACCOUNT: u64 = 4096;
/// Tokens of one identity: one for each device or program of a person.
pub const MAX_TOKENS_OF_IDENTITY: u64 = 64;
/// Tokens of one account: each is in the view of the SSH front, some 120 bytes.
pub const MAX_TOKENS_OF_ACCOUNT: u64 = 16_384;

/// An identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityRecord {
    /// Its id.
    pub id: IdentityId,
    /// Since the Unix epoch.
    pub created_ms: i64,
}

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRecord {
    /// Its id.
    pub id: TokenId,
    /// Whose it is.
    pub identity: IdentityId,
    /// What is known of its secret.
    pub hash: TokenHash,
}

/// Who has a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    /// The token.
    pub token: TokenId,
    /// Whose it is.
    pub identity: IdentityId,
    /// Whose the identity is.
    pub account: AccountId,
}

impl Store {
    /// Makes an identity, which may do nothing yet.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_identity(
        &self,
        account: &AccountId,
    ) -> Result<Result<IdentityRecord, IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        let query = "SELECT COUNT(*) AS n FROM identities WHERE account_id = $1";
        let current = count(&mut transaction, query, account.as_str()).await?;
        let limit = MAX_IDENTITIES_OF_ACCOUNT;
        if current >= limit {
            let (whose, what) = ("the account", "identities");
            return Ok(Err(IdentityRefusal::TooMany { whose, what, limit, current }));
        }
        let record = IdentityRecord { id: IdentityId::from_random(random::bytes()), created_ms: now_ms() };
        sqlx::query("INSERT INTO identities (id, account_id, created_ms) VALUES ($1, $2, $3)")
            .bind(record.id.as_str())
            .bind(account.as_str())
            .bind(record.created_ms)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// The account's identities, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn identities_of(&self, account: &AccountId) -> Result<Vec<IdentityRecord>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, created_ms FROM identities WHERE account_id = $1 ORDER BY created_ms, id",
        )
        .bind(account.as_str())
        .fetch_all(&self.readers)
        .await?;
        let record = |row: &SqliteRow| {
            Ok(IdentityRecord { id: parsed(row, "id")?, created_ms: number(row, "created_ms")? })
        };
        rows.iter().map(record).collect()
    }

    /// Deletes an identity with all that it has. Tells whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete_identity(&self, account: &AccountId, id: &IdentityId) -> Result<bool, StoreError> {
        let gone = sqlx::query("DELETE FROM identities WHERE id = $1 AND account_id = $2")
            .bind(id.as_str())
            .bind(account.as_str())
            .execute(&self.writer)
            .await?;
        Ok(gone.rows_affected() == 1)
    }

    /// Keeps a new token, of which it is told the hash alone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn create_token(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        hash: TokenHash,
    ) -> Result<Result<TokenId, IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if !owned(&mut transaction, account, identity).await? {
            return Ok(Err(IdentityRefusal::NoIdentity(identity.clone())));
        }
        let of_identity = "SELECT COUNT(*) AS n FROM tokens WHERE identity_id = $1";
        let of_account = "SELECT COUNT(*) AS n FROM tokens WHERE identity_id IN
             (SELECT id FROM identities WHERE account_id = $1)";
        for (whose, query, key, limit) in [
            ("the identity", of_identity, identity.as_str(), MAX_TOKENS_OF_IDENTITY),
            ("the account", of_account, account.as_str(), MAX_TOKENS_OF_ACCOUNT),
        ] {
            let current = count(&mut transaction, query, key).await?;
            if current >= limit {
                return Ok(Err(IdentityRefusal::TooMany { whose, what: "tokens", limit, current }));
            }
        }
        let id = TokenId::from_random(random::bytes());
        sqlx::query("INSERT INTO tokens (id, identity_id, hash, created_ms) VALUES ($1, $2, $3, $4)")
            .bind(id.as_str())
            .bind(identity.as_str())
            .bind(hash.to_string())
            .bind(now_ms())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Ok(id))
    }

    /// The tokens of an identity, the oldest first; none when the account has no such identity.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn tokens_of(
        &self,
        account: &AccountId,
        identity: &IdentityId,
    ) -> Result<Option<Vec<TokenId>>, StoreError> {
        if !self.has_identity(account, identity).await? {
            return Ok(None);
        }
        let rows = sqlx::query("SELECT id FROM tokens WHERE identity_id = $1 ORDER BY created_ms, id")
            .bind(identity.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(|row| parsed(row, "id")).collect::<Result<_, _>>().map(Some)
    }

    /// Makes a token worthless.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_token(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        token: &TokenId,
    ) -> Result<Result<(), IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if !owned(&mut transaction, account, identity).await? {
            return Ok(Err(IdentityRefusal::NoIdentity(identity.clone())));
        }
        let gone = sqlx::query("DELETE FROM tokens WHERE id = $1 AND identity_id = $2")
            .bind(token.as_str())
            .bind(identity.as_str())
            .execute(&mut *transaction)
            .await?;
        if gone.rows_affected() == 0 {
            return Ok(Err(IdentityRefusal::NoToken(token.clone())));
        }
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// Whether the account has this identity.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn has_identity(&self, account: &AccountId, identity: &IdentityId) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 AS one FROM identities WHERE id = $1 AND account_id = $2")
            .bind(identity.as_str())
            .bind(account.as_str())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.is_some())
    }

    /// Whose token has this hash, if any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn bearer(&self, hash: TokenHash) -> Result<Option<Bearer>, StoreError> {
        let row = sqlx::query(
            "SELECT tokens.id AS id, identities.id AS identity_id, account_id, hash FROM tokens
             JOIN identities ON identities.id = tokens.identity_id WHERE hash = $1",
        )
        .bind(hash.to_string())
        .fetch_optional(&self.readers)
        .await?;
        let Some(row) = row else { return Ok(None) };
        if !read_hash(&row)?.is(&hash) {
            return Ok(None);
        }
        let (token, identity) = (parsed(&row, "id")?, parsed(&row, "identity_id")?);
        Ok(Some(Bearer { token, identity, account: parsed(&row, "account_id")? }))
    }

    /// As which users a token's bearer may act in a VM (`None` within: any); none when it has no grant on it, or the
    /// token or VM is gone.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn rights(
        &self,
        token: &TokenId,
        vm: &VmId,
    ) -> Result<Option<Option<Vec<LinuxUser>>>, StoreError> {
        let row = sqlx::query(
            "SELECT allowed_users FROM tokens
             JOIN identities ON identities.id = tokens.identity_id
             JOIN vm_permissions ON vm_permissions.identity_id = identities.id
             JOIN vms ON vms.id = vm_permissions.vm_id AND vms.account_id = identities.account_id
             WHERE tokens.id = $1 AND vms.id = $2 AND vms.phase <> $3",
        )
        .bind(token.as_str())
        .bind(vm.as_str())
        .bind(Phase::Deleting.as_str())
        .fetch_optional(&self.readers)
        .await?;
        row.as_ref().map(super::grants::users).transpose()
    }
}

/// All tokens, the oldest first.
pub(super) async fn all_tokens(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<TokenRecord>, StoreError> {
    let rows = sqlx::query("SELECT id, identity_id, hash FROM tokens ORDER BY created_ms, id")
        .fetch_all(&mut **transaction)
        .await?;
    let record = |row: &SqliteRow| {
        let (id, identity) = (parsed(row, "id")?, parsed(row, "identity_id")?);
        Ok(TokenRecord { id, identity, hash: read_hash(row)? })
    };
    rows.iter().map(record).collect()
}

/// Whether the account has this identity.
pub(super) async fn owned(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    identity: &IdentityId,
) -> Result<bool, StoreError> {
    let row = sqlx::query("SELECT 1 AS one FROM identities WHERE id = $1 AND account_id = $2")
        .bind(identity.as_str())
        .bind(account.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    Ok(row.is_some())
}

/// What a query counts as `n`.
pub(super) async fn count(
    transaction: &mut Transaction<'static, Sqlite>,
    query: &'static str,
    key: &str,
) -> Result<u64, StoreError> {
    number(&sqlx::query(query).bind(key).fetch_one(&mut **transaction).await?, "n")
}

fn read_hash(row: &SqliteRow) -> Result<TokenHash, StoreError> {
    let value: String = row.try_get("hash")?;
    // The hash is not repeated in an error: it is half a secret.
    value.try_into().map_err(|_: TokenError| StoreError::Corrupt { column: "hash", value: "***".to_owned() })
}
