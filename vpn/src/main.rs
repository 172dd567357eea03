//! `vpn --config FILE`: the WireGuard front. Needs no capability.

use anyhow::{Context, Result, bail};
use clap::Parser;
use feed::subscribe::Feed;
use feed::wire::WireListener;
use model::config::VpnConfig;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;
use tracing_subscriber::EnvFilter;
use vpn::io::desk::{self, MAX_QUESTIONS};
use vpn::io::figures;
use vpn::io::follow::Follower;
use vpn::io::front::Front;
use vpn::io::server::{MAX_LOST, Server};
#[cfg(feature = "test-parts")]
use vpn::io::tunnels::NamedNamespaces;
use vpn::io::tunnels::{FromVpc, Tunnels};
use vpn::pure::engine::Rules;

/// What an IPv4 host must take (RFC 791), and the largest that jumbo frames carry.
const MTUS: std::ops::RangeInclusive<u16> = 576..=9000;
/// TUNs that are asked for at once; vpc answers one connection after another anyway.
const ASKING: usize = 8;
/// What is logged unless `RUST_LOG` says otherwise. The noise states tell of clients' faults one by one; the counters
/// have them already.
const DEFAULT_LOG: &str = "info,boringtun=off";

/// The WireGuard front of Gatehouse.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings, a TOML file.
    #[arg(long)]
    config: PathBuf,
    /// Make a network's TUN in a named namespace instead of asking vpc: VPC=NAMESPACE.
    #[cfg(feature = "test-parts")]
    #[arg(long, hide = true)]
    tunnel: Vec<String>,
}

#[cfg(feature = "test-parts")]
fn tunnels(arguments: &Arguments, config: &VpnConfig) -> Result<Arc<dyn Tunnels>> {
    let pair = |text: &String| {
        let (vpc, namespace) = text.split_once('=').context("VPC=NAMESPACE is wanted")?;
        Ok((vpc.parse()?, namespace.to_owned()))
    };
    if arguments.tunnel.is_empty() {
        return Ok(Arc::new(FromVpc(config.places.vpc_socket())));
    }
    Ok(Arc::new(NamedNamespaces(arguments.tunnel.iter().map(pair).collect::<Result<_>>()?)))
}

#[cfg(not(feature = "test-parts"))]
fn tunnels(_: &Arguments, config: &VpnConfig) -> Result<Arc<dyn Tunnels>> {
    Ok(Arc::new(FromVpc(config.places.vpc_socket())))
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.config)
        .with_context(|| format!("cannot read {}", arguments.config.display()))?;
    let config: VpnConfig =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", arguments.config.display()))?;
    if !MTUS.contains(&config.mtu) {
        bail!("mtu must be within {} and {}, and is {}", MTUS.start(), MTUS.end(), config.mtu);
    }
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_LOG)))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(ASKING).enable_all().build()?;
    runtime.block_on(serve(&config, tunnels(&arguments, &config)?))
}

async fn serve(config: &VpnConfig, tunnels: Arc<dyn Tunnels>) -> Result<()> {
    let (mut ended, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let own_user = rustix::process::geteuid().as_raw();
    let feed = Feed::open(&config.places.feed(), &[own_user]);
    tokio::spawn(feed.clone().follow(config.places.feed_socket()));
    // The socket may be handed over, so that it outlives this process: what comes meanwhile waits in it.
    let front = match Front::inherited(std::io::stdin().as_fd())? {
        Some(front) => front,
        None => Front::bind(config.listen)?,
    };
    let desk = WireListener::bind(&config.places.vpn_socket(), 0o600)?;
    let (questions, asked) = tokio::sync::mpsc::channel(MAX_QUESTIONS);
    tokio::spawn(desk::serve(desk, questions.clone()));
    tokio::spawn(figures::serve(config.places.vpn_figures(), own_user, questions));
    info!(listen = %front.local()?, mtu = config.mtu, "serving");
    let (lost, losses) = tokio::sync::mpsc::channel(MAX_LOST);
    let rules = Rules { mtu: config.mtu, client_to_client: config.client_to_client };
    let (server, orders) = Server::new(front, rules, lost)?;
    let thread = std::thread::Builder::new().name("packets".into()).spawn(move || server.run())?;
    let mut follower = Follower::new(feed, tunnels, orders, losses, asked);
    tokio::select! {
        // It ends when the loop does.
        () = follower.run() => {}
        _ = ended.recv() => {}
        _ = interrupted.recv() => {}
    }
    let counters = follower.counters().await;
    // Its orders go with it, so that the loop ends.
    drop(follower);
    thread.join().ok().context("the packets' thread died")?.context("packets cannot be passed any more")?;
    info!(?counters, "ended");
    Ok(())
}
