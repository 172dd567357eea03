//! VMs: make, list, look, start, stop, delete.

use super::Api;
use super::answer::{Answer, slow};
use super::auth::Caller;
use super::background::accepted;
use super::body::{Asked, SMALL_BODY, VmPath, json};
use super::copies;
use crate::fault::Fault;
use crate::pure::phase::{Ask, Phase};
use crate::pure::request::{self, Wanted};
use crate::pure::resize;
use crate::store::{StoreError, VmRecord, rfc3339};
use crate::vms::{Manner, Notes};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use model::api::BACKGROUND_AFTER_HEADER;
use model::api::Empty;
use model::api::vm::{
    CreateVm, ResizeVm, Sizing, StartVm, VmCreated, VmDeleted, VmExited, VmInfo, VmKilled, VmList,
    VmOptimized, VmQuery, VmRow, VmStarted, VmState, VmStopped, VmSuspended,
};
use model::host::MappedName;
use model::id::VmId;
use std::time::Duration;
use tokio::time::timeout;

/// Largest body of a creation: a few files may be in it.
const CREATE_BODY: usize = 96 << 20;
/// Node's client gives up on a server that is silent for 300 s. An error keeps its status until shortly before.
pub const PAD_LIFECYCLE_AFTER: Duration = Duration::from_secs(270);
/// A long poll has no error to tell, so it begins early.
const PAD_AWAIT_AFTER: Duration = Duration::from_secs(20);
/// Longest that a client may have us wait before a creation goes on behind its back.
const MAX_BACKGROUND_AFTER: u64 = 240;

/// `POST /v1/vms`.
pub async fn create(State(api): State<Api>, caller: Caller, headers: HeaderMap, body: Body) -> Response {
    // The code of each refusal must be one that the client knows: it repeats the request for ever otherwise.
    let wanted = match wanted(&api, &caller, body).await {
        Ok(wanted) => wanted,
        Err(fault) => return fault.into_response(),
    };
    let (notes, account) = (Notes::default(), caller.account.clone());
    let work = {
        let (api, notes) = (api.clone(), notes.clone());
        let domains = wanted.mappings.iter().map(|mapping| mapping.host.clone()).collect();
        async move {
            let record =
                api.0.machines.create(account, wanted, notes).await.map_err(|error| error.fault(None))?;
            Ok(VmCreated { id: record.id, domains, snapshot_id: record.origin.map(String::from) })
        }
    };
    match background_after(&headers) {
        None => slow(PAD_LIFECYCLE_AFTER, work).await,
        Some(patience) => behind(&api, &caller, notes, patience, work).await,
    }
}

/// `GET /v1/vms`.
pub async fn list(State(api): State<Api>, caller: Caller, Asked(query): Asked<VmQuery>) -> Answer<VmList> {
    let all = api.0.store.vms_of(&caller.account).await.map_err(|error| stored(&error))?;
    let mut list = counted(&all);
    let search = query.search.as_deref().unwrap_or_default();
    let wanted = |vm: &&VmRecord| {
        query.vm_state.is_none_or(|state| vm.phase.shown() == state)
            && (vm.id.as_str().contains(search) || vm.name.as_ref().is_some_and(|name| name.contains(search)))
    };
    let (skip, take) = (query.offset.unwrap_or(0), query.limit.unwrap_or(u32::MAX));
    list.vms = all.iter().filter(wanted).skip(skip as usize).take(take as usize).map(row).collect();
    Ok(Json(list))
}

