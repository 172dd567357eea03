//! `edge-proxy --config FILE`: listeners come as descriptors (`LISTEN_FDS`), everything else from one TOML file.
//!
//! SIGTERM ends it. SIGUSR1 says that another process serves the same listeners: see [`edge_proxy::Order`]. When it
//! serves it writes `READY=1` to the descriptor that `READY_FD` names, if there is one: the one behind the listeners.

use anyhow::{Context, Result};
use clap::Parser;
use edge_proxy::Order;
use edge_proxy::listeners::{self, Announced};
use edge_proxy::metrics::Metrics;
use edge_proxy::settings::Settings;
use feed::subscribe::Feed;
use model::config::EdgeConfig;
use rustix::fd::OwnedFd;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// A request makes and drops a hundred small things; glibc's allocator takes a sixth of its time for them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Log lines that wait for whoever reads them. When he does not, lines are dropped and not requests.
const WAITING_LOG_LINES: usize = 16_384;
/// What is logged unless `RUST_LOG` says otherwise. The engine's own lines tell of clients' faults one by one; the
/// access log and the counters have them already.
const DEFAULT_LOG: &str = "info,pingora_core=off,pingora_proxy=off,rustls=warn";

/// The HTTPS front of Gatehouse.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings, TOML.
    #[arg(long)]
    config: PathBuf,
}

fn main() -> Result<()> {
    // Before anything else is opened: the descriptors are known by their numbers alone.
    let announced = announced();
    let names = announced.names(std::process::id()).context("edge-proxy needs listeners")?;
    let waiter = listeners::waiter(std::env::var("READY_FD").ok().as_deref(), names.len())?;
    let mut descriptors = listeners::inherited(names.len() + usize::from(waiter));
    let waiter = if waiter { descriptors.pop() } else { None };
    let arguments = Arguments::parse();
    let _writes_the_rest_when_dropped = start_log();
    let text = std::fs::read_to_string(&arguments.config)
        .with_context(|| format!("cannot read {}", arguments.config.display()))?;
    let config: EdgeConfig =
        toml::from_str(&text).with_context(|| format!("{} is wrong", arguments.config.display()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(config, &names, descriptors, waiter))
}

async fn serve(
    config: EdgeConfig,
    names: &[String],
    descriptors: Vec<OwnedFd>,
    waiter: Option<OwnedFd>,
) -> Result<()> {
    let listeners = listeners::adopt(names, descriptors).context("edge-proxy needs listeners")?;
    let mut settings = Settings::new(config.public_https_port, config.max_connections);
    settings.dns_host.clone_from(&config.dns_host);
    settings.guard = config.guard;
    settings.access_log_bytes = u64::from(config.access_log_mib) << 20;
    settings.traces = config.traces;
    settings.proxy_protocol_from = config.proxy_protocol_from;
    let own_user = rustix::process::geteuid().as_raw();
    let feed = Feed::open(&config.places.feed(), &[own_user]);
    let metrics = Arc::new(Metrics::default());
    let orders = orders()?;
    let metrics_at = listeners.metrics.len();
    info!(https = listeners.https.len(), http = listeners.http.len(), metrics = metrics_at, "listening");
    let serving = || {
        if let Some(waiter) = waiter
            && let Err(error) = std::fs::File::from(waiter).write_all(b"READY=1\n")
        {
            warn!(%error, "who waits for this process cannot be told that it serves");
        }
    };
    edge_proxy::run(settings, &config.places, listeners, feed, metrics, serving, orders).await?;
    Ok(())
}

/// Signals, as orders.
fn orders() -> Result<mpsc::Receiver<Order>> {
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut handed_over = signal(SignalKind::user_defined1()).context("cannot listen for SIGUSR1")?;
    let (sender, receiver) = mpsc::channel(edge_proxy::ORDERS);
    tokio::spawn(async move {
        loop {
            let order = tokio::select! {
                _ = terminated.recv() => Order::Stop,
                _ = interrupted.recv() => Order::Stop,
                _ = handed_over.recv() => Order::HandOver,
            };
            if sender.send(order).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

fn announced() -> Announced {
    let get = |name| std::env::var(name).ok();
    Announced { pid: get("LISTEN_PID"), count: get("LISTEN_FDS"), names: get("LISTEN_FDNAMES") }
}

fn start_log() -> WorkerGuard {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(WAITING_LOG_LINES).lossy(true);
    let (writer, guard) = builder.finish(std::io::stderr());
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG));
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(filter).with_writer(writer).init();
    guard
}
