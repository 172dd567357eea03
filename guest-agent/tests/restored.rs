//! The agent as a process that was restored, against a host of the test's own: in namespaces for what belongs to the
//! kernel (NIC, host name), below a folder for files. The clock is left alone, since it has no namespace.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use model::agent::{
    AgentHello, AgentReply, AgentRequest, BootConfig, ENTROPY_BYTES, FrameKind, HEADER_BYTES, Identity,
    Restored,
};
use model::net::{GuestNetwork, MacAddress};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take; the test machines are shared.
const DEADLINE: Duration = Duration::from_secs(60);

struct Machine {
    process: Child,
    place: TempDir,
    host: UnixListener,
}

impl Machine {
    /// With a NIC, host keys and a hook.
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for folder in ["root/etc/ssh", "root/etc/gatehouse/restored.d", "root/var/lib/dbus", "root/run"] {
            fs::create_dir_all(path(folder)).unwrap();
        }
        fs::write(path("root/etc/machine-id"), "old\n").unwrap();
        for kind in ["ed25519", "rsa"] {
            fs::write(path(&format!("root/etc/ssh/ssh_host_{kind}_key")), "old").unwrap();
        }
        let hook = path("root/etc/gatehouse/restored.d/50-say");
        fs::write(&hook, format!("#!/bin/sh\necho \"$1\" >> {}\n", path("said").display())).unwrap();
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
        let host = UnixListener::bind(path("host.sock")).unwrap();
        let nic =
            "ip link add nic0 address 02:67:0a:00:00:01 type veth peer name other && ip link set other up";
        let process = Command::new("unshare")
            .args(["--net", "--uts", "sh", "-c", &format!("{nic} && exec \"$@\""), "sh"])
            .args([env!("CARGO_BIN_EXE_gatehouse-agent").into(), "--listen-unix".into(), path("agent.sock")])
            .args(["--call-unix".into(), path("host.sock"), "--root".into(), path("root")])
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, place, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Takes the agent's call and answers it.
    fn answer(&self, config: &BootConfig) -> (UnixStream, AgentHello, AgentReply) {
        readable(&self.host);
        let (mut line, _) = self.host.accept().unwrap();
        let hello = receive(&mut line);
        send(&mut line, &serde_json::to_vec(config).unwrap());
        let reply = receive(&mut line);
        (line, hello, reply)
    }

    /// What a command says inside.
    fn say(&self, command: &str) -> String {
        let mut stream = self.exec(command);
        let mut said = Vec::new();
        loop {
            match receive_frame(&mut stream) {
                (FrameKind::Stdout | FrameKind::Stderr, piece) => said.extend(piece),
                (_, _) => return String::from_utf8(said).unwrap(),
            }
        }
    }

    fn exec(&self, command: &str) -> UnixStream {
        let mut stream = UnixStream::connect(self.path("agent.sock")).unwrap();
        let (command, user, timeout_milliseconds) = (command.to_owned(), None, None);
        let request = AgentRequest::Exec { command, user, timeout_milliseconds, output_bytes: 1 << 20 };
        send(&mut stream, &serde_json::to_vec(&request).unwrap());
        stream
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn send(stream: &mut UnixStream, message: &[u8]) {
    stream.write_all(&FrameKind::Message.header(message.len()).unwrap()).unwrap();
    stream.write_all(message).unwrap();
}

fn readable(stream: impl std::os::fd::AsFd) {
    let longest = Timespec { tv_sec: DEADLINE.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&longest)).unwrap();
    assert_eq!(ready, 1, "the agent says nothing");
}

fn receive_frame(stream: &mut UnixStream) -> (FrameKind, Vec<u8>) {
    readable(&mut *stream);
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).unwrap();
    let (kind, length) = FrameKind::parse(header).unwrap();
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).unwrap();
    (kind, payload)
}

