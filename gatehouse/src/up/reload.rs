//! `gatehouse reload`: how the keeper is asked to take new settings and a new edge-proxy over, and what it answers.
//!
//! One word and one line of JSON over a socket in the run folder that only root may use. Who asks waits for the outcome.

use super::Happening;
use crate::settings::{Settings, SettingsError};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::warn;

/// What is asked.
const WORD: &[u8] = b"reload\n";
/// For the word, which comes with the connection; and for the outcome to be taken.
const WORD_WAIT: Duration = Duration::from_secs(5);
/// Longest that a new edge-proxy may take until it serves: it reads certificates of tens of thousands of names. After it
/// the old one goes on.
pub const SUCCESSOR_WAIT: Duration = Duration::from_secs(60);
/// Longest that an outcome may take: the successor's time, with some air.
const OUTCOME_WAIT: Duration = Duration::from_secs(75);
/// Longest outcome that is read.
const MAX_OUTCOME_BYTES: u64 = 64 << 10;
/// Pause after a connection could not be accepted: the process is out of descriptors, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Where settings come from, to be read again.
#[derive(Clone)]
pub struct Source(Arc<dyn Fn() -> Result<Settings, SettingsError> + Send + Sync>);

impl Source {
    /// Settings that `read` gives.
    pub fn new(read: impl Fn() -> Result<Settings, SettingsError> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// Reads them.
    ///
    /// # Errors
    /// When they cannot be read or understood.
    pub fn read(&self) -> Result<Settings, SettingsError> {
        (self.0)()
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

/// What came of a reload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Settings that are in force now and were not before.
    pub now: Vec<String>,
    /// Settings that have changed and wait for the house's next start.
    pub later: Vec<String>,
    /// Why nothing has changed, if so.
    pub failed: Option<String>,
}

/// Who waits for an outcome.
#[derive(Debug)]
pub struct Asker(oneshot::Sender<Outcome>);

impl Asker {
    /// Tells the outcome. Who has gone meanwhile is not told.
    pub fn tell(self, outcome: Outcome) {
        if let Err(outcome) = self.0.send(outcome) {
            warn!(?outcome, "who asked for a reload has gone");
        }
    }

    /// Tells that nothing has changed.
    pub fn refuse(self, why: impl Into<String>) {
        self.tell(Outcome { failed: Some(why.into()), ..Outcome::default() });
    }
}

/// Why no outcome is known.
#[derive(Debug, Error)]
pub enum ReloadError {
    /// Nobody is there.
    #[error(
        "no `gatehouse up` answers at {path}: {source}; is it open, with this --run-dir? Under systemd use `systemctl \
         restart gatehouse-edge-proxy`"
    )]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("`gatehouse up` gave no outcome; its own output says how it went: {0}")]
    Broke(#[source] io::Error),
    /// The outcome cannot be understood.
    #[error("`gatehouse up` is of another version, and its outcome cannot be understood: {0}")]
    Strange(#[source] serde_json::Error),
}

/// Listens for reloads, which the keeper hears of as [`Happening::Reload`], one after the other.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn serve(run_dir: &Path, sender: mpsc::Sender<Happening>) -> io::Result<()> {
    let path = socket(run_dir);
    // The house's lock is held, so it is a leftover.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    if let Err(error) = answer(stream, &sender).await {
                        warn!(%error, "who asked for a reload could not be answered");
                    }
                }
                Err(error) => {
                    warn!(%error, "a reload cannot be heard");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    Ok(())
}

async fn answer(mut stream: tokio::net::UnixStream, sender: &mpsc::Sender<Happening>) -> io::Result<()> {
    let mut word = [0; WORD.len()];
    timeout(WORD_WAIT, stream.read_exact(&mut word)).await??;
    if word != *WORD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it asked for something else"));
    }
    let (tell, told) = oneshot::channel();
    sender.send(Happening::Reload(Asker(tell))).await.map_err(io::Error::other)?;
    let outcome = timeout(OUTCOME_WAIT, told).await?.map_err(io::Error::other)?;
    let line = serde_json::to_vec(&outcome).map_err(io::Error::other)?;
    timeout(WORD_WAIT, stream.write_all(&line)).await?
}

/// Asks the keeper to reload, and waits for the outcome.
///
/// # Errors
/// See [`ReloadError`].
pub fn ask(run_dir: &Path) -> Result<Outcome, ReloadError> {
    let path = socket(run_dir);
    let mut stream = UnixStream::connect(&path).map_err(|source| ReloadError::Nobody { path, source })?;
    let mut answer = String::new();
    let mut talk = || {
        stream.set_read_timeout(Some(OUTCOME_WAIT + WORD_WAIT))?;
        stream.write_all(WORD)?;
        stream.shutdown(Shutdown::Write)?;
        (&stream).take(MAX_OUTCOME_BYTES).read_to_string(&mut answer).map(|_| ())
    };
    talk().map_err(ReloadError::Broke)?;
    if answer.is_empty() {
        return Err(ReloadError::Broke(io::ErrorKind::UnexpectedEof.into()));
    }
    serde_json::from_str(&answer).map_err(ReloadError::Strange)
}

/// What a person reads.
#[must_use]
pub fn told(outcome: &Outcome) -> String {
    if let Some(why) = &outcome.failed {
        return format!("nothing has changed: {why}");
    }
    let list = |names: &[String]| names.join(", ");
    let mut lines = vec!["a new edge-proxy serves; the one before ends what it has in hand".to_owned()];
    if !outcome.now.is_empty() {
        lines.push(format!("in force now: {}", list(&outcome.now)));
    }
    if !outcome.later.is_empty() {
        lines.push(format!("not before the next `gatehouse up`: {}", list(&outcome.later)));
    }
    lines.join("\n")
}

fn socket(run_dir: &Path) -> PathBuf {
    run_dir.join("up.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_asks_hears_the_outcome() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(matches!(ask(folder.path()), Err(ReloadError::Nobody { .. })));
        let (sender, mut receiver) = mpsc::channel(1);
        serve(folder.path(), sender.clone()).expect("socket");
        // A leftover is no hindrance.
        serve(folder.path(), sender).expect("socket again");
        let mode = std::fs::metadata(socket(folder.path())).expect("socket").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let wanted = Outcome { now: vec!["edge.limits".into()], later: vec!["https".into()], failed: None };
        let run_dir = folder.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || ask(&run_dir));
        let Some(Happening::Reload(asker)) = receiver.recv().await else { panic!("asked") };
        asker.tell(wanted.clone());
        let outcome = asking.await.expect("task").expect("outcome");
        assert_eq!(outcome, wanted);
        let text = told(&outcome);
        assert!(text.contains("now: edge.limits") && text.contains("`gatehouse up`: https"), "{text}");
    }

    #[tokio::test]
    async fn who_asks_for_something_else_or_of_a_keeper_that_ends_hears_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let (sender, mut receiver) = mpsc::channel(1);
        serve(folder.path(), sender).expect("socket");
        let mut stranger = tokio::net::UnixStream::connect(socket(folder.path())).await.expect("connect");
        stranger.write_all(b"remove\n").await.expect("write");
        assert_eq!(stranger.read(&mut [0; 1]).await.expect("read"), 0);
        let run_dir = folder.path().to_owned();
        let asking = tokio::task::spawn_blocking(move || ask(&run_dir));
        let Some(Happening::Reload(asker)) = receiver.recv().await else { panic!("asked") };
        drop(asker);
        assert!(matches!(asking.await.expect("task"), Err(ReloadError::Broke(_))));
    }
}
