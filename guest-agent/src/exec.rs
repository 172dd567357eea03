//! Commands: a shell in its own process group, its two outputs streamed, its end and its limits watched.
//!
//! One loop waits for everything at once. While the host is slow to take output, the pipes are not read, so that a
//! command waits for its reader as it would on any pipe.

use crate::program::PATH;
use crate::sys::identity::{Identity, run_as};
use crate::transport::Connection;
use crate::wire::{self, WireError};
use model::agent::{AgentReply, FrameKind, MAX_DATA_BYTES, MAX_EXEC_MILLISECONDS};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use thiserror::Error;

/// After the shell's end, how long its outputs may stay open in other hands before they are cut off: enough for
/// the last process of a pipeline, too short to notice behind a server that was left running.
const LINGER: Duration = Duration::from_millis(100);
/// How long the host may take no output at all before the command counts as abandoned.
const HOST_STALL: Duration = Duration::from_secs(60);

/// What to run.
pub struct Order<'a> {
    /// The shell's text.
    pub command: &'a str,
    /// As whom.
    pub identity: &'a Identity,
    /// Longest time; [`MAX_EXEC_MILLISECONDS`] when absent or above.
    pub timeout: Option<Duration>,
    /// Bound of each output.
    pub output_bytes: u64,
}

/// Why a command's end is not reported as such.
#[derive(Debug, Error)]
pub enum ExecError {
    /// No process.
    #[error("cannot start the command")]
    Spawn(#[source] io::Error),
    /// The process is there but cannot be watched.
    #[error("cannot watch the command")]
    Watch(#[source] io::Error),
    /// Nobody is left to tell.
    #[error("the host went away; the command was killed")]
    HostGone,
    /// The last answer cannot be sent.
    #[error("cannot send the command's end")]
    Reply(#[from] WireError),
}

/// Runs the command and reports its output and end over the connection.
///
/// # Errors
/// See [`ExecError`]; the command's group is killed then, unless its shell had ended before.
pub fn run(connection: &mut Connection, order: &Order<'_>) -> Result<(), ExecError> {
    let mut running = Running::start(order)?;
    connection.set_nonblocking(true).map_err(ExecError::Watch)?;
    let ended = running.watch(connection);
    if ended.is_err() {
        running.abandon();
    }
    let status = ended?;
    connection.set_nonblocking(false).map_err(ExecError::Watch)?;
    let reply = AgentReply::ExecDone {
        status: (!running.timed_out).then(|| code_of(status)),
        timed_out: running.timed_out,
        truncated: running.outputs.iter().any(|output| output.truncated),
    };
    Ok(wire::write_reply(connection, &reply)?)
}

/// A shell's way of telling both kinds of end in one number.
fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

/// One output of the command.
struct Output {
    kind: FrameKind,
    pipe: Option<OwnedFd>,
    /// How much more is delivered.
    allowance: u64,
    truncated: bool,
    /// Once the end is decided: how many bytes in the pipe still count.
    last_bytes: Option<u64>,
}

impl Output {
    fn new(kind: FrameKind, pipe: impl Into<OwnedFd>, allowance: u64) -> io::Result<Self> {
        let pipe = pipe.into();
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { kind, pipe: Some(pipe), allowance, truncated: false, last_bytes: None })
    }

    /// Reads once, and gives the frame to send if there is one.
    fn read(&mut self) -> Result<Option<Vec<u8>>, ExecError> {
        let Some(pipe) = &self.pipe else { return Ok(None) };
        let mut buffer = vec![0; MAX_DATA_BYTES];
        let want = self.last_bytes.map_or(MAX_DATA_BYTES, |left| {
            usize::try_from(left).unwrap_or(MAX_DATA_BYTES).min(MAX_DATA_BYTES)
        });
        match rustix::io::read(pipe, &mut buffer[..want]) {
            Ok(0) => self.pipe = None,
            Ok(count) => return self.take(&buffer[..count]).map(Some),
            Err(Errno::AGAIN) if self.last_bytes.is_some() => self.pipe = None,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => return Err(ExecError::Watch(errno.into())),
        }
        Ok(None)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<Vec<u8>, ExecError> {
        if let Some(left) = &mut self.last_bytes {
            *left -= (bytes.len() as u64).min(*left);
            if *left == 0 {
                self.pipe = None;
            }
        }
        let keep = usize::try_from(self.allowance).unwrap_or(usize::MAX).min(bytes.len());
        self.allowance -= keep as u64;
        self.truncated |= keep < bytes.len();
        if keep == 0 {
            return Ok(Vec::new());
        }
        Ok(wire::encode(self.kind, &bytes[..keep])?)
    }

    /// From now on only what is in the pipe counts.
    fn cut_off(&mut self) -> Result<(), ExecError> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let left = rustix::io::ioctl_fionread(pipe).map_err(|errno| ExecError::Watch(errno.into()))?;
        if left == 0 {
            self.pipe = None;
        } else {
            self.last_bytes = Some(left);
        }
        Ok(())
    }
}

/// Bytes that the host has not taken yet.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    sent: usize,
    /// Since when nothing was taken.
    stalled: Option<Instant>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.sent == self.bytes.len()
    }

