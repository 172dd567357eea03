//! `gatehouse ssh`: the SSH front's live sessions, the account's keys, and how clients know the house.

use super::identity::shown;
use super::{Api, ClientError, print_json, print_line};
use crate::table::Table;
use clap::Subcommand;
use model::api::Empty;
use model::api::identity::{AddSshKey, SshHost, SshKeyList, SshKeyRow, SshSessionList};
use model::id::{IdentityId, SshKeyId, SshSessionId};
use std::io;
use std::path::PathBuf;
use thiserror::Error;

/// Why something about SSH came to nothing here.
#[derive(Debug, Error)]
pub enum SshError {
    /// The key's file cannot be read.
    #[error("the public key {path} cannot be read: {source}\nMake one: ssh-keygen -t ed25519")]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file for ssh cannot be written.
    #[error("{path} cannot be written: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The program cannot be started.
    #[error(
        "{program} cannot be started: {source}\nInstall OpenSSH's client, for example: apt install openssh-client"
    )]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What is to be copied is not said.
    #[error(
        "one of both is a file of a VM: VM:/path, or VM+USER:/path; the other is a file here, and has no colon or begins with ./"
    )]
    Ends,
}

/// What can be done with SSH.
#[derive(Clone, Debug, Subcommand)]
pub enum SshCommand {
    /// List live sessions to the account's VMs
    Sessions {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a live session; its client may log in again unless its token or grant is revoked
    End {
        /// The session's id, from the list
        session: SshSessionId,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Public keys that log in without a token
    #[command(subcommand)]
    Key(KeyCommand),
    /// Print the line by which SSH clients know the house, for known_hosts
    #[command(after_help = "Example:\n  gatehouse ssh known-hosts >> ~/.ssh/known_hosts")]
    KnownHosts {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// What can be done with public keys: the account's own, which log in to all of its VMs as any user, or an identity's.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Register a public key
    #[command(after_help = "Examples:\n  gatehouse ssh key add ~/.ssh/id_ed25519.pub\n  \
        gatehouse ssh key add alice.pub --identity IDENTITY --name laptop")]
    Add {
        /// The file that ends in .pub
        file: PathBuf,
        /// Of this identity; of the account itself when absent
        #[arg(long)]
        identity: Option<IdentityId>,
        /// For people [default: the key's comment]
        #[arg(long)]
        name: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// List public keys
    List {
        /// Of this identity; of the account itself when absent
        #[arg(long)]
        identity: Option<IdentityId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Forget a public key; sessions that it opened are cut
    Remove {
        /// The key's id, from the list
        key: SshKeyId,
        /// Of this identity; of the account itself when absent
        #[arg(long)]
        identity: Option<IdentityId>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

impl SshCommand {
    /// Does it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::Sessions { json } => sessions(api, json).await,
            Self::End { session, json } => {
                let done: Empty = api.delete(&["v1", "ssh", "sessions", session.as_str()]).await?;
                if json { print_json(&done) } else { print_line(&format!("{session} is ended")) }
            }
            Self::Key(command) => command.run(api).await,
            Self::KnownHosts { json } => {
                let host = host(api).await?;
                if json { print_json(&host) } else { print_line(&host.known_hosts) }
            }
        }
    }
}

impl KeyCommand {
    async fn run(self, api: &Api) -> Result<(), ClientError> {
        match self {
            Self::Add { file, identity, name, json } => {
                let read = std::fs::read_to_string(&file);
                let key = read.map_err(|source| SshError::Key { path: file, source })?;
                let added: SshKeyRow =
                    api.post(&path(identity.as_ref(), None), &AddSshKey { key, name }).await?;
                let line = format!("{} {}", added.id, added.fingerprint);
                if json { print_json(&added) } else { print_line(&line) }
            }
            Self::List { identity, json } => {
                let list: SshKeyList = api.get(&path(identity.as_ref(), None), &[]).await?;
                if json {
                    return print_json(&list);
                }
                let mut table = Table::new(&["ID", "NAME", "KIND", "FINGERPRINT", "SINCE"]);
                for key in list.keys {
                    let kind = key.key.split(' ').next().unwrap_or_default().to_owned();
                    table.row([
                        key.id.to_string(),
                        key.name.unwrap_or_default(),
                        kind,
                        key.fingerprint,
                        key.created_at,
                    ]);
                }
                shown(&table, "No keys. Next: gatehouse ssh key add ~/.ssh/id_ed25519.pub")
            }
            Self::Remove { key, identity, json } => {
                let done: Empty = api.delete(&path(identity.as_ref(), Some(&key))).await?;
                if json { print_json(&done) } else { print_line(&format!("{key} logs in no more")) }
            }
        }
    }
}

/// Where SSH clients go, and how they know the house.
pub(super) async fn host(api: &Api) -> Result<SshHost, ClientError> {
    api.get(&["v1", "ssh", "host"], &[]).await
}

fn path<'a>(identity: Option<&'a IdentityId>, key: Option<&'a SshKeyId>) -> Vec<&'a str> {
    let mut path = match identity {
        Some(identity) => vec!["identity", "v1", "identities", identity.as_str(), "keys"],
        None => vec!["v1", "ssh", "keys"],
    };
    path.extend(key.map(SshKeyId::as_str));
    path
}

async fn sessions(api: &Api, json: bool) -> Result<(), ClientError> {
    let list: SshSessionList = api.get(&["v1", "ssh", "sessions"], &[]).await?;
    if json {
        return print_json(&list);
    }
    let mut table =
        Table::new(&["ID", "VM", "USER", "WHO", "FROM", "SECONDS", "CHANNELS", "RECEIVED", "SENT"]);
    for session in list.sessions {
        table.row([
            session.session_id.to_string(),
            session.vm_id.to_string(),
            session.user.to_string(),
            session.identity_id.map_or_else(|| "the account".to_owned(), String::from),
            session.client.to_string(),
            session.seconds.to_string(),
            session.channels.to_string(),
            session.received_bytes.to_string(),
            session.sent_bytes.to_string(),
        ]);
    }
    shown(&table, "Nobody is logged in. Next: gatehouse vm ssh VM")
}
