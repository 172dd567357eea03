//! What stands before the first program starts: folders, the lock, the image folder, the doors' sockets.

use super::children::{Listeners, places};
use crate::settings::{EDGE_ID, SSH_ID, Settings, VPN_ID};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Connections that wait to be accepted while edge-proxy is busy or restarts: a second of 4,000 new ones.
const BACKLOG: i32 = 4096;

/// Why the house cannot open.
#[derive(Debug, Error)]
pub enum HouseError {
    /// A folder cannot be made.
    #[error("the folder {path} cannot be made: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// edge-proxy, which is not root, could not get to its files.
    #[error(
        "edge-proxy runs as user {EDGE_ID} and cannot pass through {path} (mode {mode:o}); \
         chmod o+x it, or choose another --data-dir and --run-dir"
    )]
    Closed {
        /// The folder on the way.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The lock file cannot be used.
    #[error("the lock {path} cannot be used: {source}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Somebody else is there.
    #[error(
        "another gatehouse (process {pid}) already runs on {path}; stop it first, or give this one its own \
         --data-dir, --run-dir, --prefix, --default-network and ports"
    )]
    Taken {
        /// The data folder.
        path: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// The folder of images is not the wanted one.
    #[error("{path} cannot lead to the images in {target}: {source}")]
    Images {
        /// The name in the data folder.
        path: PathBuf,
        /// Where they are.
        target: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A door's port cannot be had.
    #[error("{address} cannot be listened on for {door}: {source}{hint}")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// For what.
        door: &'static str,
        /// Why.
        source: io::Error,
        /// The next step, if there is one.
        hint: String,
    },
}

/// Held as long as the house is open.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Makes the folders and takes the lock.
///
/// # Errors
/// When a folder cannot be made or another gatehouse is there.
pub fn occupy(settings: &Settings) -> Result<Lock, HouseError> {
    let places = places(settings);
    // Others may pass through to what they own, not look around; keys are root's alone.
    for (path, mode) in [
        (&places.data, 0o711),
        (&places.run, 0o755),
        (&places.feed(), 0o711),
        (&places.vms(), 0o711),
        (&places.tls(), 0o700),
        (&places.vpn_run(), 0o755),
        (&places.ssh_run(), 0o755),
        (&places.edge_run(), 0o755),
        (&places.ssh_log(), 0o750),
        (&places.access_log(), 0o750),
    ] {
        make_folder(path, mode).map_err(|source| HouseError::Folder { path: path.clone(), source })?;
    }
    // Those who are not root make their sockets and logs there.
    for (path, id) in [
        (places.vpn_run(), VPN_ID),
        (places.ssh_run(), SSH_ID),
        (places.edge_run(), EDGE_ID),
        (places.ssh_log(), SSH_ID),
        (places.access_log(), EDGE_ID),
    ] {
        std::os::unix::fs::chown(&path, Some(id), Some(id))
            .map_err(|source| HouseError::Folder { path, source })?;
    }
    for folder in [&places.run, &places.feed()] {
        passable(folder)?;
    }
    let lock = lock(settings)?;
    link_images(settings)?;
    Ok(lock)
}

