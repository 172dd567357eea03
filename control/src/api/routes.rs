//! The table of routes.

use super::openapi::Shape;
use super::{
    Api, admin, auth, background, certificates, copies, domain_status, domains, guest, identities, openapi,
    peerings, permissions, rules, services, ssh, verifications, vms, vpcs, wireguard,
};
use axum::routing::{self, MethodRouter};
use model::api::Empty;
use model::api::admin::{
    AccountList, AccountRow, ApiKeyCreated, ApiKeyList, CertificateList, CertificateRow, ControlStatus,
    CreateAccount, CreateApiKey, HouseFigures,
};
use model::api::auth::{Logs, WhoAmI};
use model::api::domain::{CreateMapping, Mapping, MappingQuery, WildcardCertificate};
use model::api::exec::{Exec, ExecResult};
use model::api::file::{FileAnswer, FileContent};
use model::api::snapshot::{
    CreateSnapshot, ForkVm, RenameSnapshot, SnapshotCreated, SnapshotDeleted, SnapshotInfo, SnapshotList,
    SnapshotQuery, SnapshotRenamed, VmForked,
};
use model::api::vm::{
    CreateVm, ResizeVm, StartVm, VmCreated, VmDeleted, VmExited, VmInfo, VmKilled, VmList, VmOptimized,
    VmQuery, VmStarted, VmStopped, VmSuspended,
};
use model::api::vpc::{AttachVm, CreateVpc, VmDetached, VpcCreated, VpcInfo, VpcList, VpcMember};

/// One route.
pub struct Route {
    /// Lower case, as OpenAPI writes it.
    pub method: &'static str,
    /// As the router reads it.
    pub path: &'static str,
    /// For people.
    pub summary: &'static str,
    /// The body, if it takes one.
    pub request: Option<Shape>,
    /// What stands behind `?`, if anything may.
    pub query: Option<Shape>,
    /// The body of a success.
    pub answer: Shape,
    /// Whether an identity's token opens it.
    pub open: Open,
    /// What does it.
    pub handler: MethodRouter<Api>,
}

/// What a route is to who comes with an identity's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// Closed, as every route that says nothing else.
    No,
    /// It tells who one is.
    Anybody,
    /// It is about the VM in its path: open to whom that was granted.
    OnVm,
    /// It acts inside the VM in its path as a Linux user: open to whom that VM and that user were granted.
    InVm,
}

impl Route {
    pub(super) fn new(
        method: &'static str,
        path: &'static str,
        summary: &'static str,
        answer: Shape,
        handler: MethodRouter<Api>,
    ) -> Self {
        Self { method, path, summary, request: None, query: None, answer, open: Open::No, handler }
    }

    pub(super) fn taking(mut self, request: Shape) -> Self {
        self.request = Some(request);
        self
    }

    /// Opens it to tokens.
    pub(super) fn open(mut self, open: Open) -> Self {
        self.open = open;
        self
    }

    pub(super) fn asking(mut self, query: Shape) -> Self {
        self.query = Some(query);
        self
    }
}

/// All routes.
pub fn all() -> Vec<Route> {
    let mut all = of_vms();
    all.extend(of_lives());
    all.extend(of_copies());
    all.extend(of_guests());
    all.extend(of_vpcs());
    all.extend(wireguard::routes());
    all.extend(rules::routes());
    all.extend(services::routes());
    all.extend(peerings::routes());
    all.extend(identities::routes());
    all.extend(permissions::routes());
    all.extend(ssh::routes());
    all.extend(of_domains());
    all.extend(verifications::routes());
    all.extend(domain_status::routes());
    all.extend(of_admin());
    all.extend(of_callers());
    all
}

fn of_callers() -> Vec<Route> {
    let whoami = Shape::of::<WhoAmI>();
    let anything = Shape::of::<serde_json::Value>();
    vec![
        Route::new(
            "get",
            "/auth/v1/whoami",
            "Whose key or token is this?",
            whoami,
            routing::get(auth::whoami),
        )
        .open(Open::Anybody),
        Route::new(
            "get",
            "/auth/v1/background-requests/{request_id}",
            "The result of a request that went on after a 202; 202 while it does",
            anything,
            routing::get(background::result),
        ),
        Route::new(
            "get",
            "/observability/v1/logs",
            "What a request that goes on has done so far (requestId)",
            Shape::of::<Logs>(),
            routing::get(background::logs),
        ),
        Route::new("get", "/openapi.json", "This document", anything, routing::get(openapi::serve)),
    ]
}

