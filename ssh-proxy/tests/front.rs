//! The process between OpenSSH's client and a real sshd.

mod support;

use model::config::SshLimits;
use model::id::VmInstanceId;
use model::ssh::SshVmState;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::echo::{service, talk};
use support::{Said, World, account_with_key, eventually, free_port, make_key, sh, token, vm, words};

/// The longest that a withdrawn session may live.
const WITHDRAWN: Duration = Duration::from_secs(1);
/// What a busy machine may add to that.
const BUSY: Duration = Duration::from_secs(2);

fn piped(command: &mut Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
}

/// Waits for a child's end, and says how long that took.
fn ends(child: &mut Child) -> Duration {
    let begun = Instant::now();
    eventually("it ends", || child.try_wait().expect("own child").is_some());
    begun.elapsed()
}

fn stderr(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut text).expect("text");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_as_they_are_directly() {
    let world = World::new();
    let commands = [
        "true",
        "exit 0",
        "exit 7",
        "exit 255",
        "echo out; echo err >&2; exit 3",
        "kill -TERM $$",
        "kill -KILL $$",
        "cat /nowhere",
        "printf 'a\\0b\\377'",
        "head -c 300000 /dev/zero | tr '\\0' x",
        "exec 1>&-; exec 2>&-; sleep 0.2; exit 5",
    ];
    for command in commands {
        let (ours, direct) = (world.ssh().arg(command).all(), world.direct().arg(command).all());
        assert_eq!(ours, direct, "{command}");
    }
    // A half-close: the command sees the end of its input, and answers after it.
    let mut child = piped(world.ssh().arg("cat; sleep 0.2; echo after"));
    let mut input = child.stdin.take().expect("piped");
    input.write_all(b"before\n").expect("written");
    drop(input);
    let output = child.wait_with_output().expect("ended");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "before\nafter\n");
    // Environment, of bytes that are no text too.
    let said = world.ssh().args(["-o", "SetEnv=WORD=a\u{fe}b", "echo $WORD"]).out();
    assert_eq!(said, "a\u{fe}b\n");
    // A terminal, its size, and a terminal's signal.
    let script = format!(
        "script -qec \"stty rows 33 cols 77; {} -tt 'stty size; tty'\" {}",
        words(&world.ssh()),
        world.at("typescript").display()
    );
    let said = sh(&script);
    assert!(said.contains("33 77") && said.contains("/dev/pts/"), "{said}");
    // X11 is refused, and the session goes on.
    let (code, out, _) = Command::new("env")
        .args(["DISPLAY=:9"])
        .arg("bash")
        .arg("-c")
        .arg(format!("{} -X 'echo still here'", words(&world.ssh())))
        .all();
    assert_eq!((code, out.as_str()), (Some(0), "still here\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_passes_both_ways_at_once_and_keys_change_meanwhile() {
    let world = World::new();
    let mebibytes = 1024;
    let through = |more: &str, count: u32| {
        sh(&format!(
            "set -o pipefail; source() {{ head -c {count}M /dev/zero | openssl enc -aes-128-ctr -nosalt -K 00 -iv 00 2>&-; }}
             source | {} {more} cat | sha256sum; source | sha256sum",
            words(&world.ssh())
        ))
    };
    for (more, count) in [("-o Ciphers=aes128-gcm@openssh.com", mebibytes), ("-o RekeyLimit=8M", 96)] {
        let said = through(more, count);
        let sums: Vec<_> = said.lines().collect();
        assert_eq!((sums.len(), sums.first()), (2, sums.last()), "{more}");
    }
    assert!(world.memory("VmHWM") < 200 << 10, "{} KiB", world.memory("VmHWM"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_channel_holds_up_no_other_one() {
    let world = World::new();
    let control = world.at("control");
    let mut master = world.ssh().arg("-MN").arg("-S").arg(&control).spawn().expect("it starts");
    eventually("the master is there", || control.exists());
    let mut stalled = piped(world.ssh().arg("-S").arg(&control).arg("yes"));
    let mut up = piped(world.ssh().arg("-S").arg(&control).arg("sleep 1000"));
    // What nobody reads fills all windows.
    let mut input = up.stdin.take().expect("piped");
    let filler = std::thread::spawn(move || while input.write_all(&[0; 65536]).is_ok() {});
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    for number in 0..20 {
        assert_eq!(
            world.ssh().arg("-S").arg(&control).arg(format!("echo {number}")).out(),
            format!("{number}\n")
        );
    }
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    let many: Vec<_> = (0..64).map(|_| piped(world.ssh().arg("-S").arg(&control).arg("cat"))).collect();
    for mut child in many {
        let mut input = child.stdin.take().expect("piped");
        input.write_all(b"one of many").expect("written");
        drop(input);
        assert_eq!(child.wait_with_output().expect("ended").stdout, b"one of many");
    }
    assert!(world.memory("VmHWM") < 100 << 10, "{} KiB", world.memory("VmHWM"));
    for child in [&mut stalled, &mut up, &mut master] {
        child.kill().expect("own child");
        child.wait().expect("ended");
    }
    filler.join().expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_pass_and_an_agent_is_forwarded() {
    let world = World::new();
    let (big, copy) = (world.at("big"), world.at("copy"));
    sh(&format!("head -c 20M /dev/urandom > {}", big.display()));
    let remote = |path: &std::path::Path| format!("{}@127.0.0.1:{}", world.user(), path.display());
    for old in [&[][..], &["-O"][..]] {
        world.tool("scp").args(old).arg(&big).arg(remote(&copy)).out();
        sh(&format!("cmp {0} {1}; rm {1}", big.display(), copy.display()));
        world.tool("scp").args(old).arg(remote(&big)).arg(&copy).out();
        sh(&format!("cmp {0} {1}; rm {1}", big.display(), copy.display()));
    }
    // An agent.
    let key = world.at("agents");
    make_key(&key);
    let said = sh(&format!(
        "eval $(ssh-agent) >&2; ssh-add -q {}; {} -o IdentityAgent=$SSH_AUTH_SOCK -A ssh-add -L; kill $SSH_AGENT_PID",
        key.display(),
        words(&world.ssh()).replace("'-o' 'IdentityAgent=none'", "")
    ));
    assert!(said.starts_with("ssh-ed25519 "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_forwarded_both_ways() {
    let world = World::new();
    let port = service();
    let (local, remote, socks) = (free_port(), free_port(), free_port());
    let (near, far) = (world.at("near.sock"), world.at("far.sock"));
    let mut forwards = piped(world.ssh().args([
        "-N",
        "-o",
        "ExitOnForwardFailure=yes",
        "-L",
        &format!("{local}:127.0.0.1:{port}"),
        "-R",
        &format!("127.0.0.1:{remote}:127.0.0.1:{port}"),
        "-D",
        &socks.to_string(),
        "-R",
        &format!("{}:127.0.0.1:{port}", far.display()),
        "-L",
        &format!("{}:{}", near.display(), far.display()),
    ]));
    for port in [local, remote] {
        eventually("the forward listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        let all: Vec<_> =
            (0..16).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("forwarded")).collect();
        for mut stream in all {
            talk(&mut stream);
        }
    }
    let said = sh(&format!(
        "curl -s --max-time 10 --socks5-hostname 127.0.0.1:{socks} telnet://127.0.0.1:{port} <<<'' | head -1"
    ));
    assert_eq!(said, "hello\n");
    eventually("the socket in the VM is there", || far.exists());
    let mut socket = std::os::unix::net::UnixStream::connect(&near).expect("forwarded");
    let mut greeting = [0; 6];
    socket.read_exact(&mut greeting).expect("through two sockets");
    assert_eq!(&greeting, b"hello\n");
    forwards.kill().expect("own child");
    forwards.wait().expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_show_who_one_is() {
    let mut world = World::new();
    let (id, secret) = (vm(1), token(1));
    let good = [
        (format!("{id},{}", secret.expose()), None),
        (format!("{id}:{}", secret.expose()), None),
        (format!("{id}+root:{}", secret.expose()), None),
        (id.to_string(), Some(secret.expose())),
        (format!("{id}+root"), Some(secret.expose())),
    ];
    for (user, password) in &good {
        assert_eq!(world.ssh_as(user, *password).arg("id -un").out(), "root\n", "{user}");
    }
    for method in ["password", "keyboard-interactive"] {
        let mut command = world.ssh_as(id.as_str(), Some(secret.expose()));
        command.args(["-o", &format!("PreferredAuthentications={method}"), "echo in"]);
        assert_eq!(command.out(), "in\n", "{method}");
    }
    // The house's authority is known, and no key of the front.
    let authority = std::fs::read_to_string(world.at("authority.pub")).expect("there");
    std::fs::write(world.at("by_authority"), format!("@cert-authority *.vm-ssh.style.dev {authority}"))
        .expect("written");
    let by_authority = |name: &str| {
        let mut command = Command::new("ssh");
        command.arg("-o").arg(format!("UserKnownHostsFile={}", world.at("by_authority").display()));
        command.args(["-o", &format!("HostKeyAlias={name}")]).args(world.ssh().get_args()).arg("echo in");
        command.stdin(Stdio::null()).all().0
    };
    assert_eq!((by_authority("any.vm-ssh.style.dev"), by_authority("other.dev")), (Some(0), Some(255)));
    let key = world.at("mine");
    make_key(&key);
    let with_key = |world: &World| {
        let mut command = world.ssh_as(id.as_str(), None);
        command.arg("-i").arg(&key).arg("echo in");
        command
    };
    assert_eq!(with_key(&world).all().0, Some(255), "a key that nobody registered");
    let account = account_with_key(&world.at("mine.pub"));
    world.publish(|_, principals| principals.push(account));
    eventually("a registered key", || with_key(&world).all().0 == Some(0));
    world.logs("\"event\":\"login\"");
    assert!(
        !world.said().contains(secret.expose()) && !world.log().contains(secret.expose()),
        "no secret is logged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_answers_are_alike_and_take_as_long() {
    let limits = SshLimits { login_attempts: 1, ..SshLimits::default() };
    let world = World::with(limits);
    let (good, wrong) = (token(1), token(2));
    let cases = [
        (vm(1).to_string(), wrong.expose()),
        (vm(9).to_string(), good.expose()),
        (vm(2).to_string(), good.expose()),
        ("root".to_owned(), good.expose()),
    ];
    // The address is not shut out before the fourth failure.
    let mut all = Vec::new();
    for (user, password) in cases.iter().take(3) {
        let begun = Instant::now();
        let mut command = world.ssh_as(user, Some(password));
        command.args(["-o", "NumberOfPasswordPrompts=1", "-o", "PreferredAuthentications=password", "true"]);
        let (code, out, error) = command.all();
        all.push((begun.elapsed(), (code, out, error.replace(user, "USER"))));
    }
    for (time, said) in &all {
        assert_eq!(said, &all[0].1);
        assert!(*time > Duration::from_secs(1), "{time:?}");
        assert!(time.abs_diff(all[0].0) < Duration::from_millis(700), "{all:?}");
    }
    let (user, password) = &cases[3];
    eventually("who fails often is not heard", || {
        world.ssh_as(user, Some(password)).arg("true").all();
        world.log().contains("throttled")
    });
    assert_eq!(world.ssh().arg("true").all().0, Some(255), "with a good token neither, for a while");
    for reason in ["bad_token", "unknown_vm", "user_not_allowed", "malformed_name"] {
        world.logs(reason);
    }
    assert_eq!(world.dials.load(Ordering::SeqCst), 0, "nobody came near a VM");
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawn_sessions_are_cut_at_once_stalled_ones_too() {
    let mut world = World::new();
    let mut idle = piped(world.ssh().arg("-tt").arg("cat"));
    let mut stalled = piped(world.ssh().arg("yes"));
    eventually("both run", || world.dials.load(Ordering::SeqCst) == 2);
    // Full to the last buffer.
    std::thread::sleep(Duration::from_secs(1));
    let sessions = world.client().sessions(None).await.expect("told");
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    assert!(sessions.iter().any(|session| session.sent_bytes > 100_000), "{sessions:?}");
    let begun = Instant::now();
    world.publish(|_, principals| principals[0].tokens.clear());
    while !world.client().sessions(None).await.expect("told").is_empty() {
        assert!(begun.elapsed() < WITHDRAWN + BUSY);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let took = begun.elapsed();
    println!("withdrawn after {took:?}");
    ends(&mut idle);
    let said = stderr(&mut idle);
    assert!(said.contains("access to the VM was withdrawn"), "{said}");
    // It wrote into a pipe that nobody read; now somebody does.
    std::io::copy(&mut stalled.stdout.take().expect("piped"), &mut std::io::sink()).expect("read");
    ends(&mut stalled);
    eventually("no descriptor is left", || world.descriptors() < 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_the_vm_becomes_of_the_session() {
    let limits = SshLimits { asleep_seconds: 1, ..SshLimits::default() };
    let mut world = World::with(limits);
    let ended = |world: &mut World, change: &dyn Fn(&mut World), text: &str| {
        let before = world.dials.load(Ordering::SeqCst);
        let mut child = piped(world.ssh().arg("cat"));
        eventually("it runs", || world.dials.load(Ordering::SeqCst) > before);
        child.stdin.as_mut().expect("piped").write_all(b"x").expect("written");
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it answers");
        change(world);
        ends(&mut child);
        let said = stderr(&mut child);
        assert!(said.contains(text), "{text}: {said}");
    };
    // A sleep from which the VM wakes in time is none of the session's business.
    let mut child = piped(world.ssh().arg("cat"));
    let says = |child: &mut Child| {
        child.stdin.as_mut().expect("piped").write_all(b"x").expect("written");
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it answers");
    };
    says(&mut child);
    world.state(SshVmState::Asleep);
    world.publish(|vms, _| (vms[0].run, vms[0].state) = (vms[0].run + 1, SshVmState::Up));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    says(&mut child);
    drop(child.stdin.take());
    ends(&mut child);
    ended(&mut world, &|world| world.state(SshVmState::Asleep), "connect again to wake it");
    world.state(SshVmState::Up);
    ended(
        &mut world,
        &|world| world.publish(|vms, _| vms[0].instance = VmInstanceId::from_random([99; 20])),
        "restarted",
    );
    ended(&mut world, &|world| world.state(SshVmState::Down), "connect again to start it");
    // A stopped VM is asked for, and the client waits for it with what it has sent.
    let mut wants = world.client().wants().await.expect("asked");
    let mut waiting = piped(world.ssh().arg("-tt").arg("cat"));
    waiting.stdin.as_mut().expect("piped").write_all(b"early\n").expect("written");
    assert_eq!(wants.next().await.expect("told"), vm(1));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.state(SshVmState::Up);
    let mut echo = String::new();
    let mut out = waiting.stdout.take().expect("piped");
    let mut bytes = [0; 64];
    while !echo.contains("early") {
        let length = out.read(&mut bytes).expect("read");
        assert!(length > 0, "{echo}");
        echo += &String::from_utf8_lossy(&bytes[..length]);
    }
    let sessions = world.client().sessions(Some(&vm(1))).await.expect("told");
    assert!(world.client().end(&sessions[0].id).await.expect("ended"), "it was there");
    ends(&mut waiting);
    let said = stderr(&mut waiting);
    assert!(said.contains("Waiting for the VM") && said.contains("administrator"), "{said}");
    ended(&mut world, &|world| world.publish(|vms, _| vms.clear()), "deleted");
    world.logs("the VM was deleted");
    world.logs("\"type\":\"exec\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_either_side_leaves_nothing_behind() {
    let world = World::new();
    let before = world.descriptors();
    let mut children: Vec<_> = (0..8).map(|_| piped(world.ssh().arg("yes"))).collect();
    for child in &mut children {
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it runs");
    }
    for child in &mut children[..4] {
        child.kill().expect("own child");
        child.wait().expect("ended");
    }
    // The VM's side of the others: sshd's children that serve them.
    sh(&format!("pkill -9 -P {}", world.sshd_pid()));
    for child in &mut children[4..] {
        std::io::copy(&mut child.stdout.take().expect("piped"), &mut std::io::sink()).expect("read");
        ends(child);
    }
    let begun = Instant::now();
    eventually("no descriptor is left", || world.descriptors() <= before);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(world.client().sessions(None).await.expect("told").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold() {
    let limits = SshLimits {
        channels: 3,
        sessions_per_vm: 2,
        unauthenticated_per_address: 4,
        login_seconds: std::num::NonZeroU32::new(2).expect("not zero"),
        ..SshLimits::default()
    };
    let world = World::with(limits);
    let control = world.at("control");
    let mut master = world.ssh().arg("-MN").arg("-S").arg(&control).spawn().expect("it starts");
    eventually("the master is there", || control.exists());
    let mut held: Vec<_> =
        (0..3).map(|_| piped(world.ssh().arg("-S").arg(&control).arg("echo; cat"))).collect();
    for child in &mut held {
        child.stdout.as_mut().expect("piped").read_exact(&mut [0]).expect("it runs");
    }
    assert_ne!(
        world.ssh().arg("-S").arg(&control).args(["-o", "ProxyCommand=false", "true"]).all().0,
        Some(0)
    );
    let second = piped(world.ssh().arg("cat"));
    eventually("two sessions", || world.dials.load(Ordering::SeqCst) == 2);
    assert_eq!(world.ssh().arg("true").all().0, Some(255), "a third session");
    eventually("it is logged", || world.log().contains("vm_full"));
    // Silent connections: four are let wait, for two seconds.
    let mut silent: Vec<_> = (0..6).map(|_| TcpStream::connect(world.front).expect("accepted")).collect();
    let mut greeting = [0; 4];
    let heard = silent.iter_mut().filter_map(|stream| stream.read_exact(&mut greeting).ok()).count();
    assert_eq!(heard, 4);
    let begun = Instant::now();
    for stream in &mut silent {
        // The end comes as an end or as a reset.
        std::io::copy(stream, &mut std::io::sink()).ok();
    }
    assert!(begun.elapsed() < Duration::from_secs(2) + BUSY, "{:?}", begun.elapsed());
    for mut child in held.into_iter().chain([second]) {
        child.kill().expect("own child");
        child.wait().expect("ended");
    }
    master.kill().expect("own child");
    master.wait().expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_sessions_bytes_and_waits_are_counted() {
    let mut world = World::new();
    let figures = async |world: &World| {
        let path = world.at("run").join("ssh/figures.sock");
        let begun = Instant::now();
        loop {
            match feed::figures::ask(&path, "gatehouse_ssh_").await {
                Ok(told) => return told.text(),
                // The front may be heard before its socket stands.
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let has = |figures: &str, line: &str| figures.lines().any(|other| other == line);
    assert!(has(&figures(&world).await, "gatehouse_ssh_sessions 0"));
    let (code, _, said) = world.ssh_as(&format!("{},{}", vm(1), token(9).expose()), None).arg("true").all();
    assert_eq!(code, Some(255), "{said}");
    let mut child = piped(world.ssh().arg("head -c 100000 /dev/zero; cat"));
    let mut input = child.stdin.take().expect("piped");
    let mut output = vec![0; 100_000];
    child.stdout.as_mut().expect("piped").read_exact(&mut output).expect("it came");
    let open = figures(&world).await;
    for line in [
        "gatehouse_ssh_logins_total{outcome=\"bad_token\"} 1",
        "gatehouse_ssh_logins_total{outcome=\"token\"} 1",
        "gatehouse_ssh_logins_total{outcome=\"key\"} 0",
        "gatehouse_ssh_sessions 1",
        "gatehouse_ssh_channels 1",
        "gatehouse_ssh_vm_wait_seconds_count{vm=\"up\"} 1",
        "gatehouse_ssh_vm_wait_seconds_count{vm=\"stopped\"} 0",
    ] {
        assert!(has(&open, line), "{line}: {open}");
    }
    input.write_all(&[b'x'; 1000]).expect("written");
    drop(input);
    assert!(child.wait().expect("ended").success());
    // What a session carried is told of when it is over, too. Its end is seen a moment after its client's.
    let mut over = figures(&world).await;
    let begun = Instant::now();
    while !has(&over, "gatehouse_ssh_sessions 0") {
        assert!(begun.elapsed() < Duration::from_secs(60), "{over}");
        over = figures(&world).await;
    }
    assert!(has(&over, "gatehouse_ssh_channel_bytes_total{direction=\"received\"} 1000"), "{over}");
    assert!(has(&over, "gatehouse_ssh_channel_bytes_total{direction=\"sent\"} 101000"), "{over}");

    world.state(SshVmState::Down);
    let mut wants = world.client().wants().await.expect("asked");
    let mut waiting = piped(world.ssh().arg("true"));
    assert_eq!(wants.next().await.expect("told"), vm(1));
    world.state(SshVmState::Up);
    assert!(waiting.wait().expect("ended").success());
    let waited = figures(&world).await;
    assert!(has(&waited, "gatehouse_ssh_vm_wait_seconds_count{vm=\"stopped\"} 1"), "{waited}");
}
