//! One order, from the wish to the certificate (RFC 8555 section 7.1.6). It is taken up again where it stands, also by
//! a control that was started anew.
//!
//! ```text
//! (none) ─► pending ─► ready ─► processing ─► valid
//!              └──────────┴──────────┴──────► invalid: the next try makes another one
//! ```

use super::ASK_EVERY;
use super::account::{AccountError, Accounts};
use super::challenges::{Challenges, Proof, ShowError, Shown};
use super::nonce::with_nonce;
use super::proof::{self, ProofError};
use crate::certs;
use crate::publish::{PlanError, Planner};
use crate::pure::certificate;
use crate::store::{CertificateRecord, IssuedRecord, OrderRecord, Store, StoreError, now_ms};
use crate::wireguard::Keys;
use instant_acme::{
    Account, AuthorizationStatus, CertificateIdentifier, ChallengeType, Identifier, NewOrder, Order,
    OrderStatus, RetryPolicy,
};
use model::config::{AcmeConfig, ChallengeKind};
use model::digest::Digest;
use model::host::MappedName;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::CertificateDer;
use std::time::Duration;
use thiserror::Error;
use tracing::{debug, warn};
use zeroize::Zeroizing;

/// Longest for the doors to show a challenge. They take milliseconds; half a minute means that they are away.
const DOORS_WAIT: Duration = Duration::from_secs(30);
/// How the authority is asked whether it has made up its mind: it looks from several places of the world.
const POLLS: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(250))
    .backoff(1.5)
    .timeout(Duration::from_secs(90));

