//! The binary itself, as a service manager starts it.

use crate::world::PATIENCE;
use model::config::{EdgeConfig, EdgeGuard, Places};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// Listeners as descriptors 3 and 4, and at 5 who waits, if anybody does; a shell moves them there (dash cannot: it knows descriptors of one digit only).
const START: &str = r#"exec 3<&"$HTTPS_FD" 4<&"$HTTP_FD"; [ -z "$READY_FD" ] || { exec 5>&"$WAITER_FD"; }; LISTEN_PID=$$ exec "$EDGE" --config "$CONFIG""#;

/// Starts the binary with the listeners of HTTPS and of HTTP.
pub fn start(config: &EdgeConfig, listeners: &[TcpListener; 2], folder: &Path) -> Child {
    command(config, listeners, folder).spawn().expect("start")
}

/// Starts the binary and waits until it says that it serves.
pub async fn start_and_wait(config: &EdgeConfig, listeners: &[TcpListener; 2], folder: &Path) -> Child {
    let (reader, writer) = std::io::pipe().expect("pipe");
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).expect("inheritable");
    let mut command = command(config, listeners, folder);
    command.env("READY_FD", "5").env("WAITER_FD", writer.as_raw_fd().to_string());
    let mut child = command.spawn().expect("start");
    drop(writer);
    // Its log is of no interest here, and must not fill the pipe.
    let mut log = child.stderr.take().expect("piped");
    tokio::spawn(async move { tokio::io::copy(&mut log, &mut tokio::io::sink()).await });
    let mut reader = pipe::Receiver::from_owned_fd(reader.into()).expect("pipe");
    let mut word = [0; 8];
    timeout(PATIENCE, reader.read_exact(&mut word)).await.expect("in time").expect("it serves");
    assert_eq!(word, *b"READY=1\n");
    child
}

fn command(config: &EdgeConfig, listeners: &[TcpListener; 2], folder: &Path) -> Command {
    let path = folder.join("edge.toml");
    std::fs::write(&path, toml::to_string(config).expect("toml")).expect("write");
    for listener in listeners {
        rustix::io::fcntl_setfd(listener, rustix::io::FdFlags::empty()).expect("inheritable");
    }
    let mut command = Command::new("bash");
    command
        .args(["-c", START])
        .env("EDGE", env!("CARGO_BIN_EXE_edge-proxy"))
        .env("CONFIG", &path)
        .env("HTTPS_FD", listeners[0].as_raw_fd().to_string())
        .env("HTTP_FD", listeners[1].as_raw_fd().to_string())
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "https:http")
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Sends a signal.
pub fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(child.id().expect("it runs").cast_signed()).expect("a pid");
    rustix::process::kill_process(pid, signal).expect("kill");
}

#[tokio::test]
async fn it_takes_its_listeners_over_logs_json_and_stops_when_told() {
    let folder = tempfile::tempdir().expect("folder");
    let places = Places { data: folder.path().join("data"), run: folder.path().join("run") };
    let config = EdgeConfig {
        places,
        public_https_port: 8443,
        max_connections: 100,
        guard: EdgeGuard::default(),
        proxy_protocol_from: Vec::new(),
        dns_host: None,
        access_log_mib: 1,
        traces: None,
    };
    let listeners = ["https", "http"].map(|_| TcpListener::bind("127.0.0.1:0").expect("bind"));
    let mut child = start(&config, &listeners, folder.path());
    // The kernel queues the connection until the process accepts it.
    let asked = Command::new("curl")
        .args([
            "-sSi",
            "-H",
            "Host: a.style.dev",
            &format!("http://{}/x", listeners[1].local_addr().expect("address")),
        ])
        .output();
    let asked = timeout(PATIENCE, asked).await.expect("in time").expect("curl");
    let told = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(told.contains("location: https://a.style.dev:8443/x"), "{told}");
    signal(&child, rustix::process::Signal::TERM);
    let mut log = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    timeout(PATIENCE, stderr.read_to_string(&mut log)).await.expect("in time").expect("log");
    assert!(child.wait().await.expect("wait").success(), "{log}");
    for line in log.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("every line is JSON");
        assert!(value["message"].is_string(), "{line}");
    }
    assert!(log.contains("\\\"plain_requests\\\": 1"), "{log}");
}

#[tokio::test]
async fn without_listeners_it_says_so() {
    let run = Command::new(env!("CARGO_BIN_EXE_edge-proxy"))
        .args(["--config", "/nonexistent"])
        .env_remove("LISTEN_FDS")
        .output();
    let run = timeout(PATIENCE, run).await.expect("in time").expect("run");
    assert!(!run.status.success());
    assert!(String::from_utf8_lossy(&run.stderr).contains("LISTEN_FDS"));
}
