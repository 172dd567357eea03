//! `gatehouse vm ssh`, `cp` and `ssh-config`: this computer's own ssh and scp, with an identity that lives as long as
//! they do.
//!
//! The token stands neither in a command line, which everybody on this computer may read, nor in a file: ssh asks this
//! same program for it (SSH_ASKPASS, ssh(1)), which finds it in its environment, whose readers are the same user and root.

use crate::client::ssh::{SshError, host};
use crate::client::{Api, ClientError, identity, print_json, print_line};
use clap::Args;
use model::api::identity::SshHost;
use model::id::{IdentityId, VmId};
use model::ssh::LinuxUser;
use serde_json::json;
use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

/// In whose presence this program prints the token and nothing else.
pub const ASKPASS_VARIABLE: &str = "GATEHOUSE_ASKPASS_TOKEN";
/// What ssh exits with when it failed itself (ssh(1), EXIT STATUS); also when its status is not known.
const SSH_FAILED: u8 = 255;
/// Seconds between ssh's questions whether the other side lives.
const ALIVE_SECONDS: u32 = 30;

/// How the SSH front is reached.
#[derive(Args, Clone, Debug)]
pub struct FrontArgs {
    /// The SSH front's port, when it is another one than the house says
    #[arg(long, env = "GATEHOUSE_SSH_PORT", value_name = "PORT")]
    ssh_port: Option<u16>,
    /// The SSH front's address, when its name does not lead there
    #[arg(long, env = "GATEHOUSE_SSH_ADDRESS", value_name = "HOST")]
    ssh_address: Option<String>,
}

