//! Certificates for mapped names, from an authority that speaks ACME (RFC 8555): ordered when a name is mapped,
//! renewed on a schedule, never because a stranger asked for a name.
//!
//! ```text
//!            wanted, due, within the budget          a certificate
//!   Waiting ────────────────────────────────► Ordering ──────────► Serving ─┐ renewal due
//!      ▲                                         │ a failure: told, and     │
//!      └───────────── next_ms ◄──────────────────┘ tried again later ◄──────┘
//! ```
//! A certificate that serves goes on to until its successor is in the doors' table.

mod account;
mod challenges;
mod client;
mod order;
mod proof;

pub use account::{AccountError, Accounts};
pub use challenges::Challenges;
pub use order::{Office, OrderError};

use crate::certs;
use crate::pure::certificate::{self, Names, Schedule, Standing};
use crate::store::{CertificateRecord, StoreError, now_ms};
use model::host::{HostName, MappedName};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

/// Orders under way at once: enough to certify a thousand names in half a minute, and few for the authority.
const MAX_ORDERS: usize = 64;
/// Longest sleep without a look: the folder of certificates and the clock tell nothing of themselves.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// Wait after the store did not answer.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Between two questions when to renew, when the authority names no time (RFC 9773 section 4.3.2 advises 6 hours).
const ASK_EVERY: Duration = Duration::from_secs(6 * 3600);
/// Shortest such time that it may name.
const ASK_LEAST: Duration = Duration::from_secs(60);

/// Keeps the certificates. One task for the whole house.
#[derive(Debug)]
pub struct Issuer {
    office: Office,
    domain: HostName,
    folder: PathBuf,
    /// Told with each decision, and when somebody wants a try at once.
    changed: Arc<Notify>,
}

/// What ends a wait.
enum Event {
    /// Something was decided, or somebody asks for a try.
    Changed,
    /// An order came to its end.
    Ended(MappedName, Result<(), OrderError>, Option<Duration>),
    /// The time that was waited for has come.
    Due,
}

type Ended = (MappedName, Result<(), OrderError>, Option<Duration>);

impl Issuer {
    /// Nothing is done before [`Issuer::run`].
    #[must_use]
    pub fn new(office: Office, domain: HostName, folder: PathBuf, changed: Arc<Notify>) -> Self {
        Self { office, domain, folder, changed }
    }

    /// Orders and renews, for ever.
    pub async fn run(self) {
        let mut running: JoinSet<Ended> = JoinSet::new();
        let mut busy = BTreeSet::new();
        loop {
            let wait = match self.step(&mut running, &mut busy).await {
                Ok(wait) => wait,
                Err(error) => {
                    error!(%error, "certificates wait for the store");
                    STORE_AGAIN
                }
            };
            match self.event(&mut running, wait).await {
                Event::Changed | Event::Due => {}
                Event::Ended(name, outcome, pause) => {
                    busy.remove(&name);
                    if let Err(error) = self.ended(&name, outcome, pause).await {
                        error!(%error, %name, "the outcome of an order waits for the store");
                    }
                }
            }
        }
    }

    async fn event(&self, running: &mut JoinSet<Ended>, wait: Duration) -> Event {
        loop {
            tokio::select! {
                () = self.changed.notified() => return Event::Changed,
                () = tokio::time::sleep(wait) => return Event::Due,
                Some(ended) = running.join_next() => match ended {
                    Ok((name, outcome, pause)) => return Event::Ended(name, outcome, pause),
                    // Its name stays busy until the next start; a panic is a fault of ours that must be seen.
                    Err(error) => error!(%error, "an order broke"),
                },
            }
        }
    }

