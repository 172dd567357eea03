//! `ssh-proxy --config FILE`: the SSH front. Needs no capability.

use anyhow::{Context, Result, bail};
use clap::Parser;
use feed::lines;
use feed::subscribe::Feed;
use feed::wire::WireListener;
use model::config::SshConfig;
use ssh_proxy::io::audit::Audit;
use ssh_proxy::io::door::Front;
use ssh_proxy::io::vm::HostKeys;
use ssh_proxy::io::{desk, figures, known};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use vmm::client::VmmClient;

/// What the listener is called in `LISTEN_FDNAMES`.
const LISTENER: &str = "ssh";
/// russh tells of each packet and of what clients send; no setting of an operator may have that written down.
const RUSSH_LOG: &str = "russh=warn";

/// For the log's last lines to be written, at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The SSH front of Gatehouse.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings, a TOML file.
    #[arg(long)]
    config: PathBuf,
    /// All VMs' host keys, a file of lines "type base64", instead of asking their agents.
    #[cfg(feature = "test-parts")]
    #[arg(long, hide = true)]
    host_keys: Option<PathBuf>,
}

fn main() -> Result<()> {
    let inherited = inherited()?;
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.config)
        .with_context(|| format!("cannot read {}", arguments.config.display()))?;
    let config: SshConfig =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", arguments.config.display()))?;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter.add_directive(RUSSH_LOG.parse()?))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let host_keys = host_keys(&arguments, &config);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers()).enable_all().build()?;
    runtime.block_on(serve(config, host_keys, inherited))
}

/// Half of the CPUs, at least one. The VMs' ends of the sessions run on this host, too, and they cipher as much as we do:
/// threads on all CPUs contend with them, and each packet of a session goes from one thread to another on its way.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| (cpus.get() / 2).max(1))
}

/// The listener that the service manager hands over (sd_listen_fds(3)), if it does.
fn inherited() -> Result<Option<std::net::TcpListener>> {
    let variable = |name| std::env::var(name).ok();
    let Some(count) = variable("LISTEN_FDS") else { return Ok(None) };
    if variable("LISTEN_PID").is_some_and(|pid| pid != std::process::id().to_string()) {
        return Ok(None);
    }
    if count != "1" || variable("LISTEN_FDNAMES").as_deref() != Some(LISTENER) {
        bail!("exactly one listener must be handed over, and be called '{LISTENER}'");
    }
    let descriptor = feed::sys::inherited(1).pop().context("the listener is not open")?;
    if !rustix::net::sockopt::socket_acceptconn(&descriptor)? {
        bail!("the descriptor that was handed over does not listen");
    }
    Ok(Some(descriptor.into()))
}

#[cfg(feature = "test-parts")]
fn host_keys(arguments: &Arguments, config: &SshConfig) -> Arc<dyn HostKeys> {
    match &arguments.host_keys {
        Some(file) => Arc::new(ssh_proxy::io::vm::FromFile(file.clone())),
        None => Arc::new(VmmClient::new(config.places.vmm_socket())),
    }
}

#[cfg(not(feature = "test-parts"))]
fn host_keys(_: &Arguments, config: &SshConfig) -> Arc<dyn HostKeys> {
    Arc::new(VmmClient::new(config.places.vmm_socket()))
}

async fn serve(
    config: SshConfig,
    host_keys: Arc<dyn HostKeys>,
    inherited: Option<std::net::TcpListener>,
) -> Result<()> {
    let (mut ended, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let own_user = rustix::process::geteuid().as_raw();
    let feed = Feed::open(&config.places.feed(), &[own_user]);
    tokio::spawn(feed.clone().follow(config.places.feed_socket()));
    let known = known::nothing();
    let receiver = known.subscribe();
    let (writer, writing) = lines::new(config.places.ssh_log(), "ssh", lines::MAX_FILE_BYTES);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let written = tokio::spawn(writing.run_until(async { drop(stopped.await) }));
    let listener = match inherited {
        Some(listener) => {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)?
        }
        None => TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen at {}", config.listen))?,
    };
    let desk = WireListener::bind(&config.places.ssh_socket(), 0o600)?;
    let front = Front::new(config, Audit::new(writer), receiver, host_keys);
    tokio::spawn(desk::serve(desk, front.sessions.clone(), own_user));
    tokio::spawn(figures::serve(Arc::clone(&front), own_user));
    info!(listen = %listener.local_addr()?, "serving");
    let limits = front.config.limits;
    tokio::select! {
        () = known::follow(feed, limits, known) => {}
        () = Arc::clone(&front).serve(listener) => {}
        _ = ended.recv() => {}
        _ = interrupted.recv() => {}
    }
    info!(sessions = front.sessions.list(None).len(), lines_lost = front.audit.lost(), "ended");
    drop(stop);
    if timeout(LAST_WORDS, written).await.is_err() {
        warn!("the last lines of the log are lost");
    }
    Ok(())
}
