//! Who asks. Through the public door with an API key; through the operator's door root of this host alone comes in,
//! and acts for whichever account it names.

use super::Api;
use super::answer::Answer;
use crate::fault::Fault;
use crate::keys;
use axum::Json;
use axum::extract::{Extension, FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use model::api::auth::WhoAmI;
use model::api::{ACCOUNT_HEADER, IDENTITY_TOKEN_HEADER};
use model::id::{AccountId, ApiKeyId};

/// Through which listener a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// Whoever reaches it: each request must carry its key.
    Public,
    /// Root of this host.
    Operator,
}

/// On whose behalf a request acts.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The account.
    pub account: AccountId,
    /// The API key, if it came with one.
    pub key: Option<ApiKeyId>,
    /// Through which listener it came.
    pub door: Door,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        parts.extensions.get().cloned().ok_or_else(|| Fault::internal("the request was not authenticated"))
    }
}

/// Finds the caller's account, or refuses the request.
pub async fn authenticate(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    // A request without a door comes from nowhere; the public one asks for a key.
    let door = request.extensions().get().copied().unwrap_or(Door::Public);
    let found = match door {
        Door::Public => by_key(&api, request.headers(), request.uri().path()).await,
        Door::Operator => by_name(&api, request.headers()).await.map(|account| (account, None)),
    };
    match found {
        Ok((account, key)) => {
            request.extensions_mut().insert(Caller { account, key, door });
            next.run(request).await
        }
        Err(fault) => fault.into_response(),
    }
}

/// `GET /auth/v1/whoami`.
pub async fn whoami(Extension(caller): Extension<Caller>) -> Answer<WhoAmI> {
    Ok(Json(WhoAmI { account_id: caller.account, identity_id: None }))
}

async fn by_key(api: &Api, headers: &HeaderMap, route: &str) -> Result<(AccountId, Option<ApiKeyId>), Fault> {
    let refused = |reason: &str| {
        let message = format!("{reason}. Make a key with `gatehouse api-key create`");
        Fault::new(401, "UNAUTHORIZED_ERROR", message).with("route", route).with("reason", reason)
    };
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        if headers.contains_key(IDENTITY_TOKEN_HEADER) {
            return Err(refused("identity tokens are not offered by this version of Gatehouse"));
        }
        return Err(refused("the request has no Authorization header"));
    };
    let key = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let Some(key) = key else { return Err(refused("the Authorization header is not 'Bearer <key>'")) };
    if !keys::well_formed(key) {
        return Err(refused("the API key is not one of this server's"));
    }
    let account = api.0.store.account_of_key(&keys::hash(key)).await;
    let account = account.map_err(|error| Fault::internal(error.to_string()))?;
    let found = account.ok_or_else(|| refused("the API key is unknown or revoked"))?;
    Ok((found.0, Some(found.1)))
}

async fn by_name(api: &Api, headers: &HeaderMap) -> Result<AccountId, Fault> {
    let Some(named) = headers.get(ACCOUNT_HEADER) else { return Ok(api.0.default_account.clone()) };
    let invalid = |named: &str| {
        Fault::new(400, "INVALID_ACCOUNT_ID", format!("there is no account {named:?}"))
            .with("accountId", named)
    };
    let named = named.to_str().unwrap_or_default();
    let account: AccountId = named.parse().map_err(|_| invalid(named))?;
    match api.0.store.has_account(&account).await {
        Ok(true) => Ok(account),
        Ok(false) => Err(invalid(named)),
        Err(error) => Err(Fault::internal(error.to_string())),
    }
}

/// The operator's own routes are not there for anybody else.
pub fn operator_only(caller: &Caller) -> Result<(), Fault> {
    match caller.door {
        Door::Operator => Ok(()),
        Door::Public => Err(Fault::new(404, "NOT_FOUND", "there is nothing here")),
    }
}
