//! WireGuard into VPCs. An answer means that the door has been told: the client's first datagram finds its session.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, json, vm_id};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::vpcs::found;
use super::{Api, whole};
use crate::fault::Fault;
use crate::pure::vpc::BAD_VPC;
use crate::pure::wireguard::{Client, INTERFACE, config, endpoint_host, first_host, server_address};
use crate::random;
use crate::store::{NewSession, SessionRecord, VpcRecord, rfc3339};
use crate::wireguard::{fit, pair};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::wireguard::{
    CloseSession, CreatePeer, EphemeralCreated, PeerCreated, SessionActivity, SessionList, SessionRow,
};
use model::id::{IdError, VmId, WireGuardSessionId};
use model::key::{KeyError, PublicKey, SecretKey};
use std::collections::HashMap;
use vpn::client::{SessionState, SessionStatus};

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let (ephemeral, peers) = ("/v1/vpcs/{vpc_id}/wireguard/ephemeral", "/v1/vpcs/{vpc_id}/wireguard/peers");
    vec![
        Route::new(
            "post",
            ephemeral,
            "Makes a VPN session into a VPC, with a new pair of keys for its client",
            Shape::of::<EphemeralCreated>(),
            routing::post(create),
        )
        .taking(Shape::of::<Empty>()),
        Route::new(
            "delete",
            ephemeral,
            "Ends a VPN session into a VPC",
            Shape::of::<Empty>(),
            routing::delete(close),
        )
        .taking(Shape::of::<CloseSession>()),
        Route::new(
            "post",
            peers,
            "Makes a VPN session into a VPC for a client's own key; it ends with a member",
            Shape::of::<PeerCreated>(),
            routing::post(peer),
        )
        .taking(Shape::of::<CreatePeer>()),
        Route::new(
            "get",
            "/v1/vpcs/{vpc_id}/wireguard/sessions",
            "The VPN sessions into a VPC",
            Shape::of::<SessionList>(),
            routing::get(list),
        ),
    ]
}

/// A session and what else its client is told.
struct Opened {
    vpc: VpcRecord,
    session: SessionRecord,
    preshared: SecretKey,
}

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<EphemeralCreated> {
    let Empty {} = json(body, SMALL_BODY, BAD_VPC).await?;
    let vpc = found(&api, &caller, &id).await?;
    let (secret, public) = pair();
    let opened = open(&api, caller, vpc, public, None).await?;
    let (door, host) = (&api.0.config.vpn, host(&api));
    let Opened { vpc, session, .. } = &opened;
    let vpc_ip = if door.hide_clients { first_host(vpc.range) } else { session.ipv4 };
    Ok(Json(EphemeralCreated {
        vpc_id: vpc.id.clone(),
        session_id: session.id.clone(),
        endpoint_port: door.port,
        listen_port: door.port,
        interface_name: INTERFACE.to_owned(),
        server_public_key: api.0.keys.public(),
        client_public_key: public,
        server_tunnel_ip: server_address(door),
        client_tunnel_ip: session.ipv4,
        vpc_ip,
        client_allowed_ips: vec![vpc.range],
        vpc_cidr: vpc.range,
        client_config: client_config(&api, &opened, Some(&secret), &host),
        client_private_key: Some(secret.into()),
        endpoint_host: Some(host),
        expires_at: rfc3339(session.expires_ms),
    }))
}

async fn peer(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<PeerCreated> {
    let request: CreatePeer = json(body, SMALL_BODY, BAD_VPC).await?;
    let vm = vm_id(&request.gateway_vm_id)?;
    let bad = |why: &str| Fault::new(400, BAD_VPC, format!("clientPublicKey: {why}"));
    let key: PublicKey =
        request.client_public_key.parse().map_err(|error: KeyError| bad(&error.to_string()))?;
    if !fit(&key) || key == api.0.keys.public() {
        return Err(bad("it is no client's; make a pair with wg genkey and wg pubkey"));
    }
    let vpc = found(&api, &caller, &id).await?;
    let opened = open(&api, caller, vpc, key, Some(vm.clone())).await?;
    let (door, host) = (&api.0.config.vpn, host(&api));
    let Opened { vpc, session, .. } = &opened;
    Ok(Json(PeerCreated {
        vpc_id: vpc.id.clone(),
        gateway_vm_id: vm,
        session_id: session.id.clone(),
        endpoint_port: door.port,
        listen_port: door.port,
        interface_name: INTERFACE.to_owned(),
        server_public_key: api.0.keys.public(),
        server_tunnel_ip: server_address(door),
        client_tunnel_ip: session.ipv4,
        vpc_cidr: vpc.range,
        client_config: client_config(&api, &opened, None, &host),
        endpoint_host: Some(host),
        expires_at: rfc3339(session.expires_ms),
    }))
}

async fn close(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<Empty> {
    let request: CloseSession = json(body, SMALL_BODY, BAD_VPC).await?;
    let session = request.session_id.parse::<WireGuardSessionId>();
    let session = session.map_err(|error: IdError| Fault::new(400, BAD_VPC, error.to_string()))?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        if !api.0.store.close_session(&vpc, &session).await.map_err(|error| stored(&error))? {
            let message = format!("{vpc} has no VPN session {session}; it may be over");
            return Err(Fault::new(404, "NOT_FOUND", message)
                .with("vpcId", vpc.as_str())
                .with("sessionId", session.as_str()));
        }
        api.published("session closed").await?;
        tracing::info!(%session, %vpc, "VPN session closed");
        Ok(Json(Empty {}))
    })
    .await
}

