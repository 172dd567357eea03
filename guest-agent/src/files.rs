//! Files: read whole, written atomically, listed, described, removed, with the rights of the calling thread.

use crate::transport::Connection;
use crate::wire::{self, WireError};
use model::agent::{
    AgentErrorKind, AgentReply, DirectoryEntry, FileKind, FileStat, FrameKind, MAX_DATA_BYTES,
    MAX_DIRECTORY_ENTRIES, MAX_FILE_BYTES,
};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Permission bits of a new file when the request names none.
const DEFAULT_MODE: u32 = 0o644;
/// Permission bits of parent directories that are made.
const PARENT_MODE: u32 = 0o755;
/// The bits of a mode that chmod(2) sets.
const MODE_BITS: u32 = 0o7777;
/// Tries for a temporary name: a name is random, so the second is already for the unlucky.
const NAME_TRIES: usize = 4;

/// Why a file operation failed.
#[derive(Debug, Error)]
pub enum FileError {
    /// Relative, or has a NUL.
    #[error("{0:?} is not an absolute path")]
    Path(String),
    /// The system refuses.
    #[error("cannot {action} {path}: {cause}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why. Part of the text, since only the text reaches the caller.
        cause: io::Error,
    },
    /// Neither a file nor a directory.
    #[error("{0} is neither a file nor a directory")]
    Special(PathBuf),
    /// A directory where a file is wanted.
    #[error("{0} is a directory")]
    Directory(PathBuf),
    /// Over [`MAX_FILE_BYTES`].
    #[error("{path} has more than {MAX_FILE_BYTES} bytes")]
    FileTooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Over [`MAX_DIRECTORY_ENTRIES`].
    #[error("{path} has more than {MAX_DIRECTORY_ENTRIES} entries")]
    DirectoryTooLarge {
        /// Which.
        path: PathBuf,
    },
    /// The host sent another number of bytes than it promised.
    #[error("{promised} bytes were promised, and {got} or more came")]
    Length {
        /// In the request.
        promised: u64,
        /// On the stream.
        got: u64,
    },
    /// `/` is not removed.
    #[error("the root directory is not removed")]
    Root,
    /// The connection broke.
    #[error("the connection to the host broke")]
    Wire(#[from] WireError),
}

impl FileError {
    /// What the caller tells apart.
    #[must_use]
    pub fn kind(&self) -> AgentErrorKind {
        match self {
            Self::Path(_) | Self::Special(_) | Self::Directory(_) | Self::Length { .. } | Self::Root => {
                AgentErrorKind::Invalid
            }
            Self::FileTooLarge { .. } | Self::DirectoryTooLarge { .. } => AgentErrorKind::TooLarge,
            Self::System { cause, .. } if cause.raw_os_error() == Some(libc::ELOOP) => {
                AgentErrorKind::Invalid
            }
            Self::System { cause, .. } => kind_of(cause.kind()),
            Self::Wire(_) => AgentErrorKind::Internal,
        }
    }
}

fn kind_of(kind: io::ErrorKind) -> AgentErrorKind {
    match kind {
        io::ErrorKind::NotFound => AgentErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            AgentErrorKind::PermissionDenied
        }
        io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory
        | io::ErrorKind::DirectoryNotEmpty => AgentErrorKind::Invalid,
        io::ErrorKind::FileTooLarge => AgentErrorKind::TooLarge,
        _ => AgentErrorKind::Internal,
    }
}

/// Names the action and the path of an [`io::Error`].
fn failed<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |cause| FileError::System { action, path: path.to_owned(), cause }
}

/// Checks a path of a request.
///
/// # Errors
/// When it is relative or has a NUL.
pub fn absolute(path: &str) -> Result<&Path, FileError> {
    if path.starts_with('/') && !path.contains('\0') {
        return Ok(Path::new(path));
    }
    Err(FileError::Path(path.chars().take(256).collect()))
}

/// Sends a file's content, or a directory's entries.
///
/// # Errors
/// See [`FileError`].
pub fn read(connection: &mut Connection, path: &Path) -> Result<(), FileError> {
    // Without O_NONBLOCK the open of a FIFO would wait for a writer.
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let mut file = options.open(path).map_err(failed("open", path))?;
    let facts = file.metadata().map_err(failed("look at", path))?;
    if facts.is_dir() {
        return Ok(wire::write_reply(connection, &list(path)?)?);
    }
    if !facts.is_file() {
        return Err(FileError::Special(path.to_owned()));
    }
    if facts.len() > MAX_FILE_BYTES {
        return Err(FileError::FileTooLarge { path: path.to_owned() });
    }
    wire::write_message(connection, &AgentReply::File { size: facts.len() })?;
    send_content(connection, &mut file, path)
}

