//! The HTTP API. One table of routes makes both the router and the OpenAPI document.

mod admin;
mod answer;
mod auth;
mod background;
mod body;
mod copies;
mod domains;
mod guest;
mod openapi;
mod peerings;
mod routes;
mod rules;
mod services;
mod unoffered;
mod vms;
mod vpcs;
mod wireguard;

pub use auth::Door;

use crate::fault::Fault;
use crate::publish::Planner;
use crate::store::Store;
use crate::vms::Machines;
use crate::wireguard::Keys;
use ::vpc::client::VpcClient;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{any, post};
use background::Background;
use model::config::ControlConfig;
use model::id::{AccountId, Generation};
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore};
use vpn::client::VpnClient;

/// Commands that run at once, in all VMs. Each holds a stream and up to 16 MiB of output.
const MAX_COMMANDS: usize = 256;
/// Files that are read or written at once. Each holds up to 64 MiB, and as much again as JSON.
const MAX_FILES: usize = 16;

/// What the handlers share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: ControlConfig,
    store: Store,
    planner: Planner,
    machines: Machines,
    default_account: AccountId,
    background: Background,
    commands: Semaphore,
    files: Semaphore,
    keys: Keys,
    /// Told when there is a session that may be the next to end.
    sessions: Arc<Notify>,
    network: VpcClient,
    door: VpnClient,
}

impl Api {
    /// The API over a store and its VMs.
    #[must_use]
    pub fn new(
        config: ControlConfig,
        store: Store,
        planner: Planner,
        machines: Machines,
        default_account: AccountId,
        keys: Keys,
        sessions: Arc<Notify>,
    ) -> Self {
        let network = VpcClient::new(config.places.vpc_socket());
        let door = VpnClient::new(config.places.vpn_socket());
        Self(Arc::new(Shared {
            config,
            store,
            planner,
            machines,
            default_account,
            background: Background::default(),
            commands: Semaphore::new(MAX_COMMANDS),
            files: Semaphore::new(MAX_FILES),
            keys,
            sessions,
            network,
            door,
        }))
    }

    /// Publishes what was just written down. `place` names the change, for tests.
    async fn published(&self, place: &'static str) -> Result<Generation, Fault> {
        self.0.machines.pass(place).await;
        self.0.planner.publish().await.map_err(|error| Fault::internal(error.to_string()))
    }

    /// All routes, with authentication, trace ids and cross-origin headers around them. Each request must carry a
    /// [`Door`] among its extensions.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        for route in routes::all() {
            router = router.route(route.path, route.handler);
        }
        router
            .route("/v1/vms/builds", any(unoffered::fallback))
            .route("/v1/vms/snapshots", post(unoffered::ensure_snapshot))
            .fallback(unoffered::fallback)
            .method_not_allowed_fallback(unoffered::wrong_method)
            .layer(from_fn_with_state(self.clone(), auth::authenticate))
            .layer(from_fn(answer::envelope))
            .with_state(self.clone())
    }
}

/// Does all of something, also when its caller goes away: what is written down must be published too.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    tokio::spawn(work).await.map_err(|error| Fault::internal(format!("it was cut short: {error}")))?
}
