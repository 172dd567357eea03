//! Which members of a network speak IPv6, as the kernel has heard it: see [`crate::pure::rules::SPEAKERS`].

use crate::io::namespace::Inside;
use crate::io::nft::{self, Where};
use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;
use tracing::warn;

/// How long what was read is believed: as long as guests may keep an answer. However many questions there are, one network
/// lists its set no more often.
const AGE: Duration = Duration::from_secs(5);

/// What was read last, and when.
#[derive(Debug, Default)]
pub struct Speakers {
    read: Mutex<Option<(Instant, HashSet<Ipv6Addr>)>>,
}

impl Speakers {
    /// Whether a member was heard to have this address. False also when the kernel cannot be asked, so that the name is
    /// reached by IPv4.
    pub async fn have(&self, inside: &Inside, address: Ipv6Addr) -> bool {
        // Who asks meanwhile waits for the same list.
        let mut read = self.read.lock().await;
        if let Some((when, all)) = read.as_ref()
            && when.elapsed() < AGE
        {
            return all.contains(&address);
        }
        let listed = nft::speakers(Where::Network(inside)).await.unwrap_or_else(|error| {
            warn!(%error, "nobody knows which members speak IPv6; their names have IPv4 addresses alone");
            Vec::new()
        });
        let (_, all) = read.insert((Instant::now(), listed.into_iter().collect()));
        all.contains(&address)
    }
}