/// `GET /v1/vms/{vm_id}`.
pub async fn get(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Answer<VmInfo> {
    let record = api.0.machines.get(&caller.account, &vm).await.map_err(|error| error.fault(Some(&vm)))?;
    let domains = domains_of(&api, &vm).await?;
    let row = row(&record);
    Ok(Json(VmInfo {
        id: vm,
        name: record.name,
        recreate: false,
        vm_instance_id: Some(record.instance),
        state: row.state,
        created_at: row.created_at,
        idle_timeout_seconds: record.idle_timeout_seconds,
        persistence: row.persistence,
        sizing: Some(row.sizing),
        vpc: record.vpc,
        ipv4: Some(record.ipv4),
        domains,
        exit_status: record.exit_status,
    }))
}

/// `DELETE /v1/vms/{vm_id}`.
pub async fn delete(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Answer<VmDeleted> {
    ask(&api, &caller, &vm, Ask::Delete, Manner::default()).await?;
    Ok(Json(VmDeleted { id: vm, recreate: false }))
}

/// `POST /v1/vms/{vm_id}/start`.
pub async fn start(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath, body: Body) -> Response {
    let work = async move {
        let request: StartVm = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
        let lasting = request.idle_timeout_seconds.is_some() || request.activity_threshold_bytes.is_some();
        if lasting && caller.identity.is_some() {
            let message = "when the VM is idle is for its account to say; start it without that";
            return Err(Fault::new(403, "ACCESS_DENIED", message).with("vmId", vm.as_str()));
        }
        let manner = Manner {
            ready_wait: request::ready_wait(request.ready_signal_timeout_seconds),
            idle_timeout_seconds: request.idle_timeout_seconds,
            activity_threshold_bytes: request.activity_threshold_bytes,
        };
        ask(&api, &caller, &vm, Ask::Start, manner).await?;
        let domains = domains_of(&api, &vm).await?;
        Ok(VmStarted { id: vm, domains, console_url: None })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `POST /v1/vms/{vm_id}/stop`. One that is down already is answered as stopped.
pub async fn stop(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Response {
    let work = async move {
        let record = ask(&api, &caller, &vm, Ask::Stop, Manner::default()).await?;
        Ok(VmStopped { vm_id: vm, vm_instance_id: record.instance })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `POST /v1/vms/{vm_id}/suspend`. One that sleeps already is answered as suspended.
pub async fn suspend(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Response {
    let work = async move {
        let record = ask(&api, &caller, &vm, Ask::Suspend, Manner::default()).await?;
        let snapshot_layer_id = format!("{vm}-{}", record.run);
        Ok(VmSuspended { id: vm, vm_instance_id: record.instance, snapshot_layer_id })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `POST /v1/vms/{vm_id}/resize`.
pub async fn resize(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath, body: Body) -> Response {
    let work = async move {
        let request: ResizeVm = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
        let wish = resize::read(&request, api.0.config.limits.largest)?;
        let resized = api.0.machines.resize(&caller.account, &vm, wish).await;
        resized.map_err(|error| error.fault(Some(&vm)))?;
        Ok(Empty {})
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `POST /v1/vms/{vm_id}/optimize`.
pub async fn optimize(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Response {
    let work = async move {
        let done = api.0.machines.optimize(&caller.account, &vm).await;
        done.map_err(|error| error.fault(Some(&vm)))?;
        let message =
            "memory that no program in the guest uses is given back, and the layers of its disk are merged";
        Ok(VmOptimized { id: vm, message: message.to_owned() })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `POST /v1/vms/{vm_id}/kill`. One that is down already is answered as killed.
pub async fn kill(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Response {
    let work = async move {
        ask(&api, &caller, &vm, Ask::Kill, Manner::default()).await?;
        Ok(VmKilled { id: vm })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `POST /v1/vms/{vm_id}/await`.
pub async fn await_exit(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath) -> Response {
    let work = async move {
        let exited = api.0.machines.exited(&caller.account, &vm).await;
        let exit_status = exited.map_err(|error| error.fault(Some(&vm)))?;
        Ok(VmExited { id: vm, exit_status })
    };
    slow(PAD_AWAIT_AFTER, work).await
}

/// What went wrong in the store is not the caller's doing.
pub fn stored(error: &StoreError) -> Fault {
    tracing::error!(%error, "store");
    Fault::internal(error.to_string())
}

async fn wanted(api: &Api, caller: &Caller, body: Body) -> Result<Wanted, Fault> {
    let request: CreateVm = json(body, CREATE_BODY, "CREATE_VM_BAD_REQUEST").await?;
    let base = match request::source(&request)? {
        Some(id) => Some(copies::found(api, caller, id.as_str()).await?),
        None => None,
    };
    if let Some(base) = &base {
        request::usable(base)?;
    }
    let config = &api.0.config;
    request::read(&request, base.as_ref(), config.default_size, &config.limits, &config.domain)
}

async fn ask(api: &Api, caller: &Caller, vm: &VmId, ask: Ask, manner: Manner) -> Result<VmRecord, Fault> {
    let done = api.0.machines.ask(&caller.account, vm, ask, manner).await;
    done.map_err(|error| error.fault(Some(vm)))
}

async fn domains_of(api: &Api, vm: &VmId) -> Result<Vec<MappedName>, Fault> {
    let mappings = api.0.store.mappings().await.map_err(|error| stored(&error))?;
    Ok(mappings.into_iter().filter(|mapping| mapping.vm == *vm).map(|mapping| mapping.host).collect())
}

/// How long the client waits before the creation goes on behind its back, if it wants that at all.
fn background_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(BACKGROUND_AFTER_HEADER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds.min(MAX_BACKGROUND_AFTER)))
}

async fn behind(
    api: &Api,
    caller: &Caller,
    notes: Notes,
    patience: Duration,
    work: impl Future<Output = Result<VmCreated, Fault>> + Send + 'static,
) -> Response {
    let mut work = Box::pin(work);
    if let Ok(done) = timeout(patience, &mut work).await {
        return done.map(Json).into_response();
    }
    let Some(id) = api.0.background.begin(&caller.account, notes) else {
        return slow(PAD_LIFECYCLE_AFTER, work).await;
    };
    let (api, going) = (api.clone(), id.clone());
    tokio::spawn(async move {
        let result = work.await.and_then(|created| {
            serde_json::to_value(created).map_err(|error| Fault::internal(error.to_string()))
        });
        api.0.background.end(&going, result);
    });
    accepted(id)
}

fn counted(all: &[VmRecord]) -> VmList {
    let mut list = VmList::default();
    for vm in all {
        list.total_count += 1;
        *match vm.phase.shown() {
            VmState::Building => &mut list.building_count,
            VmState::Starting => &mut list.starting_count,
            VmState::Running => &mut list.running_count,
            VmState::Suspending => &mut list.suspending_count,
            VmState::Suspended => &mut list.suspended_count,
            VmState::Stopped => &mut list.stopped_count,
            VmState::Lost => &mut list.lost_count,
        } += 1;
    }
    list
}

fn row(vm: &VmRecord) -> VmRow {
    VmRow {
        id: vm.id.clone(),
        name: vm.name.clone(),
        state: vm.phase.shown(),
        created_at: Some(rfc3339(vm.created_ms)),
        persistence: Some(vm.persistence.clone()),
        // A child that is being made has a copy that nobody else knows.
        snapshot_id: vm.origin.clone().filter(|_| vm.phase != Phase::Building).map(String::from),
        deleted: false,
        sizing: Sizing {
            vcpu_count: u32::from(vm.size.vcpus),
            mem_size_mib: vm.size.memory_mib,
            rootfs_size_mb: vm.size.disk_mib,
        },
    }
}
