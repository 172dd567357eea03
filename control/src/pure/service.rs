//! What a service of this host in a VPC may be.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::vpc::{BAD_VPC, NicRefusal};
use crate::fault::Fault;
use model::id::{VmId, VpcId};
use std::net::Ipv4Addr;
use thiserror::Error;

/// Longest label of a DNS name (RFC 1035 section 2.3.4).
const MAX_LABEL_CHARS: usize = 63;

/// Why there is no such service.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ServiceRefusal {
    /// No such VPC, or another account's.
    #[error("there is no VPC {0}")]
    NoVpc(VpcId),
    /// The address cannot be had.
    #[error(transparent)]
    Nic(NicRefusal),
    /// There is one of that name at another address.
    #[error("the service {name:?} is at {ipv4} already; leave the address out, or remove it first")]
    Elsewhere {
        /// Its name.
        name: String,
        /// Its address.
        ipv4: Ipv4Addr,
    },
    /// The VPC has as many as it may have.
    #[error("the VPC has {current} services, and may have {limit}; remove some")]
    TooMany {
        /// So many.
        limit: u64,
        /// There are so many.
        current: u64,
    },
}

impl ServiceRefusal {
    /// What the caller is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::NoVpc(vpc) => Fault::of_vpc(404, "NOT_FOUND", vpc, self.to_string()),
            Self::Nic(refusal) => refusal.fault(BAD_VPC),
            Self::Elsewhere { ipv4, .. } => {
                Fault::new(409, "SERVICE_EXISTS", self.to_string()).with("ipv4", ipv4.to_string())
            }
            Self::TooMany { limit, current } => Fault::over_limit(self.to_string(), *limit, *current),
        }
    }
}

/// A service's name, in lower case.
///
/// # Errors
/// `BAD_REQUEST`.
pub fn name(text: &str) -> Result<String, Fault> {
    let shown: String = text.chars().take(64).collect();
    let bad = |why: &str| Fault::new(400, BAD_VPC, format!("name {shown:?} {why}"));
    let name = label(text).ok_or_else(|| {
        bad("is not a label of a DNS name: 1 to 63 characters of a-z, 0-9 and -, which neither begin nor end with -")
    })?;
    if name.parse::<VmId>().is_ok() {
        return Err(bad("looks like the id of a VM, which is a name too; take another one"));
    }
    Ok(name)
}

/// A text in lower case, if it can stand in a DNS name (RFC 1123 section 2.1).
#[must_use]
pub fn label(text: &str) -> Option<String> {
    let label = text.to_ascii_lowercase();
    let plain = label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    let good = plain
        && (1..=MAX_LABEL_CHARS).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-');
    good.then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_label_that_means_no_vm() {
        assert_eq!(name("Redis-1").expect("good"), "redis-1");
        for bad in ["", "-a", "a-", "a.b", "a b", "a_b", "ä", &"a".repeat(64), &"a".repeat(20)] {
            assert_eq!(name(bad).expect_err("refused").code, "BAD_REQUEST", "{bad}");
        }
    }
}
