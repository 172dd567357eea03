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

/// A way of question and answer that is short enough to set the clock by: it is then wrong by half of that at most.
const SHORT_WAY: Duration = Duration::from_millis(400);
/// Questions after the first for the sake of the clock. Where all ways are long, the host is so busy that another one
/// would not be shorter either.
const MORE_QUESTIONS: usize = 4;

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

/// The host's time, when it came, and how long after the question.
#[derive(Clone, Copy)]
struct Told {
    unix_nanoseconds: u64,
    round_trip: Duration,
    at: Instant,
}

/// A line to the host, and what it answered.
struct Line {
    host: Connection,
    config: BootConfig,
    told: Told,
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
        let first = self.ask()?;
        let told = first.told;
        let (Line { mut host, config, .. }, told) = sharpest(first, told, || {
            self.ask().map(|line| {
                let told = line.told;
                (line, told)
            })
        });
        let late_keys = match self.apply(&config, told) {
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

    /// Says hello on a new line.
    fn ask(&self) -> Result<Line, BootError> {
        let mut host = Connection::call(&self.host).map_err(BootError::Call)?;
        host.set_timeouts(Some(ANSWER_DEADLINE), Some(ANSWER_DEADLINE)).map_err(BootError::Deadlines)?;
        let hello = AgentHello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: machine::boot_id().map_err(BootError::Hello)?,
        };
        let asked = Instant::now();
        wire::write_message(&mut host, &hello)?;
        let config: BootConfig = wire::read_message(&mut host)?.ok_or(BootError::HungUp)?;
        let (round_trip, at) = (asked.elapsed(), Instant::now());
        let told = Told { unix_nanoseconds: config.unix_nanoseconds, round_trip, at };
        Ok(Line { host, config, told })
    }

    /// Does what the host says, and tells the kinds of host keys that are left for later.
    fn apply(&self, config: &BootConfig, told: Told) -> Result<Vec<&'static str>, ApplyError> {
        let mut late_keys = Vec::new();
        for step in steps(config) {
            match step {
                Step::Reseed => {
                    let entropy = config.restored.as_ref().map_or(&[][..], |restored| &restored.entropy);
                    machine::reseed(entropy).map_err(ApplyError::Reseed)?;
                }
                Step::Clock => {
                    let now = time_now(told.unix_nanoseconds, told.round_trip, told.at.elapsed());
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

/// Asks again while the clock would be set by an answer that was long on its way. The newest line, and the time that had
/// the shortest way; an answer without a time is taken as it is.
fn sharpest<L>(
    mut line: L,
    mut told: Told,
    mut ask: impl FnMut() -> Result<(L, Told), BootError>,
) -> (L, Told) {
    for _ in 0..MORE_QUESTIONS {
        if told.unix_nanoseconds == 0 || told.round_trip <= SHORT_WAY {
            break;
        }
        match ask() {
            Ok((newer, again)) => {
                line = newer;
                if again.round_trip < told.round_trip {
                    told = again;
                }
            }
            Err(error) => {
                // The line at hand is as good as before.
                eprintln!("gatehouse-agent: the time is not asked for again: {}", error_chain(&error));
                break;
            }
        }
    }
    (line, told)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that are used, and the time of which, when the ways take so many milliseconds. 0: nobody answers.
    fn asked(time: u64, ways: &[u64]) -> (usize, u64) {
        let at = Instant::now();
        let told = |number: usize| {
            let way = ways.get(number).copied().unwrap_or_default();
            let told = Told {
                unix_nanoseconds: time * (number as u64 + 1),
                round_trip: Duration::from_millis(way),
                at,
            };
            if way == 0 { Err(BootError::HungUp) } else { Ok((number, told)) }
        };
        let (_, first) = told(0).expect("the first answers");
        let mut number = 0;
        let (line, told) = sharpest(0, first, || {
            number += 1;
            told(number)
        });
        (line, told.unix_nanoseconds)
    }

    #[test]
    fn the_clock_is_set_by_the_answer_with_the_shortest_way() {
        assert_eq!(asked(1, &[400, 1]), (0, 1), "short enough");
        assert_eq!(asked(1, &[2000, 1500, 300, 1]), (2, 3), "until one is");
        assert_eq!(asked(1, &[2000, 900, 1500, 3000, 1000, 1]), (4, 2), "no more than so often");
        assert_eq!(asked(1, &[2000, 0]), (0, 1), "with what there is");
        assert_eq!(asked(0, &[2000, 1]), (0, 0), "no time is wanted");
    }
}
