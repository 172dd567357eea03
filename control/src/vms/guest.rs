//! Commands and files inside a VM, which is started first when it is down.

use super::busy::UnderWay;
use super::error::OpError;
use super::{Machines, Manner};
use crate::agent::{self, AgentError, Content, ExecOutcome};
use crate::pure::phase::{Ask, Phase};
use crate::pure::request::WantedFile;
use crate::store::VmRecord;
use model::agent::{AGENT_PORT, DEFAULT_OUTPUT_BYTES, MAX_EXEC_MILLISECONDS};
use model::id::{AccountId, VmId};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use vmm::client::{Refusal, VmmError};

/// Longest wait for the agent of a VM that runs: it is rebooting, or its agent restarts.
const AGENT_WAIT: Duration = Duration::from_secs(120);
/// Wait before an agent that does not listen yet is tried again; nothing tells when it does.
const AGENT_RETRY: Duration = Duration::from_millis(50);
/// Longest for a file to be read or written, 64 MiB on a busy host.
const FILE_WAIT: Duration = Duration::from_secs(120);
/// Longest for a file system to grow: the kernel writes a few blocks for each 128 MiB.
const GROW_WAIT: Duration = Duration::from_secs(120);
/// Longest for memory to be made free: written pages go to the disk first.
const RELEASE_WAIT: Duration = Duration::from_secs(120);
/// The agent ends a command at its own timeout. An agent that does not is given up after so much more.
const EXEC_MARGIN: Duration = Duration::from_secs(10);

/// As whom to act, in which VM.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Whose VM it must be.
    pub account: &'a AccountId,
    /// The VM.
    pub vm: &'a VmId,
    /// The Linux user; root when absent.
    pub user: Option<&'a str>,
}

impl Machines {
    /// Runs a command. The VM is started when it is down. A caller who goes away ends the command.
    ///
    /// # Errors
    /// See [`OpError`]; a timeout is no error but part of the outcome.
    pub async fn exec(
        &self,
        place: Place<'_>,
        command: &str,
        timeout_milliseconds: Option<u64>,
    ) -> Result<ExecOutcome, OpError> {
        let (mut stream, _under_way) = self.agent(place.account, place.vm).await?;
        let bound = timeout_milliseconds.unwrap_or(MAX_EXEC_MILLISECONDS).min(MAX_EXEC_MILLISECONDS);
        let mut outcome = ExecOutcome::default();
        let running = agent::exec(
            &mut stream,
            command,
            place.user,
            timeout_milliseconds.map(|_| bound),
            DEFAULT_OUTPUT_BYTES,
            &mut outcome,
        );
        match timeout(Duration::from_millis(bound) + EXEC_MARGIN, running).await {
            Ok(done) => done?,
            Err(_) => outcome.timed_out = true,
        }
        Ok(outcome)
    }

    /// Reads a file whole, or lists a directory.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn read_file(&self, place: Place<'_>, path: &str) -> Result<Content, OpError> {
        let (mut stream, _under_way) = self.agent(place.account, place.vm).await?;
        within(FILE_WAIT, agent::read(&mut stream, path, place.user)).await
    }

    /// Writes a file whole.
    ///
    /// # Errors
    /// See [`OpError`].
    pub async fn write_file(&self, place: Place<'_>, path: &str, content: &[u8]) -> Result<(), OpError> {
        let (mut stream, _under_way) = self.agent(place.account, place.vm).await?;
        within(FILE_WAIT, agent::write(&mut stream, path, place.user, None, content)).await
    }

    /// Puts a file into a VM that runs.
    pub(super) async fn put_file(&self, vm: &VmRecord, file: &WantedFile) -> Result<(), OpError> {
        let mut stream = self.connect(vm).await?;
        let writing = agent::write(&mut stream, &file.path, None, Some(file.mode), &file.content);
        within(FILE_WAIT, writing).await
    }

    /// Makes the disk of a VM that runs as large as its record says, and its file system as large as its disk.
    pub(super) async fn grow_disk(&self, vm: &VmRecord) -> Result<(), OpError> {
        self.0.vmm.grow_disk(&vm.id, vm.size.disk_mib).await?;
        self.0.failpoints.pass(|| "grown".to_owned()).await;
        let mut stream = self.connect(vm).await?;
        within(GROW_WAIT, agent::grow_disk(&mut stream)).await
    }

    /// Lets a VM that runs make memory free that only caches files; its kernel gives that back to the host.
    pub(super) async fn release_memory(&self, vm: &VmRecord) -> Result<(), OpError> {
        let mut stream = self.connect(vm).await?;
        within(RELEASE_WAIT, agent::release_memory(&mut stream)).await
    }

    /// A stream to the agent of the account's VM, which does not fall asleep by itself meanwhile.
    async fn agent(&self, account: &AccountId, vm: &VmId) -> Result<(UnixStream, UnderWay), OpError> {
        // Entered before it is looked at: what runs then goes on running.
        let under_way = self.0.busy.enter(vm);
        let mut record = self.get(account, vm).await?;
        let up =
            self.0.observed.get(vm).is_some_and(|machine| machine.up && machine.instance == record.instance);
        if record.phase != Phase::Running || !up || under_way.falls_asleep {
            record = self.ask(account, vm, Ask::Start, Manner::default()).await?;
        }
        self.0.store.touch(&record).await?;
        Ok((self.connect(&record).await?, under_way))
    }

    async fn connect(&self, record: &VmRecord) -> Result<UnixStream, OpError> {
        let deadline = Instant::now() + AGENT_WAIT;
        let mut changes = self.0.observed.changes();
        loop {
            changes.mark_unchanged();
            let machine = self.0.observed.get(&record.id).filter(|m| m.instance == record.instance);
            match machine {
                Some(machine) if machine.up && machine.ready => break,
                Some(machine) if machine.up => {}
                Some(_) | None => return Err(OpError::NotRunning),
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                return Err(OpError::AgentSilent(AGENT_WAIT));
            }
        }
        loop {
            match self.0.vmm.connect(&record.id, AGENT_PORT).await {
                Err(VmmError::Refused { reason: Refusal::NoListener, .. }) if Instant::now() < deadline => {
                    sleep(AGENT_RETRY).await;
                }
                connected => return Ok(connected?),
            }
        }
    }
}

async fn within<T>(bound: Duration, work: impl Future<Output = Result<T, AgentError>>) -> Result<T, OpError> {
    timeout(bound, work).await.map_err(|_| OpError::AgentSilent(bound))?.map_err(OpError::from)
}
