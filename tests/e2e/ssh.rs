//! SSH to real guests: with the public SDK and command line unchanged, with OpenSSH, and where VMs sleep and stop, clients
//! come in crowds and daemons die.

use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tests::house::{House, SSH_HOST, Wishes};
use tests::traces::Traces;

/// Logins on each other's heels when `LOGINS` does not say how many, and how many of them at once. Under emulation each
/// takes five to eight seconds of the only CPU.
const LOGINS: usize = 10;
const AT_ONCE: usize = 10;
/// Longest until something that nobody tells of has happened, under emulation.
const PATIENCE: Duration = Duration::from_secs(60);
/// In a guest: answers each connection at a TCP port and a Unix socket with a line, and says when it listens.
const SERVER: &str = r#"
import os, socket, threading
def serve(listener):
    while True:
        stream, _ = listener.accept()
        line = stream.makefile().readline()
        stream.sendall(("heard " + line).encode()); stream.close()
tcp = socket.create_server(("127.0.0.1", 7000))
unix = socket.socket(socket.AF_UNIX); unix.bind("/run/code.sock"); unix.listen()
for listener in (tcp, unix): threading.Thread(target=serve, args=(listener,)).start()
print("listening", flush=True)
"#;

#[test]
fn the_sdk_and_its_command_line_reach_guests() -> Result<()> {
    let house = House::start_with(Wishes { ssh: true, ..Wishes::default() })?;
    let before = Traces::take(&house.data())?;
    house.sdk("ssh.mjs", &[])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

#[test]
fn openssh_reaches_guests() -> Result<()> {
    let house = House::start_with(Wishes { ssh: true, ..Wishes::default() })?;
    let before = Traces::take(&house.data())?;
    let login = Login::new(&house)?;
    own_commands(&house, &login)?;
    commands_and_files(&login)?;
    an_editor(&login)?;
    a_crowd(&login)?;
    sessions(&house, &login)?;
    daemons_die(&house, &login)?;
    the_log(&house, &login)?;
    house.gatehouse(&["identity", "delete", &login.identity])?;
    house.gatehouse(&["vm", "delete", &login.vm])?;
    Traces::await_none_beyond(&before, &house.data())?;
    house.stop()
}

/// Somebody who may log in.
struct Login {
    vm: String,
    identity: String,
    token: String,
    folder: PathBuf,
}

impl Login {
    fn new(house: &House) -> Result<Self> {
        let text = |words: &[&str], name: &str| -> Result<String> {
            Ok(house.json(words)?[name].as_str().with_context(|| format!("{words:?}: {name}"))?.to_owned())
        };
        let vm = text(&["vm", "create", "--idle-timeout", "never"], "id")?;
        let identity = text(&["identity", "create"], "id")?;
        house.gatehouse(&["identity", "grant", &identity, &vm])?;
        let token = text(&["identity", "token", "create", &identity], "token")?;
        Ok(Self { vm, identity, token, folder: house.ssh_config()? })
    }

    fn program(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.folder.join("house.conf"));
        let user = format!("User={},{}", self.vm, self.token);
        for option in ["HostName=127.0.0.1", &format!("HostKeyAlias={SSH_HOST}"), &user] {
            command.args(["-o", option]);
        }
        command
    }

    /// `ssh` with options, up to where a command stands.
    fn ssh(&self, options: &[&str]) -> Command {
        let mut command = self.program("ssh");
        command.args(options).arg(SSH_HOST);
        command
    }
}

fn done(command: &mut Command) -> Result<Output> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(output)
}

fn says(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8(done(command.stdin(Stdio::null()))?.stdout)?)
}

fn piped(command: &mut Command) -> Result<Child> {
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

fn line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.as_mut().context("piped")?).read_line(&mut line)?;
    Ok(line)
}

fn type_in(child: &mut Child, text: &str) -> Result<()> {
    Ok(child.stdin.as_mut().context("piped")?.write_all(text.as_bytes())?)
}

/// Waits for its end; its exit code, and what it said on stderr.
fn ended(child: &mut Child) -> Result<(Option<i32>, String)> {
    let mut said = String::new();
    child.stderr.take().context("piped")?.read_to_string(&mut said)?;
    Ok((child.wait()?.code(), said))
}

