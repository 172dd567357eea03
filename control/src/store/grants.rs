//! What identities may do: grants on VMs, and on repositories of the git front to come.

use super::identities::{count, owned};
use super::{Store, StoreError, now_ms, number, parsed};
use crate::pure::identity::IdentityRefusal;
use crate::pure::phase::Phase;
use crate::random;
use model::api::identity::GitAccess;
use model::id::{AccountId, IdentityId, VmId, VmPermissionId};
use model::ssh::LinuxUser;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, Sqlite, Transaction};

/// Grants of one identity, on VMs and on repositories each.
pub const MAX_GRANTS_OF_IDENTITY: u64 = 256;
/// Grants on VMs of one account: each is in the view of the SSH front, with users some 500 bytes at most.
pub const MAX_GRANTS_OF_ACCOUNT: u64 = 16_384;

/// A grant on a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantRecord {
    /// Its id.
    pub id: VmPermissionId,
    /// Who may.
    pub identity: IdentityId,
    /// In which VM.
    pub vm: VmId,
    /// As which Linux users; any when absent.
    pub allowed_users: Option<Vec<LinuxUser>>,
    /// Who granted it.
    pub granted_by: String,
    /// Since the Unix epoch.
    pub granted_ms: i64,
}

macro_rules! select {
    ($rest:literal) => {
        concat!(
            "SELECT id, identity_id, vm_id, allowed_users, granted_by, granted_ms FROM vm_permissions ",
            $rest
        )
    };
}

impl Store {
    /// Grants an identity a VM of its account.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn grant_vm(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        vm: &VmId,
        allowed_users: Option<Vec<LinuxUser>>,
    ) -> Result<Result<GrantRecord, IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if let Some(refusal) = unfit(&mut transaction, account, identity, vm).await? {
            return Ok(Err(refusal));
        }
        if one(&mut transaction, identity, vm).await?.is_some() {
            return Ok(Err(IdentityRefusal::Granted(vm.clone())));
        }
        if let Some(refusal) = too_many(&mut transaction, account, identity).await? {
            return Ok(Err(refusal));
        }
        let record = GrantRecord {
            id: VmPermissionId::from_random(random::bytes()),
            identity: identity.clone(),
            vm: vm.clone(),
            allowed_users,
            granted_by: account.to_string(),
            granted_ms: now_ms(),
        };
        sqlx::query(
            "INSERT INTO vm_permissions (id, identity_id, vm_id, allowed_users, granted_by, granted_ms)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(record.id.as_str())
        .bind(identity.as_str())
        .bind(vm.as_str())
        .bind(written(record.allowed_users.as_ref()))
        .bind(record.granted_by.as_str())
        .bind(record.granted_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// Changes as which users an identity may act in a VM.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn regrant_vm(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        vm: &VmId,
        allowed_users: Option<Vec<LinuxUser>>,
    ) -> Result<Result<GrantRecord, IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if !owned(&mut transaction, account, identity).await? {
            return Ok(Err(IdentityRefusal::NoIdentity(identity.clone())));
        }
        let Some(mut record) = one(&mut transaction, identity, vm).await? else {
            return Ok(Err(IdentityRefusal::NoGrant(vm.clone())));
        };
        record.allowed_users = allowed_users;
        sqlx::query("UPDATE vm_permissions SET allowed_users = $1 WHERE id = $2")
            .bind(written(record.allowed_users.as_ref()))
            .bind(record.id.as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(Ok(record))
    }

    /// Takes a grant on a VM back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_vm(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        vm: &VmId,
    ) -> Result<Result<(), IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if !owned(&mut transaction, account, identity).await? {
            return Ok(Err(IdentityRefusal::NoIdentity(identity.clone())));
        }
        let gone = sqlx::query("DELETE FROM vm_permissions WHERE identity_id = $1 AND vm_id = $2")
            .bind(identity.as_str())
            .bind(vm.as_str())
            .execute(&mut *transaction)
            .await?;
        if gone.rows_affected() == 0 {
            return Ok(Err(IdentityRefusal::NoGrant(vm.clone())));
        }
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// An identity's grants on VMs, the oldest first. The caller knows whose the identity is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn grants_of(&self, identity: &IdentityId) -> Result<Vec<GrantRecord>, StoreError> {
        let rows = sqlx::query(select!("WHERE identity_id = $1 ORDER BY granted_ms, id"))
            .bind(identity.as_str())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(record).collect()
    }

    /// Grants an identity a repository; `anew`: changes what it has of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn grant_git(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        repo: &str,
        access: GitAccess,
        anew: bool,
    ) -> Result<Result<(), IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if !owned(&mut transaction, account, identity).await? {
            return Ok(Err(IdentityRefusal::NoIdentity(identity.clone())));
        }
        let row = sqlx::query("SELECT 1 AS one FROM git_permissions WHERE identity_id = $1 AND repo = $2")
            .bind(identity.as_str())
            .bind(repo)
            .fetch_optional(&mut *transaction)
            .await?;
        match (row.is_some(), anew) {
            (true, false) => return Ok(Err(IdentityRefusal::GitGranted(repo.to_owned()))),
            (false, true) => return Ok(Err(IdentityRefusal::NoGitGrant(repo.to_owned()))),
            (true, true) | (false, false) => {}
        }
        let query = "SELECT COUNT(*) AS n FROM git_permissions WHERE identity_id = $1";
        let (current, limit) =
            (count(&mut transaction, query, identity.as_str()).await?, MAX_GRANTS_OF_IDENTITY);
        if !anew && current >= limit {
            let (whose, what) = ("the identity", "grants on repositories");
            return Ok(Err(IdentityRefusal::TooMany { whose, what, limit, current }));
        }
        sqlx::query(
            "INSERT INTO git_permissions (identity_id, repo, access, granted_ms) VALUES ($1, $2, $3, $4)
             ON CONFLICT (identity_id, repo) DO UPDATE SET access = $3",
        )
        .bind(identity.as_str())
        .bind(repo)
        .bind(word(access))
        .bind(now_ms())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// Takes a grant on a repository back.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn revoke_git(
        &self,
        account: &AccountId,
        identity: &IdentityId,
        repo: &str,
    ) -> Result<Result<(), IdentityRefusal>, StoreError> {
        let mut transaction = self.begin().await?;
        if !owned(&mut transaction, account, identity).await? {
            return Ok(Err(IdentityRefusal::NoIdentity(identity.clone())));
        }
        let gone = sqlx::query("DELETE FROM git_permissions WHERE identity_id = $1 AND repo = $2")
            .bind(identity.as_str())
            .bind(repo)
            .execute(&mut *transaction)
            .await?;
        if gone.rows_affected() == 0 {
            return Ok(Err(IdentityRefusal::NoGitGrant(repo.to_owned())));
        }
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// An identity's grants on repositories, by their ids. The caller knows whose the identity is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn git_grants_of(&self, identity: &IdentityId) -> Result<Vec<(String, GitAccess)>, StoreError> {
        let rows =
            sqlx::query("SELECT repo, access FROM git_permissions WHERE identity_id = $1 ORDER BY repo")
                .bind(identity.as_str())
                .fetch_all(&self.readers)
                .await?;
        let grant = |row: &SqliteRow| {
            let value: String = row.try_get("access")?;
            let access = [GitAccess::Read, GitAccess::Write].into_iter().find(|one| word(*one) == value);
            let access = access.ok_or(StoreError::Corrupt { column: "access", value })?;
            Ok((row.try_get("repo")?, access))
        };
        rows.iter().map(grant).collect()
    }
}

