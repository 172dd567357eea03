//! What must survive: accounts, identities, keys, VMs, their copies, VPCs and what is in them, mappings and counters, in SQLite.
//!
//! One connection writes and several read, so that a transaction that reads before it writes cannot be overtaken.
//! The statements keep to what PostgreSQL understands too.

mod accounts;
mod certificates;
mod domains;
mod forks;
mod grants;
mod identities;
mod mappings;
mod peerings;
mod room;
mod rules;
mod secrets;
mod services;
mod sessions;
mod snapshots;
mod ssh_keys;
mod vms;
mod vpcs;

pub use accounts::{Account, KeyRecord};
pub use certificates::{CertificateRecord, IssuedRecord, OrderRecord};
pub use domains::{
    BeginProof, DomainRecord, MAX_DOMAINS_OF_ACCOUNT, MAX_VERIFICATIONS_OF_ACCOUNT, Took, VerificationRecord,
};
pub use grants::{GrantRecord, MAX_GRANTS_OF_ACCOUNT, MAX_GRANTS_OF_IDENTITY};
pub use identities::{
    Bearer, IdentityRecord, MAX_IDENTITIES_OF_ACCOUNT, MAX_TOKENS_OF_ACCOUNT, MAX_TOKENS_OF_IDENTITY,
    TokenRecord,
};
pub use mappings::{MappingRecord, NewMapping, PutMapping, Right};
pub use peerings::PeeringRecord;
pub use room::{Admission, Refused};
pub use rules::RuleRecord;
pub use services::{MAX_SERVICES_OF_VPC, ServiceRecord};
pub use sessions::{MAX_SESSIONS_OF_ACCOUNT, MAX_SESSIONS_OF_VPC, NewSession, SessionRecord};
pub use snapshots::{NewSnapshot, SnapshotRecord, SnapshotState};
pub use ssh_keys::{MAX_KEYS_OF_ACCOUNT, MAX_KEYS_OF_ONE, SshKeyRecord};
pub use vms::{NewVm, VmRecord};
pub use vpcs::{DeleteVpc, NewNic, TooManyVpcs, VpcRecord};

use model::digest::Digest;
use model::host::MappedName;
use model::id::Generation;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Row, SqlSafeStr, Sqlite, Transaction};
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;

/// Longest wait for another process that has the database locked (a backup, for example).
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Connections that read at once; a read takes well under a millisecond.
const READERS: u32 = 4;
/// Names of people's VMs and hashes of their keys are nobody else's business.
const PRIVATE_MODE: u32 = 0o600;
/// The migrations, in order. One that has been released is never changed.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/0001_first.sql")),
    (2, "sleep", include_str!("../../migrations/0002_sleep.sql")),
    (3, "vpcs", include_str!("../../migrations/0003_vpcs.sql")),
    (4, "private", include_str!("../../migrations/0004_private.sql")),
    (5, "identities", include_str!("../../migrations/0005_identities.sql")),
    (6, "domains", include_str!("../../migrations/0006_domains.sql")),
    (7, "certificates", include_str!("../../migrations/0007_certificates.sql")),
    (8, "certificate files", include_str!("../../migrations/0008_certificate_files.sql")),
];

/// Why the store could not do it. Nothing was changed.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The database file cannot be opened or made.
    #[error("the database {path} cannot be opened: {source}")]
    Open {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: sqlx::Error,
    },
    /// The schema cannot be brought up to date.
    #[error("the database cannot be brought up to date: {0}")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A statement failed.
    #[error("the database refused: {0}")]
    Query(#[from] sqlx::Error),
    /// A stored value cannot be understood.
    #[error("the database holds a {column} that cannot be understood: {value:?}")]
    Corrupt {
        /// Where.
        column: &'static str,
        /// What stands there.
        value: String,
    },
    /// All addresses of the default network are taken.
    #[error("the default network has no free address")]
    NoAddress,
}

