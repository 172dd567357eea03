//! Named network namespaces (ip-netns(8)), and threads that live in one.
//!
//! No thread of the async runtime ever changes its namespace: what must happen inside is a closure handed to a
//! thread that entered once and stays.

use crate::chaos;
use crate::sys;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use thiserror::Error;
use tokio::sync::oneshot;

/// Where namespaces have names.
const FOLDER: &str = "/run/netns";
/// Closures that wait for a namespace's thread. Each is a system call or two; more would mean that it hangs.
const MAX_WAITING: usize = 1024;
/// `NSFS_MAGIC` of include/uapi/linux/magic.h: the file is a namespace and not an empty file that should be one.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// What can go wrong with a namespace.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// The folder of names cannot be made, shared or read.
    #[error("{FOLDER} cannot be read or prepared: {0}")]
    Folder(#[source] io::Error),
    /// It cannot be made.
    #[error("network namespace {path} cannot be made: {source}")]
    Make {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be opened.
    #[error("network namespace {path} cannot be opened: {source}")]
    Open {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be removed.
    #[error("network namespace {path} cannot be removed: {source}")]
    Remove {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its thread cannot be started.
    #[error("a thread cannot enter the namespace: {0}")]
    Enter(#[source] io::Error),
    /// Its thread has too much to do.
    #[error("the namespace's thread has {MAX_WAITING} requests to serve already")]
    Busy,
    /// Its thread is gone.
    #[error("the namespace's thread is gone")]
    Gone,
}

/// Opens the namespace of this name, and makes it if it is not there; says whether it did. Repeatable after a kill at any
/// point.
///
/// # Errors
/// When the process may not mount, or the file system is read-only.
pub fn ensure(name: &str) -> Result<(OwnedFd, bool), NamespaceError> {
    prepare_folder().map_err(NamespaceError::Folder)?;
    let path = Path::new(FOLDER).join(name);
    if let Some(found) = open(name)? {
        return Ok((found, false));
    }
    let failed = |source| NamespaceError::Make { path: path.clone(), source };
    let mode = OFlags::CREATE | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(&path, mode, Mode::from_raw_mode(0o444)).map_err(|e| failed(e.into()))?;
    chaos::border();
    let target = path.clone();
    // A thread of its own enters the new namespace and takes it along into its grave; the mount keeps it.
    let made = thread::spawn(move || {
        sys::namespace::enter_new()?;
        Ok(rustix::mount::mount_bind("/proc/thread-self/ns/net", &target)?)
    });
    made.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())).map_err(failed)?;
    chaos::border();
    open(name)?.map(|made| (made, true)).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
}

/// Opens the namespace of this name; none when there is none (also when only its empty file is there).
///
/// # Errors
/// When the file cannot be opened.
pub fn open(name: &str) -> Result<Option<OwnedFd>, NamespaceError> {
    let path = Path::new(FOLDER).join(name);
    let failed = |source: Errno| NamespaceError::Open { path: path.clone(), source: source.into() };
    let file = match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let kind = rustix::fs::fstatfs(&file).map_err(failed)?.f_type;
    Ok((kind == NSFS_MAGIC).then_some(file))
}

/// The names that there are; empty files that should be namespaces count, too.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn all() -> Result<Vec<String>, NamespaceError> {
    let entries = match std::fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(NamespaceError::Folder(error)),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().ok()));
    let names = names.collect::<io::Result<Vec<_>>>().map_err(NamespaceError::Folder)?;
    Ok(names.into_iter().flatten().collect())
}

/// Removes the name; the namespace and all devices in it end with its last user. Nothing happens when it is not there.
///
/// # Errors
/// When the mount or the file cannot be removed.
pub fn remove(name: &str) -> Result<(), NamespaceError> {
    let path = Path::new(FOLDER).join(name);
    let failed = |source: Errno| NamespaceError::Remove { path: path.clone(), source: source.into() };
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(failed(error)),
    }
    chaos::border();
    match rustix::fs::unlink(&path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// A thread that lives in a namespace. Dropping the last handle ends it.
#[derive(Clone)]
pub struct Inside {
    jobs: Arc<SyncSender<Job>>,
}

type Job = Box<dyn FnOnce() + Send>;

impl Inside {
    /// Starts a thread that enters the namespace.
    ///
    /// # Errors
    /// When it cannot be started or may not enter.
    pub fn start(namespace: OwnedFd) -> Result<Self, NamespaceError> {
        let (jobs, waiting): (_, Receiver<Job>) = sync_channel(MAX_WAITING);
        let (entered, result) = std::sync::mpsc::channel();
        thread::Builder::new()
            .name("inside".to_owned())
            .spawn(move || {
                let outcome = sys::namespace::enter(&namespace);
                let good = outcome.is_ok();
                if entered.send(outcome).is_ok() && good {
                    waiting.into_iter().for_each(|job| job());
                }
            })
            .map_err(NamespaceError::Enter)?;
        result.recv().map_err(|_| NamespaceError::Gone)?.map_err(NamespaceError::Enter)?;
        Ok(Self { jobs: Arc::new(jobs) })
    }

    /// Whether both are the same thread.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.jobs, &other.jobs)
    }

    /// Runs the closure on the thread. It must not block for long.
    ///
    /// # Errors
    /// [`NamespaceError::Busy`] when too many wait, [`NamespaceError::Gone`] when the closure panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NamespaceError> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // The asker may have gone; then nobody wants the result.
            drop(done.send(work()));
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => NamespaceError::Busy,
            TrySendError::Disconnected(_) => NamespaceError::Gone,
        })?;
        result.await.map_err(|_| NamespaceError::Gone)
    }
}

/// As ip-netns(8) does it: the folder is a mount of its own and shared, so that a name that is removed here
/// disappears from every mount namespace.
fn prepare_folder() -> io::Result<()> {
    std::fs::create_dir_all(FOLDER)?;
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    match rustix::mount::mount_change(FOLDER, shared) {
        Ok(()) => Ok(()),
        Err(Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(FOLDER, FOLDER)?;
            Ok(rustix::mount::mount_change(FOLDER, shared)?)
        }
        Err(error) => Err(error.into()),
    }
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside").finish_non_exhaustive()
    }
}
