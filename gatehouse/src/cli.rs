//! The words of the command line, and what each leads to.

use crate::client::certs::CertsCommand;
use crate::client::domains::DomainsCommand;
use crate::client::identity::IdentityCommand;
use crate::client::keys::KeyCommand;
use crate::client::metrics::Form;
use crate::client::snapshots::SnapshotsCommand;
use crate::client::ssh::SshCommand;
use crate::client::vm::VmCommand;
use crate::client::vpc::VpcCommand;
use crate::client::vpn::VpnCommand;
use crate::client::{self, Api, ClientError, Connection};
use crate::doctor::{self, kvm};
use crate::settings::{self, Host, Settings, Wishes};
use crate::up::announce::Waiters;
use crate::up::launch::Launch;
use crate::up::reload::Source;
use crate::up::{self, Manner};
use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

/// Self-hosted microVMs with an edge and private networks.
///
/// `gatehouse up` opens the house on this host; the other commands ask its API: over the operator's socket when run
/// by root on the host, or from anywhere with --url and --api-key.
#[derive(Debug, Parser)]
#[command(name = "gatehouse", version, propagate_version = true, max_term_width = 110)]
#[command(after_help = "Begin with:\n  gatehouse doctor       is this host fit?\n  \
    gatehouse up           open the house\n  gatehouse vm create    make a VM")]
pub struct Cli {
    #[command(flatten)]
    connection: Connection,
    #[command(subcommand)]
    command: Command,
}

