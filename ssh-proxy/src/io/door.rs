//! Where clients come in: who is heard, how many, and for how long without a login.

use crate::io::audit::{Audit, Reason, Who};
use crate::io::figures::Reached;
use crate::io::known::Known;
use crate::io::leg::Leg;
use crate::io::login::Visitor;
use crate::io::session::Session;
use crate::io::sessions::Sessions;
use crate::io::vm::{self, HostKeys, QUEUE};
use crate::pure::bridge::channel::Budget;
use crate::pure::throttle::{Source, Throttle};
use crate::pure::visitors::{Places, Visitors};
use model::config::SshConfig;
use model::id::SshSessionId;
use model::login::Login;
use rand::RngCore;
use russh::{client, server};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{timeout, timeout_at};
use tracing::{debug, warn};
use vpc::client::VpcClient;

/// Pause after a connection could not be accepted: the process is out of descriptors, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What all sessions together may let wait beyond the windows of VMs: thirty uploads at their fastest.
const WINDOW_BUDGET: u64 = 512 << 20;

/// What all connections share.
#[derive(Debug)]
pub struct Front {
    /// The settings.
    pub config: SshConfig,
    /// The log.
    pub audit: Audit,
    /// The sessions.
    pub sessions: Sessions,
    /// Dials VMs.
    pub vpc: VpcClient,
    /// Tells VMs' host keys.
    pub host_keys: Arc<dyn HostKeys>,
    /// Of legs to VMs.
    pub vm_settings: Arc<client::Config>,
    /// What may wait.
    pub budget: Arc<Budget>,
    /// How long clients wait for their VMs.
    pub reached: Reached,
    known: watch::Receiver<Arc<Known>>,
    throttle: Mutex<Throttle>,
    /// Connections that have not logged in.
    visitors: Mutex<Visitors<(Leg, IpAddr)>>,
    slots: Arc<Semaphore>,
}

impl Front {
    /// A front that has no client yet.
    #[must_use]
    pub fn new(
        config: SshConfig,
        audit: Audit,
        known: watch::Receiver<Arc<Known>>,
        host_keys: Arc<dyn HostKeys>,
    ) -> Arc<Self> {
        let limits = config.limits;
        let slots = usize::try_from(limits.connections).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let places = Places { all: limits.unauthenticated, of_one: limits.unauthenticated_per_address };
        Arc::new(Self {
            vpc: VpcClient::new(config.places.vpc_socket()),
            audit,
            sessions: Sessions::default(),
            host_keys,
            vm_settings: Arc::new(vm::settings()),
            budget: Arc::new(Budget::new(WINDOW_BUDGET)),
            reached: Reached::default(),
            known,
            throttle: Mutex::default(),
            visitors: Mutex::new(Visitors::new(places)),
            slots: Arc::new(Semaphore::new(slots)),
            config,
        })
    }

