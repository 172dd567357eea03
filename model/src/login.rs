//! Who may log in where: the look-up table of [`SshView`], and logins as values that only it makes.

use crate::config::SSH_PORT;
use crate::id::{IdentityId, SshKeyId, TokenId, VmId, VmInstanceId};
use crate::route::Permit;
use crate::ssh::{LinuxUser, Principal, SshView, SshVmEntry, SshVmState};
use crate::token::{IdentityToken, TokenHash};
use std::collections::HashMap;
use thiserror::Error;

/// Principals that one public key may show: an account and some identities; others of the same key are not looked at.
const PRINCIPALS_A_KEY: usize = 16;

/// What showed who it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Proof {
    /// A token.
    Token(TokenId),
    /// A public key.
    Key(SshKeyId),
}

/// Leave to log in to a VM as one of its users. Only [`SshTable`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    permit: Permit,
    user: LinuxUser,
    principal: Principal,
    proof: Proof,
    state: SshVmState,
    instance: VmInstanceId,
}

impl Login {
    /// Leave to connect to the VM's SSH port.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// The VM.
    #[must_use]
    pub fn vm(&self) -> &VmId {
        self.permit.vm()
    }

    /// As which of its users.
    #[must_use]
    pub fn user(&self) -> &LinuxUser {
        &self.user
    }

    /// Who.
    #[must_use]
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What showed it.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// Which boot of the VM it was when the table was made.
    #[must_use]
    pub fn instance(&self) -> &VmInstanceId {
        &self.instance
    }

    /// What the VM was doing when the table was made.
    #[must_use]
    pub fn state(&self) -> SshVmState {
        self.state
    }
}

/// Why there is no login. The client never hears which; the log does.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq, Hash)]
pub enum NoLogin {
    /// There is no such VM.
    #[error("unknown VM")]
    UnknownVm,
    /// Nobody has this token or key.
    #[error("unknown token or key")]
    UnknownProof,
    /// Who has it may not log in to this VM.
    #[error("no grant")]
    NoGrant,
    /// They may, and not as this user.
    #[error("user not allowed")]
    UserNotAllowed,
}

#[derive(Clone, Debug)]
struct Shown {
    principal: Principal,
    proof: Proof,
}

/// Made once of a view and never changed.
#[derive(Clone, Debug, Default)]
pub struct SshTable {
    vms: HashMap<VmId, SshVmEntry>,
    tokens: HashMap<TokenHash, Shown>,
    keys: HashMap<String, Vec<Shown>>,
    grants: HashMap<(IdentityId, VmId), Option<Vec<LinuxUser>>>,
    proofs: HashMap<Proof, Principal>,
}

impl SshTable {
    /// Makes the table of what control published.
    #[must_use]
    pub fn of(view: &SshView) -> Self {
        let mut table = Self::default();
        for entry in &view.vms {
            table.vms.insert(entry.vm.clone(), entry.clone());
        }
        for entry in &view.principals {
            let mut shown = |proof: Proof| {
                table.proofs.insert(proof.clone(), entry.principal.clone());
                Shown { principal: entry.principal.clone(), proof }
            };
            for token in &entry.tokens {
                let shown = shown(Proof::Token(token.id.clone()));
                table.tokens.insert(token.hash, shown);
            }
            for key in &entry.keys {
                let shown = shown(Proof::Key(key.id.clone()));
                let all = table.keys.entry(key.key.clone()).or_default();
                if all.len() < PRINCIPALS_A_KEY {
                    all.push(shown);
                }
            }
            if let Principal::Identity(identity) = &entry.principal {
                let grants = entry.grants.iter();
                table.grants.extend(
                    grants.map(|grant| ((identity.clone(), grant.vm.clone()), grant.allowed_users.clone())),
                );
            }
        }
        table
    }

