//! Clients that are no part of this, by what they can: the table in [`table`], each cell of it run against the front and
//! a real sshd, and the same in the docs. And ssh-audit with the policy beside this folder.
//!
//! Needs the Debian packages in `tests/packages.txt`, PyPI and npm.

mod bed;
mod libraries;
mod programs;
#[path = "../support/mod.rs"]
mod support;
mod table;

use bed::{Bed, python_packages};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Said, World};
use table::{Cell, FEATURES, TABLE, row};

/// Runs a client's row.
fn run(client: &str) {
    let bed = Bed::new();
    for (feature, cell) in FEATURES.iter().zip(&row(client).cells) {
        if let Cell::Works(shows) = cell {
            println!("{client}: {feature}");
            shows(&bed);
        }
    }
}

/// A test for each client, and that none is left out.
macro_rules! clients {
    ($($test:ident $client:literal)*) => {
        $(#[tokio::test(flavor = "multi_thread")]
        async fn $test() {
            tokio::task::block_in_place(|| run($client));
        })*

        #[test]
        fn each_row_has_a_test() {
            let rows: Vec<_> = TABLE.iter().map(|row| row.client).collect();
            assert_eq!(rows, [$($client),*]);
        }
    };
}

clients! {
    openssh "OpenSSH"
    rsync "rsync"
    git "git"
    sshfs "sshfs"
    lftp "lftp"
    x_crypto_of_go "Go's x/crypto"
    dropbear "Dropbear"
    putty "PuTTY"
    libssh2 "libssh2"
    libssh "libssh"
    paramiko "paramiko"
    asyncssh "asyncssh"
    ssh2_of_npm "ssh2 (npm)"
    jsch "JSch"
}

#[test]
fn the_docs_have_the_same_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ssh.md");
    let docs = std::fs::read_to_string(path).expect("the docs");
    let table = table::markdown();
    assert!(docs.contains(&table), "docs/ssh.md, section Clients, must have:\n{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_audit_finds_what_the_policy_says() {
    let world = World::new();
    let policy: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ssh-audit.policy");
    let said = Command::new(python_packages().join("bin/ssh-audit"))
        .args(["-n", "-p", &world.front.port().to_string(), "--policy"])
        .arg(policy)
        .arg("127.0.0.1")
        .out();
    assert!(said.contains("Passed"), "{said}");
}
