//! Words about identities and SSH.

use super::{Bench, FOREIGN, PATIENCE};
use serde_json::json;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use tokio::process::Command;
use tokio::time::timeout;

/// Stands for `ssh` and `scp`: writes down its words and what it is told when it asks for a password.
const SSH: &str = r#"#!/bin/sh
here=$(dirname "$0")
echo "$0 $*" >> "$here/log"
"$SSH_ASKPASS" "password: " > "$here/token"
for word; do case $word in UserKnownHostsFile=*) cat "${word#*=}" > "$here/known" ;; esac; done
exit 7
"#;

fn read(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).expect("written")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_is_made_granted_and_deleted() {
    let bench = Bench::new().await;
    let vm = bench.good(&["vm", "create"]).await;
    let id = bench.good(&["identity", "create"]).await;
    assert!(bench.good(&["identity", "list"]).await.contains(&id));
    let token = bench.good(&["identity", "token", "create", &id]).await;
    assert!(token.starts_with("gti_") && token.len() == 32);
    let tokens = bench.json(&["identity", "token", "list", &id]).await;
    let name = tokens["tokens"][0]["id"].as_str().expect("id");
    assert!(bench.good(&["identity", "grant", &id, &vm]).await.ends_with("as any user"));
    let changed = bench.json(&["identity", "grant", &id, &vm, "--user", "dev", "-u", "ops"]).await;
    assert_eq!(changed["allowedUsers"], json!(["dev", "ops"]), "a second time changes it");
    assert!(bench.good(&["identity", "grants", &id]).await.contains("dev, ops"));
    bench.good(&["identity", "revoke", &id, &vm]).await;
    let again = bench.refused(&["identity", "revoke", &id, &vm]).await;
    assert!(again.contains("gatehouse identity grants"), "{again}");
    bench.good(&["identity", "token", "delete", &id, name]).await;
    let again = bench.refused(&["identity", "token", "delete", &id, name]).await;
    assert!(again.contains("gatehouse identity token list"), "{again}");
    bench.good(&["identity", "delete", &id]).await;
    let again = bench.refused(&["identity", "delete", &id]).await;
    assert!(again.contains("gatehouse identity list"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_has_a_token_of_its_own_which_nobody_sees() {
    let bench = Bench::new().await;
    let vm = bench.good(&["vm", "create"]).await;
    let folder = tempfile::tempdir().expect("folder");
    for program in ["ssh", "scp"] {
        let path = folder.path().join(program);
        std::fs::write(&path, SSH).expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("runs");
    }
    let there = format!("{vm}+dev:/tmp/");
    for words in
        [vec!["ssh", &vm, "--user", "dev", "--ssh-port", "2222", "--", "ls", "-l"], vec!["cp", "a", &there]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gatehouse-under-test"));
        command.arg("--run-dir").arg(bench.folder.path().join("run")).arg("vm").args(words);
        for name in FOREIGN {
            command.env_remove(name);
        }
        let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").expect("a path"));
        let running = command.env("PATH", path).stdin(Stdio::null()).kill_on_drop(true).output();
        let done = timeout(PATIENCE, running).await.expect("it ends").expect("it runs");
        assert_eq!(done.status.code(), Some(7), "ssh's own: {done:?}");
        let (log, token) = (read(folder.path(), "log"), read(folder.path(), "token"));
        assert!(token.starts_with("gti_") && token.trim().len() == 32, "it was told");
        assert!(!log.contains("gti_"), "{log}");
        assert!(read(folder.path(), "known").starts_with("@cert-authority vm-ssh.style.dev,"));
        assert_eq!(bench.json(&["identity", "list"]).await["total"], 0, "nothing is left");
    }
    let log = read(folder.path(), "log");
    assert!(log.contains(&format!("-p 2222 -l {vm}+dev -- vm-ssh.style.dev ls -l\n")), "{log}");
    assert!(log.contains(&format!("-P 22 -- a {vm}+dev@vm-ssh.style.dev:/tmp/\n")), "{log}");
    let ends = bench.refused(&["vm", "cp", "a", "b"]).await;
    assert!(ends.contains("VM+USER:/path"), "{ends}");
    assert!(bench.good(&["vm", "ssh-config", &vm]).await.contains("ControlPath ~/.ssh/%C"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_registered_and_the_house_is_known() {
    let bench = Bench::new().await;
    let file = bench.folder.path().join("key.pub");
    let line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICFo/k5LU8863u66YC9eUO2170QduohPURkQnbLa/dcz me@home\n";
    std::fs::write(&file, line).expect("written");
    let file = file.to_str().expect("a path");
    let added = bench.json(&["ssh", "key", "add", file]).await;
    let id = added["id"].as_str().expect("id");
    assert!(bench.good(&["ssh", "key", "list"]).await.contains("me@home"));
    bench.good(&["ssh", "key", "remove", id]).await;
    let again = bench.refused(&["ssh", "key", "remove", id]).await;
    assert!(again.contains("gatehouse ssh key list"), "{again}");
    let missing = bench.refused(&["ssh", "key", "add", "/nonexistent.pub"]).await;
    assert!(missing.contains("ssh-keygen"), "{missing}");
    assert!(bench.good(&["ssh", "known-hosts"]).await.starts_with("@cert-authority vm-ssh.style.dev,"));
    let away = bench.refused(&["ssh", "sessions"]).await;
    assert!(away.contains("cannot be reached"), "{away}");
}