fn of_vms() -> Vec<Route> {
    let one = "/v1/vms/{vm_id}";
    vec![
        Route::new("get", "/v1/vms", "The account's VMs", Shape::of::<VmList>(), routing::get(vms::list))
            .asking(Shape::of::<VmQuery>()),
        Route::new(
            "post",
            "/v1/vms",
            "Makes a VM; answers when it is ready",
            Shape::of::<VmCreated>(),
            routing::post(vms::create),
        )
        .taking(Shape::of::<CreateVm>()),
        Route::new("get", one, "A VM", Shape::of::<VmInfo>(), routing::get(vms::get)).open(Open::OnVm),
        Route::new(
            "delete",
            one,
            "Deletes a VM; answers when nothing is left of it",
            Shape::of::<VmDeleted>(),
            routing::delete(vms::delete),
        ),
    ]
}

fn of_lives() -> Vec<Route> {
    vec![
        Route::new(
            "post",
            "/v1/vms/{vm_id}/start",
            "Boots a VM, or wakes it; answers when it is ready",
            Shape::of::<VmStarted>(),
            routing::post(vms::start),
        )
        .open(Open::OnVm)
        .taking(Shape::of::<StartVm>()),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/stop",
            "Shuts a VM down",
            Shape::of::<VmStopped>(),
            routing::post(vms::stop),
        )
        .open(Open::OnVm),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/suspend",
            "Lets a VM sleep in the state it is in; a request to it wakes it",
            Shape::of::<VmSuspended>(),
            routing::post(vms::suspend),
        )
        .open(Open::OnVm),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/resize",
            "Gives a VM another size; one that runs is stopped and started for it",
            Shape::of::<Empty>(),
            routing::post(vms::resize),
        )
        .taking(Shape::of::<ResizeVm>()),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/optimize",
            "Gives memory and disk back to the host that a VM does not use",
            Shape::of::<VmOptimized>(),
            routing::post(vms::optimize),
        ),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/kill",
            "Ends a VM at once",
            Shape::of::<VmKilled>(),
            routing::post(vms::kill),
        )
        .open(Open::OnVm),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/await",
            "Answers when the VM is down",
            Shape::of::<VmExited>(),
            routing::post(vms::await_exit),
        )
        .open(Open::OnVm),
    ]
}

fn of_copies() -> Vec<Route> {
    let (all, one) = ("/v1/vms/snapshots", "/v1/vms/snapshots/{snapshot_id}");
    vec![
        Route::new(
            "post",
            "/v1/vms/{vm_id}/snapshot",
            "Copies a VM with its disk, and its memory if it has one; the copy outlives it",
            Shape::of::<SnapshotCreated>(),
            routing::post(copies::create),
        )
        .taking(Shape::of::<CreateSnapshot>()),
        Route::new(
            "get",
            all,
            "The account's snapshots",
            Shape::of::<SnapshotList>(),
            routing::get(copies::list),
        )
        .asking(Shape::of::<SnapshotQuery>()),
        Route::new("get", one, "A snapshot", Shape::of::<SnapshotInfo>(), routing::get(copies::get)),
        Route::new(
            "patch",
            one,
            "Gives a snapshot another label",
            Shape::of::<SnapshotRenamed>(),
            routing::patch(copies::rename),
        )
        .taking(Shape::of::<RenameSnapshot>()),
        Route::new(
            "delete",
            one,
            "Deletes a snapshot; VMs made from it stay",
            Shape::of::<SnapshotDeleted>(),
            routing::delete(copies::delete),
        ),
        Route::new(
            "post",
            "/v1/vms/{vm_id}/fork",
            "Makes running copies of a running VM, all or none",
            Shape::of::<VmForked>(),
            routing::post(copies::fork),
        )
        .taking(Shape::of::<ForkVm>()),
    ]
}

fn of_guests() -> Vec<Route> {
    let files = "/v1/vms/{vm_id}/files/{*filepath}";
    vec![
        Route::new(
            "post",
            "/v1/vms/{vm_id}/exec-await",
            "Runs a command in a VM, which is started when it is down",
            Shape::of::<ExecResult>(),
            routing::post(guest::exec),
        )
        .open(Open::InVm)
        .taking(Shape::of::<Exec>()),
        Route::new(
            "get",
            files,
            "A file's content, or a directory's entries",
            Shape::of::<FileAnswer>(),
            routing::get(guest::read),
        )
        .open(Open::InVm),
        Route::new("put", files, "Writes a file", Shape::of::<Empty>(), routing::put(guest::write))
            .open(Open::InVm)
            .taking(Shape::of::<FileContent>()),
    ]
}

