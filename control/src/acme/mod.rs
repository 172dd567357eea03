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
mod nonce;
mod order;
mod proof;

pub use account::{AccountError, Accounts};
pub use challenges::Challenges;
pub use order::{Office, OrderError};

use crate::figures::Ledger;
use crate::pure::certificate::{self, Names, Schedule, Standing};
use crate::store::{CertificateRecord, StoreError, now_ms};
use model::host::{HostName, MappedName};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::{self, JoinError, JoinSet};
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
    /// Told with each decision, and when somebody wants a try at once.
    changed: Arc<Notify>,
    /// What came of orders is counted there.
    ledger: Arc<Ledger>,
}

/// What ends a wait.
enum Event {
    /// Something was decided, or somebody asks for a try.
    Changed,
    /// Orders and questions came to their ends, at least one.
    Ended(Vec<Ended>),
    /// The time that was waited for has come.
    Due,
}

/// What came of a task.
enum Outcome {
    /// An order; and how long the authority asks to be left alone, if it does.
    Order(Result<(), OrderError>, Option<Duration>),
    /// The authority was asked when to renew, which is written down.
    Asked(Result<(), StoreError>),
    /// It panicked: a fault of ours that must be seen.
    Broke(JoinError),
}

type Ended = (MappedName, Outcome);

/// What is under way, at most one task a name.
#[derive(Default)]
struct Running {
    tasks: JoinSet<Outcome>,
    names: HashMap<task::Id, MappedName>,
    /// The one that asks when to renew.
    asking: Option<task::Id>,
}

impl Running {
    fn begin(&mut self, name: MappedName, task: impl Future<Output = Outcome> + Send + 'static) -> task::Id {
        let id = self.tasks.spawn(task).id();
        self.names.insert(id, name);
        id
    }

    fn busy(&self) -> BTreeSet<MappedName> {
        self.names.values().cloned().collect()
    }

    /// Waits for an end, and takes all that there are. For ever when nothing is under way.
    async fn ended(&mut self) -> Vec<Ended> {
        let mut next = match self.tasks.join_next_with_id().await {
            Some(first) => Some(first),
            None => std::future::pending().await,
        };
        let mut ended = Vec::new();
        while let Some(joined) = next {
            let (id, outcome) = joined.unwrap_or_else(|error| (error.id(), Outcome::Broke(error)));
            self.asking = self.asking.filter(|asking| *asking != id);
            ended.extend(self.names.remove(&id).map(|name| (name, outcome)));
            next = self.tasks.try_join_next_with_id();
        }
        ended
    }
}

impl Issuer {
    /// Nothing is done before [`Issuer::run`].
    #[must_use]
    pub fn new(office: Office, domain: HostName, ledger: Arc<Ledger>) -> Self {
        let changed = office.planner.decided();
        Self { office, domain, changed, ledger }
    }

    /// Orders and renews, for ever.
    pub async fn run(self) {
        let mut running = Running::default();
        loop {
            let wait = match self.step(&mut running).await {
                Ok(wait) => wait,
                Err(error) => {
                    error!(%error, "certificates wait for the store");
                    STORE_AGAIN
                }
            };
            let event = tokio::select! {
                ended = running.ended() => Event::Ended(ended),
                () = self.changed.notified() => Event::Changed,
                () = tokio::time::sleep(wait) => Event::Due,
            };
            match event {
                Event::Changed | Event::Due => {}
                Event::Ended(ended) => self.settle(ended).await,
            }
        }
    }

