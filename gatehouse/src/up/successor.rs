//! The handover: a second edge-proxy on the same listeners, from the program that is on the disk now and with new
//! settings. The first one goes on until the second serves, and then ends what it has in hand.
//!
//! ```text
//!   reload ─► successor starts ─┬─ it serves ─► it is the edge-proxy of the house; the old one is drained, by itself
//!                               └─ it dies, or is late ─► nothing has changed
//! ```

use super::reload::{Asker, Outcome, SUCCESSOR_WAIT};
use super::{Happening, Keeper, Running, Serial, children, report, told};
use crate::pure::reload::{Judged, judge};
use crate::pure::roster::Role;
use rustix::process::Signal;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;
use tracing::{info, warn};

/// Old processes that end what they have in hand, at once. Each holds memory and open files; a further one makes the
/// oldest end in the time that a stop has.
const MAX_DRAINED: usize = 4;
/// Asks an edge-proxy to accept no more and to end what it has in hand.
const HAND_OVER: Signal = Signal::USR1;
/// What a successor writes when it serves.
const READY: &[u8] = b"READY=1\n";

/// Processes beside those of the roster.
#[derive(Debug, Default)]
pub(super) struct Handover {
    successor: Option<Successor>,
    /// Oldest first.
    drained: Vec<Running>,
}

#[derive(Debug)]
struct Successor {
    running: Running,
    judged: Judged,
    asker: Asker,
}

impl Keeper {
    /// Begins a handover, or says why not.
    pub(super) fn reload(&mut self, asker: Asker) {
        if self.handover.successor.is_some() {
            return asker.refuse("another reload is under way");
        }
        if !self.roster.answers(Role::Edge) {
            return asker.refuse(
                "edge-proxy does not answer at the moment: the house opens or closes, or it has died",
            );
        }
        let Some(source) = &self.manner.source else {
            return asker.refuse("this house only opens to be closed");
        };
        let judged = match source.read() {
            Ok(settings) => judge(&self.settings, &settings),
            Err(error) => return asker.refuse(error.to_string()),
        };
        let (started, notice) = match children::start_successor(&judged.settings, &self.listeners) {
            Ok(started) => started,
            Err(error) => {
                self.keep_settings();
                return asker.refuse(error.to_string());
            }
        };
        let running = self.watch(Role::Edge, started);
        let (serial, sender) = (running.serial, self.sender.clone());
        tokio::spawn(async move {
            let served = served(notice).await;
            told(sender.send(Happening::Successor(serial, served)).await);
        });
        self.handover.successor = Some(Successor { running, judged, asker });
    }

    /// The successor serves, or does not.
    pub(super) fn successor(&mut self, serial: Serial, outcome: Result<(), String>) {
        let Some(Successor { running, judged, asker }) =
            self.handover.successor.take_if(|successor| successor.running.serial == serial)
        else {
            return;
        };
        let refused = match outcome {
            Ok(()) if self.roster.answers(Role::Edge) => None,
            Ok(()) => Some("edge-proxy has died meanwhile, and is started anew".to_owned()),
            Err(why) => Some(why),
        };
        if let Some(why) = refused {
            report(running.handle.signal(Signal::KILL), "the new edge-proxy cannot be ended");
            self.keep_settings();
            return asker.refuse(why);
        }
        self.settings = judged.settings;
        if let Some(old) = self.handles.insert(Role::Edge, running) {
            report(old.handle.signal(HAND_OVER), "the old edge-proxy cannot be asked to end");
            self.handover.drained.push(old);
        }
        let too_many = self.handover.drained.len().saturating_sub(MAX_DRAINED);
        for oldest in self.handover.drained.iter().take(too_many) {
            report(oldest.handle.signal(Signal::TERM), "the oldest edge-proxy cannot be asked to end");
        }
        println!("  edge-proxy was handed over");
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        asker.tell(Outcome { now: names(&judged.now), later: names(&judged.later), failed: None });
    }

    /// A process that is not the roster's has ended.
    pub(super) fn side_process_ended(&mut self, serial: Serial, how: &str) {
        self.handover.drained.retain(|old| old.serial != serial);
        let successor = self.handover.successor.as_ref().map(|successor| successor.running.serial);
        if successor == Some(serial) {
            return self
                .successor(serial, Err(format!("the new edge-proxy ended: {how}; its own lines say why")));
        }
        info!(program = %Role::Edge, %how, "one beside the serving one has ended");
    }

    /// The house closes.
    pub(super) fn end_side_processes(&mut self) {
        if let Some(Successor { running, asker, .. }) = self.handover.successor.take() {
            report(running.handle.signal(Signal::KILL), "the new edge-proxy cannot be ended");
            asker.refuse("the house closes");
        }
        for old in &self.handover.drained {
            report(old.handle.signal(Signal::TERM), "an old edge-proxy cannot be asked to end");
        }
    }

    /// Writes again what edge-proxy is told, for the one that would be started if it died.
    fn keep_settings(&self) {
        if let Err(error) = children::write_settings(Role::Edge, &self.settings) {
            warn!(%error, "after a reload that failed");
        }
    }
}

/// Waits until the successor says that it serves.
async fn served(mut notice: pipe::Receiver) -> Result<(), String> {
    let mut word = [0; READY.len()];
    match timeout(SUCCESSOR_WAIT, notice.read_exact(&mut word)).await {
        Err(_) => Err(format!("the new edge-proxy did not serve within {SUCCESSOR_WAIT:?}")),
        Ok(Ok(_)) if word == *READY => Ok(()),
        Ok(Ok(_)) => Err("the new edge-proxy said something else than that it serves".to_owned()),
        Ok(Err(_)) => Err("the new edge-proxy ended before it served; its own lines say why".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    async fn told_by(word: &[u8]) -> Result<(), String> {
        let (reader, mut writer) = std::io::pipe().expect("pipe");
        let notice = pipe::Receiver::from_owned_fd(reader.into()).expect("notice");
        writer.write_all(word).expect("write");
        drop(writer);
        served(notice).await
    }

    #[tokio::test]
    async fn only_the_word_means_that_it_serves() {
        assert_eq!(told_by(READY).await, Ok(()));
        for (word, why) in [(&b""[..], "ended"), (b"READY", "ended"), (b"READY=0\n", "something else")] {
            let error = told_by(word).await.expect_err("not the word");
            assert!(error.contains(why), "{error}");
        }
    }
}
