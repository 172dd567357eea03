//! What a client sees of an sshd is the same through the front as it is directly: each case is done both ways.

mod support;

use russh::ChannelMsg;
use russh::client::{self, AuthResult, Handle};
use russh::keys::{Certificate, PrivateKey, PublicKeyOrCertificate};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::echo::{service, talk};
use support::{Said, World, eventually, free_port, sh, token, vm, words};

type Way = fn(&World) -> Command;

/// The two ways to the same sshd, as root.
const WAYS: [(&str, Way); 2] = [("directly", World::direct), ("by us", World::ssh)];

/// Output that is longer is compared by a hash, so that a failure can be read.
const SHOWN: usize = 2000;

/// What a command came to at its client.
#[derive(Debug, PartialEq)]
struct Told {
    code: Option<i32>,
    out: String,
    error: String,
}

fn shown(bytes: &[u8]) -> String {
    if bytes.len() <= SHOWN {
        return bytes.escape_ascii().to_string();
    }
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{} bytes, hash {:x}", bytes.len(), hasher.finish())
}

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// Gives it the input and then the input's end, and takes all that it says meanwhile.
fn told(mut child: Child, input: Vec<u8>) -> Told {
    let mut stdin = child.stdin.take().expect("piped");
    // Who does not want it all breaks the pipe.
    let writing = std::thread::spawn(move || stdin.write_all(&input).ok());
    let output = child.wait_with_output().expect("it ends");
    writing.join().expect("written");
    Told { code: output.status.code(), out: shown(&output.stdout), error: shown(&output.stderr) }
}

/// Does it both ways; both must come to the same, which is returned.
fn same<T: PartialEq + std::fmt::Debug>(world: &World, what: &str, does: impl Fn(Command) -> T) -> T {
    let [direct, ours] = WAYS.map(|(_, way)| does(way(world)));
    assert_eq!(ours, direct, "{what}");
    ours
}

/// A command of OpenSSH's client.
struct Case {
    command: &'static str,
    options: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Bytes of input.
    input: usize,
    code: i32,
}

const PLAIN: Case = Case { command: "", options: &[], environment: &[], input: 0, code: 0 };

