//! SSH as the account sees it: its own keys, the house's, and live sessions to its VMs.

use super::Api;
use super::answer::Answer;
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, json};
use super::identities::{forget, keys_of, named, register};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use crate::fault::Fault;
use crate::pure::identity::BAD_IDENTITY;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::identity::{AddSshKey, SshHost, SshKeyList, SshKeyRow, SshSessionList, SshSessionRow};
use model::id::{AccountId, SshSessionId};
use model::ssh::Principal;
use ssh_proxy::client::{SessionStatus, SshError};
use std::collections::HashSet;

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let (keys, key) = ("/v1/ssh/keys", "/v1/ssh/keys/{key_id}");
    vec![
        Route::new(
            "get",
            "/v1/ssh/host",
            "Where SSH clients go, and how they know the house",
            Shape::of::<SshHost>(),
            routing::get(host),
        ),
        Route::new(
            "get",
            keys,
            "The account's own SSH keys",
            Shape::of::<SshKeyList>(),
            routing::get(list_keys),
        ),
        Route::new(
            "post",
            keys,
            "Registers a public key, which logs in to all VMs of the account as any user",
            Shape::of::<SshKeyRow>(),
            routing::post(add_key),
        )
        .taking(Shape::of::<AddSshKey>()),
        Route::new(
            "delete",
            key,
            "Forgets a public key; sessions that it opened are cut",
            Shape::of::<Empty>(),
            routing::delete(remove_key),
        ),
        Route::new(
            "get",
            "/v1/ssh/sessions",
            "Live SSH sessions to the account's VMs",
            Shape::of::<SshSessionList>(),
            routing::get(sessions),
        ),
        Route::new(
            "delete",
            "/v1/ssh/sessions/{session_id}",
            "Ends an SSH session",
            Shape::of::<Empty>(),
            routing::delete(end),
        ),
    ]
}

async fn host(State(api): State<Api>, _: Caller) -> Answer<SshHost> {
    let keys = &api.0.ssh;
    Ok(Json(SshHost {
        host: keys.host().to_string(),
        port: api.0.config.ssh.port,
        authority: keys.host_authority().to_owned(),
        known_hosts: keys.known_hosts(api.0.config.ssh.port),
    }))
}

async fn list_keys(State(api): State<Api>, caller: Caller) -> Answer<SshKeyList> {
    keys_of(&api, &caller.account, None).await.map(Json)
}

async fn add_key(State(api): State<Api>, caller: Caller, body: Body) -> Answer<SshKeyRow> {
    let request: AddSshKey = json(body, SMALL_BODY, BAD_IDENTITY).await?;
    register(api, caller.account, None, request).await.map(Json)
}

async fn remove_key(State(api): State<Api>, caller: Caller, Named(key): Named<String>) -> Answer<Empty> {
    forget(api, caller.account, None, &key).await.map(Json)
}

async fn sessions(State(api): State<Api>, caller: Caller) -> Answer<SshSessionList> {
    let mut sessions = live(&api, &caller.account).await?;
    sessions.sort_by_key(|session| std::cmp::Reverse(session.seconds));
    Ok(Json(SshSessionList { sessions: sessions.into_iter().map(row).collect() }))
}

async fn end(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<Empty> {
    let id: SshSessionId = named(&id)?;
    let mine = live(&api, &caller.account).await?.iter().any(|session| session.id == id);
    if !mine || !api.0.front.end(&id).await.map_err(|error| away(&error))? {
        let fault = Fault::new(404, "NOT_FOUND", format!("there is no SSH session {id}"));
        return Err(fault.with("sshSessionId", id.as_str()));
    }
    tracing::info!(session = %id, account = %caller.account, "SSH session ended");
    Ok(Json(Empty {}))
}

/// The sessions to the account's VMs.
async fn live(api: &Api, account: &AccountId) -> Result<Vec<SessionStatus>, Fault> {
    let vms = api.0.store.vms_of(account).await.map_err(|error| stored(&error))?;
    let vms: HashSet<_> = vms.into_iter().map(|vm| vm.id).collect();
    let mut sessions = api.0.front.sessions(None).await.map_err(|error| away(&error))?;
    sessions.retain(|session| vms.contains(&session.vm));
    Ok(sessions)
}

fn away(error: &SshError) -> Fault {
    Fault::new(503, "INTERNAL_ERROR", format!("{error}; it is restarted, try again"))
}

fn row(session: SessionStatus) -> SshSessionRow {
    SshSessionRow {
        session_id: session.id,
        vm_id: session.vm,
        user: session.user,
        identity_id: match session.principal {
            Principal::Identity(identity) => Some(identity),
            Principal::Account(_) => None,
        },
        client: session.client,
        seconds: session.seconds,
        channels: session.channels,
        received_bytes: session.received_bytes,
        sent_bytes: session.sent_bytes,
    }
}
