//! Who may map a name: by the preview domain, or by a proof of the name or of one above it.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::store::DomainRecord;
use model::host::{HostName, MappedName};
use model::id::AccountId;
use std::collections::HashMap;

/// Looks in a row at which a domain's own servers have the proof no more, after which its names lead nowhere. At the
/// default of one a day, an owner has most of a week to see it in the list.
pub const HELD_BACK_AFTER: u32 = 6;

/// All proofs, by their domains.
#[derive(Clone, Debug, Default)]
pub struct Proofs<'a>(HashMap<&'a HostName, &'a DomainRecord>);

impl<'a> Proofs<'a> {
    /// Of these.
    #[must_use]
    pub fn of(domains: &'a [DomainRecord]) -> Self {
        Self(domains.iter().map(|domain| (&domain.domain, domain)).collect())
    }

    /// The proof that rules over a name: the nearest one, so that whoever proves a name below another's has it.
    #[must_use]
    pub fn over(&self, name: &MappedName) -> Option<&'a DomainRecord> {
        ancestry(name.base()).find_map(|above| self.0.get(&above).copied())
    }
}

/// A name and all above it, the nearest first. At most 127 (RFC 1035 section 2.3.4).
pub fn ancestry(name: &HostName) -> impl Iterator<Item = HostName> + use<> {
    std::iter::successors(Some(name.clone()), HostName::parent)
}

/// Whether the names of a domain are held back.
#[must_use]
pub fn held_back(domain: &DomainRecord) -> bool {
    domain.misses >= HELD_BACK_AFTER
}

/// Whether an account's right to a name stands: that to a preview name always does, any other hangs on its proof.
#[must_use]
pub fn stands(account: &AccountId, name: &MappedName, proofs: &Proofs<'_>, preview: &HostName) -> bool {
    let proved = |proof: &DomainRecord| proof.account == *account && !held_back(proof);
    name.base().is_within(preview) || proofs.over(name).is_some_and(proved)
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::id::DomainId;

    fn proof(number: u8, domain: &str) -> DomainRecord {
        DomainRecord {
            id: DomainId::from_random([number; 20]),
            domain: domain.parse().expect("domain"),
            account: AccountId::from_random([number; 20]),
            code: "code".to_owned(),
            created_ms: 0,
            proved_ms: 0,
            checked_ms: 0,
            misses: 0,
            last_error: None,
        }
    }

    #[test]
    fn the_nearest_proof_rules() {
        let domains = [proof(1, "example.com"), proof(2, "eu.example.com")];
        let proofs = Proofs::of(&domains);
        let over = |name: &str| proofs.over(&name.parse().expect("name")).map(|proof| proof.domain.as_str());
        assert_eq!(over("example.com"), Some("example.com"));
        assert_eq!(over("a.b.example.com"), Some("example.com"));
        assert_eq!(over("*.example.com"), Some("example.com"));
        assert_eq!(over("eu.example.com"), Some("eu.example.com"));
        assert_eq!(over("*.a.eu.example.com"), Some("eu.example.com"));
        assert_eq!(over("badexample.com"), None);
        assert_eq!(over("com"), None);
    }
}
