//! Two scanners of others judge the TLS that is served: sslyze by Mozilla's recommendation "intermediate", and testssl.

use crate::python::{programs, run};
use crate::world::{World, text};
use tokio::process::Command;

/// What testssl may find fault with, and why that is no fault of the gateway's.
const KNOWN: [(&str, &str); 6] = [
    ("engine_problem", "about testssl's own OpenSSL"),
    ("cipher_order", "clients choose among ciphers that are all good, as Mozilla recommends"),
    ("cert_revocation", "the test's authority keeps no list of revoked certificates"),
    ("HSTS", "a promise that only who owns a name can make: the VM's to send"),
    ("security_headers", "likewise"),
    (
        "secure_renego",
        "what it tries is a handshake of TLS 1.2 by OpenSSL without a name, for which there is no certificate",
    ),
];

async fn world() -> World {
    let world = World::new().await;
    world.serve("a.style.dev", 3000, |_| async { text("ok") }).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn sslyze_finds_it_as_mozilla_recommends() {
    let world = world().await;
    let target = format!("a.style.dev:{}{{127.0.0.1}}", world.https.port());
    let mut scan = Command::new(programs().await.join("sslyze"));
    scan.arg("--mozilla_config=intermediate").arg("--certinfo_ca_file").arg(world.ca()).arg(target);
    let (compliant, said) = run(&mut scan).await;
    assert!(compliant, "{said}");
    assert!(said.contains("OK - Compliant"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn testssl_finds_nothing_that_has_no_reason() {
    let world = world().await;
    let findings = world.folder.path().join("findings.json");
    let mut scan = Command::new("testssl");
    // All that it looks at by default, but for what it guesses of some forty clients.
    scan.args(["-p", "-s", "-f", "-P", "-S", "-h", "-U"])
        .args(["--quiet", "--warnings", "off", "--color", "0", "--nodns", "none", "--ip", "127.0.0.1"])
        .arg("--add-ca")
        .arg(world.ca())
        .arg("--jsonfile")
        .arg(&findings)
        .arg(format!("https://a.style.dev:{}/", world.https.port()));
    let (_faults_are_its_status, said) = run(&mut scan).await;
    let findings = std::fs::read(&findings).unwrap_or_else(|error| panic!("{error}: {said}"));
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&findings).expect("JSON");
    let mut faults = Vec::new();
    let mut fine = 0;
    for finding in &findings {
        let severity = finding["severity"].as_str().unwrap_or_default();
        let id = finding["id"].as_str().unwrap_or_default();
        match severity {
            "OK" => fine += 1,
            // WARN tells of testssl's own troubles, as on a busy machine; how much it saw is asked below.
            "INFO" | "DEBUG" | "WARN" => {}
            _ if KNOWN.iter().any(|(known, _)| *known == id) => {}
            _ => faults.push(finding.to_string()),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(fine >= 30, "testssl has looked at little: {fine} of {}\n{said}", findings.len());
}
