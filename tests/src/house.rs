//! A running house: `gatehouse up` with a data directory of its own.

use crate::load;
use crate::traces::Traces;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::VecDeque;
use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest until the house says that it is ready: six processes and a new database, slow under emulation.
const READY_WAIT: Duration = Duration::from_secs(120);
/// Longest until the house is down after it was asked.
const STOP_WAIT: Duration = Duration::from_secs(120);
/// A folder that is not there: looks at the host alone.
const NO_DATA: &str = "/nonexistent";
/// Where the public command line takes its users by SSH.
pub const SSH_HOST: &str = "vm-ssh.freestyle.sh";
/// Of what a script complained, in the error that a test ends with. Node tells of a failed assertion in fewer.
const COMPLAINT_LINES: usize = 30;
/// The names of the daemons, as programs.
pub const DAEMONS: [&str; 6] = ["control", "vmm", "vpc", "vpn", "ssh-proxy", "edge-proxy"];

/// What a house is given by its test.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The folder of images; that of the environment when absent.
    pub images: Option<PathBuf>,
    /// Memory of a VM in MiB.
    pub memory_mib: u32,
    /// Disk of a VM in MiB.
    pub disk_mib: u32,
    /// Where VPN clients reach it.
    pub vpn_host: Option<String>,
    /// A file with more settings.
    pub settings: Option<PathBuf>,
    /// Whether SSH is served where the public command line looks for it: at [`SSH_HOST`], port 22.
    pub ssh: bool,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { images: None, memory_mib: 512, disk_mib: 4096, vpn_host: None, settings: None, ssh: false }
    }
}

/// A running house. Dropping it ends it.
#[derive(Debug)]
pub struct House {
    process: Child,
    wishes: Wishes,
    programs: PathBuf,
    folder: tempfile::TempDir,
    key: String,
    before: Traces,
}

impl House {
    /// Starts one on the standard ports of 127.0.0.1 and waits until it is ready. VMs are small by default.
    ///
    /// # Errors
    /// When the programs or images are missing, or the house does not come up in time.
    pub fn start() -> Result<Self> {
        Self::start_with(Wishes::default())
    }

    /// Starts one as [`House::start`] does, with these wishes.
    ///
    /// # Errors
    /// When the programs or images are missing, or the house does not come up in time.
    pub fn start_with(wishes: Wishes) -> Result<Self> {
        let programs = from_environment("GATEHOUSE_BIN")?;
        let before = Traces::take(Path::new(NO_DATA))?;
        let folder = tempfile::Builder::new().prefix("gatehouse-").tempdir_in("/var/tmp")?;
        // edge-proxy runs as a user of its own and must pass through.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
        let notify = folder.path().join("notify.sock");
        let ready = UnixDatagram::bind(&notify).context("the readiness socket")?;
        ready.set_read_timeout(Some(READY_WAIT))?;
        let process = with_settings("up", &programs, folder.path(), &wishes)?
            .env("NOTIFY_SOCKET", &notify)
            .stdin(Stdio::null())
            .spawn()
            .context("gatehouse cannot be started")?;
        let mut house = Self { process, wishes, programs, folder, key: String::new(), before };
        house.await_ready(&ready)?;
        house.key = house.make_key()?;
        Ok(house)
    }