fn eventually(what: &str, mut true_now: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !true_now() {
        ensure!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// `gatehouse vm ssh`, `cp` and `ssh-config`, which make what they need and leave nothing.
fn own_commands(house: &House, login: &Login) -> Result<()> {
    let vm = &login.vm;
    let address = ["--ssh-address", "127.0.0.1"];
    let words = [&["vm", "ssh", vm.as_str()], &address[..], &["--", "echo from $(whoami)"]].concat();
    ensure!(house.gatehouse(&words)?.stdout == b"from root\n");
    let (up, down) = (login.folder.join("up"), login.folder.join("down"));
    std::fs::write(&up, "a file")?;
    let (there, back) = (format!("{vm}:/root/file"), down.to_string_lossy());
    house.gatehouse(&[&["vm", "cp"], &address[..], &[&*up.to_string_lossy(), &there]].concat())?;
    house.gatehouse(&[&["vm", "cp"], &address[..], &[there.as_str(), &*back]].concat())?;
    ensure!(std::fs::read(&down)? == b"a file");
    let shown = house.gatehouse(&["vm", "ssh-config", vm])?.stdout;
    ensure!(String::from_utf8_lossy(&shown).contains("Port 22\n"), "{}", String::from_utf8_lossy(&shown));
    let identities = house.json(&["identity", "list"])?;
    ensure!(identities["total"] == 1, "only the login's own: {identities}");
    Ok(())
}

fn commands_and_files(login: &Login) -> Result<()> {
    let output = login.ssh(&[]).arg("echo out; echo err >&2; exit 3").stdin(Stdio::null()).output()?;
    ensure!(
        (output.status.code(), &*output.stdout, &*output.stderr) == (Some(3), b"out\n", b"err\n"),
        "{output:?}"
    );
    let terminal = says(login.ssh(&["-tt"]).arg("tty; echo $TERM"))?;
    ensure!(terminal.contains("/dev/pts/"), "{terminal}");
    // Bytes that no line of text has, both ways at once.
    let data: Vec<u8> = (0_u32..4 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut child = piped(login.ssh(&[]).arg("cat"))?;
    let mut input = child.stdin.take().context("piped")?;
    let sent = data.clone();
    let writing = std::thread::spawn(move || input.write_all(&sent));
    let output = child.wait_with_output()?;
    writing.join().expect("no panic")?;
    ensure!(output.stdout == data, "{} bytes came back", output.stdout.len());
    let (up, down) = (login.folder.join("data"), login.folder.join("data.back"));
    std::fs::write(&up, &data)?;
    let batch = login.folder.join("batch");
    let commands = format!("put {} one\nrename one two\nget two {}\nrm two\n", up.display(), down.display());
    std::fs::write(&batch, commands)?;
    done(login.program("sftp").arg("-b").arg(&batch).arg(SSH_HOST))?;
    ensure!(std::fs::read(&down)? == data, "by sftp");
    Ok(())
}

/// As an editor does it: a server in the guest is started over one connection, which carries all that follows.
fn an_editor(login: &Login) -> Result<()> {
    let control = login.folder.join("control");
    let shared = format!("ControlPath={}", control.display());
    let mut master = piped(&mut login.ssh(&["-MN", "-o", &shared]))?;
    eventually("the master is there", || control.exists())?;
    let mut server = piped(login.ssh(&["-o", &shared]).args(["python3", "-uc"]).arg(format!("'{SERVER}'")))?;
    ensure!(line(&mut server)? == "listening\n", "the server in the guest: {:?}", ended(&mut server));
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let near = login.folder.join("near.sock");
    let tcp = format!("{port}:127.0.0.1:7000");
    let unix = format!("{}:/run/code.sock", near.display());
    done(&mut login.ssh(&["-o", &shared, "-O", "forward", "-L", &tcp, "-L", &unix]))?;
    let mut streams = Vec::new();
    for number in 0..24_u32 {
        let stream: Box<dyn ReadWrite> = if number % 2 == 0 {
            Box::new(TcpStream::connect(("127.0.0.1", port))?)
        } else {
            Box::new(UnixStream::connect(&near)?)
        };
        streams.push((number, stream));
    }
    for (number, stream) in &mut streams {
        writeln!(stream, "{number}")?;
    }
    for (number, stream) in &mut streams {
        let mut heard = String::new();
        stream.read_to_string(&mut heard)?;
        ensure!(heard == format!("heard {number}\n"), "{number}: {heard}");
    }
    let echoes: Result<Vec<Child>> =
        (0..12).map(|number| piped(login.ssh(&["-o", &shared]).arg(format!("echo {number}")))).collect();
    for (number, echo) in echoes?.into_iter().enumerate() {
        let output = echo.wait_with_output()?;
        ensure!(output.stdout == format!("{number}\n").as_bytes(), "{output:?}");
    }
    done(&mut login.ssh(&["-o", &shared, "-O", "exit"]))?;
    master.wait()?;
    server.wait()?;
    says(login.ssh(&[]).arg("pkill -f '[7]000'; rm -f /run/code.sock"))?;
    Ok(())
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// The guest's sshd sees all of them come from one address, and must not hold it against them.
fn a_crowd(login: &Login) -> Result<()> {
    let begun = Instant::now();
    let logins = match std::env::var("LOGINS") {
        Ok(text) if !text.is_empty() => text.parse().context("LOGINS")?,
        _ => LOGINS,
    };
    let mut left = logins;
    while left > 0 {
        let wave: Result<Vec<Child>> =
            (0..AT_ONCE.min(left)).map(|_| piped(login.ssh(&["-n"]).arg("true"))).collect();
        for mut child in wave? {
            left -= 1;
            let (code, said) = ended(&mut child)?;
            ensure!(code == Some(0), "{said}");
        }
    }
    println!("{logins} logins, {AT_ONCE} at once: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// What becomes of an open session when its VM is suspended, when somebody ends it, when the VM is stopped.
fn sessions(house: &House, login: &Login) -> Result<()> {
    let mut child = piped(login.ssh(&[]).arg("cat"))?;
    type_in(&mut child, "one\n")?;
    ensure!(line(&mut child)? == "one\n");
    house.gatehouse(&["vm", "suspend", &login.vm])?;
    type_in(&mut child, "two\n")?;
    ensure!(line(&mut child)? == "two\n", "a key pressed wakes the VM, and the session goes on");
    let list = house.json(&["ssh", "sessions"])?;
    let rows = list["sessions"].as_array().context("a list")?;
    ensure!(rows.len() == 1 && rows[0]["vmId"] == login.vm.as_str(), "{list}");
    house.gatehouse(&["ssh", "end", rows[0]["sessionId"].as_str().context("an id")?])?;
    let (code, said) = ended(&mut child)?;
    ensure!(code == Some(255) && said.contains("administrator"), "{code:?} {said}");
    let mut child = piped(login.ssh(&[]).arg("cat"))?;
    type_in(&mut child, "three\n")?;
    ensure!(line(&mut child)? == "three\n");
    house.gatehouse(&["vm", "stop", &login.vm])?;
    // The guest's sshd may say so before control does.
    let (_, said) = ended(&mut child)?;
    ensure!(said.contains("connect again"), "{said}");
    ensure!(says(login.ssh(&[]).arg("echo up"))? == "up\n", "a login starts it");
    Ok(())
}

fn daemons_die(house: &House, login: &Login) -> Result<()> {
    let kill = |name: &str| -> Result<()> {
        eventually(name, || house.daemon(name).is_ok())?;
        let pid = rustix::process::Pid::from_raw(house.daemon(name)?).context("a process")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    };
    let mut child = piped(login.ssh(&[]).arg("cat"))?;
    type_in(&mut child, "before\n")?;
    ensure!(line(&mut child)? == "before\n");
    for name in ["control", "vpc", "vmm"] {
        kill(name)?;
        type_in(&mut child, "after\n")?;
        ensure!(line(&mut child)? == "after\n", "{name} is dead");
    }
    kill("control")?;
    ensure!(says(login.ssh(&[]).arg("echo without control"))? == "without control\n");
    kill("ssh-proxy")?;
    let (code, _) = ended(&mut child)?;
    ensure!(code == Some(255));
    ensure!(says(login.ssh(&[]).arg("echo back"))? == "back\n", "its listener stays open meanwhile");
    eventually("control is back", || house.json(&["identity", "list"]).is_ok())?;
    Ok(())
}

fn the_log(house: &House, login: &Login) -> Result<()> {
    let text = std::fs::read_to_string(Path::new(&house.data()).join("ssh/ssh.jsonl"))?;
    ensure!(!text.contains("gti_"), "a token is in the log");
    let of = |kind: &str| {
        let lines = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["event"] == kind && line["vm"] == login.vm.as_str()).count()
    };
    let counts = ["login", "channel", "end"].map(of);
    ensure!(counts.into_iter().all(|count| count > AT_ONCE), "{counts:?}: {text}");
    Ok(())
}
