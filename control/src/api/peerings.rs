//! VPCs that reach each other.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, json};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::vpcs::{found, vpc_id};
use super::{Api, whole};
use crate::fault::Fault;
use crate::pure::peering::PeeringRefusal;
use crate::pure::vpc::BAD_VPC;
use crate::store::{PeeringRecord, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::peering::{CreatePeering, PeeringInfo, PeeringList, PeeringState};
use model::id::{IdError, PeeringId, VpcId};
use model::net::Ipv4Cidr;

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let all = "/v1/vpcs/{vpc_id}/peerings";
    vec![
        Route::new(
            "get",
            all,
            "VPCs that a VPC reaches, or that are asked to",
            Shape::of::<PeeringList>(),
            routing::get(list),
        ),
        Route::new(
            "post",
            all,
            "Has two VPCs reach each other, once the owners of both have asked for it",
            Shape::of::<PeeringInfo>(),
            routing::post(create),
        )
        .taking(Shape::of::<CreatePeering>()),
        Route::new(
            "delete",
            "/v1/vpcs/{vpc_id}/peerings/{peering_id}",
            "Ends a peering, from either side",
            Shape::of::<Empty>(),
            routing::delete(end),
        ),
    ]
}

async fn list(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<PeeringList> {
    let vpc = found(&api, &caller, &id).await?.id;
    let all = api.0.store.peerings_of(&vpc).await.map_err(|error| stored(&error))?;
    let shown = |(peering, range): (PeeringRecord, Ipv4Cidr)| info(&peering, &vpc, Some(range));
    Ok(Json(PeeringList { peerings: all.into_iter().map(shown).collect() }))
}

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<PeeringInfo> {
    let request: CreatePeering = json(body, SMALL_BODY, BAD_VPC).await?;
    let other = vpc_id(&request.peer_vpc_id)?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        let asked = api.0.store.ask_for_peering(&caller.account, &vpc, &other).await;
        let asked = asked.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        if asked.active {
            api.published("peering active").await?;
        }
        tracing::info!(peering = %asked.id, %vpc, peer = %other, active = asked.active, "peering asked for");
        let ranges = api.0.store.peerings_of(&vpc).await.map_err(|error| stored(&error))?;
        let range = ranges.into_iter().find(|(peering, _)| peering.id == asked.id).map(|(_, range)| range);
        Ok(Json(info(&asked, &vpc, range)))
    })
    .await
}

async fn end(
    State(api): State<Api>,
    caller: Caller,
    Named((id, peering)): Named<(String, String)>,
) -> Answer<Empty> {
    let peering: PeeringId =
        peering.parse().map_err(|error: IdError| Fault::new(400, BAD_VPC, error.to_string()))?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        if !api.0.store.end_peering(&vpc, &peering).await.map_err(|error| stored(&error))? {
            return Err(PeeringRefusal::NoPeering { vpc, peering }.fault());
        }
        api.published("peering ended").await?;
        tracing::info!(%peering, %vpc, "peering ended");
        Ok(Json(Empty {}))
    })
    .await
}

/// A peering as one side sees it.
fn info(peering: &PeeringRecord, vpc: &VpcId, range: Option<Ipv4Cidr>) -> PeeringInfo {
    let state = match (peering.active, peering.asker == *vpc) {
        (true, _) => PeeringState::Active,
        (false, true) => PeeringState::Pending,
        (false, false) => PeeringState::Asked,
    };
    PeeringInfo {
        peering_id: peering.id.clone(),
        peer_vpc_id: peering.other(vpc).clone(),
        peer_cidr: range.filter(|_| peering.active),
        state,
        created_at: rfc3339(peering.created_ms),
    }
}
