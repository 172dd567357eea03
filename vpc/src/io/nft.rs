//! nft(8): applies rule texts and lists chains, in the namespace in which the caller's closure runs.

use crate::io::namespace::{Inside, NamespaceError};
use crate::pure::names::{DeviceName, TABLE};
use crate::pure::rules::SPEAKERS;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv6Addr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;
use thiserror::Error;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::time::timeout;

/// Where distributions put the program; the environment's search path is not asked.
const PROGRAMS: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];
/// Longest that a transaction may take. Thousands of rules are milliseconds, but a kernel that has to load its modules
/// first took 37 s in a slow machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most of nft's complaint that is repeated.
const MAX_COMPLAINT_BYTES: usize = 2000;

/// What can go wrong with a rule text.
#[derive(Debug, Error)]
pub enum NftError {
    /// The program is missing or cannot be started.
    #[error("nft cannot be started (package nftables): {0}")]
    Start(#[source] io::Error),
    /// It cannot be fed, or its answer not read.
    #[error("nft cannot be talked to: {0}")]
    Talk(#[source] io::Error),
    /// It takes too long.
    #[error("nft did not end within {PATIENCE:?}")]
    Late,
    /// It refuses the text.
    #[error("nft refused: {0}")]
    Refused(String),
    /// Its listing is not what its manual says.
    #[error("nft's list cannot be read: {0}")]
    List(#[source] serde_json::Error),
    /// The namespace's thread does not serve.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
}

/// Where a text is applied.
#[derive(Clone, Copy, Debug)]
pub enum Where<'a> {
    /// In the host's namespace, that of the async runtime.
    Host,
    /// In the network's.
    Network(&'a Inside),
}

/// Applies a text as one transaction.
///
/// # Errors
/// See [`NftError`]; nothing is changed then.
pub async fn apply(place: Where<'_>, text: String) -> Result<(), NftError> {
    run(place, &["-f", "-"], text.as_bytes()).await.map(drop)
}

/// Whether the kernel would take a text; nothing is changed.
///
/// # Errors
/// See [`NftError`]; [`NftError::Refused`] when it would not.
pub async fn check(place: Where<'_>, text: String) -> Result<(), NftError> {
    run(place, &["-c", "-f", "-"], text.as_bytes()).await.map(drop)
}

/// Per-port chains of the table; none when the table is not there.
///
/// # Errors
/// See [`NftError`].
pub async fn port_chains(place: Where<'_>, table: &str) -> Result<BTreeSet<DeviceName>, NftError> {
    let output = run(place, &["-j", "list", "chains", "netdev"], b"").await?;
    chains_of(&output.stdout, table).map_err(NftError::List)
}

/// Counters of the table, of the family `inet`; none when the table is not there.
///
/// # Errors
/// See [`NftError`].
pub async fn counters(place: Where<'_>, table: &str) -> Result<Vec<Counter>, NftError> {
    let output = run(place, &["-j", "list", "counters", "inet"], b"").await?;
    counters_of(&output.stdout, table).map_err(NftError::List)
}

/// The members' addresses that were heard to speak IPv6.
///
/// # Errors
/// See [`NftError`]; [`NftError::Refused`] when the network has no such set.
pub async fn speakers(place: Where<'_>) -> Result<Vec<Ipv6Addr>, NftError> {
    let output = run(place, &["-j", "list", "set", "inet", TABLE, SPEAKERS], b"").await?;
    addresses_of(&output.stdout).map_err(NftError::List)
}

/// A named counter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Counter {
    table: String,
    /// Its name.
    pub name: String,
    /// What it has counted.
    pub packets: u64,
    /// Their bytes, from the IP header on.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    chain: Option<Chain>,
    counter: Option<Counter>,
    set: Option<Set>,
}

#[derive(Deserialize)]
struct Set {
    #[serde(default)]
    elem: Vec<Ipv6Addr>,
}

#[derive(Deserialize)]
struct Chain {
    table: String,
    name: String,
}

fn chains_of(json: &[u8], table: &str) -> Result<BTreeSet<DeviceName>, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(json)?;
    let chains = listing.nftables.into_iter().filter_map(|item| item.chain);
    Ok(chains
        .filter(|chain| chain.table == table)
        .filter_map(|chain| DeviceName::parse(&chain.name))
        .collect())
}

fn counters_of(json: &[u8], table: &str) -> Result<Vec<Counter>, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(json)?;
    let counters = listing.nftables.into_iter().filter_map(|item| item.counter);
    Ok(counters.filter(|counter| counter.table == table).collect())
}

