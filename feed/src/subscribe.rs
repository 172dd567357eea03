//! A reader's end: the newest good view, from the file, without waiting for control.
//!
//! ```text
//!            file good, generation newer
//!   Empty ───────────────────────────────► Held(g) ──┐ newer and good: Held(g')
//!     │ file missing or bad: wait                    │ older, bad, of another version, of another owner: stay
//!     └──────────────◄───────────────────────────────┘
//! ```

use crate::publish::Announcement;
use crate::wire::{Wire, WireError};
use arc_swap::ArcSwapOption;
use model::id::Generation;
use model::view::{VIEW_VERSION, View};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::watch;
use tracing::{info, warn};

/// Largest view file: 50,000 routes of about 200 bytes and as many certificates of 4 KiB.
pub const MAX_VIEW_BYTES: u64 = 256 << 20;
/// Wait between tries to reach control's announcements. The file goes on being good meanwhile.
const RECONNECT: Duration = Duration::from_millis(200);

/// Why a view file is not taken over.
#[derive(Debug, Error)]
pub enum ViewError {
    /// It is not there yet, or cannot be read.
    #[error("view file {path} cannot be read: {source}")]
    Read {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It belongs to a user who is neither root nor the one who runs this process' publisher.
    #[error("view file {path} belongs to user {uid}, who may not publish")]
    Owner {
        /// Of the file.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// It is over [`MAX_VIEW_BYTES`].
    #[error("view file {path} is too large")]
    TooLarge {
        /// Of the file.
        path: PathBuf,
    },
    /// It is not the expected JSON.
    #[error("view file {path} cannot be understood: {source}")]
    Malformed {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another build wrote it.
    #[error("view has layout {got}, this build reads {VIEW_VERSION}")]
    Version {
        /// The file's layout.
        got: u32,
    },
    /// It is older than what is held.
    #[error("view generation {got} is older than {held}")]
    Older {
        /// The file's.
        got: Generation,
        /// Ours.
        held: Generation,
    },
}

/// The newest good view of kind `V`. Cheap to clone; reading takes no lock.
#[derive(Debug)]
pub struct Feed<V> {
    shared: Arc<Shared<V>>,
}

impl<V> Clone for Feed<V> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

#[derive(Debug)]
struct Shared<V> {
    path: PathBuf,
    publishers: Vec<u32>,
    held: ArcSwapOption<V>,
    generation: watch::Sender<Option<Generation>>,
    /// What this process has told to be in force.
    in_force: watch::Sender<Option<Generation>>,
    refused: AtomicU64,
}

impl<V: View> Feed<V> {
    /// Reads the file in `folder` if it is there. It must belong to root or to one of `publishers`.
    #[must_use]
    pub fn open(folder: &Path, publishers: &[u32]) -> Self {
        let mut publishers = publishers.to_vec();
        publishers.push(0);
        let feed = Self {
            shared: Arc::new(Shared {
                path: folder.join(format!("{}.json", V::NAME)),
                publishers,
                held: ArcSwapOption::empty(),
                generation: watch::Sender::new(None),
                in_force: watch::Sender::new(None),
                refused: AtomicU64::new(0),
            }),
        };
        feed.refresh();
        feed
    }

    /// The view that is in force; none before the first good one.
    #[must_use]
    pub fn current(&self) -> Option<Arc<V>> {
        self.shared.held.load_full()
    }

    /// Tells of each change of generation.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Option<Generation>> {
        self.shared.generation.subscribe()
    }

    /// Waits until the view is at least at this generation.
    pub async fn reached(&self, generation: Generation) {
        let mut changes = self.changes();
        // The sender lives in `self`, so the wait cannot fail.
        let reached = changes.wait_for(|held| held.is_some_and(|held| held >= generation)).await;
        debug_assert!(reached.is_ok());
    }

    /// Says that a generation is in force: all that is asked from now on is answered by it. Control is told when it
    /// can be reached.
    pub fn in_force(&self, generation: Generation) {
        self.shared.in_force.send_replace(Some(generation));
    }

    /// Files that were refused since the start.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }

    /// Follows announcements for ever, through every absence of control.
    pub async fn follow(self, socket: PathBuf) {
        let mut told = false;
        loop {
            match self.listen(&socket).await {
                Ok(never) => match never {},
                Err(error) if !told => {
                    info!(view = V::NAME, %error, "no announcements; going on with the view at hand");
                    told = true;
                }
                Err(WireError::Closed) => told = false,
                Err(_) => {}
            }
            tokio::time::sleep(RECONNECT).await;
        }
    }

    async fn listen(&self, socket: &Path) -> Result<std::convert::Infallible, WireError> {
        let wire = Wire::connect(socket)?;
        self.refresh();
        let mut in_force = self.shared.in_force.subscribe();
        in_force.mark_changed();
        loop {
            tokio::select! {
                heard = wire.receive::<Announcement>() => {
                    if heard?.0.view == V::NAME {
                        self.refresh();
                    }
                }
                // The sender lives in `self`, so this ends only with a change.
                Ok(()) = in_force.changed() => {
                    let now = *in_force.borrow_and_update();
                    if let Some(generation) = now {
                        wire.send(&Announcement { view: V::NAME.to_owned(), generation }, &[]).await?;
                    }
                }
            }
        }
    }

    /// Takes the file over if it is newer and good; counts and logs it otherwise.
    fn refresh(&self) {
        match self.load() {
            Ok(None) => {}
            Ok(Some(view)) => {
                if view.rejected() > 0 {
                    warn!(
                        view = V::NAME,
                        rejected = view.rejected(),
                        "entries that cannot be read are left out"
                    );
                }
                let generation = view.generation();
                self.shared.held.store(Some(Arc::new(view)));
                self.shared.generation.send_replace(Some(generation));
            }
            Err(ViewError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.shared.refused.fetch_add(1, Ordering::Relaxed);
                warn!(view = V::NAME, %error, "view refused; the last good one stays");
            }
        }
    }

    fn load(&self) -> Result<Option<V>, ViewError> {
        let path = &self.shared.path;
        let bytes = read_owned(path, &self.shared.publishers)?;
        let view: V = serde_json::from_slice(&bytes)
            .map_err(|source| ViewError::Malformed { path: path.clone(), source })?;
        if view.version() != VIEW_VERSION {
            return Err(ViewError::Version { got: view.version() });
        }
        match self.current().map(|held| held.generation()) {
            Some(held) if held > view.generation() => Err(ViewError::Older { got: view.generation(), held }),
            Some(held) if held == view.generation() => Ok(None),
            Some(_) | None => Ok(Some(view)),
        }
    }
}

fn read_owned(path: &Path, publishers: &[u32]) -> Result<Vec<u8>, ViewError> {
    let failed = |source| ViewError::Read { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let facts = file.metadata().map_err(failed)?;
    if !publishers.contains(&facts.uid()) {
        return Err(ViewError::Owner { path: path.to_owned(), uid: facts.uid() });
    }
    if facts.len() > MAX_VIEW_BYTES {
        return Err(ViewError::TooLarge { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    file.take(MAX_VIEW_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::publish::Publisher;
    use model::view::VpcView;

    fn view(generation: u64) -> VpcView {
        VpcView {
            version: VIEW_VERSION,
            generation: Generation(generation),
            default_network: "10.201.0.0/16".parse().expect("network"),
            ports: Vec::new().into(),
            networks: Vec::new().into(),
        }
    }

    #[tokio::test]
    async fn a_reader_starts_from_the_file_and_follows() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("feed.sock");
        let publisher = Publisher::new(folder.path()).expect("publisher");
        publisher.publish(&view(1), None).expect("publish");
        let me = rustix::process::getuid().as_raw();
        let feed = Feed::<VpcView>::open(folder.path(), &[me]);
        assert_eq!(feed.current().expect("from the file").generation, Generation(1));
        let following = tokio::spawn(feed.clone().follow(socket.clone()));
        publisher.publish(&view(2), None).expect("while nobody announces");
        let announcing = tokio::spawn({
            let (publisher, socket) = (publisher.clone(), socket.clone());
            async move { publisher.announce(&socket).await }
        });
        feed.reached(Generation(2)).await;
        publisher.publish(&view(3), None).expect("announced");
        feed.reached(Generation(3)).await;
        feed.in_force(Generation(3));
        publisher.taken_over::<VpcView>(Generation(3)).await;
        tokio::select! {
            biased;
            () = publisher.taken_over::<VpcView>(Generation(4)) => panic!("nobody told of it"),
            () = std::future::ready(()) => {}
        }
        announcing.abort();
        following.abort();
    }

    #[test]
    fn older_foreign_and_broken_files_are_refused_and_the_last_good_one_stays() {
        let folder = tempfile::tempdir().expect("folder");
        let publisher = Publisher::new(folder.path()).expect("publisher");
        publisher.publish(&view(5), None).expect("publish");
        let me = rustix::process::getuid().as_raw();
        let feed = Feed::<VpcView>::open(folder.path(), &[me]);
        publisher.publish(&view(4), None).expect("publish");
        feed.refresh();
        let mut other = view(9);
        other.version = VIEW_VERSION + 1;
        publisher.publish(&other, None).expect("publish");
        feed.refresh();
        std::fs::write(folder.path().join("vpc.json"), b"{half").expect("write");
        feed.refresh();
        assert_eq!(feed.current().expect("held").generation, Generation(5));
        assert_eq!(feed.refused(), 3);
        assert!(matches!(
            read_owned(&folder.path().join("vpc.json"), &[me + 1]),
            Err(ViewError::Owner { uid, .. }) if uid == me
        ));
    }
}