    /// Begins what is due; gives how long nothing more will be.
    async fn step(&self, running: &mut Running) -> Result<Duration, StoreError> {
        let store = &self.office.store;
        if store.want_certificates(&self.wanted().await?).await? {
            self.publish().await;
        }
        let standings = store.standings().await?;
        let room = MAX_ORDERS.saturating_sub(running.names.len());
        let orders = store.orders().await?;
        let Schedule { now, look_ms } = certificate::schedule(
            &standings,
            &running.busy(),
            &orders,
            self.office.config.orders,
            room,
            now_ms(),
        );
        for name in now {
            let Some(record) = store.certificate(&name).await? else { continue };
            info!(%name, failures = record.failures, renewal = record.issued.is_some(), "ordering a certificate");
            running.begin(name, certified(self.office.clone(), record));
        }
        self.ask_when(&standings, running).await?;
        let wait = look_ms.map_or(LOOK_EVERY, |at| {
            Duration::from_millis(u64::try_from(at.saturating_sub(now_ms())).unwrap_or(0))
        });
        Ok(wait.min(LOOK_EVERY))
    }

    async fn wanted(&self) -> Result<BTreeSet<MappedName>, StoreError> {
        let store = &self.office.store;
        let folder = self.office.planner.folder().clone();
        let supplied = tokio::task::spawn_blocking(move || folder.supplied()).await.unwrap_or_default();
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

    /// Writes down what came of all that ended, and tells the doors once.
    async fn settle(&self, ended: Vec<Ended>) {
        let mut news = false;
        for (name, outcome) in ended {
            let written = match outcome {
                Outcome::Order(Ok(()), _) => {
                    self.ledger.order(true);
                    info!(%name, "there is a new certificate");
                    news = true;
                    Ok(())
                }
                Outcome::Order(Err(error), pause) => {
                    self.ledger.order(false);
                    news = true;
                    self.failed(&name, &error.to_string(), pause).await
                }
                Outcome::Broke(error) => {
                    self.ledger.order(false);
                    error!(%name, %error, "an order broke");
                    self.failed(&name, "the order broke off by a fault of Gatehouse; its log says more", None)
                        .await
                }
                Outcome::Asked(written) => written,
            };
            if let Err(error) = written {
                error!(%error, %name, "the outcome of an order waits for the store");
            }
        }
        if news {
            self.publish().await;
        }
    }

    async fn failed(&self, name: &MappedName, why: &str, pause: Option<Duration>) -> Result<(), StoreError> {
        let why = proof::bounded(why);
        let failures = self.office.store.certificate(name).await?.map_or(0, |record| record.failures);
        let wait = certificate::back_off(failures + 1, pause);
        warn!(%name, why, again_in_s = wait.as_secs(), "no certificate");
        let next = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
        self.office.store.certificate_failed(name, &why, next).await
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
        running: &mut Running,
    ) -> Result<(), StoreError> {
        if running.asking.is_some() {
            return Ok(());
        }
        let (now, busy) = (now_ms(), running.busy());
        let next = standings.iter().find(|(name, standing)| {
            standing.renew_ms.is_some() && standing.ask_ms <= now && !busy.contains(*name)
        });
        let Some((name, _)) = next else { return Ok(()) };
        let Some(record) = self.office.store.certificate(name).await? else { return Ok(()) };
        running.asking = Some(running.begin(name.clone(), asked(self.office.clone(), record)));
        Ok(())
    }
}

/// Writes down when the authority wants the certificate renewed.
async fn asked(office: Office, record: CertificateRecord) -> Outcome {
    let (renew_ms, again) = asked_when(&office, &record).await;
    let again = i64::try_from(again.max(ASK_LEAST).as_millis()).unwrap_or(i64::MAX);
    Outcome::Asked(office.store.plan_renewal(&record.name, renew_ms, now_ms().saturating_add(again)).await)
}

async fn asked_when(office: &Office, record: &CertificateRecord) -> (Option<i64>, Duration) {
    let leaf = record.issued.as_ref().and_then(|issued| proof::leaf(&issued.chain_pem));
    let Some(identifier) = leaf.as_ref().and_then(order::identifier) else { return (None, ASK_EVERY) };
    let account = match office.accounts.get().await {
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

async fn certified(office: Office, record: CertificateRecord) -> Outcome {
    let (outcome, pause) = client::with_pause(office.certify(&record)).await;
    Outcome::Order(outcome, pause)
}