/// Why an order did not lead to a certificate.
#[derive(Debug, Error)]
pub enum OrderError {
    /// There is no account.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// The store cannot be asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The challenge could not be told to the doors.
    #[error("the doors cannot be told what to show: {0}")]
    Plan(#[from] PlanError),
    /// They did not take it over.
    #[error("edge-proxy did not take over the challenge within {} s; is it running?", DOORS_WAIT.as_secs())]
    Doors,
    /// The challenge cannot be shown.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// No key or request can be made.
    #[error("the certificate's key cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// No proof of the settings fits the name.
    #[error("none of the allowed proofs fits {0}; a wildcard needs dns-01")]
    NoKind(MappedName),
    /// The authority does not offer the proof.
    #[error("the authority offers {offered}, and not {wanted}")]
    NotOffered {
        /// What was to be used.
        wanted: &'static str,
        /// What it offers.
        offered: String,
    },
    /// The authority looked, and did not see what it asked for.
    #[error("the authority did not accept the proof by {kind}: {why}")]
    Unproved {
        /// How it was tried.
        kind: &'static str,
        /// In its own words.
        why: String,
    },
    /// The authority refused something, or did not answer.
    #[error("{0}")]
    Asked(#[from] instant_acme::Error),
    /// What it gave is not what was ordered.
    #[error(transparent)]
    Given(#[from] ProofError),
}

/// What all orders share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Office {
    /// How, and from whom.
    pub config: AcmeConfig,
    /// Where it is written down.
    pub store: Store,
    /// What seals keys.
    pub keys: Keys,
    /// Who tells the doors.
    pub planner: Planner,
    /// What they show.
    pub challenges: Challenges,
    /// Who asks.
    pub accounts: Accounts,
}

impl Office {
    /// Gets a certificate for a name, and writes it down. What was under way is taken up again.
    ///
    /// # Errors
    /// See [`OrderError`]. The certificate that serves goes on to.
    pub async fn certify(&self, record: &CertificateRecord) -> Result<(), OrderError> {
        match self.attempt(record).await {
            // Once more under a new account: this was no failure of the name's.
            Err(OrderError::Asked(error)) if self.accounts.forget_if_lost(&error).await? => {
                self.store.put_order(&record.name, None).await?;
                self.attempt(&CertificateRecord { order: None, ..record.clone() }).await
            }
            other => other,
        }
    }

    async fn attempt(&self, record: &CertificateRecord) -> Result<(), OrderError> {
        let name = &record.name;
        let account = self.accounts.get().await?;
        let (mut order, key_pem) = match self.resumed(&account, record).await? {
            Some(resumed) => resumed,
            None => self.ordered(&account, record).await?,
        };
        let mut shown = Vec::new();
        let chain_pem = loop {
            match order.state().status {
                OrderStatus::Pending => {
                    let kinds = certificate::kinds(name, &self.config);
                    let kind = certificate::kind(&kinds, record.failures)
                        .ok_or_else(|| OrderError::NoKind(name.clone()))?;
                    let proved = match self.prove(&mut order, kind).await {
                        Ok(showing) => {
                            shown = showing;
                            with_nonce!(order.poll_ready(&POLLS)).map_err(OrderError::Asked)
                        }
                        Err(error) => Err(error),
                    };
                    match proved {
                        Ok(_) => {}
                        // An authority that looked at once may say here what it did not see.
                        Err(OrderError::Asked(error)) => {
                            return Err(unproved(&mut order, kind).await.unwrap_or(OrderError::Asked(error)));
                        }
                        Err(error) => return Err(error),
                    }
                    if order.state().status == OrderStatus::Invalid {
                        return Err(self.invalid(name, &mut order, kind).await);
                    }
                }
                OrderStatus::Ready => {
                    let csr = request(name, &key_pem)?;
                    with_nonce!(order.finalize_csr(&csr))?;
                }
                OrderStatus::Processing | OrderStatus::Valid => {
                    break with_nonce!(order.poll_certificate(&POLLS))?;
                }
                OrderStatus::Invalid => {
                    let kinds = certificate::kinds(name, &self.config);
                    let kind = certificate::kind(&kinds, record.failures).unwrap_or(ChallengeKind::TlsAlpn);
                    return Err(self.invalid(name, &mut order, kind).await);
                }
            }
        };
        drop(shown);
        let (not_before_ms, not_after_ms) = match proof::check(name, &chain_pem, &key_pem) {
            Ok(times) => times,
            Err(error) => {
                self.store.put_order(name, None).await?;
                return Err(error.into());
            }
        };
        let issued = IssuedRecord {
            sealed_key: self.sealed(name, &key_pem),
            renew_ms: certificate::renew_at(name, not_before_ms, not_after_ms),
            chain_pem,
            not_before_ms,
            not_after_ms,
        };
        let ask_ms = now_ms().saturating_add(i64::try_from(ASK_EVERY.as_millis()).unwrap_or(i64::MAX));
        let file = Digest::of(&certs::file(key_pem.as_bytes(), &issued.chain_pem));
        Ok(self.store.put_certificate(name, &issued, file, ask_ms).await?)
    }

    /// The order that was under way, unless the authority has given it up.
    async fn resumed(
        &self,
        account: &Account,
        record: &CertificateRecord,
    ) -> Result<Option<(Order, Zeroizing<String>)>, OrderError> {
        let Some(kept) = &record.order else { return Ok(None) };
        let opened = self.keys.seal().open_bytes(&record.name.to_string(), &kept.sealed_key);
        let Ok(key) = opened.inspect_err(|error| warn!(name = %record.name, %error, "an order is given up"))
        else {
            return Ok(None);
        };
        let key = Zeroizing::new(String::from_utf8_lossy(&key).into_owned());
        match with_nonce!(account.order(kept.url.clone())) {
            Ok(mut order) => Ok((order.state().status != OrderStatus::Invalid).then_some((order, key))),
            Err(instant_acme::Error::Api(problem)) if problem.status == Some(404) => {
                debug!(name = %record.name, %problem, "the order under way is gone");
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A new order, counted before it is made and written down before anything comes of it.
    async fn ordered(
        &self,
        account: &Account,
        record: &CertificateRecord,
    ) -> Result<(Order, Zeroizing<String>), OrderError> {
        let name = &record.name;
        let key = Zeroizing::new(KeyPair::generate()?.serialize_pem());
        self.store.count_order().await?;
        let identifiers = [Identifier::Dns(name.to_string())];
        let replaced = record.issued.as_ref().and_then(|issued| proof::leaf(&issued.chain_pem));
        let replaced = replaced.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok());
        let plain = NewOrder::new(&identifiers);
        let order = match replaced {
            Some(replaced) => {
                let renewal = NewOrder::new(&identifiers).replaces(replaced);
                match with_nonce!(account.new_order(&renewal)) {
                    // An authority that does not know renewals by name, or has no such certificate, gets a plain order.
                    Err(error @ (instant_acme::Error::Unsupported(_) | instant_acme::Error::Other(_))) => {
                        debug!(%name, %error, "the order does not say what it replaces");
                        with_nonce!(account.new_order(&plain))?
                    }
                    other => other?,
                }
            }
            None => with_nonce!(account.new_order(&plain))?,
        };
        let sealed_key = self.sealed(name, &key);
        self.store.put_order(name, Some(&OrderRecord { url: order.url().to_owned(), sealed_key })).await?;
        Ok((order, key))
    }

    /// Shows what the authority asks for, waits until the doors do, and asks it to look.
    async fn prove(&self, order: &mut Order, kind: ChallengeKind) -> Result<Vec<Shown>, OrderError> {
        let mut shown = Vec::new();
        with_nonce!(fetch(order))?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status != AuthorizationStatus::Pending {
                continue;
            }
            let offered = offered(&authorization.challenges);
            let name = authorization.identifier().to_string();
            let host = name.trim_start_matches("*.").parse();
            let challenge = authorization
                .challenge(spoken(kind))
                .ok_or(OrderError::NotOffered { wanted: word(kind), offered })?;
            let authorized = challenge.key_authorization();
            let Ok(host) = host else { continue };
            let proof = Proof {
                name: host,
                token: challenge.token.clone(),
                authorization: authorized.as_str().to_owned(),
                digest: authorized.digest().as_ref().to_vec(),
                text: authorized.dns_value(),
            };
            shown.push(self.challenges.show(kind, proof)?);
        }
        if shown.is_empty() {
            return Ok(shown);
        }
        let generation = self.planner.publish().await?;
        let taken = self.planner.taken_over_by_doors(generation);
        tokio::time::timeout(DOORS_WAIT, taken).await.map_err(|_| OrderError::Doors)?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Pending
                && let Some(mut challenge) = authorization.challenge(spoken(kind))
            {
                with_nonce!(challenge.set_ready())?;
            }
        }
        Ok(shown)
    }

    /// What to tell of an order that came to nothing; the next try makes another one.
    async fn invalid(&self, name: &MappedName, order: &mut Order, kind: ChallengeKind) -> OrderError {
        if let Err(error) = self.store.put_order(name, None).await {
            return error.into();
        }
        let unknown = || OrderError::Unproved { kind: word(kind), why: "it does not say why".to_owned() };
        unproved(order, kind).await.unwrap_or_else(unknown)
    }

    fn sealed(&self, name: &MappedName, key_pem: &str) -> String {
        self.keys.seal().close_bytes(&name.to_string(), key_pem.as_bytes())
    }
}

/// Has the library know the authorizations. Those that it knows are not asked for again.
async fn fetch(order: &mut Order) -> Result<(), instant_acme::Error> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        authorization?;
    }
    Ok(())
}

