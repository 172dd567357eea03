//! Takes connections, one thread each, and does what they ask.

use crate::exec::{self, ExecError, Order};
use crate::files::{self, Content, FileError};
use crate::host_keys::{self, HostKeyError};
use crate::place::Root;
use crate::sys::identity::take_file_rights;
use crate::transport::{Connection, Listener};
use crate::users::{self, UserError};
use crate::wire::{self, WireError};
use crate::{error_chain, grow, machine, network};
use model::agent::{AgentErrorKind, AgentReply, AgentRequest};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use thiserror::Error;

/// Connections at once; each has a thread and, with a command, four descriptors, and 1024 is the usual bound.
pub const MAX_CONNECTIONS: usize = 192;
/// Commands at once. Fewer than connections, so that health, files and power-off have room beside them.
pub const MAX_COMMANDS: usize = 128;
/// How long a caller may take for its request, or for one piece of it.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);
/// How long a caller may take none of an answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// How long a caller over the bound may take for the refusal.
const REFUSAL_DEADLINE: Duration = Duration::from_secs(1);
/// Rest after a failed accept, which mostly means too few descriptors: there is no event for their return.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// A thread's stack. The deepest is a recursive removal, which the standard library does in a loop of descriptors.
const STACK_BYTES: usize = 512 << 10;

/// What may be done to the place where the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything: the machine is the VM.
    Machine,
    /// Commands and files alone: the machine is somebody's own.
    CommandsAndFiles,
}

