//! Customers' domains: the prover with the house's settings, and the look whether proofs still stand.

use crate::publish::Planner;
use crate::pure::domain::HELD_BACK_AFTER;
use crate::store::{DomainRecord, Store, StoreError, now_ms};
use dns_verify::{Labels, Prover, Settings};
use model::config::DomainProof;
use std::num::NonZeroU32;
use std::time::Duration;
use tracing::{info, warn};

/// How often it is asked which proofs are due. Far below the shortest setting, an hour.
const ROUND: Duration = Duration::from_secs(300);
/// Proofs that are looked at in one round, one after the other; the rest wait for the next.
const MAX_A_ROUND: usize = 100;

/// The prover by the settings.
#[must_use]
pub fn prover(config: &DomainProof) -> Prover {
    let usual = Settings::default();
    let first = config.label.as_ref().map(|label| label.as_str().to_owned());
    Prover::new(Settings {
        roots: if config.roots.is_empty() { usual.roots } else { config.roots.clone() },
        port: config.port.unwrap_or(usual.port),
        any_address: config.any_address,
        labels: Labels { first: first.unwrap_or(usual.labels.first), second: usual.labels.second },
    })
}

/// Looks for ever whether proofs still stand, each as often as the settings say.
pub async fn recheck(hours: NonZeroU32, store: Store, planner: Planner, prover: Prover) {
    loop {
        if let Err(error) = round(hours, &store, &planner, &prover).await {
            warn!(%error, "proofs of domains are not looked at; trying again");
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn round(
    hours: NonZeroU32,
    store: &Store,
    planner: &Planner,
    prover: &Prover,
) -> Result<(), StoreError> {
    let due = now_ms() - i64::from(hours.get()) * 3_600_000;
    let domains = store.domains().await?;
    for domain in domains.iter().filter(|domain| domain.checked_ms <= due).take(MAX_A_ROUND) {
        if look(domain, store, prover).await?
            && let Err(error) = planner.publish().await
        {
            warn!(%error, "what came of a look at a domain waits to be published");
        }
    }
    Ok(())
}

/// Looks at one; tells whether its names are held back now and were not, or the other way round.
async fn look(domain: &DomainRecord, store: &Store, prover: &Prover) -> Result<bool, StoreError> {
    // All places are taken by people's own proofs: it is due again in the next round.
    let Ok(proof) = prover.prove(&domain.domain, vec![domain.code.clone()]).await else { return Ok(false) };
    if proof.code.is_some() {
        store.looked_at(domain, None, false).await?;
        return Ok(domain.misses >= HELD_BACK_AFTER);
    }
    store.looked_at(domain, Some(&proof.to_string()), proof.denied()).await?;
    info!(domain = %domain.domain, denied = proof.denied(), "a domain's proof is not seen any more");
    Ok(proof.denied() && domain.misses + 1 == HELD_BACK_AFTER)
}
