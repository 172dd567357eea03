//! A world of a real sshd (Debian's openssh-server) behind a stand-in for vpc's socket, the process, and OpenSSH's
//! client. Needs root, as sshd does.

#![allow(dead_code, reason = "each test uses its part")]

pub mod echo;
pub mod network;

use feed::publish::Publisher;
use feed::wire::{Wire, WireListener};
use model::config::{Places, SshConfig, SshLimits};
use model::id::{AccountId, Generation, IdentityId, SshKeyId, TokenId, VmId, VmInstanceId};
use model::ssh::{
    Principal, SshGrantEntry, SshHostKeyEntry, SshKeyEntry, SshPrincipalEntry, SshSecret, SshTokenEntry,
    SshView, SshVmEntry, SshVmState,
};
use model::token::{IdentityToken, TOKEN_RANDOM_BYTES};
use model::view::VIEW_VERSION;
use ssh_proxy::client::SshClient;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vpc::client::{VpcReply, VpcRequest};

/// Longest that anything is waited for; the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn vm(seed: u8) -> VmId {
    VmId::from_random([seed; 20])
}

pub fn token(seed: u8) -> IdentityToken {
    IdentityToken::from_random(&[seed; TOKEN_RANDOM_BYTES]).expect("usable bytes")
}

pub struct World {
    pub folder: TempDir,
    pub view: SshView,
    pub front: SocketAddr,
    pub sshd_port: u16,
    pub dials: Arc<AtomicUsize>,
    publisher: Publisher,
    sshd: Child,
    process: Child,
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("it starts");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn keygen(path: &Path, kind: &str) {
    run("ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", "", "-f", path.to_str().expect("text")]);
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("address").port()
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl World {
    pub fn new() -> Self {
        Self::with(SshLimits::default())
    }

    /// Must be called inside a tokio runtime.
    pub fn with(limits: SshLimits) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        let places = Places { data: at("data"), run: at("run") };
        std::fs::create_dir_all(places.ssh_run()).expect("folder");
        for (name, kind) in
            [("front_ed", "ed25519"), ("front_ec", "ecdsa"), ("authority", "ed25519"), ("guest", "ed25519")]
        {
            keygen(&at(name), kind);
        }
        // Without names: OpenSSH takes no pattern for one, and the client's own line says for which names they hold.
        for name in ["front_ed.pub", "front_ec.pub"] {
            let (authority, key) = (at("authority"), at(name));
            let paths = [authority.to_str().expect("text"), key.to_str().expect("text")];
            run("ssh-keygen", &["-q", "-h", "-s", paths[0], "-I", "front", paths[1]]);
        }
        let (sshd, sshd_port) = start_sshd(folder.path());
        let dials = Arc::<AtomicUsize>::default();
        let listener = WireListener::bind(&places.vpc_socket(), 0o600).expect("vpc's socket");
        tokio::spawn(stand_in_for_vpc(listener, sshd_port, Arc::clone(&dials)));
        let publisher = Publisher::new(&places.feed()).expect("folder");
        let (announcer, socket) = (publisher.clone(), places.feed_socket());
        tokio::spawn(async move { announcer.announce(&socket).await.expect("announcing") });
        let front = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let config = SshConfig { places, listen: front, limits };
        std::fs::write(at("config.toml"), toml::to_string(&config).expect("text")).expect("written");
        std::fs::write(at("guest_keys"), guest_key(folder.path())).expect("written");
        let view = view(folder.path());
        publisher.publish(&view, None).expect("published");
        let process = start(folder.path());
        let mut known = String::new();
        for name in ["front_ed.pub", "front_ec.pub"] {
            known += &format!("[127.0.0.1]:{} {}", front.port(), read(&at(name)));
        }
        known += &format!("[127.0.0.1]:{sshd_port} {}", read(&at("guest.pub")));
        std::fs::write(at("known_hosts"), known).expect("written");
        eventually("it listens", || TcpStream::connect(front).is_ok());
        Self { folder, view, front, sshd_port, dials, publisher, sshd, process }
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Publishes the view after a change of it.
    pub fn publish(&mut self, change: impl FnOnce(&mut Vec<SshVmEntry>, &mut Vec<SshPrincipalEntry>)) {
        let mut vms: Vec<_> = self.view.vms.iter().cloned().collect();
        let mut principals: Vec<_> = self.view.principals.iter().cloned().collect();
        change(&mut vms, &mut principals);
        (self.view.vms, self.view.principals) = (vms.into(), principals.into());
        self.view.generation = Generation(self.view.generation.0 + 1);
        self.publisher.publish(&self.view, None).expect("published");
    }

    pub fn state(&mut self, state: SshVmState) {
        self.publish(|vms, _| vms[0].state = state);
    }

    /// `VM,TOKEN`, which needs no prompt.
    pub fn user(&self) -> String {
        format!("{},{}", vm(1), token(1).expose())
    }

    fn options(&self, program: &str, port: u16) -> Command {
        let mut command = Command::new(program);
        command.args([
            "-F",
            "none",
            "-o",
            "LogLevel=ERROR",
            "-o",
            "IdentityFile=none",
            "-o",
            "IdentityAgent=none",
        ]);
        command.arg("-o").arg(format!("UserKnownHostsFile={}", self.at("known_hosts").display()));
        command.args(["-o", "StrictHostKeyChecking=yes", "-o", &format!("Port={port}")]);
        command.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
        command
    }

    /// An OpenSSH program towards the front, which asks nobody.
    pub fn tool(&self, program: &str) -> Command {
        let mut command = self.options(program, self.front.port());
        command.args(["-o", "BatchMode=yes"]);
        command
    }

    /// `ssh` through the front, logged in as root.
    pub fn ssh(&self) -> Command {
        let mut command = self.tool("ssh");
        command.args(["-l", &self.user(), "127.0.0.1"]);
        command
    }

    /// `ssh` as some user, with a password that is typed when asked.
    pub fn ssh_as(&self, user: &str, password: Option<&str>) -> Command {
        let mut command = self.options("ssh", self.front.port());
        if let Some(password) = password {
            let ask = self.at("askpass");
            std::fs::write(&ask, format!("#!/bin/sh\necho '{password}'\n")).expect("written");
            run("chmod", &["700", ask.to_str().expect("text")]);
            command.env("SSH_ASKPASS", ask).env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", ":none");
        } else {
            command.args(["-o", "BatchMode=yes"]);
        }
        command.args(["-l", user, "127.0.0.1"]);
        command
    }

    /// `ssh` to sshd itself.
    pub fn direct(&self) -> Command {
        let mut command = self.options("ssh", self.sshd_port);
        command.args(["-o", "BatchMode=yes", "-o"]);
        command.arg(format!("CertificateFile={}", self.at("direct-cert.pub").display()));
        command.arg("-i").arg(self.at("direct")).args(["-l", "root", "127.0.0.1"]);
        if !self.at("direct").exists() {
            keygen(&self.at("direct"), "ed25519");
            let (authority, key) = (self.at("authority"), self.at("direct.pub"));
            let paths = [authority.to_str().expect("text"), key.to_str().expect("text")];
            run("ssh-keygen", &["-q", "-s", paths[0], "-I", "direct", "-n", "root", paths[1]]);
        }
        command
    }

    pub fn client(&self) -> SshClient {
        SshClient::new(Places { data: self.at("data"), run: self.at("run") }.ssh_socket())
    }

    /// The audit log's lines.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.at("data/ssh/ssh.jsonl")).unwrap_or_default()
    }

