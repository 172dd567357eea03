//! WireGuard's own test script, as Debian keeps it, on this crate's parts: two interfaces of `wireguard-end` against each
//! other. Pings and iperf3 over IPv4 and IPv6 inside and outside and with large packets, counters, roaming, ranges that
//! hide others, a translator with keepalives, addresses that come and go, and 130,560 ranges through `wg`.
//!
//! The script is not part of this repository: apt fetches its source package, whose hash stands in the index that
//! Debian signed. Needs root, the network, and what tests/packages.txt lists.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the script is: bookworm's package has it too, in a version that has left the mirrors.
const SOURCES: &str = "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                       http://deb.debian.org/debian trixie main\n";
const PACKAGE: &str = "wireguard-go=0.0.20231211-1";
const SCRIPT: &str = "wireguard-go-0.0.20231211/tests/netns.sh";
/// Sixteen transfers of a gigabyte: 165 s on two cores that others kept busy.
const PATIENCE: Duration = Duration::from_secs(1500);

/// The script, unpacked below this folder.
fn fetched(folder: &Path) -> PathBuf {
    fs::create_dir(folder.join("lists")).expect("a folder");
    fs::write(folder.join("sources.list"), SOURCES).expect("written");
    let apt = |words: &[&str]| {
        let at = folder.display();
        let status = Command::new("apt-get")
            .current_dir(folder)
            .args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourceparts=/nonexistent"])
            .args(["-o", &format!("Dir::Etc::sourcelist={at}/sources.list")])
            .args(["-o", &format!("Dir::State::lists={at}/lists"), "-o", &format!("Dir::Cache={at}")])
            .args(words)
            .status()
            .expect("apt-get starts");
        assert!(status.success(), "apt-get {words:?}: {status}; is there a way to deb.debian.org?");
    };
    apt(&["update"]);
    apt(&["source", "--download-only", "--tar-only", PACKAGE]);
    let tar = "wireguard-go_0.0.20231211.orig.tar.gz";
    let unpacked =
        Command::new("tar").current_dir(folder).args(["-xf", tar, SCRIPT]).status().expect("tar starts");
    assert!(unpacked.success(), "{tar}: {unpacked}");
    folder.join(SCRIPT)
}

#[test]
fn wireguards_own_script_passes() {
    for tool in ["wg", "iperf3", "ncat", "iptables", "ping6", "ss"] {
        let found =
            Command::new("sh").args(["-c", &format!("command -v {tool}")]).stdout(Stdio::null()).status();
        assert!(
            found.expect("sh starts").success(),
            "{tool} is missing; install what tests/packages.txt lists"
        );
    }
    let folder = tempfile::tempdir().expect("folder");
    let script = fetched(folder.path());
    let said = folder.path().join("said");
    let log = File::create(&said).expect("log");
    let (begun, mut child) = (
        Instant::now(),
        Command::new("bash")
            .arg(&script)
            .arg(env!("CARGO_BIN_EXE_wireguard-end"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("bash starts"),
    );
    let status = loop {
        match child.try_wait().expect("watched") {
            Some(status) => break Some(status),
            None if begun.elapsed() > PATIENCE => {
                // It takes its namespaces down when it is told to end.
                let id = rustix::process::Pid::from_child(&child);
                rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("told");
                child.wait().expect("ended");
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(200)),
        }
    };
    for name in ["wg0", "wg1", "wg2"] {
        // Those that were killed could not take their sockets along.
        drop(fs::remove_file(format!("/var/run/wireguard/{name}.sock")));
    }
    let text = String::from_utf8_lossy(&fs::read(&said).expect("log")).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(40)..].join("\n");
    // Its cleaning up ends with the status of its last command before that, which is what counts.
    assert!(status.is_some_and(|status| status.success()), "{status:?} after {:?}:\n{end}", begun.elapsed());
    assert!(text.contains("Objects that were created were also destroyed."), "it went to its end:\n{end}");
    assert!(text.contains("counters working"));
    for line in lines.iter().filter(|line| line.contains("receiver")) {
        println!("{line}");
    }
    println!("the script took {:?}", begun.elapsed());
}
