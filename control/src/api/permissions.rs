//! What identities may do: VMs with the Linux users, and repositories of the git front to come.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Asked, Named, SMALL_BODY, json, vm_id};
use super::identities::{found, identity_id, page};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::{Api, whole};
use crate::pure::identity::{BAD_IDENTITY, IdentityRefusal, allowed_users, repo};
use crate::store::{GrantRecord, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::identity::{
    GitPermission, GitRepositoryList, GitRepositoryRow, GrantGit, GrantVm, PageQuery, VmPermission,
    VmPermissionList,
};

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let all = "/identity/v1/identities/{identity}/permissions/vm";
    let one = "/identity/v1/identities/{identity}/permissions/vm/{vm_id}";
    let permission = Shape::of::<VmPermission>();
    let mut routes = vec![
        Route::new("get", all, "VMs of an identity", Shape::of::<VmPermissionList>(), routing::get(list))
            .asking(Shape::of::<PageQuery>()),
        Route::new("get", one, "What an identity may do with a VM", permission, routing::get(get)),
        Route::new("post", one, "Grants an identity a VM", permission, routing::post(grant))
            .taking(Shape::of::<GrantVm>()),
        Route::new(
            "put",
            one,
            "Changes as which users an identity may act",
            permission,
            routing::put(update),
        )
        .taking(Shape::of::<GrantVm>()),
        Route::new(
            "delete",
            one,
            "Takes a VM back from an identity; what it does there is cut",
            Shape::of::<Empty>(),
            routing::delete(revoke),
        ),
    ];
    routes.extend(of_git());
    routes
}

fn of_git() -> Vec<Route> {
    let all = "/identity/v1/identities/{identity}/permissions/git";
    let one = "/identity/v1/identities/{identity}/permissions/git/{repo}";
    let (permission, empty) = (Shape::of::<GitPermission>(), Shape::of::<Empty>());
    vec![
        Route::new(
            "get",
            all,
            "Repositories of an identity",
            Shape::of::<GitRepositoryList>(),
            routing::get(list_git),
        )
        .asking(Shape::of::<PageQuery>()),
        Route::new(
            "get",
            one,
            "What an identity may do with a repository",
            permission,
            routing::get(get_git),
        ),
        Route::new("post", one, "Grants an identity a repository", empty, routing::post(grant_git))
            .taking(Shape::of::<GrantGit>()),
        Route::new(
            "put",
            one,
            "Changes what an identity may do with a repository",
            empty,
            routing::put(update_git),
        )
        .taking(Shape::of::<GrantGit>()),
        Route::new("delete", one, "Takes a repository back", empty, routing::delete(revoke_git)),
    ]
}

async fn list(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    Asked(query): Asked<PageQuery>,
) -> Answer<VmPermissionList> {
    let id = found(&api, &caller.account, &id).await?;
    let all = api.0.store.grants_of(&id).await.map_err(|error| stored(&error))?;
    let (permissions, offset, total) = page(all, query.offset, query.limit);
    let permissions = permissions.into_iter().map(shown).collect();
    Ok(Json(VmPermissionList { permissions, offset, total }))
}

async fn get(
    State(api): State<Api>,
    caller: Caller,
    Named((id, vm)): Named<(String, String)>,
) -> Answer<VmPermission> {
    let (id, vm) = (found(&api, &caller.account, &id).await?, vm_id(&vm)?);
    let all = api.0.store.grants_of(&id).await.map_err(|error| stored(&error))?;
    let grant = all.into_iter().find(|grant| grant.vm == vm);
    grant.map(|grant| Json(shown(grant))).ok_or_else(|| IdentityRefusal::NoGrant(vm).fault())
}

async fn grant(
    State(api): State<Api>,
    caller: Caller,
    Named((id, vm)): Named<(String, String)>,
    body: Body,
) -> Answer<VmPermission> {
    let (id, vm) = (identity_id(&id)?, vm_id(&vm)?);
    let request: GrantVm = json(body, SMALL_BODY, BAD_IDENTITY).await?;
    let users = allowed_users(request.allowed_users)?;
    whole(async move {
        let granted = api.0.store.grant_vm(&caller.account, &id, &vm, users).await;
        let record = granted.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        tracing::info!(identity = %id, %vm, users = ?record.allowed_users, "VM granted");
        api.published("VM granted").await?;
        Ok(Json(shown(record)))
    })
    .await
}