fn addresses_of(json: &[u8]) -> Result<Vec<Ipv6Addr>, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(json)?;
    Ok(listing.nftables.into_iter().filter_map(|item| item.set).flat_map(|set| set.elem).collect())
}

async fn run(place: Where<'_>, arguments: &'static [&'static str], text: &[u8]) -> Result<Output, NftError> {
    let mut child = match place {
        Where::Host => start(arguments),
        Where::Network(inside) => {
            let runtime = Handle::current();
            // A child is born in the namespace of the thread that starts it.
            inside
                .run(move || {
                    let _entered = runtime.enter();
                    start(arguments)
                })
                .await?
        }
    }
    .map_err(NftError::Start)?;
    let mut stdin = child.stdin.take().ok_or(NftError::Talk(io::ErrorKind::BrokenPipe.into()))?;
    let talk = async {
        // nft may refuse and leave before it has read all; its complaint says more than the broken pipe.
        let fed = stdin.write_all(text).await;
        drop(stdin);
        let output = child.wait_with_output().await?;
        if output.status.success() { fed.map(|()| output) } else { Ok(output) }
    };
    let output = timeout(PATIENCE, talk).await.map_err(|_| NftError::Late)?.map_err(NftError::Talk)?;
    if output.status.success() {
        return Ok(output);
    }
    let complaint = output.stderr.get(..MAX_COMPLAINT_BYTES).unwrap_or(&output.stderr);
    Err(NftError::Refused(String::from_utf8_lossy(complaint).into_owned()))
}

fn start(arguments: &[&str]) -> io::Result<Child> {
    let program = PROGRAMS.into_iter().find(|program| Path::new(program).exists());
    Command::new(program.ok_or(io::ErrorKind::NotFound)?)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ports_of_the_own_table_are_listed() {
        let json = br#"{"nftables":[{"metainfo":{"version":"1.0.6"}},
            {"chain":{"family":"netdev","table":"gh","name":"tabcdefghij0123","handle":1}},
            {"chain":{"family":"netdev","table":"other","name":"tabcdefghij0124","handle":1}},
            {"chain":{"family":"netdev","table":"gh","name":"mine","handle":2}}]}"#;
        let chains = chains_of(json, "gh").expect("good");
        assert_eq!(chains.iter().map(DeviceName::as_str).collect::<Vec<_>>(), ["tabcdefghij0123"]);
        assert!(chains_of(b"not json", "gh").is_err());
    }

    #[test]
    fn addresses_of_a_set_are_read() {
        let of = |elements: &str| {
            let json = format!(
                r#"{{"nftables":[{{"metainfo":{{"version":"1.0.6"}}}},{{"set":{{"name":"s"{elements}}}}}]}}"#
            );
            addresses_of(json.as_bytes())
        };
        assert_eq!(of("").expect("an empty set"), Vec::<Ipv6Addr>::new());
        let all: Vec<Ipv6Addr> = ["fd00::5", "fd00::6"].map(|text| text.parse().expect("an address")).into();
        assert_eq!(of(r#","elem":["fd00::5","fd00::6"]"#).expect("two"), all);
        assert!(of(r#","elem":["10.0.0.5"]"#).is_err());
    }

    #[test]
    fn only_counters_of_the_own_table_are_read() {
        let json = br#"{"nftables":[{"metainfo":{"version":"1.0.6"}},
            {"counter":{"family":"inet","name":"a","table":"gh","handle":3,"packets":5,"bytes":300}},
            {"counter":{"family":"inet","name":"a","table":"other","handle":3,"packets":6,"bytes":0}}]}"#;
        let counters = counters_of(json, "gh").expect("good");
        assert_eq!(
            counters.iter().map(|counter| (counter.packets, counter.bytes)).collect::<Vec<_>>(),
            [(5, 300)]
        );
    }
}
