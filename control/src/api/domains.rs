//! Domain mappings. An answer means that the doors have been told: the next request to the name finds its VM, or
//! nothing.

use super::Api;
use super::answer::Answer;
use super::auth::Caller;
use super::body::{Asked, Named, SMALL_BODY, json, vm_id};
use super::vms::stored;
use crate::fault::Fault;
use crate::pure::domain::Proofs;
use crate::pure::host;
use crate::store::{MappingRecord, NewMapping, PutMapping, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use model::api::Empty;
use model::api::domain::{CreateMapping, Mapping, MappingQuery};
use model::host::MappedName;
use model::id::{AccountId, VmId};

/// By what right an account maps a name below the preview domain: whoever comes first.
const PREVIEW_OWNERSHIP: &str = "preview";

/// `GET /domains/v1/mappings`.
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<MappingQuery>,
) -> Answer<Vec<Mapping>> {
    let all = api.0.store.mappings().await.map_err(|error| stored(&error))?;
    let domains = api.0.store.domains().await.map_err(|error| stored(&error))?;
    let proofs = Proofs::of(&domains);
    let domain = query.domain.map(|text| host::mappable(&text, &api.0.config.domain)).transpose()?;
    let wanted = |mapping: &MappingRecord| {
        mapping.account == caller.account
            && domain.as_ref().is_none_or(|(domain, _)| mapping.host == *domain)
            && query.domain_ownership.as_ref().is_none_or(|wanted| *wanted == ownership(mapping, &proofs))
    };
    let (skip, take) = (query.offset.unwrap_or(0), query.limit.unwrap_or(u32::MAX));
    let page = all.into_iter().filter(wanted).skip(skip as usize).take(take as usize);
    Ok(Json(page.map(|mapping| shown(mapping, &proofs)).collect()))
}

/// `POST /domains/v1/mappings/{domain}`. A name that the account has mapped already leads to the new place from now
/// on.
pub async fn create(
    State(api): State<Api>,
    caller: Caller,
    Named(domain): Named<String>,
    body: Body,
) -> Answer<Mapping> {
    let (host, right) = host::mappable(&domain, &api.0.config.domain)?;
    let request: CreateMapping = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    if request.deployment_id.is_some() {
        return Err(Fault::not_offered("mapping a deployment"));
    }
    let Some(vm) = request.vm_id else {
        return Err(Fault::new(
            400,
            "INVALID_PARAMETERS",
            "vmId is missing: to which VM is the name to lead?",
        ));
    };
    let new = NewMapping { host: host.clone(), port: host::port(request.vm_port)?, right };
    let vm = vm_id(&vm)?;
    let put = api.0.store.put_mapping(&caller.account, &vm, &new).await;
    let record = match put.map_err(|error| stored(&error))? {
        PutMapping::Done(record) => record,
        PutMapping::Taken => return Err(taken(&host)),
        PutMapping::NotProved => return Err(host::not_proved(&host, &api.0.config.domain)),
        PutMapping::NoVm => return Err(no_vm(&vm)),
    };
    published(&api, &host).await?;
    let domains = api.0.store.domains().await.map_err(|error| stored(&error))?;
    Ok(Json(shown(record, &Proofs::of(&domains))))
}

/// `DELETE /domains/v1/mappings/{domain}`.
pub async fn delete(State(api): State<Api>, caller: Caller, Named(domain): Named<String>) -> Answer<Empty> {
    let (host, _) = host::mappable(&domain, &api.0.config.domain)?;
    let removed = api.0.store.remove_mapping(&caller.account, &host).await;
    if !removed.map_err(|error| stored(&error))? {
        return Err(missing(&api, &caller.account, &host).await);
    }
    published(&api, &host).await?;
    Ok(Json(Empty {}))
}

async fn published(api: &Api, host: &MappedName) -> Result<(), Fault> {
    api.0.machines.pass("mapping changed").await;
    let published = api.0.planner.publish().await;
    published.map(drop).map_err(|error| {
        Fault::new(500, "DOMAIN_MAPPING_ERROR", error.to_string()).with("domain", host.to_string())
    })
}

async fn missing(api: &Api, account: &AccountId, host: &MappedName) -> Fault {
    match api.0.store.owner_of_host(host).await {
        Ok(Some(owner)) if owner != *account => taken(host),
        Ok(_) => Fault::new(404, "FAILED_REMOVE_DOMAIN_MAPPING", format!("{host} is not mapped")),
        Err(error) => stored(&error),
    }
}

fn taken(host: &MappedName) -> Fault {
    let message = format!("{host} is mapped by another account");
    Fault::new(401, "DOMAIN_OWNERSHIP_NOT_VERIFIED", message).with("domain", host.to_string())
}

fn no_vm(vm: &VmId) -> Fault {
    let message = format!("this account has no VM {vm}");
    Fault::new(401, "VM_ACCESS_DENIED_FOR_MAPPING", message).with("vmId", vm.as_str())
}

/// By what right a name is mapped, as the contract shows it.
fn ownership(mapping: &MappingRecord, proofs: &Proofs<'_>) -> String {
    proofs.over(&mapping.host).map_or_else(|| PREVIEW_OWNERSHIP.to_owned(), |proof| proof.id.to_string())
}

pub(super) fn shown(record: MappingRecord, proofs: &Proofs<'_>) -> Mapping {
    Mapping {
        ownership_id: ownership(&record, proofs),
        id: record.id,
        domain: record.host,
        vm_id: Some(record.vm),
        vm_port: Some(record.port),
        created_at: rfc3339(record.created_ms),
    }
}