/// Settings: flags over a file over defaults.
#[derive(Clone, Debug, clap::Args)]
pub struct SettingsArgs {
    /// The settings file [default: /etc/gatehouse/gatehouse.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    wishes: Wishes,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Open the house: start all processes and keep them, in the foreground
    #[command(after_help = "Every flag can stand in the settings file under the same name, for example:\n  \
        domain = \"style.dev\"\n  https = \"0.0.0.0:443\"\n\nCtrl-C or SIGTERM shuts the VMs down and closes; \
        a second one closes at once.\nWhen `up` itself is killed, VMs go on, and the next `up` takes them over.\n\n\
        Examples:\n  gatehouse up\n  gatehouse up --domain vms.example.org --data-dir /srv/gatehouse")]
    Up {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Leave VMs running when the house closes; the next `up` takes them over
        #[arg(long)]
        keep_vms: bool,
        /// Start even if this host lacks something
        #[arg(long)]
        force: bool,
        /// Write READY=1 to this open descriptor when all processes answer
        #[arg(long, value_name = "N")]
        ready_fd: Option<u32>,
        /// A service manager's socket for readiness (set by systemd)
        #[arg(long, env = "NOTIFY_SOCKET", hide = true)]
        notify_socket: Option<OsString>,
    },
    /// Close the house: shut the VMs down, end all processes, remove the networks
    #[command(
        after_help = "Asks a running `up` and waits until it is done. After one that was killed, or that left VMs \
        running,\nthe house is opened once more and closed in order. Data stays. Give the settings of `up`.\n\n\
        Example:\n  gatehouse down --data-dir /srv/gatehouse"
    )]
    Down {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Read the settings again and replace edge-proxy by a new process, without closing a connection
    #[command(
        after_help = "Asks the `up` that keeps the house, with its own flags and file. Listeners stay open: the new \
        edge-proxy, from the\nprogram that is on the disk now, takes connections before the old one stops to, and the old one \
        ends what it has in\nhand. What cannot change while the house is open is named.\n\nExample:\n  gatehouse reload"
    )]
    Reload,
    /// Make folders, certificates and the settings of each process, for service units that start them one by one
    #[command(after_help = "See deploy/README.md. `gatehouse up` does this by itself.")]
    Prepare {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Examine this host: what is missing, what that means, how to mend it
    #[command(after_help = "The exit status is 0 when Gatehouse can run here, else 1.")]
    Doctor {
        #[command(flatten)]
        settings: SettingsArgs,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Copies of VMs that are kept; `vm snapshot` makes them
    #[command(subcommand, visible_alias = "snapshot")]
    Snapshots(SnapshotsCommand),
    /// Private networks of VMs
    #[command(
        subcommand,
        after_help = "VMs of one VPC reach each other by address, and by name: each is VM.vpc.internal, by its id         and by its name if\nthat is a plain word which it alone has there. They reach the Internet, and no other VM. Names         outside lead to them\nas to any VM. A VM that is in no VPC is in the default network, where it reaches the         Internet alone."
    )]
    Vpc(VpcCommand),
    /// WireGuard from a computer into a VPC
    #[command(
        subcommand,
        after_help = "The tunnel carries packets for the VPC's range alone; names of its members are known inside it \
        alone. A session\nends when it is closed, when its client is silent for an hour, or after a day."
    )]
    Vpn(VpnCommand),
    /// Who may act in some VMs without being the account: by the API, and by SSH
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Live SSH sessions, public keys, and how clients know the house; `vm ssh` logs in
    #[command(subcommand)]
    Ssh(SshCommand),
    /// Public names that lead to VMs
    #[command(subcommand)]
    Domains(DomainsCommand),
    /// Keys for the API (on the host, as root)
    #[command(subcommand, name = "api-key")]
    ApiKey(KeyCommand),
    /// Certificates of mapped names, from the certificate authority
    #[command(subcommand)]
    Certs(CertsCommand),
    /// How the house is (on the host, as root)
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What all processes have counted since their start (on the host, as root)
    #[command(
        after_help = "The table sums up times as a count and their mean. --prometheus prints what a Prometheus \
        server reads, for its\nnode exporter's textfile collector for one; `up --metrics-listen` serves the same.\n\n\
        Examples:\n  gatehouse metrics\n  gatehouse metrics gatehouse_ssh_\n  \
        gatehouse metrics --prometheus > /var/lib/prometheus/node-exporter/gatehouse.prom"
    )]
    Metrics {
        /// Only figures whose name begins so
        #[arg(default_value = "")]
        prefix: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print Prometheus's text format
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
    },
    /// As whom the API takes you
    Whoami {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print a completion script
    #[command(after_help = "Example:\n  gatehouse completion bash > /etc/bash_completion.d/gatehouse")]
    Completion {
        /// For which shell
        shell: Shell,
    },
    /// Write the manual's pages into a folder
    #[command(after_help = "Example:\n  gatehouse man /usr/local/share/man/man1")]
    Man {
        /// The folder
        folder: PathBuf,
    },
    #[command(name = crate::up::children::LAUNCH_COMMAND, hide = true)]
    Launch(Launch),
    #[command(name = kvm::PROBE_COMMAND, hide = true)]
    KvmProbe,
}

impl SettingsArgs {
    /// `run-dir` is a word of the connection too, and clap gives it to only one of them.
    fn settle_in(mut self, run_dir: Option<PathBuf>) -> Result<Settings, settings::SettingsError> {
        self.wishes.run_dir = run_dir.or(self.wishes.run_dir);
        let file = settings::read_file(self.config.as_deref())?;
        self.wishes.over(file).settle(Host::here())
    }
}

