//! The supervisor of the VMs and the agents in them, as far as their protocols show them: machines are entries in a
//! table, disks are names, an agent runs commands with this machine's `sh` and keeps files in a map.

use feed::wire::{Wire, WireListener};
use model::agent::{
    AgentErrorKind, AgentReply, AgentRequest, DirectoryEntry, FileKind, FrameKind, HEADER_BYTES,
};
use model::id::{SnapshotId, VmId, VmInstanceId};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use vmm::client::{ExitReason, IdleWatch, MachineSpec, Origin, Refusal, VmmEvent, VmmReply, VmmRequest};

/// How machines behave that are launched from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    Ready,
    NeverReady,
    DieAtOnce,
    Refuse(Refusal),
}

/// What comes of a disk's growth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    Done,
    RefusedByDisk,
    RefusedByAgent,
}

#[derive(Debug)]
pub struct State {
    pub up: HashMap<VmId, (VmInstanceId, bool)>,
    pub disks: BTreeSet<VmId>,
    pub launched: Vec<MachineSpec>,
    pub manner: Manner,
    /// Suspended states.
    pub asleep: HashMap<VmId, VmInstanceId>,
    /// Copies, and whether they have the memory.
    pub copies: BTreeMap<SnapshotId, bool>,
    /// How suspends, snapshots and freezes are refused.
    pub unwilling: Option<Refusal>,
    /// Suspended states cannot be used.
    pub unfit: Option<Refusal>,
    /// So many more machines can be launched.
    pub places: usize,
    pub watched: Vec<(VmId, Option<IdleWatch>)>,
    /// Growths in use, in MiB; none: the agent was asked to grow its file system.
    pub grown: Vec<(VmId, Option<u32>)>,
    /// Who was asked to make memory free.
    pub released: Vec<VmId>,
    /// What comes of growths from now on.
    pub growth: Growth,
    files: BTreeMap<(VmId, String), (Vec<u8>, Option<u32>)>,
}

#[derive(Clone, Debug)]
pub struct World {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<VmmEvent>,
    /// While false, VMs that are to sleep take their time.
    pub prompt: watch::Sender<bool>,
}