    fn send(&mut self, connection: &mut Connection) -> Result<(), ExecError> {
        while !self.is_empty() {
            match connection.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ExecError::HostGone),
                Ok(count) => {
                    self.sent += count;
                    self.stalled = None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stalled.get_or_insert_with(Instant::now);
                    return Ok(());
                }
                Err(_) => return Err(ExecError::HostGone),
            }
        }
        Ok(())
    }
}

struct Running {
    child: Child,
    group: Pid,
    exit: OwnedFd,
    outputs: [Output; 2],
    pending: Pending,
    deadline: Instant,
    timed_out: bool,
    status: Option<ExitStatus>,
    /// When outputs that are still open are cut off.
    linger_until: Option<Instant>,
}

/// What a wait found.
#[derive(Default)]
struct Ready {
    host_left: bool,
    exited: bool,
    readable: [bool; 2],
}

impl Running {
    fn start(order: &Order<'_>) -> Result<Self, ExecError> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(order.command).current_dir("/").env_clear().env("PATH", PATH);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        run_as(&mut command, order.identity);
        let mut child = command.spawn().map_err(ExecError::Spawn)?;
        match Self::watched(&mut child, order) {
            Ok((exit, group, outputs)) => Ok(Self {
                child,
                group,
                exit,
                outputs,
                pending: Pending::default(),
                deadline: Instant::now() + bounded(order.timeout),
                timed_out: false,
                status: None,
                linger_until: None,
            }),
            Err(error) => {
                if let Err(kill) = child.kill().and_then(|()| child.wait().map(drop)) {
                    eprintln!("gatehouse-agent: a command that cannot be watched stays: {kill}");
                }
                Err(ExecError::Watch(error))
            }
        }
    }

    fn watched(child: &mut Child, order: &Order<'_>) -> io::Result<(OwnedFd, Pid, [Output; 2])> {
        let group = Pid::from_child(child);
        let exit = pidfd_open(group, PidfdFlags::empty())?;
        let none = || io::Error::other("no pipe");
        let stdout = child.stdout.take().ok_or_else(none)?;
        let stderr = child.stderr.take().ok_or_else(none)?;
        let outputs = [
            Output::new(FrameKind::Stdout, stdout, order.output_bytes)?,
            Output::new(FrameKind::Stderr, stderr, order.output_bytes)?,
        ];
        Ok((exit, group, outputs))
    }

