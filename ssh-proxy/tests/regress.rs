//! OpenSSH's own regression scripts (Debian's openssh-tests) against the front. They are as they come but for one line:
//! `multiplex` knows a server by what OpenSSH's answers to nonsense, and here by what any says first.
//!
//! They start `sshd` themselves, as a daemon or as a ProxyCommand's `sshd -i`. Here that is a program which says that it
//! listens, since the front does, or connects to the front; and `ssh` is one that logs in with a token. What is behind
//! the front is a real sshd.
//!
//! Of the scripts only those say something of a front that try a connection; not the ones which try settings of an sshd
//! of their own (`forcecommand`, `channel-timeout` ...), its keys and their proofs (`cert-userkey` ...), its
//! algorithms one by one (`try-ciphers`, `rekey`: the front has fewer), or programs alone (`keygen-*`, `sshcfgparse`
//! ...).

mod support;

use model::config::SshLimits;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use support::network::Network;
use support::{Said, World, sh};

/// Where Debian has them.
const SCRIPTS: &str = "/usr/lib/openssh/regress";
/// The name by which they know their server's key.
const ALIAS: &str = "localhost-with-alias";

/// For those of them who say nonsense and wait for the end.
const LOGIN_SECONDS: u32 = 10;

fn program(path: &Path, text: &str) {
    std::fs::write(path, text).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("own file");
}

/// Writes the programs that stand for `ssh`, `sshd` and `sftp-server`.
fn programs(world: &World) {
    let at = |name: &str| world.at(name).display().to_string();
    let (port, user) = (world.front.port(), world.user());
    let keys =
        ["front_ed.pub", "front_ec.pub"].map(|name| std::fs::read_to_string(world.at(name)).expect("there"));
    let known = keys.map(|key| format!("{ALIAS},[127.0.0.1]:{port} {key}")).concat();
    std::fs::write(world.at("known"), known).expect("written");
    program(
        &world.at("ssh"),
        &format!(
            "#!/bin/sh\nexec /usr/bin/ssh -oUser={user} -oUserKnownHostsFile={} -oGlobalKnownHostsFile=none \"$@\"\n",
            at("known")
        ),
    );
    program(
        &world.at("sftp-server"),
        &format!("#!/bin/sh\nexec {} -F none -oBatchMode=yes -oPort={port} 127.0.0.1 -s sftp\n", at("ssh")),
    );
    // `sshd -i` of a ProxyCommand, `sshd -t` and `-T` about settings, and else a daemon with a file that says its number.
    let pidfile = at("regress/pidfile");
    program(
        &world.at("sshd"),
        &format!(
            "#!/bin/bash
case \" $* \" in
*' -i '*) exec {} -N 127.0.0.1 {port} ;;
*' -t '* | *' -T '*) exec /usr/sbin/sshd \"$@\" ;;
esac
(trap 'rm -f {pidfile}; exit' TERM; echo $BASHPID >{pidfile}; while sleep 0.2; do :; done) <&- >&- 2>&- &
",
            at("regress/netcat")
        ),
    );
}

/// Runs a script; it must succeed, and have logged in at the front.
fn run(script: &str) {
    let network = Network::enter(&format!("regress-{script}"));
    let _inside = network.runtime.enter();
    let login_seconds = LOGIN_SECONDS.try_into().expect("not zero");
    let world = World::with(SshLimits { login_seconds, ..SshLimits::default() });
    let at = |name: &str| world.at(name).display().to_string();
    sh(&format!(
        "cp -r {SCRIPTS} {0}; sed -i 's/Invalid SSH identification string/SSH-2.0-/' {0}/multiplex.sh",
        at("regress")
    ));
    programs(&world);
    let folder = world.at("regress");
    let mut command = Command::new("sh");
    command.arg(folder.join("test-exec.sh")).arg(&folder).arg(folder.join(format!("{script}.sh")));
    command.current_dir(&folder).stdin(std::process::Stdio::null());
    command.env("TEST_SHELL", "sh").env("BUILDDIR", &folder).env("OBJ", &folder);
    command.env("TEST_SSH_UNSAFE_PERMISSIONS", "1").env("TEST_SSH_PORT", world.front.port().to_string());
    for (name, path) in [("SSH", "ssh"), ("SSHD", "sshd"), ("SFTPSERVER", "sftp-server")] {
        command.env(format!("TEST_SSH_{name}"), world.at(path));
    }
    let (code, out, error) = command.all();
    let log = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    assert_eq!(
        code,
        Some(0),
        "{script}:\n{out}{error}{}{}",
        log("failed-regress.log"),
        log("failed-ssh.log")
    );
    assert!(!out.contains("SKIPPED"), "{script}: {out}");
    let logins = world.log().matches("\"event\":\"login\"").count();
    println!("{script}: {logins} logins");
    assert!(logins > 0, "{script} went by us");
}

/// A test for each script.
macro_rules! scripts {
    ($($test:ident $script:literal)*) => {
        $(#[test]
        fn $test() {
            run($script);
        })*
    };
}

scripts! {
    connect "connect"
    exit_status "exit-status"
    exit_status_signal "exit-status-signal"
    transfer "transfer"
    stderr_data "stderr-data"
    stderr_after_eof "stderr-after-eof"
    yes_head "yes-head"
    forwarding "forwarding"
    dynamic_forward "dynamic-forward"
    multiplex "multiplex"
    localcommand "localcommand"
    sftp_cmds "sftp-cmds"
    sftp "sftp"
    sftp_badcmds "sftp-badcmds"
    sftp_batch "sftp-batch"
    sftp_glob "sftp-glob"
    sftp_uri "sftp-uri"
    connect_uri "connect-uri"
    agent "agent"
}