/// Whether a gatehouse runs on the same data.
#[must_use]
pub fn is_open(settings: &Settings) -> bool {
    let Ok(file) = File::open(lock_path(settings)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The process that keeps the house, if there is one.
///
/// # Errors
/// When the lock cannot be looked at.
pub fn keeper(settings: &Settings) -> Result<Option<i32>, HouseError> {
    let path = lock_path(settings);
    let failed = |source| HouseError::Lock { path: path.clone(), source };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    match file.try_lock_shared() {
        // Given back as the file is closed.
        Ok(()) => return Ok(None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let pid = holder(file).map_err(failed)?;
    pid.parse().map(Some).map_err(|error| failed(io::Error::new(ErrorKind::InvalidData, error)))
}

/// Binds the doors' ports.
///
/// # Errors
/// When one of them cannot be had.
pub fn listen(settings: &Settings) -> Result<Listeners, HouseError> {
    Ok(Listeners {
        https: bind(settings.https, "HTTPS", "--https")?,
        http: bind(settings.http, "HTTP", "--http")?,
        vpn: bind_udp(settings.vpn.listen, "WireGuard", "--vpn-listen")?,
        ssh: bind(settings.ssh.listen, "SSH", "--ssh-listen")?,
        dns: settings.acme.dns_listen.map(bind_dns).transpose()?,
        metrics: settings
            .edge
            .metrics_listen
            .map(|address| bind(address, "metrics", "--edge-metrics-listen"))
            .transpose()?,
    })
}

/// Lets this process and its children open as many files as the host allows.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_open_files() -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    Ok(rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    )?)
}

fn make_folder(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Whether everybody can pass through all folders down to this one.
fn passable(folder: &Path) -> Result<(), HouseError> {
    for path in folder.ancestors() {
        let failed = |source| HouseError::Folder { path: path.to_owned(), source };
        let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o001 == 0 {
            return Err(HouseError::Closed { path: path.to_owned(), mode });
        }
    }
    Ok(())
}

fn lock_path(settings: &Settings) -> PathBuf {
    settings.data_dir.join("lock")
}

fn lock(settings: &Settings) -> Result<Lock, HouseError> {
    let path = lock_path(settings);
    let failed = |source| HouseError::Lock { path: path.clone(), source };
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).clone();
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let pid = holder(file).map_err(failed)?;
            return Err(HouseError::Taken { path: settings.data_dir.clone(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    let written =
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
    written.map_err(failed)?;
    Ok(Lock { file })
}

/// What the holder of the lock wrote into it: its number.
fn holder(file: File) -> io::Result<String> {
    let mut pid = String::new();
    file.take(32).read_to_string(&mut pid)?;
    Ok(pid.trim().to_owned())
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::warn!(%error, "the lock cannot be given back; the kernel does it at this process' end");
        }
    }
}

/// With an image folder elsewhere, `images` of the data folder becomes a link to it.
fn link_images(settings: &Settings) -> Result<(), HouseError> {
    let path = places(settings).images();
    let Some(target) = &settings.image_dir else {
        return make_folder(&path, 0o755).or_else(|source| match std::fs::metadata(&path) {
            Ok(facts) if facts.is_dir() => Ok(()),
            Ok(_) | Err(_) => Err(HouseError::Folder { path: path.clone(), source }),
        });
    };
    let linked = match std::fs::symlink_metadata(&path) {
        Ok(facts) if facts.is_symlink() => std::fs::remove_file(&path),
        // An empty folder was made by an earlier start; one with images in it is not thrown away.
        Ok(_) => std::fs::remove_dir(&path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    linked.and_then(|()| std::os::unix::fs::symlink(target, &path)).map_err(|source| HouseError::Images {
        path,
        target: target.clone(),
        source,
    })
}

fn bind(address: SocketAddr, door: &'static str, flag: &str) -> Result<TcpListener, HouseError> {
    let bound = || {
        let listener = TcpListener::bind(address)?;
        rustix::net::listen(&listener, BACKLOG)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    bound().map_err(|source| refused(address, door, flag, "-ltnp", source))
}

fn bind_udp(address: SocketAddr, door: &'static str, flag: &str) -> Result<UdpSocket, HouseError> {
    let bound = || {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    bound().map_err(|source| refused(address, door, flag, "-lunp", source))
}

/// Both kinds at the same port: what does not fit a datagram is asked for again by stream.
fn bind_dns(address: SocketAddr) -> Result<(UdpSocket, TcpListener), HouseError> {
    let datagrams = bind_udp(address, "DNS", "--dns-listen")?;
    let port = datagrams.local_addr().map_or(address.port(), |bound| bound.port());
    let streams = bind(SocketAddr::new(address.ip(), port), "DNS", "--dns-listen")?;
    Ok((datagrams, streams))
}

fn refused(address: SocketAddr, door: &'static str, flag: &str, look: &str, source: io::Error) -> HouseError {
    let hint = match source.kind() {
        ErrorKind::AddrInUse => format!(
            "; see who has it with: ss {look} 'sport = :{}'; or choose another with {flag}",
            address.port()
        ),
        ErrorKind::PermissionDenied => "; run it with sudo".to_owned(),
        _ => format!("; choose another with {flag}"),
    };
    HouseError::Listen { address, door, source, hint }
}

/// Opens a descriptor that was handed to this process by its number, for writing.
///
/// # Errors
/// When there is none.
pub fn inherited(descriptor: u32) -> io::Result<File> {
    let path = format!("/proc/self/fd/{descriptor}");
    Ok(rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Host, Wishes};
    use std::os::unix::fs::MetadataExt;

    fn settings(folder: &Path) -> Settings {
        std::fs::set_permissions(folder, Permissions::from_mode(0o711)).expect("open it");
        let wishes = Wishes {
            data_dir: Some(folder.join("data")),
            run_dir: Some(folder.join("run")),
            ..Wishes::default()
        };
        wishes.settle(Host { memory_mib: 8192 }).expect("settings")
    }

    #[test]
    fn one_house_per_data_folder() {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings(folder.path());
        assert!(!is_open(&settings));
        let lock = occupy(&settings).expect("first");
        assert!(is_open(&settings));
        let error = occupy(&settings).expect_err("second").to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert!(!is_open(&settings));
        drop(occupy(&settings).expect("third"));
        let mode = places(&settings).tls().metadata().expect("tls").mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_edge_proxy_cannot_pass_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let settings = settings(folder.path());
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("close it");
        let error = occupy(&settings).expect_err("closed").to_string();
        assert!(error.contains(&folder.path().display().to_string()) && error.contains("o+x"), "{error}");
    }

    #[test]
    fn images_may_live_elsewhere() {
        let folder = tempfile::tempdir().expect("folder");
        let mut settings = settings(folder.path());
        drop(occupy(&settings).expect("without"));
        settings.image_dir = Some(folder.path().join("elsewhere"));
        drop(occupy(&settings).expect("with"));
        let images = places(&settings).images();
        assert_eq!(std::fs::read_link(&images).expect("a link"), folder.path().join("elsewhere"));
        std::fs::remove_file(&images).expect("remove");
        std::fs::create_dir_all(images.join("default")).expect("own images");
        assert!(matches!(occupy(&settings), Err(HouseError::Images { .. })));
    }

    #[test]
    fn a_port_in_use_is_named_with_the_next_step() {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("address");
        let error = bind(address, "HTTPS", "--https").expect_err("taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
        let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("address");
        let error = bind_udp(address, "WireGuard", "--vpn-listen").expect_err("taken").to_string();
        assert!(error.contains("ss -lunp") && error.contains("--vpn-listen"), "{error}");
    }
}
