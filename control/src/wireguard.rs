//! The VPN's keys, and the end of its sessions.

use crate::publish::Planner;
use crate::random;
use crate::seal::{Seal, SealError};
use crate::store::{SessionRecord, Store, StoreError, now_ms};
use model::id::WireGuardSessionId;
use model::key::{PublicKey, SecretKey};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Notify;
use tracing::{debug, info, warn};
use vpn::client::{SessionState, VpnClient};
use x25519_dalek::{PublicKey as Curve, StaticSecret};

/// The server key's name among the sealed secrets.
const SERVER_KEY: &str = "wireguard-server-key";
/// Longest sleep of the sweeper: the clock may be set while it sleeps.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);
/// Between looks for silent sessions: how much longer than it should one may keep its place.
const IDLE_LOOK: Duration = Duration::from_secs(60);
/// Wait after the store did not tell which sessions are over.
const RETRY: Duration = Duration::from_secs(5);

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The house's key.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The door's key and the seal of the sessions' secrets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    seal: Seal,
    server: SecretKey,
    public: PublicKey,
}

impl Keys {
    /// Reads the keys, and makes those that are missing. A server key of another house's key is replaced, since clients
    /// of a restored database can ask for new sessions; all sessions end then.
    ///
    /// # Errors
    /// See [`KeysError`].
    pub async fn load(data: &Path, store: &Store) -> Result<Self, KeysError> {
        let seal = Seal::of_house(data)?;
        let kept = store.secret(SERVER_KEY).await?;
        let opened = kept.as_ref().map(|sealed| seal.open(SERVER_KEY, sealed));
        let server = match opened {
            Some(Ok(server)) => server,
            Some(Err(_)) | None => {
                if kept.is_some() {
                    warn!("the house's key is another one: the VPN gets a new key, and its sessions end");
                }
                let (secret, _) = pair();
                store.renew_server_key(SERVER_KEY, &seal.close(SERVER_KEY, &secret)).await?;
                secret
            }
        };
        let public = public_of(&server);
        Ok(Self(Arc::new(Inner { seal, server, public })))
    }

    /// The seal of the house's secrets.
    #[must_use]
    pub fn seal(&self) -> &Seal {
        &self.0.seal
    }

    /// The door's secret.
    #[must_use]
    pub fn server(&self) -> &SecretKey {
        &self.0.server
    }

    /// Who the door is.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.0.public
    }

    /// Draws a session's second secret: itself, and sealed.
    #[must_use]
    pub fn draw_preshared(&self, id: &WireGuardSessionId) -> (SecretKey, String) {
        let secret = SecretKey::new(random::bytes());
        let sealed = self.0.seal.close(id.as_str(), &secret);
        (secret, sealed)
    }

    /// A session's second secret.
    ///
    /// # Errors
    /// [`SealError::Closed`].
    pub fn preshared(&self, session: &SessionRecord) -> Result<SecretKey, SealError> {
        self.0.seal.open(session.id.as_str(), &session.preshared)
    }
}

/// Draws a pair of keys (RFC 7748).
#[must_use]
pub fn pair() -> (SecretKey, PublicKey) {
    // Clamped as `wg genkey` does, so that the text is the same wherever it is shown.
    let mut bytes = random::bytes::<32>();
    bytes[0] &= 248;
    bytes[31] = (bytes[31] & 127) | 64;
    let secret = SecretKey::new(bytes);
    let public = public_of(&secret);
    (secret, public)
}

/// Whether this can be a client's key: none of small order, with which no handshake ends.
#[must_use]
pub fn fit(key: &PublicKey) -> bool {
    let probe = StaticSecret::from([0x40; 32]);
    probe.diffie_hellman(&Curve::from(key.0)).was_contributory()
}

fn public_of(secret: &SecretKey) -> PublicKey {
    PublicKey(Curve::from(&StaticSecret::from(*secret.expose())).to_bytes())
}

/// Removes sessions that are over and publishes that, for ever. `changed` says that one may end earlier than was known.
/// While there are sessions, `door` is asked now and then whose clients were silent for too long.
pub async fn sweep(store: Store, planner: Planner, door: VpnClient, changed: Arc<Notify>) {
    loop {
        let wait = match over(&store, &door).await {
            Ok((ended, next)) => {
                if ended > 0 {
                    info!(ended, "VPN sessions are over");
                    if let Err(error) = planner.publish().await {
                        warn!(%error, "the end of VPN sessions waits");
                    }
                }
                next.map_or(LONGEST_SLEEP, |next| left(next).min(IDLE_LOOK))
            }
            Err(error) => {
                warn!(%error, "which VPN sessions are over is not known");
                RETRY
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Removes the sessions that are over, at their limit or by silence; how many, and when the next one is at its limit.
async fn over(store: &Store, door: &VpnClient) -> Result<(u64, Option<i64>), StoreError> {
    let (ended, next) = store.end_sessions().await?;
    if next.is_none() {
        return Ok((ended, None));
    }
    // A door that does not answer lets nobody in either; the next look asks again.
    let sessions = door.sessions(None).await.unwrap_or_else(|error| {
        debug!(%error, "silent VPN sessions are not known");
        Vec::new()
    });
    let idled = sessions.into_iter().filter(|session| session.state == SessionState::Idled);
    let idled: Vec<WireGuardSessionId> = idled.map(|session| session.id).collect();
    if idled.is_empty() {
        return Ok((ended, next));
    }
    Ok((ended + store.end_idle_sessions(&idled).await?, next))
}

/// Until a moment, in milliseconds since the Unix epoch; one more, so that it is over then.
fn left(until_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(until_ms - now_ms() + 1).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_small_order_is_not_fit() {
        assert!(fit(&pair().1));
        for bad in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            assert!(!fit(&PublicKey(bad)));
        }
    }

    #[test]
    fn the_public_key_is_what_rfc_7748_says() {
        let secret = [
            0x77, 0x07, 0x6d, 0x0a, 0x73, 0x18, 0xa5, 0x7d, 0x3c, 0x16, 0xc1, 0x72, 0x51, 0xb2, 0x66, 0x45,
            0xdf, 0x4c, 0x2f, 0x87, 0xeb, 0xc0, 0x99, 0x2a, 0xb1, 0x77, 0xfb, 0xa5, 0x1d, 0xb9, 0x2c, 0x2a,
        ];
        let public = public_of(&SecretKey::new(secret)).to_string();
        assert_eq!(public, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=");
    }
}
