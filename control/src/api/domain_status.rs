//! What is known of a name, from its DNS to its VM, and what to do next.

use super::Api;
use super::answer::Answer;
use super::auth::Caller;
use super::body::Named;
use super::domains::shown as mapping_shown;
use super::openapi::Shape;
use super::routes::Route;
use super::verifications::{owned, shown};
use super::vms::stored;
use crate::fault::Fault;
use crate::pure::certificate::covers;
use crate::pure::domain::{Proofs, held_back};
use crate::pure::host;
use crate::store::{DomainRecord, Right};
use axum::Json;
use axum::extract::State;
use axum::routing;
use dns_verify::Proof;
use model::api::domain::{DnsLook, DnsQuestion, DomainStatus};
use model::host::{HostName, MappedName};

/// The route.
pub fn routes() -> Vec<Route> {
    vec![Route::new(
        "get",
        "/domains/v1/status/{domain}",
        "A name's DNS, proof, certificate, mapping and VM, and what to do next",
        Shape::of::<DomainStatus>(),
        routing::get(status),
    )]
}

/// `GET /domains/v1/status/{domain}`. Looks at the name's DNS when there is a proof to look for.
async fn status(
    State(api): State<Api>,
    caller: Caller,
    Named(domain): Named<String>,
) -> Answer<DomainStatus> {
    let (name, right) = host::mappable(&domain, &api.0.config.domain)?;
    let store = &api.0.store;
    let domains = store.domains().await.map_err(|error| stored(&error))?;
    let proofs = Proofs::of(&domains);
    let proof = proofs.over(&name).filter(|proof| proof.account == caller.account);
    let begun = store.verifications_of(&caller.account).await.map_err(|error| stored(&error))?;
    let begun = begun.into_iter().find(|begun| begun.domain == *name.base());
    let mappings = store.mappings().await.map_err(|error| stored(&error))?;
    let mapping = mappings.into_iter().find(|one| one.host == name && one.account == caller.account);
    let vm = match &mapping {
        Some(mapping) => store.vm(&mapping.vm).await.map_err(|error| stored(&error))?,
        None => None,
    };
    let wanted = begun
        .as_ref()
        .map(|begun| (begun.domain.clone(), begun.code.clone()))
        .or_else(|| proof.map(|proof| (proof.domain.clone(), proof.code.clone())));
    let dns = match wanted {
        Some((domain, code)) => Some(look(&api, &domain, code).await?),
        None => None,
    };
    let certified = certified(&api, &name).await?;
    let facts = Facts {
        name: &name,
        preview: right == Right::Preview,
        proof,
        begun: begun.is_some(),
        found: dns.as_ref().is_some_and(|dns| dns.found),
        mapped: mapping.is_some(),
        certified: &certified,
    };
    let next = next(&facts);
    Ok(Json(DomainStatus {
        preview: right == Right::Preview,
        proof: proof.cloned().map(owned),
        verification: begun.map(|begun| shown(&api, begun)),
        dns,
        certificate: certified.covered,
        certificate_error: certified.error,
        mapping: mapping.map(|mapping| mapping_shown(mapping, &proofs)),
        vm_state: vm.map(|vm| vm.phase.as_str().to_owned()),
        next,
        domain: name,
    }))
}

async fn look(api: &Api, domain: &HostName, code: String) -> Result<DnsLook, Fault> {
    let looked = api.0.prover.prove(domain, vec![code]).await;
    let proof = looked.map_err(|error| Fault::new(500, "FAILED_TO_VERIFY_DOMAIN", error.to_string()))?;
    Ok(told(proof))
}

fn told(proof: Proof) -> DnsLook {
    let message = proof.to_string();
    let asked = proof.asked.into_iter().map(|asked| DnsQuestion {
        server: asked.server.to_string(),
        name: asked.name,
        kind: asked.kind.as_str().to_owned(),
        answer: asked.answer,
    });
    DnsLook { found: proof.code.is_some(), record_name: proof.expected, message, asked: asked.collect() }
}

/// What is known of a name's certificate.
#[derive(Clone, Debug, Default)]
struct Certified {
    /// A certificate that the doors have covers it.
    covered: bool,
    /// An authority is to certify it.
    ordered: bool,
    /// What went wrong last at the authority.
    error: Option<String>,
}

async fn certified(api: &Api, name: &MappedName) -> Result<Certified, Fault> {
    let folder = api.0.planner.folder().clone();
    let read = tokio::task::spawn_blocking(move || folder.pairs());
    let pairs = read.await.map_err(|error| Fault::internal(error.to_string()))?;
    let mut names: Vec<_> = pairs.iter().flat_map(|pair| pair.names.iter().cloned()).collect();
    let mut known = Certified::default();
    let above = name.base().parent().map(MappedName::below);
    for other in [Some(name.clone()), above].into_iter().flatten() {
        let record = api.0.store.certificate(&other).await.map_err(|error| stored(&error))?;
        let Some(record) = record.filter(|record| record.wanted) else { continue };
        known.ordered |= api.0.config.acme.is_some();
        known.error = known.error.or(record.last_error.map(|(why, _)| why));
        names.extend(record.issued.map(|_| other.to_string()));
    }
    known.covered = names.iter().any(|other| covers(other, name));
    Ok(known)
}

struct Facts<'a> {
    name: &'a MappedName,
    preview: bool,
    proof: Option<&'a DomainRecord>,
    begun: bool,
    found: bool,
    mapped: bool,
    certified: &'a Certified,
}

fn next(facts: &Facts<'_>) -> String {
    let Facts { name, preview, proof, begun, found, mapped, certified } = facts;
    let base = name.base();
    match proof {
        _ if *preview => {}
        None if *begun && *found => return format!("the record is there: gatehouse domains complete {base}"),
        None if *begun => {
            return format!("publish the TXT record, then: gatehouse domains complete {base}");
        }
        None => return format!("prove that it is yours: gatehouse domains verify {base}"),
        Some(proof) if held_back(proof) => {
            return "its proof is gone from the DNS and its names lead nowhere: publish the TXT record again, or \
                    prove it anew with gatehouse domains verify"
                .to_owned();
        }
        Some(_) => {}
    }
    if !mapped {
        return format!("lead it to a VM: gatehouse domains map {name} --vm VM --port PORT");
    }
    match certified {
        Certified { covered: true, .. } => {}
        Certified { error: Some(_), .. } => {
            return "the authority did not certify it yet: let its A or AAAA record (for a wildcard, the NS record of \
                    _acme-challenge) lead to this host; it is tried again by itself"
                .to_owned();
        }
        Certified { ordered: true, .. } => {
            return "wait a moment: its certificate is being ordered".to_owned();
        }
        Certified { .. } => {
            return "give the house a certificate for it, and let its A or AAAA record lead to this host"
                .to_owned();
        }
    }
    "nothing: it is served, as long as its A or AAAA record leads to this host".to_owned()
}
