//! Answers requests of the other processes (see [`crate::client`]).

use crate::client::{Refusal, SERVER_WAIT, VpcReply, VpcRequest, VpcStatus};
use crate::dial::dial;
use crate::io::firewall;
use crate::pure::names::{CLIENTS, NetworkId};
use crate::pure::plan::WAITING_FRAMES;
use crate::switch::{LivePort, Switch, Table};
use crate::sys::tun;
use feed::wire::{Wire, WireError, WireListener};
use model::id::{Generation, ServiceId, VmId, VpcId};
use rustix::fd::{AsFd, OwnedFd};
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Connections at once. Each costs a task and two descriptors, and a dial may take [`SERVER_WAIT`], or as long as a VM
/// takes to wake.
const MAX_CONNECTIONS: usize = 4096;
/// Dials at once to one VM that sleeps or just woke: the SYN of a further one might find its TAP full. It also keeps one
/// VM that never wakes from having all connections.
const MAX_DIALS_TO_SLEEPER: u32 = WAITING_FRAMES;
/// Longest that a service waits for its turn to join: hundreds of networks may be looked at before, at a start.
const JOIN_WAIT: Duration = Duration::from_secs(30);
/// Longest that a request for a TUN waits for its network: vpn hears of a network's first session when vpc does, and asks
/// while it is made. vpn asks again anyway.
const TUN_WAIT: Duration = Duration::from_secs(2);
/// Longest that a connection may be silent, and that an answer may wait to be read.
const IDLE: Duration = Duration::from_secs(30);
/// Connections at once that are told that there are too many.
const MAX_TURNED_AWAY: usize = 256;
/// Longest that one of those may take to ask.
const TURN_AWAY: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted: the process is out of descriptors, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves requests.
#[derive(Clone, Debug)]
pub struct Server {
    switch: Switch,
    allowed: Arc<[u32]>,
    vpn: Option<u32>,
    ssh: Option<u32>,
    slots: Arc<Semaphore>,
    turned_away: Arc<Semaphore>,
    refusals: Arc<Mutex<BTreeMap<Refusal, u64>>>,
    /// Dials under way that found the VM asleep, or just woken.
    waking: Arc<Mutex<HashMap<VmId, u32>>>,
}

/// What a user may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rights {
    /// Everything.
    root: bool,
    /// What doors need.
    door: bool,
    /// To dial, and nothing else: ssh-proxy.
    dial: bool,
    /// A network's TUN, and nothing else: vpn.
    tun: bool,
}

impl Rights {
    fn may(self, request: &VpcRequest) -> bool {
        match request {
            VpcRequest::Tun { .. } => self.root || self.tun,
            VpcRequest::Dial { .. } => self.root || self.door || self.dial,
            VpcRequest::Tap { .. } | VpcRequest::Status => self.root || self.door,
            // Doors dial, and need not know who sleeps or what was refused.
            VpcRequest::Join { .. } | VpcRequest::Rules { .. } | VpcRequest::Wakes => self.root,
        }
    }
}

struct No {
    reason: Refusal,
    message: String,
}

impl Server {
    /// Serves users of these numbers, and root; `vpn` is the user who may ask for TUNs, `ssh` the one who may dial.
    #[must_use]
    pub fn new(switch: Switch, allowed_uids: &[u32], vpn: Option<u32>, ssh: Option<u32>) -> Self {
        let allowed = allowed_uids.into();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let turned_away = Arc::new(Semaphore::new(MAX_TURNED_AWAY));
        Self {
            switch,
            allowed,
            vpn,
            ssh,
            slots,
            turned_away,
            refusals: Arc::default(),
            waking: Arc::default(),
        }
    }