/// Goes by what is read, not by the size: a file may grow, and those of /proc have none.
fn send_content(connection: &mut Connection, file: &mut File, path: &Path) -> Result<(), FileError> {
    let mut buffer = vec![0; MAX_DATA_BYTES];
    let mut sent = 0u64;
    loop {
        let count = file.read(&mut buffer).map_err(failed("read", path))?;
        if count == 0 {
            return Ok(wire::write_frame(connection, FrameKind::End, &[])?);
        }
        sent += count as u64;
        if sent > MAX_FILE_BYTES {
            return Err(FileError::FileTooLarge { path: path.to_owned() });
        }
        wire::write_frame(connection, FrameKind::Data, &buffer[..count])?;
    }
}

/// The entries of a directory, sorted by name.
///
/// # Errors
/// See [`FileError`].
pub fn list(path: &Path) -> Result<AgentReply, FileError> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let entry = entry.map_err(failed("list", path))?;
        if entries.len() == MAX_DIRECTORY_ENTRIES {
            return Err(FileError::DirectoryTooLarge { path: path.to_owned() });
        }
        let kind = match entry.file_type() {
            Ok(kind) => kind_of_type(kind),
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed("list", path)(error)),
        };
        entries.push(DirectoryEntry { name: entry.file_name().to_string_lossy().into_owned(), kind });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(AgentReply::Directory { entries })
}

/// Facts about a path, not following a link.
///
/// # Errors
/// See [`FileError`].
pub fn stat(path: &Path) -> Result<AgentReply, FileError> {
    let facts = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    Ok(AgentReply::Stat(FileStat {
        kind: kind_of_type(facts.file_type()),
        size: facts.len(),
        mode: facts.mode() & MODE_BITS,
        uid: facts.uid(),
        gid: facts.gid(),
        modified_unix_seconds: facts.mtime(),
    }))
}

/// Removes a file or a directory.
///
/// # Errors
/// See [`FileError`].
pub fn remove(path: &Path, recursive: bool) -> Result<AgentReply, FileError> {
    // By its file name: "/", "/x/.." and "/." have none.
    if path.file_name().is_none() {
        return Err(FileError::Root);
    }
    let facts = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let removed = match (facts.is_dir(), recursive) {
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
        (false, _) => fs::remove_file(path),
    };
    removed.map_err(failed("remove", path))?;
    Ok(AgentReply::Done)
}

/// The content of a file that follows a request on the connection.
pub struct Content<'a> {
    connection: &'a mut Connection,
    promised: u64,
    got: u64,
    over: bool,
}

impl<'a> Content<'a> {
    /// Of so many bytes, as the request says.
    pub fn new(connection: &'a mut Connection, promised: u64) -> Self {
        Self { connection, promised, got: 0, over: false }
    }

    /// The next piece; nothing at the end, which is where it was promised.
    fn next(&mut self, piece: &mut Vec<u8>) -> Result<bool, FileError> {
        match wire::read_frame(self.connection, piece)? {
            Some(FrameKind::Data) => self.got += piece.len() as u64,
            Some(FrameKind::End) => self.over = true,
            Some(other @ (FrameKind::Message | FrameKind::Stdout | FrameKind::Stderr)) => {
                return Err(WireError::Unexpected(other).into());
            }
            None => return Err(WireError::Short.into()),
        }
        let wrong = if self.over { self.got != self.promised } else { self.got > self.promised };
        if wrong {
            return Err(FileError::Length { promised: self.promised, got: self.got });
        }
        Ok(!self.over)
    }

    /// Reads the rest away, so that a host that still sends gets to hear why the file is refused.
    ///
    /// # Errors
    /// When the connection breaks. A rest that is longer than any file may be is not read to its end.
    pub fn discard(&mut self) -> Result<(), WireError> {
        let mut piece = Vec::new();
        while !self.over && self.got <= MAX_FILE_BYTES {
            match wire::read_frame(self.connection, &mut piece)? {
                Some(FrameKind::Data) => self.got += piece.len() as u64,
                Some(FrameKind::End) => self.over = true,
                Some(other @ (FrameKind::Message | FrameKind::Stdout | FrameKind::Stderr)) => {
                    return Err(WireError::Unexpected(other));
                }
                None => return Err(WireError::Short),
            }
        }
        Ok(())
    }
}

