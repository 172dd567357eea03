//! A session: a client that has logged in, the leg to its VM, and the bridge between them.

use crate::io::door::Front;
use crate::io::leg::Leg;
use crate::io::sessions::Entry;
use crate::io::vm::{VmError, VmLeg, reach};
use crate::pure::bridge::{Act, Bounds, Bridge, Broken};
use crate::pure::packet;
use model::login::NoLogin;
use model::ssh::SshVmState;
use russh::RelayEnd;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until, timeout};

/// Packets for one end that wait, above which the other end is not read.
const MAX_QUEUED: usize = 16;
/// The same, above which the end itself is not read: it has answers made and does not read them.
const MAX_OWED: usize = 4 * MAX_QUEUED;
/// Packets that are taken at once.
const BATCH: usize = 16;
/// Between two questions whether a silent client is there.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a login may take before somebody at a terminal is told why.
const PATIENCE: Duration = Duration::from_secs(1);
/// Longest that the last words may take on their way into the client's socket: it must be cut within a second.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Longest that a client may take to close after them.
const CLOSING: Duration = Duration::from_millis(500);
/// Longest that a VM may take to take what its client sent before it left.
const DELIVERY: Duration = Duration::from_secs(2);

/// Why a session ended. What it says is shown to the client.
#[derive(Debug, Error)]
pub enum Ending {
    /// The client went.
    #[error("the client closed the connection")]
    ClientLeft,
    /// The client does not answer any more.
    #[error("the client does not answer")]
    ClientSilent,
    /// The VM's sshd closed the connection.
    #[error("the VM closed the connection; connect again, which starts it if it was stopped")]
    VmLeft,
    /// There is no leg to the VM.
    #[error("{0}")]
    NotReached(#[from] VmError),
    /// An end broke the protocol.
    #[error("{0}")]
    Broken(#[from] Broken),
    /// The token, the key or the grant is gone.
    #[error("access to the VM was withdrawn")]
    Revoked,
    /// The VM is gone.
    #[error("the VM was deleted")]
    Deleted,
    /// The VM is stopped.
    #[error("the VM was stopped; connect again to start it")]
    Stopped,
    /// The VM runs anew.
    #[error("the VM was restarted; connect again")]
    Restarted,
    /// The VM sleeps for long.
    #[error("the VM is suspended; connect again to wake it")]
    Asleep,
    /// Somebody with the right to do so ended it.
    #[error("the session was ended by an administrator")]
    Killed,
}

/// One session.
pub struct Session {
    front: Arc<Front>,
    entry: Entry,
    bridge: Bridge,
    client: Pipe,
    vm: Option<(Pipe, VmLeg)>,
    asleep_since: Option<Instant>,
}

/// One end's packets.
struct Pipe {
    /// Gone once the end is closed.
    inbound: Receiver<Vec<u8>>,
    outbound: Sender<Vec<u8>>,
    queue: VecDeque<Vec<u8>>,
}

impl Pipe {
    fn of(end: RelayEnd) -> Self {
        Self { inbound: end.inbound, outbound: end.outbound, queue: VecDeque::new() }
    }

    /// Gives on what there is room for.
    fn push(&mut self) {
        while !self.queue.is_empty() {
            let Ok(place) = self.outbound.try_reserve() else { return };
            if let Some(packet) = self.queue.pop_front() {
                place.send(packet);
            }
        }
    }

    async fn drain(&mut self) {
        while let Some(packet) = self.queue.pop_front() {
            if self.outbound.send(packet).await.is_err() {
                return;
            }
        }
    }
}

enum Event {
    FromClient(Option<Vec<u8>>),
    FromVm(Option<Vec<u8>>),
    Room,
    Reached(Result<VmLeg, VmError>),
    View,
    Tick,
    Patience,
    Asleep,
    Killed,
}

impl Session {
    /// A session whose client has just logged in.
    #[must_use]
    pub fn new(front: Arc<Front>, entry: Entry, client: RelayEnd) -> Self {
        let limits = front.config.limits;
        let bounds = Bounds {
            channels: usize::try_from(limits.channels).unwrap_or(usize::MAX),
            channel_bytes: limits.channel_bytes,
        };
        let bridge = Bridge::new(bounds, Arc::clone(&front.budget));
        Self { front, entry, bridge, client: Pipe::of(client), vm: None, asleep_since: None }
    }

    /// Runs until it ends, cuts both legs and writes down how it was. `closed` ends when the client's connection does.
    pub async fn run(mut self, leg: &Leg, closed: impl Future<Output = ()>) {
        let who = self.entry.live.who.clone();
        self.front.audit.login(&who);
        let ending = self.carry().await;
        let text = ending.to_string();
        match ending {
            // Nobody is there to read it. What the client sent before goes on to the VM.
            Ending::ClientLeft | Ending::ClientSilent => {
                if let Some((pipe, _)) = &mut self.vm {
                    timeout(DELIVERY, pipe.drain()).await.ok();
                }
            }
            _ => self.say(&text).await,
        }
        self.bridge.end();
        self.acts();
        // The session's last packets go out, then the socket is closed.
        let Self { client, vm, front, entry, bridge, .. } = self;
        drop(client);
        timeout(CLOSING, closed).await.ok();
        leg.cut();
        end_vm(vm).await;
        entry.live.count(0, bridge.bytes());
        front.audit.end(&who, entry.live.seconds(), bridge.bytes(), &text);
    }

    async fn say(&mut self, text: &str) {
        // A client that does not read hears nothing, and what waits for it is of no use to it.
        self.bridge.tell_last(&format!("\r\n{text}\r\n"));
        self.acts();
        self.client.queue.push_back(packet::disconnect(text));
        timeout(LAST_WORDS, self.client.drain()).await.ok();
    }

    async fn carry(&mut self) -> Ending {
        let login = self.entry.live.who.login.clone();
        let mut reaching =
            Some(tokio::spawn(reach(Arc::clone(&self.front), login, self.entry.live.who.session.clone())));
        let ending = self.events(&mut reaching).await;
        if let Some(reaching) = reaching {
            reaching.abort();
        }
        ending
    }

    async fn events(&mut self, reaching: &mut Option<JoinHandle<Result<VmLeg, VmError>>>) -> Ending {
        let begun = Instant::now();
        let live = Arc::clone(&self.entry.live);
        let mut views = self.front.changes();
        let mut ticks = interval_at(begun + KEEPALIVE, KEEPALIVE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut patient = true;
        loop {
            self.client.push();
            if let Some((pipe, _)) = &mut self.vm {
                pipe.push();
            }
            let asleep_until = self.asleep_until();
            let (reads_client, reads_vm) = (self.reads_client(), self.reads_vm());
            let vm = self.vm.as_mut().map(|(pipe, _)| pipe);
            let (vm_inbound, vm_outbound) = match vm {
                Some(Pipe { inbound, outbound, queue }) => {
                    (Some(inbound), (!queue.is_empty()).then_some(outbound))
                }
                None => (None, None),
            };
            let event = tokio::select! {
                packet = self.client.inbound.recv(), if reads_client => Event::FromClient(packet),
                packet = receive(vm_inbound), if reads_vm => Event::FromVm(packet),
                () = room(&self.client.outbound), if !self.client.queue.is_empty() => Event::Room,
                () = room_of(vm_outbound) => Event::Room,
                reached = join(reaching) => Event::Reached(reached),
                changed = views.changed() => match changed {
                    Ok(()) => Event::View,
                    Err(_) => Event::Killed,
                },
                _ = ticks.tick() => Event::Tick,
                () = sleep_until(begun + PATIENCE), if patient => Event::Patience,
                () = sleep_until(asleep_until.unwrap_or(begun)), if asleep_until.is_some() => Event::Asleep,
                () = live.ended.notified() => Event::Killed,
            };
            match event {
                Event::Patience => patient = false,
                Event::View => {
                    views.borrow_and_update();
                }
                Event::Reached(_) => *reaching = None,
                Event::FromClient(_)
                | Event::FromVm(_)
                | Event::Room
                | Event::Tick
                | Event::Asleep
                | Event::Killed => {}
            }
            if let Err(ending) = self.event(event) {
                return ending;
            }
            live.count(self.bridge.channels(), self.bridge.bytes());
        }
    }

    fn event(&mut self, event: Event) -> Result<(), Ending> {
        match event {
            Event::FromClient(Some(packet)) => self.client_sent(packet)?,
            Event::FromVm(Some(packet)) => self.vm_sent(packet)?,
            Event::FromClient(None) => return Err(Ending::ClientLeft),
            Event::FromVm(None) => return Err(Ending::VmLeft),
            Event::Room => {}
            Event::Reached(reached) => self.reached(reached?)?,
            Event::View => self.judge()?,
            Event::Tick => {
                if !self.bridge.keepalive() {
                    return Err(Ending::ClientSilent);
                }
            }
            Event::Patience => {
                if self.vm.is_none() {
                    self.bridge.tell("Waiting for the VM ...\r\n");
                }
            }
            Event::Asleep => return Err(Ending::Asleep),
            Event::Killed => return Err(Ending::Killed),
        }
        self.acts();
        Ok(())
    }

    fn reads_client(&self) -> bool {
        let queued = self.vm.as_ref().map_or(0, |(pipe, _)| pipe.queue.len());
        self.bridge.wants_client() && queued < MAX_QUEUED && self.client.queue.len() < MAX_OWED
    }

    fn reads_vm(&self) -> bool {
        let owed = self.vm.as_ref().is_some_and(|(pipe, _)| pipe.queue.len() >= MAX_OWED);
        self.client.queue.len() < MAX_QUEUED && !owed
    }

    fn client_sent(&mut self, packet: Vec<u8>) -> Result<(), Broken> {
        self.bridge.client_sent(packet)?;
        for _ in 1..BATCH {
            self.acts();
            if !self.reads_client() {
                break;
            }
            let Ok(packet) = self.client.inbound.try_recv() else { break };
            self.bridge.client_sent(packet)?;
        }
        Ok(())
    }

    fn vm_sent(&mut self, packet: Vec<u8>) -> Result<(), Broken> {
        self.bridge.vm_sent(packet)?;
        for _ in 1..BATCH {
            self.acts();
            if !self.reads_vm() {
                break;
            }
            let Some(Ok(packet)) = self.vm.as_mut().map(|(pipe, _)| pipe.inbound.try_recv()) else { break };
            self.bridge.vm_sent(packet)?;
        }
        Ok(())
    }

    fn reached(&mut self, mut leg: VmLeg) -> Result<(), Ending> {
        let end = leg.take_end().ok_or(Ending::VmLeft)?;
        self.vm = Some((Pipe::of(end), leg));
        self.bridge.vm_ready();
        // The view may have changed meanwhile.
        self.judge()
    }

    /// Looks the login up in the newest view.
    fn judge(&mut self) -> Result<(), Ending> {
        let known = self.front.known();
        let login = known.table.again(&self.entry.live.who.login).map_err(|error| match error {
            NoLogin::UnknownVm => Ending::Deleted,
            NoLogin::UnknownProof | NoLogin::NoGrant | NoLogin::UserNotAllowed => Ending::Revoked,
        })?;
        let Some((_, leg)) = &self.vm else { return Ok(()) };
        match login.state() {
            SshVmState::Down => return Err(Ending::Stopped),
            _ if *login.instance() != leg.instance => return Err(Ending::Restarted),
            SshVmState::Asleep => {
                self.asleep_since.get_or_insert_with(Instant::now);
            }
            SshVmState::Up => self.asleep_since = None,
        }
        Ok(())
    }

    fn asleep_until(&self) -> Option<Instant> {
        let longest = Duration::from_secs(self.front.config.limits.asleep_seconds.into());
        self.asleep_since.map(|since| since + longest)
    }

    /// Does what the bridge wants done.
    fn acts(&mut self) {
        while let Some(act) = self.bridge.next_act() {
            match act {
                Act::ToClient(packet) => self.client.queue.push_back(packet),
                Act::ToVm(packet) => {
                    if let Some((pipe, _)) = &mut self.vm {
                        pipe.queue.push_back(packet);
                    }
                }
                Act::Ended(end) => self.front.audit.channel(&self.entry.live.who, &end),
            }
        }
        self.client.push();
        if let Some((pipe, _)) = &mut self.vm {
            pipe.push();
        }
    }
}

/// The VM's end gets what is under way, and then its end.
async fn end_vm(vm: Option<(Pipe, VmLeg)>) {
    let Some((Pipe { mut inbound, outbound, .. }, leg)) = vm else { return };
    drop(outbound);
    // Its session sends what it has, closes, and ends with that.
    timeout(CLOSING, async { while inbound.recv().await.is_some() {} }).await.ok();
    drop(leg);
}

async fn receive(inbound: Option<&mut Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match inbound {
        Some(inbound) => inbound.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits for room, or for the end of the other side, which its receiver tells then.
async fn room(outbound: &Sender<Vec<u8>>) {
    if outbound.reserve().await.is_err() {
        std::future::pending().await
    }
}

async fn room_of(outbound: Option<&mut Sender<Vec<u8>>>) {
    match outbound {
        Some(outbound) => room(outbound).await,
        None => std::future::pending().await,
    }
}

async fn join(reaching: &mut Option<JoinHandle<Result<VmLeg, VmError>>>) -> Result<VmLeg, VmError> {
    match reaching {
        Some(task) => task.await.unwrap_or(Err(VmError::Silent)),
        None => std::future::pending().await,
    }
}