    /// Waits until a line with this is in the audit log, which is written a moment after what it tells of.
    pub fn logs(&self, text: &str) {
        eventually(text, || self.log().contains(text));
    }

    /// What it said.
    pub fn said(&self) -> String {
        read(&self.at("said"))
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn sshd_pid(&self) -> u32 {
        self.sshd.id()
    }

    /// Open descriptors of the process.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("alive").count()
    }

    /// A number of /proc/PID/status, in KiB.
    pub fn memory(&self, field: &str) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find(|line| line.starts_with(field)).expect("field");
        line.split_whitespace().nth(1).expect("number").parse().expect("number")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in [&mut self.process, &mut self.sshd] {
            child.kill().ok();
            child.wait().ok();
        }
        if std::thread::panicking() {
            eprintln!("the process said:\n{}\nits log:\n{}", self.said(), self.log());
            eprintln!("sshd said:\n{}", read(&self.at("sshd.log")));
        }
    }
}

fn guest_key(folder: &Path) -> String {
    read(&folder.join("guest.pub")).split_whitespace().take(2).collect::<Vec<_>>().join(" ") + "\n"
}

fn start_sshd(folder: &Path) -> (Child, u16) {
    std::fs::create_dir_all("/run/sshd").expect("sshd's own folder");
    let port = free_port();
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nTrustedUserCAKeys {}\nStrictModes no\nUsePAM no\n\
         PidFile none\nMaxStartups 1000\nMaxSessions 1000\nPermitRootLogin prohibit-password\nAcceptEnv *\n\
         StreamLocalBindUnlink yes\nRekeyLimit 16M\nX11Forwarding yes\nSubsystem sftp internal-sftp\n",
        at("guest"),
        at("authority.pub")
    );
    std::fs::write(folder.join("sshd_config"), text).expect("written");
    // An absolute path: it starts itself anew for each connection.
    let child = Command::new("/usr/sbin/sshd")
        .args(["-D", "-E", &at("sshd.log"), "-f", &at("sshd_config")])
        .stdin(Stdio::null())
        .spawn()
        .expect("openssh-server is installed");
    eventually("sshd listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    (child, port)
}