/// The authority's own words about a proof that it did not accept.
async fn unproved(order: &mut Order, kind: ChallengeKind) -> Option<OrderError> {
    if let Err(error) = with_nonce!(fetch(order)) {
        warn!(%error, "the authority does not say what it wanted");
    }
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        if let Err(error) = with_nonce!(authorization.refresh()) {
            warn!(%error, "the authority does not say why it refused");
            continue;
        }
        let said = authorization.challenges.iter().find_map(|challenge| challenge.error.as_ref());
        if let Some(problem) = said {
            return Some(OrderError::Unproved { kind: word(kind), why: proof::words(problem) });
        }
    }
    None
}

/// The request for a certificate of one name (RFC 8555 section 7.4).
fn request(name: &MappedName, key_pem: &str) -> Result<Vec<u8>, OrderError> {
    let mut params = CertificateParams::new(vec![name.to_string()])?;
    params.distinguished_name = DistinguishedName::new();
    let key = KeyPair::from_pem(key_pem)?;
    Ok(params.serialize_request(&key)?.der().to_vec())
}

fn offered(challenges: &[instant_acme::Challenge]) -> String {
    let kinds: Vec<String> = challenges.iter().map(|challenge| format!("{:?}", challenge.r#type)).collect();
    kinds.join(", ")
}

fn spoken(kind: ChallengeKind) -> ChallengeType {
    match kind {
        ChallengeKind::TlsAlpn => ChallengeType::TlsAlpn01,
        ChallengeKind::Http => ChallengeType::Http01,
        ChallengeKind::Dns => ChallengeType::Dns01,
    }
}

fn word(kind: ChallengeKind) -> &'static str {
    match kind {
        ChallengeKind::TlsAlpn => "tls-alpn-01",
        ChallengeKind::Http => "http-01",
        ChallengeKind::Dns => "dns-01",
    }
}

/// For asking when to renew.
#[must_use]
pub fn identifier(leaf: &CertificateDer<'_>) -> Option<CertificateIdentifier<'static>> {
    CertificateIdentifier::try_from(leaf).ok().map(CertificateIdentifier::into_owned)
}
