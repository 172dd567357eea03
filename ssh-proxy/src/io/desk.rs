//! Answers requests of control (see [`crate::client`]).

use crate::client::{SESSIONS_A_REPLY, SshReply, SshRequest};
use crate::io::sessions::Sessions;
use feed::wire::{Wire, WireError, WireListener};
use model::id::VmId;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Connections at once: control, and a person or two who look.
const MAX_CONNECTIONS: usize = 16;
/// Longest that a connection may be silent, and that an answer may wait to be read.
const IDLE: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted: the process is out of descriptors, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves for ever. `own_user` and root may ask.
pub async fn serve(listener: WireListener, sessions: Sessions, own_user: u32) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed. Over the bound, who comes waits in the socket's queue.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(wire) => {
                let sessions = sessions.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(&wire, &sessions, own_user).await {
                        debug!(%error, "a request is given up");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "no connection accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(wire: &Wire, sessions: &Sessions, own_user: u32) -> Result<(), WireError> {
    let allowed = wire.peer().is_ok_and(|peer| peer.uid == 0 || peer.uid == own_user);
    loop {
        let request = match timeout(IDLE, wire.receive::<SshRequest>()).await {
            Ok(Err(WireError::Closed)) | Err(_) => return Ok(()),
            Ok(received) => received?.0,
        };
        if !allowed {
            return say(wire, &SshReply::Refused { message: "only control may ask".to_owned() }).await;
        }
        match request {
            SshRequest::Sessions { vm } => list(wire, vm.as_ref(), sessions).await?,
            SshRequest::End { session } => {
                say(wire, &SshReply::Ended { was_there: sessions.end(&session) }).await?;
            }
            SshRequest::Wants => return wants(wire, sessions).await,
        }
    }
}

async fn list(wire: &Wire, vm: Option<&VmId>, sessions: &Sessions) -> Result<(), WireError> {
    let all = sessions.list(vm);
    let mut rest = all.as_slice();
    loop {
        let (part, left) = rest.split_at(rest.len().min(SESSIONS_A_REPLY));
        say(wire, &SshReply::Sessions { sessions: part.to_vec(), more: !left.is_empty() }).await?;
        if left.is_empty() {
            return Ok(());
        }
        rest = left;
    }
}

/// Tells of each VM once for as long as somebody waits for it, until the other end goes.
async fn wants(wire: &Wire, sessions: &Sessions) -> Result<(), WireError> {
    let mut wanted = sessions.wanted();
    let mut told = BTreeSet::new();
    loop {
        let now: BTreeSet<VmId> = wanted.borrow_and_update().keys().cloned().collect();
        for vm in now.difference(&told) {
            say(wire, &SshReply::Wanted { vm: vm.clone() }).await?;
        }
        told = now;
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            () = wire.closed() => return Ok(()),
        }
    }
}

async fn say(wire: &Wire, reply: &SshReply) -> Result<(), WireError> {
    timeout(IDLE, wire.send(reply, &[])).await.unwrap_or(Err(WireError::Closed))
}