/// A login.
#[derive(Args, Clone, Debug)]
pub struct SshArgs {
    /// The VM
    vm: VmId,
    /// The Linux user [default: root]
    #[arg(long, short)]
    user: Option<LinuxUser>,
    #[command(flatten)]
    front: FrontArgs,
    /// A command to run in place of a shell; options of ssh may stand before it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// A copy.
#[derive(Args, Clone, Debug)]
pub struct CopyArgs {
    /// From here: a file of this computer, or VM:/path, or VM+USER:/path
    source: String,
    /// To here
    target: String,
    /// Whole folders
    #[arg(long, short)]
    recursive: bool,
    #[command(flatten)]
    front: FrontArgs,
}

/// A block for ~/.ssh/config.
#[derive(Args, Clone, Debug)]
pub struct ConfigArgs {
    /// The VM
    vm: VmId,
    /// The Linux user [default: root]
    #[arg(long, short)]
    user: Option<LinuxUser>,
    #[command(flatten)]
    front: FrontArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl SshArgs {
    /// Does it; returns ssh's exit status.
    pub(super) async fn run(self, api: &Api) -> Result<u8, ClientError> {
        let Self { vm, user, front, command } = self;
        with_token(api, &vm, user.as_ref(), &front, "ssh", |login, options| {
            let mut arguments = options;
            arguments.push("-p".into());
            arguments.push(login.port.to_string().into());
            arguments.push("-l".into());
            arguments.push(login.name.clone().into());
            arguments.push("--".into());
            arguments.push(login.host.clone().into());
            arguments.extend(command);
            arguments
        })
        .await
    }
}

impl CopyArgs {
    /// Does it; returns scp's exit status.
    pub(super) async fn run(self, api: &Api) -> Result<u8, ClientError> {
        let Self { source, target, recursive, front } = self;
        let (vm, user, path, sends) = match (remote(&source), remote(&target)) {
            (Some((vm, user, path)), None) => (vm, user, path, false),
            (None, Some((vm, user, path))) => (vm, user, path, true),
            (Some(_), Some(_)) | (None, None) => return Err(SshError::Ends.into()),
        };
        with_token(api, &vm, user.as_ref(), &front, "scp", |login, options| {
            let mut arguments = options;
            arguments.push("-P".into());
            arguments.push(login.port.to_string().into());
            if recursive {
                arguments.push("-r".into());
            }
            arguments.push("--".into());
            let there = format!("{}@{}:{path}", login.name, login.host);
            let ends = if sends { [source.clone(), there] } else { [there, target.clone()] };
            arguments.extend(ends.map(OsString::from));
            arguments
        })
        .await
    }
}

impl ConfigArgs {
    /// Prints it.
    pub(super) async fn run(self, api: &Api) -> Result<(), ClientError> {
        let host = host(api).await?;
        let name = login(&self.vm, self.user.as_ref());
        let alias = format!("{}.{}", self.vm, host.host);
        let port = self.front.ssh_port.unwrap_or(host.port);
        if self.json {
            return print_json(&json!({"host": alias, "hostName": host.host, "user": name, "port": port}));
        }
        print_line(&block(&alias, &host.host, port, &name, &self.front))
    }
}

/// Who logs in, and where.
struct Login {
    name: String,
    host: String,
    port: u16,
}

/// The user name of the SSH front, without a token.
fn login(vm: &VmId, user: Option<&LinuxUser>) -> String {
    user.map_or_else(|| vm.to_string(), |user| format!("{vm}+{user}"))
}

fn block(alias: &str, host: &str, port: u16, name: &str, front: &FrontArgs) -> String {
    let address = front.ssh_address.as_deref().unwrap_or(host);
    format!(
        "Host {alias}\n  HostName {address}\n  HostKeyAlias {host}\n  Port {port}\n  User {name}\n  \
         ServerAliveInterval {ALIVE_SECONDS}\n  ControlMaster auto\n  ControlPath ~/.ssh/%C\n  ControlPersist 60"
    )
}

/// A file of a VM: `VM[+USER]:path`.
fn remote(text: &str) -> Option<(VmId, Option<LinuxUser>, &str)> {
    let (who, path) = text.split_once(':')?;
    let (vm, user) = who.split_once('+').map_or((who, None), |(vm, user)| (vm, Some(user)));
    let user = user.map(str::parse).transpose().ok()?;
    Some((vm.parse().ok()?, user, path))
}

/// Makes an identity for one login, runs the program, and takes the identity back whatever became of it.
async fn with_token(
    api: &Api,
    vm: &VmId,
    user: Option<&LinuxUser>,
    front: &FrontArgs,
    program: &'static str,
    arguments: impl FnOnce(&Login, Vec<OsString>) -> Vec<OsString>,
) -> Result<u8, ClientError> {
    // From now on Ctrl-C is the program's to answer, and we live to tidy up.
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind).map_err(|source| SshError::Run { program, source })?);
    }
    let host = host(api).await?;
    let made = identity::create(api).await?.id;
    let outcome = async {
        let root = [user.cloned().unwrap_or_else(LinuxUser::root)];
        identity::grant(api, &made, vm, &root).await?;
        let token = identity::create_token(api, &made).await?.token;
        let folder = Folder::new(&made)?;
        let known = folder.known_hosts(&host)?;
        let port = front.ssh_port.unwrap_or(host.port);
        let login = Login { name: login(vm, user), host: host.host.clone(), port };
        let arguments = arguments(&login, options(&host, front, &known));
        run(program, &arguments, &token).await
    };
    let outcome = outcome.await;
    if let Err(error) = identity::delete(api, &made).await {
        eprintln!("gatehouse: {error}\nIts token is worth something still: gatehouse identity delete {made}");
    }
    drop(signals);
    outcome
}

