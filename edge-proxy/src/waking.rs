//! Dials that go on after the request that began them was answered with the waiting page.
//!
//! ```text
//!   look ── dial answered in time ──────────────────────► the VM's own answer
//!     │
//!     └── not yet: the page; the dial goes on ─┬─ it connects ─► forgotten: the next look dials, and is quick
//!                     ▲                        └─ it fails ────► the next look is told why, for a while
//!                     └── next look: waits for that dial, as long as the first did
//! ```
//!
//! So a VM that never answers shows its error in the end and not a page that looks again for ever, and a hundred
//! browsers that wait for one VM hold one dial among them.

use crate::dial::{DialError, Dialed};
use model::id::VmId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::debug;

/// Dials that are kept at once. Each is a task and a connection to vpc, which has 4096 for all. Over it a dial ends with
/// its request, and the next look begins another.
const MAX_KEPT: usize = 1024;
/// For so long a failure is told to those who look again: several times the page's own pause, and not so long that
/// somebody who comes later hears of the past.
const TOLD_FOR: Duration = Duration::from_secs(10);

/// A VM's port.
pub type Port = (VmId, u16);
type Kept = watch::Receiver<Option<Result<(), Arc<DialError>>>>;

/// All dials that are kept. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Waking {
    kept: Arc<Mutex<HashMap<Port, Kept>>>,
}

impl Waking {
    /// A connection to a port by `dialing`, if it comes within `patience`. `dialing` is begun only when no other look
    /// waits for this port.
    ///
    /// # Errors
    /// [`DialError::Waking`] when the time is over, and the dial goes on; else what the dial said, or the one before
    /// it to the same port, which another look began.
    pub async fn dial<F>(&self, port: Port, patience: Duration, dialing: F) -> Result<Dialed, DialError>
    where
        F: Future<Output = Result<Dialed, DialError>> + Send + 'static,
    {
        let earlier = self.lock().get(&port).cloned();
        if let Some(mut earlier) = earlier {
            match timeout_at(Instant::now() + patience, earlier.wait_for(Option::is_some)).await {
                Err(_) => return Err(DialError::Waking),
                Ok(Ok(outcome)) => {
                    if let Some(Err(error)) = &*outcome {
                        return Err(DialError::Earlier(Arc::clone(error)));
                    }
                }
                // Whoever kept it has ended without a word; nothing is known.
                Ok(Err(_)) => {}
            }
        }
        let mut dialing = tokio::spawn(dialing);
        match timeout_at(Instant::now() + patience, &mut dialing).await {
            Ok(Ok(dialed)) => dialed,
            Ok(Err(ended)) => Err(DialError::Ended(ended)),
            Err(_) => {
                self.keep(port, dialing);
                Err(DialError::Waking)
            }
        }
    }

    /// Lets a dial go on, unless another one to the same port does, or too many do.
    fn keep(&self, port: Port, dialing: JoinHandle<Result<Dialed, DialError>>) {
        let (tell, told) = watch::channel(None);
        {
            let mut kept = self.lock();
            if kept.contains_key(&port) || kept.len() >= MAX_KEPT {
                return dialing.abort();
            }
            kept.insert(port.clone(), told);
        }
        let waking = self.clone();
        tokio::spawn(async move {
            let outcome = match dialing.await {
                // The connection itself is not kept: the VM is awake, so another costs nothing.
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(Arc::new(error)),
                Err(ended) => Err(Arc::new(DialError::Ended(ended))),
            };
            debug!(?port, ?outcome, "a dial that was kept has ended");
            let failed = outcome.is_err();
            tell.send_replace(Some(outcome));
            if failed {
                sleep(TOLD_FOR).await;
            }
            waking.lock().remove(&port);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Port, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use vpc::client::{Refusal, VpcError};

    const PATIENCE: Duration = Duration::from_secs(2);

    fn port(number: u16) -> Port {
        (VmId::from_random([1; 20]), number)
    }

    fn refused() -> DialError {
        VpcError::Refused { reason: Refusal::TimedOut, message: "silent".into() }.into()
    }

    async fn connection() -> Dialed {
        let (one, _other) = tokio::net::UnixStream::pair().expect("pair");
        Dialed::Unix(one)
    }

    #[tokio::test(start_paused = true)]
    async fn a_dial_in_time_is_used_and_nothing_is_kept() {
        let waking = Waking::default();
        let dialed = waking.dial(port(1), PATIENCE, async { Ok(connection().await) }).await;
        assert!(dialed.is_ok());
        let refused = waking.dial(port(1), PATIENCE, async { Err(refused()) }).await.expect_err("no");
        assert!(matches!(refused, DialError::Vpc(_)));
        assert!(waking.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_dial_goes_on_and_the_next_look_waits_for_it() {
        let waking = Waking::default();
        let (wake, woken) = oneshot::channel::<()>();
        let first = waking.dial(port(1), PATIENCE, async {
            woken.await.expect("woken");
            Ok(connection().await)
        });
        assert!(matches!(first.await, Err(DialError::Waking)));
        let never = || async { panic!("one dial for all who look") };
        assert!(matches!(waking.dial(port(1), PATIENCE, never()).await, Err(DialError::Waking)));
        let looks = {
            let waking = waking.clone();
            tokio::spawn(
                async move { waking.dial(port(1), PATIENCE, async { Ok(connection().await) }).await },
            )
        };
        tokio::task::yield_now().await;
        wake.send(()).expect("it still dials");
        assert!(looks.await.expect("task").is_ok());
        assert!(waking.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_told_to_the_next_looks_and_then_forgotten() {
        let waking = Waking::default();
        let first = waking.dial(port(1), PATIENCE, async {
            sleep(PATIENCE * 2).await;
            Err(refused())
        });
        assert!(matches!(first.await, Err(DialError::Waking)));
        for _ in 0..2 {
            let next = waking.dial(port(1), PATIENCE * 2, async { panic!("not dialled anew") }).await;
            assert!(matches!(next, Err(DialError::Earlier(_))), "{next:?}");
        }
        sleep(TOLD_FOR * 2).await;
        assert!(waking.dial(port(1), PATIENCE, async { Ok(connection().await) }).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn over_the_bound_a_dial_ends_with_its_request() {
        let waking = Waking::default();
        for number in 0..=MAX_KEPT {
            let number = u16::try_from(number).expect("small");
            let look = waking.dial(port(number), Duration::from_millis(1), std::future::pending());
            assert!(matches!(look.await, Err(DialError::Waking)));
        }
        assert_eq!(waking.lock().len(), MAX_KEPT);
    }
}
