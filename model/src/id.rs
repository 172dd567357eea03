//! Identifiers, one type each, so that two of them cannot be confused.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Why a text is not an identifier of the wanted kind.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{kind} must be {expected}, got {got:?}")]
pub struct IdError {
    kind: &'static str,
    expected: &'static str,
    got: String,
}

/// Longest text that an error repeats; a hostile id must not fill a log.
const ERROR_ECHO_CHARS: usize = 64;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $prefix:literal, $random:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Number of random characters behind the prefix.
            pub const RANDOM_CHARS: usize = $random;

            /// Makes an id of random bytes, which the caller draws. Never all digits.
            #[must_use]
            pub fn from_random(bytes: [u8; $random]) -> Self {
                Self(format!("{}{}", $prefix, encode(&bytes)))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let good = text.strip_prefix($prefix).is_some_and(|rest| {
                    rest.len() == $random && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                });
                if good {
                    return Ok(Self(text.to_owned()));
                }
                Err(IdError {
                    kind: $kind,
                    expected: concat!("'", $prefix, "' and ", stringify!($random), " characters of a-z and 0-9"),
                    got: text.chars().take(ERROR_ECHO_CHARS).collect(),
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A virtual machine.
    VmId, "a VM id", "", 20
);
id!(
    /// One run of a VM: a new one at each boot from `stopped`.
    VmInstanceId, "a VM instance id", "in-", 20
);
id!(
    /// A copy of a VM: its disk, and its memory when it ran.
    SnapshotId, "a snapshot id", "sc-", 20
);
id!(
    /// A private network of VMs.
    VpcId, "a VPC id", "vpc-", 20
);
id!(
    /// An account: who owns VMs, domains and API keys.
    AccountId, "an account id", "ac-", 20
);
id!(
    /// An API key's public name; the secret is another thing.
    ApiKeyId, "an API key id", "ak-", 20
);
id!(
    /// A domain mapping.
    MappingId, "a mapping id", "dm-", 20
);
id!(
    /// A domain that an account has proved.
    DomainId, "a domain id", "do-", 20
);
id!(
    /// A proof of a domain that was begun.
    VerificationId, "a verification id", "dv-", 20
);
id!(
    /// A WireGuard session: one client's key in one private network.
    WireGuardSessionId, "a WireGuard session id", "wg-", 20
);
id!(
    /// A rule of a private network's firewall.
    RuleId, "a firewall rule id", "fw-", 20
);
id!(
    /// Two private networks that reach each other.
    PeeringId, "a peering id", "pc-", 20
);
id!(
    /// A service on this host that is a member of a private network: a container, a namespace, the host itself.
    ServiceId, "a service id", "sv-", 20
);
id!(
    /// An identity: somebody who is not the account, and may do what it was granted on some VMs.
    IdentityId, "an identity id", "idn-", 20
);
id!(
    /// An identity token's public name; the secret is another thing.
    TokenId, "a token id", "tk-", 20
);
id!(
    /// A public key that logs in by SSH.
    SshKeyId, "an SSH key id", "sk-", 20
);
id!(
    /// What an identity may do with a VM.
    VmPermissionId, "a VM permission id", "vp-", 20
);
id!(
    /// One SSH connection of a client.
    SshSessionId, "an SSH session id", "ss-", 20
);
id!(
    /// A request, as shown to the caller in `x-freestyle-trace-id`.
    TraceId, "a trace id", "tr-", 20
);
id!(
    /// A request that goes on after its first answer; whoever asks for its result names this.
    RequestId, "a request id", "ri-", 20
);

/// A number that grows with each decision that control publishes. Readers refuse an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Base-36 digits of random bytes. The first character is a letter, so that no id is a number.
fn encode(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    bytes
        .iter()
        .enumerate()
        .map(|(place, byte)| DIGITS[usize::from(*byte) % if place == 0 { 26 } else { 36 }] as char)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_made_parses_and_is_no_number(bytes: [u8; 20]) {
            let id = VmId::from_random(bytes);
            prop_assert_eq!(&id.as_str().parse::<VmId>().expect("own id"), &id);
            prop_assert!(!id.as_str().bytes().all(|b| b.is_ascii_digit()));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let parsed = text.parse::<VmId>();
            prop_assert_eq!(parsed.is_ok(), text.len() == 20 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        }
    }

    #[test]
    fn an_error_names_what_was_wanted_and_is_short() {
        let error = "X".repeat(10_000).parse::<ApiKeyId>().expect_err("too long");
        assert!(error.to_string().contains("'ak-' and 20 characters"));
        assert!(error.to_string().len() < 200);
    }
}