    /// Its data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The certificate of its own authority.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.data().join("tls/ca.pem")
    }

    /// Where HTTPS is answered.
    #[must_use]
    pub fn https(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 443))
    }

    /// An API key of the default account.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Runs the command line against this house.
    ///
    /// # Errors
    /// When it cannot be started or ends with a failure.
    pub fn gatehouse(&self, arguments: &[&str]) -> Result<Output> {
        let output = Command::new(self.programs.join("gatehouse"))
            .args(["--run-dir".as_ref(), self.folder.path().join("run").as_os_str()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!("gatehouse {arguments:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        }
        Ok(output)
    }

    /// Starts the command line against this house, to be ended later.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = Command::new(self.programs.join("gatehouse"));
        command.args(["--run-dir".as_ref(), self.folder.path().join("run").as_os_str()]);
        Ok(command.args(arguments).stdin(Stdio::null()).spawn()?)
    }

    /// Runs the command line with `--json` and reads what it prints.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.gatehouse(&[arguments, &["--json"]].concat())?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("gatehouse {arguments:?} --json"))
    }

    /// Runs a program of the public SDK against this house, with every name of the house leading to it.
    ///
    /// # Errors
    /// When the program fails; its output went to this process' own.
    pub fn sdk(&self, program: &str, extra: &[(&str, String)]) -> Result<()> {
        let e2e = repository().join("tests/e2e");
        let hosts = self.folder.path().join("hosts");
        let names: Vec<String> = ["api", "something", "one", "two", "three", "four", "five", "six"]
            .iter()
            .map(|name| format!("127.0.0.1 {name}.style.dev\n"))
            .collect();
        std::fs::write(&hosts, format!("127.0.0.1 localhost\n127.0.0.1 {SSH_HOST}\n{}", names.concat()))?;
        let script = r#"mount --bind "$1" /etc/hosts && mount --bind "$4" /etc/ssh/ssh_config.d &&
            cd "$2" && exec node "$3""#;
        let ssh = self.ssh_config()?;
        let mut running = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([hosts.as_os_str(), e2e.join("sdk").as_os_str(), program.as_ref(), ssh.as_os_str()])
            .env("FREESTYLE_API_URL", "https://api.style.dev")
            .env("FREESTYLE_API_KEY", &self.key)
            .env("NODE_EXTRA_CA_CERTS", self.ca())
            .env("GATEHOUSE_CA", self.ca())
            .env("GATEHOUSE_CA_PEM", std::fs::read_to_string(self.ca())?)
            .env("GATEHOUSE_SERVER", e2e.join("guest/server.py"))
            .envs(extra.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let complaint = passed_on(running.stderr.take().context("its errors are ours")?)?;
        let status = running.wait()?;
        anyhow::ensure!(status.success(), "{program}: {status}\n{complaint}");
        Ok(())
    }

    /// A folder with a file `house.conf`, by which an SSH client knows the house's host keys and no other ones.
    ///
    /// # Errors
    /// When the keys cannot be asked for, or a file cannot be written.
    pub fn ssh_config(&self) -> Result<PathBuf> {
        let folder = self.folder.path().join("ssh_config.d");
        let known = folder.join("known_hosts");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(&known, self.gatehouse(&["ssh", "known-hosts"])?.stdout)?;
        let known = known.display();
        let config = format!(
            "UserKnownHostsFile {known}\nGlobalKnownHostsFile none\nStrictHostKeyChecking yes\n\
             IdentityFile none\nConnectTimeout 60\n"
        );
        std::fs::write(folder.join("house.conf"), config)?;
        Ok(folder)
    }

    /// The process id of `gatehouse up`.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// The process id of one of the [`DAEMONS`], from the kernel's list of the house's children.
    ///
    /// # Errors
    /// When it is not running.
    pub fn daemon(&self, name: &str) -> Result<i32> {
        let parent = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
        for pid in children.split_whitespace() {
            // A child may end between the listing and the look.
            let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let program = line.split(|byte| *byte == 0).next().unwrap_or_default();
            if String::from_utf8_lossy(program).rsplit('/').next() == Some(name) {
                return Ok(pid.parse()?);
            }
        }
        bail!("{name} is not running")
    }

    /// Asks an URL of the house; returns status and body.
    ///
    /// # Errors
    /// When there is no answer.
    pub fn get(&self, url: &str) -> Result<(u16, String)> {
        let mut answer = load::client(&self.ca(), self.https(), load::REQUEST_WAIT)?.get(url).call()?;
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
    }

    /// Asks the house to end and waits until it has, and until the host is as it was before it.
    ///
    /// # Errors
    /// When it does not end in time, ends with a failure, or leaves something in the kernel.
    pub fn stop(mut self) -> Result<()> {
        let status = self.end()?;
        anyhow::ensure!(status.success(), "gatehouse up ended with {status}");
        Traces::await_none_beyond(&self.before, Path::new(NO_DATA))
    }

    /// Kills `gatehouse up` itself, has `gatehouse down` clear away what it left, and waits until the host is as it was
    /// before the house.
    ///
    /// # Errors
    /// When `down` fails or something is left.
    pub fn kill_and_clear(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        let mut down = with_settings("down", &self.programs, self.folder.path(), &self.wishes)?;
        let status = down.stdin(Stdio::null()).status()?;
        anyhow::ensure!(status.success(), "gatehouse down ended with {status}");
        Traces::await_none_beyond(&self.before, Path::new(NO_DATA))
    }

    fn end(&mut self) -> Result<std::process::ExitStatus> {
        let pid = rustix::process::Pid::from_child(&self.process);
        let watch = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let mut events = [rustix::event::PollFd::new(&watch, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec::try_from(STOP_WAIT)?;
        if rustix::event::poll(&mut events, Some(&limit))? == 0 {
            self.process.kill()?;
        }
        Ok(self.process.wait()?)
    }

    fn await_ready(&mut self, ready: &UnixDatagram) -> Result<()> {
        let begun = Instant::now();
        let mut message = [0; 4096];
        while begun.elapsed() < READY_WAIT {
            let size = ready.recv(&mut message).context("the house did not say that it is ready")?;
            if message[..size].split(|byte| *byte == b'\n').any(|line| line == b"READY=1") {
                return Ok(());
            }
        }
        bail!("the house was not ready after {READY_WAIT:?}")
    }

    fn make_key(&self) -> Result<String> {
        let made = self.json(&["api-key", "create"])?;
        let key = made.get("key").or_else(|| made.get("secret")).and_then(Value::as_str);
        Ok(key.context("an API key was made without a secret")?.to_owned())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None))
            && let Err(error) = self.end()
        {
            eprintln!("the house did not end: {error:#}");
        }
    }
}

/// The folder of the repository.
#[must_use]
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The folder of the images that are tested.
///
/// # Errors
/// When the environment does not name it.
pub fn images() -> Result<PathBuf> {
    from_environment("GATEHOUSE_IMAGES")
}

/// `gatehouse` with a word and the settings of the house in this folder.
fn with_settings(word: &str, programs: &Path, folder: &Path, wishes: &Wishes) -> Result<Command> {
    let images = match &wishes.images {
        Some(images) => images.clone(),
        None => images()?,
    };
    let mut command = Command::new(programs.join("gatehouse"));
    command
        .arg(word)
        .args(["--data-dir".as_ref(), folder.join("data").as_os_str()])
        .args(["--run-dir".as_ref(), folder.join("run").as_os_str()])
        .args(["--image-dir".as_ref(), images.as_os_str()])
        .args(["--domain", "style.dev", "--https", "127.0.0.1:443", "--http", "127.0.0.1:80"])
        .args(["--default-vcpus", "1", "--default-memory-mib", &wishes.memory_mib.to_string()])
        .args(["--default-disk-mib", &wishes.disk_mib.to_string()])
        // In software, a kernel's guards against what only real CPUs do take a quarter of a guest's time.
        .args(std::env::var_os("BED").map(|_| "--kernel-arguments=mitigations=off"))
        .args(wishes.settings.iter().flat_map(|file| ["--config".as_ref(), file.as_os_str()]))
        .args(wishes.vpn_host.iter().flat_map(|host| ["--vpn-host", host]))
        .args(
            wishes
                .ssh
                .then_some(["--ssh-listen", "127.0.0.1:22", "--ssh-host", SSH_HOST])
                .into_iter()
                .flatten(),
        );
    Ok(command)
}

fn from_environment(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os(name).with_context(|| format!("{name} is not set; run ./test e2e"))?;
    Ok(path.into())
}

/// Reads until nobody writes any more, passes all of it on as our own errors, and keeps the last of it.
fn passed_on(errors: ChildStderr) -> Result<String> {
    let mut last = VecDeque::with_capacity(COMPLAINT_LINES);
    for line in BufReader::new(errors).lines() {
        let line = line?;
        eprintln!("{line}");
        if last.len() == COMPLAINT_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    Ok(Vec::from(last).join("\n"))
}