fn of_vpcs() -> Vec<Route> {
    let (all, one) = ("/v1/vpcs", "/v1/vpcs/{vpc_id}");
    vec![
        Route::new("get", all, "The account's VPCs", Shape::of::<VpcList>(), routing::get(vpcs::list)),
        Route::new(
            "post",
            all,
            "Makes a VPC: a private network of VMs",
            Shape::of::<VpcCreated>(),
            routing::post(vpcs::create),
        )
        .taking(Shape::of::<CreateVpc>()),
        Route::new("get", one, "A VPC and its members", Shape::of::<VpcInfo>(), routing::get(vpcs::get)),
        Route::new(
            "delete",
            one,
            "Deletes a VPC that has no members",
            Shape::of::<Empty>(),
            routing::delete(vpcs::delete),
        ),
        Route::new(
            "post",
            "/v1/vpcs/{vpc_id}/members",
            "Moves a stopped VM from the default network into a VPC",
            Shape::of::<VpcMember>(),
            routing::post(vpcs::attach),
        )
        .taking(Shape::of::<AttachVm>()),
        Route::new(
            "delete",
            "/v1/vpcs/{vpc_id}/members/{vm_id}",
            "Moves a stopped VM from a VPC into the default network",
            Shape::of::<VmDetached>(),
            routing::delete(vpcs::detach),
        ),
    ]
}

fn of_domains() -> Vec<Route> {
    let one = "/domains/v1/mappings/{domain}";
    vec![
        Route::new(
            "post",
            "/domains/v1/certs/{domain}/wildcard",
            "Have all names below a domain certified",
            Shape::of::<WildcardCertificate>(),
            routing::post(certificates::wildcard),
        ),
        Route::new(
            "get",
            "/domains/v1/mappings",
            "Names that lead to VMs",
            Shape::of::<Vec<Mapping>>(),
            routing::get(domains::list),
        )
        .asking(Shape::of::<MappingQuery>()),
        Route::new(
            "post",
            one,
            "Maps a name to a VM",
            Shape::of::<Mapping>(),
            routing::post(domains::create),
        )
        .taking(Shape::of::<CreateMapping>()),
        Route::new("delete", one, "Ends a mapping", Shape::of::<Empty>(), routing::delete(domains::delete)),
    ]
}

fn of_admin() -> Vec<Route> {
    let (keys, accounts) = ("/admin/v1/api-keys", "/admin/v1/accounts");
    vec![
        Route::new(
            "post",
            keys,
            "Operator: makes an API key; its secret is shown here alone",
            Shape::of::<ApiKeyCreated>(),
            routing::post(admin::create_key),
        )
        .taking(Shape::of::<CreateApiKey>()),
        Route::new(
            "get",
            keys,
            "Operator: all API keys",
            Shape::of::<ApiKeyList>(),
            routing::get(admin::list_keys),
        ),
        Route::new(
            "delete",
            "/admin/v1/api-keys/{key_id}",
            "Operator: makes an API key worthless",
            Shape::of::<Empty>(),
            routing::delete(admin::revoke_key),
        ),
        Route::new(
            "post",
            accounts,
            "Operator: makes an account",
            Shape::of::<AccountRow>(),
            routing::post(admin::create_account),
        )
        .taking(Shape::of::<CreateAccount>()),
        Route::new(
            "get",
            accounts,
            "Operator: all accounts",
            Shape::of::<AccountList>(),
            routing::get(admin::list_accounts),
        ),
        Route::new(
            "get",
            "/admin/v1/status",
            "Operator: what control knows and has published",
            Shape::of::<ControlStatus>(),
            routing::get(admin::status),
        ),
        Route::new(
            "get",
            "/admin/v1/metrics",
            "Operator: what all processes have counted since their start",
            Shape::of::<HouseFigures>(),
            routing::get(admin::metrics),
        ),
        Route::new(
            "get",
            "/admin/v1/certificates",
            "Operator: the names that the certificate authority certifies, and how far each is",
            Shape::of::<CertificateList>(),
            routing::get(certificates::list),
        ),
        Route::new(
            "post",
            "/admin/v1/certificates/{name}/retry",
            "Operator: have a certificate ordered at once",
            Shape::of::<CertificateRow>(),
            routing::post(certificates::retry),
        ),
    ]
}