fn options(host: &SshHost, front: &FrontArgs, known: &Path) -> Vec<OsString> {
    let mut options: Vec<String> = vec![
        format!("HostKeyAlias={}", host.host),
        format!("UserKnownHostsFile={}", known.display()),
        "GlobalKnownHostsFile=none".to_owned(),
        "StrictHostKeyChecking=yes".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        // The token is what logs in: no key of the person's is offered, and the front sees one attempt.
        "PreferredAuthentications=password".to_owned(),
        "PubkeyAuthentication=no".to_owned(),
        "NumberOfPasswordPrompts=1".to_owned(),
        format!("ServerAliveInterval={ALIVE_SECONDS}"),
        // A connection that others share would outlive the token.
        "ControlPath=none".to_owned(),
    ];
    options.extend(front.ssh_address.as_ref().map(|address| format!("HostName={address}")));
    options.into_iter().flat_map(|option| [OsString::from("-o"), option.into()]).collect()
}

async fn run(program: &'static str, arguments: &[OsString], token: &str) -> Result<u8, ClientError> {
    let failed = |source| SshError::Run { program, source };
    let own = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    command.args(arguments).env("SSH_ASKPASS", own).env("SSH_ASKPASS_REQUIRE", "force");
    let status = command.env(ASKPASS_VARIABLE, token).status().await.map_err(failed)?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(SSH_FAILED))
}

/// A folder of our own, which goes with this.
struct Folder(PathBuf);

impl Folder {
    fn new(identity: &IdentityId) -> Result<Self, SshError> {
        let path = std::env::temp_dir().join(format!("gatehouse-{identity}"));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|source| SshError::Write { path: path.clone(), source })?;
        Ok(Self(path))
    }

    fn known_hosts(&self, host: &SshHost) -> Result<PathBuf, SshError> {
        let path = self.0.join("known_hosts");
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let written = opened.and_then(|mut file| writeln!(file, "{}", host.known_hosts));
        written.map_err(|source| SshError::Write { path: path.clone(), source })?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("gatehouse: {} stays behind: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn vm() -> VmId {
        "abcdefghij0123456789".parse().expect("id")
    }

    #[test]
    fn a_vm_s_file_is_told_from_one_here() {
        assert_eq!(remote("abcdefghij0123456789:/a:b"), Some((vm(), None, "/a:b")));
        let dev = Some("dev".parse().expect("user"));
        assert_eq!(remote("abcdefghij0123456789+dev:"), Some((vm(), dev, "")));
        for here in ["/tmp/x", "./a:b", "host:/x", "abcdefghij0123456789", "abcdefghij0123456789+-x:/y"] {
            assert_eq!(remote(here), None, "{here}");
        }
    }

    #[test]
    fn openssh_understands_the_block_and_the_options() {
        let front = FrontArgs { ssh_port: None, ssh_address: Some("127.0.0.1".to_owned()) };
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("config");
        let text = block("x.vm-ssh.style.dev", "vm-ssh.style.dev", 2222, &login(&vm(), None), &front);
        std::fs::write(&file, &text).expect("written");
        let shown = Command::new("ssh").arg("-F").arg(&file).args(["-G", "x.vm-ssh.style.dev"]).output();
        let shown = String::from_utf8(shown.expect("ssh runs").stdout).expect("text");
        for line in ["hostname 127.0.0.1", "port 2222", "user abcdefghij0123456789", "serveraliveinterval 30"]
        {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(text.contains("ControlPath ~/.ssh/%C"));
        let host = SshHost {
            host: "vm-ssh.style.dev".to_owned(),
            port: 2222,
            authority: String::new(),
            known_hosts: String::new(),
        };
        let checked = Command::new("ssh").args(options(&host, &front, &file)).args(["-G", "x"]).output();
        let checked = checked.expect("ssh runs");
        assert!(checked.status.success(), "{checked:?}");
    }

    #[tokio::test]
    async fn the_token_stands_in_no_command_line() {
        let token = "gti_0123456789abcdefghijABCDEFGH";
        let line =
            "tr '\\0' ' ' < /proc/$$/cmdline | grep -c gti_ ; test -n \"$GATEHOUSE_ASKPASS_TOKEN\" && exit 7";
        assert_eq!(run("sh", &["-c".into(), line.into()], token).await.expect("ran"), 7);
    }
}