    /// What the newest view says.
    #[must_use]
    pub fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.borrow())
    }

    /// Tells of each view.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Known>> {
        self.known.clone()
    }

    /// Who failed how often. The lock is held for one look.
    pub fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn visitors(&self) -> MutexGuard<'_, Visitors<(Leg, IpAddr)>> {
        self.visitors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts clients for ever.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => self.come_in(stream, from),
                Err(error) => {
                    warn!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Those who are not heard get nothing but the end of their connection: an answer would cost more than theirs.
    fn come_in(self: &Arc<Self>, stream: TcpStream, from: SocketAddr) {
        let client = from.ip().to_canonical();
        let leg = Leg::new(stream);
        match self.admit(&leg, client) {
            Ok(admitted) => {
                tokio::spawn(Arc::clone(self).connection(leg, client, admitted));
            }
            Err(reason) => self.audit.refused(client, reason, None),
        }
    }

    fn admit(self: &Arc<Self>, leg: &Leg, client: IpAddr) -> Result<Admitted, Reason> {
        let source = Source::from(client);
        if !self.throttle().hears(source, Instant::now()) {
            return Err(Reason::Throttled);
        }
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Reason::Full)?;
        let place = self.visitors().come(source, (leg.clone(), client))?;
        if let Some((displaced, whose)) = place.displaced {
            displaced.cut();
            self.audit.refused(whose, Reason::Displaced, None);
        }
        Ok(Admitted { slot, visit: Visit { front: Arc::clone(self), source, number: place.number } })
    }

    async fn connection(self: Arc<Self>, leg: Leg, client: IpAddr, admitted: Admitted) {
        let Some(settings) = self.settings().await else {
            debug!("there are no host keys yet");
            return;
        };
        let Admitted { slot: _slot, visit } = admitted;
        // However this ends, russh's task ends with the connection.
        let _cut = CutAtLast(leg.clone());
        let (relay, end) = russh::relay(QUEUE);
        let (logged_in, login) = oneshot::channel();
        let tried = Arc::<AtomicBool>::default();
        let visitor = Visitor::new(Arc::clone(&self), client, relay, Arc::clone(&tried), logged_in);
        let arrived = self.arrive(settings, leg.clone(), visitor, login, client).await;
        drop(visit);
        let Some((login, running)) = arrived else {
            if !tried.load(Ordering::Relaxed) {
                self.throttle().nothing_tried(Source::from(client), Instant::now());
            }
            return;
        };
        let mut random = [0; SshSessionId::RANDOM_CHARS];
        rand::rng().fill_bytes(&mut random);
        let who = Who { session: SshSessionId::from_random(random), login, client };
        let vm = who.login.vm().clone();
        let Some(entry) = self.sessions.add(who, self.config.limits.sessions_per_vm) else {
            self.audit.refused(client, Reason::VmFull, Some(&vm));
            return;
        };
        let closed = async {
            // How russh's session ended is in the packets' end, or of no interest any more.
            running.await.ok();
        };
        Session::new(Arc::clone(&self), entry, end).run(&leg, closed).await;
    }

    async fn arrive(
        &self,
        settings: Arc<server::Config>,
        leg: Leg,
        visitor: Visitor,
        login: oneshot::Receiver<Login>,
        client: IpAddr,
    ) -> Option<(Login, server::RunningSession<Visitor>)> {
        let until =
            tokio::time::Instant::now() + Duration::from_secs(self.config.limits.login_seconds.get().into());
        let running = match timeout_at(until, server::run_stream(settings, leg, visitor)).await {
            Ok(Ok(running)) => running,
            Ok(Err(error)) => {
                debug!(%error, "no SSH client");
                return None;
            }
            Err(_) => return self.too_slow(client),
        };
        // It is dropped with russh's session, if that ends first.
        let Ok(login) = timeout_at(until, login).await else { return self.too_slow(client) };
        let login = login.ok()?;
        Some((login, running))
    }

    /// How clients are met. One that comes right after a start waits for the first view as long as it has for its login.
    async fn settings(&self) -> Option<Arc<server::Config>> {
        let wait = Duration::from_secs(self.config.limits.login_seconds.get().into());
        let mut known = self.known.clone();
        let first = timeout(wait, known.wait_for(|known| known.server.is_some())).await.ok()?.ok()?;
        first.server.clone()
    }

    fn too_slow<T>(&self, client: IpAddr) -> Option<T> {
        self.audit.refused(client, Reason::TooSlow, None);
        None
    }
}

/// Leave to be here, and to be here without a login.
struct Admitted {
    slot: OwnedSemaphorePermit,
    visit: Visit,
}

struct Visit {
    front: Arc<Front>,
    source: Source,
    number: u64,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.front.visitors().leave(self.source, self.number);
    }
}

struct CutAtLast(Leg);

impl Drop for CutAtLast {
    fn drop(&mut self) {
        self.0.cut();
    }
}
