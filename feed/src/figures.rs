//! Figures of a process on their way to control, who gathers those of the house; and what takes time, counted.
//!
//! Whoever connects to the socket, and may, gets one packet: all figures of that moment. Then the connection ends.

use crate::wire::{Wire, WireError, WireListener};
use model::figures::{Distribution, Figures, FiguresError};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// Upper bounds of the buckets, in microseconds: from what a machine's own answer takes to what a long poll does.
const BOUNDS: [u64; 15] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 30_000_000, 60_000_000,
];
/// Who asks at once: control, for a server and a person or two.
const MAX_AT_ONCE: usize = 4;
/// Longest that a packet may take either way.
const WAIT: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: the process is out of descriptors, and some will be given back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Its owner, and root.
const MODE: u32 = 0o600;

/// How often something took how long. Any thread may count.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    over: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn note(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let place = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets.get(place).unwrap_or(&self.over).fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What was counted so far.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "nobody reads microseconds of many years")]
    pub fn so_far(&self) -> Distribution {
        let bounds = BOUNDS.iter().map(|micros| *micros as f64 / 1e6);
        let counts = self.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        Distribution {
            buckets: bounds.zip(counts).collect(),
            over: self.over.load(Ordering::Relaxed),
            sum: self.micros.load(Ordering::Relaxed) as f64 / 1e6,
        }
    }
}

/// Why there are no figures of a process.
#[derive(Debug, Error)]
pub enum AskError {
    /// It is not there, or went away.
    #[error("it cannot be asked: {0}")]
    Wire(#[from] WireError),
    /// It did not answer in time.
    #[error("it did not answer within {WAIT:?}")]
    NoAnswer,
    /// What it says cannot be its own.
    #[error("what it says is not taken: {0}")]
    Misfit(#[from] FiguresError),
}

/// Asks the process whose socket stands at `path` and whose figures are called `prefix` and something.
///
/// # Errors
/// See [`AskError`].
pub async fn ask(path: &Path, prefix: &'static str) -> Result<Figures, AskError> {
    let wire = Wire::connect(path)?;
    let received = timeout(WAIT, wire.receive::<Figures>()).await.map_err(|_| AskError::NoAnswer)?;
    let figures = received?.0;
    figures.check(prefix)?;
    Ok(figures)
}

/// Tells root and `own_user` what `gather` finds, for ever. Without a socket nobody is told, and the process does its
/// work all the same.
pub async fn serve<F: Future<Output = Figures> + Send + 'static>(
    path: &Path,
    own_user: u32,
    gather: impl Fn() -> F + Send,
) {
    let listener = match WireListener::bind(path, MODE) {
        Ok(listener) => listener,
        Err(error) => return warn!(%error, "figures cannot be asked for"),
    };
    let places = Arc::new(Semaphore::new(MAX_AT_ONCE));
    loop {
        // The semaphore is never closed. Over the bound, who comes waits in the socket's queue.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok(wire) if may_ask(&wire, own_user) => {
                let gathering = gather();
                tokio::spawn(async move {
                    let told = timeout(WAIT, async { wire.send(&gathering.await, &[]).await }).await;
                    match told {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%error, "who asked for figures went away"),
                        Err(_) => debug!("who asked for figures was too slow"),
                    }
                    drop(place);
                });
            }
            Ok(_) => warn!("a stranger asks for figures, and gets none"),
            Err(error) => {
                warn!(%error, "nobody can ask for figures");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn may_ask(wire: &Wire, own_user: u32) -> bool {
    wire.peer().is_ok_and(|peer| peer.uid == 0 || peer.uid == own_user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::default();
        for micros in [0, 1_000, 1_001, 60_000_000, 60_000_001] {
            histogram.note(Duration::from_micros(micros));
        }
        let so_far = histogram.so_far();
        assert_eq!((so_far.buckets[0], so_far.buckets[1]), ((0.001, 2), (0.0025, 1)));
        assert_eq!((so_far.buckets[14], so_far.over, so_far.count()), ((60.0, 1), 1, 5));
        assert!((so_far.sum - 120.002_002).abs() < 1e-9);
        assert!(BOUNDS.is_sorted());
    }

    #[tokio::test]
    async fn who_connects_gets_the_figures_of_that_moment_and_no_others() {
        let place = tempfile::tempdir().expect("folder");
        let path = place.path().join("figures.sock");
        let absent = ask(&path, "x_").await;
        assert!(matches!(absent, Err(AskError::Wire(WireError::Connect { .. }))), "{absent:?}");
        let asked = Arc::new(AtomicU64::new(0));
        let gather = {
            let asked = Arc::clone(&asked);
            move || {
                let mut figures = Figures::default();
                figures.gauge("x_asked", "How often.", asked.fetch_add(1, Ordering::Relaxed));
                std::future::ready(figures)
            }
        };
        let own_user = rustix::process::geteuid().as_raw();
        let serving = {
            let path = path.clone();
            tokio::spawn(async move { serve(&path, own_user, gather).await })
        };
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        for round in 0..2 * MAX_AT_ONCE {
            let figures = ask(&path, "x_").await.expect("figures");
            assert!(figures.text().ends_with(&format!("x_asked {round}\n")), "{}", figures.text());
        }
        assert!(matches!(ask(&path, "y_").await, Err(AskError::Misfit(_))), "another process' name");
        serving.abort();
    }
}
