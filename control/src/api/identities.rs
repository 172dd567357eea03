//! Identities, their tokens and their public keys. An answer means that the SSH front has been told.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Asked, Named, SMALL_BODY, invalid, json};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::{Api, whole};
use crate::fault::Fault;
use crate::pure::identity::{BAD_IDENTITY, IdentityRefusal};
use crate::pure::ssh_key::{self, MAX_KEY_NAME_CHARS};
use crate::random;
use crate::store::{SshKeyRecord, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::identity::{
    AddSshKey, IdentityList, IdentityQuery, IdentityRow, SshKeyList, SshKeyRow, TokenCreated, TokenList,
    TokenRow,
};
use model::id::{AccountId, IdError, IdentityId, SshKeyId, TokenId};
use model::token::IdentityToken;
use std::str::FromStr;

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let (all, one) = ("/identity/v1/identities", "/identity/v1/identities/{identity}");
    let row = Shape::of::<IdentityRow>();
    let mut routes = vec![
        Route::new("get", all, "The account's identities", Shape::of::<IdentityList>(), routing::get(list))
            .asking(Shape::of::<IdentityQuery>()),
        Route::new("post", all, "Makes an identity, which may do nothing yet", row, routing::post(create)),
        Route::new(
            "delete",
            one,
            "Deletes an identity; its tokens, keys and grants are worthless at once",
            Shape::of::<Empty>(),
            routing::delete(delete),
        ),
    ];
    routes.extend(of_tokens());
    routes.extend(of_keys());
    routes
}

fn of_tokens() -> Vec<Route> {
    let (all, one) =
        ("/identity/v1/identities/{identity}/tokens", "/identity/v1/identities/{identity}/tokens/{token}");
    vec![
        Route::new("get", all, "An identity's tokens", Shape::of::<TokenList>(), routing::get(list_tokens)),
        Route::new(
            "post",
            all,
            "Makes a token; it is shown here alone",
            Shape::of::<TokenCreated>(),
            routing::post(create_token),
        ),
        Route::new(
            "delete",
            one,
            "Makes a token worthless; what is done with it is cut",
            Shape::of::<Empty>(),
            routing::delete(revoke_token),
        ),
    ]
}

fn of_keys() -> Vec<Route> {
    let (all, one) =
        ("/identity/v1/identities/{identity}/keys", "/identity/v1/identities/{identity}/keys/{key_id}");
    vec![
        Route::new("get", all, "An identity's SSH keys", Shape::of::<SshKeyList>(), routing::get(list_keys)),
        Route::new(
            "post",
            all,
            "Registers a public key, with which an identity logs in by SSH",
            Shape::of::<SshKeyRow>(),
            routing::post(add_key),
        )
        .taking(Shape::of::<AddSshKey>()),
        Route::new(
            "delete",
            one,
            "Forgets a public key; sessions that it opened are cut",
            Shape::of::<Empty>(),
            routing::delete(remove_key),
        ),
    ]
}

async fn list(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<IdentityQuery>,
) -> Answer<IdentityList> {
    let all = api.0.store.identities_of(&caller.account).await.map_err(|error| stored(&error))?;
    let (identities, offset, total) = page(all, query.offset, query.limit);
    let identities =
        identities.into_iter().map(|record| IdentityRow { id: record.id, managed: false }).collect();
    Ok(Json(IdentityList { identities, offset, total }))
}

async fn create(State(api): State<Api>, caller: Caller) -> Answer<IdentityRow> {
    // It is in no view before something is granted to it.
    let made = api.0.store.create_identity(&caller.account).await.map_err(|error| stored(&error))?;
    let record = made.map_err(|refusal| refusal.fault())?;
    api.0.machines.pass("identity made").await;
    tracing::info!(identity = %record.id, account = %caller.account, "identity made");
    Ok(Json(IdentityRow { id: record.id, managed: false }))
}

