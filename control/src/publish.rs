//! Turns what is stored into views and publishes them, one decision at a time.
//!
//! Whoever changed the store asks for a publication and waits for it. Those who ask while one is under way are served
//! together by the next, so a hundred changes at once cost two or three publications.

use crate::acme::Challenges;
use crate::certs;
use crate::pure::plan::{Facts, Plan, plan};
use crate::pure::ssh::{SshFacts, ssh_view};
use crate::ssh::SshKeys;
use crate::store::{CertificateRecord, Decision, SessionRecord, Store, StoreError};
use crate::wireguard::Keys;
use feed::publish::{PublishError, Publisher};
use feed::subscribe::Feed;
use model::config::ControlConfig;
use model::id::Generation;
use model::key::SecretKey;
use model::ssh::SshView;
use model::view::{CertificateEntry, ChallengeEntry, EdgeView, View, VpcView, VpnView};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinError;
use tracing::{error, info, warn};

/// Requests that wait; each belongs to an API call, and those are bounded far below.
const QUEUE: usize = 1024;
/// Wait before a publication that failed is tried again without being asked: the disk may be full for a while.
const RETRY: Duration = Duration::from_secs(1);

/// Why a decision was not published. The last one stays in force, and it is tried again.
#[derive(Clone, Debug, Error)]
pub enum PlanError {
    /// The store did not tell what there is.
    #[error("no decision: {0}")]
    Store(Arc<StoreError>),
    /// A view could not be made durable.
    #[error("decision not published: {0}")]
    Publish(Arc<PublishError>),
    /// The folder of views cannot be made.
    #[error("the folder of views cannot be made: {0}")]
    Folder(Arc<io::Error>),
    /// The task that writes ended.
    #[error("decision not published: the writing task ended: {0}")]
    Task(Arc<JoinError>),
    /// Control is shutting down.
    #[error("decision not published: control is shutting down")]
    Closed,
}

type Answer = Result<Generation, PlanError>;

/// Asks for publications. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Planner {
    requests: mpsc::Sender<oneshot::Sender<Answer>>,
    certificates: Arc<AtomicUsize>,
    publisher: Publisher,
    decided: Arc<Notify>,
}

impl Planner {
    /// Starts the publishing task and the one that announces.
    ///
    /// # Errors
    /// When the folder of views cannot be made, or the store does not answer.
    pub async fn start(
        config: &ControlConfig,
        store: Store,
        keys: Keys,
        ssh: SshKeys,
        challenges: Challenges,
    ) -> Result<Self, PlanError> {
        let folder = config.places.feed();
        let publisher = Publisher::new(&folder).map_err(|error| PlanError::Folder(Arc::new(error)))?;
        let me = rustix::process::getuid().as_raw();
        let published = newest::<EdgeView>(&folder, me)
            .max(newest::<VpcView>(&folder, me))
            .max(newest::<VpnView>(&folder, me))
            .max(newest::<SshView>(&folder, me));
        store.raise_generation(published).await.map_err(|error| PlanError::Store(Arc::new(error)))?;
        tokio::spawn(announce(publisher.clone(), config.places.feed_socket()));
        let (requests, asked) = mpsc::channel(QUEUE);
        let certificates = Arc::new(AtomicUsize::new(0));
        let tls = config.places.tls();
        let decided = Arc::new(Notify::new());
        let writer = Writer {
            store,
            publisher: publisher.clone(),
            keys,
            ssh,
            challenges,
            config: config.clone(),
            certificates: Arc::clone(&certificates),
            decided: Arc::clone(&decided),
        };
        tokio::spawn(writer.run(asked));
        let planner = Self { requests, certificates, publisher, decided };
        tokio::spawn(follow_certificates(tls, planner.clone()));
        Ok(planner)
    }

    /// Publishes what the store holds now; returns the decision's number once its files are durable.
    ///
    /// # Errors
    /// See [`PlanError`]. It is tried again without being asked.
    pub async fn publish(&self) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.requests.send(answer).await.map_err(|_| PlanError::Closed)?;
        answered.await.map_err(|_| PlanError::Closed)?
    }

    /// Waits until edge-proxy has a decision in force. For ever while it is away: the caller bounds it.
    pub async fn taken_over_by_doors(&self, generation: Generation) {
        self.publisher.taken_over::<EdgeView>(generation).await;
    }

    /// Told after each decision. One waits for it: who keeps the certificates.
    #[must_use]
    pub fn decided(&self) -> Arc<Notify> {
        Arc::clone(&self.decided)
    }

    /// Certificates in the newest decision.
    #[must_use]
    pub fn certificates(&self) -> usize {
        self.certificates.load(Ordering::Relaxed)
    }
}

struct Writer {
    store: Store,
    publisher: Publisher,
    keys: Keys,
    ssh: SshKeys,
    challenges: Challenges,
    config: ControlConfig,
    certificates: Arc<AtomicUsize>,
    decided: Arc<Notify>,
}

impl Writer {
    async fn run(self, mut asked: mpsc::Receiver<oneshot::Sender<Answer>>) {
        let mut owed = false;
        loop {
            let mut waiting = Vec::new();
            let received = if owed {
                tokio::select! {
                    received = asked.recv_many(&mut waiting, QUEUE) => received,
                    () = tokio::time::sleep(RETRY) => 1,
                }
            } else {
                asked.recv_many(&mut waiting, QUEUE).await
            };
            if received == 0 {
                return;
            }
            let answer = self.once().await;
            if let Err(error) = &answer {
                error!(%error, "the last decision stays in force; trying again");
            }
            owed = answer.is_err();
            for caller in waiting {
                // Nobody waits any more when the API call was given up.
                drop(caller.send(answer.clone()));
            }
        }
    }

