//! Copies of VMs: snapshots and forks.

use super::Api;
use super::answer::{Answer, slow};
use super::auth::Caller;
use super::body::{Asked, Named, SMALL_BODY, VmPath, invalid, json};
use super::vms::{PAD_LIFECYCLE_AFTER, stored};
use crate::fault::Fault;
use crate::pure::request;
use crate::store::{self, SnapshotRecord, rfc3339};
use crate::vms::MAX_FORKS;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use model::api::snapshot::{
    CreateSnapshot, Fork, ForkVm, RenameSnapshot, SnapshotCreated, SnapshotDeleted, SnapshotInfo,
    SnapshotList, SnapshotQuery, SnapshotRenamed, SnapshotState, VmForked,
};
use model::api::vm::Persistence;

/// What is wrong with the request for a snapshot, when nothing says it better.
const BAD_SNAPSHOT: &str = "SNAPSHOT_VM_BAD_REQUEST";

/// `POST /v1/vms/{vm_id}/snapshot`.
pub async fn create(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath, body: Body) -> Response {
    let work = async move {
        let request: CreateSnapshot = json(body, SMALL_BODY, BAD_SNAPSHOT).await?;
        let name = request::name(request.name, BAD_SNAPSHOT)?;
        let persistence = request::persistence(request.persistence.unwrap_or_default(), BAD_SNAPSHOT)?;
        if matches!(persistence, Persistence::Ephemeral { .. }) {
            return Err(Fault::new(400, BAD_SNAPSHOT, "a snapshot is sticky or persistent, never ephemeral"));
        }
        let made = api.0.machines.snapshot(&caller.account, &vm, name, persistence).await;
        let made = made.map_err(|error| error.fault(Some(&vm)))?;
        Ok(SnapshotCreated {
            snapshot_id: made.id,
            source_vm_id: vm,
            source_vm_instance_id: Some(made.source_instance),
        })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// `GET /v1/vms/snapshots`.
pub async fn list(
    State(api): State<Api>,
    caller: Caller,
    Asked(query): Asked<SnapshotQuery>,
) -> Answer<SnapshotList> {
    let all = api.0.store.snapshots_of(&caller.account).await.map_err(|error| stored(&error))?;
    let mut list = SnapshotList::default();
    for snapshot in all.into_iter().map(shown) {
        list.total_count += 1;
        let (count, wanted) = match snapshot.state {
            _ if snapshot.deleted => (&mut list.deleted_count, query.include_deleted.unwrap_or(false)),
            SnapshotState::Building => (&mut list.building_count, query.include_building.unwrap_or(true)),
            SnapshotState::Ready => (&mut list.ready_count, true),
            SnapshotState::Failed => (&mut list.failed_count, query.include_failed.unwrap_or(true)),
            SnapshotState::Cancelled => (&mut list.cancelled_count, true),
            SnapshotState::Lost => (&mut list.lost_count, true),
        };
        *count += 1;
        if wanted {
            list.snapshots.push(snapshot);
        }
    }
    Ok(Json(list))
}

/// `GET /v1/vms/snapshots/{snapshot_id}`. A deleted one is remembered for a while.
pub async fn get(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<SnapshotInfo> {
    found(&api, &caller, &id).await.map(|record| Json(shown(record)))
}

/// `PATCH /v1/vms/snapshots/{snapshot_id}`.
pub async fn rename(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<SnapshotRenamed> {
    let request: RenameSnapshot = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
    let name = request::name(request.name, "INVALID_REQUEST")?;
    let snapshot_id = found(&api, &caller, &id).await?.id;
    api.0.store.name_snapshot(&snapshot_id, name.as_deref()).await.map_err(|error| stored(&error))?;
    Ok(Json(SnapshotRenamed { snapshot_id, name }))
}

/// `DELETE /v1/vms/snapshots/{snapshot_id}`.
pub async fn delete(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
) -> Answer<SnapshotDeleted> {
    let id = request::snapshot_id(&id)?;
    let deleted = api.0.machines.delete_snapshot(&caller.account, &id).await;
    deleted.map_err(|error| error.fault(None))?;
    Ok(Json(SnapshotDeleted { snapshot_id: id.clone(), snapshot_id_again: id }))
}

/// `POST /v1/vms/{vm_id}/fork`.
pub async fn fork(State(api): State<Api>, caller: Caller, VmPath(vm): VmPath, body: Body) -> Response {
    let work = async move {
        let request: ForkVm = json(body, SMALL_BODY, "INVALID_REQUEST").await?;
        let count = request.count.unwrap_or(1);
        if !(1..=MAX_FORKS).contains(&count) {
            return Err(invalid(format!("count must be within 1 and {MAX_FORKS}, got {count}")));
        }
        let kept =
            request.persistence.map(|kept| request::persistence(kept, "INVALID_REQUEST")).transpose()?;
        let forked = api.0.machines.fork(&caller.account, &vm, count, kept).await;
        let ids = forked.map_err(|error| error.fault(Some(&vm)))?;
        let fork = |id| Fork { id, domains: Vec::new(), console_url: None };
        Ok(VmForked { vm_id: vm, forks: ids.into_iter().map(fork).collect() })
    };
    slow(PAD_LIFECYCLE_AFTER, work).await
}

/// The account's snapshot of that name, in whatever state.
pub async fn found(api: &Api, caller: &Caller, id: &str) -> Result<SnapshotRecord, Fault> {
    let id = request::snapshot_id(id)?;
    api.0.machines.get_snapshot(&caller.account, &id).await.map_err(|error| error.fault(None))
}

fn shown(record: SnapshotRecord) -> SnapshotInfo {
    let state = match record.state {
        store::SnapshotState::Building => SnapshotState::Building,
        store::SnapshotState::Ready => SnapshotState::Ready,
        store::SnapshotState::Failed => SnapshotState::Failed,
    };
    SnapshotInfo {
        snapshot_id: record.id,
        state,
        source_vm_id: Some(record.source_vm),
        account_id: Some(record.account),
        created_at: rfc3339(record.created_ms),
        name: record.name,
        failed: state == SnapshotState::Failed,
        cancelled: false,
        lost: false,
        failure_reason: record.failure,
        deleted: record.deleted,
        snapshot_persistence: record.persistence,
        has_memory: record.has_memory,
        vcpu_count: Some(u32::from(record.size.vcpus)),
        mem_size_mib: Some(record.size.memory_mib),
        rootfs_size_mb: Some(record.size.disk_mib),
    }
}
