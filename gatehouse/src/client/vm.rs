//! `gatehouse vm`: machines.

use super::{Api, ClientError, print_json, print_line, spinner};
use crate::table::Table;
use clap::{Args, Subcommand, ValueEnum};
use model::api::exec::{Exec, ExecResult};
use model::api::vm::{
    CreateVm, DomainAtCreate, Persistence, StartVm, VmCreated, VmDeleted, VmInfo, VmKilled, VmList, VmRow,
    VmStarted, VmState, VmStopped,
};
use model::api::{Empty, LINUX_USER_HEADER, admin::AccountList};
use model::id::VmId;
use std::io::{self, Write};
use tokio::task::JoinSet;

/// VMs of one answer; the list is asked for in pieces of this size.
const PAGE: usize = 200;
/// Requests at once when many VMs are shut down; each waits for its VM.
const AT_ONCE: usize = 16;
/// What `timeout(1)` exits with when the time was over.
const TIMED_OUT: u8 = 124;
/// An exit status for a command of which none is known.
const NO_STATUS: u8 = 255;

/// What can be done with machines.
#[derive(Clone, Debug, Subcommand)]
pub enum VmCommand {
    /// Make a VM and wait until it can run commands
    #[command(after_help = "Examples:\n  gatehouse vm create\n  \
        gatehouse vm create --name web --memory-gb 2 --domain web.style.dev --port 8000\n  \
        vm=$(gatehouse vm create --json | jq -r .id)")]
    Create(Create),
    /// List VMs
    List {
        /// Only those in this state: building, starting, running, suspending, suspended, stopped, lost
        #[arg(long, value_parser = state)]
        state: Option<VmState>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show one VM
    Get {
        /// The VM
        vm: VmId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a VM; its output and exit status become this command's
    #[command(
        after_help = "One argument is a line for the VM's sh; several are a program and its arguments.\n\
        The exit status is the command's, 124 when the time was over.\n\nExamples:\n  \
        gatehouse vm exec VM -- uname -a\n  gatehouse vm exec VM -- 'ls /etc | wc -l'\n  \
        gatehouse vm exec VM --user alice --timeout 60 -- make test"
    )]
    Exec(ExecArgs),
    /// Boot stopped VMs
    Start(Which),
    /// Shut VMs down; their disks are kept
    Stop(Which),
    /// End VMs at once, as if by pulling the plug; their disks are kept
    Kill(Which),
    /// Delete VMs with their disks and mappings
    Delete(Which),
}

/// A VM to make.
#[derive(Args, Clone, Debug)]
pub struct Create {
    /// What people call it
    #[arg(long)]
    name: Option<String>,
    /// Virtual CPUs, a power of two
    #[arg(long, value_name = "N")]
    vcpus: Option<u8>,
    /// Memory in GiB, a power of two; 0.5 is 512 MiB
    #[arg(long, value_name = "GIB")]
    memory_gb: Option<f64>,
    /// Disk in GiB
    #[arg(long, value_name = "GIB")]
    disk_gb: Option<f64>,
    /// Suspend it after so many seconds without traffic; `never` keeps it up
    #[arg(long, value_name = "SECONDS|never", value_parser = idle)]
    idle_timeout: Option<Idle>,
    /// What becomes of it when nobody uses it
    #[arg(long, value_enum)]
    persistence: Option<Keeping>,
    /// A public name to lead to it
    #[arg(long, value_name = "NAME")]
    domain: Option<String>,
    /// The port inside the VM to which the name leads
    #[arg(long, value_name = "PORT", requires = "domain")]
    port: Option<u16>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// When an idle VM is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// It is not.
    Never,
    /// After so many seconds.
    After(u64),
}

/// What becomes of an unused VM.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Keeping {
    /// It may be given up when the host is full
    Sticky,
    /// It is kept
    Persistent,
    /// It is deleted when it stops
    Ephemeral,
}