fn receive<M: DeserializeOwned>(stream: &mut UnixStream) -> M {
    let (kind, payload) = receive_frame(stream);
    assert_eq!(kind, FrameKind::Message);
    serde_json::from_slice(&payload).unwrap()
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn config(number: u8, restored: Option<Identity>) -> BootConfig {
    let network = GuestNetwork {
        mac: MacAddress([2, 0x67, 10, 0, 0, number]),
        ipv4: [10, 0, 0, number].into(),
        gateway: [169, 254, 1, 1].into(),
        dns: vec![[169, 254, 1, 1].into()],
        mtu: 1400,
        ipv6: None,
    };
    let restored = restored.map(|identity| Restored { entropy: vec![number; ENTROPY_BYTES], identity });
    BootConfig { hostname: format!("vm-{number}"), network: Some(network), unix_nanoseconds: 0, restored }
}

#[test]
fn a_new_machine_has_nothing_of_the_old_one() {
    let machine = Machine::start();
    let (line, first, reply) = machine.answer(&config(1, None));
    assert_eq!(reply, AgentReply::Done);
    assert_eq!(
        (machine.read("root/etc/machine-id").as_str(), machine.say("hostname").as_str()),
        ("old\n", "vm-1\n")
    );
    // A server on the old address, which would wait for ever.
    let server = "import socket; s = socket.socket(); s.bind(('10.0.0.1', 0)); s.listen(); print('up', flush=True)\n\
                  try: s.accept()\nexcept OSError: print('closed', flush=True)";
    let mut waiting = machine.exec(&format!("python3 -c \"{server}\""));
    assert_eq!(receive_frame(&mut waiting), (FrameKind::Stdout, b"up\n".to_vec()));
    drop(line);
    let (_line, again, reply) = machine.answer(&config(2, Some(Identity::New)));
    assert_eq!((again.boot_id, reply), (first.boot_id, AgentReply::Done));
    assert_eq!(receive_frame(&mut waiting), (FrameKind::Stdout, b"closed\n".to_vec()));
    assert_eq!(machine.read("root/etc/machine-id").len(), 33);
    assert_eq!(machine.read("root/etc/hostname"), "vm-2\n");
    assert_eq!(machine.say("hostname"), "vm-2\n");
    let nic = machine.say("ip -4 -o address show dev nic0; ip link show nic0; ip route");
    for text in ["10.0.0.2/32", "02:67:0a:00:00:02", "default via 169.254.1.1 dev nic0"] {
        assert!(nic.contains(text), "{nic}");
    }
    assert!(!nic.contains("10.0.0.1/32"), "{nic}");
    assert!(machine.read("root/etc/ssh/ssh_host_ed25519_key").contains("PRIVATE KEY"));
    wait_until("the hook ran", || machine.read("said") == "new\n");
    // The hooks come after the slow key.
    assert!(machine.read("root/etc/ssh/ssh_host_rsa_key").contains("PRIVATE KEY"));
}

#[test]
fn the_same_machine_keeps_its_name_keys_addresses_and_connections() {
    let machine = Machine::start();
    let (line, ..) = machine.answer(&config(1, None));
    drop(line);
    // Another name and address than it has, to see that they are not touched.
    let (_line, _, reply) = machine.answer(&config(2, Some(Identity::Same)));
    assert_eq!(reply, AgentReply::Done);
    wait_until("the hook ran", || machine.read("said") == "same\n");
    assert_eq!(machine.read("root/etc/machine-id"), "old\n");
    assert_eq!(machine.read("root/etc/ssh/ssh_host_ed25519_key"), "old");
    assert_eq!(machine.say("hostname"), "vm-1\n");
    assert!(machine.say("ip -4 -o address show dev nic0").contains("10.0.0.1/32"));
}

#[test]
fn without_entropy_nothing_is_done_and_the_host_is_asked_again() {
    let machine = Machine::start();
    let (line, ..) = machine.answer(&config(1, None));
    drop(line);
    let mut bad = config(2, Some(Identity::New));
    bad.restored.as_mut().unwrap().entropy.pop();
    let (line, _, reply) = machine.answer(&bad);
    let AgentReply::Error { message, .. } = reply else { panic!("{reply:?}") };
    assert!(message.contains("entropy"), "{message}");
    assert_eq!(
        (machine.read("root/etc/machine-id").as_str(), machine.say("hostname").as_str()),
        ("old\n", "vm-1\n")
    );
    assert!(machine.say("ip -4 -o address show dev nic0").contains("10.0.0.1/32"));
    drop(line);
    let (_line, _, reply) = machine.answer(&config(2, Some(Identity::New)));
    assert_eq!(reply, AgentReply::Done);
    wait_until("the hook ran once", || machine.read("said") == "new\n");
}

#[test]
fn a_broken_line_is_taken_up_at_once_also_when_the_host_comes_a_little_later() {
    let machine = Machine::start();
    let (line, ..) = machine.answer(&config(1, None));
    let socket = machine.path("host.sock");
    fs::remove_file(&socket).unwrap();
    drop(line);
    wait_until("the host is missed", || machine.read("log").contains("call 1: the host does not answer"));
    let late = UnixListener::bind(&socket).unwrap();
    let started = Instant::now();
    readable(&late);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}
