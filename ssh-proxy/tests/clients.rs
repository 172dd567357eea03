//! Clients of PyPI, of fixed versions, in an environment that the test makes: paramiko and asyncssh, and ssh-audit with
//! the policy beside this file. Needs Debian's python3-venv.

mod support;

use std::path::Path;
use std::process::Command;
use support::{Said, World, token, vm};

const PACKAGES: [&str; 3] = ["ssh-audit==3.9.0", "paramiko==5.1.0", "asyncssh==2.24.1"];

const PARAMIKO: &str = r#"
import paramiko, sys, io
port, user, token = int(sys.argv[1]), sys.argv[2], sys.argv[3]
client = paramiko.SSHClient()
client.load_host_keys(sys.argv[4])
client.connect("127.0.0.1", port, user, token, allow_agent=False, look_for_keys=False)
stdin, stdout, stderr = client.exec_command("cat; echo err >&2; exit 9")
stdin.write("in"); stdin.channel.shutdown_write()
assert (stdout.read(), stderr.read(), stdout.channel.recv_exit_status()) == (b"in", b"err\n", 9)
data = bytes(range(256)) * 40000
sftp = client.open_sftp()
sftp.putfo(io.BytesIO(data), sys.argv[5]); back = io.BytesIO(); sftp.getfo(sys.argv[5], back)
assert back.getvalue() == data
print("good")
"#;

const ASYNCSSH: &str = r#"
import asyncio, asyncssh, sys
async def main():
    port, user, token = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    async with asyncssh.connect("127.0.0.1", port, username=user, password=token, known_hosts=sys.argv[4], client_keys=None, config=None) as c:
        done = await c.run("cat; echo err >&2; exit 9", input="in")
        assert (done.stdout, done.stderr, done.exit_status) == ("in", "err\n", 9), done
        all = await asyncio.gather(*(c.run(f"echo {n}") for n in range(30)))
        assert [int(one.stdout) for one in all] == list(range(30))
        done = await c.run("kill -TERM $$")
        assert done.exit_signal[0] == "TERM", done
        done = await c.run("tty", term_type="xterm", request_pty="force")
        assert "/dev/pts" in done.stdout, done
asyncio.run(main())
print("good")
"#;

#[tokio::test(flavor = "multi_thread")]
async fn paramiko_asyncssh_and_an_audit_of_the_algorithms() {
    let world = World::new();
    let place = world.at("venv");
    let program = |name: &str| place.join("bin").join(name);
    Command::new("python3").args(["-m", "venv"]).arg(&place).out();
    Command::new(program("pip")).args(["install", "-q", "--disable-pip-version-check"]).args(PACKAGES).out();
    let port = world.front.port().to_string();
    for (name, script) in [("paramiko", PARAMIKO), ("asyncssh", ASYNCSSH)] {
        let mut client = Command::new(program("python"));
        client.args(["-c", script, &port, vm(1).as_str(), token(1).expose()]);
        let said = client.arg(world.at("known_hosts")).arg(world.at("uploaded")).out();
        assert_eq!(said, "good\n", "{name}");
    }
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh-audit.policy");
    let said = Command::new(program("ssh-audit"))
        .args(["-n", "-p", &port, "--policy"])
        .arg(policy)
        .arg("127.0.0.1")
        .out();
    assert!(said.contains("Passed"), "{said}");
}