    /// Looks up whether who has the token may log in.
    ///
    /// # Errors
    /// See [`NoLogin`].
    pub fn by_token(&self, vm: &VmId, user: &LinuxUser, token: &IdentityToken) -> Result<Login, NoLogin> {
        let hash = token.hash();
        let found = self.tokens.get_key_value(&hash).filter(|(held, _)| held.is(&hash));
        let shown = found.map(|(_, shown)| shown).ok_or(NoLogin::UnknownProof)?;
        self.login(vm, user, shown)
    }

    /// Looks up whether who has the key may log in: type and base64, as in `authorized_keys`. That they have it is for
    /// the caller to check.
    ///
    /// # Errors
    /// See [`NoLogin`]; of several principals with this key, that of the one who comes nearest.
    pub fn by_key(&self, vm: &VmId, user: &LinuxUser, key: &str) -> Result<Login, NoLogin> {
        let mut worst = NoLogin::UnknownProof;
        for shown in self.keys.get(key).into_iter().flatten() {
            match self.login(vm, user, shown) {
                Ok(login) => return Ok(login),
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }

    /// Whether any key is registered: if none is, clients need not offer theirs.
    #[must_use]
    pub fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Looks a login up anew: in this table it may be gone, lead to another run of the VM, or find it in another state.
    ///
    /// # Errors
    /// See [`NoLogin`].
    pub fn again(&self, login: &Login) -> Result<Login, NoLogin> {
        let principal = self
            .proofs
            .get(&login.proof)
            .filter(|held| **held == login.principal)
            .ok_or(NoLogin::UnknownProof)?;
        let shown = Shown { principal: principal.clone(), proof: login.proof.clone() };
        self.login(login.vm(), &login.user, &shown)
    }

    fn login(&self, vm: &VmId, user: &LinuxUser, shown: &Shown) -> Result<Login, NoLogin> {
        let entry = self.vms.get(vm).ok_or(NoLogin::UnknownVm)?;
        match &shown.principal {
            Principal::Account(account) if *account == entry.account => {}
            Principal::Account(_) => return Err(NoLogin::NoGrant),
            Principal::Identity(identity) => {
                let grant = self.grants.get(&(identity.clone(), vm.clone())).ok_or(NoLogin::NoGrant)?;
                if grant.as_ref().is_some_and(|users| !users.contains(user)) {
                    return Err(NoLogin::UserNotAllowed);
                }
            }
        }
        Ok(Login {
            permit: Permit::of(vm.clone(), SSH_PORT, entry.run),
            user: user.clone(),
            principal: shown.principal.clone(),
            proof: shown.proof.clone(),
            state: entry.state,
            instance: entry.instance.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{AccountId, Generation};
    use crate::ssh::{SshGrantEntry, SshKeyEntry, SshPrincipalEntry, SshSecret, SshTokenEntry};
    use crate::token::TOKEN_RANDOM_BYTES;
    use crate::view::{Entries, VIEW_VERSION};

    fn token(seed: u8) -> IdentityToken {
        IdentityToken::from_random(&[seed; TOKEN_RANDOM_BYTES]).expect("usable bytes")
    }

    fn vm(seed: u8) -> VmId {
        VmId::from_random([seed; 20])
    }

    fn account(seed: u8) -> AccountId {
        AccountId::from_random([seed; 20])
    }

    fn view() -> SshView {
        let entry = |seed, state| SshVmEntry {
            vm: vm(seed),
            account: account(1),
            run: 7,
            instance: VmInstanceId::from_random([seed; 20]),
            state,
        };
        let grant = |seed, users: Option<&[&str]>| SshGrantEntry {
            vm: vm(seed),
            allowed_users: users.map(|users| users.iter().map(|user| user.parse().expect("user")).collect()),
        };
        SshView {
            version: VIEW_VERSION,
            generation: Generation(1),
            host_keys: Entries::default(),
            login_authority: SshSecret(String::new()),
            vms: vec![entry(1, SshVmState::Up), entry(2, SshVmState::Down), entry(3, SshVmState::Up)].into(),
            principals: vec![
                SshPrincipalEntry {
                    principal: Principal::Identity(IdentityId::from_random([1; 20])),
                    tokens: vec![SshTokenEntry { id: TokenId::from_random([1; 20]), hash: token(1).hash() }],
                    keys: vec![SshKeyEntry { id: SshKeyId::from_random([1; 20]), key: "t shared".into() }],
                    grants: vec![grant(1, None), grant(2, Some(&["dev"])), grant(9, None)],
                },
                SshPrincipalEntry {
                    principal: Principal::Account(account(1)),
                    tokens: Vec::new(),
                    keys: vec![SshKeyEntry { id: SshKeyId::from_random([2; 20]), key: "t shared".into() }],
                    grants: Vec::new(),
                },
                SshPrincipalEntry {
                    principal: Principal::Account(account(2)),
                    tokens: Vec::new(),
                    keys: vec![SshKeyEntry { id: SshKeyId::from_random([3; 20]), key: "t other".into() }],
                    grants: Vec::new(),
                },
            ]
            .into(),
        }
    }

    #[test]
    fn only_what_the_view_grants_is_a_login() {
        let table = SshTable::of(&view());
        let user = |name: &str| name.parse::<LinuxUser>().expect("user");
        let by_token = |seed, name, shown| table.by_token(&vm(seed), &user(name), &token(shown));
        let login = by_token(1, "anyone", 1).expect("granted");
        assert_eq!((login.permit().port(), login.permit().run(), login.state()), (22, 7, SshVmState::Up));
        assert!(by_token(2, "dev", 1).is_ok_and(|login| login.state() == SshVmState::Down));
        assert_eq!(by_token(2, "root", 1), Err(NoLogin::UserNotAllowed));
        assert_eq!(by_token(3, "root", 1), Err(NoLogin::NoGrant));
        assert_eq!(by_token(9, "root", 1), Err(NoLogin::UnknownVm));
        assert_eq!(by_token(1, "root", 2), Err(NoLogin::UnknownProof));
        let by_key = |seed, key| table.by_key(&vm(seed), &user("root"), key);
        // The identity has no grant for this VM, but the account has the same key.
        assert!(
            by_key(3, "t shared").is_ok_and(|login| *login.principal() == Principal::Account(account(1)))
        );
        assert_eq!(by_key(1, "t other"), Err(NoLogin::NoGrant));
        assert_eq!(by_key(1, "t none"), Err(NoLogin::UnknownProof));
    }

    #[test]
    fn a_login_ends_with_its_token_its_grant_or_its_vm() {
        let before = view();
        let login = SshTable::of(&before).by_token(&vm(1), &LinuxUser::root(), &token(1)).expect("granted");
        let after = |change: &dyn Fn(&mut Vec<SshPrincipalEntry>, &mut Vec<SshVmEntry>)| {
            let mut principals: Vec<_> = before.principals.iter().cloned().collect();
            let mut vms: Vec<_> = before.vms.iter().cloned().collect();
            change(&mut principals, &mut vms);
            let view = SshView { principals: principals.into(), vms: vms.into(), ..before.clone() };
            SshTable::of(&view).again(&login)
        };
        assert_eq!(after(&|_, _| {}).as_ref(), Ok(&login));
        assert_eq!(after(&|all, _| all[0].tokens.clear()), Err(NoLogin::UnknownProof));
        assert_eq!(after(&|all, _| all[0].grants.clear()), Err(NoLogin::NoGrant));
        assert_eq!(
            after(&|all, _| all[0].grants[0].allowed_users = Some(vec![])),
            Err(NoLogin::UserNotAllowed)
        );
        assert_eq!(after(&|_, vms| vms.clear()), Err(NoLogin::UnknownVm));
        let run = after(&|_, vms| vms[0].run = 8).expect("still granted");
        assert_eq!(run.permit().run(), 8);
    }
}
