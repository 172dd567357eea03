//! Our account at the authority: made once, kept sealed, made anew when the authority has lost it.

use super::client::{Asker, ClientError};
use super::nonce::with_nonce;
use crate::seal::SealError;
use crate::store::{Store, StoreError};
use crate::wireguard::Keys;
use base64::Engine;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};
use model::config::{AcmeConfig, ExternalAccount};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::Mutex;
use tracing::{info, warn};
use zeroize::Zeroizing;

/// What an authority calls an account that it does not know (RFC 8555 section 6.7).
const LOST: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why there is no account.
#[derive(Debug, Error)]
pub enum AccountError {
    /// The authority cannot be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The store cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The external account's key cannot be read.
    #[error("the external account's key cannot be read from {path}: {source}")]
    KeyFile {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not base64url.
    #[error("{0} holds no base64url, which the authority gives keys of external accounts as")]
    Key(PathBuf),
    /// It cannot be written down.
    #[error("the account cannot be encoded: {0}")]
    Encode(#[from] serde_json::Error),
    /// The authority refused, or did not answer.
    #[error("no account at {directory}: {source}")]
    Refused {
        /// Of the authority.
        directory: String,
        /// Why.
        source: instant_acme::Error,
    },
}

/// The account, once it is needed. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    config: AcmeConfig,
    store: Store,
    keys: Keys,
    held: Arc<Mutex<Option<Account>>>,
}

impl Accounts {
    /// Nothing is asked yet.
    #[must_use]
    pub fn new(config: AcmeConfig, store: Store, keys: Keys) -> Self {
        Self { config, store, keys, held: Arc::default() }
    }

    /// The account: the one at hand, the one written down, or a new one.
    ///
    /// # Errors
    /// See [`AccountError`].
    pub async fn get(&self) -> Result<Account, AccountError> {
        let mut held = self.held.lock().await;
        if let Some(account) = &*held {
            return Ok(account.clone());
        }
        let account = match self.kept().await? {
            Some(credentials) => self.load(credentials).await?,
            None => self.make().await?,
        };
        *held = Some(account.clone());
        Ok(account)
    }

    /// Forgets the account when an error says that the authority does not know it; tells whether it did.
    ///
    /// # Errors
    /// [`AccountError::Store`].
    pub async fn forget_if_lost(&self, error: &instant_acme::Error) -> Result<bool, AccountError> {
        let instant_acme::Error::Api(problem) = error else { return Ok(false) };
        if problem.r#type.as_deref() != Some(LOST) {
            return Ok(false);
        }
        warn!(directory = self.config.directory, "the authority does not know our account; making a new one");
        let mut held = self.held.lock().await;
        self.store.remove_secret(&self.name()).await?;
        *held = None;
        Ok(true)
    }

    fn name(&self) -> String {
        format!("acme account at {}", self.config.directory)
    }

    async fn kept(&self) -> Result<Option<AccountCredentials>, AccountError> {
        let name = self.name();
        let Some(sealed) = self.store.secret(&name).await? else { return Ok(None) };
        match self.keys.seal().open_bytes(&name, &sealed) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error @ (SealError::Closed | SealError::Length { .. })) => {
                warn!(%error, "our account at the authority cannot be opened; making a new one");
                Ok(None)
            }
            Err(error) => {
                warn!(%error, "our account at the authority cannot be opened");
                Ok(None)
            }
        }
    }

    async fn load(&self, credentials: AccountCredentials) -> Result<Account, AccountError> {
        let asker = self.asker().await?;
        Account::builder_with_http(Box::new(asker))
            .from_credentials(credentials)
            .await
            .map_err(|source| self.refused(source))
    }

    async fn make(&self) -> Result<Account, AccountError> {
        let external = self.config.external_account.as_ref().map(external).transpose()?;
        let contact: Vec<&str> = self.config.contact.iter().map(String::as_str).collect();
        let wish =
            NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let asker = self.asker().await?;
        let created = with_nonce!(Account::builder_with_http(Box::new(asker.clone())).create(
            &wish,
            self.config.directory.clone(),
            external.as_ref()
        ));
        let (account, credentials) = created.map_err(|source| self.refused(source))?;
        let name = self.name();
        let bytes = Zeroizing::new(serde_json::to_vec(&credentials)?);
        self.store.put_secret(&name, &self.keys.seal().close_bytes(&name, &bytes)).await?;
        info!(
            directory = self.config.directory,
            account = account.id(),
            "there is an account at the authority"
        );
        Ok(account)
    }

    async fn asker(&self) -> Result<Asker, AccountError> {
        let path = self.config.ca_file.clone();
        let made = tokio::task::spawn_blocking(move || Asker::new(path.as_deref())).await;
        made.unwrap_or_else(|error| {
            let path = self.config.ca_file.clone().unwrap_or_default();
            Err(ClientError::File { path, source: io::Error::other(error) })
        })
        .map_err(AccountError::Client)
    }

    fn refused(&self, source: instant_acme::Error) -> AccountError {
        AccountError::Refused { directory: self.config.directory.clone(), source }
    }
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("directory", &self.config.directory).finish_non_exhaustive()
    }
}

/// The key as authorities hand it out: base64url, with or without padding.
fn external(account: &ExternalAccount) -> Result<ExternalAccountKey, AccountError> {
    let path = &account.key_file;
    let text = std::fs::read_to_string(path)
        .map_err(|source| AccountError::KeyFile { path: path.clone(), source })?;
    let text = Zeroizing::new(text);
    let key = URL_SAFE_NO_PAD.decode(text.trim()).or_else(|_| URL_SAFE.decode(text.trim()));
    let key = Zeroizing::new(key.map_err(|_| AccountError::Key(path.clone()))?);
    Ok(ExternalAccountKey::new(account.key_id.clone(), &key))
}
