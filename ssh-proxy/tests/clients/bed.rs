//! What each cell of the table has: a world, a service to forward to, a file to copy, and the clients' packages.

use crate::support::echo::{service, talk};
use crate::support::{Said, World, eventually, free_port, sh, token, vm, words};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Connections that are forwarded at once, for clients whose only channels beside a session these are.
const MANY: usize = 24;
/// MiB of the file that is copied.
const MEBIBYTES: u32 = 8;

/// See the module.
pub struct Bed {
    /// The front and what stands behind it.
    pub world: World,
    /// The service's port.
    pub service: u16,
    /// SHA-256 of the front's ed25519 key, as OpenSSH and PuTTY write it.
    pub fingerprint: String,
}

impl Bed {
    /// Must be called inside a tokio runtime.
    pub fn new() -> Self {
        let world = World::new();
        sh(&format!("head -c {MEBIBYTES}M /dev/urandom > {}", world.at("blob").display()));
        let fingerprint =
            sh(&format!("ssh-keygen -lf {} | cut -d' ' -f2", world.at("front_ed.pub").display()));
        Self { world, service: service(), fingerprint: fingerprint.trim().to_owned() }
    }

    /// The front's port.
    pub fn port(&self) -> String {
        self.world.front.port().to_string()
    }

    /// A program without anybody's settings, at the front.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("HOME", self.world.folder.path()).env_remove("SSH_AUTH_SOCK").stdin(Stdio::null());
        command
    }

    /// OpenSSH's client as words of a shell, without host and user, for programs that start it.
    pub fn openssh(&self) -> String {
        words(&self.world.tool("ssh"))
    }

    /// Does what a script says of one feature.
    pub fn script(&self, interpreter: &Path, script: &str, feature: &str) {
        self.run(self.program(interpreter.to_str().expect("text")), script, feature);
    }

    /// The same of a program in Java, which is compiled as it is run, with JSch.
    pub fn java(&self, script: &str, feature: &str) {
        let mut java = self.program("java");
        java.args(["-cp", "/usr/share/java/jsch.jar"]);
        self.run(java, script, feature);
    }

    fn run(&self, mut command: Command, script: &str, feature: &str) {
        command.arg(here(script)).arg(feature).arg(self.port());
        command.args([vm(1).as_str(), token(1).expose()]).arg(self.world.at("known_hosts"));
        command.arg(self.world.folder.path()).arg(self.service.to_string());
        command.current_dir(if script.ends_with("cjs") { node_packages() } else { self.world.folder.path() });
        assert_eq!(command.out(), "good\n", "{script} {feature}");
        if feature == "files" {
            self.copied();
        }
    }

    /// The same of a script in Python.
    pub fn python(&self, script: &str, feature: &str) {
        self.script(&python_packages().join("bin/python"), script, feature);
    }

    /// The file came there and back as it was.
    pub fn copied(&self) {
        let at = |name| self.world.at(name).display().to_string();
        let (blob, far, back) = (at("blob"), at("far"), at("back"));
        sh(&format!("cmp {blob} {far}; cmp {blob} {back}; rm {far} {back}"));
    }

    /// A command with "in" as input says it, and "err" besides, and ends with 9. The client itself says `first` on
    /// stderr.
    pub fn says(&self, command: &mut Command, first: &str) {
        std::fs::write(self.world.at("in"), "in").expect("written");
        let input = std::fs::File::open(self.world.at("in")).expect("there");
        let said = command.arg("cat; echo err >&2; exit 9").stdin(input).all();
        assert_eq!(said, (Some(9), "in".to_owned(), format!("{first}err\n")));
    }

    /// Runs a client in a terminal of its own, and changes its size.
    pub fn in_terminal(&self, client: &Command) {
        let mut command = self.program("python3");
        command.arg(here("terminal.py")).arg(client.get_program()).args(client.get_args());
        assert_eq!(command.env("TERM", "xterm").out(), "good\n");
    }

    /// A client that forwards a port, made by `client` of "PORT:HOST:PORT": one connection, or many at once.
    pub fn forwarded(&self, many: bool, client: impl FnOnce(&str) -> Command) {
        let port = free_port();
        let mut client = client(&format!("{port}:127.0.0.1:{}", self.service)).spawn().expect("it starts");
        eventually("the forward listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let count = if many { MANY } else { 1 };
        let all = (0..count).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("forwarded"));
        // All are open before the first one is used.
        for mut stream in all.collect::<Vec<_>>() {
            talk(&mut stream);
        }
        client.kill().expect("own child");
        client.wait().expect("ended");
    }
}

/// A file beside this one.
pub fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// The folder of a set of packages, made by `make` where the files that name them changed.
fn packages(folder: &str, lists: &[&str], make: impl FnOnce(&Path)) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    let wanted: String =
        lists.iter().map(|list| std::fs::read_to_string(here(list)).expect("there")).collect();
    if std::fs::read_to_string(place.join("made-of")).ok().as_ref() != Some(&wanted) {
        if place.exists() {
            std::fs::remove_dir_all(&place).expect("removed");
        }
        std::fs::create_dir_all(&place).expect("made");
        make(&place);
        std::fs::write(place.join("made-of"), wanted).expect("written");
    }
    place
}

/// Where the packages of PyPI are installed.
pub fn python_packages() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        packages("clients-python", &["requirements.txt"], |place| {
            Command::new("python3").args(["-m", "venv"]).arg(place).out();
            let mut pip = Command::new(place.join("bin/pip"));
            pip.args(["install", "-q", "--disable-pip-version-check", "--no-deps", "-r"]);
            pip.arg(here("requirements.txt")).out();
        })
    })
}

/// Where those of npm are.
fn node_packages() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        packages("clients-node", &["package.json", "package-lock.json"], |place| {
            for name in ["package.json", "package-lock.json"] {
                std::fs::copy(here(name), place.join(name)).expect("copied");
            }
            let mut npm = Command::new("npm");
            npm.args(["ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--silent"]);
            npm.current_dir(place).out();
        })
    })
}
