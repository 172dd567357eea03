//! The SSH front: who may log in where, as control tells it.

use crate::id::{AccountId, Generation, IdentityId, SshKeyId, TokenId, VmId, VmInstanceId};
use crate::token::TokenHash;
use crate::view::{Entries, View};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Longest name of a Linux user: what fits into utmp, which is what useradd(8) allows.
pub const LINUX_USER_MAX: usize = 32;

/// Why a text is no name of a Linux user.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "a Linux user is 1 to {LINUX_USER_MAX} characters of A-Z, a-z, 0-9, '_', '.' and '-', and begins with none of the last two"
)]
pub struct LinuxUserError;

/// The name of a Linux user inside a VM.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinuxUser(String);

impl LinuxUser {
    /// Who logs in when no user is named.
    #[must_use]
    pub fn root() -> Self {
        Self("root".to_owned())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LinuxUser {
    type Err = LinuxUserError;
    fn from_str(text: &str) -> Result<Self, LinuxUserError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let good = (1..=LINUX_USER_MAX).contains(&text.len())
            && text.bytes().all(plain)
            && !text.starts_with(['.', '-']);
        if good { Ok(Self(text.to_owned())) } else { Err(LinuxUserError) }
    }
}

impl TryFrom<String> for LinuxUser {
    type Error = LinuxUserError;
    fn try_from(text: String) -> Result<Self, LinuxUserError> {
        text.parse()
    }
}

impl From<LinuxUser> for String {
    fn from(user: LinuxUser) -> Self {
        user.0
    }
}

impl fmt::Display for LinuxUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LinuxUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A private key in OpenSSH's own format (PROTOCOL.key), unencrypted, PEM. Never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SshSecret(pub String);

impl fmt::Debug for SshSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One of the front's own host keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshHostKeyEntry {
    /// The key.
    pub key: SshSecret,
    /// The certificate for it that the house's authority signed, one line as in `ssh_host_…_key-cert.pub`.
    #[serde(default)]
    pub certificate: Option<String>,
}

/// What a VM is doing, as far as a login must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SshVmState {
    /// It runs, or comes up.
    Up,
    /// It is suspended: dialling it wakes it.
    Asleep,
    /// It is stopped: control must be asked to start it.
    Down,
}

/// A VM that can be logged in to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshVmEntry {
    /// Which one.
    pub vm: VmId,
    /// Whose it is.
    pub account: AccountId,
    /// As [`crate::view::RouteEntry::run`].
    pub run: u64,
    /// Its newest boot. What sleeps and wakes goes on with its connections, so it is the same then, which `run` is not.
    pub instance: VmInstanceId,
    /// What it is doing.
    pub state: SshVmState,
}

/// Who logs in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Principal {
    /// An identity, with what it was granted.
    Identity(IdentityId),
    /// An account, which may log in to all of its VMs as any user. It has keys and no tokens.
    Account(AccountId),
}

/// What shows that somebody is a principal: a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshTokenEntry {
    /// Its name, which may be shown.
    pub id: TokenId,
    /// What is known of its secret.
    pub hash: TokenHash,
}

/// What shows that somebody is a principal: a public key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshKeyEntry {
    /// Its name.
    pub id: SshKeyId,
    /// The key, as in `authorized_keys`: type and base64, without options and comment.
    pub key: String,
}

/// That an identity may log in to a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshGrantEntry {
    /// The VM.
    pub vm: VmId,
    /// As one of these users; as any when absent.
    #[serde(default)]
    pub allowed_users: Option<Vec<LinuxUser>>,
}

/// A principal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshPrincipalEntry {
    /// Who.
    pub principal: Principal,
    /// Its tokens.
    #[serde(default)]
    pub tokens: Vec<SshTokenEntry>,
    /// Its keys.
    #[serde(default)]
    pub keys: Vec<SshKeyEntry>,
    /// An identity's grants.
    #[serde(default)]
    pub grants: Vec<SshGrantEntry>,
}

/// What ssh-proxy must know. The file has secrets: only control, ssh-proxy and root may read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshView {
    /// See [`crate::view::VIEW_VERSION`].
    pub version: u32,
    /// Which decision this is.
    pub generation: Generation,
    /// The front's own host keys, one of a kind.
    pub host_keys: Entries<SshHostKeyEntry>,
    /// The key that certifies the front's logins: guests' sshd accepts what it signed, for the user that the
    /// certificate names as its principal.
    pub login_authority: SshSecret,
    /// The VMs.
    pub vms: Entries<SshVmEntry>,
    /// Who may log in.
    pub principals: Entries<SshPrincipalEntry>,
}

impl View for SshView {
    const NAME: &'static str = "ssh";
    fn version(&self) -> u32 {
        self.version
    }
    fn generation(&self) -> Generation {
        self.generation
    }
    fn rejected(&self) -> usize {
        self.host_keys.rejected() + self.vms.rejected() + self.principals.rejected()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_what_linux_takes() {
        for good in ["root", "a", "Dev.Ops-1", "_apt", "9lives"] {
            assert!(good.parse::<LinuxUser>().is_ok(), "{good}");
        }
        for bad in ["", "-oProxyCommand", ".ssh", "a b", "a\n", "a,b", "é", &"x".repeat(33)] {
            assert!(bad.parse::<LinuxUser>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_entry_is_left_out_alone_and_no_secret_prints() {
        let hash = "ab".repeat(32);
        let text = format!(
            r#"{{"version":1,"generation":7,"host_keys":[{{"key":"SECRET"}},{{}}],"login_authority":"SECRET",
            "vms":[{{"vm":"abcdefghij0123456789","account":"ac-abcdefghij0123456789","run":1,"instance":"in-abcdefghij0123456789","state":"up"}},
                   {{"vm":"abcdefghij0123456789","account":"ac-abcdefghij0123456789","run":1,"instance":"in-abcdefghij0123456789","state":"odd"}}],
            "principals":[
                {{"principal":{{"identity":"idn-abcdefghij0123456789"}},
                  "tokens":[{{"id":"tk-abcdefghij0123456789","hash":"{hash}"}}],
                  "grants":[{{"vm":"abcdefghij0123456789"}},
                            {{"vm":"abcdefghij0123456788","allowed_users":["dev"]}}]}},
                {{"principal":{{"account":"ac-abcdefghij0123456789"}}}},
                {{"principal":{{"identity":"idn-abcdefghij0123456788"}},
                  "grants":[{{"vm":"abcdefghij0123456789","allowed_users":["-dev"]}}]}}]}}"#
        );
        let view: SshView = serde_json::from_str(&text).expect("the view itself is good");
        assert_eq!((view.principals.iter().count(), view.vms.iter().count(), view.rejected()), (2, 1, 3));
        let shown = format!("{view:?}");
        assert!(!shown.contains("SECRET") && !shown.contains("abab"), "{shown}");
    }
}
