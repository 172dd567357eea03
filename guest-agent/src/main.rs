//! The agent inside the VM.

use anyhow::{Context, bail};
use guest_agent::boot::Caller;
use guest_agent::place::Root;
use guest_agent::power_button;
use guest_agent::server::{Scope, serve};
use guest_agent::transport::{Host, Listener};
use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;

const USAGE: &str = "usage: gatehouse-agent [--listen-unix PATH [--call-unix PATH --root FOLDER]]";

fn main() -> anyhow::Result<()> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let path = |word: &OsString| PathBuf::from(word);
    let flags: Vec<Option<&str>> = words.iter().step_by(2).map(|flag| flag.to_str()).collect();
    match (&flags[..], &words[..]) {
        ([], _) => in_vm(),
        // An agent that is tried outside a VM.
        ([Some("--listen-unix")], [_, socket]) => {
            serve(&Listener::unix(&path(socket))?, Scope::CommandsAndFiles)
        }
        ([Some("--listen-unix"), Some("--call-unix"), Some("--root")], [_, socket, _, host, _, root]) => {
            let listener = Listener::unix(&path(socket))?;
            call(Host::Unix(path(host)), Root::below(path(root)))?;
            serve(&listener, Scope::CommandsAndFiles)
        }
        _ => bail!("{USAGE}"),
    }
}

fn in_vm() -> anyhow::Result<()> {
    // Listens before it calls, so that the host can call back as soon as it has answered.
    let listener = Listener::vsock()?;
    call(Host::Vsock, Root::system())?;
    thread::Builder::new().name("button".into()).spawn(power_button::watch).context("button thread")?;
    serve(&listener, Scope::Machine)
}

fn call(host: Host, root: Root) -> anyhow::Result<()> {
    let caller = Caller::new(host, root).context("chores thread")?;
    thread::Builder::new().name("boot".into()).spawn(|| caller.keep_calling()).context("boot thread")?;
    Ok(())
}