/// A command to run.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// The VM
    vm: VmId,
    /// The Linux user; root when absent
    #[arg(long, short)]
    user: Option<String>,
    /// Kill the command after so many seconds
    #[arg(long, short, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Print JSON in place of the command's output
    #[arg(long)]
    json: bool,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Some VMs.
#[derive(Args, Clone, Debug)]
pub struct Which {
    /// The VMs
    #[arg(required = true)]
    vms: Vec<VmId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl VmCommand {
    /// Does it; returns this process' exit status.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<u8, ClientError> {
        match self {
            Self::Create(create) => create.run(api).await?,
            Self::List { state, json } => list(api, state, json).await?,
            Self::Get { vm, json } => get(api, &vm, json).await?,
            Self::Exec(exec) => return exec.run(api).await,
            Self::Start(which) => {
                which.each("starts", |vm| start(api, vm)).await?;
            }
            Self::Stop(which) => {
                which
                    .each("shuts down", |vm| async move {
                        api.post::<_, VmStopped>(&["v1", "vms", vm.as_str(), "stop"], &Empty {}).await
                    })
                    .await?;
            }
            Self::Kill(which) => {
                which
                    .each("ends", |vm| async move {
                        api.post::<_, VmKilled>(&["v1", "vms", vm.as_str(), "kill"], &Empty {}).await
                    })
                    .await?;
            }
            Self::Delete(which) => {
                which
                    .each("is deleted", |vm| async move {
                        api.delete::<VmDeleted>(&["v1", "vms", vm.as_str()]).await
                    })
                    .await?;
            }
        }
        Ok(0)
    }
}

async fn start(api: &Api, vm: VmId) -> Result<VmStarted, ClientError> {
    api.post(&["v1", "vms", vm.as_str(), "start"], &StartVm::default()).await
}

impl Create {
    async fn run(self, api: &Api) -> Result<(), ClientError> {
        let json = self.json;
        let waiting = spinner("the VM is made and boots", json);
        let created: VmCreated = api.post(&["v1", "vms"], &self.body()).await?;
        waiting.finish_and_clear();
        if json {
            return print_json(&created);
        }
        print_line(created.id.as_str())?;
        for domain in &created.domains {
            eprintln!("https://{domain} leads to it");
        }
        eprintln!("Next: gatehouse vm exec {} -- uname -a", created.id);
        Ok(())
    }

    fn body(self) -> CreateVm {
        let domains =
            self.domain.map(|domain| vec![DomainAtCreate { domain, vm_port: self.port.map(i64::from) }]);
        CreateVm {
            name: self.name,
            vcpu_count: self.vcpus.map(f64::from),
            mem_size_gb: self.memory_gb,
            rootfs_size_gb: self.disk_gb,
            idle_timeout_seconds: self.idle_timeout.map(|idle| match idle {
                Idle::Never => None,
                Idle::After(seconds) => Some(seconds),
            }),
            persistence: self.persistence.map(|keeping| match keeping {
                Keeping::Sticky => Persistence::Sticky { priority: None },
                Keeping::Persistent => Persistence::Persistent {},
                Keeping::Ephemeral => Persistence::Ephemeral { delete_event: None },
            }),
            domains,
            ..CreateVm::default()
        }
    }
}

impl ExecArgs {
    async fn run(self, api: &Api) -> Result<u8, ClientError> {
        let body = Exec {
            command: shell_text(&self.command),
            terminal: None,
            timeout_ms: self.timeout.map(|seconds| seconds.saturating_mul(1000)),
        };
        let header = self.user.as_deref().map(|user| (LINUX_USER_HEADER, user));
        let path = ["v1", "vms", self.vm.as_str(), "exec-await"];
        let result = match api.post_with::<_, ExecResult>(&path, &body, header).await {
            Ok(result) => result,
            Err(ClientError::Refused { code, body, .. }) if code == "EXEC_TIMED_OUT" && !self.json => {
                let text = |field| body.fields.get(field).and_then(|text| text.as_str()).map(str::to_owned);
                pass_through(text("stdout"), text("stderr"))?;
                eprintln!("gatehouse: the time was over, the command was killed");
                return Ok(TIMED_OUT);
            }
            Err(error) => return Err(error),
        };
        let status = result.status_code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NO_STATUS);
        if self.json {
            print_json(&result)?;
        } else {
            let truncated = result.truncated;
            pass_through(result.stdout, result.stderr)?;
            if truncated {
                eprintln!("gatehouse: the output was too long, some of it is lost");
            }
        }
        Ok(status)
    }
}

