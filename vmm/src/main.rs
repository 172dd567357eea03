//! `vmm`: the supervisor of the VMs, and the process of one VM.

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use feed::wire::{BlockingWire, WireError};
use model::config::VmmConfig;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use tracing_subscriber::EnvFilter;
use vmm::client::ExitReason;
use vmm::machine::control::{MachineMessage, MachinePlan, MachineRequest};
use vmm::machine::handed::Handed;
use vmm::machine::jail::Kit;
use vmm::machine::process::ProcessError;

/// Runs virtual machines on KVM.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start, watch and end VMs for control.
    Supervise {
        /// Settings: where the processes meet, who may ask.
        #[arg(long)]
        config: PathBuf,
    },
    /// Run one VM. Without a plan, standard input is the supervisor's socket.
    Run {
        /// A machine's plan as JSON, to run it by hand.
        #[arg(long)]
        plan: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Supervise { config } => {
            log_to_stderr();
            supervise(&config)
        }
        Command::Run { plan: None } => {
            vmm::machine::sys::close_inherited().context("cannot close inherited descriptors")?;
            log_to_stderr();
            run_for_supervisor()
        }
        Command::Run { plan: Some(path) } => {
            log_to_stderr();
            run_by_hand(&path)
        }
    }
}

fn supervise(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: VmmConfig =
        toml::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
    let program = std::env::current_exe().context("cannot find the own program")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")?;
    runtime.block_on(vmm::supervisor::serve(config, program)).context("the supervisor cannot serve")
}

/// In a session of its own, so that a signal for the supervisor's terminal or group does not reach the VM.
fn run_for_supervisor() -> anyhow::Result<()> {
    rustix::process::setsid().context("cannot begin a session")?;
    let control = std::io::stdin().as_fd().try_clone_to_owned().context("no control socket")?;
    // Copies of this process keep standard input: if it were the socket, the supervisor would wait for them too when
    // this process has ended.
    let nothing = std::fs::File::open("/dev/null").context("no /dev/null")?;
    rustix::stdio::dup2_stdin(&nothing).context("cannot let go of standard input")?;
    let kit = vmm::machine::jail::enter().context("no jail")?;
    match vmm::machine::process::run(control, kit) {
        // The supervisor has ended before it had an order.
        Err(ProcessError::NoOrder(WireError::Closed)) => Ok(()),
        ended => ended.context("no machine was run"),
    }
}

fn run_by_hand(path: &Path) -> anyhow::Result<()> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let plan: MachinePlan = serde_json::from_slice(&text).context("the plan cannot be understood")?;
    if plan.spec.nic.is_some() || plan.user.is_some() {
        bail!("a machine that is run by hand has neither a NIC nor a user of its own");
    }
    let (near, far): (OwnedFd, OwnedFd) = feed::wire::pair().context("no socket pair")?;
    let handed = Handed::open(&plan, Vec::new())?;
    let kit = Kit::open().context("no proc file system")?;
    let process = std::thread::spawn(move || vmm::machine::process::run(far, kit));
    let wire = BlockingWire::of(near);
    wire.send(&MachineRequest::Start(Box::new(plan)), &handed.descriptors())
        .context("cannot order the start")?;
    drop(handed);
    loop {
        match wire.receive::<MachineMessage>().context("the machine's thread is gone")?.0 {
            MachineMessage::Exited { reason } => {
                println!("{reason:?}");
                drop(wire);
                process.join().ok().context("the machine's thread panicked")??;
                return match reason {
                    ExitReason::Kvm { message } => bail!(message),
                    ExitReason::Stopped
                    | ExitReason::Suspended
                    | ExitReason::Killed
                    | ExitReason::PoweredOff
                    | ExitReason::Panicked { .. }
                    | ExitReason::ProcessDied { .. } => Ok(()),
                };
            }
            MachineMessage::Refused { message, .. } => bail!(message),
            event @ (MachineMessage::Running { .. }
            | MachineMessage::Done
            | MachineMessage::AgentReady
            | MachineMessage::Idle
            | MachineMessage::Rebooting) => println!("{event:?}"),
        }
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(std::io::stderr).init();
}