/// Writes a file with the content that follows on the connection.
///
/// # Errors
/// See [`FileError`]; the file is then as it was, save where it had to be written in place.
pub fn write(content: &mut Content<'_>, path: &Path, mode: Option<u32>) -> Result<AgentReply, FileError> {
    if content.promised > MAX_FILE_BYTES {
        return Err(FileError::FileTooLarge { path: path.to_owned() });
    }
    // A link is followed: what it points to is written, and the link stays.
    let (target, old) = match fs::canonicalize(path) {
        Ok(target) => {
            let facts = fs::metadata(&target).map_err(failed("look at", path))?;
            (target, Some(facts))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (path.to_owned(), None),
        Err(error) => return Err(failed("look at", path)(error)),
    };
    if old.as_ref().is_some_and(Metadata::is_dir) || path.file_name().is_none() {
        return Err(FileError::Directory(path.to_owned()));
    }
    let mut sink = Sink::open(&target, old.as_ref(), mode)?;
    let mut piece = Vec::new();
    while content.next(&mut piece)? {
        sink.file().write_all(&piece).map_err(failed("write", path))?;
    }
    sink.finish()?;
    Ok(AgentReply::Done)
}

/// Where the content goes until it is complete.
enum Sink {
    /// A file beside the target, which takes its place in the end.
    Beside(Temporary),
    /// The target itself: a device, a file of /proc, or one that the user may write but not replace.
    InPlace(File, PathBuf),
}

impl Sink {
    fn open(target: &Path, old: Option<&Metadata>, mode: Option<u32>) -> Result<Self, FileError> {
        let in_place = || {
            let file =
                OpenOptions::new().write(true).truncate(true).custom_flags(libc::O_NOCTTY).open(target);
            Ok(Self::InPlace(file.map_err(failed("write", target))?, target.to_owned()))
        };
        match old {
            Some(old) if !old.is_file() => in_place(),
            Some(old) => Temporary::new(target, Some(old), old.mode() & MODE_BITS)
                .map(Self::Beside)
                .or_else(|_| in_place()),
            None => {
                let parent = target.parent().unwrap_or(Path::new("/"));
                let made = DirBuilder::new().recursive(true).mode(PARENT_MODE).create(parent);
                made.map_err(failed("make", parent))?;
                let temporary = Temporary::new(target, None, mode.unwrap_or(DEFAULT_MODE) & MODE_BITS);
                temporary.map(Self::Beside).map_err(failed("write", target))
            }
        }
    }

    fn file(&mut self) -> &mut File {
        match self {
            Self::Beside(temporary) => &mut temporary.file,
            Self::InPlace(file, _) => file,
        }
    }

    fn finish(self) -> Result<(), FileError> {
        match self {
            Self::Beside(temporary) => temporary.take_place(),
            Self::InPlace(file, path) => match file.sync_all() {
                // Devices and kernel files have nothing to sync.
                Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                    Err(failed("sync", &path)(error))
                }
                Ok(()) | Err(_) => Ok(()),
            },
        }
    }
}

/// A file under a temporary name, which is removed unless it takes its target's place.
struct Temporary {
    file: File,
    name: PathBuf,
    target: PathBuf,
    placed: bool,
}

impl Temporary {
    fn new(target: &Path, old: Option<&Metadata>, mode: u32) -> io::Result<Self> {
        let directory = target.parent().unwrap_or(Path::new("/"));
        for _ in 0..NAME_TRIES {
            let name = directory.join(format!(".gatehouse-{:016x}.tmp", random_number()?));
            let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name);
            let file = match options {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            let temporary = Self { file, name, target: target.to_owned(), placed: false };
            temporary.dress(old, mode)?;
            return Ok(temporary);
        }
        Err(io::Error::other("no free temporary name"))
    }

    /// Owner first: a change of owner clears the set-id bits.
    fn dress(&self, old: Option<&Metadata>, mode: u32) -> io::Result<()> {
        let own = self.file.metadata()?;
        if let Some(old) = old.filter(|old| (old.uid(), old.gid()) != (own.uid(), own.gid())) {
            fchown(&self.file, Some(old.uid()), Some(old.gid()))?;
        }
        self.file.set_permissions(fs::Permissions::from_mode(mode))
    }

    fn take_place(mut self) -> Result<(), FileError> {
        self.file.sync_all().map_err(failed("sync", &self.target))?;
        fs::rename(&self.name, &self.target).map_err(failed("replace", &self.target))?;
        self.placed = true;
        let directory = self.target.parent().unwrap_or(Path::new("/"));
        match File::open(directory) {
            Ok(open) => open.sync_all().map_err(failed("sync", directory)),
            // A directory that the user may search and write but not read cannot be synced by that user.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(error) => Err(failed("sync", directory)(error)),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.placed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.name) {
            eprintln!("gatehouse-agent: {} is left over: {error}", self.name.display());
        }
    }
}

fn random_number() -> io::Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

fn kind_of_type(kind: fs::FileType) -> FileKind {
    if kind.is_file() {
        FileKind::File
    } else if kind.is_dir() {
        FileKind::Directory
    } else if kind.is_symlink() {
        FileKind::Symlink
    } else {
        FileKind::Other
    }
}