async fn update(
    State(api): State<Api>,
    caller: Caller,
    Named((id, vm)): Named<(String, String)>,
    body: Body,
) -> Answer<VmPermission> {
    let (id, vm) = (identity_id(&id)?, vm_id(&vm)?);
    let request: GrantVm = json(body, SMALL_BODY, BAD_IDENTITY).await?;
    let users = allowed_users(request.allowed_users)?;
    whole(async move {
        let granted = api.0.store.regrant_vm(&caller.account, &id, &vm, users).await;
        let record = granted.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        tracing::info!(identity = %id, %vm, users = ?record.allowed_users, "grant of a VM changed");
        api.taken("grant changed").await?;
        Ok(Json(shown(record)))
    })
    .await
}

async fn revoke(
    State(api): State<Api>,
    caller: Caller,
    Named((id, vm)): Named<(String, String)>,
) -> Answer<Empty> {
    let (id, vm) = (identity_id(&id)?, vm_id(&vm)?);
    whole(async move {
        let gone = api.0.store.revoke_vm(&caller.account, &id, &vm).await;
        gone.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        tracing::info!(identity = %id, %vm, "grant of a VM taken back");
        api.taken("grant revoked").await?;
        Ok(Json(Empty {}))
    })
    .await
}

async fn list_git(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    Asked(query): Asked<PageQuery>,
) -> Answer<GitRepositoryList> {
    let id = found(&api, &caller.account, &id).await?;
    let all = api.0.store.git_grants_of(&id).await.map_err(|error| stored(&error))?;
    let (grants, ..) = page(all, query.offset, query.limit);
    let row = |(id, permissions)| GitRepositoryRow {
        id,
        name: None,
        account_id: caller.account.clone(),
        permissions,
        visibility: "private".to_owned(),
    };
    Ok(Json(GitRepositoryList { repositories: grants.into_iter().map(row).collect() }))
}

async fn get_git(
    State(api): State<Api>,
    caller: Caller,
    Named((id, name)): Named<(String, String)>,
) -> Answer<GitPermission> {
    let (identity, repo) = (found(&api, &caller.account, &id).await?, repo(&name)?);
    let all = api.0.store.git_grants_of(&identity).await.map_err(|error| stored(&error))?;
    let access = all.into_iter().find(|(name, _)| *name == repo).map(|(_, access)| access);
    if access.is_none() {
        return Err(IdentityRefusal::NoGitGrant(repo).fault());
    }
    Ok(Json(GitPermission { identity, repo, access_level: access }))
}

async fn grant_git(
    state: State<Api>,
    caller: Caller,
    named: Named<(String, String)>,
    body: Body,
) -> Answer<Empty> {
    write_git(state, caller, named, body, false).await
}

async fn update_git(
    state: State<Api>,
    caller: Caller,
    named: Named<(String, String)>,
    body: Body,
) -> Answer<Empty> {
    write_git(state, caller, named, body, true).await
}

async fn write_git(
    State(api): State<Api>,
    caller: Caller,
    Named((id, name)): Named<(String, String)>,
    body: Body,
    anew: bool,
) -> Answer<Empty> {
    let (id, repo) = (identity_id(&id)?, repo(&name)?);
    let request: GrantGit = json(body, SMALL_BODY, BAD_IDENTITY).await?;
    let granted = api.0.store.grant_git(&caller.account, &id, &repo, request.permission, anew).await;
    granted.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
    api.0.machines.pass("repository granted").await;
    Ok(Json(Empty {}))
}

async fn revoke_git(
    State(api): State<Api>,
    caller: Caller,
    Named((id, name)): Named<(String, String)>,
) -> Answer<Empty> {
    let (id, repo) = (identity_id(&id)?, repo(&name)?);
    let gone = api.0.store.revoke_git(&caller.account, &id, &repo).await;
    gone.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
    Ok(Json(Empty {}))
}

fn shown(grant: GrantRecord) -> VmPermission {
    VmPermission {
        id: grant.id,
        vm_id: grant.vm,
        identity_id: grant.identity,
        allowed_users: grant.allowed_users,
        granted_at: rfc3339(grant.granted_ms),
        granted_by: grant.granted_by,
    }
}
