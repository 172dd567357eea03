//! Turns what is stored into views and publishes them, one decision at a time.
//!
//! Whoever changed the store asks for a publication and waits for it. Those who ask while one is under way are served
//! together by the next, so a hundred changes at once cost two or three publications.

use crate::acme::Challenges;
use crate::certs::{self, Folder, Published, issued};
use crate::pure::plan::{Facts, Plan, plan};
use crate::pure::ssh::{SshFacts, ssh_view};
use crate::ssh::SshKeys;
use crate::store::{Decision, SessionRecord, Store, StoreError, now_ms};
use crate::wireguard::Keys;
use feed::names::NamesWriter;
use feed::publish::{PublishError, Publisher};
use feed::subscribe::Feed;
use model::config::ControlConfig;
use model::digest::Digest;
use model::host::MappedName;
use model::id::Generation;
use model::key::SecretKey;
use model::ssh::SshView;
use model::view::{CertificateEntry, ChallengeEntry, EdgeView, View, VpcView, VpnView};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// The folders of views and certificates cannot be made.
    #[error("the folder of views cannot be made: {0}")]
    Folder(Arc<io::Error>),
    /// A certificate's file could not be made durable.
    #[error("decision not published: a certificate cannot be written: {0}")]
    Certificates(Arc<io::Error>),
    /// A part of the names could not be made durable.
    #[error("decision not published: the names cannot be written: {0}")]
    Names(Arc<io::Error>),
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
    folder: Folder,
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
        issued::settle(&store, &keys).await.map_err(|error| PlanError::Store(Arc::new(error)))?;
        let files = Published::open(config.places.certificates(), config.edge_gid)
            .map_err(|error| PlanError::Folder(Arc::new(error)))?;
        let names = NamesWriter::open(config.places.names(), config.edge_gid)
            .map_err(|error| PlanError::Folder(Arc::new(error)))?;
        tokio::spawn(announce(publisher.clone(), config.places.feed_socket()));
        let (requests, asked) = mpsc::channel(QUEUE);
        let certificates = Arc::new(AtomicUsize::new(0));
        let folder = Folder::new(&config.places.tls());
        let decided = Arc::new(Notify::new());
        let writer = Writer {
            store,
            publisher: publisher.clone(),
            keys,
            ssh,
            challenges,
            config: config.clone(),
            folder: folder.clone(),
            files: Arc::new(Mutex::new(files)),
            names: Arc::new(Mutex::new(names)),
            certificates: Arc::clone(&certificates),
            decided: Arc::clone(&decided),
        };
        tokio::spawn(writer.run(asked));
        let planner = Self { requests, certificates, folder, publisher, decided };
        tokio::spawn(follow_certificates(planner.clone()));
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

    /// What the operator supplies.
    #[must_use]
    pub fn folder(&self) -> &Folder {
        &self.folder
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
    folder: Folder,
    /// Locked by the one task that writes.
    files: Arc<Mutex<Published>>,
    /// The same.
    names: Arc<Mutex<NamesWriter>>,
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
        let failed = |error| PlanError::Store(Arc::new(error));
        let decision = self.store.decide().await.map_err(failed)?;
        let generation = decision.generation;
        let missing = self.missing(&decision.certificates);
        let fresh = issued::files(&self.store, &self.keys, &missing).await.map_err(failed)?;
        let (publisher, config) = (self.publisher.clone(), self.config.clone());
        let (count, keys, ssh) = (Arc::clone(&self.certificates), self.keys.clone(), self.ssh.clone());
        let (folder, files, names) = (self.folder.clone(), Arc::clone(&self.files), Arc::clone(&self.names));
        let challenges = self.challenges.all();
        let writing = tokio::task::spawn_blocking(move || {
            let mut files = files.lock().unwrap_or_else(PoisonError::into_inner);
            let certificates = files
                .entries(&folder.pairs(), &decision.certificates, &fresh, now_ms())
                .map_err(|error| PlanError::Certificates(Arc::new(error)))?;
            count.store(certificates.len(), Ordering::Relaxed);
            let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
            let views = views(&config, &keys, &ssh, decision, &certificates, &challenges);
            write(&publisher, &config, &mut names, views)?;
            let in_force = publisher.in_force::<EdgeView>();
            let swept = files.sweep(generation, &certificates, in_force);
            if let Err(error) = swept.and(names.sweep(generation, in_force)) {
                warn!(%error, "files of old certificates or names stay for now");
            }
            Ok(())
        });
        match writing.await {
            Ok(Ok(())) => {
                self.decided.notify_one();
                Ok(generation)
            }
            Ok(Err(error)) => Err(error),
            Err(error) => Err(PlanError::Task(Arc::new(error))),
        }
    }

    /// Names whose certificates have no file yet: most often those that were issued since the last decision.
    fn missing(&self, certificates: &[(MappedName, Digest)]) -> Vec<MappedName> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        certificates.iter().filter(|(_, file)| !files.has(*file)).map(|(name, _)| name.clone()).collect()
    }
}

/// Makes the views of a decision.
fn views(
    config: &ControlConfig,
    keys: &Keys,
    ssh: &SshKeys,
    decision: Decision,
    certificates: &[CertificateEntry],
    challenges: &[ChallengeEntry],
) -> (Plan, SshView) {
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
    let plan = plan(&Facts {
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
    (plan, ssh)
}

/// Writes the views of a decision. Blocks on the disk.
fn write(
    publisher: &Publisher,
    config: &ControlConfig,
    names: &mut NamesWriter,
    (plan, ssh): (Plan, SshView),
) -> Result<(), PlanError> {
    let Plan { mut edge, vpc, vpn } = plan;
    // vpc first: a route is of no use before its port may be dialled, nor is a client before its network stands.
    let failed = |error| PlanError::Publish(Arc::new(error));
    publisher.publish(&vpc, None).map_err(failed)?;
    publisher.publish(&vpn, config.vpn_gid).map_err(failed)?;
    publisher.publish(&ssh, config.ssh_gid).map_err(failed)?;
    names.take_out(&mut edge).map_err(|error| PlanError::Names(Arc::new(error)))?;
    publisher.publish(&edge, config.edge_gid).map_err(failed)
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
async fn follow_certificates(planner: Planner) {
    let folder = planner.folder().path();
    let mut told = false;
    loop {
        match certs::Watch::new(folder) {
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
