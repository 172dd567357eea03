//! Processes that wait for their order, in their jail and with KVM's half of a machine made, so that neither is on the
//! way of a wake.

use feed::wire::pair;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// So many wait. Two wakes at once find one each; a burst makes the rest while it waits anyway.
const WAITING: usize = 2;

/// A process that has no order yet.
#[derive(Debug)]
pub struct Shell {
    /// Our child.
    pub child: Child,
    /// The connection that its order goes over.
    pub near: OwnedFd,
}

/// Those that wait. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Shells {
    program: PathBuf,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    shells: VecDeque<Shell>,
    /// No more are to wait.
    ended: bool,
}

impl Shells {
    /// None yet; `program` is what they run.
    #[must_use]
    pub fn new(program: PathBuf) -> Self {
        Self { program, waiting: Arc::default() }
    }

    /// One that waits, or a new one. Blocks for as long as a process takes to start.
    ///
    /// # Errors
    /// When the host lets no process start.
    pub fn take(&self) -> io::Result<Shell> {
        loop {
            let taken = self.lock().shells.pop_front();
            let Some(mut shell) = taken else { return self.start() };
            match shell.child.try_wait()? {
                None => return Ok(shell),
                Some(status) => tracing::warn!(%status, "a process that waited for its order is gone"),
            }
        }
    }

    /// Has as many wait as should. Blocks like [`Self::take`].
    ///
    /// # Errors
    /// When the host lets no process start.
    pub fn refill(&self) -> io::Result<()> {
        let more = |waiting: &Waiting| !waiting.ended && waiting.shells.len() < WAITING;
        while more(&self.lock()) {
            let shell = self.start()?;
            let mut waiting = self.lock();
            if !more(&waiting) {
                drop(waiting);
                return end(shell);
            }
            waiting.shells.push_back(shell);
        }
        Ok(())
    }

    /// Ends those that wait; none does from now on. Blocks until they are gone.
    ///
    /// # Errors
    /// When one cannot be ended.
    pub fn end(&self) -> io::Result<()> {
        let mut waiting = self.lock();
        waiting.ended = true;
        let shells = std::mem::take(&mut waiting.shells);
        drop(waiting);
        shells.into_iter().try_for_each(end)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // No code under the lock can panic half-way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The socket is its standard input: nothing else is inherited.
    fn start(&self) -> io::Result<Shell> {
        let (near, far) = pair()?;
        let child = Command::new(&self.program)
            .arg("run")
            .stdin(Stdio::from(far))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .current_dir("/")
            .spawn()?;
        Ok(Shell { child, near })
    }
}

fn end(mut shell: Shell) -> io::Result<()> {
    shell.child.kill()?;
    shell.child.wait().map(drop)
}
