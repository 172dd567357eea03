//! control's end: writes a view's file and tells whoever listens.
//!
//! The file is complete before it is announced: written under another name, synced, renamed, and the directory
//! synced. An announcement that is lost costs nothing, since a reader looks at the file when it connects.

use crate::wire::{Wire, WireError, WireListener};
use model::id::Generation;
use model::view::View;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{debug, warn};

/// One word over the socket, this view is at this generation now: from control, that it is published; from a reader,
/// that it is in force there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The view's name.
    pub view: String,
    /// The generation of its file.
    pub generation: Generation,
}

/// Why a view could not be published. The last one stays in force.
#[derive(Debug, Error)]
pub enum PublishError {
    /// The view cannot be written as JSON.
    #[error("view {view} cannot be encoded: {source}")]
    Encode {
        /// Its name.
        view: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// The file could not be made durable.
    #[error("view {view} cannot be written to {path}: {source}")]
    Write {
        /// Its name.
        view: &'static str,
        /// Of its file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The announcing socket cannot be made.
    #[error("views cannot be announced: {0}")]
    Announce(#[from] WireError),
}

/// Writes views and announces them.
#[derive(Clone, Debug)]
pub struct Publisher {
    folder: PathBuf,
    latest: Arc<watch::Sender<HashMap<&'static str, Generation>>>,
    /// What readers have told to be in force, by view.
    in_force: Arc<watch::Sender<HashMap<&'static str, Generation>>>,
    /// Held while a file is written, so that two publications of a view cannot overtake each other.
    writing: Arc<Mutex<()>>,
}

impl Publisher {
    /// Publishes into `folder`, which is made when it is missing.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let latest = Arc::new(watch::Sender::new(HashMap::new()));
        let in_force = Arc::new(watch::Sender::new(HashMap::new()));
        Ok(Self { folder: folder.to_owned(), latest, in_force, writing: Arc::default() })
    }

    /// Waits until a reader has told that this generation of the view, or a newer one, is in force with it. For ever
    /// when there is no such reader: the caller bounds it.
    pub async fn taken_over<V: View>(&self, generation: Generation) {
        let mut told = self.in_force.subscribe();
        // The sender lives in `self`, so the wait cannot fail.
        let reached = told.wait_for(|told| told.get(V::NAME).is_some_and(|now| *now >= generation)).await;
        debug_assert!(reached.is_ok());
    }

    /// The generation of the view that a reader told of last to be in force with it.
    #[must_use]
    pub fn in_force<V: View>(&self) -> Option<Generation> {
        self.in_force.borrow().get(V::NAME).copied()
    }

    /// Makes the view durable, then announces it. The file can be read by its owner and by `group`, if any.
    /// Blocks on the disk: call it from a blocking context.
    ///
    /// # Errors
    /// When the file cannot be made durable; the earlier one stays.
    pub fn publish<V: View>(&self, view: &V, group: Option<u32>) -> Result<(), PublishError> {
        let encoded =
            serde_json::to_vec(view).map_err(|source| PublishError::Encode { view: V::NAME, source })?;
        let path = self.folder.join(format!("{}.json", V::NAME));
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write_durably(&path, &encoded, group).map_err(|source| PublishError::Write {
            view: V::NAME,
            path: path.clone(),
            source,
        })?;
        self.latest.send_modify(|latest| {
            latest.insert(V::NAME, view.generation());
        });
        drop(writing);
        debug!(view = V::NAME, generation = view.generation().0, "published");
        Ok(())
    }

    /// Serves announcements on `socket` until the task is dropped.
    ///
    /// # Errors
    /// When the socket cannot be made or no connection can be accepted.
    pub async fn announce(self, socket: &Path) -> Result<(), PublishError> {
        // Everyone may hear that there is something new; who may read it, the files' permissions say.
        let listener = WireListener::bind(socket, 0o666)?;
        loop {
            let wire = listener.accept().await?;
            tokio::spawn(tell(wire, self.latest.subscribe(), Arc::clone(&self.in_force)));
        }
    }
}

/// Tells one reader of every change, the newest only when it is slow, and hears from it what it has taken over.
async fn tell(
    wire: Wire,
    mut latest: watch::Receiver<HashMap<&'static str, Generation>>,
    in_force: Arc<watch::Sender<HashMap<&'static str, Generation>>>,
) {
    let mut told: HashMap<&'static str, Generation> = HashMap::new();
    loop {
        let now = latest.borrow_and_update().clone();
        for (view, generation) in now {
            if told.insert(view, generation) == Some(generation) {
                continue;
            }
            let announcement = Announcement { view: view.to_owned(), generation };
            if let Err(error) = wire.send(&announcement, &[]).await {
                debug!(%error, "a reader of views went away");
                return;
            }
        }
        tokio::select! {
            changed = latest.changed() => if changed.is_err() { return },
            heard = wire.receive::<Announcement>() => match heard {
                Ok((heard, _)) => note(&heard, &told, &in_force),
                Err(error) => {
                    debug!(%error, "a reader of views went away");
                    return;
                }
            },
        }
    }
}

/// Notes what a reader has in force. What it was never told of is no news but a fault of its own.
fn note(
    heard: &Announcement,
    told: &HashMap<&'static str, Generation>,
    in_force: &watch::Sender<HashMap<&'static str, Generation>>,
) {
    let Some((view, newest)) = told.get_key_value(heard.view.as_str()) else { return };
    if heard.generation > *newest {
        warn!(view, generation = heard.generation.0, "a reader tells of a view that it cannot have");
        return;
    }
    in_force.send_if_modified(|known| {
        let before = known.insert(view, heard.generation);
        before != Some(heard.generation)
    });
}

fn write_durably(path: &Path, bytes: &[u8], group: Option<u32>) -> io::Result<()> {
    let staged = path.with_extension("json.new");
    let mode = if group.is_some() { 0o640 } else { 0o600 };
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&staged)?;
    if let Some(group) = group {
        std::os::unix::fs::fchown(&file, None, Some(group))?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&staged, path)?;
    let folder = path.parent().unwrap_or(Path::new("."));
    if let Err(error) = File::open(folder).and_then(|folder| folder.sync_all()) {
        warn!(%error, "the folder of views cannot be synced");
        return Err(error);
    }
    Ok(())
}
