//! VPCs: private networks of VMs.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, json, vm_id};
use super::vms::stored;
use super::{Api, services, whole};
use crate::fault::Fault;
use crate::pure::request;
use crate::pure::vpc::{BAD_VPC, NicRefusal, address, range};
use crate::store::{DeleteVpc, NewNic, TooManyVpcs, VmRecord, VpcRecord, rfc3339};
use crate::vms::OpError;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use model::api::Empty;
use model::api::vpc::{AttachVm, CreateVpc, VmDetached, VpcCreated, VpcInfo, VpcList, VpcMember, VpcRow};
use model::id::{IdError, VpcId};

/// `POST /v1/vpcs`.
pub async fn create(State(api): State<Api>, caller: Caller, body: Body) -> Answer<VpcCreated> {
    let request: CreateVpc = json(body, SMALL_BODY, BAD_VPC).await?;
    let range = range(request.cidr.as_deref(), api.0.config.vpn.pool)?;
    let name = request::name(request.name, BAD_VPC)?;
    let made = api.0.store.insert_vpc(&caller.account, name.as_deref(), range).await;
    let record = made.map_err(|error| stored(&error))?.map_err(too_many)?;
    tracing::info!(vpc = %record.id, account = %caller.account, %range, "VPC made");
    Ok(Json(VpcCreated { vpc_id: record.id }))
}

/// `GET /v1/vpcs`.
pub async fn list(State(api): State<Api>, caller: Caller) -> Answer<VpcList> {
    let all = api.0.store.vpcs_of(&caller.account).await.map_err(|error| stored(&error))?;
    let row = |(vpc, member_count): (VpcRecord, u64)| VpcRow {
        vpc_id: vpc.id,
        cidr: vpc.range,
        name: vpc.name,
        created_at: rfc3339(vpc.created_ms),
        member_count,
    };
    Ok(Json(VpcList { vpcs: all.into_iter().map(row).collect() }))
}

/// `GET /v1/vpcs/{vpc_id}`.
pub async fn get(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<VpcInfo> {
    let vpc = found(&api, &caller, &id).await?;
    let members = api.0.store.vms_in(&vpc.id).await.map_err(|error| stored(&error))?;
    let services = api.0.store.services_of(&vpc.id).await.map_err(|error| stored(&error))?;
    Ok(Json(VpcInfo {
        vpc_id: vpc.id,
        cidr: vpc.range,
        name: vpc.name,
        created_at: rfc3339(vpc.created_ms),
        members: members.into_iter().map(member).collect(),
        services: services.into_iter().map(services::row).collect(),
    }))
}

/// `DELETE /v1/vpcs/{vpc_id}`.
pub async fn delete(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<Empty> {
    let id = vpc_id(&id)?;
    whole(async move {
        let deleted = api.0.store.delete_vpc(&caller.account, &id).await;
        match deleted.map_err(|error| stored(&error))? {
            DeleteVpc::Done => {
                tracing::info!(vpc = %id, account = %caller.account, "VPC deleted");
                // Its VPN sessions and peerings ended with it.
                api.published("VPC deleted").await?;
                Ok(Json(Empty {}))
            }
            DeleteVpc::NoVpc => Err(no_vpc(&id)),
            DeleteVpc::InUse { vms, services } => Err(in_use(&id, vms, services)),
        }
    })
    .await
}

/// `POST /v1/vpcs/{vpc_id}/members`.
pub async fn attach(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<VpcMember> {
    let request: AttachVm = json(body, SMALL_BODY, BAD_VPC).await?;
    let vm = vm_id(&request.vm_id)?;
    let ipv4 =
        address(request.ipv4.as_ref()).map_err(|why| Fault::new(400, BAD_VPC, format!("ipv4 {why}")))?;
    let vpc = found(&api, &caller, &id).await?.id;
    let nic = NewNic { vpc, ipv4, default: false };
    let attached = api.0.machines.attach(&caller.account, &vm, nic).await;
    let record = attached.map_err(|error| match error {
        OpError::Nic(NicRefusal::NoVpc(vpc)) => no_vpc(&vpc),
        OpError::Nic(refusal) => refusal.fault(BAD_VPC),
        other => other.fault(Some(&vm)),
    })?;
    Ok(Json(member(record)))
}

/// `DELETE /v1/vpcs/{vpc_id}/members/{vm_id}`.
pub async fn detach(
    State(api): State<Api>,
    caller: Caller,
    Named((id, vm)): Named<(String, String)>,
) -> Answer<VmDetached> {
    let vm = vm_id(&vm)?;
    let vpc = found(&api, &caller, &id).await?.id;
    let detached = api.0.machines.detach(&caller.account, &vm, &vpc).await;
    let record = detached.map_err(|error| error.fault(Some(&vm)))?;
    Ok(Json(VmDetached { vm_id: vm, ipv4: record.ipv4 }))
}

fn in_use(id: &VpcId, vms: u64, services: u64) -> Fault {
    let message = match (vms, services) {
        (vms, 0) => format!("{vms} VMs are in {id}; delete or detach them first"),
        (0, services) => format!("{services} services are in {id}; remove them first"),
        (vms, services) => {
            format!("{vms} VMs and {services} services are in {id}; delete, detach or remove them first")
        }
    };
    Fault::new(409, "VPC_IN_USE", message)
        .with("vpcId", id.as_str())
        .with("memberCount", vms)
        .with("serviceCount", services)
}

/// The account's VPC of that name.
pub(super) async fn found(api: &Api, caller: &Caller, id: &str) -> Result<VpcRecord, Fault> {
    let id = vpc_id(id)?;
    let vpc = api.0.store.vpc(&caller.account, &id).await.map_err(|error| stored(&error))?;
    vpc.ok_or_else(|| no_vpc(&id))
}

pub(super) fn vpc_id(text: &str) -> Result<VpcId, Fault> {
    text.parse().map_err(|error: IdError| Fault::new(400, BAD_VPC, error.to_string()))
}

/// No such VPC, or not the caller's: which of them is nobody else's business.
fn no_vpc(id: &VpcId) -> Fault {
    Fault::new(404, "NOT_FOUND", format!("there is no VPC {id}")).with("vpcId", id.as_str())
}

fn too_many(TooManyVpcs { limit, current, of_account }: TooManyVpcs) -> Fault {
    let whose = if of_account { "the account" } else { "this host" };
    let message =
        format!("{whose} has {current} VPCs, and may have {limit}; delete some that have no members");
    Fault::over_limit(message, limit, current)
}

fn member(vm: VmRecord) -> VpcMember {
    VpcMember { state: vm.phase.shown(), vm_id: vm.id, name: vm.name, ipv4: vm.ipv4, default: vm.vpc_default }
}
