//! The user names that clients log in with: `vmId ["+" linuxUser] [(":" | ",") token]`.

use model::id::VmId;
use model::ssh::LinuxUser;
use model::token::IdentityToken;
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Why a text is no user name. It does not repeat the text, which may hold a secret.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a user name is VMID, VMID+USER, and, if wanted, a ':' or ',' and a token")]
pub struct NameError;

/// What a user name says. Never shown: it may hold a token.
#[derive(Clone, PartialEq, Eq)]
pub struct UserName {
    /// The VM.
    pub vm: VmId,
    /// As which of its users; root when none is named.
    pub user: LinuxUser,
    /// The token.
    pub token: Option<NamedToken>,
}

/// What stands where a token may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedToken {
    /// A token by its form.
    Token(IdentityToken),
    /// Something else.
    Malformed,
}

impl fmt::Debug for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UserName({}, {}, {})", self.vm, self.user, if self.token.is_some() { "***" } else { "-" })
    }
}

impl FromStr for UserName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        // Neither an id nor a Linux user holds one of these, so the first one ends them.
        let (who, token) = match text.split_once([':', ',']) {
            Some((who, token)) => (who, Some(token)),
            None => (text, None),
        };
        let (vm, user) = match who.split_once('+') {
            Some((vm, user)) => (vm, user.parse().map_err(|_| NameError)?),
            None => (who, LinuxUser::root()),
        };
        let token = token.map(|token| token.parse().map_or(NamedToken::Malformed, NamedToken::Token));
        Ok(Self { vm: vm.parse().map_err(|_| NameError)?, user, token })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::token::TOKEN_RANDOM_BYTES;
    use proptest::prelude::*;

    const VM: &str = "abcdefghij0123456789";

    fn token() -> IdentityToken {
        IdentityToken::from_random(&[7; TOKEN_RANDOM_BYTES]).expect("usable bytes")
    }

    #[test]
    fn all_forms_of_the_contract() {
        let token = token();
        for separator in [':', ','] {
            for (user, named) in [("root", String::new()), ("dev", "+dev".to_owned())] {
                let plain: UserName = format!("{VM}{named}").parse().expect("without a token");
                assert_eq!((plain.vm.as_str(), plain.user.as_str(), plain.token), (VM, user, None));
                let full: UserName =
                    format!("{VM}{named}{separator}{}", token.expose()).parse().expect("with a token");
                assert_eq!((full.user.as_str(), full.token), (user, Some(NamedToken::Token(token.clone()))));
            }
        }
    }

    #[test]
    fn what_is_no_token_is_remembered_as_such_and_nothing_shows() {
        let name: UserName = format!("{VM},hunter2").parse().expect("a name");
        assert_eq!(name.token, Some(NamedToken::Malformed));
        assert!(!format!("{name:?}").contains("hunter2"));
        assert_eq!(format!("{VM},").parse::<UserName>().expect("a name").token, Some(NamedToken::Malformed));
        for bad in ["", "root", "+dev", &format!("{VM}+"), &format!("{VM}+-o"), &format!("{VM}+a+b"), " "] {
            assert_eq!(bad.parse::<UserName>(), Err(NameError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "(abcdefghij0123456789)?[+:,]?.{0,40}") {
            let _name = text.parse::<UserName>();
        }
    }
}