impl Which {
    /// Does it to one VM after the other, and says so; the first failure ends it.
    async fn each<T, F, Answer>(self, verb: &str, act: F) -> Result<(), ClientError>
    where
        T: serde::Serialize,
        F: Fn(VmId) -> Answer,
        Answer: Future<Output = Result<T, ClientError>>,
    {
        let mut answers = Vec::new();
        for vm in self.vms {
            let waiting = spinner(&format!("{vm} {verb}"), self.json);
            answers.push(act(vm.clone()).await?);
            waiting.finish_and_clear();
            if !self.json {
                print_line(vm.as_str())?;
            }
        }
        if self.json { print_json(&answers) } else { Ok(()) }
    }
}

/// All VMs of the account.
async fn all(api: &Api, state: Option<VmState>) -> Result<VmList, ClientError> {
    let mut rows: Vec<VmRow> = Vec::new();
    loop {
        let mut query = vec![("limit", PAGE.to_string()), ("offset", rows.len().to_string())];
        query.extend(state.map(|state| ("vmState", state.to_string())));
        let mut page: VmList = api.get(&["v1", "vms"], &query).await?;
        let last = page.vms.len() < PAGE;
        rows.append(&mut page.vms);
        if last {
            return Ok(VmList { vms: rows, ..page });
        }
    }
}

async fn list(api: &Api, state: Option<VmState>, json: bool) -> Result<(), ClientError> {
    let list = all(api, state).await?;
    if json {
        return print_json(&list);
    }
    let mut table = Table::new(&["ID", "NAME", "STATE", "SIZE", "CREATED"]);
    for vm in &list.vms {
        let size = format!(
            "{} CPU, {}, {} disk",
            vm.sizing.vcpu_count,
            size(vm.sizing.mem_size_mib),
            size(vm.sizing.rootfs_size_mb)
        );
        let created = vm.created_at.clone().unwrap_or_default();
        table.row([
            vm.id.to_string(),
            vm.name.clone().unwrap_or_default(),
            vm.state.to_string(),
            size,
            created,
        ]);
    }
    if table.is_empty() {
        eprintln!("No VMs. Next: gatehouse vm create");
        return Ok(());
    }
    print_line(&table.to_string())
}

fn size(mib: u32) -> String {
    if mib.is_multiple_of(1024) { format!("{} GiB", mib / 1024) } else { format!("{mib} MiB") }
}

async fn get(api: &Api, vm: &VmId, json: bool) -> Result<(), ClientError> {
    let info: VmInfo = api.get(&["v1", "vms", vm.as_str()], &[]).await?;
    if json {
        return print_json(&info);
    }
    let mut table = Table::new(&["ID", info.id.as_str()]);
    table.row(["NAME".into(), info.name.unwrap_or_default()]);
    table.row(["STATE".into(), info.state.to_string()]);
    table.row(["INSTANCE".into(), info.vm_instance_id.map(|id| id.to_string()).unwrap_or_default()]);
    if let Some(sizing) = info.sizing {
        table.row(["CPUS".into(), sizing.vcpu_count.to_string()]);
        table.row(["MEMORY".into(), size(sizing.mem_size_mib)]);
        table.row(["DISK".into(), size(sizing.rootfs_size_mb)]);
    }
    let idle = info.idle_timeout_seconds.map_or("never".into(), |seconds| format!("after {seconds} s"));
    table.row(["SUSPENDED".into(), idle]);
    for domain in &info.domains {
        table.row(["NAME OUTSIDE".into(), format!("https://{domain}")]);
    }
    if let Some(status) = info.exit_status {
        table.row(["LAST END".into(), status]);
    }
    print_line(&table.to_string())
}

