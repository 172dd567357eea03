//! Who asks. Through the public door with an API key or an identity's token; through the operator's door root of this
//! host alone comes in, and acts for whichever account it names.
//!
//! A token opens the routes that say so in the table of routes, on VMs that its identity was granted. Every other route
//! is closed to it, also one that is added and says nothing.

use super::Api;
use super::answer::Answer;
use super::body::{linux_user, vm_id};
use super::leases::{Acting, leased};
use super::routes::Open;
use crate::fault::Fault;
use crate::keys;
use crate::pure::identity::may_act;
use crate::store::Bearer;
use axum::Json;
use axum::extract::{Extension, FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use model::api::auth::WhoAmI;
use model::api::{ACCOUNT_HEADER, IDENTITY_TOKEN_HEADER};
use model::id::{AccountId, ApiKeyId, IdentityId, VmId};
use model::token::IdentityToken;
use std::collections::HashMap;
use std::sync::Arc;

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
    /// The identity, if it came with a token. It may do what its route and its grant say, and no more.
    pub identity: Option<IdentityId>,
    /// Through which listener it came.
    pub door: Door,
}

/// What [`authenticate`] must know. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The API.
    pub api: Api,
    /// Routes that are open to tokens, by method and path.
    pub open: Arc<HashMap<(Method, &'static str), Open>>,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        parts.extensions.get().cloned().ok_or_else(|| Fault::internal("the request was not authenticated"))
    }
}

/// Finds the caller's account, or refuses the request.
pub async fn authenticate(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    // A request without a door comes from nowhere; the public one asks for a key.
    let door = request.extensions().get().copied().unwrap_or(Door::Public);
    let headers = request.headers();
    // The contract's clients send one of both, and a key counts more.
    if headers.contains_key(IDENTITY_TOKEN_HEADER) && !headers.contains_key(header::AUTHORIZATION) {
        return visit(&gate, door, request, next).await;
    }
    let found = match door {
        Door::Public => by_key(&gate.api, headers, request.uri().path()).await,
        Door::Operator => by_name(&gate.api, headers).await.map(|account| (account, None)),
    };
    match found {
        Ok((account, key)) => {
            request.extensions_mut().insert(Caller { account, key, identity: None, door });
            next.run(request).await
        }
        Err(fault) => fault.into_response(),
    }
}

/// Lets a token's bearer do what it may, for as long as it may.
async fn visit(gate: &Gate, door: Door, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let admitted = async {
        let bearer = by_token(&gate.api, &parts.headers, parts.uri.path()).await?;
        let place = place(gate, &mut parts).await?;
        let lease = gate.api.0.leases.lease(&gate.api.0.store, bearer.token.clone(), place.clone());
        if let Some((vm, acting)) = &place {
            may(&gate.api, &bearer, vm, acting).await?;
        }
        Ok::<_, Fault>((bearer, lease))
    };
    let (bearer, mut lease) = match admitted.await {
        Ok(admitted) => admitted,
        Err(fault) => return fault.into_response(),
    };
    let identity = Some(bearer.identity);
    parts.extensions.insert(Caller { account: bearer.account, key: None, identity, door });
    let answering = next.run(Request::from_parts(parts, body));
    let response = tokio::select! {
        response = answering => response,
        () = lease.ended() => return denied("the token or its grant was taken back meanwhile").into_response(),
    };
    leased(response, lease)
}

/// Where a token's request acts, if its route is open to tokens; none: nowhere.
async fn place(gate: &Gate, parts: &mut Parts) -> Result<Option<(VmId, Acting)>, Fault> {
    let path = parts.extensions.get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let open = gate
        .open
        .iter()
        .find(|((method, route), _)| *method == parts.method && path.as_deref() == Some(route));
    let Some((_, open)) = open else {
        return Err(denied("an identity's token is for existing VMs that it was granted, and nothing else"));
    };
    let acting = match open {
        Open::Anybody => return Ok(None),
        Open::OnVm => Acting::Outside,
        Open::InVm => Acting::As(linux_user(&parts.headers)?),
        Open::No => return Err(denied("this is not for identities")),
    };
    let named = RawPathParams::from_request_parts(parts, &()).await;
    let named = named.map_err(|error| Fault::internal(error.to_string()))?;
    let vm = named.iter().find(|(name, _)| *name == "vm_id").map(|(_, vm)| vm);
    let vm = vm.ok_or_else(|| Fault::internal("a route that is open to tokens names no VM"))?;
    Ok(Some((vm_id(vm)?, acting)))
}

/// A VM that is not there, another account's and one that was not granted are the same to who asks.
async fn may(api: &Api, bearer: &Bearer, vm: &VmId, acting: &Acting) -> Result<(), Fault> {
    let rights = api.0.store.rights(&bearer.token, vm).await;
    let rights = rights.map_err(|error| Fault::internal(error.to_string()))?;
    let Some(users) = rights else {
        let message = format!("the identity {} has no grant on a VM {vm}", bearer.identity);
        return Err(Fault::new(403, "VM_ACCESS_DENIED", message).with("vmId", vm.as_str()));
    };
    match acting {
        Acting::Outside => Ok(()),
        Acting::As(user) if may_act(users.as_deref(), user.as_deref()) => Ok(()),
        Acting::As(user) => {
            let user = user.as_deref().unwrap_or("root");
            let users: Vec<&str> = users.iter().flatten().map(model::ssh::LinuxUser::as_str).collect();
            let message =
                format!("the identity may not act as {user:?} in this VM, only as {}", users.join(", "));
            Err(Fault::new(403, "ACCESS_DENIED", message).with("vmId", vm.as_str()))
        }
    }
}

async fn by_token(api: &Api, headers: &HeaderMap, route: &str) -> Result<Bearer, Fault> {
    // The same words for each, so that nobody learns what is nearly right.
    let refused = || {
        let reason = "the identity token is unknown or revoked";
        let message = format!("{reason}. Make one with `gatehouse identity token create`");
        Fault::new(401, "UNAUTHORIZED_ERROR", message).with("route", route).with("reason", reason)
    };
    let token = headers.get(IDENTITY_TOKEN_HEADER).and_then(|value| value.to_str().ok());
    let token: IdentityToken = token.and_then(|token| token.trim().parse().ok()).ok_or_else(refused)?;
    let bearer = api.0.store.bearer(token.hash()).await;
    bearer.map_err(|error| Fault::internal(error.to_string()))?.ok_or_else(refused)
}

fn denied(message: &str) -> Fault {
    Fault::new(403, "FORBIDDEN", message)
}

/// `GET /auth/v1/whoami`.
pub async fn whoami(Extension(caller): Extension<Caller>) -> Answer<WhoAmI> {
    Ok(Json(WhoAmI { account_id: caller.account, identity_id: caller.identity }))
}

async fn by_key(api: &Api, headers: &HeaderMap, route: &str) -> Result<(AccountId, Option<ApiKeyId>), Fault> {
    let refused = |reason: &str| {
        let message = format!("{reason}. Make a key with `gatehouse api-key create`");
        Fault::new(401, "UNAUTHORIZED_ERROR", message).with("route", route).with("reason", reason)
    };
    let Some(value) = headers.get(header::AUTHORIZATION) else {
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
    match (caller.door, &caller.identity) {
        (Door::Operator, None) => Ok(()),
        (Door::Operator, Some(_)) | (Door::Public, _) => {
            Err(Fault::new(404, "NOT_FOUND", "there is nothing here"))
        }
    }
}
