//! The authority's certificates, on their way from the store to the files: there their keys are sealed.

use super::file;
use crate::store::{IssuedRecord, Store, StoreError};
use crate::wireguard::Keys;
use model::digest::Digest;
use model::host::MappedName;
use tracing::warn;
use zeroize::Zeroizing;

/// The files of these names' certificates. One whose key does not open has none: it is ordered anew.
///
/// # Errors
/// [`StoreError`].
pub async fn files(
    store: &Store,
    keys: &Keys,
    names: impl IntoIterator<Item = &MappedName>,
) -> Result<Vec<Zeroizing<Vec<u8>>>, StoreError> {
    let mut files = Vec::new();
    for name in names {
        let Some(issued) = store.certificate(name).await?.and_then(|record| record.issued) else { continue };
        files.extend(opened(store, keys, name, &issued).await?);
    }
    Ok(files)
}

/// Finds out the files of certificates of which it is not known: an earlier version did not write it down, or the key
/// did not open. What opens now is shown from here on.
///
/// # Errors
/// [`StoreError`].
pub async fn settle(store: &Store, keys: &Keys) -> Result<(), StoreError> {
    for name in store.without_file().await? {
        let Some(issued) = store.certificate(&name).await?.and_then(|record| record.issued) else { continue };
        if let Some(file) = opened(store, keys, &name, &issued).await? {
            store.put_file(&name, &issued, Digest::of(&file)).await?;
        }
    }
    Ok(())
}

async fn opened(
    store: &Store,
    keys: &Keys,
    name: &MappedName,
    issued: &IssuedRecord,
) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
    match keys.seal().open_bytes(&name.to_string(), &issued.sealed_key) {
        Ok(key) => Ok(Some(file(&key, &issued.chain_pem))),
        Err(error) => {
            warn!(%name, %error, "a certificate cannot be used; another one is ordered");
            let why = format!("the key of its certificate does not open: {error}");
            store.certificate_lost(name, issued, &why).await?;
            Ok(None)
        }
    }
}