/// Why an operation failed.
#[derive(Debug, Error)]
enum OperationError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Exec(#[from] ExecError),
    #[error(transparent)]
    Machine(#[from] machine::MachineError),
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    #[error(transparent)]
    Grow(#[from] grow::GrowError),
    #[error(transparent)]
    HostKeys(#[from] HostKeyError),
    #[error("cannot take the user's rights to files")]
    Rights(#[source] io::Error),
    #[error("{MAX_COMMANDS} commands run already")]
    TooManyCommands,
    #[error("only an agent inside a VM does this")]
    OutOfScope,
    #[error("cannot answer")]
    Answer(#[from] WireError),
}

impl OperationError {
    fn kind(&self) -> AgentErrorKind {
        match self {
            Self::File(error) => error.kind(),
            Self::User(UserError::Unknown(_)) => AgentErrorKind::UserNotFound,
            Self::Machine(machine::MachineError::HostName(_)) | Self::OutOfScope => AgentErrorKind::Invalid,
            Self::Network(network::NetworkError::NoNic(_)) => AgentErrorKind::NotFound,
            Self::TooManyCommands => AgentErrorKind::Busy,
            Self::User(UserError::Read { .. })
            | Self::Exec(_)
            | Self::Machine(_)
            | Self::Network(_)
            | Self::Grow(_)
            | Self::HostKeys(_)
            | Self::Rights(_)
            | Self::Answer(_) => AgentErrorKind::Internal,
        }
    }

    /// Whether the caller cannot be told: it is gone, or the stream is in an unknown state.
    fn is_silent(&self) -> bool {
        matches!(
            self,
            Self::Answer(_)
                | Self::File(FileError::Wire(_))
                | Self::Exec(ExecError::HostGone | ExecError::Reply(_))
        )
    }
}

/// What all connections share.
struct Server {
    scope: Scope,
    connections: AtomicUsize,
    commands: AtomicUsize,
    refused: AtomicUsize,
}

/// Serves for ever.
pub fn serve(listener: &Listener, scope: Scope) -> ! {
    let server = Arc::new(Server {
        scope,
        connections: AtomicUsize::new(0),
        commands: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
    });
    loop {
        match listener.accept() {
            Ok(Some(connection)) => server.admit(connection),
            Ok(None) => server.count_refusal("it does not come from the host"),
            Err(error) => {
                eprintln!("gatehouse-agent: cannot accept a connection: {error}");
                thread::sleep(ACCEPT_REST);
            }
        }
    }
}

/// Room under a bound; given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(count: &'a AtomicUsize, bound: usize) -> Option<Self> {
        let more = |now: usize| (now < bound).then_some(now + 1);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(count))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    fn admit(self: &Arc<Self>, mut connection: Connection) {
        let Some(place) = Place::take(&self.connections, MAX_CONNECTIONS) else {
            self.count_refusal("the agent is at its bound of connections");
            let message = format!("{MAX_CONNECTIONS} operations run already");
            let reply = AgentReply::Error { kind: AgentErrorKind::Busy, message };
            let told = connection
                .set_timeouts(Some(REFUSAL_DEADLINE), Some(REFUSAL_DEADLINE))
                .map_err(WireError::Write)
                .and_then(|()| wire::write_reply(&mut connection, &reply));
            return report(told);
        };
        // The thread takes the place over: its own guard gives it back.
        std::mem::forget(place);
        let server = Arc::clone(self);
        let serve = move || {
            let _place = Place(&server.connections);
            server.serve_one(connection);
        };
        let builder = thread::Builder::new().name("operation".into()).stack_size(STACK_BYTES);
        if let Err(error) = builder.spawn(serve) {
            drop(Place(&self.connections));
            eprintln!("gatehouse-agent: no thread for an operation: {error}");
        }
    }

    fn count_refusal(&self, reason: &str) {
        let count = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        // At each power of two: a flood must not become one of log lines.
        if count.is_power_of_two() {
            eprintln!("gatehouse-agent: connection refused, {count} so far: {reason}");
        }
    }

    fn serve_one(&self, mut connection: Connection) {
        if let Err(error) = connection.set_timeouts(Some(REQUEST_DEADLINE), Some(ANSWER_DEADLINE)) {
            return eprintln!("gatehouse-agent: cannot set a connection's deadlines: {error}");
        }
        let request = match wire::read_message(&mut connection) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(error) => {
                let message = error_chain(&error);
                eprintln!("gatehouse-agent: bad request: {message}");
                let reply = AgentReply::Error { kind: AgentErrorKind::Invalid, message };
                return report(wire::write_reply(&mut connection, &reply));
            }
        };
        let Err(error) = self.perform(&mut connection, request) else { return };
        let message = error_chain(&error);
        if error.is_silent() {
            return eprintln!("gatehouse-agent: operation ended: {message}");
        }
        let reply = AgentReply::Error { kind: error.kind(), message };
        report(wire::write_reply(&mut connection, &reply));
    }

    fn perform(&self, connection: &mut Connection, request: AgentRequest) -> Result<(), OperationError> {
        let reply = match request {
            AgentRequest::Health => machine::health()?,
            AgentRequest::Exec { command, user, timeout_milliseconds, output_bytes } => {
                let place = Place::take(&self.commands, MAX_COMMANDS);
                let _place = place.ok_or(OperationError::TooManyCommands)?;
                let identity = users::find(user.as_deref())?;
                let timeout = timeout_milliseconds.map(Duration::from_millis);
                let order = Order { command: &command, identity: &identity, timeout, output_bytes };
                return Ok(exec::run(connection, &order)?);
            }
            AgentRequest::Read { path, user } => {
                take_rights(user.as_deref())?;
                return Ok(files::read(connection, files::absolute(&path)?)?);
            }
            AgentRequest::Write { path, user, mode, size } => {
                write_file(&mut Content::new(connection, size), &path, user.as_deref(), mode)?
            }
            AgentRequest::List { path, user } => {
                take_rights(user.as_deref())?;
                files::list(files::absolute(&path)?)?
            }
            AgentRequest::Stat { path, user } => {
                take_rights(user.as_deref())?;
                files::stat(files::absolute(&path)?)?
            }
            AgentRequest::Remove { path, user, recursive } => {
                take_rights(user.as_deref())?;
                files::remove(files::absolute(&path)?, recursive)?
            }
            AgentRequest::ConfigureNetwork(settings) => {
                self.must_be_machine()?;
                network::configure(&Root::system(), &settings)?;
                AgentReply::Done
            }
            AgentRequest::SetClock { unix_nanoseconds } => {
                self.must_be_machine()?;
                machine::set_clock(unix_nanoseconds)?;
                AgentReply::Done
            }
            AgentRequest::GrowDisk => {
                self.must_be_machine()?;
                grow::when_larger(Path::new("/"))?;
                AgentReply::Done
            }
            AgentRequest::HostKeys => AgentReply::HostKeys { keys: host_keys::shown(&Root::system())? },
            AgentRequest::ReleaseMemory => {
                self.must_be_machine()?;
                machine::release_memory()?;
                AgentReply::Done
            }
            AgentRequest::PowerOff => {
                self.must_be_machine()?;
                // First the answer: there may be no time for it afterwards.
                wire::write_reply(connection, &AgentReply::Done)?;
                machine::power_off()?;
                return Ok(());
            }
        };
        Ok(wire::write_reply(connection, &reply)?)
    }

    fn must_be_machine(&self) -> Result<(), OperationError> {
        if self.scope == Scope::Machine { Ok(()) } else { Err(OperationError::OutOfScope) }
    }
}

fn write_file(
    content: &mut Content<'_>,
    path: &str,
    user: Option<&str>,
    mode: Option<u32>,
) -> Result<AgentReply, OperationError> {
    let written = take_rights(user)
        .and_then(|()| Ok(files::absolute(path)?))
        .and_then(|path| Ok(files::write(content, path, mode)?));
    if written.as_ref().is_err_and(|error| !error.is_silent()) {
        content.discard()?;
    }
    written
}

/// This thread acts as the user from here on; it ends with the operation.
fn take_rights(user: Option<&str>) -> Result<(), OperationError> {
    let Some(name) = user else { return Ok(()) };
    take_file_rights(&users::find(Some(name))?).map_err(OperationError::Rights)
}

fn report(sent: Result<(), WireError>) {
    if let Err(error) = sent {
        eprintln!("gatehouse-agent: the caller was not told: {}", error_chain(&error));
    }
}
