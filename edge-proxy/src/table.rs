//! What the newest view says, made ready for look-ups: one pointer that is swapped whole.

use crate::certificates::Certificates;
use crate::challenges::Challenges;
use crate::dial::Dialer;
use crate::metrics::{Count, Metrics};
use arc_swap::ArcSwap;
use feed::blobs::Blobs;
use feed::subscribe::Feed;
use model::host::HostName;
use model::id::Generation;
use model::route::{Route, RouteTable};
use model::view::EdgeView;
use std::sync::Arc;
use tracing::{info, warn};

/// Routes and certificates of one view.
#[derive(Debug, Default)]
pub struct Table {
    routes: RouteTable,
    /// Certificates by name.
    pub certificates: Certificates,
    /// What certificate authorities ask to see.
    pub challenges: Challenges,
    /// Which decision it is.
    pub generation: Generation,
}

impl Table {
    /// How many names lead somewhere.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.routes.len()
    }

    /// Where a name leads.
    #[must_use]
    pub fn route(&self, host: &HostName) -> Option<Route> {
        self.routes.host(host)
    }
}

/// The table in force. Cheap to clone; reading takes no lock.
#[derive(Clone, Debug)]
pub struct Tables {
    current: Arc<ArcSwap<Table>>,
    blobs: Blobs,
}

impl Tables {
    /// An empty one. The certificates' files will be among these.
    #[must_use]
    pub fn new(blobs: Blobs) -> Self {
        Self { current: Arc::default(), blobs }
    }

    /// The table in force now.
    #[must_use]
    pub fn now(&self) -> arc_swap::Guard<Arc<Table>> {
        self.current.load()
    }

    /// Makes the table of a view and puts it in force. Reading certificates costs, so this may take a while.
    pub fn take_over(&self, view: &EdgeView, metrics: &Metrics) {
        let earlier = self.current.load();
        let (certificates, faults) = Certificates::of(&view.certificates, &self.blobs, &earlier.certificates);
        let (challenges, unfit) = Challenges::of(&view.challenges);
        for fault in faults.into_iter().chain(unfit) {
            metrics.count(Count::BadCertificates);
            warn!(%fault, "a certificate is left out");
        }
        let generation = view.generation;
        let table = Table { routes: RouteTable::of(view), certificates, challenges, generation };
        info!(
            generation = generation.0,
            routes = table.routes.len(),
            certificates = table.certificates.len(),
            "table in force"
        );
        self.current.store(Arc::new(table));
    }

    /// Takes over the view at hand, then each newer one, for ever.
    pub async fn follow(self, feed: Feed<EdgeView>, dialer: Dialer, metrics: Arc<Metrics>) {
        let mut changes = feed.changes();
        loop {
            changes.mark_unchanged();
            if let Some(view) = feed.current() {
                let (tables, dialer, metrics) = (self.clone(), dialer.clone(), Arc::clone(&metrics));
                let generation = view.generation;
                let made = tokio::task::spawn_blocking(move || {
                    tables.take_over(&view, &metrics);
                    dialer.retain(&view);
                })
                .await;
                match made {
                    Ok(()) => feed.in_force(generation),
                    Err(error) => warn!(%error, "a view could not be taken over; the last one stays"),
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}
