//! Secrets of the house, sealed.

use super::{Store, StoreError};
use sqlx::Row;

impl Store {
    /// The sealed secret of that name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn secret(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT sealed FROM secrets WHERE name = $1")
            .bind(name)
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.map(|row| row.try_get("sealed")).transpose()?)
    }

    /// Writes down a new secret, sealed, in place of another one of that name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_secret(&self, name: &str, sealed: &str) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO secrets (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET sealed = $2",
        )
        .bind(name)
        .bind(sealed)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Forgets the secret of that name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn remove_secret(&self, name: &str) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM secrets WHERE name = $1").bind(name).execute(&self.writer).await?;
        Ok(())
    }

    /// Writes down a new server key, sealed. All sessions end in the same moment: their clients know the old one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn renew_server_key(&self, name: &str, sealed: &str) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM sessions").execute(&mut *transaction).await?;
        sqlx::query(
            "INSERT INTO secrets (name, sealed) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET sealed = $2",
        )
        .bind(name)
        .bind(sealed)
        .execute(&mut *transaction)
        .await?;
        Ok(transaction.commit().await?)
    }
}
