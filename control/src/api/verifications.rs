//! Proofs that a domain is an account's, by a TXT record that only its owner can publish.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Asked, SMALL_BODY, invalid, json};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::{Api, whole};
use crate::fault::Fault;
use crate::pure::host;
use crate::random;
use crate::store::{BeginProof, DomainRecord, Took, VerificationRecord, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::domain::{
    CancelVerification, CompleteVerification, CreateVerification, Domain, DomainQuery, Verification,
    VerificationCompleted,
};
use model::host::HostName;

/// The routes.
pub fn routes() -> Vec<Route> {
    let path = "/domains/v1/verifications";
    vec![
        Route::new(
            "get",
            path,
            "Proofs of domains that were begun",
            Shape::of::<Vec<Verification>>(),
            routing::get(list),
        ),
        Route::new(
            "post",
            path,
            "Begins to prove a domain; tells the TXT record that is to be published",
            Shape::of::<Verification>(),
            routing::post(create),
        )
        .taking(Shape::of::<CreateVerification>()),
        Route::new(
            "put",
            path,
            "Looks for the TXT record at the domain's own name servers",
            Shape::of::<VerificationCompleted>(),
            routing::put(complete),
        )
        .taking(Shape::of::<CompleteVerification>()),
        Route::new(
            "delete",
            path,
            "Gives a proof up that was begun",
            Shape::of::<CancelVerification>(),
            routing::delete(cancel),
        )
        .taking(Shape::of::<CancelVerification>()),
        Route::new(
            "get",
            "/domains/v1/domains",
            "The account's domains",
            Shape::of::<Vec<Domain>>(),
            routing::get(domains),
        )
        .asking(Shape::of::<DomainQuery>()),
    ]
}

/// `GET /domains/v1/verifications`.
async fn list(State(api): State<Api>, caller: Caller) -> Answer<Vec<Verification>> {
    let all = api.0.store.verifications_of(&caller.account).await.map_err(|error| stored(&error))?;
    Ok(Json(all.into_iter().map(|begun| shown(&api, begun)).collect()))
}

/// `POST /domains/v1/verifications`. One that was begun already is told again.
async fn create(State(api): State<Api>, caller: Caller, body: Body) -> Answer<Verification> {
    let request: CreateVerification = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    let domain = host::provable(&request.domain, &api.0.config.domain)?;
    let begun = api.0.store.begin_proof(&caller.account, &domain, &code()).await;
    match begun.map_err(|error| stored(&error))? {
        BeginProof::Begun(begun) => Ok(Json(shown(&api, begun))),
        BeginProof::Proved => {
            let message = format!("this account has proved {domain} already");
            Err(Fault::new(400, "DOMAIN_ALREADY_EXISTS", message).with("domain", domain.as_str()))
        }
        BeginProof::TooMany { limit, current } => Err(Fault::over_limit(
            format!(
                "this account has begun {current} proofs, and {limit} are allowed; complete or cancel some"
            ),
            limit,
            current,
        )),
    }
}

/// `PUT /domains/v1/verifications`.
async fn complete(State(api): State<Api>, caller: Caller, body: Body) -> Answer<VerificationCompleted> {
    let request: CompleteVerification = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    let begun = api.0.store.verifications_of(&caller.account).await.map_err(|error| stored(&error))?;
    let (found, what) = match (&request.domain, &request.id) {
        (Some(text), None) => {
            let domain = host::provable(text, &api.0.config.domain)?;
            (begun.into_iter().find(|begun| begun.domain == domain), domain.to_string())
        }
        (None, Some(id)) => {
            (begun.into_iter().find(|begun| begun.id.as_str() == id), id.chars().take(64).collect())
        }
        (Some(_), Some(_)) | (None, None) => return Err(invalid("give either domain or id")),
    };
    let Some(begun) = found else { return completed_before(&api, &caller, &what).await };
    whole(async move { prove(&api, begun).await }).await
}

/// `DELETE /domains/v1/verifications`.
async fn cancel(State(api): State<Api>, caller: Caller, body: Body) -> Answer<CancelVerification> {
    let request: CancelVerification = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    let domain = host::provable(&request.domain, &api.0.config.domain)?;
    let gone = api.0.store.cancel_proof(&caller.account, &domain, &request.verification_code).await;
    if gone.map_err(|error| stored(&error))? { Ok(Json(request)) } else { Err(not_begun(domain.as_str())) }
}

/// `GET /domains/v1/domains`.
async fn domains(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<DomainQuery>,
) -> Answer<Vec<Domain>> {
    let all = api.0.store.domains().await.map_err(|error| stored(&error))?;
    let (skip, take) = (query.offset.unwrap_or(0), query.limit.unwrap_or(u32::MAX));
    // Preview names are nobody's own, so all of an account's domains are proved ones.
    let wanted =
        |domain: &DomainRecord| domain.account == caller.account && query.implicitly_owned != Some(true);
    let page = all.into_iter().filter(wanted).skip(skip as usize).take(take as usize);
    Ok(Json(page.map(owned).collect()))
}

async fn prove(api: &Api, begun: VerificationRecord) -> Answer<VerificationCompleted> {
    let looked = api.0.prover.prove(&begun.domain, vec![begun.code.clone()]).await;
    let proof = looked.map_err(|error| Fault::new(500, "FAILED_TO_VERIFY_DOMAIN", error.to_string()))?;
    if proof.code.is_none() {
        let why = proof.to_string();
        api.0.store.proof_failed(&begun.id, &why).await.map_err(|error| stored(&error))?;
        return Err(Fault::new(400, "VERIFICATION_FAILED", why).with("domain", begun.domain.as_str()));
    }
    match api.0.store.take_domain(&begun).await.map_err(|error| stored(&error))? {
        Took::Domain(record) => {
            api.published("domain taken").await?;
            Ok(Json(VerificationCompleted { domain: record.domain }))
        }
        Took::Cancelled => Err(not_begun(begun.domain.as_str())),
        Took::TooMany { limit, current } => Err(Fault::over_limit(
            format!("this account has {current} domains, and {limit} are allowed"),
            limit,
            current,
        )),
    }
}

/// Whoever did not hear our answer asks again.
async fn completed_before(api: &Api, caller: &Caller, what: &str) -> Answer<VerificationCompleted> {
    let all = api.0.store.domains().await.map_err(|error| stored(&error))?;
    let mine = all.into_iter().find(|one| one.account == caller.account && one.domain.as_str() == what);
    mine.map(|one| Json(VerificationCompleted { domain: one.domain })).ok_or_else(|| not_begun(what))
}

fn not_begun(what: &str) -> Fault {
    let message =
        format!("this account has begun no such proof of {what}; begin with POST /domains/v1/verifications");
    Fault::new(404, "VERIFICATION_NOT_FOUND", message).with("domain", what)
}

/// What is to stand in the record: random, so that nobody publishes it by chance.
fn code() -> String {
    random::bytes::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn shown(api: &Api, begun: VerificationRecord) -> Verification {
    Verification {
        record_name: record_name(api, &begun.domain),
        id: begun.id,
        domain: begun.domain,
        account_id: begun.account,
        verification_code: begun.code,
        created_at: rfc3339(begun.created_ms),
        last_error: begun.last_error,
    }
}

fn record_name(api: &Api, domain: &HostName) -> String {
    format!("{}.{domain}", api.0.prover.labels().first)
}

pub(super) fn owned(record: DomainRecord) -> Domain {
    Domain {
        id: record.id,
        domain: record.domain,
        account_id: record.account,
        created_at: rfc3339(record.created_ms),
        verified_dns: record.misses == 0,
        implicitly_owned: false,
        deploy_to_domain: true,
        manage_dns: false,
        deploy_to_subdomains: true,
        proved_at: rfc3339(record.proved_ms),
        last_error: record.last_error,
    }
}
