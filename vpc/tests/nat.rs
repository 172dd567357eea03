//! Which kind of NAT a guest is behind, as coturn's tools see it by RFC 5780: what its mapping depends on, and who gets in
//! through one. Peer-to-peer software in a VM stands or falls with that.

mod support;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::guest::Guest;
use support::{DNS, SERVER, World, port};

/// Longest that the STUN server takes to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A STUN server with two addresses and two ports, as RFC 5780 wants it.
struct Stun(Child);

impl Stun {
    fn start(namespace: &str) -> Self {
        let child = Command::new("ip")
            .args([
                "netns",
                "exec",
                namespace,
                "turnserver",
                "-n",
                "--stun-only",
                "--no-cli",
                "--no-tls",
                "--no-dtls",
            ])
            .args([
                "--log-file",
                "stdout",
                "--pidfile",
                "",
                "--listening-port",
                "3478",
                "--alt-listening-port",
                "3479",
            ])
            .args(["-L", &SERVER.to_string(), "-L", &DNS.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("package coturn");
        let stun = Self(child);
        let begun = Instant::now();
        let listens =
            || support::sh(&format!("ip netns exec {namespace} ss -Hlun 'sport = 3479'")).contains("3479");
        while !listens() {
            assert!(begun.elapsed() < PATIENCE, "the STUN server does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        stun
    }
}

impl Drop for Stun {
    fn drop(&mut self) {
        self.0.kill().expect("ours");
        self.0.wait().expect("ended");
    }
}

/// What natdiscovery finds out from inside a guest.
fn discover(guest: &Guest, what: &str) -> String {
    let out = Command::new("timeout")
        .args(["120", "ip", "netns", "exec", &guest.namespace, "turnutils_natdiscovery", what])
        .arg(SERVER.to_string())
        .output()
        .expect("package coturn");
    String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn mappings_do_not_depend_on_the_other_end_and_only_the_other_end_gets_in() {
    let ports = vec![port(5, 1, &[])];
    let world = World::with_ports(ports.clone()).await;
    let guest = Guest::boot(&world, &ports[0]).await;
    let _stun = Stun::start(&world.internet());
    let mapping = discover(&guest, "-m");
    assert!(mapping.contains("Endpoint Independent Mapping"), "{mapping}");
    let filtering = discover(&guest, "-f");
    assert!(filtering.contains("Address and Port Dependent Filtering"), "{filtering}");
}
