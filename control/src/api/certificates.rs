//! Certificates of the authority: as the operator sees them, and wildcards, which accounts ask for.

use super::Api;
use super::answer::Answer;
use super::auth::{Caller, operator_only};
use super::body::{Named, invalid};
use super::vms::stored;
use crate::fault::Fault;
use crate::pure::domain::{Proofs, stands};
use crate::pure::host;
use crate::store::{CertificateRecord, rfc3339};
use axum::Json;
use axum::extract::State;
use model::api::admin::{CertificateList, CertificateRow, CertificateState};
use model::api::domain::WildcardCertificate;
use model::config::{AcmeConfig, ChallengeKind};
use model::host::{HostError, MappedName};

/// `GET /admin/v1/certificates`.
pub async fn list(State(api): State<Api>, caller: Caller) -> Answer<CertificateList> {
    operator_only(&caller)?;
    let mut records = api.0.store.certificates().await.map_err(|error| stored(&error))?;
    records.retain(|record| record.wanted);
    records.sort_by(|one, other| one.name.cmp(&other.name));
    let authority = api.0.config.acme.as_ref().map(|acme| acme.directory.clone());
    Ok(Json(CertificateList { authority, certificates: records.into_iter().map(row).collect() }))
}

/// `POST /admin/v1/certificates/{name}/retry`. A name that has a certificate gets a new one.
pub async fn retry(
    State(api): State<Api>,
    caller: Caller,
    Named(name): Named<String>,
) -> Answer<CertificateRow> {
    operator_only(&caller)?;
    let name: MappedName = name.parse().map_err(|error: HostError| invalid(error.to_string()))?;
    let unknown = || {
        let message =
            format!("{name} is not to be certified: it is not mapped, or another certificate covers it");
        Fault::new(404, "CERTIFICATE_NOT_FOUND", message)
    };
    if !api.0.store.hurry_certificate(&name).await.map_err(|error| stored(&error))? {
        return Err(unknown());
    }
    api.0.planner.decided().notify_one();
    let record = api.0.store.certificate(&name).await.map_err(|error| stored(&error))?;
    record.map(|record| Json(row(record))).ok_or_else(unknown)
}

/// `POST /domains/v1/certs/{domain}/wildcard`: certifies all names below a domain of the account. The answer means that
/// it is being ordered; a domain's status tells what comes of it.
pub async fn wildcard(
    State(api): State<Api>,
    caller: Caller,
    Named(domain): Named<String>,
) -> Answer<WildcardCertificate> {
    let preview = &api.0.config.domain;
    let domain = host::provable(&domain, preview)?;
    let by_dns = |acme: &AcmeConfig| acme.challenges.contains(&ChallengeKind::Dns);
    if !api.0.config.acme.as_ref().is_some_and(by_dns) {
        let reason =
            "this house has no certificate authority that wildcards are proved to, which is done by DNS";
        let fault = Fault::new(502, "CERTIFICATE_PROVISIONING_ERROR", format!("{domain}: {reason}"));
        return Err(fault.with("domain", domain.as_str()).with("reason", reason));
    }
    let domains = api.0.store.domains().await.map_err(|error| stored(&error))?;
    let name = MappedName::below(domain.clone());
    if !stands(&caller.account, &name, &Proofs::of(&domains), preview) {
        return Err(host::not_proved(&name, preview));
    }
    api.0.store.wish_wildcard(&caller.account, &domain).await.map_err(|error| stored(&error))?;
    api.0.planner.decided().notify_one();
    Ok(Json(WildcardCertificate { domain }))
}

fn row(record: CertificateRecord) -> CertificateRow {
    let failed = record.failures > 0;
    let state = match (&record.issued, failed) {
        (None, false) => CertificateState::Pending,
        (None, true) => CertificateState::Failed,
        (Some(_), false) => CertificateState::Issued,
        (Some(_), true) => CertificateState::RenewalFailed,
    };
    let (last_error, last_error_at) = record.last_error.unzip();
    CertificateRow {
        name: record.name.to_string(),
        state,
        not_after: record.issued.as_ref().map(|issued| rfc3339(issued.not_after_ms)),
        renew_at: record.issued.as_ref().map(|issued| rfc3339(issued.renew_ms)),
        failures: record.failures,
        next_try_at: failed.then(|| rfc3339(record.next_ms)),
        last_error,
        last_error_at: last_error_at.map(rfc3339),
    }
}