async fn list(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<SessionList> {
    let vpc = found(&api, &caller, &id).await?.id;
    let sessions = api.0.store.sessions_of(&vpc).await.map_err(|error| stored(&error))?;
    // What it does is worth a word, not a failure.
    let told = api.0.door.sessions(Some(&vpc)).await.unwrap_or_else(|error| {
        tracing::debug!(%vpc, %error, "what VPN sessions do is not known");
        Vec::new()
    });
    let mut told: HashMap<WireGuardSessionId, SessionStatus> =
        told.into_iter().map(|status| (status.id.clone(), status)).collect();
    let rows = sessions.into_iter().map(|session| {
        let status = told.remove(&session.id);
        row(session, status.as_ref())
    });
    Ok(Json(SessionList { sessions: rows.collect() }))
}

fn row(session: SessionRecord, status: Option<&SessionStatus>) -> SessionRow {
    SessionRow {
        session_id: session.id,
        client_public_key: session.client_key,
        client_tunnel_ip: session.ipv4,
        gateway_vm_id: session.gateway,
        created_at: rfc3339(session.created_ms),
        expires_at: rfc3339(session.expires_ms),
        state: status.map(|status| match status.state {
            SessionState::Registered => SessionActivity::Away,
            SessionState::Live => SessionActivity::Connected,
            SessionState::Idled => SessionActivity::Ending,
        }),
        endpoint: status.and_then(|status| status.endpoint).map(|endpoint| endpoint.to_string()),
        silent_seconds: status.map(|status| status.silent_seconds),
        received_bytes: status.map(|status| status.received_bytes),
        sent_bytes: status.map(|status| status.sent_bytes),
    }
}

/// Makes a session, or finds the one with the same client and gateway, and tells the door.
async fn open(
    api: &Api,
    caller: Caller,
    vpc: VpcRecord,
    client_key: PublicKey,
    gateway: Option<VmId>,
) -> Result<Opened, Fault> {
    let api = api.clone();
    let id = WireGuardSessionId::from_random(random::bytes());
    let (_, preshared) = api.0.keys.draw_preshared(&id);
    let new = NewSession {
        id,
        vpc: vpc.id.clone(),
        account: caller.account,
        key: caller.key,
        gateway,
        client_key,
        preshared,
        lasts_ms: i64::from(api.0.config.vpn.longest_seconds.get()) * 1000,
        pool: api.0.config.vpn.pool,
    };
    whole(async move {
        let session = api.0.store.open_session(&new).await.map_err(|error| stored(&error))?;
        let session = session.map_err(|refusal| refusal.fault())?;
        let preshared = api.0.keys.preshared(&session);
        let preshared = preshared.map_err(|error| Fault::internal(error.to_string()))?;
        api.0.sessions.notify_one();
        api.published("session made").await?;
        tracing::info!(session = %session.id, vpc = %vpc.id, account = %session.account, "VPN session made");
        Ok(Opened { vpc, session, preshared })
    })
    .await
}

fn host(api: &Api) -> String {
    endpoint_host(&api.0.config.vpn, &api.0.config.domain)
}

fn client_config(api: &Api, opened: &Opened, secret: Option<&SecretKey>, host: &str) -> String {
    let Opened { vpc, session, preshared } = opened;
    let client = Client {
        session: &session.id,
        vpc: &vpc.id,
        range: vpc.range,
        ends: &rfc3339(session.expires_ms),
        address: session.ipv4,
        key: session.client_key,
        secret,
        preshared,
        server: api.0.keys.public(),
        host,
    };
    config(&client, &api.0.config.vpn)
}
