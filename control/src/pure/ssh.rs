//! From what is stored to what the SSH front must know.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use super::phase::Phase;
use crate::store::{GrantRecord, SshKeyRecord, TokenRecord, VmRecord};
use model::id::{AccountId, Generation, IdentityId};
use model::ssh::{
    Principal, SshGrantEntry, SshHostKeyEntry, SshKeyEntry, SshPrincipalEntry, SshSecret, SshTokenEntry,
    SshView, SshVmEntry, SshVmState,
};
use model::view::VIEW_VERSION;
use std::collections::BTreeMap;

/// What the view is made of.
#[derive(Debug)]
pub struct SshFacts<'a> {
    /// The decision's number.
    pub generation: Generation,
    /// All VMs.
    pub vms: &'a [VmRecord],
    /// All tokens.
    pub tokens: &'a [TokenRecord],
    /// All grants on VMs.
    pub grants: &'a [GrantRecord],
    /// All public keys.
    pub keys: &'a [SshKeyRecord],
    /// The front's own host keys.
    pub host_keys: &'a [SshHostKeyEntry],
    /// What certifies its logins.
    pub login_authority: &'a SshSecret,
}

/// Makes the view. A VM that is to be deleted is in it no more; nor is an identity that has no grant, and so cannot log
/// in anywhere.
#[must_use]
pub fn ssh_view(facts: &SshFacts<'_>) -> SshView {
    let vms: Vec<SshVmEntry> = facts.vms.iter().filter_map(vm).collect();
    let accounts = accounts(facts);
    SshView {
        version: VIEW_VERSION,
        generation: facts.generation,
        host_keys: facts.host_keys.to_vec().into(),
        login_authority: facts.login_authority.clone(),
        vms: vms.into(),
        principals: accounts.into_iter().chain(identities(facts)).collect::<Vec<_>>().into(),
    }
}

fn vm(vm: &VmRecord) -> Option<SshVmEntry> {
    let state = match vm.phase {
        Phase::Building | Phase::Starting | Phase::Resuming | Phase::Running => SshVmState::Up,
        Phase::Suspending | Phase::Suspended => SshVmState::Asleep,
        Phase::Stopping | Phase::Killing | Phase::Stopped | Phase::Lost => SshVmState::Down,
        Phase::Deleting => return None,
    };
    let (vm, account, run, instance) = (vm.id.clone(), vm.account.clone(), vm.run, vm.instance.clone());
    Some(SshVmEntry { vm, account, run, instance, state })
}

fn key(record: &SshKeyRecord) -> SshKeyEntry {
    SshKeyEntry { id: record.id.clone(), key: record.key.clone() }
}

fn accounts(facts: &SshFacts<'_>) -> Vec<SshPrincipalEntry> {
    let mut keys: BTreeMap<&AccountId, Vec<SshKeyEntry>> = BTreeMap::new();
    for record in facts.keys.iter().filter(|record| record.identity.is_none()) {
        keys.entry(&record.account).or_default().push(key(record));
    }
    let entry = |(account, keys): (&AccountId, Vec<SshKeyEntry>)| SshPrincipalEntry {
        principal: Principal::Account(account.clone()),
        tokens: Vec::new(),
        keys,
        grants: Vec::new(),
    };
    keys.into_iter().map(entry).collect()
}

fn identities(facts: &SshFacts<'_>) -> Vec<SshPrincipalEntry> {
    let mut all: BTreeMap<&IdentityId, SshPrincipalEntry> = BTreeMap::new();
    for grant in facts.grants {
        let entry = all.entry(&grant.identity).or_insert_with(|| SshPrincipalEntry {
            principal: Principal::Identity(grant.identity.clone()),
            tokens: Vec::new(),
            keys: Vec::new(),
            grants: Vec::new(),
        });
        entry.grants.push(SshGrantEntry { vm: grant.vm.clone(), allowed_users: grant.allowed_users.clone() });
    }
    for token in facts.tokens {
        if let Some(entry) = all.get_mut(&token.identity) {
            entry.tokens.push(SshTokenEntry { id: token.id.clone(), hash: token.hash });
        }
    }
    for record in facts.keys {
        if let Some(entry) = record.identity.as_ref().and_then(|identity| all.get_mut(identity)) {
            entry.keys.push(key(record));
        }
    }
    all.into_values().collect()
}