async fn delete(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<Empty> {
    let id = identity_id(&id)?;
    whole(async move {
        if !api.0.store.delete_identity(&caller.account, &id).await.map_err(|error| stored(&error))? {
            return Err(IdentityRefusal::NoIdentity(id).fault());
        }
        tracing::info!(identity = %id, "identity deleted");
        api.taken("identity deleted").await?;
        Ok(Json(Empty {}))
    })
    .await
}

async fn list_tokens(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<TokenList> {
    let id = identity_id(&id)?;
    let tokens = api.0.store.tokens_of(&caller.account, &id).await.map_err(|error| stored(&error))?;
    let tokens = tokens.ok_or_else(|| IdentityRefusal::NoIdentity(id).fault())?;
    Ok(Json(TokenList { tokens: tokens.into_iter().map(|id| TokenRow { id }).collect() }))
}

async fn create_token(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
) -> Answer<TokenCreated> {
    let identity = identity_id(&id)?;
    whole(async move {
        let token = loop {
            if let Some(token) = IdentityToken::from_random(&random::bytes()) {
                break token;
            }
        };
        let made = api.0.store.create_token(&caller.account, &identity, token.hash()).await;
        let id = made.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        tracing::info!(token = %id, %identity, "identity token made");
        api.published("token made").await?;
        Ok(Json(TokenCreated { id, token: token.expose().to_owned() }))
    })
    .await
}

async fn revoke_token(
    State(api): State<Api>,
    caller: Caller,
    Named((identity, token)): Named<(String, String)>,
) -> Answer<Empty> {
    let identity = identity_id(&identity)?;
    let token: TokenId = named(&token)?;
    whole(async move {
        let gone = api.0.store.revoke_token(&caller.account, &identity, &token).await;
        gone.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        tracing::info!(%token, %identity, "identity token revoked");
        api.taken("token revoked").await?;
        Ok(Json(Empty {}))
    })
    .await
}

async fn list_keys(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<SshKeyList> {
    let id = found(&api, &caller.account, &id).await?;
    keys_of(&api, &caller.account, Some(&id)).await.map(Json)
}

async fn add_key(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<SshKeyRow> {
    let id = identity_id(&id)?;
    let request: AddSshKey = json(body, SMALL_BODY, BAD_IDENTITY).await?;
    register(api, caller.account, Some(id), request).await.map(Json)
}

async fn remove_key(
    State(api): State<Api>,
    caller: Caller,
    Named((identity, key)): Named<(String, String)>,
) -> Answer<Empty> {
    let identity = identity_id(&identity)?;
    forget(api, caller.account, Some(identity), &key).await.map(Json)
}

/// The keys of an identity, or of the account itself.
pub async fn keys_of(
    api: &Api,
    account: &AccountId,
    identity: Option<&IdentityId>,
) -> Result<SshKeyList, Fault> {
    let keys = api.0.store.ssh_keys_of(account, identity).await.map_err(|error| stored(&error))?;
    Ok(SshKeyList { keys: keys.into_iter().map(row).collect() })
}

/// Registers a key of an identity, or of the account itself.
pub async fn register(
    api: Api,
    account: AccountId,
    identity: Option<IdentityId>,
    request: AddSshKey,
) -> Result<SshKeyRow, Fault> {
    let key = ssh_key::read(&request.key).map_err(|refusal| invalid(format!("key: {refusal}")))?;
    let name = request.name.or(key.comment);
    let printable = |name: &String| {
        !name.is_empty() && name.chars().count() <= MAX_KEY_NAME_CHARS && !name.chars().any(char::is_control)
    };
    if name.as_ref().is_some_and(|name| !printable(name)) {
        return Err(invalid(format!("name: 1 to {MAX_KEY_NAME_CHARS} characters and no control character")));
    }
    whole(async move {
        let added = api.0.store.add_ssh_key(&account, identity.as_ref(), &key.line, name.as_deref()).await;
        let record = added.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        tracing::info!(key = %record.id, fingerprint = %key.fingerprint, %account, ?identity, "SSH key registered");
        api.published("SSH key added").await?;
        Ok(row(record))
    })
    .await
}

/// Forgets a key of an identity, or of the account itself.
pub async fn forget(
    api: Api,
    account: AccountId,
    identity: Option<IdentityId>,
    key: &str,
) -> Result<Empty, Fault> {
    let key: SshKeyId = named(key)?;
    whole(async move {
        let gone = api.0.store.remove_ssh_key(&account, identity.as_ref(), &key).await;
        if !gone.map_err(|error| stored(&error))? {
            return Err(IdentityRefusal::NoKey(key).fault());
        }
        tracing::info!(%key, %account, ?identity, "SSH key forgotten");
        api.published("SSH key removed").await?;
        Ok(Empty {})
    })
    .await
}

/// The account's identity of that name.
pub async fn found(api: &Api, account: &AccountId, id: &str) -> Result<IdentityId, Fault> {
    let id = identity_id(id)?;
    match api.0.store.has_identity(account, &id).await {
        Ok(true) => Ok(id),
        Ok(false) => Err(IdentityRefusal::NoIdentity(id).fault()),
        Err(error) => Err(stored(&error)),
    }
}

/// An identity's id. One that cannot be is nobody's.
pub fn identity_id(text: &str) -> Result<IdentityId, Fault> {
    text.parse().map_err(|error: IdError| Fault::new(404, "IDENTITY_NOT_FOUND", error.to_string()))
}

/// An id of another kind.
pub fn named<T: FromStr<Err = IdError>>(text: &str) -> Result<T, Fault> {
    text.parse().map_err(|error: IdError| invalid(error.to_string()))
}

/// A part of a list: it, where it begins, and how long the whole is.
pub fn page<T>(all: Vec<T>, offset: Option<u32>, limit: Option<u32>) -> (Vec<T>, u64, u64) {
    let (offset, total) = (offset.unwrap_or(0), all.len() as u64);
    let take = limit.unwrap_or(u32::MAX) as usize;
    (all.into_iter().skip(offset as usize).take(take).collect(), u64::from(offset), total)
}

fn row(record: SshKeyRecord) -> SshKeyRow {
    let fingerprint = ssh_key::read(&record.key).map(|key| key.fingerprint).unwrap_or_default();
    SshKeyRow {
        id: record.id,
        key: record.key,
        fingerprint,
        name: record.name,
        created_at: rfc3339(record.created_ms),
    }
}
