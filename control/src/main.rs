//! `control --config FILE`: serves the API until it is told to stop.

use anyhow::Context;
use clap::Parser;
use control::Control;
use control::vms::FailPoints;
use model::config::ControlConfig;
use std::io::IsTerminal;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

/// The decider of Gatehouse: API, state and plans.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Settings, TOML.
    #[arg(long)]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    let path = arguments.config;
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let config: ControlConfig =
        toml::from_str(&text).with_context(|| format!("understanding {}", path.display()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let control = Control::start(config, FailPoints::default()).await?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("control is told to stop");
        stop.send_replace(true);
    });
    control.serve(stopping).await;
    Ok(())
}
