//! A log of JSON lines in bounded files: `NAME.jsonl` and, of the latest that were full, `NAME.1.jsonl` and so on.
//! Who logs never waits: a full queue takes no line, and says so.

use serde::Serialize;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinError;
use tracing::warn;

/// Lines that wait to be written: what a busy process says in some seconds, of 500 bytes each.
const MAX_WAITING: usize = 8192;
/// Lines that are written at once.
const MAX_AT_ONCE: usize = 1024;
/// After a batch, for the next one to gather: what comes alone is written at once, and a busy process wakes the disk's
/// thread twenty times a second and not for each line. A queue holds what comes meanwhile at 150,000 lines a second.
const GATHER: Duration = Duration::from_millis(50);
/// Bytes of one file: some hundred thousand lines fit into all of them.
pub const MAX_FILE_BYTES: u64 = 16 << 20;
/// Files, with the one that is written.
pub const FILES: usize = 4;
/// The process' user's alone: who talks to whom is nobody else's matter.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// Between two complaints about a disk that takes nothing; what is not written meanwhile is counted.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Why lines cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The folder cannot be made.
    #[error("{path} cannot be made: {source}")]
    Folder {
        /// Of the folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The full file cannot be put aside.
    #[error("{path} cannot be put aside: {source}")]
    Rotate {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be opened or written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The task ended early.
    #[error("writing ended early: {0}")]
    Task(#[from] JoinError),
}

/// Takes lines, and never waits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Writer {
    lines: Sender<String>,
}

/// Writes what the writers take.
#[derive(Debug)]
pub struct Writing {
    lines: Receiver<String>,
    files: Files,
}

#[derive(Clone, Debug)]
struct Files {
    folder: PathBuf,
    name: &'static str,
    max_bytes: u64,
}

/// Makes both halves, for files called `name` of at most `max_file_bytes` and one batch of lines more in a folder.
#[must_use]
pub fn new(folder: PathBuf, name: &'static str, max_file_bytes: u64) -> (Writer, Writing) {
    let (sender, lines) = channel(MAX_WAITING);
    let files = Files { folder, name, max_bytes: max_file_bytes };
    (Writer { lines: sender }, Writing { lines, files })
}

impl Writer {
    /// Takes a line; false when there is no room for it.
    #[must_use]
    pub fn write<T: Serialize>(&self, line: &T) -> bool {
        match serde_json::to_string(line) {
            Ok(mut text) => {
                text.push('\n');
                self.lines.try_send(text).is_ok()
            }
            Err(error) => {
                warn!(%error, "a line of a log cannot be said");
                false
            }
        }
    }
}

impl Writing {
    /// Writes for ever, or until the last writer is gone.
    pub async fn run(self) {
        self.run_until(std::future::pending()).await;
    }

    /// The same, or until it is told to stop: what was taken before is written then, and no more is taken.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        let mut batch = Vec::with_capacity(MAX_AT_ONCE);
        let (mut lost, mut complained) = (0, None::<tokio::time::Instant>);
        let mut stopping = false;
        loop {
            let received = tokio::select! {
                () = &mut stop, if !stopping => {
                    stopping = true;
                    self.lines.close();
                    continue;
                }
                received = self.lines.recv_many(&mut batch, MAX_AT_ONCE) => received,
            };
            if received == 0 {
                return;
            }
            let (files, lines) = (self.files.clone(), batch.len());
            let text = batch.concat();
            batch.clear();
            let written = tokio::task::spawn_blocking(move || files.append(&text)).await;
            if let Err(error) = written.unwrap_or_else(|error| Err(error.into())) {
                lost += lines;
                if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                    warn!(%error, lost, log = self.files.name, "lines are not logged");
                    complained = Some(tokio::time::Instant::now());
                }
            }
            if lines < MAX_AT_ONCE && !stopping {
                tokio::select! {
                    () = &mut stop => {
                        stopping = true;
                        self.lines.close();
                    }
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
        }
    }
}

impl Files {
    /// Appends to the file, or to a new one when it is full.
    fn append(&self, text: &str) -> Result<(), WriteError> {
        let folder = &self.folder;
        let made = DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder);
        made.map_err(|source| WriteError::Folder { path: folder.clone(), source })?;
        let path = self.file(0);
        if std::fs::metadata(&path).is_ok_and(|found| found.len() >= self.max_bytes) {
            self.rotate()?;
        }
        let failed = |source| WriteError::Write { path: path.clone(), source };
        let mut file: File =
            OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(&path).map_err(failed)?;
        file.write_all(text.as_bytes()).map_err(failed)
    }

    /// Each file becomes the next older one; the oldest goes.
    fn rotate(&self) -> Result<(), WriteError> {
        for number in (0..FILES - 1).rev() {
            let path = self.file(number);
            match std::fs::rename(&path, self.file(number + 1)) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(WriteError::Rotate { path, source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn file(&self, number: usize) -> PathBuf {
        let name = self.name;
        self.folder.join(if number == 0 { format!("{name}.jsonl") } else { format!("{name}.{number}.jsonl") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    #[derive(Serialize)]
    struct Line {
        lines: u64,
        overflows: u64,
    }

    fn line(lines: u64) -> Line {
        Line { lines, overflows: 0 }
    }

    fn file(folder: &Path, number: usize) -> PathBuf {
        Files { folder: folder.to_owned(), name: "flows", max_bytes: 0 }.file(number)
    }

    #[tokio::test]
    async fn files_are_put_aside_when_full_and_the_oldest_goes() {
        let place = tempfile::tempdir().expect("folder");
        let folder = place.path().join("flows");
        for number in 0..7 {
            // A line is more than a file may have, so each batch fills one.
            let (writer, writing) = new(folder.clone(), "flows", 10);
            assert!(writer.write(&line(number)));
            drop(writer);
            writing.run().await;
        }
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .expect("folder")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        assert_eq!(names, ["flows.1.jsonl", "flows.2.jsonl", "flows.3.jsonl", "flows.jsonl"]);
        for (number, said) in [6, 5, 4, 3].into_iter().enumerate() {
            let text = std::fs::read_to_string(file(&folder, number)).expect("text");
            assert!(text.contains(&format!("\"lines\":{said},")) && text.ends_with("}\n"), "{text}");
        }
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&file(&folder, 0))), (0o700, 0o600));
    }

    #[tokio::test]
    async fn what_was_taken_before_the_stop_is_written_though_writers_stay() {
        let place = tempfile::tempdir().expect("folder");
        let (writer, writing) = new(place.path().to_owned(), "flows", 1 << 20);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let running = tokio::spawn(writing.run_until(async { stopped.await.expect("told") }));
        assert!((0..100).all(|number| writer.write(&line(number))));
        stop.send(()).expect("heard");
        running.await.expect("no panic");
        let text = std::fs::read_to_string(file(place.path(), 0)).expect("text");
        assert_eq!(text.lines().count(), 100);
        assert!(!writer.write(&line(100)), "no more is taken");
    }

    #[tokio::test]
    async fn a_full_queue_takes_no_line_and_a_disk_that_takes_none_ends_nothing() {
        let place = tempfile::tempdir().expect("folder");
        let in_the_way = place.path().join("file");
        std::fs::write(&in_the_way, "").expect("written");
        let (writer, writing) = new(in_the_way.clone(), "flows", 10);
        let taken = (0..=MAX_WAITING as u64).filter(|number| writer.write(&line(*number))).count();
        assert_eq!(taken, MAX_WAITING);
        let running = tokio::spawn(writing.run());
        while writer.lines.capacity() < MAX_WAITING {
            tokio::task::yield_now().await;
        }
        std::fs::remove_file(&in_the_way).expect("removed");
        assert!(writer.write(&line(1)));
        drop(writer);
        running.await.expect("no panic");
        // The batch under way may have found the folder already; the last line did in any case.
        let text = std::fs::read_to_string(file(&in_the_way, 0)).expect("text");
        assert!(text.ends_with("\"overflows\":0}\n"), "{text}");
    }
}
