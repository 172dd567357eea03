//! Named places at which a test lets control die. In the program itself they are nothing.

/// The places of one control.
#[derive(Clone, Debug, Default)]
pub struct FailPoints {
    /// Passes until the place at which everything stops.
    #[cfg(test)]
    pub stop_at: Option<std::sync::Arc<Countdown>>,
}

/// Counts passes down; at zero nobody passes any more.
#[cfg(test)]
#[derive(Debug)]
pub struct Countdown {
    /// Which place it is.
    pub at: DieAt,
    /// Told when the place is reached, with its name.
    pub reached: tokio::sync::watch::Sender<Option<String>>,
}

impl FailPoints {
    /// Passes, or, in a test that wants control dead here, never returns.
    #[cfg_attr(not(test), expect(clippy::unused_async, reason = "a test waits here for ever"))]
    pub async fn pass(&self, place: impl FnOnce() -> String) {
        #[cfg(not(test))]
        drop(place);
        #[cfg(test)]
        if let Some(countdown) = &self.stop_at
            && let Some(place) = countdown.dies_at(place())
        {
            countdown.reached.send_replace(Some(place));
            std::future::pending::<()>().await;
        }
    }
}

/// Where control dies.
#[cfg(test)]
#[derive(Debug)]
pub enum DieAt {
    /// After so many others.
    Number(std::sync::atomic::AtomicI64),
    /// At the first of this name.
    Name(&'static str),
}

#[cfg(test)]
impl Countdown {
    /// The place's name when control dies here, or is dead.
    fn dies_at(&self, name: String) -> Option<String> {
        let dies = match &self.at {
            DieAt::Number(left) => left.fetch_sub(1, std::sync::atomic::Ordering::SeqCst) <= 0,
            DieAt::Name(wanted) => name == *wanted,
        };
        let dead = self.reached.borrow().clone();
        dead.or_else(|| dies.then_some(name))
    }
}
