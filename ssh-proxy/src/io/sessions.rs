//! The sessions that live, and the stopped VMs that they wait for.

use crate::client::SessionStatus;
use crate::io::audit::Who;
use model::id::{SshSessionId, VmId};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};

/// One session's own place.
#[derive(Debug)]
pub struct Live {
    /// Who.
    pub who: Who,
    /// Told when it is to end.
    pub ended: Notify,
    since: Instant,
    channels: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    carried: Arc<Carried>,
}

/// What all sessions carried, also those that are over.
#[derive(Debug, Default)]
struct Carried {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Live {
    /// Says what the session carries.
    pub fn count(&self, channels: usize, (received, sent): (u64, u64)) {
        self.channels.store(channels as u64, Ordering::Relaxed);
        let received_before = self.received.swap(received, Ordering::Relaxed);
        let sent_before = self.sent.swap(sent, Ordering::Relaxed);
        self.carried.received.fetch_add(received.saturating_sub(received_before), Ordering::Relaxed);
        self.carried.sent.fetch_add(sent.saturating_sub(sent_before), Ordering::Relaxed);
    }

    /// Seconds since the login.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        self.since.elapsed().as_secs()
    }

    fn status(&self) -> SessionStatus {
        SessionStatus {
            id: self.who.session.clone(),
            vm: self.who.login.vm().clone(),
            user: self.who.login.user().clone(),
            principal: self.who.login.principal().clone(),
            client: self.who.client,
            seconds: self.seconds(),
            channels: u32::try_from(self.channels.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
            received_bytes: self.received.load(Ordering::Relaxed),
            sent_bytes: self.sent.load(Ordering::Relaxed),
        }
    }
}

#[derive(Debug, Default)]
struct All {
    live: BTreeMap<SshSessionId, Arc<Live>>,
    of_vm: HashMap<VmId, u32>,
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    all: Arc<Mutex<All>>,
    carried: Arc<Carried>,
    wanted: Arc<watch::Sender<BTreeMap<VmId, u32>>>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            all: Arc::default(),
            carried: Arc::default(),
            wanted: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }
}

/// A session's entry, as long as it is held.
#[derive(Debug)]
pub struct Entry {
    sessions: Sessions,
    /// The session.
    pub live: Arc<Live>,
}

/// That somebody waits for a VM, as long as it is held.
#[derive(Debug)]
pub struct Wish {
    sessions: Sessions,
    vm: VmId,
}

impl Sessions {
    fn all(&self) -> MutexGuard<'_, All> {
        // Nothing that panics runs under the lock.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a session, unless its VM has `most` already.
    #[must_use]
    pub fn add(&self, who: Who, most: u32) -> Option<Entry> {
        let mut all = self.all();
        let count = all.of_vm.entry(who.login.vm().clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        let live = Arc::new(Live {
            who,
            ended: Notify::new(),
            since: Instant::now(),
            channels: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            carried: Arc::clone(&self.carried),
        });
        all.live.insert(live.who.session.clone(), Arc::clone(&live));
        drop(all);
        Some(Entry { sessions: self.clone(), live })
    }

    /// What lives, of one VM or all.
    #[must_use]
    pub fn list(&self, vm: Option<&VmId>) -> Vec<SessionStatus> {
        let of_vm = |live: &&Arc<Live>| vm.is_none_or(|vm| live.who.login.vm() == vm);
        self.all().live.values().filter(of_vm).map(|live| live.status()).collect()
    }

    /// How many sessions live, with how many channels.
    #[must_use]
    pub fn open(&self) -> (u64, u64) {
        let all = self.all();
        let channels = all.live.values().map(|live| live.channels.load(Ordering::Relaxed)).sum();
        (all.live.len() as u64, channels)
    }

    /// Bytes that channels of all sessions carried since the start: from clients, and to them.
    #[must_use]
    pub fn carried(&self) -> (u64, u64) {
        (self.carried.received.load(Ordering::Relaxed), self.carried.sent.load(Ordering::Relaxed))
    }

    /// Ends one; says whether it was there.
    #[must_use]
    pub fn end(&self, session: &SshSessionId) -> bool {
        let live = self.all().live.get(session).cloned();
        live.inspect(|live| live.ended.notify_one()).is_some()
    }

    /// Says that somebody waits for a stopped VM.
    #[must_use]
    pub fn wish(&self, vm: &VmId) -> Wish {
        self.wanted.send_modify(|wanted| *wanted.entry(vm.clone()).or_default() += 1);
        Wish { sessions: self.clone(), vm: vm.clone() }
    }

    /// The VMs that somebody waits for.
    #[must_use]
    pub fn wanted(&self) -> watch::Receiver<BTreeMap<VmId, u32>> {
        self.wanted.subscribe()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut all = self.sessions.all();
        all.live.remove(&self.live.who.session);
        let vm = self.live.who.login.vm();
        if let Some(count) = all.of_vm.get_mut(vm) {
            *count -= 1;
            if *count == 0 {
                all.of_vm.remove(vm);
            }
        }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        self.sessions.wanted.send_modify(|wanted| {
            if let Some(count) = wanted.get_mut(&self.vm) {
                *count -= 1;
                if *count == 0 {
                    wanted.remove(&self.vm);
                }
            }
        });
    }
}
