//! The decider: API, state, plans, and the views that it publishes.
//!
//! ```text
//! request ─► api ─► vms ─► store (the intent) ─► publish (views for edge-proxy, vpc, vpn, ssh-proxy)
//!                    │                        └► the supervisor of the VMs, the agent inside a VM
//!                    └◄─ vms::follow ◄─ what the supervisor tells
//! ```
//! What is decided without effects is in [`pure`]. No byte to or from a VM's ports passes here: while control is
//! away, everything that was mapped goes on to be served.

pub mod acme;
pub mod agent;
pub mod api;
pub mod certs;
pub mod domains;
pub mod fault;
pub mod figures;
pub mod keys;
pub mod publish;
pub mod pure;
mod random;
pub mod seal;
pub mod serve;
pub mod ssh;
pub mod store;
pub mod vms;
pub mod wireguard;

use acme::{Accounts, Challenges, Issuer, Office};
use api::{Api, HouseKeys};
use model::config::ControlConfig;
use publish::{PlanError, Planner};
use serve::{Listeners, ServeError};
use ssh::{SshKeys, SshKeysError};
use ssh_proxy::client::SshClient;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use store::{Store, StoreError};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tracing::info;
use vms::{FailPoints, Machines};
use vpn::client::VpnClient;
use wireguard::{Keys, KeysError};

/// The database, below the data directory.
const DATABASE: &str = "control.db";

/// Why control cannot start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A directory cannot be made.
    #[error("the directory {path} cannot be made: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be had.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VPN has no keys.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The SSH front has no keys.
    #[error(transparent)]
    Ssh(#[from] SshKeysError),
    /// Nothing can be published.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A listener cannot be had.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Control, ready to serve.
#[derive(Debug)]
pub struct Control {
    listeners: Listeners,
    api: Api,
}

impl Control {
    /// Opens the store, publishes what it holds, follows the supervisor and binds the listeners.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: ControlConfig, failpoints: FailPoints) -> Result<Self, StartError> {
        for path in [&config.places.data, &config.places.run] {
            std::fs::create_dir_all(path)
                .map_err(|source| StartError::Directory { path: path.clone(), source })?;
        }
        let store = Store::open(&config.places.data.join(DATABASE)).await?;
        let default_account = store.default_account().await?.id;
        store.settle_clients(config.vpn.pool, config.vpn.hide_clients).await?;
        let keys = Keys::load(&config.places.data, &store).await?;
        let host = ssh::host(config.ssh.host.as_ref(), &config.domain)?;
        let ssh = SshKeys::load(keys.seal(), &store, host).await?;
        let challenges = Challenges::default();
        let planner =
            Planner::start(&config, store.clone(), keys.clone(), ssh.clone(), challenges.clone()).await?;
        let generation = planner.publish().await?;
        let machines = Machines::new(&config, store.clone(), planner.clone(), &ssh, failpoints);
        tokio::spawn(vms::follow(machines.clone()));
        let front = SshClient::new(config.places.ssh_socket());
        tokio::spawn(vms::follow_wants(machines.clone(), front));
        let sessions = Arc::new(Notify::new());
        let door = VpnClient::new(config.places.vpn_socket());
        tokio::spawn(wireguard::sweep(store.clone(), planner.clone(), door, Arc::clone(&sessions)));
        if let Some(acme) = &config.acme {
            let office = Office {
                accounts: Accounts::new(acme.clone(), store.clone(), keys.clone()),
                config: acme.clone(),
                store: store.clone(),
                keys: keys.clone(),
                planner: planner.clone(),
                challenges,
            };
            tokio::spawn(Issuer::new(office, config.domain.clone(), Arc::clone(machines.ledger())).run());
        }
        let prover = domains::prover(&config.domains);
        if let Some(hours) = config.domains.recheck_hours {
            tokio::spawn(domains::recheck(hours, store.clone(), planner.clone(), prover.clone()));
        }
        let listeners = Listeners::bind(&config).await?;
        info!(%generation, domain = %config.domain, tcp = ?listeners.tcp_address(), "control is up");
        Ok(Self {
            listeners,
            api: Api::new(
                config,
                store,
                planner,
                machines,
                default_account,
                HouseKeys { vpn: keys, ssh },
                sessions,
                prover,
            ),
        })
    }

    /// Where plain HTTP is served.
    #[must_use]
    pub fn tcp_address(&self) -> Option<std::net::SocketAddr> {
        self.listeners.tcp_address()
    }

    /// Where Prometheus may ask.
    #[must_use]
    pub fn metrics_address(&self) -> Option<std::net::SocketAddr> {
        self.listeners.metrics_address()
    }

    /// Serves until `stop` is true.
    pub async fn serve(self, stop: watch::Receiver<bool>) {
        self.listeners.serve(&self.api, stop).await;
    }
}

#[cfg(test)]
mod tests;