/// The process' program: cargo tells tests where it is; an example stands below it. `SSH_FRONT` names another one
/// (`tests/stock`).
fn program() -> PathBuf {
    if let Some(other) = std::env::var_os("SSH_FRONT") {
        return other.into();
    }
    match option_env!("CARGO_BIN_EXE_ssh-proxy") {
        Some(path) => path.into(),
        None => {
            let own = std::env::current_exe().expect("own path");
            own.parent().and_then(Path::parent).expect("below it").join("ssh-proxy")
        }
    }
}

fn start(folder: &Path) -> Child {
    let said = std::fs::File::create(folder.join("said")).expect("file");
    Command::new(program())
        .arg("--config")
        .arg(folder.join("config.toml"))
        .arg("--host-keys")
        .arg(folder.join("guest_keys"))
        .env("RUST_LOG", std::env::var("RUST_LOG").unwrap_or_else(|_| "trace".into()))
        .env("NO_COLOR", "1")
        .stderr(said)
        .spawn()
        .expect("it starts")
}

/// Answers dials with connections to sshd, whatever the VM.
async fn stand_in_for_vpc(listener: WireListener, port: u16, dials: Arc<AtomicUsize>) {
    loop {
        let wire: Wire = listener.accept().await.expect("accepted");
        let dials = Arc::clone(&dials);
        tokio::spawn(async move {
            // A client that is gone again takes its dial along, at any time.
            let Ok((request, _)) = wire.receive::<VpcRequest>().await else { return };
            let VpcRequest::Dial { port: 22, .. } = request else { panic!("{request:?}") };
            dials.fetch_add(1, Ordering::SeqCst);
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.expect("sshd is there");
            wire.send(&VpcReply::Dialed, &[stream.as_fd()]).await.ok();
        });
    }
}

fn view(folder: &Path) -> SshView {
    let secret = |name: &str| SshSecret(read(&folder.join(name)));
    let account = AccountId::from_random([1; 20]);
    let grant = |seed, users: Option<&[&str]>| SshGrantEntry {
        vm: vm(seed),
        allowed_users: users.map(|users| users.iter().map(|user| user.parse().expect("user")).collect()),
    };
    SshView {
        version: VIEW_VERSION,
        generation: Generation(1),
        host_keys: ["front_ed", "front_ec"]
            .map(|name| SshHostKeyEntry {
                key: secret(name),
                certificate: Some(read(&folder.join(format!("{name}-cert.pub"))).trim().to_owned()),
            })
            .to_vec()
            .into(),
        login_authority: secret("authority"),
        vms: [1, 2]
            .map(|seed| SshVmEntry {
                vm: vm(seed),
                account: account.clone(),
                run: 1,
                instance: VmInstanceId::from_random([seed; 20]),
                state: SshVmState::Up,
            })
            .to_vec()
            .into(),
        principals: vec![SshPrincipalEntry {
            principal: Principal::Identity(IdentityId::from_random([1; 20])),
            tokens: vec![SshTokenEntry { id: TokenId::from_random([1; 20]), hash: token(1).hash() }],
            keys: Vec::new(),
            grants: vec![grant(1, None), grant(2, Some(&["nobody-here"]))],
        }]
        .into(),
    }
}

/// An account with a key, of a file made by ssh-keygen.
pub fn account_with_key(public: &Path) -> SshPrincipalEntry {
    SshPrincipalEntry {
        principal: Principal::Account(AccountId::from_random([1; 20])),
        tokens: Vec::new(),
        keys: vec![SshKeyEntry {
            id: SshKeyId::from_random([1; 20]),
            key: read(public).split_whitespace().take(2).collect::<Vec<_>>().join(" "),
        }],
        grants: Vec::new(),
    }
}

pub fn make_key(path: &Path) {
    keygen(path, "ed25519");
}

/// A command as words of a shell.
pub fn words(command: &Command) -> String {
    let mut all = vec![command.get_program().to_string_lossy().into_owned()];
    all.extend(command.get_args().map(|word| format!("'{}'", word.to_string_lossy())));
    all.join(" ")
}

pub fn sh(text: &str) -> String {
    let output = Command::new("bash").arg("-ec").arg(text).output().expect("bash starts");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

pub trait Said {
    /// Standard output, of a command that succeeds.
    fn out(&mut self) -> String;
    /// All of it.
    fn all(&mut self) -> (Option<i32>, String, String);
}

impl Said for Command {
    fn out(&mut self) -> String {
        let (code, out, error) = self.all();
        assert_eq!(code, Some(0), "{self:?}\n{out}{error}");
        out
    }

    fn all(&mut self) -> (Option<i32>, String, String) {
        let Output { status, stdout, stderr } = self.output().expect("it starts");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (status.code(), text(stdout), text(stderr))
    }
}
