//! `gatehouse up`: opens the house, keeps it, closes it. One loop over one closed enum of events; what follows from
//! an event, [`crate::pure::roster`] decides.

pub mod announce;
pub mod children;
pub mod down;
pub mod house;
pub mod launch;
pub mod ready;
pub mod reload;
mod successor;

use crate::client::{self, Api};
use crate::doctor::{self, Verdict};
use crate::pure::roster::{Effect, Event, Role, Roster};
use crate::settings::Settings;
use crate::tls::{self, TlsError};
use announce::Waiters;
use children::{Handle, Listeners, Started, places};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};
use successor::Handover;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

/// Events that wait for the loop: each of six processes has at most three on their way, and a person's fingers.
const EVENTS: usize = 64;
/// Between looks at the certificate's age. The time of renewal is a date, and a host may sleep through a timer.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(6 * 3600);

/// How the house is opened.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// VMs go on when it closes.
    pub keep_vms: bool,
    /// Findings that forbid it are only said.
    pub force: bool,
    /// It closes as soon as it is open: to end in order what a killed one left.
    pub close: bool,
    /// Who waits for it.
    pub waiters: Waiters,
    /// Where its settings are read again, if they can be.
    pub source: Option<reload::Source>,
}

/// Why the house did not open, or closed by itself.
#[derive(Debug, Error)]
pub enum UpError {
    /// The host lacks something.
    #[error(
        "this host cannot run Gatehouse yet (see above, and `gatehouse doctor`); --force tries all the same"
    )]
    Host,
    /// Folders, lock or ports.
    #[error(transparent)]
    House(#[from] house::HouseError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Signals cannot be heard.
    #[error("signals cannot be heard: {0}")]
    Signals(#[source] io::Error),
    /// What a process is told cannot be written.
    #[error(transparent)]
    Child(#[from] children::ChildError),
    /// Something of it stays.
    #[error(transparent)]
    Down(#[from] down::DownError),
    /// A process could not be kept.
    #[error("{0} does not start; its own lines above say why")]
    GaveUp(Role),
}

/// All that the loop hears.
#[derive(Debug)]
enum Happening {
    Roster(Event),
    /// The process ended like this.
    Ended(Role, Serial, String),
    /// The process does not answer.
    Stuck(Role, io::Error),
    /// All VMs were asked to shut down, with this outcome.
    MachinesAsked(Result<usize, String>),
    /// Somebody wants settings and edge-proxy's program to be read again.
    Reload(reload::Asker),
    /// The new edge-proxy serves, or does not.
    Successor(Serial, Result<(), String>),
}

/// Tells processes of one role apart; numbers of the kernel's are given anew.
type Serial = u64;

/// A process that runs.
#[derive(Debug)]
struct Running {
    serial: Serial,
    handle: Handle,
}

/// Opens the house and keeps it until it is told to close.
///
/// # Errors
/// When it cannot be opened, or a process dies each time that it is started.
pub async fn run(settings: Settings, manner: Manner) -> Result<(), UpError> {
    let begun = Instant::now();
    println!("Gatehouse {} opens in {}", env!("CARGO_PKG_VERSION"), settings.data_dir.display());
    check_host(&settings, manner.force)?;
    let lock = house::occupy(&settings)?;
    report(announce::forget(&settings), "an old ready file cannot be removed");
    report(house::raise_open_files(), "the limit of open files cannot be raised");
    certificate(&settings)?;
    let listeners = house::listen(&settings)?;
    let (sender, receiver) = mpsc::channel(EVENTS);
    listen_for_signals(sender.clone()).map_err(UpError::Signals)?;
    report(reload::serve(&settings.run_dir, sender.clone()), "nobody can ask for a reload");
    let mut keeper = Keeper {
        roster: Roster::new(manner.keep_vms),
        settings,
        listeners,
        manner,
        sender,
        handles: BTreeMap::new(),
        started: 0,
        handover: Handover::default(),
        asking: BTreeMap::new(),
        begun,
        over: false,
        machines_down: false,
        gave_up: None,
    };
    keeper.keep(receiver).await;
    if keeper.machines_down {
        down::teardown(&keeper.settings).await?;
    }
    drop(lock);
    keeper.gave_up.map_or(Ok(()), |role| Err(UpError::GaveUp(role)))
}

/// Makes what must be there before the processes start, for service units that start them.
///
/// # Errors
/// When it cannot be made, or `up` runs on the same data.
pub fn prepare(settings: &Settings) -> Result<(), UpError> {
    let lock = house::occupy(settings)?;
    certificate(settings)?;
    for role in Role::ALL {
        children::write_settings(role, settings)?;
    }
    drop(lock);
    Ok(())
}

fn check_host(settings: &Settings, force: bool) -> Result<(), UpError> {
    let findings = doctor::essentials(settings);
    let mut bad = false;
    for finding in findings.iter().filter(|finding| finding.verdict != Verdict::Good) {
        bad |= finding.verdict == Verdict::Bad;
        println!("  {}: {}", finding.check, finding.found);
        if let Some(remedy) = &finding.remedy {
            println!("    -> {remedy}");
        }
    }
    if bad && !force { Err(UpError::Host) } else { Ok(()) }
}

fn certificate(settings: &Settings) -> Result<(), TlsError> {
    let folder = places(settings).tls();
    let outcome = tls::ensure(&folder, &settings.domain, OffsetDateTime::now_utc())?;
    if outcome.new_authority {
        println!("  a local CA for {} was made: {}", settings.domain, folder.join(tls::CA_FILE).display());
    } else if outcome.new_certificate {
        info!(renew_at = %outcome.renew_at, "a new certificate was made");
    }
    Ok(())
}

fn report(result: io::Result<()>, what: &str) {
    if let Err(error) = result {
        warn!(%error, "{what}");
    }
}

fn listen_for_signals(sender: mpsc::Sender<Happening>) -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if sender.send(Happening::Roster(Event::Stop)).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

struct Keeper {
    roster: Roster,
    settings: Settings,
    listeners: Listeners,
    manner: Manner,
    sender: mpsc::Sender<Happening>,
    handles: BTreeMap<Role, Running>,
    /// Processes so far; the last one's serial.
    started: Serial,
    handover: Handover,
    asking: BTreeMap<Role, JoinHandle<()>>,
    begun: Instant,
    over: bool,
    /// No VM runs any more, so that nothing needs the networks.
    machines_down: bool,
    gave_up: Option<Role>,
}

impl Keeper {
    async fn keep(&mut self, mut receiver: mpsc::Receiver<Happening>) {
        let mut looks = tokio::time::interval(CERTIFICATE_LOOK);
        self.tell(&Event::Open);
        while !self.over {
            let due = async {
                match self.roster.deadline() {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                happening = receiver.recv() => match happening {
                    Some(happening) => self.hear(happening),
                    None => unreachable!("the keeper holds a sender"),
                },
                () = due => self.tell(&Event::Due),
                _ = looks.tick() => report_tls(certificate(&self.settings)),
            }
        }
    }

    fn hear(&mut self, happening: Happening) {
        match happening {
            Happening::Roster(event) => {
                if event == Event::Stop {
                    println!("\nGatehouse closes. Once more: at once.");
                    report(
                        self.manner.waiters.closing(&self.settings),
                        "nobody could be told of the closing",
                    );
                    self.end_side_processes();
                }
                if let Event::Ready(role) = event {
                    println!("  {role} answers");
                }
                self.tell(&event);
            }
            Happening::Ended(role, serial, how) => {
                if self.handles.get(&role).is_none_or(|running| running.serial != serial) {
                    return self.side_process_ended(serial, &how);
                }
                self.handles.remove(&role);
                if let Some(asking) = self.asking.remove(&role) {
                    asking.abort();
                }
                info!(program = %role, %how, "ended");
                self.tell(&Event::Died(role));
            }
            Happening::Stuck(role, error) => {
                error!(program = %role, %error, "does not answer; it is started anew");
                self.send(role, Signal::KILL);
            }
            Happening::MachinesAsked(outcome) => {
                self.machines_down = outcome.is_ok();
                match outcome {
                    Ok(0) => {}
                    Ok(stopped) => println!("  {stopped} VMs are down"),
                    Err(error) => warn!(%error, "not all VMs could be shut down in order"),
                }
                self.tell(&Event::MachinesDown);
            }
            Happening::Reload(asker) => self.reload(asker),
            Happening::Successor(serial, outcome) => self.successor(serial, outcome),
        }
    }

    fn tell(&mut self, event: &Event) {
        for effect in self.roster.handle(event, Instant::now()) {
            self.act(effect);
        }
    }

    fn act(&mut self, effect: Effect) {
        match effect {
            Effect::Launch(role) => self.launch(role),
            Effect::Waiting(role, wait) => warn!(program = %role, ?wait, "it is started again after a wait"),
            Effect::GivingUp(role) => {
                error!(program = %role, "it died each time; the house closes");
                self.gave_up = Some(role);
            }
            Effect::Terminate(role) => self.send(role, Signal::TERM),
            Effect::Kill(role) => {
                warn!(program = %role, "it is killed");
                self.send(role, Signal::KILL);
            }
            Effect::StopMachines => self.stop_machines(),
            Effect::Serving => {
                report(self.manner.waiters.ready(&self.settings), "nobody could be told that all is ready");
                if self.manner.close {
                    self.post(Happening::Roster(Event::Stop));
                } else {
                    println!("{}", announce::welcome(&self.settings, self.begun.elapsed()));
                }
            }
            Effect::Over => self.over = true,
        }
    }

    fn launch(&mut self, role: Role) {
        let started = match children::start(role, &self.settings, &self.listeners) {
            Ok(started) => started,
            Err(error) => {
                error!(program = %role, %error, "it cannot be started");
                return self.post(Happening::Roster(Event::Died(role)));
            }
        };
        let running = self.watch(role, started);
        self.handles.insert(role, running);
        let (sender, settings) = (self.sender.clone(), self.settings.clone());
        let asking = tokio::spawn(async move {
            let happening = match ready::wait(role, &settings).await {
                Ok(()) => Happening::Roster(Event::Ready(role)),
                Err(error) => Happening::Stuck(role, error),
            };
            told(sender.send(happening).await);
        });
        self.asking.insert(role, asking);
    }

    /// Hears of a process' end from now on.
    fn watch(&mut self, role: Role, started: Started) -> Running {
        self.started += 1;
        let (serial, sender, mut child) = (self.started, self.sender.clone(), started.child);
        tokio::spawn(async move {
            let how = match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => format!("in a way that is not known: {error}"),
            };
            told(sender.send(Happening::Ended(role, serial, how)).await);
        });
        Running { serial, handle: started.handle }
    }

    fn stop_machines(&self) {
        println!("  VMs are shut down");
        let (sender, socket) = (self.sender.clone(), places(&self.settings).admin_socket());
        tokio::spawn(async move {
            let outcome = async {
                let api = Api::operator(&socket)?;
                client::vm::stop_all(&api).await
            };
            let outcome = outcome.await.map_err(|error: client::ClientError| error.to_string());
            told(sender.send(Happening::MachinesAsked(outcome)).await);
        });
    }

    /// Puts an event in line from within the loop, which must not wait for itself.
    fn post(&self, happening: Happening) {
        let sender = self.sender.clone();
        tokio::spawn(async move { told(sender.send(happening).await) });
    }

    fn send(&self, role: Role, signal: Signal) {
        if let Some(running) = self.handles.get(&role) {
            report(running.handle.signal(signal), "a signal cannot be sent");
        }
    }
}

/// The loop is over when nobody listens any more; then nobody needs to know.
fn told(sent: Result<(), mpsc::error::SendError<Happening>>) {
    if let Err(error) = sent {
        info!(happening = ?error.0, "after the end");
    }
}

fn report_tls(result: Result<(), TlsError>) {
    if let Err(error) = result {
        error!(%error, "the certificate cannot be renewed; the old one is shown until it ends");
    }
}
