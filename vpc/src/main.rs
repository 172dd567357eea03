//! vpc: the process that makes networks and hands descriptors out. Needs `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.

use anyhow::Context;
use clap::Parser;
use feed::subscribe::Feed;
use feed::wire::WireListener;
use model::config::VpcConfig;
use model::view::VpcView;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;
use vpc::dhcp::Dhcp;
use vpc::flowlog::FlowLog;
use vpc::pure::names::Names;
use vpc::resolver::{Resolver, upstream::Upstreams};
use vpc::server::Server;
use vpc::{flowlog, io, keel, keeper};

/// Private networks: namespaces, TAPs, rules, and connected sockets for the doors.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Settings, a TOML file.
    #[arg(long)]
    config: PathBuf,
    /// Remove all that this appliance has made in the kernel, and end.
    #[arg(long)]
    teardown: bool,
    /// Hold queues for vpc; started by vpc itself, or as a unit of its own with its socket as standard input.
    #[arg(long, hide = true, conflicts_with = "teardown")]
    keeper: bool,
    /// End as by SIGKILL at the n-th border between two changes.
    #[cfg(feature = "chaos")]
    #[arg(long, hide = true)]
    abort_after_step: Option<u64>,
}

/// Name of the keeper's socket, beside vpc's own.
const KEEPER_SOCKET: &str = "vpc-keeper.sock";
/// For the flow log's last lines to be written, at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let text = std::fs::read_to_string(&arguments.config)
        .with_context(|| format!("cannot read {}", arguments.config.display()))?;
    let config: VpcConfig =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", arguments.config.display()))?;
    let names = Names::new(&config.prefix).context("in the settings")?;
    let keeper_socket = config.places.run.join(KEEPER_SOCKET);
    if arguments.keeper {
        let listener = std::io::stdin().as_fd().try_clone_to_owned()?;
        return Ok(keeper::run(&listener, &keeper_socket)?);
    }
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_writer(std::io::stderr)
        .init();
    #[cfg(feature = "chaos")]
    if let Some(n) = arguments.abort_after_step {
        vpc::chaos::abort_after(n);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if arguments.teardown {
            keeper::end(&keeper_socket).await?;
            io::network::teardown(&names).await?;
            info!(borders = vpc::chaos::passed(), "removed everything");
            return Ok(());
        }
        serve(config, names, arguments.config, keeper_socket).await
    })
}

async fn serve(
    config: VpcConfig,
    names: Names,
    config_path: PathBuf,
    keeper_socket: PathBuf,
) -> anyhow::Result<()> {
    let places = &config.places;
    let me = rustix::process::geteuid().as_raw();
    let feed = Feed::<VpcView>::open(&places.feed(), &[me]);
    tokio::spawn(feed.clone().follow(places.feed_socket()));
    // Before anybody can ask for anything: who finds the socket finds the networks soon after.
    io::modules::load().await;
    let logged = flowlog::possible(config.flow_log).await;
    let keeper = keeper::Keeper::adopt(keeper_socket, config_path).await;
    let (switch, keel) = keel::new(names, feed, keeper, logged);
    // Any local process may connect; the kernel says who it is, and the server whom it serves.
    let listener = WireListener::bind(&places.vpc_socket(), 0o666)?;
    let resolver = Resolver::new(switch.clone(), Upstreams::new(config.upstream_dns.clone()));
    let dhcp = Dhcp::new(switch.clone());
    let (writer, writing) = feed::lines::new(places.flow_log(), "flows", feed::lines::MAX_FILE_BYTES);
    let flow_log = FlowLog::new(switch.clone(), writer, logged);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let written = tokio::spawn(writing.run_until(async { drop(stopped.await) }));
    let server = Server::new(switch, &config.allowed_uids, config.vpn_uid, config.ssh_uid);
    let (mut ended, mut interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    info!(socket = %places.vpc_socket().display(), "serving");
    tokio::select! {
        () = keel.run() => anyhow::bail!("the view cannot be followed any more"),
        () = server.run(listener) => anyhow::bail!("requests cannot be served any more"),
        () = resolver.run() => anyhow::bail!("names cannot be resolved any more"),
        () = dhcp.run() => anyhow::bail!("guests cannot be told their addresses any more"),
        () = flow_log.run() => anyhow::bail!("flows cannot be logged any more"),
        _ = ended.recv() => {}
        _ = interrupted.recv() => {}
    }
    drop(stop);
    if tokio::time::timeout(LAST_WORDS, written).await.is_err() {
        warn!("the last lines of the flow log are lost");
    }
    // Networks stay: VMs go on without us, and the next start takes them over.
    info!(borders = vpc::chaos::passed(), "ending; networks stay");
    Ok(())
}
