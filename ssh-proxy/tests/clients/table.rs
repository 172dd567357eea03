//! Which client does what through the front: each cell is a test or a reason.

use crate::bed::Bed;
use crate::{libraries, programs};

/// What is tried, in the order of the table's columns.
pub const FEATURES: [&str; 5] = ["command", "terminal", "files", "forward", "many"];

/// One client and one feature.
#[derive(Clone, Copy)]
pub enum Cell {
    /// It works, as this shows.
    Works(fn(&Bed)),
    /// The client has no such thing.
    Lacks,
}

/// One client.
pub struct Row {
    /// Its name.
    pub client: &'static str,
    /// In the order of [`FEATURES`].
    pub cells: [Cell; 5],
    /// Why cells are empty.
    pub note: &'static str,
}

use Cell::{Lacks, Works};

/// The table.
pub const TABLE: &[Row] = &[
    Row {
        client: "OpenSSH",
        cells: [
            Works(programs::openssh::command),
            Works(programs::openssh::terminal),
            Works(programs::openssh::files),
            Works(programs::openssh::forward),
            Works(programs::openssh::many),
        ],
        note: "",
    },
    Row {
        client: "rsync",
        cells: [Lacks, Lacks, Works(programs::files::rsync), Lacks, Lacks],
        note: "copies files, over OpenSSH",
    },
    Row {
        client: "git",
        cells: [Lacks, Lacks, Works(programs::files::git), Lacks, Lacks],
        note: "clones and pushes, over OpenSSH",
    },
    Row {
        client: "sshfs",
        cells: [Lacks, Lacks, Works(programs::files::sshfs), Lacks, Lacks],
        note: "mounts a folder, over OpenSSH, where the host has FUSE",
    },
    Row {
        client: "lftp",
        cells: [Lacks, Lacks, Works(programs::files::lftp), Lacks, Lacks],
        note: "copies files, over OpenSSH",
    },
    Row {
        client: "Go's x/crypto",
        cells: [Lacks, Lacks, Works(programs::files::rclone), Lacks, Lacks],
        note: "by `rclone`, which copies files, and has sums made of them by a command",
    },
    Row {
        client: "Dropbear",
        cells: [
            Works(programs::dropbear::command),
            Works(programs::dropbear::terminal),
            Works(programs::dropbear::files),
            Works(programs::dropbear::forward),
            Works(programs::dropbear::many),
        ],
        note: "files by OpenSSH's `scp -O -S dbclient`: it has no SFTP of its own",
    },
    Row {
        client: "PuTTY",
        cells: [
            Works(programs::putty::command),
            Works(programs::putty::terminal),
            Works(programs::putty::files),
            Works(programs::putty::forward),
            Works(programs::putty::many),
        ],
        note: "`plink`, `psftp` and `pscp`",
    },
    Row {
        client: "libssh2",
        cells: [
            Works(libraries::libssh2::command),
            Lacks,
            Works(programs::files::curl),
            Works(libraries::libssh2::forward),
            Works(libraries::libssh2::many),
        ],
        note: "files by `curl sftp://`, the rest by ssh2-python, which cannot change a terminal's size",
    },
    Row {
        client: "libssh",
        cells: [
            Works(libraries::libssh::command),
            Works(libraries::libssh::terminal),
            Works(libraries::libssh::files),
            Works(libraries::libssh::forward),
            Works(libraries::libssh::many),
        ],
        note: "by ssh-python",
    },
    Row {
        client: "paramiko",
        cells: [
            Works(libraries::paramiko::command),
            Works(libraries::paramiko::terminal),
            Works(libraries::paramiko::files),
            Works(libraries::paramiko::forward),
            Works(libraries::paramiko::many),
        ],
        note: "",
    },
    Row {
        client: "asyncssh",
        cells: [
            Works(libraries::asyncssh::command),
            Works(libraries::asyncssh::terminal),
            Works(libraries::asyncssh::files),
            Works(libraries::asyncssh::forward),
            Works(libraries::asyncssh::many),
        ],
        note: "",
    },
    Row {
        client: "ssh2 (npm)",
        cells: [
            Works(libraries::ssh2::command),
            Works(libraries::ssh2::terminal),
            Works(libraries::ssh2::files),
            Works(libraries::ssh2::forward),
            Works(libraries::ssh2::many),
        ],
        note: "",
    },
    Row {
        client: "JSch",
        cells: [
            Works(libraries::jsch::command),
            Works(libraries::jsch::terminal),
            Works(libraries::jsch::files),
            Works(libraries::jsch::forward),
            Works(libraries::jsch::many),
        ],
        note: "",
    },
];

/// Clients that no test runs, and why.
pub const NOT_RUN: &[(&str, &str)] = &[
    ("FileZilla, WinSCP", "have windows and no command line on Linux"),
    ("VS Code Remote", "its server is not free; `tests/e2e/ssh.rs` plays what it does"),
];

/// The row of a client.
pub fn row(client: &str) -> &'static Row {
    TABLE.iter().find(|row| row.client == client).unwrap_or_else(|| panic!("no client {client}"))
}

/// The table as Markdown, as the docs have it.
pub fn markdown() -> String {
    let mut text =
        format!("| client | {} | |\n|---|{}---|\n", FEATURES.join(" | "), "---|".repeat(FEATURES.len()));
    for row in TABLE {
        let cells = row.cells.map(|cell| if matches!(cell, Works(_)) { "yes" } else { "–" });
        text += &format!("| {} | {} | {} |\n", row.client, cells.join(" | "), row.note);
    }
    text += "\nNot run by the tests:\n\n";
    for (client, reason) in NOT_RUN {
        text += &format!("- {client}: {reason};\n");
    }
    text.truncate(text.len() - 2);
    text + ".\n"
}