    /// Serves for ever.
    pub async fn run(self, listener: WireListener) {
        loop {
            let wire = match listener.accept().await {
                Ok(wire) => wire,
                Err(error) => {
                    warn!(%error, "no connection accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let server = self.clone();
            match Arc::clone(&self.slots).try_acquire_owned() {
                Ok(slot) => {
                    tokio::spawn(async move {
                        server.serve(&wire).await;
                        drop((wire, slot));
                    });
                }
                Err(_) => {
                    // Over the second bound, too, the connection ends without a word.
                    let Ok(slot) = Arc::clone(&self.turned_away).try_acquire_owned() else { continue };
                    let message = format!("{MAX_CONNECTIONS} requests are being served already");
                    tokio::spawn(async move {
                        server.turn_away(&wire, No { reason: Refusal::Busy, message }).await;
                        drop((wire, slot));
                    });
                }
            }
        }
    }

    async fn serve(&self, wire: &Wire) {
        let (user, rights) = match wire.peer() {
            Ok(peer) => (peer.uid, self.rights(peer.uid)),
            Err(error) => {
                warn!(%error, "a connection without a known user");
                return;
            }
        };
        if rights == Rights::default() {
            let no = No { reason: Refusal::NotAllowed, message: format!("user {user} may not ask") };
            self.turn_away(wire, no).await;
            return;
        }
        loop {
            let (request, descriptors) = match timeout(IDLE, wire.receive::<VpcRequest>()).await {
                Ok(Ok(received)) => received,
                Ok(Err(WireError::Closed)) | Err(_) => return,
                Ok(Err(error)) => {
                    debug!(%error, "a request cannot be read");
                    return;
                }
            };
            let answered = if rights.may(&request) {
                match request {
                    VpcRequest::Dial { vm, port } => self.dial(&vm, port).await,
                    VpcRequest::Tap { vm, generation } => self.tap(&vm, generation).await,
                    VpcRequest::Tun { vpc } => self.tun(vpc).await,
                    VpcRequest::Join { service, generation } => {
                        self.join(&service, generation, descriptors).await
                    }
                    VpcRequest::Rules { vpc } => self.rules(vpc).await,
                    VpcRequest::Status => Ok((VpcReply::Status(self.status()), Vec::new())),
                    VpcRequest::Wakes => return self.tell_wakes(wire).await,
                }
            } else {
                let message = format!("user {user} may not ask for this");
                Err(No { reason: Refusal::NotAllowed, message })
            };
            let (reply, descriptors) = answered.unwrap_or_else(|no| (self.refuse(no), Vec::new()));
            if !self.say(wire, &reply, descriptors).await {
                return;
            }
        }
    }

    fn rights(&self, user: u32) -> Rights {
        Rights {
            root: user == 0,
            door: self.allowed.contains(&user),
            dial: self.ssh == Some(user),
            tun: self.vpn == Some(user),
        }
    }

    async fn dial(&self, vm: &VmId, port: u16) -> Result<(VpcReply, Vec<OwnedFd>), No> {
        // Only in the first moments after a start is there anything to wait for: until its network stands.
        let there = self.switch.table().ports.contains_key(vm);
        if !there && !self.switch.reached(Generation::default(), SERVER_WAIT).await {
            return Err(unknown(&self.switch.table(), vm));
        }
        let lost = |live: &LivePort| live.port.asleep && live.queues.is_none();
        if let Some(live) = self.switch.table().ports.get(vm).filter(|live| lost(live)) {
            // The queues ended with the VM's process, and a SYN would find none.
            let looked = self.switch.look_again(&live.network, SERVER_WAIT).await;
            debug!(%vm, looked, "looked for the TAP of a sleeping VM");
        }
        let table = self.switch.table();
        let live = table.ports.get(vm).ok_or_else(|| unknown(&table, vm))?;
        let now = Instant::now();
        let wakes = live.wakes_until(now).is_some_and(|until| until > now);
        let _waking = if wakes { Some(Waking::begin(&self.waking, vm)?) } else { None };
        let socket = dial(&self.switch, live, port)
            .await
            .map_err(|error| No { reason: error.refusal(), message: error.to_string() })?;
        Ok((VpcReply::Dialed, vec![socket]))
    }

    /// Tells of wakes until the subscriber is gone, or too slow.
    async fn tell_wakes(&self, wire: &Wire) {
        let (waiting, mut wakes) = self.switch.wakes().subscribe();
        for vm in waiting {
            if !self.say(wire, &VpcReply::Wake { vm }, Vec::new()).await {
                return;
            }
        }
        loop {
            let vm = tokio::select! {
                told = wakes.recv() => match told {
                    Ok(vm) => vm,
                    // It must ask again, and is told then for whom packets wait.
                    Err(RecvError::Lagged(missed)) => {
                        warn!(missed, "who asked for wakes is too slow and is cut off");
                        return;
                    }
                    Err(RecvError::Closed) => return,
                },
                () = wire.closed() => return,
            };
            if !self.say(wire, &VpcReply::Wake { vm }, Vec::new()).await {
                return;
            }
        }
    }

    async fn reached(&self, generation: Generation) -> Result<(), No> {
        if self.switch.reached(generation, SERVER_WAIT).await {
            return Ok(());
        }
        let now = self.switch.table().generation;
        let message = format!("decision {generation} did not arrive in time; {now} is in force");
        Err(No { reason: Refusal::ViewTooOld, message })
    }

    /// A network's TUN. Its one holder is who asked.
    async fn tun(&self, vpc: VpcId) -> Result<(VpcReply, Vec<OwnedFd>), No> {
        let id = NetworkId::Private(vpc.clone());
        let has_clients = |table: &Table| table.networks.get(&id).is_some_and(|network| network.clients);
        if !self.switch.becomes(TUN_WAIT, has_clients).await {
            debug!(%vpc, "waited for a network's VPN clients in vain");
        }
        let table = self.switch.table();
        let network = table.networks.get(&id).filter(|network| network.clients);
        let network = network.ok_or_else(|| {
            let message = format!("network {vpc} has no VPN clients here, or does not stand");
            No { reason: Refusal::UnknownNetwork, message }
        })?;
        let kernel = |message: String| No { reason: Refusal::Kernel, message };
        let opened = network.sockets.run(|| tun::open_clients(CLIENTS)).await;
        let queue =
            opened.map_err(|error| kernel(error.to_string()))?.map_err(|error| match error.kind() {
                io::ErrorKind::ResourceBusy => {
                    kernel(format!("the TUN of network {vpc} is in the hands of a process that still runs"))
                }
                _ => kernel(format!("the TUN of network {vpc} cannot be opened: {error}")),
            })?;
        Ok((VpcReply::Tun, vec![queue]))
    }

    /// A service joins its network, with the namespace that came with the request.
    async fn join(
        &self,
        service: &ServiceId,
        generation: Generation,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(VpcReply, Vec<OwnedFd>), No> {
        let kernel = |message: String| No { reason: Refusal::Kernel, message };
        let mut descriptors = descriptors.into_iter();
        let (Some(namespace), None) = (descriptors.next(), descriptors.next()) else {
            return Err(kernel(format!("service {service} must bring the one namespace that it lives in")));
        };
        self.reached(generation).await?;
        let network = self.switch.table().services.get(service).cloned().ok_or_else(|| {
            let message = format!("service {service} is a member of no network here, or that does not stand");
            No { reason: Refusal::UnknownService, message }
        })?;
        let joined = self.switch.join(service, &network, namespace, JOIN_WAIT).await;
        let joined = joined.ok_or_else(|| {
            let message = format!("service {service} did not join within {JOIN_WAIT:?}; ask again");
            No { reason: Refusal::Busy, message }
        })?;
        joined.map(|()| (VpcReply::Joined, Vec::new())).map_err(kernel)
    }

    async fn tap(&self, vm: &VmId, generation: Generation) -> Result<(VpcReply, Vec<OwnedFd>), No> {
        self.reached(generation).await?;
        let in_other_hands = |live: &LivePort| live.queues.is_none();
        if let Some(live) = self.switch.table().ports.get(vm).filter(|live| in_other_hands(live)) {
            // Whoever had the queues may have ended since. If the look comes too late, the answer below is no.
            let looked = self.switch.look_again(&live.network, SERVER_WAIT).await;
            debug!(%vm, looked, "looked for a TAP that had another holder");
        }
        let table = self.switch.table();
        let live = table.ports.get(vm).ok_or_else(|| unknown(&table, vm))?;
        let kernel = |message: String| No { reason: Refusal::Kernel, message };
        let queues = live.queues.as_ref().ok_or_else(|| {
            kernel("the TAP is in the hands of a process of this VM that still runs".to_owned())
        })?;
        let duplicates = queues.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>();
        let duplicates = duplicates.map_err(|error| kernel(error.to_string()))?;
        self.switch.wakes().taken(vm);
        Ok((VpcReply::Tap, duplicates))
    }

    async fn rules(&self, vpc: VpcId) -> Result<(VpcReply, Vec<OwnedFd>), No> {
        let id = NetworkId::Private(vpc);
        let sockets = self.switch.table().networks.get(&id).map(|network| network.sockets.clone());
        let sockets = sockets.ok_or_else(|| {
            let message = format!("network {id} does not stand here");
            No { reason: Refusal::UnknownNetwork, message }
        })?;
        let counts = firewall::counts(&sockets).await;
        let counts = counts.map_err(|error| No { reason: Refusal::Kernel, message: error.to_string() })?;
        Ok((VpcReply::Rules { counts }, Vec::new()))
    }

    fn status(&self) -> VpcStatus {
        let table = self.switch.table();
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        VpcStatus {
            generation: table.generation,
            ports: table.ports.len(),
            refusals: refusals.iter().map(|(reason, count)| (*reason, *count)).collect(),
        }
    }

    /// Says no to whatever the first request is. It is read before the connection is closed, since the kernel takes
    /// an answer away from a peer whose request nobody read.
    async fn turn_away(&self, wire: &Wire, no: No) {
        let reply = self.refuse(no);
        match timeout(TURN_AWAY, wire.receive::<VpcRequest>()).await {
            Ok(Ok(_)) => {
                self.say(wire, &reply, Vec::new()).await;
            }
            Ok(Err(error)) => debug!(%error, "a request cannot be read"),
            Err(_) => {}
        }
    }

    fn refuse(&self, no: No) -> VpcReply {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(no.reason).or_default() += 1;
        debug!(reason = ?no.reason, message = no.message, "refused");
        VpcReply::Refused { reason: no.reason, message: no.message }
    }

    /// False when the asker is gone.
    async fn say(&self, wire: &Wire, reply: &VpcReply, descriptors: Vec<OwnedFd>) -> bool {
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        match timeout(IDLE, wire.send(reply, &borrowed)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                debug!(%error, "an answer finds nobody");
                false
            }
            Err(_) => false,
        }
    }
}

/// One of the dials to a VM that sleeps.
struct Waking<'a> {
    all: &'a Mutex<HashMap<VmId, u32>>,
    vm: VmId,
}

impl<'a> Waking<'a> {
    fn begin(all: &'a Mutex<HashMap<VmId, u32>>, vm: &VmId) -> Result<Self, No> {
        let mut counts = all.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(vm.clone()).or_default();
        if *count >= MAX_DIALS_TO_SLEEPER {
            let message = format!("{MAX_DIALS_TO_SLEEPER} connections wait for VM {vm} to wake already");
            return Err(No { reason: Refusal::Busy, message });
        }
        *count += 1;
        Ok(Self { all, vm: vm.clone() })
    }
}

impl Drop for Waking<'_> {
    fn drop(&mut self) {
        let mut counts = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.vm) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.vm);
            }
        }
    }
}

fn unknown(table: &Table, vm: &VmId) -> No {
    if let Some(why) = table.broken.get(vm) {
        return No { reason: Refusal::Kernel, message: format!("the port of VM {vm} does not stand: {why}") };
    }
    No { reason: Refusal::UnknownVm, message: format!("VM {vm} has no port here") }
}