impl Cli {
    /// Does what was asked; returns the exit status.
    ///
    /// # Errors
    /// With a text for the person who asked.
    pub fn run(self) -> anyhow::Result<u8> {
        match self.command {
            Command::Launch(launch) => match launch.run()? {},
            Command::KvmProbe => {
                client::print_line(&kvm::run_probe()?)?;
                Ok(0)
            }
            Command::Completion { shell } => {
                clap_complete::generate(shell, &mut Self::command(), "gatehouse", &mut io::stdout());
                Ok(0)
            }
            Command::Man { folder } => {
                std::fs::create_dir_all(&folder)
                    .and_then(|()| clap_mangen::generate_to(Self::command(), &folder))
                    .with_context(|| format!("the manual cannot be written to {}", folder.display()))?;
                Ok(0)
            }
            Command::Doctor { settings, json } => doctor(&settings.settle_in(self.connection.run_dir)?, json),
            Command::Prepare { settings } => {
                up::prepare(&settings.settle_in(self.connection.run_dir)?)?;
                Ok(0)
            }
            Command::Up { settings, keep_vms, force, ready_fd, notify_socket } => {
                let (again, run_dir) = (settings.clone(), self.connection.run_dir.clone());
                let source = Source::new(move || again.clone().settle_in(run_dir.clone()));
                let settings = settings.settle_in(self.connection.run_dir)?;
                let waiters = Waiters { manager: notify_socket, descriptor: ready_fd };
                block_on(async {
                    let source = Some(source);
                    up::run(settings, Manner { keep_vms, force, close: false, waiters, source }).await?;
                    Ok(0)
                })
            }
            Command::Down { settings } => {
                let settings = settings.settle_in(self.connection.run_dir)?;
                block_on(async { Ok(up::down::down(settings).await.map(|()| 0)?) })
            }
            Command::Reload => {
                let outcome = up::reload::ask(self.connection.run_folder())?;
                client::print_line(&up::reload::told(&outcome))?;
                Ok(u8::from(outcome.failed.is_some()))
            }
            Command::Vm(command) => {
                let api = self.connection.api()?;
                block_on(async { Ok(command.run(&api).await?) })
            }
            Command::Snapshots(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::Vpc(command) => {
                let (api, socket) = (self.connection.api()?, self.connection.run_folder().join("vpc.sock"));
                block_on(async { Ok(command.run(&api, &socket).await.map(|()| 0)?) })
            }
            Command::Vpn(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::Identity(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::Ssh(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::Domains(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::ApiKey(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::Certs(command) => ask(&self.connection, async |api| command.run(api).await),
            Command::Status { json } => {
                ask(&self.connection, async |api| client::status::status(api, json).await)
            }
            Command::Metrics { prefix, json, prometheus } => {
                let form = Form::of(json, prometheus);
                ask(&self.connection, async |api| client::metrics::metrics(api, &prefix, form).await)
            }
            Command::Whoami { json } => {
                ask(&self.connection, async |api| client::status::whoami(api, json).await)
            }
        }
    }
}

/// Asks the API something.
fn ask(
    connection: &Connection,
    work: impl AsyncFnOnce(&Api) -> Result<(), ClientError>,
) -> anyhow::Result<u8> {
    let api = connection.api()?;
    block_on(async { Ok(work(&api).await.map(|()| 0)?) })
}

/// One thread: children are tied to the thread that starts them, which must live as long as this process.
fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("no runtime could be made")?.block_on(work)
}

fn doctor(settings: &Settings, json: bool) -> anyhow::Result<u8> {
    let report = doctor::examine(settings);
    if json {
        client::print_json(&report)?;
    } else {
        client::print_line(&doctor::render(&report))?;
    }
    Ok(u8::from(!report.ok))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exec_leaves_the_words_behind_the_dashes_alone() {
        let words = ["gatehouse", "vm", "exec", "abcdefghij0123456789", "--", "ls", "--json", "-t", "9"];
        let cli = Cli::try_parse_from(words).expect("parsed");
        let Command::Vm(VmCommand::Exec(exec)) = cli.command else { panic!("an exec") };
        assert!(format!("{exec:?}").contains(r#"["ls", "--json", "-t", "9"]"#));
    }

    #[test]
    fn the_run_folder_is_understood_by_up_and_by_the_others() {
        for words in
            [&["gatehouse", "up", "--run-dir", "/x"][..], &["gatehouse", "status", "--run-dir", "/x"]]
        {
            let cli = Cli::try_parse_from(words).expect("parsed");
            assert_eq!(cli.connection.run_dir, Some("/x".into()));
        }
    }

    #[test]
    fn a_bad_id_is_refused_before_anything_is_asked() {
        let error = Cli::try_parse_from(["gatehouse", "vm", "get", "NOPE"]).expect_err("refused");
        assert!(error.to_string().contains("20 characters"), "{error}");
    }

    #[test]
    fn wrong_words_are_told_before_anything_is_asked() {
        let vm = model::id::VmId::from_random([1; 20]).to_string();
        let snapshot = model::id::SnapshotId::from_random([1; 20]).to_string();
        let vpc = model::id::VpcId::from_random([1; 20]).to_string();
        for (words, why) in [
            (vec!["vm", "create", "--snapshot", &vm], "'sc-'"),
            (vec!["vm", "create", "--vcpus", "0"], "1..=255"),
            (vec!["vm", "fork", &vm, "--count", "0"], "0 is not in 1.."),
            (vec!["vm", "resize", &vm], "--memory"),
            (vec!["vm", "resize", &vm, "--memory", "0"], "a number of MiB"),
            (vec!["vm", "snapshot", &vm, "--persistence", "ephemeral"], "persistent"),
            (vec!["vm", "suspend"], "<VM>"),
            (vec!["vm", "await", &vm, &vm], "unexpected"),
            (vec!["vm", "create", "--vpc", &vm], "'vpc-'"),
            (vec!["vm", "create", "--ip", "10.0.0.5"], "--vpc"),
            (vec!["vpc", "create", "--cidr", "10.0.0.7/24"], "did you mean 10.0.0.0/24?"),
            (vec!["vpc", "attach", &vpc], "<VM>"),
            (vec!["vpc", "attach", &vpc, &vm, "--ip", "10.0.0"], "IPv4"),
            (vec!["vpc", "detach", &vm, &vpc], "'vpc-'"),
            (vec!["vpc", "delete"], "<VPC>"),
            (vec!["vpc", "allow", &vpc, "up"], "in, out"),
            (vec!["vpc", "deny", &vpc, "in", "--port", "0"], "443 or 8000-8099"),
            (vec!["vpc", "rule-delete", &vpc, &vm], "'fw-'"),
            (vec!["vpc", "join", &vpc, "--name", "db"], "--netns"),
            (vec!["vpc", "join", &vpc, "--name", "db", "--host", "--pid", "1"], "cannot be used"),
            (vec!["vpn", "up"], "<VPC>"),
            (vec!["vpn", "close", &vpc, &vm], "'wg-'"),
            (vec!["identity", "grant", &vm, &vm], "'idn-'"),
            (vec!["ssh", "end", &vm], "'ss-'"),
            (vec!["vm", "ssh", &vm, "--user", "-x"], "--user"),
            (vec!["snapshots", "get", &vm], "'sc-'"),
            (vec!["snapshots", "rename", &snapshot], "<NAME"),
            (vec!["snapshots", "rename", &snapshot, "x", "--no-name"], "cannot be used"),
        ] {
            let error = Cli::try_parse_from(std::iter::once("gatehouse").chain(words.iter().copied()));
            let error = error.map(|_| ()).expect_err("refused").to_string();
            assert!(error.contains(why), "{words:?}: {error}");
        }
    }

    #[test]
    fn the_manual_and_the_completions_are_written() {
        let folder = tempfile::tempdir().expect("folder");
        clap_mangen::generate_to(Cli::command(), folder.path()).expect("manual");
        for page in [
            "gatehouse-vm-exec.1",
            "gatehouse-vm-fork.1",
            "gatehouse-snapshots-rename.1",
            "gatehouse-vpc-attach.1",
            "gatehouse-vpc-join.1",
            "gatehouse-vpn-up.1",
            "gatehouse-identity-token-create.1",
            "gatehouse-vm-ssh-config.1",
        ] {
            assert!(folder.path().join(page).exists(), "{page}");
        }
        let mut script = Vec::new();
        clap_complete::generate(Shell::Bash, &mut Cli::command(), "gatehouse", &mut script);
        assert!(String::from_utf8(script).expect("text").contains("api-key"));
    }
}
