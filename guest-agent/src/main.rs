//! The agent inside the VM.

use anyhow::{Context, bail};
use guest_agent::server::{Scope, serve};
use guest_agent::transport::Listener;
use guest_agent::{boot, power_button};
use std::path::PathBuf;
use std::thread;

const USAGE: &str = "usage: gatehouse-agent [--listen-unix PATH]";

fn main() -> anyhow::Result<()> {
    match arguments()? {
        Some(path) => serve(&Listener::unix(&path)?, Scope::CommandsAndFiles),
        None => {
            // Listens before it calls, so that the host can call back as soon as it has answered.
            let listener = Listener::vsock()?;
            thread::Builder::new().name("boot".into()).spawn(boot::keep_calling).context("boot thread")?;
            thread::Builder::new()
                .name("button".into())
                .spawn(power_button::watch)
                .context("button thread")?;
            serve(&listener, Scope::Machine)
        }
    }
}

/// The Unix socket to listen on, for an agent that is tried outside a VM.
fn arguments() -> anyhow::Result<Option<PathBuf>> {
    let mut words = std::env::args_os().skip(1);
    match (words.next(), words.next(), words.next()) {
        (None, ..) => Ok(None),
        (Some(flag), Some(path), None) if flag == "--listen-unix" => Ok(Some(path.into())),
        _ => bail!("{USAGE}"),
    }
}
