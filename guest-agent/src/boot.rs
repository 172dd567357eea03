//! The call home: at boot the agent asks the host who it is, and holds the line.

use crate::transport::Connection;
use crate::wire::{self, WireError};
use crate::{error_chain, machine, network};
use model::agent::{AgentErrorKind, AgentHello, AgentReply, BootConfig};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::thread::sleep;
use std::time::Duration;
use thiserror::Error;

/// Wait before the second call; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait between calls: after a host's restart the guest is known again within it.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
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
}

/// Why the host's settings are not in force.
#[derive(Debug, Error)]
enum ApplyError {
    #[error("clock")]
    Clock(#[source] machine::MachineError),
    #[error("host name")]
    HostName(#[source] machine::MachineError),
    #[error("network")]
    Network(#[from] network::NetworkError),
}

/// Calls the host, for ever: a call that ends is made again.
pub fn keep_calling() {
    let mut wait = FIRST_WAIT;
    let mut failures = 0usize;
    loop {
        match call(&mut wait) {
            Ok(()) => {
                failures = 0;
                eprintln!("gatehouse-agent: the host hung up; calling again");
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
        sleep(wait);
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// One call, from the hello to its end.
fn call(wait: &mut Duration) -> Result<(), BootError> {
    let mut host = Connection::to_boot_port().map_err(BootError::Call)?;
    host.set_timeouts(Some(ANSWER_DEADLINE), Some(ANSWER_DEADLINE)).map_err(BootError::Deadlines)?;
    let hello = AgentHello {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: machine::boot_id().map_err(BootError::Hello)?,
    };
    wire::write_message(&mut host, &hello)?;
    let config: BootConfig = wire::read_message(&mut host)?.ok_or(BootError::HungUp)?;
    let reply = match apply(&config) {
        Ok(()) => AgentReply::Done,
        Err(error) => {
            let message = error_chain(&error);
            eprintln!("gatehouse-agent: cannot apply the host's settings: {message}");
            AgentReply::Error { kind: AgentErrorKind::Internal, message }
        }
    };
    wire::write_reply(&mut host, &reply)?;
    tell_systemd();
    *wait = FIRST_WAIT;
    host.set_timeouts(None, None).map_err(BootError::Deadlines)?;
    // The host says nothing more; its leaving is what is waited for.
    while wire::read_frame(&mut host, &mut Vec::new())?.is_some() {}
    Ok(())
}

fn apply(config: &BootConfig) -> Result<(), ApplyError> {
    if config.unix_nanoseconds != 0 {
        machine::set_clock(config.unix_nanoseconds).map_err(ApplyError::Clock)?;
    }
    machine::set_host_name(&config.hostname).map_err(ApplyError::HostName)?;
    if let Some(settings) = &config.network {
        network::configure(settings)?;
    }
    Ok(())
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
