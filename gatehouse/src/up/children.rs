//! The six programs: where they are, what they are told, and how they are started.

use crate::pure::roster::Role;
use crate::settings::{EDGE_ID, SSH_ID, Settings, VPN_ID};
use command_fds::{CommandFdExt, FdMapping, FdMappingCollision};
use model::config::{ControlConfig, EdgeConfig, Places, SshConfig, VmmConfig, VpcConfig, VpnConfig};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::Serialize;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use thiserror::Error;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// The hidden subcommand that takes rights away and becomes the program.
pub const LAUNCH_COMMAND: &str = "launch-child";
/// The first descriptor that is handed over (`sd_listen_fds(3)`).
const FIRST_DESCRIPTOR: i32 = 3;
/// The process' own program, as the kernel knows it: also when the file was replaced by a newer one since.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// Names the descriptor on which edge-proxy says that it serves.
const READY_FD: &str = "READY_FD";
/// Where the programs find the system's own (nft, ip).
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a program was not started.
#[derive(Debug, Error)]
pub enum ChildError {
    /// The folder of the programs is not known.
    #[error("gatehouse does not find its own program: {0}")]
    Own(#[source] io::Error),
    /// Its settings cannot be written.
    #[error("the settings of {role} cannot be written to {path}: {source}")]
    Settings {
        /// Which program.
        role: Role,
        /// Of the file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its settings cannot be told as TOML.
    #[error("the settings of {role} cannot be told: {source}")]
    Encode {
        /// Which program.
        role: Role,
        /// Why.
        source: toml::ser::Error,
    },
    /// The listeners cannot be handed over.
    #[error("the listeners cannot be handed over: {0}")]
    Listeners(#[source] io::Error),
    /// Two descriptors were to have one number.
    #[error("the listeners cannot be handed over: {0}")]
    Collision(#[from] FdMappingCollision),
    /// The program cannot be started.
    #[error("{role} cannot be started: {source}")]
    Start {
        /// Which program.
        role: Role,
        /// Why.
        source: io::Error,
    },
}

/// A program that runs.
#[derive(Debug)]
pub struct Started {
    /// To wait for its end.
    pub child: Child,
    /// To end it, whoever has its number by then.
    pub handle: Handle,
}

/// Names one process for good; its number may be given to another, this not.
#[derive(Debug)]
pub struct Handle(OwnedFd);

impl Handle {
    /// Sends a signal. One that has ended already is none the worse.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// The doors' sockets. They stay here, so that a door that dies loses no connection that waits.
#[derive(Debug)]
pub struct Listeners {
    /// For HTTPS.
    pub https: TcpListener,
    /// For the redirects.
    pub http: TcpListener,
    /// For WireGuard.
    pub vpn: UdpSocket,
    /// For SSH.
    pub ssh: TcpListener,
    /// Of the name server for certificate authorities, when there is one.
    pub dns: Option<(UdpSocket, TcpListener)>,
    /// For Prometheus servers, when they may ask.
    pub metrics: Option<TcpListener>,
}

/// Where the processes meet.
#[must_use]
pub fn places(settings: &Settings) -> Places {
    Places { data: settings.data_dir.clone(), run: settings.run_dir.clone() }
}

/// Programs that do not stand beside this one.
///
/// # Errors
/// When the folder of this one is not known.
pub fn missing_programs() -> Result<Vec<&'static str>, ChildError> {
    let folder = folder()?;
    Ok(Role::ALL.into_iter().map(Role::program).filter(|name| !folder.join(name).is_file()).collect())
}

/// Writes what the program is told, and starts it without environment, terminal or group in common with this one.
///
/// # Errors
/// When it cannot be started.
pub fn start(role: Role, settings: &Settings, listeners: &Listeners) -> Result<Started, ChildError> {
    spawn(role, settings, listeners, None)
}

/// Starts a second edge-proxy on the same listeners. What it writes is the line `READY=1` when it serves.
///
/// # Errors
/// When it cannot be started.
pub fn start_successor(
    settings: &Settings,
    listeners: &Listeners,
) -> Result<(Started, pipe::Receiver), ChildError> {
    let (reader, writer) = io::pipe().map_err(ChildError::Listeners)?;
    let reader = pipe::Receiver::from_owned_fd(reader.into()).map_err(ChildError::Listeners)?;
    Ok((spawn(Role::Edge, settings, listeners, Some(writer.into()))?, reader))
}

fn spawn(
    role: Role,
    settings: &Settings,
    listeners: &Listeners,
    notice: Option<OwnedFd>,
) -> Result<Started, ChildError> {
    let config = write_settings(role, settings)?;
    let mut command = Command::new(OWN_PROGRAM);
    command.arg0("gatehouse");
    command.arg(LAUNCH_COMMAND).args(["--role", role.program()]).arg("--program");
    command.arg(folder()?.join(role.program())).arg("--config").arg(config);
    command.env_clear().env("PATH", PATH).stdin(Stdio::null()).current_dir("/").kill_on_drop(true);
    for name in ["RUST_LOG", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    // Ctrl-C at the terminal is for this process, which ends the others in order.
    command.process_group(0);
    match role {
        Role::Edge => {
            let mut sockets = vec![("https", listeners.https.as_fd()), ("http", listeners.http.as_fd())];
            if let Some((datagrams, streams)) = &listeners.dns {
                sockets.extend([("dns", datagrams.as_fd()), ("dns", streams.as_fd())]);
            }
            if let Some(metrics) = &listeners.metrics {
                sockets.push(("metrics", metrics.as_fd()));
            }
            hand_over(&mut command, &sockets, notice)?;
        }
        Role::Ssh => hand_over(&mut command, &[("ssh", listeners.ssh.as_fd())], None)?,
        Role::Vpn => {
            let socket = listeners.vpn.try_clone().map_err(ChildError::Listeners)?;
            command.stdin(OwnedFd::from(socket));
        }
        Role::Vpc | Role::Vmm | Role::Control => {}
    }
    let child = command.spawn().map_err(|source| ChildError::Start { role, source })?;
    let handle = child
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .ok_or_else(|| io::Error::other("it has no process id"))
        .and_then(|pid| Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?))
        .map_err(|source| ChildError::Start { role, source })?;
    Ok(Started { child, handle: Handle(handle) })
}

fn hand_over(
    command: &mut Command,
    sockets: &[(&str, BorrowedFd<'_>)],
    notice: Option<OwnedFd>,
) -> Result<(), ChildError> {
    let mut mappings = Vec::new();
    for (number, (_, socket)) in (FIRST_DESCRIPTOR..).zip(sockets) {
        let parent_fd = socket.try_clone_to_owned().map_err(ChildError::Listeners)?;
        mappings.push(FdMapping { parent_fd, child_fd: number });
    }
    if let (Some(parent_fd), Some(child_fd)) = (notice, (FIRST_DESCRIPTOR..).nth(sockets.len())) {
        command.env(READY_FD, child_fd.to_string());
        mappings.push(FdMapping { parent_fd, child_fd });
    }
    let names: Vec<&str> = sockets.iter().map(|(name, _)| *name).collect();
    command.env("LISTEN_FDS", sockets.len().to_string());
    command.env("LISTEN_FDNAMES", names.join(":"));
    command.fd_mappings(mappings)?;
    Ok(())
}

/// Where this program and its fellows are.
///
/// # Errors
/// When the kernel does not tell.
pub(super) fn folder() -> Result<PathBuf, ChildError> {
    let own = std::env::current_exe().map_err(ChildError::Own)?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Writes what the program is told; returns the file.
///
/// # Errors
/// When it cannot be written.
pub fn write_settings(role: Role, settings: &Settings) -> Result<PathBuf, ChildError> {
    let places = places(settings);
    let text = match role {
        Role::Vpc => encode(
            role,
            &VpcConfig {
                places,
                prefix: settings.prefix.clone(),
                allowed_uids: vec![EDGE_ID],
                vpn_uid: Some(VPN_ID),
                ssh_uid: Some(SSH_ID),
                flow_log: settings.flow_log,
                upstream_dns: settings.upstream_dns.clone(),
            },
        ),
        Role::Vmm => encode(
            role,
            &VmmConfig {
                places,
                allowed_uids: Vec::new(),
                ssh_uid: Some(SSH_ID),
                console_bytes: settings.console_bytes,
                kernel_arguments: settings.kernel_arguments.clone(),
            },
        ),
        Role::Control => encode(role, &control(settings, places)),
        Role::Vpn => encode(
            role,
            &VpnConfig {
                places,
                listen: settings.vpn.listen,
                mtu: settings.vpn.door.mtu,
                client_to_client: settings.vpn.client_to_client,
            },
        ),
        Role::Ssh => {
            encode(role, &SshConfig { places, listen: settings.ssh.listen, limits: settings.ssh.limits })
        }
        Role::Edge => encode(
            role,
            &EdgeConfig {
                places,
                public_https_port: settings.public_https_port,
                max_connections: settings.max_connections,
                dns_host: settings.acme.dns_host.clone(),
                guard: settings.edge.limits,
                proxy_protocol_from: settings.edge.proxy_protocol_from.clone(),
                access_log_mib: settings.edge.access_log_mib,
                traces: settings.edge.traces,
            },
        ),
    }?;
    let path = settings_path(role, settings);
    std::fs::write(&path, text).map_err(|source| ChildError::Settings {
        role,
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

fn control(settings: &Settings, places: Places) -> ControlConfig {
    ControlConfig {
        places,
        domain: settings.domain.clone(),
        default_network: settings.default_network,
        api_listen: settings.api_listen,
        default_image: settings.default_image.clone(),
        default_size: settings.default_size,
        limits: settings.limits,
        edge_gid: Some(EDGE_ID),
        vpn: settings.vpn.door.clone(),
        vpn_gid: Some(VPN_ID),
        ssh: settings.ssh.door.clone(),
        ssh_gid: Some(SSH_ID),
        acme: settings.acme.authority.clone(),
        domains: settings.domains.clone(),
        metrics_listen: settings.metrics_listen,
    }
}

/// Where the program's settings stand.
pub(super) fn settings_path(role: Role, settings: &Settings) -> PathBuf {
    settings.run_dir.join(format!("{}.toml", role.program()))
}

fn encode<T: Serialize>(role: Role, config: &T) -> Result<String, ChildError> {
    toml::to_string(config).map_err(|source| ChildError::Encode { role, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Host, Wishes};

    #[test]
    fn each_program_can_read_what_it_is_told() {
        let folder = tempfile::tempdir().expect("folder");
        let wishes = Wishes {
            run_dir: Some(folder.path().to_owned()),
            upstream_dns: vec!["192.0.2.1:53".parse().expect("address")],
            ..Wishes::default()
        };
        let settings = wishes.settle(Host { memory_mib: 8192 }).expect("settings");
        let text =
            |role| std::fs::read_to_string(write_settings(role, &settings).expect("written")).expect("read");
        let vpc: VpcConfig = toml::from_str(&text(Role::Vpc)).expect("vpc");
        assert_eq!((vpc.allowed_uids, vpc.upstream_dns), (vec![EDGE_ID], settings.upstream_dns.clone()));
        let control: ControlConfig = toml::from_str(&text(Role::Control)).expect("control");
        assert_eq!((control.domain, control.limits), (settings.domain.clone(), settings.limits));
        let edge: EdgeConfig = toml::from_str(&text(Role::Edge)).expect("edge");
        assert_eq!(edge.public_https_port, 443);
        assert_eq!(edge.guard, settings.edge.limits);
        let vpn: VpnConfig = toml::from_str(&text(Role::Vpn)).expect("vpn");
        assert_eq!((vpn.listen.port(), vpn.mtu, control.vpn), (51820, 1280, settings.vpn.door.clone()));
        let ssh: SshConfig = toml::from_str(&text(Role::Ssh)).expect("ssh");
        assert_eq!((ssh.listen.port(), ssh.limits), (2222, settings.ssh.limits));
        assert_eq!((control.ssh.port, control.ssh_gid), (2222, Some(SSH_ID)));
        let vmm: VmmConfig = toml::from_str(&text(Role::Vmm)).expect("vmm");
        assert_eq!((vmm.ssh_uid, vpc.ssh_uid), (Some(SSH_ID), Some(SSH_ID)));
        assert_eq!(vmm.places, places(&settings));
    }
}
