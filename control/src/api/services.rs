//! Services of this host in VPCs. They join by `gatehouse vpc join`, which root on this host alone can do.

use super::answer::Answer;
use super::auth::Caller;
use super::body::{Named, SMALL_BODY, json};
use super::openapi::Shape;
use super::routes::Route;
use super::vms::stored;
use super::vpcs::found;
use super::{Api, whole};
use crate::fault::Fault;
use crate::pure::service;
use crate::pure::vpc::{BAD_VPC, address};
use crate::store::{ServiceRecord, rfc3339};
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::routing;
use model::api::Empty;
use model::api::service::{CreateService, ServiceCreated, ServiceList, ServiceRow};
use model::id::{IdError, ServiceId};

/// Routes of this part.
pub fn routes() -> Vec<Route> {
    let all = "/v1/vpcs/{vpc_id}/services";
    vec![
        Route::new(
            "get",
            all,
            "The services of this host in a VPC",
            Shape::of::<ServiceList>(),
            routing::get(list),
        ),
        Route::new(
            "post",
            all,
            "Gives a service of this host an address and a name in a VPC, so that it may join",
            Shape::of::<ServiceCreated>(),
            routing::post(create),
        )
        .taking(Shape::of::<CreateService>()),
        Route::new(
            "delete",
            "/v1/vpcs/{vpc_id}/services/{service_id}",
            "Removes a service from a VPC",
            Shape::of::<Empty>(),
            routing::delete(remove),
        ),
    ]
}

async fn list(State(api): State<Api>, caller: Caller, Named(id): Named<String>) -> Answer<ServiceList> {
    let vpc = found(&api, &caller, &id).await?.id;
    let services = api.0.store.services_of(&vpc).await.map_err(|error| stored(&error))?;
    Ok(Json(ServiceList { services: services.into_iter().map(row).collect() }))
}

async fn create(
    State(api): State<Api>,
    caller: Caller,
    Named(id): Named<String>,
    body: Body,
) -> Answer<ServiceCreated> {
    let request: CreateService = json(body, SMALL_BODY, BAD_VPC).await?;
    let name = service::name(&request.name)?;
    let ipv4 =
        address(request.ipv4.as_ref()).map_err(|why| Fault::new(400, BAD_VPC, format!("ipv4 {why}")))?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        let made = api.0.store.make_service(&caller.account, &vpc, &name, ipv4).await;
        let made = made.map_err(|error| stored(&error))?.map_err(|refusal| refusal.fault())?;
        let generation = api.published("service made").await?;
        tracing::info!(service = %made.id, %vpc, name, ipv4 = %made.ipv4, "service known");
        let ServiceRecord { id, vpc, name, ipv4, .. } = made;
        Ok(Json(ServiceCreated { service_id: id, vpc_id: vpc, name, ipv4, generation }))
    })
    .await
}

async fn remove(
    State(api): State<Api>,
    caller: Caller,
    Named((id, service)): Named<(String, String)>,
) -> Answer<Empty> {
    let service: ServiceId =
        service.parse().map_err(|error: IdError| Fault::new(400, BAD_VPC, error.to_string()))?;
    let vpc = found(&api, &caller, &id).await?.id;
    whole(async move {
        if !api.0.store.remove_service(&vpc, &service).await.map_err(|error| stored(&error))? {
            let message = format!("{vpc} has no service {service}");
            return Err(Fault::new(404, "NOT_FOUND", message)
                .with("vpcId", vpc.as_str())
                .with("serviceId", service.as_str()));
        }
        api.published("service removed").await?;
        tracing::info!(%service, %vpc, "service removed");
        Ok(Json(Empty {}))
    })
    .await
}

/// A service as it is listed.
pub(super) fn row(service: ServiceRecord) -> ServiceRow {
    ServiceRow {
        service_id: service.id,
        name: service.name,
        ipv4: service.ipv4,
        created_at: rfc3339(service.created_ms),
    }
}