/// All grants on VMs, the oldest first.
pub(super) async fn all(
    transaction: &mut Transaction<'static, Sqlite>,
) -> Result<Vec<GrantRecord>, StoreError> {
    let rows = sqlx::query(select!("ORDER BY granted_ms, id")).fetch_all(&mut **transaction).await?;
    rows.iter().map(record).collect()
}

/// Takes all grants on a VM back: it is to be deleted.
pub(super) async fn end_with_vm(
    transaction: &mut Transaction<'static, Sqlite>,
    vm: &VmId,
) -> Result<(), StoreError> {
    sqlx::query("DELETE FROM vm_permissions WHERE vm_id = $1")
        .bind(vm.as_str())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// The users of a grant.
pub(super) fn users(row: &SqliteRow) -> Result<Option<Vec<LinuxUser>>, StoreError> {
    let value: Option<String> = row.try_get("allowed_users")?;
    let read = |value: String| {
        serde_json::from_str(&value).map_err(|_| StoreError::Corrupt { column: "allowed_users", value })
    };
    value.map(read).transpose()
}

async fn unfit(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    identity: &IdentityId,
    vm: &VmId,
) -> Result<Option<IdentityRefusal>, StoreError> {
    if !owned(transaction, account, identity).await? {
        return Ok(Some(IdentityRefusal::NoIdentity(identity.clone())));
    }
    let row = sqlx::query("SELECT 1 AS one FROM vms WHERE id = $1 AND account_id = $2 AND phase <> $3")
        .bind(vm.as_str())
        .bind(account.as_str())
        .bind(Phase::Deleting.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    Ok(row.is_none().then(|| IdentityRefusal::NoVm(vm.clone())))
}

async fn too_many(
    transaction: &mut Transaction<'static, Sqlite>,
    account: &AccountId,
    identity: &IdentityId,
) -> Result<Option<IdentityRefusal>, StoreError> {
    let of_identity = "SELECT COUNT(*) AS n FROM vm_permissions WHERE identity_id = $1";
    let of_account = "SELECT COUNT(*) AS n FROM vm_permissions WHERE identity_id IN
         (SELECT id FROM identities WHERE account_id = $1)";
    for (whose, query, key, limit) in [
        ("the identity", of_identity, identity.as_str(), MAX_GRANTS_OF_IDENTITY),
        ("the account", of_account, account.as_str(), MAX_GRANTS_OF_ACCOUNT),
    ] {
        let current = count(transaction, query, key).await?;
        if current >= limit {
            return Ok(Some(IdentityRefusal::TooMany { whose, what: "grants on VMs", limit, current }));
        }
    }
    Ok(None)
}

async fn one(
    transaction: &mut Transaction<'static, Sqlite>,
    identity: &IdentityId,
    vm: &VmId,
) -> Result<Option<GrantRecord>, StoreError> {
    let row = sqlx::query(select!("WHERE identity_id = $1 AND vm_id = $2"))
        .bind(identity.as_str())
        .bind(vm.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    row.as_ref().map(record).transpose()
}

fn record(row: &SqliteRow) -> Result<GrantRecord, StoreError> {
    Ok(GrantRecord {
        id: parsed(row, "id")?,
        identity: parsed(row, "identity_id")?,
        vm: parsed(row, "vm_id")?,
        allowed_users: users(row)?,
        granted_by: row.try_get("granted_by")?,
        granted_ms: number(row, "granted_ms")?,
    })
}

fn written(users: Option<&Vec<LinuxUser>>) -> Option<String> {
    users.map(|users| serde_json::to_string(users).expect("a list of texts can be written"))
}

fn word(access: GitAccess) -> &'static str {
    match access {
        GitAccess::Read => "read",
        GitAccess::Write => "write",
    }
}