/// A new decision, and all that it is made of.
#[derive(Debug)]
pub struct Decision {
    /// Its number.
    pub generation: Generation,
    /// All VMs.
    pub vms: Vec<VmRecord>,
    /// All mappings.
    pub mappings: Vec<MappingRecord>,
    /// All domains that were proved.
    pub domains: Vec<DomainRecord>,
    /// Names whose VM was deleted.
    pub gone: Vec<MappedName>,
    /// All VPCs.
    pub vpcs: Vec<VpcRecord>,
    /// All VPN sessions that are not over.
    pub sessions: Vec<SessionRecord>,
    /// All rules, in the order in which those of a VPC judge.
    pub rules: Vec<RuleRecord>,
    /// All services.
    pub services: Vec<ServiceRecord>,
    /// All peerings, also those that wait.
    pub peerings: Vec<PeeringRecord>,
    /// All identity tokens.
    pub tokens: Vec<TokenRecord>,
    /// All grants on VMs.
    pub grants: Vec<GrantRecord>,
    /// All public keys that log in by SSH.
    pub ssh_keys: Vec<SshKeyRecord>,
    /// The certificates that are to be shown, by the names of their files.
    pub certificates: Vec<(MappedName, Digest)>,
}

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Store {
    /// Opens the database, makes it when it is missing, and brings its schema up to date.
    ///
    /// # Errors
    /// [`StoreError::Open`] and [`StoreError::Migrate`].
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Open { path: path.to_owned(), source };
        keep_private(path).map_err(|error| failed(sqlx::Error::Io(error)))?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_WAIT);
        let pool = |size| SqlitePoolOptions::new().max_connections(size);
        let writer = pool(1).connect_with(options.clone()).await.map_err(failed)?;
        migrator(MIGRATIONS).run(&writer).await.map_err(StoreError::Migrate)?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await.map_err(failed)?;
        Ok(Self { writer, readers })
    }

    /// The newest decision.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn generation(&self) -> Result<Generation, StoreError> {
        let row = sqlx::query("SELECT value FROM counters WHERE name = 'generation'")
            .fetch_one(&self.readers)
            .await?;
        Ok(Generation(number(&row, "value")?))
    }

    /// Bytes of the database, without what waits in its log.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn bytes(&self) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT page_count * page_size AS value FROM pragma_page_count(), pragma_page_size()",
        )
        .fetch_one(&self.readers)
        .await?;
        number(&row, "value")
    }

    /// Makes the next decision newer than `seen`: readers that have one refuse all that are older, also after
    /// the database was lost or restored from a copy.
    ///
    /// # Errors
    /// [`StoreError::Query`].
    pub async fn raise_generation(&self, seen: Generation) -> Result<(), StoreError> {
        sqlx::query("UPDATE counters SET value = $1 WHERE name = 'generation' AND value < $1")
            .bind(signed(seen.0))
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// Counts a new decision and reads, at the same moment, all that it is made of.
    ///
    /// # Errors
    /// [`StoreError::Query`], [`StoreError::Corrupt`].
    pub async fn decide(&self) -> Result<Decision, StoreError> {
        let mut transaction = self.writer.begin().await?;
        let row = sqlx::query(
            "UPDATE counters SET value = value + 1 WHERE name = 'generation' RETURNING value AS value",
        )
        .fetch_one(&mut *transaction)
        .await?;
        let decision = Decision {
            generation: Generation(number(&row, "value")?),
            vms: vms::all(&mut transaction).await?,
            mappings: mappings::all(&mut transaction).await?,
            domains: domains::all(&mut transaction).await?,
            gone: domains::gone(&mut transaction).await?,
            vpcs: vpcs::all(&mut transaction).await?,
            sessions: sessions::all(&mut transaction).await?,
            rules: rules::all(&mut transaction).await?,
            services: services::all(&mut transaction).await?,
            peerings: peerings::all(&mut transaction).await?,
            tokens: identities::all_tokens(&mut transaction).await?,
            grants: grants::all(&mut transaction).await?,
            ssh_keys: ssh_keys::all(&mut transaction).await?,
            certificates: certificates::shown(&mut transaction).await?,
        };
        transaction.commit().await?;
        Ok(decision)
    }

    async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        Ok(self.writer.begin().await?)
    }
}

/// Now, in the store's unit: milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A stored time as RFC 3339 text.
#[must_use]
pub fn rfc3339(milliseconds: i64) -> String {
    let nanoseconds = i128::from(milliseconds) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// Makes the file before SQLite does, which would let everybody read it; its companions take over the mode.
fn keep_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(PRIVATE_MODE).open(path).map(drop)
}

fn migrator(steps: &[(i64, &'static str, &'static str)]) -> Migrator {
    let steps = steps.iter().map(|(version, name, sql)| {
        Migration::new(*version, (*name).into(), MigrationType::Simple, (*sql).into_sql_str(), false)
    });
    Migrator::with_migrations(steps.collect())
}

/// A column that holds the text of a `T`.
fn parsed<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError> {
    let value: String = row.try_get(column)?;
    value.parse().map_err(|_| StoreError::Corrupt { column, value })
}

/// The same, where it may be missing.
fn maybe_parsed<T: FromStr>(row: &SqliteRow, column: &'static str) -> Result<Option<T>, StoreError> {
    let value: Option<String> = row.try_get(column)?;
    value.map(|value| value.parse().map_err(|_| StoreError::Corrupt { column, value })).transpose()
}

/// A column that holds a number within the bounds of a `T`.
fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError> {
    let value: i64 = row.try_get(column)?;
    T::try_from(value).map_err(|_| StoreError::Corrupt { column, value: value.to_string() })
}

/// The same, where it may be missing.
fn maybe_number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<Option<T>, StoreError> {
    let value: Option<i64> = row.try_get(column)?;
    value
        .map(|value| T::try_from(value).map_err(|_| StoreError::Corrupt { column, value: value.to_string() }))
        .transpose()
}

/// A column that holds yes or no.
fn flag(row: &SqliteRow, column: &'static str) -> Result<bool, StoreError> {
    Ok(number::<i64>(row, column)? != 0)
}

/// SQL knows signed numbers alone; what does not fit is beyond any use.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
