//! The figures of the whole house: control's own, and those that the doors tell it (docs/observability.md).

mod ledger;

pub use ledger::{Ledger, Operation};

use crate::publish::Planner;
use crate::pure::phase::Phase;
use crate::store::{Store, StoreError};
use crate::vms::Machines;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use model::config::Places;
use model::figures::{CONTENT_TYPE, Figures};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tracing::{debug, error};

const PHASES: [Phase; 11] = [
    Phase::Building,
    Phase::Starting,
    Phase::Resuming,
    Phase::Running,
    Phase::Suspending,
    Phase::Suspended,
    Phase::Stopping,
    Phase::Killing,
    Phase::Stopped,
    Phase::Lost,
    Phase::Deleting,
];

/// A process that tells its figures, and how their names begin.
#[derive(Debug)]
struct Teller {
    process: &'static str,
    prefix: &'static str,
    socket: PathBuf,
}

/// Gathers the figures. Cheap to clone.
#[derive(Clone, Debug)]
pub struct House(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    store: Store,
    planner: Planner,
    machines: Machines,
    tellers: [Teller; 3],
    started: SystemTime,
}

impl House {
    /// The house whose processes meet at these places.
    #[must_use]
    pub fn new(places: &Places, store: Store, planner: Planner, machines: Machines) -> Self {
        let teller = |process, prefix, socket| Teller { process, prefix, socket };
        let tellers = [
            teller("edge-proxy", "gatehouse_edge_", places.edge_figures()),
            teller("ssh-proxy", "gatehouse_ssh_", places.ssh_figures()),
            teller("vpn", "gatehouse_vpn_", places.vpn_figures()),
        ];
        Self(Arc::new(Parts { store, planner, machines, tellers, started: SystemTime::now() }))
    }

    /// All that is known now. A process that does not answer is told of as such, and its figures are missing.
    pub async fn gather(&self) -> Figures {
        let parts = &self.0;
        let [edge, ssh, vpn] = parts.tellers.each_ref().map(Teller::ask);
        let told = <[Option<Figures>; 3]>::from(tokio::join!(edge, ssh, vpn));
        let supervisor = ("vmm", u64::from(parts.machines.supervisor_is_there()));
        let up =
            parts.tellers.iter().zip(&told).map(|(teller, told)| (teller.process, u64::from(told.is_some())));
        let mut figures = Figures::default();
        figures.gauges(
            "gatehouse_up",
            "Whether the process answered control: 1, or 0.",
            up.chain([supervisor]).map(|(process, up)| (vec![("process", process)], up)),
        );
        parts.tell(&mut figures).await;
        told.into_iter().flatten().for_each(|others| figures.extend(others));
        figures
    }
}

impl Teller {
    async fn ask(&self) -> Option<Figures> {
        match feed::figures::ask(&self.socket, self.prefix).await {
            Ok(figures) => Some(figures),
            Err(error) => {
                debug!(process = self.process, %error, "no figures");
                None
            }
        }
    }
}

impl Parts {
    async fn tell(&self, figures: &mut Figures) {
        let version = vec![("version", env!("CARGO_PKG_VERSION"))];
        let began = self.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        figures.gauges("gatehouse_control_info", "What runs.", [(version, 1_u64)]);
        figures.gauge(
            "gatehouse_control_start_time_seconds",
            "When it was started, since the Unix epoch.",
            began.as_secs(),
        );
        self.machines.ledger().tell(figures);
        figures.gauge(
            "gatehouse_control_certificates",
            "Certificates in the newest decision.",
            self.planner.certificates() as u64,
        );
        // No value is better than a wrong one.
        if let Err(error) = self.tell_of_store(figures).await {
            error!(%error, "the store's figures are missing");
        }
    }

    async fn tell_of_store(&self, figures: &mut Figures) -> Result<(), StoreError> {
        let (vms, bytes) = (self.store.phases().await?, self.store.bytes().await?);
        let generation = self.store.generation().await?;
        let count = |phase| vms.iter().find(|(other, _)| *other == phase).map_or(0, |(_, count)| *count);
        figures.gauges(
            "gatehouse_control_vms",
            "VMs, by where they are in their life.",
            PHASES.map(|phase| (vec![("state", phase.as_str())], count(phase))),
        );
        figures.gauge("gatehouse_control_store_bytes", "Size of the database.", bytes);
        figures.gauge("gatehouse_control_generation", "The newest decision.", generation.0);
        Ok(())
    }
}

/// What a Prometheus server asks: the figures, and nothing else.
pub fn router(house: House) -> Router {
    Router::new().route("/metrics", get(document)).with_state(house)
}

async fn document(State(house): State<House>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], house.gather().await.text())
}
