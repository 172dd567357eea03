//! Identities: what may be granted to them, and why something of them is not to be had.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::fault::Fault;
use model::id::{IdentityId, SshKeyId, TokenId, VmId};
use model::ssh::{LinuxUser, LinuxUserError};
use thiserror::Error;

/// Linux users of one grant. Who has more of them grants all.
pub const MAX_USERS: usize = 32;
/// Characters of a repository's id: no repository of the contract has a longer one.
pub const MAX_REPO_CHARS: usize = 128;
/// What is wrong with a request about identities, when nothing says it better.
pub const BAD_IDENTITY: &str = "INVALID_REQUEST";

/// Why something of an identity is not to be had.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityRefusal {
    /// No such identity, or another account's.
    #[error("there is no identity {0}")]
    NoIdentity(IdentityId),
    /// It has no such token.
    #[error("the identity has no token {0}")]
    NoToken(TokenId),
    /// There is no such key.
    #[error("there is no SSH key {0}")]
    NoKey(SshKeyId),
    /// No such VM, or another account's.
    #[error("there is no VM {0}")]
    NoVm(VmId),
    /// Nothing is granted on this VM.
    #[error("the identity has no grant on {0}")]
    NoGrant(VmId),
    /// Something is granted on this VM already.
    #[error("the identity has a grant on {0} already; change it with PUT")]
    Granted(VmId),
    /// Nothing is granted on this repository.
    #[error("the identity has no grant on the repository {0:?}")]
    NoGitGrant(String),
    /// Something is granted on this repository already.
    #[error("the identity has a grant on the repository {0:?} already; change it with PUT")]
    GitGranted(String),
    /// The key is registered already.
    #[error("the key is registered already")]
    KeyThere,
    /// There are as many as there may be.
    #[error("{whose} has {current} {what}, and may have {limit}; delete some that are not used")]
    TooMany {
        /// Who has them.
        whose: &'static str,
        /// Of what.
        what: &'static str,
        /// So many there may be.
        limit: u64,
        /// So many there are.
        current: u64,
    },
}

impl IdentityRefusal {
    /// What the caller is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let (status, code) = match self {
            Self::NoIdentity(_) => (404, "IDENTITY_NOT_FOUND"),
            Self::NoToken(_) | Self::NoKey(_) => (404, "NOT_FOUND"),
            Self::NoVm(_) => (404, "VM_NOT_FOUND"),
            Self::NoGrant(_) => (404, "VM_PERMISSION_NOT_FOUND"),
            Self::NoGitGrant(_) => (404, "PERMISSION_NOT_FOUND"),
            Self::Granted(_) | Self::GitGranted(_) => (409, "PERMISSION_ALREADY_EXISTS"),
            Self::KeyThere => (409, "INVALID_REQUEST"),
            Self::TooMany { limit, current, .. } => {
                return Fault::over_limit(self.to_string(), *limit, *current);
            }
        };
        let fault = Fault::new(status, code, self.to_string());
        match self {
            Self::NoIdentity(id) => fault.with("identityId", id.as_str()),
            Self::NoToken(id) => fault.with("tokenId", id.as_str()),
            Self::NoKey(id) => fault.with("keyId", id.as_str()),
            Self::NoVm(id) | Self::NoGrant(id) | Self::Granted(id) => fault.with("vmId", id.as_str()),
            Self::NoGitGrant(repo) | Self::GitGranted(repo) => fault.with("repo", repo.as_str()),
            Self::KeyThere | Self::TooMany { .. } => fault,
        }
    }
}

/// Which Linux users are granted; any when none are named.
///
/// # Errors
/// When there are none or too many in the list, or one cannot be.
pub fn allowed_users(wanted: Option<Vec<String>>) -> Result<Option<Vec<LinuxUser>>, Fault> {
    let bad = |message: String| Fault::new(400, BAD_IDENTITY, format!("allowedUsers: {message}"));
    let Some(wanted) = wanted else { return Ok(None) };
    if wanted.is_empty() || wanted.len() > MAX_USERS {
        return Err(bad(format!("1 to {MAX_USERS} users, or null for any; got {}", wanted.len())));
    }
    let mut users = Vec::with_capacity(wanted.len());
    for name in wanted {
        let user: LinuxUser = name.parse().map_err(|error: LinuxUserError| bad(error.to_string()))?;
        if !users.contains(&user) {
            users.push(user);
        }
    }
    Ok(Some(users))
}

/// Whether who may act as these users may act as this one; nobody named is root.
#[must_use]
pub fn may_act(allowed: Option<&[LinuxUser]>, user: Option<&str>) -> bool {
    let user = user.unwrap_or("root");
    allowed.is_none_or(|allowed| allowed.iter().any(|one| one.as_str() == user))
}

/// A repository's id.
///
/// # Errors
/// When it cannot be one.
pub fn repo(text: &str) -> Result<String, Fault> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
    if text.is_empty() || text.len() > MAX_REPO_CHARS || !text.bytes().all(plain) {
        let message =
            format!("a repository's id has 1 to {MAX_REPO_CHARS} characters of A-Z, a-z, 0-9, -_./");
        return Err(Fault::new(400, BAD_IDENTITY, message));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_users_names_somebody_and_everybody_once() {
        let read = |names: &[&str]| allowed_users(Some(names.iter().map(|&name| name.to_owned()).collect()));
        assert_eq!(allowed_users(None), Ok(None));
        assert_eq!(read(&["a", "b", "a"]).expect("good").expect("some").len(), 2);
        let many: Vec<String> = (0..=MAX_USERS).map(|number| format!("u{number}")).collect();
        for bad in [read(&[]), read(&["-x"]), read(&["a:b"]), allowed_users(Some(many))] {
            assert_eq!(bad.expect_err("refused").code, BAD_IDENTITY);
        }
    }

    #[test]
    fn nobody_named_is_root() {
        let users: Vec<LinuxUser> = vec!["dev".parse().expect("user")];
        assert!(may_act(None, None) && may_act(None, Some("x")) && may_act(Some(&users), Some("dev")));
        assert!(!may_act(Some(&users), None) && !may_act(Some(&users), Some("root")));
        assert!(!may_act(Some(&users), Some("0")) && !may_act(Some(&users), Some("")));
        assert!(may_act(Some(&[LinuxUser::root()]), None));
    }

    #[test]
    fn a_repository_has_a_plain_name() {
        assert!(repo("6f1e-ab.c/d_e").is_ok());
        for bad in ["", "a b", "a\n", &"x".repeat(MAX_REPO_CHARS + 1)] {
            assert!(repo(bad).is_err(), "{bad}");
        }
    }
}