/// Shuts down all VMs of all accounts; returns how many there were.
///
/// # Errors
/// The first failure; the others were tried all the same.
pub async fn stop_all(api: &Api) -> Result<usize, ClientError> {
    let accounts: AccountList = api.get(&["admin", "v1", "accounts"], &[]).await?;
    let mut stopping = JoinSet::new();
    let mut first = Ok(());
    let mut asked = 0;
    for account in accounts.accounts {
        let api = api.acting_for(account.id);
        for vm in all(&api, None).await?.vms {
            let verb = match vm.state {
                VmState::Running | VmState::Suspending => "stop",
                // Nothing in it is worth a shutdown yet.
                VmState::Starting | VmState::Building => "kill",
                VmState::Suspended | VmState::Stopped | VmState::Lost => continue,
            };
            if stopping.len() >= AT_ONCE {
                first = first.and(outcome(stopping.join_next().await));
            }
            asked += 1;
            let api = api.clone();
            stopping.spawn(async move {
                api.post::<_, serde_json::Value>(&["v1", "vms", vm.id.as_str(), verb], &Empty {}).await
            });
        }
    }
    while let Some(joined) = stopping.join_next().await {
        first = first.and(outcome(Some(joined)));
    }
    first.map(|()| asked)
}

type Joined = Option<Result<Result<serde_json::Value, ClientError>, tokio::task::JoinError>>;

fn outcome(joined: Joined) -> Result<(), ClientError> {
    match joined {
        Some(Ok(answer)) => answer.map(|_| ()),
        Some(Err(error)) => Err(ClientError::Output(io::Error::other(error))),
        None => Ok(()),
    }
}

fn pass_through(stdout: Option<String>, stderr: Option<String>) -> Result<(), ClientError> {
    io::stdout().write_all(stdout.unwrap_or_default().as_bytes()).map_err(ClientError::Output)?;
    io::stderr().write_all(stderr.unwrap_or_default().as_bytes()).map_err(ClientError::Output)?;
    io::stdout().flush().map_err(ClientError::Output)
}

/// One argument is the shell's text; several are words that the shell must leave as they are.
fn shell_text(words: &[String]) -> String {
    if let [line] = words {
        return line.clone();
    }
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

fn quote(word: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_./:=@%+,".contains(&b);
    if !word.is_empty() && word.bytes().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn idle(text: &str) -> Result<Idle, String> {
    if text == "never" {
        return Ok(Idle::Never);
    }
    text.parse().map(Idle::After).map_err(|_| "a number of seconds, or 'never'".into())
}

fn state(text: &str) -> Result<VmState, String> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|_| "one of building, starting, running, suspending, suspended, stopped, lost".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    #[test]
    fn never_and_absent_differ() {
        let create = |idle_timeout| Create {
            name: None,
            vcpus: Some(2),
            memory_gb: Some(0.5),
            disk_gb: None,
            idle_timeout,
            persistence: None,
            domain: None,
            port: None,
            json: false,
        };
        let json = |idle| serde_json::to_value(create(idle).body()).expect("json");
        assert_eq!(json(None), serde_json::json!({"vcpuCount": 2.0, "memSizeGb": 0.5}));
        assert_eq!(json(Some(Idle::Never))["idleTimeoutSeconds"], serde_json::Value::Null);
        assert!(json(Some(Idle::Never)).as_object().expect("object").contains_key("idleTimeoutSeconds"));
        assert_eq!(json(Some(Idle::After(60)))["idleTimeoutSeconds"], 60);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_shell_sees_the_words_that_were_given(words in prop::collection::vec("[^\0]{0,12}", 2..5)) {
            let mut all = vec!["printf".to_owned(), r"%s\n\n".to_owned()];
            all.extend(words.iter().cloned());
            let output = Command::new("sh").arg("-c").arg(shell_text(&all)).output().expect("sh");
            let wanted: String = words.iter().map(|word| format!("{word}\n\n")).collect();
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), wanted);
        }
    }
}
