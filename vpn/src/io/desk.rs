//! Answers requests of the other processes (see [`crate::client`]).

use crate::client::{SESSIONS_A_REPLY, SessionStatus, VpnReply, VpnRequest};
use feed::wire::{Wire, WireError, WireListener};
use model::id::VpcId;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tracing::{debug, warn};

/// Connections at once: control, and a person or two who look.
const MAX_CONNECTIONS: usize = 16;
/// Questions that wait for the loop; each connection has one, and figures are asked for too.
pub const MAX_QUESTIONS: usize = 2 * MAX_CONNECTIONS;
/// Longest that a connection may be silent, and that an answer may wait to be read.
const IDLE: Duration = Duration::from_secs(30);
/// Pause after a connection could not be accepted: the process is out of descriptors, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A question to whoever gives the loop its orders, and where the answer goes.
#[derive(Debug)]
pub enum Question {
    /// The sessions of this network, or of all.
    Sessions(Option<VpcId>, oneshot::Sender<Vec<SessionStatus>>),
    /// What is counted.
    Counters(oneshot::Sender<BTreeMap<&'static str, u64>>),
}

/// Serves for ever.
pub async fn serve(listener: WireListener, questions: mpsc::Sender<Question>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed. Over the bound, who comes waits in the socket's queue.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(wire) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    if let Err(error) = connection(&wire, &questions).await {
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

async fn connection(wire: &Wire, questions: &mpsc::Sender<Question>) -> Result<(), WireError> {
    let allowed = wire.peer().is_ok_and(|peer| peer.uid == 0);
    loop {
        let request = match timeout(IDLE, wire.receive::<VpnRequest>()).await {
            Ok(Err(WireError::Closed)) | Err(_) => return Ok(()),
            Ok(received) => received?.0,
        };
        if !allowed {
            return say(wire, &VpnReply::Refused { message: "only root may ask".to_owned() }).await;
        }
        match request {
            VpnRequest::Sessions { vpc } => sessions(wire, vpc, questions).await?,
        }
    }
}

async fn sessions(
    wire: &Wire,
    vpc: Option<VpcId>,
    questions: &mpsc::Sender<Question>,
) -> Result<(), WireError> {
    let (to, answer) = oneshot::channel();
    let asked = questions.send(Question::Sessions(vpc, to)).await.is_ok();
    let Some(all) = (if asked { answer.await.ok() } else { None }) else {
        return say(wire, &VpnReply::Refused { message: "the packets' loop does not answer".to_owned() })
            .await;
    };
    let mut rest = all.as_slice();
    loop {
        let (part, left) = rest.split_at(rest.len().min(SESSIONS_A_REPLY));
        say(wire, &VpnReply::Sessions { sessions: part.to_vec(), more: !left.is_empty() }).await?;
        if left.is_empty() {
            return Ok(());
        }
        rest = left;
    }
}

async fn say(wire: &Wire, reply: &VpnReply) -> Result<(), WireError> {
    timeout(IDLE, wire.send(reply, &[])).await.unwrap_or(Err(WireError::Closed))
}
