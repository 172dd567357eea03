//! `gatehouse vpn`: WireGuard from a computer into a VPC. The tunnel itself is made by `wg-quick`.

use super::{Api, ClientError, each, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use model::api::Empty;
use model::api::vpc::VpcInfo;
use model::api::wireguard::{CloseSession, EphemeralCreated, SessionActivity, SessionList, SessionRow};
use model::id::{VpcId, WireGuardSessionId};
use serde_json::json;
use std::env;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thiserror::Error;
use tokio::process::Command;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Between two looks at the tunnel's counters, on a terminal.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Characters of a session's id in the name of its interface, which has at most 15 (Linux, IFNAMSIZ).
const INTERFACE_ID_CHARS: usize = 10;
/// What an id begins with that says nothing.
const ID_PREFIX: &str = "wg-";
/// Members that are named when the tunnel is up.
const SHOWN_MEMBERS: usize = 8;

/// What can be done with VPN sessions.
#[derive(Clone, Debug, Subcommand)]
pub enum VpnCommand {
    /// Open a tunnel into a VPC, and keep it until Ctrl-C or SIGTERM (as root; needs wireguard-tools)
    #[command(after_help = "Example:\n  sudo gatehouse vpn up VPC --url https://api.style.dev --api-key KEY")]
    Up {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a session and print its file for wg-quick; it has a private key, so keep it to yourself
    #[command(after_help = "Example:\n  (umask 077; gatehouse vpn config VPC > shop.conf)\n  \
        sudo wg-quick up ./shop.conf")]
    Config {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List the sessions into a VPC
    Sessions {
        /// The VPC
        vpc: VpcId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End sessions
    Close {
        /// The VPC
        vpc: VpcId,
        /// The sessions
        #[arg(required = true, value_name = "SESSION")]
        sessions: Vec<WireGuardSessionId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Why there is no tunnel.
#[derive(Debug, Error)]
pub enum VpnError {
    /// Devices are for root.
    #[error(
        "a tunnel needs a network device, which root alone can make: try sudo, or take the file elsewhere: \
             gatehouse vpn config VPC"
    )]
    NotRoot,
    /// WireGuard's tools are not there.
    #[error(
        "{0} is not installed; it comes with wireguard-tools (apt install wireguard-tools, dnf install \
             wireguard-tools, brew install wireguard-tools)"
    )]
    Missing(&'static str),
    /// Signals cannot be heard.
    #[error("signals cannot be heard: {0}")]
    Signals(#[source] io::Error),
    /// The file for `wg-quick` cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// Of the file or its folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program cannot be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It came to nothing, and has said why.
    #[error("wg-quick {word} ended with {status}; what it said stands above")]
    Quick {
        /// Up or down.
        word: &'static str,
        /// How.
        status: ExitStatus,
    },
}

impl VpnCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::Up { vpc, json } => up(api, &vpc, json).await,
            Self::Config { vpc, json } => {
                let made = open(api, &vpc).await?;
                if json {
                    return print_json(&made);
                }
                print_line(made.client_config.trim_end())?;
                let (session, ends) = (&made.session_id, &made.expires_at);
                eprintln!("It ends at {ends}, or: gatehouse vpn close {vpc} {session}");
                Ok(())
            }
            Self::Sessions { vpc, json } => {
                let list: SessionList =
                    api.get(&["v1", "vpcs", vpc.as_str(), "wireguard", "sessions"], &[]).await?;
                if json {
                    return print_json(&list);
                }
                if list.sessions.is_empty() {
                    eprintln!("No sessions. Next: gatehouse vpn up {vpc}");
                    return Ok(());
                }
                print_line(&table(list.sessions).to_string())
            }
            Self::Close { vpc, sessions, json } => {
                each(sessions, "is closed", json, async |session: &WireGuardSessionId| {
                    close(api, &vpc, session).await
                })
                .await
            }
        }
    }
}

async fn open(api: &Api, vpc: &VpcId) -> Result<EphemeralCreated, ClientError> {
    api.post(&["v1", "vpcs", vpc.as_str(), "wireguard", "ephemeral"], &Empty {}).await
}

async fn close(api: &Api, vpc: &VpcId, session: &WireGuardSessionId) -> Result<Empty, ClientError> {
    let body = CloseSession { session_id: session.to_string() };
    api.delete_with(&["v1", "vpcs", vpc.as_str(), "wireguard", "ephemeral"], &body).await
}

/// Opens a tunnel and keeps it. Whatever happens behind the session's making, it is closed again.
async fn up(api: &Api, vpc: &VpcId, json: bool) -> Result<(), ClientError> {
    if !rustix::process::geteuid().is_root() {
        return Err(VpnError::NotRoot.into());
    }
    for program in ["wg-quick", "wg"] {
        if !installed(program) {
            return Err(VpnError::Missing(program).into());
        }
    }
    let mut ends = Ends::listen()?;
    let made = open(api, vpc).await?;
    let kept = tunnel(api, &made, &mut ends, json).await;
    let closed = close(api, vpc, &made.session_id).await;
    kept?;
    match closed {
        // It was over by itself.
        Ok(Empty {}) | Err(ClientError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The tunnel, from its file to its end.
async fn tunnel(api: &Api, made: &EphemeralCreated, ends: &mut Ends, json: bool) -> Result<(), ClientError> {
    let interface = interface(&made.session_id);
    let folder = env::temp_dir().join(format!("gatehouse-{}", made.session_id));
    let file = folder.join(format!("{interface}.conf"));
    let written = write_config(&folder, &file, &made.client_config);
    let kept = match written {
        Err(error) => Err(error.into()),
        Ok(()) => match quick("up", &file).await {
            Err(error) => Err(error.into()),
            Ok(()) => {
                let kept = keep(api, made, &interface, ends, json).await;
                let down = quick("down", &file).await;
                kept.and(down.map_err(ClientError::from))
            }
        },
    };
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("{} has a private key and cannot be removed: {error}", folder.display());
        }
        Ok(()) | Err(_) => {}
    }
    kept
}

/// Says how the VPC is reached, and shows what the tunnel carries, until it is to end.
async fn keep(
    api: &Api,
    made: &EphemeralCreated,
    interface: &str,
    ends: &mut Ends,
    json: bool,
) -> Result<(), ClientError> {
    if json {
        print_json(&json!({
            "vpcId": made.vpc_id,
            "sessionId": made.session_id,
            "interfaceName": interface,
            "clientTunnelIp": made.client_tunnel_ip,
            "vpcCidr": made.vpc_cidr,
            "expiresAt": made.expires_at,
        }))?;
    } else {
        print_line(&format!("{} is reached through {interface}, until {}.", made.vpc_cidr, made.expires_at))?;
        // The tunnel is of use without the list.
        if let Ok(info) = api.get::<VpcInfo>(&["v1", "vpcs", made.vpc_id.as_str()], &[]).await {
            print_line(&members(&info))?;
        }
        print_line("Ctrl-C ends it.")?;
    }
    let bar = bar(json);
    loop {
        tokio::select! {
            () = ends.next() => break,
            () = tokio::time::sleep(LOOK_EVERY), if !bar.is_hidden() => {
                if let Some(traffic) = look(interface).await {
                    bar.set_message(traffic.shown(SystemTime::now()));
                }
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn members(info: &VpcInfo) -> String {
    let vms =
        info.members.iter().map(|vm| (vm.ipv4, vm.name.clone().unwrap_or_else(|| vm.vm_id.to_string())));
    let services = info.services.iter().map(|service| (service.ipv4, service.name.clone()));
    let all: Vec<_> = vms.chain(services).collect();
    if all.is_empty() {
        return "Nobody is in it yet.".to_owned();
    }
    let line = |(ipv4, name): &(std::net::Ipv4Addr, String)| format!("  ping {ipv4}   # {name}");
    let mut lines: Vec<String> = all.iter().take(SHOWN_MEMBERS).map(line).collect();
    if all.len() > SHOWN_MEMBERS {
        lines.push(format!("  … and {} more: gatehouse vpc get {}", all.len() - SHOWN_MEMBERS, info.vpc_id));
    }
    lines.join("\n")
}

fn bar(json: bool) -> ProgressBar {
    if json || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a good template");
    let bar = ProgressBar::new_spinner().with_style(style).with_message("waiting for the first handshake");
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// What says that the tunnel is to end.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn listen() -> Result<Self, VpnError> {
        let hear = |kind| signal(kind).map_err(VpnError::Signals);
        Ok(Self {
            interrupt: hear(SignalKind::interrupt())?,
            terminate: hear(SignalKind::terminate())?,
            hangup: hear(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// What the tunnel has carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traffic {
    /// Since the Unix epoch, in seconds; 0: there was none yet.
    handshake: u64,
    received: u64,
    sent: u64,
}

impl Traffic {
    /// Reads `wg show INTERFACE dump`: a line of the interface, then one of each peer (wg(8)).
    fn read(text: &str) -> Option<Self> {
        let peer: Vec<&str> = text.lines().nth(1)?.split('\t').collect();
        let number = |place: usize| peer.get(place)?.parse().ok();
        Some(Self { handshake: number(4)?, received: number(5)?, sent: number(6)? })
    }

    fn shown(self, now: SystemTime) -> String {
        if self.handshake == 0 {
            return format!("no answer yet; {} sent. Is UDP let through?", size(self.sent));
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let ago = now.saturating_sub(self.handshake);
        format!("{} received, {} sent; last handshake {ago} s ago", size(self.received), size(self.sent))
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

async fn look(interface: &str) -> Option<Traffic> {
    let output = Command::new("wg").args(["show", interface, "dump"]).stderr(Stdio::null()).output().await;
    Traffic::read(&String::from_utf8(output.ok()?.stdout).ok()?)
}

/// Runs `wg-quick`, whose words are for the person and not for programs.
async fn quick(word: &'static str, file: &Path) -> Result<(), VpnError> {
    let failed = |source| VpnError::Run { program: "wg-quick", source };
    let mut command = Command::new("wg-quick");
    command.arg(word).arg(file).stdin(Stdio::null()).stdout(io::stderr());
    // A second Ctrl-C must not leave half a tunnel.
    command.process_group(0);
    let status = command.status().await.map_err(failed)?;
    if status.success() { Ok(()) } else { Err(VpnError::Quick { word, status }) }
}

/// Nobody else reads the file, nor has put anything in its way.
fn write_config(folder: &Path, file: &Path, text: &str) -> Result<(), VpnError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| VpnError::Write { path, source }
    };
    DirBuilder::new().mode(0o700).create(folder).map_err(failed(folder))?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    opened.and_then(|mut opened| opened.write_all(text.as_bytes())).map_err(failed(file))
}

/// The name of the session's interface, which is that of its file.
fn interface(session: &WireGuardSessionId) -> String {
    let id = session.as_str().trim_start_matches(ID_PREFIX);
    format!("gh{}", id.chars().take(INTERFACE_ID_CHARS).collect::<String>())
}

fn installed(program: &str) -> bool {
    let executable = |folder: PathBuf| {
        std::fs::metadata(folder.join(program))
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(executable))
}

fn table(sessions: Vec<SessionRow>) -> Table {
    let mut table = Table::new(&["ID", "ADDRESS", "STATE", "FROM", "RECEIVED", "SENT", "GATEWAY", "ENDS"]);
    let number = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |value| value.to_string());
    for session in sessions {
        let state = match session.state {
            Some(SessionActivity::Away) => "away",
            Some(SessionActivity::Connected) => "connected",
            Some(SessionActivity::Ending) => "ending",
            None => "?",
        };
        table.row([
            session.session_id.to_string(),
            session.client_tunnel_ip.to_string(),
            state.to_owned(),
            session.endpoint.unwrap_or_default(),
            number(session.received_bytes),
            number(session.sent_bytes),
            session.gateway_vm_id.map(String::from).unwrap_or_default(),
            session.expires_at,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_are_read_as_wg_writes_them() {
        let dump = "priv=\tpub=\t51820\toff\npeer=\tpsk=\t192.0.2.1:51820\t10.0.0.0/24\t1700000000\t2048\t5242880\t25\n";
        let traffic = Traffic::read(dump).expect("read");
        assert_eq!(traffic, Traffic { handshake: 1_700_000_000, received: 2048, sent: 5_242_880 });
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_007);
        assert_eq!(traffic.shown(now), "2 KiB received, 5 MiB sent; last handshake 7 s ago");
        assert!(Traffic { handshake: 0, ..traffic }.shown(now).contains("no answer yet"));
        for bad in ["", "priv=\tpub=\t1\toff\n", "a\nb\n"] {
            assert_eq!(Traffic::read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_interface_has_a_name_that_linux_takes() {
        let name = interface(&WireGuardSessionId::from_random([1; 20]));
        assert!(
            name.len() <= 15 && name.starts_with("gh") && name.bytes().all(|b| b.is_ascii_alphanumeric()),
            "{name}"
        );
    }
}
