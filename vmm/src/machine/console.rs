//! The console's log: the last bytes that the guest wrote to its serial line, on disk and bounded.
//!
//! Two files: when `console.log` is full it becomes `console.log.1` and a new one begins, so that at least the
//! bound and at most twice the bound is kept. Each byte is written through; a crash of this process loses none.

use super::pure::panic_line::PanicLine;
use rustix::fs::OFlags;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The newer file.
const NEWER: &str = "console.log";
/// The older file.
const OLDER: &str = "console.log.1";
/// Least bound: a panic with its trace fits.
const MIN_BYTES: u64 = 16 << 10;

/// The end of the log that the serial line writes to.
#[derive(Debug)]
pub struct Console {
    folder: PathBuf,
    file: File,
    bytes: u64,
    bound: u64,
    lines: PanicLine,
    lost: u64,
}

impl Console {
    /// Goes on with the log in `folder`, or begins one.
    ///
    /// # Errors
    /// When the file cannot be opened or made.
    pub fn open(folder: &Path, bound: u64) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(folder.join(NEWER))?;
        let bytes = file.metadata()?.len();
        let bound = bound.max(MIN_BYTES);
        Ok(Self { folder: folder.to_owned(), file, bytes, bound, lines: PanicLine::default(), lost: 0 })
    }

    /// The line with which the guest's kernel said that it panics, if it did since the log was opened.
    #[must_use]
    pub fn panic_line(&self) -> Option<&str> {
        self.lines.found()
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes >= self.bound {
            std::fs::rename(self.folder.join(NEWER), self.folder.join(OLDER))?;
            self.file = OpenOptions::new().append(true).create(true).open(self.folder.join(NEWER))?;
            self.bytes = 0;
        }
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

impl Write for Console {
    /// Never fails: a full disk of the host is not the guest's fault. What is lost is counted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.feed(bytes);
        if let Err(error) = self.append(bytes) {
            if self.lost == 0 {
                tracing::warn!(%error, "the console's log cannot be written");
            }
            self.lost += bytes.len() as u64;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The last bytes of the log in `folder`; empty when there is none.
///
/// # Errors
/// When a file cannot be read.
pub fn tail(folder: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let newer = file_tail(&folder.join(NEWER), bytes)?;
    let mut all = file_tail(&folder.join(OLDER), bytes - newer.len())?;
    all.extend_from_slice(&newer);
    Ok(all)
}

fn file_tail(path: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    // The VM's process may have put anything there.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let facts = file.metadata()?;
    if !facts.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the log is not a regular file"));
    }
    let length = facts.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes as u64)))?;
    let mut tail = Vec::new();
    file.take(bytes as u64).read_to_end(&mut tail)?;
    Ok(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_the_rest_is_bounded() {
        let folder = tempfile::tempdir().expect("folder");
        let mut console = Console::open(folder.path(), MIN_BYTES).expect("open");
        let mut all = Vec::new();
        for number in 0..10_000u32 {
            let line = format!("line {number}\n");
            all.extend_from_slice(line.as_bytes());
            console.write_all(line.as_bytes()).expect("write");
        }
        let kept = tail(folder.path(), MIN_BYTES as usize).expect("tail");
        assert_eq!(kept, all[all.len() - MIN_BYTES as usize..]);
        let on_disk: u64 =
            [NEWER, OLDER].iter().map(|name| folder.path().join(name).metadata().expect("there").len()).sum();
        assert!(on_disk <= 2 * MIN_BYTES + 64, "{on_disk}");
        drop(console);
        let mut again = Console::open(folder.path(), MIN_BYTES).expect("open again");
        again.write_all(b"more\n").expect("write");
        assert!(tail(folder.path(), 20).expect("tail").ends_with(b"line 9999\nmore\n"));
    }

    #[test]
    fn no_log_is_an_empty_one() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(tail(folder.path(), 100).expect("tail"), b"");
    }
}
