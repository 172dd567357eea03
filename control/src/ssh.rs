//! The keys of the SSH front: made once, kept sealed, told to ssh-proxy alone.
//!
//! ```text
//! host authority  ── certifies ─► host keys   (clients' known_hosts, for the front's name and all below it)
//! login authority ── certifies ─► a key of ssh-proxy's for each login   (guests' authorized_keys)
//! ```

use crate::seal::{Seal, SealError};
use crate::store::{Store, StoreError};
use model::host::HostName;
use model::ssh::{SshHostKeyEntry, SshSecret};
use sha2::{Digest, Sha256};
use ssh_key::certificate::{Builder, CertType};
use ssh_key::rand_core::OsRng;
use ssh_key::{Algorithm, EcdsaCurve, LineEnding, PrivateKey};
use std::sync::Arc;
use thiserror::Error;
use tracing::warn;

/// Below the house's domain, where clients go when nothing else is set.
const HOST_LABEL: &str = "vm-ssh";
/// What certifies the host keys.
const HOST_AUTHORITY: &str = "ssh-host-authority";
/// What certifies logins at guests.
const LOGIN_AUTHORITY: &str = "ssh-login-authority";
/// The host keys.
const HOST_KEYS: [(&str, Algorithm); 2] = [
    ("ssh-host-key-ed25519", Algorithm::Ed25519),
    ("ssh-host-key-ecdsa", Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }),
];
/// Whose certificates these are, in logs of clients.
const KEY_ID: &str = "gatehouse";
/// A certificate is good from here on: hosts whose clock is behind are clients too.
const VALID_AFTER: u64 = 0;
/// And until here, which is how the library says for ever: it goes with its key.
const VALID_BEFORE: u64 = i64::MAX as u64;

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum SshKeysError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A key cannot be made, read or used.
    #[error("the key {name} of the SSH front cannot be used: {why}")]
    Key {
        /// Which.
        name: &'static str,
        /// Why.
        why: ssh_key::Error,
    },
    /// There is no name for the front.
    #[error("{HOST_LABEL}.{0} is no host name; set another name for SSH, or a shorter domain")]
    Host(HostName),
}

/// The keys. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SshKeys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: HostName,
    host_keys: Vec<SshHostKeyEntry>,
    /// Type and base64.
    host_authority: String,
    login_authority: SshSecret,
    /// For guests' `authorized_keys`.
    login_line: String,
}

impl SshKeys {
    /// Reads the keys, and makes those that are missing. One of another house's key is replaced: nothing opens it.
    ///
    /// # Errors
    /// See [`SshKeysError`].
    pub async fn load(seal: &Seal, store: &Store, host: HostName) -> Result<Self, SshKeysError> {
        let authority = kept(seal, store, HOST_AUTHORITY, Algorithm::Ed25519).await?;
        let login = kept(seal, store, LOGIN_AUTHORITY, Algorithm::Ed25519).await?;
        let mut host_keys = Vec::new();
        for (name, algorithm) in HOST_KEYS {
            let key = kept(seal, store, name, algorithm).await?;
            let certificate = certificate(&key, &authority);
            host_keys.push(SshHostKeyEntry {
                key: secret(name, &key)?,
                certificate: Some(certificate.map_err(|why| SshKeysError::Key { name, why })?),
            });
        }
        let login_line = format!("cert-authority {} {KEY_ID}", public(LOGIN_AUTHORITY, &login)?);
        Ok(Self(Arc::new(Inner {
            host,
            host_keys,
            host_authority: public(HOST_AUTHORITY, &authority)?,
            login_authority: secret(LOGIN_AUTHORITY, &login)?,
            login_line,
        })))
    }

    /// Where clients go; names below it lead there too.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.0.host
    }

    /// The front's own keys with their certificates.
    #[must_use]
    pub fn host_keys(&self) -> &[SshHostKeyEntry] {
        &self.0.host_keys
    }

    /// What certifies the host keys: type and base64.
    #[must_use]
    pub fn host_authority(&self) -> &str {
        &self.0.host_authority
    }

    /// The line by which clients know the house, for `known_hosts` (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT). `port` is where
    /// they see it.
    #[must_use]
    pub fn known_hosts(&self, port: u16) -> String {
        let Inner { host, host_authority, .. } = &*self.0;
        // A client that comes to another port than 22 looks for the name in brackets. Those in Go read no star there.
        let ports = format!("[{host}]:{port},[*.{host}]:{port},[{host}]:*,[*.{host}]:*");
        format!("@cert-authority {host},*.{host},{ports} {host_authority} {KEY_ID}")
    }

    /// What certifies logins.
    #[must_use]
    pub fn login_authority(&self) -> &SshSecret {
        &self.0.login_authority
    }

    /// The line of guests' `authorized_keys` that takes certificates of the login authority (sshd(8), AUTHORIZED_KEYS FILE
    /// FORMAT): they name the user as their principal.
    #[must_use]
    pub fn login_line(&self) -> &str {
        &self.0.login_line
    }
}

/// The front's name.
///
/// # Errors
/// [`SshKeysError::Host`].
pub fn host(set: Option<&HostName>, domain: &HostName) -> Result<HostName, SshKeysError> {
    let usual = || format!("{HOST_LABEL}.{domain}").parse().map_err(|_| SshKeysError::Host(domain.clone()));
    set.cloned().map_or_else(usual, Ok)
}

