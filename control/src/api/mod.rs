//! The HTTP API. One table of routes makes both the router and the OpenAPI document.

mod admin;
mod answer;
mod auth;
mod background;
mod body;
mod certificates;
mod copies;
mod domain_status;
mod domains;
mod guest;
mod identities;
mod leases;
mod openapi;
mod peerings;
mod permissions;
pub(crate) mod routes;
mod rules;
mod services;
mod ssh;
mod unoffered;
mod verifications;
mod vms;
mod vpcs;
mod wireguard;

pub use auth::Door;

use crate::fault::Fault;
use crate::figures::House;
use crate::publish::Planner;
use crate::ssh::SshKeys;
use crate::store::Store;
use crate::vms::Machines;
use crate::wireguard::Keys;
use ::vpc::client::VpcClient;
use auth::Gate;
use axum::Router;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, post};
use background::Background;
use dns_verify::Prover;
use leases::Leases;
use model::config::ControlConfig;
use model::id::{AccountId, Generation};
use routes::Open;
use ssh_proxy::client::SshClient;
use std::collections::HashMap;
use std::sync::Arc;
use tokio::sync::{Notify, Semaphore};
use vpn::client::VpnClient;

/// Commands that run at once, in all VMs. Each holds a stream and up to 16 MiB of output.
const MAX_COMMANDS: usize = 256;
/// Files that are read or written at once. Each holds up to 64 MiB, and as much again as JSON.
const MAX_FILES: usize = 16;

/// The house's keys, as far as callers are told of them.
#[derive(Clone, Debug)]
pub struct HouseKeys {
    /// Of the VPN.
    pub vpn: Keys,
    /// Of the SSH front.
    pub ssh: SshKeys,
}

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
    ssh: SshKeys,
    leases: Leases,
    /// Told when there is a session that may be the next to end.
    sessions: Arc<Notify>,
    prover: Prover,
    network: VpcClient,
    door: VpnClient,
    front: SshClient,
    house: House,
}

impl Api {
    /// The API over a store and its VMs.
    #[must_use]
    #[expect(clippy::too_many_arguments, reason = "each is another part of the house, and there is one call")]
    pub fn new(
        config: ControlConfig,
        store: Store,
        planner: Planner,
        machines: Machines,
        default_account: AccountId,
        keys: HouseKeys,
        sessions: Arc<Notify>,
        prover: Prover,
    ) -> Self {
        let network = VpcClient::new(config.places.vpc_socket());
        let door = VpnClient::new(config.places.vpn_socket());
        let front = SshClient::new(config.places.ssh_socket());
        let house = House::new(&config.places, store.clone(), planner.clone(), machines.clone());
        Self(Arc::new(Shared {
            config,
            store,
            planner,
            machines,
            default_account,
            background: Background::default(),
            commands: Semaphore::new(MAX_COMMANDS),
            files: Semaphore::new(MAX_FILES),
            keys: keys.vpn,
            ssh: keys.ssh,
            leases: Leases::default(),
            sessions,
            prover,
            network,
            door,
            front,
            house,
        }))
    }

    /// The same when rights of identities were taken away: who uses them is cut at once.
    async fn taken(&self, place: &'static str) -> Result<Generation, Fault> {
        self.0.leases.changed();
        self.published(place).await
    }

    /// Publishes what was just written down. `place` names the change, for tests.
    async fn published(&self, place: &'static str) -> Result<Generation, Fault> {
        self.0.machines.pass(place).await;
        self.0.planner.publish().await.map_err(|error| Fault::internal(error.to_string()))
    }

    /// Whoever gathers the figures of the house.
    #[must_use]
    pub fn house(&self) -> &House {
        &self.0.house
    }

    /// All routes, with authentication, trace ids and cross-origin headers around them. Each request must carry a
    /// [`Door`] among its extensions.
    pub fn router(&self) -> Router {
        let mut router = Router::new();
        let mut open = HashMap::new();
        for route in routes::all() {
            if route.open != Open::No {
                let method =
                    route.method.to_ascii_uppercase().parse::<Method>().expect("the table has methods");
                open.insert((method, route.path), route.open);
            }
            router = router.route(route.path, route.handler);
        }
        router
            .route("/v1/vms/builds", any(unoffered::fallback))
            .route("/v1/vms/snapshots", post(unoffered::ensure_snapshot))
            .fallback(unoffered::fallback)
            .method_not_allowed_fallback(unoffered::wrong_method)
            .layer(from_fn_with_state(Gate { api: self.clone(), open: Arc::new(open) }, auth::authenticate))
            .layer(from_fn_with_state(Arc::clone(self.0.machines.ledger()), answer::envelope))
            .with_state(self.clone())
    }
}

/// Does all of something, also when its caller goes away: what is written down must be published too.
async fn whole<T: Send + 'static>(
    work: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    tokio::spawn(work).await.map_err(|error| Fault::internal(format!("it was cut short: {error}")))?
}
