//! The agent as a process, spoken to as the host does, over a Unix socket instead of vsock.
#![expect(clippy::unwrap_used, reason = "a test says what is wrong by failing")]

use model::agent::{
    AgentErrorKind, AgentReply, AgentRequest, DEFAULT_OUTPUT_BYTES, FileKind, FrameKind, HEADER_BYTES,
    MAX_DATA_BYTES, MAX_FILE_BYTES,
};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, poll};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the agent may take to listen; the test machines are shared.
const START_DEADLINE: Duration = Duration::from_secs(30);

struct Agent {
    process: Child,
    place: TempDir,
}

impl Agent {
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("agent.sock");
        let process = Command::new(env!("CARGO_BIN_EXE_gatehouse-agent"))
            .arg("--listen-unix")
            .arg(&socket)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, place };
        let deadline = Instant::now() + START_DEADLINE;
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "the agent does not listen");
            std::thread::yield_now();
        }
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn open(&self) -> UnixStream {
        UnixStream::connect(self.path("agent.sock")).unwrap()
    }

    fn ask(&self, request: &AgentRequest) -> UnixStream {
        let mut stream = self.open();
        send(&mut stream, FrameKind::Message, &serde_json::to_vec(request).unwrap());
        stream
    }

    fn one(&self, request: &AgentRequest) -> AgentReply {
        let (kind, payload) = receive(&mut self.ask(request)).expect("an answer");
        assert_eq!(kind, FrameKind::Message);
        serde_json::from_slice(&payload).unwrap()
    }

    fn exec(&self, command: &str) -> Outcome {
        self.exec_with(command, None, None, DEFAULT_OUTPUT_BYTES)
    }

    fn exec_with(&self, command: &str, user: Option<&str>, timeout: Option<u64>, bound: u64) -> Outcome {
        Outcome::of(&mut self.ask(&exec(command, user, timeout, bound)))
    }

    fn write(&self, path: &Path, content: &[u8], user: Option<&str>, mode: Option<u32>) -> AgentReply {
        let size = content.len() as u64;
        let path = path.to_str().unwrap().to_owned();
        let user = user.map(str::to_owned);
        let mut stream = self.ask(&AgentRequest::Write { path, user, mode, size });
        for piece in content.chunks(MAX_DATA_BYTES) {
            send(&mut stream, FrameKind::Data, piece);
        }
        send(&mut stream, FrameKind::End, &[]);
        let (_, payload) = receive(&mut stream).unwrap();
        serde_json::from_slice(&payload).unwrap()
    }

    fn read(&self, path: &Path, user: Option<&str>) -> Result<Vec<u8>, AgentReply> {
        let path = path.to_str().unwrap().to_owned();
        let mut stream = self.ask(&AgentRequest::Read { path, user: user.map(str::to_owned) });
        let (_, first) = receive(&mut stream).unwrap();
        let reply: AgentReply = serde_json::from_slice(&first).unwrap();
        if !matches!(reply, AgentReply::File { .. }) {
            return Err(reply);
        }
        let mut content = Vec::new();
        loop {
            match receive(&mut stream).unwrap() {
                (FrameKind::Data, piece) => content.extend(piece),
                (FrameKind::End, _) => return Ok(content),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn exec(command: &str, user: Option<&str>, timeout_milliseconds: Option<u64>, bound: u64) -> AgentRequest {
    let (command, user) = (command.to_owned(), user.map(str::to_owned));
    AgentRequest::Exec { command, user, timeout_milliseconds, output_bytes: bound }
}

#[derive(Debug)]
struct Outcome {
    stdout: String,
    stderr: String,
    reply: AgentReply,
}

impl Outcome {
    fn of(stream: &mut UnixStream) -> Self {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match receive(stream).expect("the agent ends with a message") {
                (FrameKind::Stdout, piece) => stdout.extend(piece),
                (FrameKind::Stderr, piece) => stderr.extend(piece),
                (FrameKind::Message, text) => {
                    let reply = serde_json::from_slice(&text).unwrap();
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    return Self { stdout: text(stdout), stderr: text(stderr), reply };
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    fn status(&self) -> Option<i32> {
        match &self.reply {
            AgentReply::ExecDone { status, .. } => *status,
            other => panic!("{other:?}"),
        }
    }
}

fn send(stream: &mut UnixStream, kind: FrameKind, payload: &[u8]) {
    stream.write_all(&kind.header(payload.len()).unwrap()).unwrap();
    stream.write_all(payload).unwrap();
}

fn receive(stream: &mut UnixStream) -> Option<(FrameKind, Vec<u8>)> {
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let (kind, length) = FrameKind::parse(header).unwrap();
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).ok()?;
    Some((kind, payload))
}

fn kind_of(reply: &AgentReply) -> AgentErrorKind {
    match reply {
        AgentReply::Error { kind, .. } => *kind,
        other => panic!("no error but {other:?}"),
    }
}

/// Whether a process with that word on its command line runs.
fn runs(word: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes.into_iter().any(|process| {
        let words = fs::read(process.path().join("cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|found| found == word.as_bytes())
    })
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + START_DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_command_has_two_outputs_a_status_and_a_bare_environment() {
    let agent = Agent::start();
    let done = agent.exec("echo out; echo err >&2; exit 7");
    assert_eq!((done.stdout.as_str(), done.stderr.as_str(), done.status()), ("out\n", "err\n", Some(7)));
    let environment = agent.exec("pwd; env; id -u; cat /proc/self/oom_score_adj; readlink /proc/self/fd/0");
    let lines: Vec<&str> = environment.stdout.lines().collect();
    assert_eq!(lines[0], "/");
    assert!(lines.iter().any(|line| line.starts_with("PATH=/usr/local/sbin:")));
    assert!(!lines.iter().any(|line| line.starts_with("HOME=")), "{lines:?}");
    assert_eq!(lines[lines.len() - 3..], ["0", "0", "/dev/null"]);
    assert_eq!(agent.exec("kill -TERM $$").status(), Some(128 + 15));
    assert_eq!(agent.exec("yes | head -1 >/dev/null; echo $?").stdout, "0\n");
}

#[test]
fn a_timeout_kills_the_group_and_keeps_what_was_said() {
    let agent = Agent::start();
    let started = Instant::now();
    let done = agent.exec_with("echo before; sleep 4711.25 & sleep 4711.25", None, Some(300), 1000);
    assert_eq!(done.stdout, "before\n");
    assert_eq!(done.reply, AgentReply::ExecDone { status: None, timed_out: true, truncated: false });
    assert!(started.elapsed() < Duration::from_secs(60));
    wait_until("the group is gone", || !runs("4711.25"));
}

#[test]
fn a_child_left_behind_neither_holds_the_answer_back_nor_is_killed() {
    let agent = Agent::start();
    let done = agent.exec("sleep 4712.5 & echo $!; echo started");
    assert_eq!(done.status(), Some(0));
    let (pid, rest) = done.stdout.split_once('\n').unwrap();
    assert_eq!(rest, "started\n");
    assert!(runs("4712.5"));
    assert_eq!(agent.exec(&format!("kill {pid}")).status(), Some(0));
    // One that writes on and on is cut off too.
    let noisy = agent.exec("(while :; do echo x; done) & echo $! >&2");
    assert_eq!(noisy.status(), Some(0));
}

#[test]
fn outputs_are_bounded_and_the_rest_is_read_away() {
    let agent = Agent::start();
    let done = agent.exec_with("head -c 3000000 /dev/zero | tr '\\0' x; echo e >&2", None, None, 100_000);
    assert_eq!((done.stdout.len(), done.stderr.as_str()), (100_000, "e\n"));
    assert_eq!(done.reply, AgentReply::ExecDone { status: Some(0), timed_out: false, truncated: true });
    let all = agent.exec("head -c 3000000 /dev/zero | tr '\\0' y");
    assert_eq!(all.stdout.len(), 3_000_000);
}

#[test]
fn when_the_host_leaves_the_command_is_killed() {
    let agent = Agent::start();
    let stream = agent.ask(&exec("sleep 4713.125 & sleep 4713.125", None, None, 1000));
    wait_until("the command runs", || runs("4713.125"));
    drop(stream);
    wait_until("the command is gone", || !runs("4713.125"));
    // Also while the agent waits for a reader.
    let stream = agent.ask(&exec("yes 4714.125", None, None, u64::MAX));
    wait_until("the command runs", || runs("4714.125"));
    drop(stream);
    wait_until("the command is gone", || !runs("4714.125"));
    // And when the connection is reset, which is what a close with unread data does.
    let stream = agent.ask(&exec("echo unread; sleep 4716.125 & sleep 4716.125", None, None, 1000));
    wait_until("the command runs", || runs("4716.125"));
    let mut first = [PollFd::new(&stream, PollFlags::IN)];
    poll(&mut first, None).unwrap();
    drop(stream);
    wait_until("the command is gone", || !runs("4716.125"));
}

#[test]
fn a_user_is_that_user_and_an_unknown_one_is_refused() {
    let agent = Agent::start();
    let done = agent.exec_with("id -u; id -G; id -un", Some("nobody"), None, 1000);
    assert_eq!(done.stdout, "65534\n65534\nnobody\n");
    let refused = agent.exec_with("true", Some("no-such-user"), None, 1000);
    assert_eq!(kind_of(&refused.reply), AgentErrorKind::UserNotFound);
}

#[test]
fn files_are_written_whole_with_their_mode_and_read_back() {
    let agent = Agent::start();
    let path = agent.path("deep/er/file");
    let content: Vec<u8> = (0..300_000u32).map(|number| number.to_le_bytes()[1]).collect();
    assert_eq!(agent.write(&path, &content, None, None), AgentReply::Done);
    assert_eq!(agent.read(&path, None).unwrap(), content);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o644);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(&path, Some(1234), Some(1235)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    let link = agent.path("link");
    symlink(&path, &link).unwrap();
    assert_eq!(agent.write(&link, b"new", None, Some(0o600)), AgentReply::Done);
    let facts = fs::symlink_metadata(&path).unwrap();
    assert_eq!((facts.mode() & 0o7777, facts.uid(), facts.gid()), (0o4755, 1234, 1235));
    assert!(link.is_symlink());
    assert_eq!(agent.read(&path, None).unwrap(), b"new");
    let only: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|it| it.unwrap().file_name()).collect();
    assert_eq!(only, ["file"], "no temporary file is left");
    // Of /proc the size is not known before, and a device is written in place.
    assert!(!agent.read(Path::new("/proc/self/status"), None).unwrap().is_empty());
    assert_eq!(agent.write(Path::new("/dev/null"), b"gone", None, None), AgentReply::Done);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn a_write_that_breaks_off_leaves_the_old_file() {
    let agent = Agent::start();
    let path = agent.path("file");
    fs::write(&path, "old").unwrap();
    let write = |size| {
        let path = path.to_str().unwrap().to_owned();
        agent.ask(&AgentRequest::Write { path, user: None, mode: None, size })
    };
    let mut short = write(10);
    send(&mut short, FrameKind::Data, b"123");
    drop(short);
    let mut wrong = write(10);
    send(&mut wrong, FrameKind::Data, b"123");
    send(&mut wrong, FrameKind::End, &[]);
    let mut much = write(10);
    send(&mut much, FrameKind::Data, &[0; 1000]);
    send(&mut much, FrameKind::Data, &[0; 1000]);
    send(&mut much, FrameKind::End, &[]);
    let (_, reply) = receive(&mut much).unwrap();
    assert_eq!(kind_of(&serde_json::from_slice(&reply).unwrap()), AgentErrorKind::Invalid);
    let (_, reply) = receive(&mut wrong).unwrap();
    assert_eq!(kind_of(&serde_json::from_slice(&reply).unwrap()), AgentErrorKind::Invalid);
    let left = || fs::read_dir(agent.place.path()).unwrap().count() == 2;
    wait_until("no temporary file is left", left);
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    let large = AgentRequest::Write {
        path: path.to_str().unwrap().to_owned(),
        user: None,
        mode: None,
        size: MAX_FILE_BYTES + 1,
    };
    let mut large = agent.ask(&large);
    send(&mut large, FrameKind::End, &[]);
    let (_, reply) = receive(&mut large).unwrap();
    assert_eq!(kind_of(&serde_json::from_slice(&reply).unwrap()), AgentErrorKind::TooLarge);
}

#[test]
fn users_have_their_own_rights_to_files() {
    let agent = Agent::start();
    fs::set_permissions(agent.place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (secret, shared) = (agent.path("secret"), agent.path("shared"));
    fs::write(&secret, "s").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&shared, "s").unwrap();
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o666)).unwrap();
    let nobody = Some("nobody");
    assert_eq!(kind_of(&agent.read(&secret, nobody).unwrap_err()), AgentErrorKind::PermissionDenied);
    assert_eq!(kind_of(&agent.write(&secret, b"x", nobody, None)), AgentErrorKind::PermissionDenied);
    // The refusal is heard, however much the host has still to send.
    let much = vec![0; 5 << 20];
    assert_eq!(kind_of(&agent.write(&secret, &much, nobody, None)), AgentErrorKind::PermissionDenied);
    assert_eq!(kind_of(&agent.write(&secret, &much, Some("no-such"), None)), AgentErrorKind::UserNotFound);
    assert_eq!(
        kind_of(&agent.write(&agent.path("new"), b"x", nobody, None)),
        AgentErrorKind::PermissionDenied
    );
    // May be written but not replaced: the directory is root's.
    assert_eq!(agent.write(&shared, b"by nobody", nobody, None), AgentReply::Done);
    assert_eq!(fs::read_to_string(&shared).unwrap(), "by nobody");
    assert_eq!(fs::metadata(&shared).unwrap().uid(), 0);
    let own = agent.path("own");
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(65534), Some(65534)).unwrap();
    assert_eq!(agent.write(&own.join("sub/file"), b"x", nobody, None), AgentReply::Done);
    assert_eq!(fs::metadata(own.join("sub/file")).unwrap().uid(), 65534);
    // The agent itself stays root.
    assert_eq!(agent.read(&secret, None).unwrap(), b"s");
}

#[test]
fn directories_are_listed_described_and_removed() {
    let agent = Agent::start();
    let folder = agent.path("folder");
    fs::create_dir_all(folder.join("b/c")).unwrap();
    fs::write(folder.join("a"), "123").unwrap();
    symlink("/nowhere", folder.join("z")).unwrap();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let AgentReply::Directory { entries } =
        agent.one(&AgentRequest::List { path: text(&folder), user: None })
    else {
        panic!("a listing")
    };
    let found: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.kind)).collect();
    assert_eq!(found, [("a", FileKind::File), ("b", FileKind::Directory), ("z", FileKind::Symlink)]);
    assert!(matches!(agent.read(&folder, None), Err(AgentReply::Directory { .. })));
    let AgentReply::Stat(stat) = agent.one(&AgentRequest::Stat { path: text(&folder.join("a")), user: None })
    else {
        panic!("facts")
    };
    assert_eq!((stat.kind, stat.size, stat.uid), (FileKind::File, 3, 0));
    let remove =
        |path: &Path, recursive| agent.one(&AgentRequest::Remove { path: text(path), user: None, recursive });
    assert_eq!(kind_of(&remove(&folder, false)), AgentErrorKind::Invalid);
    assert_eq!(remove(&folder, true), AgentReply::Done);
    assert_eq!(kind_of(&remove(&folder, true)), AgentErrorKind::NotFound);
    assert_eq!(kind_of(&remove(Path::new("/"), true)), AgentErrorKind::Invalid);
    let relative = AgentRequest::Stat { path: "etc".into(), user: None };
    assert_eq!(kind_of(&agent.one(&relative)), AgentErrorKind::Invalid);
}

#[test]
fn special_files_do_not_hang_it() {
    let agent = Agent::start();
    let fifo = agent.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    assert_eq!(kind_of(&agent.read(&fifo, None).unwrap_err()), AgentErrorKind::Invalid);
    assert_eq!(kind_of(&agent.read(Path::new("/dev/zero"), None).unwrap_err()), AgentErrorKind::Invalid);
}

#[test]
fn outside_a_vm_the_machine_is_left_alone() {
    let agent = Agent::start();
    let clock = AgentRequest::SetClock { unix_nanoseconds: 1 };
    for request in [AgentRequest::PowerOff, AgentRequest::GrowDisk, AgentRequest::ReleaseMemory, clock] {
        assert_eq!(kind_of(&agent.one(&request)), AgentErrorKind::Invalid);
    }
    assert!(matches!(agent.one(&AgentRequest::Health), AgentReply::Health { .. }));
}

#[test]
fn a_bound_of_commands_leaves_room_for_health() {
    let agent = Agent::start();
    let order = exec("echo up; sleep 4715.5", None, None, 1000);
    let mut held: Vec<UnixStream> =
        (0..guest_agent::server::MAX_COMMANDS).map(|_| agent.ask(&order)).collect();
    for stream in &mut held {
        assert_eq!(receive(stream).unwrap().1, b"up\n");
    }
    assert_eq!(kind_of(&agent.exec("true").reply), AgentErrorKind::Busy);
    assert!(matches!(agent.one(&AgentRequest::Health), AgentReply::Health { .. }));
    drop(held);
    wait_until("the commands are gone", || !runs("4715.5"));
    assert_eq!(agent.exec("true").status(), Some(0));
}

#[test]
fn malformed_peers_hurt_only_themselves() {
    let agent = Agent::start();
    proptest!(ProptestConfig::with_cases(64), |(bytes in prop::collection::vec(any::<u8>(), 0..200), framed: bool)| {
        let mut stream = agent.open();
        let frame = if framed {
            let mut frame = FrameKind::Message.header(bytes.len()).unwrap().to_vec();
            frame.extend(&bytes);
            frame
        } else {
            bytes
        };
        // The agent may hang up before it has taken everything.
        let sent = stream.write_all(&frame).and_then(|()| stream.shutdown(std::net::Shutdown::Write));
        if sent.is_ok() {
            while let Some((kind, text)) = receive(&mut stream) {
                prop_assert_eq!(kind, FrameKind::Message);
                prop_assert_eq!(kind_of(&serde_json::from_slice(&text).unwrap()), AgentErrorKind::Invalid);
            }
        }
    });
    assert_eq!(agent.exec("echo alive").stdout, "alive\n");
}