async fn kept(
    seal: &Seal,
    store: &Store,
    name: &'static str,
    algorithm: Algorithm,
) -> Result<PrivateKey, SshKeysError> {
    let failed = |why| SshKeysError::Key { name, why };
    if let Some(sealed) = store.secret(name).await? {
        match seal.open_bytes(name, &sealed) {
            Ok(pem) => return PrivateKey::from_openssh(&*pem).map_err(failed),
            Err(SealError::Closed) => {
                warn!(name, "the house's key is another one: the SSH front gets a new key")
            }
            Err(error @ (SealError::Read { .. } | SealError::Length { .. } | SealError::Write { .. })) => {
                warn!(name, %error, "the SSH front gets a new key");
            }
        }
    }
    let key = PrivateKey::random(&mut OsRng, algorithm).map_err(failed)?;
    let pem = key.to_openssh(LineEnding::LF).map_err(failed)?;
    store.put_secret(name, &seal.close_bytes(name, pem.as_bytes())).await?;
    Ok(key)
}

fn secret(name: &'static str, key: &PrivateKey) -> Result<SshSecret, SshKeysError> {
    let pem = key.to_openssh(LineEnding::LF).map_err(|why| SshKeysError::Key { name, why })?;
    Ok(SshSecret(pem.to_string()))
}

fn public(name: &'static str, key: &PrivateKey) -> Result<String, SshKeysError> {
    let line = key.public_key().to_openssh().map_err(|why| SshKeysError::Key { name, why })?;
    Ok(line.trim().to_owned())
}

/// Certifies a host key (PROTOCOL.certkeys of OpenSSH). The nonce is made of what is certified, so that each start of
/// control makes the same certificate.
fn certificate(key: &PrivateKey, authority: &PrivateKey) -> Result<String, ssh_key::Error> {
    let nonce = Sha256::digest(key.public_key().to_bytes()?);
    let mut builder =
        Builder::new(nonce.to_vec(), key.public_key().key_data().clone(), VALID_AFTER, VALID_BEFORE)?;
    builder.cert_type(CertType::Host)?.key_id(KEY_ID)?;
    // Not for names: OpenSSH looks for the very name, and no list has all below the front's. Which names they are good
    // for, known_hosts says.
    builder.all_principals_valid()?;
    Ok(builder.sign(authority)?.to_openssh()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    async fn loaded(folder: &std::path::Path) -> SshKeys {
        let store = Store::open(&folder.join("control.db")).await.expect("store");
        let seal = Seal::of_house(folder).expect("seal");
        SshKeys::load(&seal, &store, "vm-ssh.style.dev".parse().expect("host")).await.expect("keys")
    }

    fn keygen(arguments: &[&str], folder: &std::path::Path) -> String {
        let done =
            Command::new("ssh-keygen").args(arguments).current_dir(folder).stdin(Stdio::null()).output();
        let done = done.expect("ssh-keygen runs");
        assert!(done.status.success(), "{arguments:?}: {done:?}");
        String::from_utf8(done.stdout).expect("text")
    }

    #[tokio::test]
    async fn keys_are_kept_sealed_and_openssh_reads_what_is_made_of_them() {
        let folder = tempfile::tempdir().expect("folder");
        let first = loaded(folder.path()).await;
        let again = loaded(folder.path()).await;
        assert_eq!(first.host_keys(), again.host_keys(), "with their certificates");
        assert_eq!(
            (first.login_authority(), first.login_line()),
            (again.login_authority(), again.login_line())
        );
        for entry in std::fs::read_dir(folder.path()).expect("folder") {
            let bytes = std::fs::read(entry.expect("entry").path()).expect("file");
            assert!(!bytes.windows(7).any(|window| window == b"OPENSSH"), "a key lies open");
        }
        let authority = first.host_authority();
        std::fs::write(folder.path().join("ca.pub"), authority).expect("written");
        let print = keygen(&["-l", "-f", "ca.pub"], folder.path());
        let print = print.split_whitespace().nth(1).expect("fingerprint").to_owned();
        let mut kinds = Vec::new();
        for entry in first.host_keys() {
            let line = entry.certificate.as_ref().expect("certified");
            std::fs::write(folder.path().join("key-cert.pub"), line).expect("written");
            let shown = keygen(&["-L", "-f", "key-cert.pub"], folder.path());
            for part in ["host certificate", &print, "Principals: (none)"] {
                assert!(shown.contains(part), "{part} is not in {shown}");
            }
            kinds.push(line.split(' ').next().expect("kind").to_owned());
        }
        assert_eq!(kinds, ["ssh-ed25519-cert-v01@openssh.com", "ecdsa-sha2-nistp256-cert-v01@openssh.com"]);
        std::fs::write(folder.path().join("known"), first.known_hosts(2222)).expect("written");
        for name in ["vm-ssh.style.dev", "x.vm-ssh.style.dev", "[vm-ssh.style.dev]:2222"] {
            let found = keygen(&["-F", name, "-f", "known"], folder.path());
            assert!(found.contains("CA"), "{name}: {found}");
        }
        assert!(first.login_line().starts_with("cert-authority ssh-ed25519 AAAA"), "{}", first.login_line());
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[tokio::test]
    async fn another_house_key_means_new_keys_and_no_dead_house() {
        let folder = tempfile::tempdir().expect("folder");
        let first = loaded(folder.path()).await;
        std::fs::remove_file(folder.path().join(crate::seal::KEY_FILE)).expect("removed");
        let second = loaded(folder.path()).await;
        assert_ne!(first.host_authority(), second.host_authority());
        assert_eq!(second.host_keys(), loaded(folder.path()).await.host_keys());
    }
}