    /// Begins what is due; gives how long nothing more will be.
    async fn step(
        &self,
        running: &mut JoinSet<Ended>,
        busy: &mut BTreeSet<MappedName>,
    ) -> Result<Duration, StoreError> {
        let store = &self.office.store;
        if store.want_certificates(&self.wanted().await?).await? {
            self.publish().await;
        }
        let standings = store.standings().await?;
        let room = MAX_ORDERS.saturating_sub(running.len());
        let orders = store.orders().await?;
        let Schedule { now, look_ms } =
            certificate::schedule(&standings, busy, &orders, self.office.config.orders, room, now_ms());
        for name in now {
            let Some(record) = store.certificate(&name).await? else { continue };
            info!(%name, failures = record.failures, renewal = record.issued.is_some(), "ordering a certificate");
            busy.insert(name);
            running.spawn(certified(self.office.clone(), record));
        }
        self.ask_when(&standings, busy).await?;
        let wait = look_ms.map_or(LOOK_EVERY, |at| {
            Duration::from_millis(u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0))
        });
        Ok(wait.min(LOOK_EVERY))
    }

    async fn wanted(&self) -> Result<BTreeSet<MappedName>, StoreError> {
        let store = &self.office.store;
        let folder = self.folder.clone();
        let supplied =
            tokio::task::spawn_blocking(move || certs::supplied(&folder)).await.unwrap_or_default();
        let names = Names {
            config: &self.office.config,
            preview: &self.domain,
            mappings: &store.mappings().await?,
            domains: &store.domains().await?,
            wishes: &store.wildcard_wishes().await?,
            supplied: &supplied,
        };
        Ok(certificate::wanted(&names, now_ms()))
    }

    /// Writes down what came of an order, and tells the doors.
    async fn ended(
        &self,
        name: &MappedName,
        outcome: Result<(), OrderError>,
        pause: Option<Duration>,
    ) -> Result<(), StoreError> {
        match outcome {
            Ok(()) => info!(%name, "there is a new certificate"),
            Err(error) => {
                let why = proof::bounded(&error.to_string());
                let failures = self.office.store.certificate(name).await?.map_or(0, |record| record.failures);
                let wait = certificate::back_off(failures + 1, pause);
                warn!(%name, why, again_in_s = wait.as_secs(), "no certificate");
                let next = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
                self.office.store.certificate_failed(name, &why, next).await?;
            }
        }
        self.publish().await;
        Ok(())
    }

    async fn publish(&self) {
        if let Err(error) = self.office.planner.publish().await {
            warn!(%error, "the doors hear later of a certificate");
        }
    }

    /// Asks the authority when to renew (RFC 9773), for one certificate at a time: there are hours for each.
    async fn ask_when(
        &self,
        standings: &BTreeMap<MappedName, Standing>,
        busy: &BTreeSet<MappedName>,
    ) -> Result<(), StoreError> {
        let now = now_ms();
        let next = standings.iter().find(|(name, standing)| {
            standing.renew_ms.is_some() && standing.ask_ms <= now && !busy.contains(*name)
        });
        let Some((name, _)) = next else { return Ok(()) };
        let Some(record) = self.office.store.certificate(name).await? else { return Ok(()) };
        let (renew_ms, again) = self.asked_when(&record).await;
        let again = i64::try_from(again.max(ASK_LEAST).as_millis()).unwrap_or(i64::MAX);
        self.office.store.plan_renewal(&record.name, renew_ms, now.saturating_add(again)).await?;
        self.changed.notify_one();
        Ok(())
    }

    async fn asked_when(&self, record: &CertificateRecord) -> (Option<i64>, Duration) {
        let leaf = record.issued.as_ref().and_then(|issued| proof::leaf(&issued.chain_pem));
        let Some(identifier) = leaf.as_ref().and_then(order::identifier) else { return (None, ASK_EVERY) };
        let account = match self.office.accounts.get().await {
            Ok(account) => account,
            Err(error) => {
                warn!(%error, "the authority cannot be asked when to renew");
                return (None, ASK_EVERY);
            }
        };
        match account.renewal_info(&identifier).await {
            Ok((info, again)) => {
                let ms = |time: time::OffsetDateTime| time.unix_timestamp().saturating_mul(1000);
                let window = info.suggested_window;
                (Some(certificate::within(&record.name, ms(window.start), ms(window.end))), again)
            }
            Err(instant_acme::Error::Unsupported(_)) => (None, 4 * ASK_EVERY),
            Err(error) => {
                warn!(name = %record.name, %error, "the authority does not say when to renew");
                (None, ASK_EVERY)
            }
        }
    }
}

async fn certified(office: Office, record: CertificateRecord) -> Ended {
    let (outcome, pause) = client::with_pause(office.certify(&record)).await;
    (record.name, outcome, pause)
}