    async fn once(&self) -> Answer {
        let decision = self.store.decide().await.map_err(|error| PlanError::Store(Arc::new(error)))?;
        let generation = decision.generation;
        let (publisher, config) = (self.publisher.clone(), self.config.clone());
        let (count, keys, ssh) = (Arc::clone(&self.certificates), self.keys.clone(), self.ssh.clone());
        let challenges = self.challenges.all();
        let writing = tokio::task::spawn_blocking(move || {
            let certificates = certs::all(&config.places.tls(), issued(&keys, &decision.certificates));
            count.store(certificates.len(), Ordering::Relaxed);
            write(&publisher, &config, &keys, &ssh, decision, &certificates, &challenges)
        });
        match writing.await {
            Ok(Ok(())) => {
                self.decided.notify_one();
                Ok(generation)
            }
            Ok(Err(error)) => Err(PlanError::Publish(Arc::new(error))),
            Err(error) => Err(PlanError::Task(Arc::new(error))),
        }
    }
}

/// Makes the views of a decision and writes them. Blocks on the disk.
fn write(
    publisher: &Publisher,
    config: &ControlConfig,
    keys: &Keys,
    ssh: &SshKeys,
    decision: Decision,
    certificates: &[CertificateEntry],
    challenges: &[ChallengeEntry],
) -> Result<(), PublishError> {
    let Decision {
        generation,
        vms,
        mappings,
        domains,
        gone,
        vpcs,
        sessions,
        rules,
        services,
        peerings,
        tokens,
        grants,
        ssh_keys,
        certificates: _,
    } = decision;
    let sessions = opened(keys, sessions);
    let Plan { edge, vpc, vpn } = plan(&Facts {
        generation,
        vms: &vms,
        mappings: &mappings,
        domains: &domains,
        gone: &gone,
        vpcs: &vpcs,
        sessions: &sessions,
        rules: &rules,
        services: &services,
        peerings: &peerings,
        door: &config.vpn,
        server_key: keys.server(),
        certificates,
        challenges,
        domain: &config.domain,
        network: config.default_network,
    });
    let ssh = ssh_view(&SshFacts {
        generation,
        vms: &vms,
        tokens: &tokens,
        grants: &grants,
        keys: &ssh_keys,
        host_keys: ssh.host_keys(),
        login_authority: ssh.login_authority(),
    });
    // vpc first: a route is of no use before its port may be dialled, nor is a client before its network stands.
    publisher.publish(&vpc, None)?;
    publisher.publish(&vpn, config.vpn_gid)?;
    publisher.publish(&ssh, config.ssh_gid)?;
    publisher.publish(&edge, config.edge_gid)
}

/// The sessions with their second secrets. One that does not open keeps its client out, and nobody else.
fn opened(keys: &Keys, sessions: Vec<SessionRecord>) -> Vec<(SessionRecord, SecretKey)> {
    let open = |session: SessionRecord| match keys.preshared(&session) {
        Ok(secret) => Some((session, secret)),
        Err(error) => {
            warn!(session = %session.id, %error, "a VPN session cannot be used");
            None
        }
    };
    sessions.into_iter().filter_map(open).collect()
}

/// The authority's certificates with their keys. One whose key does not open is left out, and ordered anew when it is
/// due.
fn issued(keys: &Keys, records: &[CertificateRecord]) -> Vec<CertificateEntry> {
    let open = |record: &CertificateRecord| {
        let (name, issued) = (record.name.to_string(), record.issued.as_ref()?);
        match keys.seal().open_bytes(&name, &issued.sealed_key) {
            Ok(key) => Some(CertificateEntry {
                chain_pem: issued.chain_pem.clone(),
                key_pem: String::from_utf8_lossy(&key).into_owned(),
                names: vec![name],
            }),
            Err(error) => {
                warn!(%name, %error, "a certificate cannot be used");
                None
            }
        }
    };
    records.iter().filter_map(open).collect()
}

fn newest<V: View>(folder: &std::path::Path, me: u32) -> Generation {
    Feed::<V>::open(folder, &[me]).current().map_or(Generation(0), |view| view.generation())
}

/// Serves announcements for ever. A reader without them still has the files.
async fn announce(publisher: Publisher, socket: PathBuf) {
    loop {
        let ended = publisher.clone().announce(&socket).await;
        warn!(?ended, "announcements of views are interrupted");
        tokio::time::sleep(RETRY).await;
    }
}

/// Publishes when the certificates change.
async fn follow_certificates(folder: PathBuf, planner: Planner) {
    let mut told = false;
    loop {
        match certs::Watch::new(&folder) {
            Ok(watch) => {
                told = false;
                while let Ok(()) = watch.changed().await {
                    info!("the certificates changed");
                    if let Err(error) = planner.publish().await {
                        warn!(%error, "new certificates wait");
                    }
                }
            }
            Err(error) if !told => {
                warn!(folder = %folder.display(), %error, "changes of certificates go unnoticed");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}
