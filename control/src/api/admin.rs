//! The operator's own calls.

use super::answer::Answer;
use super::auth::{Caller, operator_only};
use super::body::{Named, SMALL_BODY, invalid, json};
use super::vms::stored;
use super::{Api, whole};
use crate::fault::Fault;
use crate::keys;
use crate::pure::phase::Phase;
use crate::store::{Account, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use model::api::Empty;
use model::api::admin::{
    AccountList, AccountRow, ApiKeyCreated, ApiKeyList, ApiKeyRow, ControlStatus, CreateAccount,
    CreateApiKey, HouseFigures,
};
use model::id::ApiKeyId;

/// Characters of an account's or key's name.
const MAX_NAME_CHARS: usize = 128;

/// `POST /admin/v1/api-keys`.
pub async fn create_key(State(api): State<Api>, caller: Caller, body: Body) -> Answer<ApiKeyCreated> {
    operator_only(&caller)?;
    let request: CreateApiKey = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    let account_id = request.account_id.unwrap_or(caller.account);
    if !api.0.store.has_account(&account_id).await.map_err(|error| stored(&error))? {
        let message = format!("there is no account {account_id}");
        return Err(Fault::new(400, "INVALID_ACCOUNT_ID", message).with("accountId", account_id.as_str()));
    }
    let name = request.name.map(|name| checked(&name)).transpose()?;
    let secret = keys::generate();
    let kept = api.0.store.create_key(&account_id, name.as_deref(), &keys::hash(&secret)).await;
    let id = kept.map_err(|error| stored(&error))?;
    tracing::info!(key = %id, account = %account_id, "API key made");
    Ok(Json(ApiKeyCreated { id, account_id, secret }))
}

/// `GET /admin/v1/api-keys`.
pub async fn list_keys(State(api): State<Api>, caller: Caller) -> Answer<ApiKeyList> {
    operator_only(&caller)?;
    let keys = api.0.store.keys().await.map_err(|error| stored(&error))?;
    let row = |key: crate::store::KeyRecord| ApiKeyRow {
        id: key.id,
        account_id: key.account,
        name: key.name,
        created_at: rfc3339(key.created_ms),
        last_used_at: key.last_used_ms.map(rfc3339),
    };
    Ok(Json(ApiKeyList { api_keys: keys.into_iter().map(row).collect() }))
}

/// `DELETE /admin/v1/api-keys/{key_id}`.
pub async fn revoke_key(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<Empty> {
    operator_only(&caller)?;
    let id: ApiKeyId = id.parse().map_err(|error: model::id::IdError| invalid(error.to_string()))?;
    whole(async move {
        if !api.0.store.revoke_key(&id).await.map_err(|error| stored(&error))? {
            return Err(Fault::new(404, "NOT_FOUND", format!("there is no API key {id}")));
        }
        tracing::info!(key = %id, "API key revoked");
        // The VPN sessions that were made with it ended with it.
        api.published("key revoked").await?;
        Ok(Json(Empty {}))
    })
    .await
}

/// `POST /admin/v1/accounts`.
pub async fn create_account(State(api): State<Api>, caller: Caller, body: Body) -> Answer<AccountRow> {
    operator_only(&caller)?;
    let request: CreateAccount = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    let name = checked(&request.name)?;
    let made = api.0.store.create_account(&name).await.map_err(|error| stored(&error))?;
    made.map(account_row).map(Json).ok_or_else(|| invalid(format!("there is an account {name:?} already")))
}

/// `GET /admin/v1/accounts`.
pub async fn list_accounts(State(api): State<Api>, caller: Caller) -> Answer<AccountList> {
    operator_only(&caller)?;
    let accounts = api.0.store.accounts().await.map_err(|error| stored(&error))?;
    Ok(Json(AccountList { accounts: accounts.into_iter().map(account_row).collect() }))
}

/// `GET /admin/v1/status`.
pub async fn status(State(api): State<Api>, caller: Caller) -> Answer<ControlStatus> {
    operator_only(&caller)?;
    let shared = &api.0;
    let vms = shared.store.vms().await.map_err(|error| stored(&error))?;
    let promised = shared.store.promised().await.map_err(|error| stored(&error))?;
    let limits = &shared.config.limits;
    let running = vms.iter().filter(|vm| vm.phase == Phase::Running).count();
    Ok(Json(ControlStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: shared.config.domain.clone(),
        generation: shared.store.generation().await.map_err(|error| stored(&error))?,
        supervisor: shared.machines.supervisor_is_there(),
        vms: vms.len() as u64,
        running_vms: running as u64,
        promised_memory_mib: promised.memory_mib,
        memory_limit_mib: u64::from(limits.memory_mib),
        sleeping_memory_mib: promised.asleep_mib,
        memory_storage_mib: limits.memory_storage_mib,
        promised_disk_mib: promised.disk_mib,
        rootfs_storage_mib: limits.rootfs_storage_mib,
        mappings: shared.store.mappings().await.map_err(|error| stored(&error))?.len() as u64,
        certificates: shared.planner.certificates() as u64,
    }))
}

/// `GET /admin/v1/metrics`.
pub async fn metrics(State(api): State<Api>, caller: Caller) -> Answer<HouseFigures> {
    operator_only(&caller)?;
    Ok(Json(HouseFigures { families: api.0.house.gather().await }))
}

fn checked(name: &str) -> Result<String, Fault> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME_CHARS || name.chars().any(char::is_control) {
        return Err(invalid(format!("a name has 1 to {MAX_NAME_CHARS} characters and no control character")));
    }
    Ok(name.to_owned())
}

fn account_row(account: Account) -> AccountRow {
    AccountRow { id: account.id, name: account.name, created_at: rfc3339(account.created_ms) }
}