const CASES: [Case; 13] = [
    Case { command: "exit 0", ..PLAIN },
    Case { command: "exit 1", code: 1, ..PLAIN },
    Case { command: "exit 255", code: 255, ..PLAIN },
    Case { command: "head -c 20M /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00 -iv 00 2>&-", ..PLAIN },
    Case { command: "yes longer than any window | head -c 5M >&2; exit 2", code: 2, ..PLAIN },
    Case { command: "cat; echo after the end of the input; exit 4", input: 8 << 20, code: 4, ..PLAIN },
    Case { command: "head -c 10; exec 0<&-; exit 6", input: 4 << 20, code: 6, ..PLAIN },
    Case { command: "for i in $(seq 300); do echo $i; echo err $i >&2; done; exit 3", code: 3, ..PLAIN },
    Case { command: "exec 2>&-; cat; echo more; exec 1>&-; exit 5", input: 100, code: 5, ..PLAIN },
    Case { command: "echo no newline at the end | tr -d '\\n'; printf '\\0\\377' >&2", ..PLAIN },
    Case {
        command: "env | grep -E '^(LANG|LC_|WORD)' | sort",
        options: &["-o", "SendEnv=LANG LC_* WORD"],
        environment: &[("LANG", "de_CH.UTF-8"), ("LC_ALL", "C"), ("LC_TIME", "x y"), ("WORD", "")],
        ..PLAIN
    },
    Case { command: "tty; exit 9", options: &["-tt"], environment: &[("TERM", "vt220")], code: 9, ..PLAIN },
    Case { command: "cat", options: &["-n"], input: 1000, ..PLAIN },
];

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_the_same_outputs_and_exit_codes() {
    let world = World::new();
    for case in &CASES {
        let said = same(&world, case.command, |mut ssh| {
            ssh.args(case.options).arg(case.command).envs(case.environment.iter().copied());
            let input = (0..case.input).map(|number| (number % 251) as u8).collect();
            let mut told = told(piped(&mut ssh), input);
            // Each login has a terminal of its own number.
            told.out.retain(|letter| !case.command.starts_with("tty") || !letter.is_ascii_digit());
            told
        });
        assert_eq!(said.code, Some(case.code), "{}: {said:?}", case.command);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_the_same_size_type_and_modes() {
    let world = World::new();
    let said = same(&world, "terminal", |ssh| {
        sh(&format!(
            "export TERM=vt220; script -qec \"stty rows 33 cols 77 -ixon erase ^H; {} -tt 'stty -a; echo \\$TERM'\" {}",
            words(&ssh),
            world.at("typescript").display()
        ))
    });
    for part in ["rows 33; columns 77;", "-ixon", "erase = ^H", "vt220"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

/// What a client saw that sees all: OpenSSH's says nothing of a signal that ended a command.
#[derive(Debug, PartialEq)]
struct Seen {
    out: String,
    error: String,
    /// All but data, in some order: an exit status and the outputs' end come from two places of sshd.
    rest: Vec<String>,
}

struct Trusting;

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Logged in directly and by us.
async fn handles(world: &World) -> [Handle<Trusting>; 2] {
    // Makes the key and its certificate.
    world.direct();
    let connect = |port: u16| client::connect(Arc::default(), ("127.0.0.1", port), Trusting);
    let mut direct = connect(world.sshd_port).await.expect("sshd");
    let mut ours = connect(world.front.port()).await.expect("the front");
    let key = PrivateKey::read_openssh_file(world.at("direct")).expect("a key");
    let certificate = Certificate::read_file(&world.at("direct-cert.pub")).expect("a certificate");
    let answers = [
        direct.authenticate_openssh_cert("root", Arc::new(key), certificate).await.expect("answered"),
        ours.authenticate_password(vm(1).as_str(), token(1).expose()).await.expect("answered"),
    ];
    assert!(answers.iter().all(AuthResult::success), "{answers:?}");
    [direct, ours]
}

async fn seen(handle: &Handle<Trusting>, command: &str) -> Seen {
    let mut channel = handle.channel_open_session().await.expect("opened");
    channel.exec(true, command).await.expect("asked");
    let (mut out, mut error, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => out.extend(&data[..]),
            ChannelMsg::ExtendedData { data, ext: 1 } => error.extend(&data[..]),
            // How much room an end gives is its own choice.
            ChannelMsg::WindowAdjusted { .. } => {}
            other => rest.push(format!("{other:?}")),
        }
    }
    rest.sort();
    Seen { out: shown(&out), error: shown(&error), rest }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_that_ends_a_command_is_told_as_it_is() {
    let world = World::new();
    let [direct, ours] = handles(&world).await;
    for signal in ["TERM", "KILL", "SEGV", "HUP", "INT", "USR1", "ABRT", "XCPU"] {
        let command = format!("ulimit -c 0; echo out; echo err >&2; kill -{signal} $$; sleep 60");
        let (by_us, directly) = (seen(&ours, &command).await, seen(&direct, &command).await);
        assert_eq!(by_us, directly, "{signal}");
        assert!(by_us.rest.iter().any(|message| message.starts_with("ExitSignal")), "{signal}: {by_us:?}");
    }
    for code in [0, 1, 7, 128, 255] {
        let command = format!("exit {code}");
        let (by_us, directly) = (seen(&ours, &command).await, seen(&direct, &command).await);
        assert_eq!(by_us, directly, "{code}");
        assert!(by_us.rest.contains(&format!("ExitStatus {{ exit_status: {code} }}")), "{by_us:?}");
    }
}

/// SFTP's answers, of what works and what does not; and a subsystem that there is not.
#[tokio::test(flavor = "multi_thread")]
async fn subsystems_answer_the_same() {
    let world = World::new();
    let at = |name: &str| world.at(name).display().to_string();
    sh(&format!("head -c 3M /dev/urandom > {}", at("blob")));
    let batch = format!(
        "version\nmkdir {0}\ncd {0}\npwd\nput {1} a\nchmod 600 a\nrename a b\nsymlink b c\nln b d\nls -1\n-rename x y\n-rm x\n\
         -rmdir {0}\n-get x\n-put /nowhere/x\n-mkdir {0}\nget c {2}\nrm b\nrm c\nrm d\ncd /\nrmdir {0}\n",
        at("tree"),
        at("blob"),
        at("back")
    );
    std::fs::write(world.at("batch"), batch).expect("written");
    let said = same(&world, "sftp", |ssh| {
        let server = format!("{} -s sftp", words(&ssh));
        let said = Command::new("sftp").args(["-b", &at("batch"), "-D", &server]).all();
        sh(&format!("cmp {0} {1}; rm {1}", at("blob"), at("back")));
        said
    });
    assert_eq!(said.0, Some(0), "{said:?}");
    assert!(said.2.contains("No such file") || said.1.contains("No such file"), "{said:?}");
    let none = same(&world, "no such subsystem", |mut ssh| ssh.args(["-s", "nothing"]).all());
    assert_eq!(none.0, Some(255), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn forwarded_connections_carry_the_same() {
    let world = World::new();
    let (service, closed) = (service(), free_port());
    // A channel to a port and nothing else.
    let said = same(&world, "-W", |mut ssh| {
        // The host is the last word.
        ssh.args(["-W", &format!("127.0.0.1:{service}")]);
        told(piped(&mut ssh), vec![7; 3 << 20])
    });
    assert_eq!(said.code, Some(0), "{said:?}");
    let said =
        same(&world, "nobody listens", |mut ssh| ssh.args(["-W", &format!("127.0.0.1:{closed}")]).all());
    assert!(said.0 == Some(255) && said.2.contains("forwarding failed"), "{said:?}");
    // A port that is taken.
    let said = same(&world, "taken", |mut ssh| {
        let forward = format!("127.0.0.1:{}:127.0.0.1:{service}", world.sshd_port);
        ssh.args(["-N", "-o", "ExitOnForwardFailure=yes", "-R", &forward]).all()
    });
    assert!(said.0 == Some(255) && said.2.contains("remote port forwarding failed"), "{said:?}");
    for (way, ssh) in WAYS {
        for direction in ["-L", "-R"] {
            let port = free_port();
            let forward = format!("127.0.0.1:{port}:127.0.0.1:{service}");
            let mut child = piped(ssh(&world).args(["-N", direction, &forward]));
            let connects = || TcpStream::connect(("127.0.0.1", port)).is_ok();
            eventually(&format!("{way}, {direction} listens"), connects);
            for _ in 0..3 {
                talk(&mut TcpStream::connect(("127.0.0.1", port)).expect("forwarded"));
            }
            child.kill().expect("own child");
            let mut error = String::new();
            child.stderr.take().expect("piped").read_to_string(&mut error).expect("text");
            assert_eq!(error, "", "{way}, {direction}");
            child.wait().expect("ended");
        }
    }
}

/// Channels of one connection: hundreds one after another, since numbers are given anew, and many at once.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_channels_of_one_master_answer_the_same() {
    /// More than a connection may have at once.
    const ONE_BY_ONE: usize = 300;
    const AT_ONCE: u8 = 10;
    let world = World::new();
    let told = same(&world, "channels", |mut ssh| {
        let control = world.at("control");
        let through = words(&ssh);
        let mut master = ssh.arg("-MN").arg("-S").arg(&control).spawn().expect("it starts");
        eventually("the master is there", || control.exists());
        let over = format!("{through} -S {} -o ProxyCommand=false", control.display());
        let all = sh(&format!(
            "for i in $(seq {ONE_BY_ONE}); do {over} \"echo $i; exit $((i % 7))\" || echo \"code $?\"; done"
        ));
        let many = (1..=AT_ONCE).map(|number| {
            let command = format!("exec {over} 'cat; echo err {number} >&2; exit {number}'");
            (number, piped(Command::new("bash").args(["-c", &command])))
        });
        // All run before the first one gets its input.
        let many: Vec<_> = many.collect();
        let many: Vec<_> =
            many.into_iter().rev().map(|(number, child)| told(child, vec![number; 500_000])).collect();
        master.kill().expect("own child");
        master.wait().expect("ended");
        // A master that was killed leaves its socket.
        std::fs::remove_file(&control).ok();
        (all, many)
    });
    assert_eq!(told.0.lines().filter(|line| !line.starts_with("code")).count(), ONE_BY_ONE);
    for (number, told) in (1..=i32::from(AT_ONCE)).rev().zip(&told.1) {
        assert_eq!((told.code, told.error.as_str()), (Some(number), format!("err {number}\\n").as_str()));
    }
}