    /// Until the command is over and its output is with the host.
    fn watch(&mut self, connection: &mut Connection) -> Result<ExitStatus, ExecError> {
        loop {
            if let (Some(status), true) = (self.status, self.is_drained()) {
                return Ok(status);
            }
            let ready = self.wait(connection).map_err(|errno| ExecError::Watch(errno.into()))?;
            if ready.host_left {
                return Err(ExecError::HostGone);
            }
            self.pending.send(connection)?;
            for (output, readable) in self.outputs.iter_mut().zip(ready.readable) {
                if readable
                    && self.pending.is_empty()
                    && let Some(bytes) = output.read()?
                {
                    self.pending = Pending { bytes, ..Pending::default() };
                    self.pending.send(connection)?;
                }
            }
            self.look_at_clock(ready.exited, Instant::now())?;
        }
    }

    fn is_drained(&self) -> bool {
        self.pending.is_empty() && self.outputs.iter().all(|output| output.pipe.is_none())
    }

    fn look_at_clock(&mut self, exited: bool, now: Instant) -> Result<(), ExecError> {
        if exited && self.status.is_none() {
            self.status = Some(self.child.wait().map_err(ExecError::Watch)?);
            self.linger_until = Some(now + LINGER);
        }
        if self.status.is_none() && !self.timed_out && now >= self.deadline {
            self.timed_out = true;
            self.kill_group();
        }
        if self.linger_until.is_some_and(|end| now >= end) {
            self.linger_until = None;
            self.outputs.iter_mut().try_for_each(Output::cut_off)?;
        }
        match self.pending.stalled {
            Some(since) if now.duration_since(since) >= HOST_STALL => Err(ExecError::HostGone),
            Some(_) | None => Ok(()),
        }
    }

    fn wait(&self, connection: &Connection) -> Result<Ready, Errno> {
        let room = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        // The host sends nothing during a command: whatever comes, comes of its leaving.
        let left = PollFlags::IN | PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut polled = vec![PollFd::new(connection, PollFlags::IN | PollFlags::RDHUP | room)];
        let mut places = [None; 2];
        for (output, place) in self.outputs.iter().zip(&mut places) {
            if let (Some(pipe), true) = (&output.pipe, self.pending.is_empty()) {
                *place = Some(polled.len());
                polled.push(PollFd::new(pipe, PollFlags::IN));
            }
        }
        let exit = self.status.is_none().then_some(polled.len());
        if exit.is_some() {
            polled.push(PollFd::from_borrowed_fd(self.exit.as_fd(), PollFlags::IN));
        }
        match poll(&mut polled, self.next_deadline(Instant::now()).as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Ready::default()),
            Err(errno) => return Err(errno),
        }
        let came = |place: Option<usize>| place.is_some_and(|place| !polled[place].revents().is_empty());
        Ok(Ready {
            host_left: polled[0].revents().intersects(left),
            exited: came(exit),
            readable: places.map(came),
        })
    }

    fn next_deadline(&self, now: Instant) -> Option<Timespec> {
        let timeout = (self.status.is_none() && !self.timed_out).then_some(self.deadline);
        let stall = self.pending.stalled.map(|since| since + HOST_STALL);
        let next = [timeout, self.linger_until, stall].into_iter().flatten().min()?;
        let left = next.saturating_duration_since(now);
        Some(Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        })
    }

    /// Kills the whole process group.
    fn kill_group(&self) {
        match kill_process_group(self.group, Signal::KILL) {
            // Already gone.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => eprintln!("gatehouse-agent: cannot kill process group {:?}: {errno}", self.group),
        }
    }

    /// When nobody waits for the command any more: kills it, and collects the shell unless that is done.
    fn abandon(&mut self) {
        if self.status.is_some() {
            return;
        }
        self.kill_group();
        match self.child.wait() {
            Ok(status) => self.status = Some(status),
            Err(error) => eprintln!("gatehouse-agent: cannot collect {:?}: {error}", self.group),
        }
    }
}

fn bounded(timeout: Option<Duration>) -> Duration {
    let longest = Duration::from_millis(MAX_EXEC_MILLISECONDS);
    timeout.unwrap_or(longest).min(longest)
}
