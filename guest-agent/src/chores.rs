//! What a restore leaves to do after the host was answered, in a thread of its own.

use crate::place::Root;
use crate::{error_chain, grow, hooks, host_keys};
use model::agent::Identity;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

/// Restores whose chores wait. A restore takes a second and hooks half a minute at most, mostly none; chores beyond
/// these are left out, and the log says so.
const MAX_WAITING: usize = 16;

/// The chores of one restore.
#[derive(Clone, Debug)]
pub struct Chores {
    /// What the hooks are told.
    pub identity: Identity,
    /// For the comment of the keys.
    pub host_name: String,
    /// Kinds of SSH host keys that were too slow to be made before.
    pub host_keys: Vec<&'static str>,
}

/// Takes chores.
pub struct Worker {
    queue: SyncSender<Chores>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn start(root: Root) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(MAX_WAITING);
        thread::Builder::new().name("chores".into()).spawn(move || work(&root, &waiting))?;
        Ok(Self { queue })
    }

    /// Returns at once.
    pub fn add(&self, chores: Chores) {
        if self.queue.try_send(chores).is_err() {
            eprintln!(
                "gatehouse-agent: the hooks of {MAX_WAITING} restores wait already; those of this one are lost"
            );
        }
    }
}

fn work(root: &Root, waiting: &Receiver<Chores>) {
    while let Ok(chores) = waiting.recv() {
        // The disk may have been made larger while the machine was away. Below a folder it is not ours.
        if root.is_system()
            && let Err(error) = grow::to_disk(Path::new("/"))
        {
            eprintln!("gatehouse-agent: the root file system keeps its size: {}", error_chain(&error));
        }
        if !chores.host_keys.is_empty()
            && let Err(error) = host_keys::make(root, &chores.host_name, &chores.host_keys)
        {
            eprintln!("gatehouse-agent: SSH host keys: {}", error_chain(&error));
        }
        hooks::run_all(root, chores.identity);
    }
}
