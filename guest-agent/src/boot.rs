//! The call home: at boot the agent asks the host who it is, and holds the line.
//!
//! A machine that was restored does not boot, but its line breaks: the host resets the vsock transport, on which the
//! waiting read ends with an error at once. So the agent calls again, and the answer says what to mend. The order of
//! that is in [`crate::pure::plan`]; what may take long waits for [`crate::chores`]. All waits here are of the
//! monotonic clock, which no step of the wall clock moves.

use crate::chores::{Chores, Worker};
use crate::place::Root;
use crate::pure::pace::Pace;
use crate::pure::plan::{Step, steps, time_now};
use crate::transport::{Connection, Host};
use crate::wire::{self, WireError};
use crate::{error_chain, host_keys, machine, network};
use model::agent::{AgentErrorKind, AgentHello, AgentReply, BootConfig};
use model::net::MacAddress;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::sleep;
use std::time::{Duration, Instant};
use thiserror::Error;

/// How long the host may take for its answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// Why a call ended.
#[derive(Debug, Error)]
pub enum BootError {
    /// Nobody answers.
    #[error("the host does not answer the boot call")]
    Call(#[source] io::Error),
    /// The line broke, or made no sense.
    #[error("the boot call broke")]
    Wire(#[from] WireError),
    /// The host hung up before it told who this machine is.
    #[error("the host hung up before it answered")]
    HungUp,
    /// This boot cannot be told.
    #[error("cannot say which boot this is")]
    Hello(#[source] machine::MachineError),
    /// The connection's settings are refused.
    #[error("cannot set the call's deadlines")]
    Deadlines(#[source] io::Error),
    /// What the host asked for is not done; it was told.
    #[error("cannot apply the host's settings")]
    Apply(#[source] ApplyError),
}

/// Why the host's settings are not in force.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The random numbers may be those of another machine.
    #[error("fresh entropy")]
    Reseed(#[source] machine::MachineError),
    /// The wall clock is wrong.
    #[error("clock")]
    Clock(#[source] machine::MachineError),
    /// The machine-id may be that of another machine.
    #[error("machine-id")]
    MachineId(#[source] machine::MachineError),
    /// The host name is not set.
    #[error("host name")]
    HostName(#[source] machine::MachineError),
    /// The SSH host keys are not made.
    #[error("SSH host keys")]
    HostKeys(#[from] host_keys::HostKeyError),
    /// The NIC is not set.
    #[error("network")]
    Network(#[from] network::NetworkError),
}

/// Who calls the host.
pub struct Caller {
    host: Host,
    root: Root,
    chores: Worker,
    pace: Pace,
    /// Whether a line ever stood.
    was_heard: bool,
    /// The NIC's Ethernet address, when this process has set it.
    nic: Option<MacAddress>,
}

/// When the host's answer came, and how long after the question.
#[derive(Clone, Copy)]
struct Heard {
    round_trip: Duration,
    at: Instant,
}

impl Caller {
    /// With a thread for what may take long.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub fn new(host: Host, root: Root) -> io::Result<Self> {
        let chores = Worker::start(root.clone())?;
        Ok(Self { host, root, chores, pace: Pace::new(), was_heard: false, nic: None })
    }

    /// Calls the host, for ever: a call that ends is made again.
    pub fn keep_calling(mut self) {
        let mut failures = 0usize;
        loop {
            match self.call() {
                Ok(end) => {
                    failures = 0;
                    let why = end.map_or_else(|| "the host hung up".to_owned(), |error| error_chain(&error));
                    eprintln!("gatehouse-agent: {why}; calling again");
                }
                Err(error) => {
                    failures += 1;
                    // At each power of two: the log must not be filled by a host that is away.
                    if failures.is_power_of_two() {
                        eprintln!("gatehouse-agent: call {failures}: {}", error_chain(&error));
                    }
                }
            }
            // Whoever waits for this machine must not wait for a host that is not there.
            tell_systemd();
            sleep(self.pace.next_wait());
        }
    }

    /// One call, from the hello to the end of the line, which is told with its reason when it has one.
    fn call(&mut self) -> Result<Option<WireError>, BootError> {
        let mut host = Connection::call(&self.host).map_err(BootError::Call)?;
        host.set_timeouts(Some(ANSWER_DEADLINE), Some(ANSWER_DEADLINE)).map_err(BootError::Deadlines)?;
        let hello = AgentHello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: machine::boot_id().map_err(BootError::Hello)?,
        };
        let asked = Instant::now();
        wire::write_message(&mut host, &hello)?;
        let config: BootConfig = wire::read_message(&mut host)?.ok_or(BootError::HungUp)?;
        let heard = Heard { round_trip: asked.elapsed(), at: Instant::now() };
        let late_keys = match self.apply(&config, heard) {
            Ok(late_keys) => late_keys,
            Err(error) => {
                let reply =
                    AgentReply::Error { kind: AgentErrorKind::Internal, message: error_chain(&error) };
                wire::write_reply(&mut host, &reply)?;
                return Err(BootError::Apply(error));
            }
        };
        if let Some(network) = &config.network {
            self.nic = Some(network.mac);
        }
        wire::write_reply(&mut host, &AgentReply::Done)?;
        tell_systemd();
        if let Some(restored) = &config.restored {
            let identity = restored.identity;
            self.chores.add(Chores { identity, host_name: config.hostname.clone(), host_keys: late_keys });
        }
        host.set_timeouts(None, None).map_err(BootError::Deadlines)?;
        let since = Instant::now();
        let end = hold(&mut host);
        self.pace.line_broke(since.elapsed(), !self.was_heard);
        self.was_heard = true;
        Ok(end)
    }

    /// Does what the host says, and tells the kinds of host keys that are left for later.
    fn apply(&self, config: &BootConfig, heard: Heard) -> Result<Vec<&'static str>, ApplyError> {
        let mut late_keys = Vec::new();
        for step in steps(config) {
            match step {
                Step::Reseed => {
                    let entropy = config.restored.as_ref().map_or(&[][..], |restored| &restored.entropy);
                    machine::reseed(entropy).map_err(ApplyError::Reseed)?;
                }
                Step::Clock => {
                    let now = time_now(config.unix_nanoseconds, heard.round_trip, heard.at.elapsed());
                    machine::set_clock(now).map_err(ApplyError::Clock)?;
                }
                Step::MachineId => machine::renew_machine_id(&self.root).map_err(ApplyError::MachineId)?,
                Step::HostName => {
                    machine::set_host_name(&self.root, &config.hostname).map_err(ApplyError::HostName)?;
                }
                Step::HostKeys => late_keys = host_keys::renew(&self.root, &config.hostname)?,
                Step::Network => {
                    let configure = |settings| network::configure(&self.root, settings);
                    config.network.as_ref().map_or(Ok(()), configure)?;
                }
                Step::NewNetwork => {
                    let renew = |settings| network::become_another(&self.root, settings, self.nic);
                    config.network.as_ref().map_or(Ok(()), renew)?;
                }
            }
        }
        Ok(late_keys)
    }
}

/// The host says nothing more; its leaving is what is waited for. After a restore that is an error of the read.
fn hold(host: &mut Connection) -> Option<WireError> {
    loop {
        match wire::read_frame(host, &mut Vec::new()) {
            Ok(Some(_)) => {}
            Ok(None) => return None,
            Err(error) => return Some(error),
        }
    }
}

/// Says that what is ordered after the agent may start (sd_notify(3)). Repeating it does no harm.
fn tell_systemd() {
    let Some(place) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let place = place.to_string_lossy();
    let address = match place.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&*place),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        eprintln!("gatehouse-agent: systemd cannot be told that the agent is ready: {error}");
    }
}
