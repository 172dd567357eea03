//! What is watched of a connection of HTTP/2 below the engine: budgets of frames, and header blocks that do not end.

use crate::metrics::{Count, Metrics};
use crate::pure::flood::{Flood, FloodFault};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::time::Sleep;

/// Watches one connection until it is dropped.
pub struct Watch {
    flood: Flood,
    start: Instant,
    block_wait: Duration,
    late: Option<Pin<Box<Sleep>>>,
    taken: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Watch {
    /// Begins to watch. A header block may take `block_wait`; `taken` is how many requests the engine has handed on.
    #[must_use]
    pub fn new(block_wait: Duration, taken: Arc<AtomicU64>, metrics: Arc<Metrics>) -> Self {
        let start = Instant::now();
        Self { flood: Flood::new(Duration::ZERO), start, block_wait, late: None, taken, metrics }
    }

    /// Takes note of what has come.
    ///
    /// # Errors
    /// When a budget is used up, which is counted; nothing more may be read.
    pub fn received(&mut self, bytes: &[u8]) -> io::Result<()> {
        let noted = self.flood.received(bytes, self.start.elapsed());
        if self.flood.block_since().is_none() {
            self.late = None;
        }
        noted.map_err(|fault| {
            self.metrics.count(reason(fault));
            io::Error::new(io::ErrorKind::InvalidData, fault)
        })
    }

    /// What to say to a client that is cut, if it can be said.
    #[must_use]
    pub fn farewell(&self) -> Option<impl AsRef<[u8]> + use<>> {
        self.flood.farewell()
    }

    /// Takes note of what is sent.
    pub fn sent(&mut self, bytes: &[u8]) {
        self.flood.sent(bytes);
    }

    /// Pending, until a header block has taken too long.
    pub fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(since) = self.flood.block_since() else { return Poll::Pending };
        let until = tokio::time::Instant::from_std(self.start + since + self.block_wait);
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(late.as_mut().poll(cx));
        self.metrics.count(Count::HeadLate);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a header block does not end")))
    }
}

impl Drop for Watch {
    /// Requests that the engine refused or that were given up before it had them show as the difference.
    fn drop(&mut self) {
        let untaken = self.flood.opened().saturating_sub(self.taken.load(Ordering::Relaxed));
        self.metrics.add(Count::Untaken, untaken);
    }
}

fn reason(fault: FloodFault) -> Count {
    match fault {
        FloodFault::Resets => Count::FloodResets,
        FloodFault::Continuations => Count::FloodContinuations,
        FloodFault::Settings => Count::FloodSettings,
        FloodFault::Pings => Count::FloodPings,
        FloodFault::EmptyData => Count::FloodEmptyData,
        FloodFault::Priorities => Count::FloodPriorities,
        FloodFault::Windows => Count::FloodWindows,
        FloodFault::Unknown => Count::FloodUnknown,
    }
}