impl World {
    /// Serves the supervisor's socket for as long as the runtime lives.
    pub fn start(socket: &Path) -> Self {
        let state = State {
            up: HashMap::new(),
            disks: BTreeSet::new(),
            launched: Vec::new(),
            manner: Manner::Ready,
            asleep: HashMap::new(),
            copies: BTreeMap::new(),
            unwilling: None,
            unfit: None,
            places: usize::MAX,
            watched: Vec::new(),
            grown: Vec::new(),
            released: Vec::new(),
            growth: Growth::Done,
            files: BTreeMap::new(),
        };
        let world = Self {
            state: Arc::new(Mutex::new(state)),
            events: broadcast::Sender::new(256),
            prompt: watch::Sender::new(true),
        };
        let listener = WireListener::bind(socket, 0o600).expect("bind");
        let serving = world.clone();
        tokio::spawn(async move {
            while let Ok(wire) = listener.accept().await {
                tokio::spawn(serving.clone().serve(wire));
            }
        });
        world
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// A machine goes down by itself.
    pub fn exit(&self, vm: &VmId, reason: ExitReason) {
        let gone = self.state().up.remove(vm);
        if let Some((instance, _)) = gone {
            self.tell(VmmEvent::Exited { vm: vm.clone(), instance, reason });
        }
    }

    /// A guest restarts, and is ready again.
    pub fn reboot(&self, vm: &VmId) {
        let instance = self.state().up.get(vm).expect("up").0.clone();
        self.tell(VmmEvent::Rebooting { vm: vm.clone(), instance: instance.clone() });
        self.tell(VmmEvent::AgentReady { vm: vm.clone(), instance });
    }

    /// A NIC was idle for a period.
    pub fn idle(&self, vm: &VmId) {
        let instance = self.state().up.get(vm).expect("up").0.clone();
        self.tell(VmmEvent::Idle { vm: vm.clone(), instance });
    }

    /// Packets wait for a VM.
    pub fn packets(&self, vm: &VmId) {
        self.tell(VmmEvent::Wake { vm: vm.clone() });
    }

    fn tell(&self, event: VmmEvent) {
        // Nobody listens while control is away.
        drop(self.events.send(event));
    }

    async fn serve(self, wire: Wire) {
        while let Ok((request, _)) = wire.receive::<VmmRequest>().await {
            let sent = match request {
                VmmRequest::Subscribe => return self.subscription(&wire).await,
                VmmRequest::Connect { vm, .. } => self.connect(&wire, vm).await,
                VmmRequest::Launch(spec) => wire.send(&self.launch(*spec), &[]).await,
                VmmRequest::Stop { vm, .. } => {
                    self.exit(&vm, ExitReason::Stopped);
                    wire.send(&VmmReply::Done, &[]).await
                }
                VmmRequest::Kill { vm } => {
                    self.exit(&vm, ExitReason::Killed);
                    wire.send(&VmmReply::Done, &[]).await
                }
                VmmRequest::Remove { vm } => {
                    self.exit(&vm, ExitReason::Killed);
                    self.state().disks.remove(&vm);
                    self.state().asleep.remove(&vm);
                    wire.send(&VmmReply::Done, &[]).await
                }
                VmmRequest::Suspend { vm } => {
                    self.prompt.subscribe().wait_for(|prompt| *prompt).await.expect("the world lives");
                    wire.send(&self.suspend(&vm), &[]).await
                }
                VmmRequest::Snapshot { vm, snapshot } => {
                    wire.send(&self.copy(&vm, snapshot, false), &[]).await
                }
                VmmRequest::Freeze { vm, snapshot } => wire.send(&self.copy(&vm, snapshot, true), &[]).await,
                VmmRequest::RemoveSnapshot { snapshot } => {
                    self.state().copies.remove(&snapshot);
                    wire.send(&VmmReply::Done, &[]).await
                }
                VmmRequest::WatchIdle { vm, idle } => {
                    self.state().watched.push((vm, idle));
                    wire.send(&VmmReply::Done, &[]).await
                }
                VmmRequest::GrowDisk { vm, disk_mib } => wire.send(&self.grow(vm, disk_mib), &[]).await,
                VmmRequest::Optimize { .. } => wire.send(&VmmReply::Done, &[]).await,
                // Control never asks for them.
                VmmRequest::HostKeys { .. } => wire.send(&refused(Refusal::NoListener), &[]).await,
                VmmRequest::Console { .. } => {
                    wire.send(&VmmReply::Console { text: String::new() }, &[]).await
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }

    async fn subscription(&self, wire: &Wire) {
        let mut events = self.events.subscribe();
        let up = self.state().up.clone();
        for (vm, (instance, agent_ready)) in up {
            let machine = VmmEvent::Machine { vm, instance, pid: 1, agent_ready };
            if wire.send(&machine, &[]).await.is_err() {
                return;
            }
        }
        if wire.send(&VmmEvent::Synced, &[]).await.is_err() {
            return;
        }
        while let Ok(event) = events.recv().await {
            if wire.send(&event, &[]).await.is_err() {
                return;
            }
        }
    }

    fn suspend(&self, vm: &VmId) -> VmmReply {
        let mut state = self.state();
        if let Some(reason) = state.unwilling {
            return refused(reason);
        }
        let Some((instance, _)) = state.up.remove(vm) else {
            let asleep = state.asleep.contains_key(vm);
            return if asleep { VmmReply::Done } else { refused(Refusal::NotRunning) };
        };
        state.asleep.insert(vm.clone(), instance.clone());
        drop(state);
        self.tell(VmmEvent::Exited { vm: vm.clone(), instance, reason: ExitReason::Suspended });
        VmmReply::Done
    }

    fn grow(&self, vm: VmId, disk_mib: u32) -> VmmReply {
        let mut state = self.state();
        if !state.up.contains_key(&vm) {
            return refused(Refusal::NotRunning);
        }
        if state.growth == Growth::RefusedByDisk {
            return refused(Refusal::Disk);
        }
        state.grown.push((vm, Some(disk_mib)));
        VmmReply::Done
    }

    fn release(&self, vm: VmId) -> AgentReply {
        let mut state = self.state();
        state.released.push(vm);
        if state.growth == Growth::RefusedByAgent {
            let message = "an agent of before".to_owned();
            return AgentReply::Error { kind: AgentErrorKind::Invalid, message };
        }
        AgentReply::Done
    }

    fn grow_file_system(&self, vm: VmId) -> AgentReply {
        let mut state = self.state();
        if state.growth == Growth::RefusedByAgent {
            let message = "cannot grow".to_owned();
            return AgentReply::Error { kind: AgentErrorKind::Internal, message };
        }
        state.grown.push((vm, None));
        AgentReply::Done
    }

    fn copy(&self, vm: &VmId, snapshot: SnapshotId, running: bool) -> VmmReply {
        let mut state = self.state();
        if let Some(reason) = state.unwilling {
            return refused(reason);
        }
        let up = state.up.contains_key(vm);
        if running && !up {
            return refused(Refusal::NotRunning);
        }
        let memory = up || state.asleep.contains_key(vm);
        state.copies.insert(snapshot, memory);
        VmmReply::Copied { memory }
    }

    /// What a machine needs to begin from what it is to begin from.
    fn begin(state: &mut State, spec: &MachineSpec) -> Result<(), Refusal> {
        match &spec.origin {
            Origin::Boot => {
                state.asleep.remove(&spec.vm);
                Ok(())
            }
            Origin::Suspended => {
                if let Some(unfit) = state.unfit {
                    return Err(unfit);
                }
                let instance = state.asleep.remove(&spec.vm).ok_or(Refusal::NoState)?;
                assert_eq!(instance, spec.instance, "the instance that slept goes on");
                Ok(())
            }
            Origin::Snapshot { snapshot } => state.copies.get(snapshot).map(|_| ()).ok_or(Refusal::NoState),
        }
    }

    fn launch(&self, spec: MachineSpec) -> VmmReply {
        let mut state = self.state();
        state.launched.push(spec.clone());
        if state.up.contains_key(&spec.vm) {
            return VmmReply::Launched { pid: 1 };
        }
        if state.places == 0 {
            return refused(Refusal::Kvm);
        }
        state.places -= 1;
        let manner = state.manner.clone();
        let (vm, instance) = (spec.vm.clone(), spec.instance.clone());
        if let Manner::Refuse(reason) = manner {
            return refused(reason);
        }
        if let Err(reason) = Self::begin(&mut state, &spec) {
            return refused(reason);
        }
        state.disks.insert(vm.clone());
        state.up.insert(vm.clone(), (instance.clone(), manner == Manner::Ready));
        drop(state);
        match manner {
            Manner::Ready => self.tell(VmmEvent::AgentReady { vm, instance }),
            Manner::DieAtOnce => self.exit(&vm, ExitReason::Panicked { message: "no root".to_owned() }),
            Manner::NeverReady | Manner::Refuse(_) => {}
        }
        VmmReply::Launched { pid: 1 }
    }

    async fn connect(&self, wire: &Wire, vm: VmId) -> Result<(), feed::wire::WireError> {
        if !self.state().up.contains_key(&vm) {
            let refused = VmmReply::Refused { reason: Refusal::NotRunning, message: "down".to_owned() };
            return wire.send(&refused, &[]).await;
        }
        let (near, far) = UnixStream::pair().expect("pair");
        let world = self.clone();
        tokio::spawn(async move { world.agent(vm, far).await });
        wire.send(&VmmReply::Connected, &[near.as_fd()]).await
    }

    async fn agent(&self, vm: VmId, mut stream: UnixStream) {
        let (_, payload) = receive(&mut stream).await;
        match serde_json::from_slice(&payload).expect("a request") {
            AgentRequest::Exec { command, timeout_milliseconds, user, .. } => {
                run(&mut stream, &command, user.as_deref(), timeout_milliseconds).await;
            }
            AgentRequest::Read { path, .. } => self.read(&vm, &path, &mut stream).await,
            AgentRequest::Write { path, mode, .. } => {
                let mut content = Vec::new();
                while let (FrameKind::Data, piece) = receive(&mut stream).await {
                    content.extend_from_slice(&piece);
                }
                self.state().files.insert((vm, path), (content, mode));
                say(&mut stream, &AgentReply::Done).await;
            }
            AgentRequest::ReleaseMemory => {
                let reply = self.release(vm);
                say(&mut stream, &reply).await;
            }
            AgentRequest::GrowDisk => {
                let reply = self.grow_file_system(vm);
                say(&mut stream, &reply).await;
            }
            other => panic!("control does not ask this: {other:?}"),
        }
    }

    async fn read(&self, vm: &VmId, path: &str, stream: &mut UnixStream) {
        let (file, names) = {
            let state = self.state();
            let below = format!("{}/", path.trim_end_matches('/'));
            let names: Vec<String> = state
                .files
                .keys()
                .filter(|(of, name)| of == vm && name.starts_with(&below))
                .map(|(_, name)| name[below.len()..].to_owned())
                .collect();
            (state.files.get(&(vm.clone(), path.to_owned())).cloned(), names)
        };
        if let Some((content, _)) = file {
            say(stream, &AgentReply::File { size: content.len() as u64 }).await;
            for piece in content.chunks(1000) {
                send(stream, FrameKind::Data, piece).await;
            }
            send(stream, FrameKind::End, &[]).await;
        } else if names.is_empty() {
            let message = format!("{path}: no such file");
            say(stream, &AgentReply::Error { kind: AgentErrorKind::NotFound, message }).await;
        } else {
            let entry = |name| DirectoryEntry { name, kind: FileKind::File };
            say(stream, &AgentReply::Directory { entries: names.into_iter().map(entry).collect() }).await;
        }
    }

    /// Permission bits with which a file was written.
    pub fn mode(&self, vm: &VmId, path: &str) -> Option<u32> {
        self.state().files.get(&(vm.clone(), path.to_owned())).and_then(|(_, mode)| *mode)
    }
}

fn refused(reason: Refusal) -> VmmReply {
    VmmReply::Refused { reason, message: format!("refused: {reason:?}") }
}

async fn run(stream: &mut UnixStream, command: &str, user: Option<&str>, limit: Option<u64>) {
    if user == Some("nobody-here") {
        let message = "no such user".to_owned();
        return say(stream, &AgentReply::Error { kind: AgentErrorKind::UserNotFound, message }).await;
    }
    let child = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let limit = Duration::from_millis(limit.unwrap_or(60_000));
    let Ok(done) = timeout(limit, child).await else {
        send(stream, FrameKind::Stdout, b"partial").await;
        return say(stream, &AgentReply::ExecDone { status: None, timed_out: true, truncated: false }).await;
    };
    let done = done.expect("sh runs");
    send(stream, FrameKind::Stdout, &done.stdout).await;
    send(stream, FrameKind::Stderr, &done.stderr).await;
    let status = done.status.code();
    say(stream, &AgentReply::ExecDone { status, timed_out: false, truncated: false }).await;
}

async fn say(stream: &mut UnixStream, reply: &AgentReply) {
    send(stream, FrameKind::Message, &serde_json::to_vec(reply).expect("json")).await;
}

async fn send(stream: &mut UnixStream, kind: FrameKind, payload: &[u8]) {
    let header = kind.header(payload.len()).expect("fits");
    // Control may be gone by now: that is what some tests are about.
    if stream.write_all(&header).await.is_ok() {
        drop(stream.write_all(payload).await);
    }
}

async fn receive(stream: &mut UnixStream) -> (FrameKind, Vec<u8>) {
    let mut header = [0; HEADER_BYTES];
    if stream.read_exact(&mut header).await.is_err() {
        return (FrameKind::End, Vec::new());
    }
    let (kind, length) = FrameKind::parse(header).expect("a frame");
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.expect("a payload");
    (kind, payload)
}
